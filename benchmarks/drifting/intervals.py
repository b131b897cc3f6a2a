"""Measure how often the intervals of `performance` contain the true value if errors of
rows depend on each other.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.drifting.judging import on_all_cores
from benchmarks.drifting.worlds import Array
from mlflow_deploy_plugin.watch.statistics.intervals import MetricInterval, Sampling
from mlflow_deploy_plugin.watch.statistics.metrics import ClassPredictions, classification_metrics

NAMES = ("accuracy", "f1", "roc_auc", "brier")
_CONFIDENCE = 0.95
_WINDOWS = 120


@dataclass(frozen=True)
class _World:
    """Windows with stretches of dependent rows, where each stretch depends on the
    previous stretch.
    """

    what: str
    stretches: int
    coefficient: float
    strength: float


_WORLDS = (
    _World("independent", 20, 0.0, 0.0),
    _World("24 independent stretches", 24, 0.0, 1.5),
    _World("96 stretches, coefficient 0.7", 96, 0.7, 1.5),
    _World("96 stretches, coefficient 0.9", 96, 0.9, 1.5),
)


def lines(share: float) -> Iterator[str]:
    """Return the rows of the table: the share of windows whose 95 % interval contained
    the true value. The first figure treats rows as independent, and the second is the
    implemented method.
    """
    yield (
        "| rows in a window | number | "
        f"{' | '.join(f'{name}: all rows / implemented' for name in NAMES)} |"
    )
    yield "|---" * (len(NAMES) + 2) + "|"
    windows = max(round(_WINDOWS * share), 20)
    tasks = [(world, rows, windows) for world in _WORLDS for rows in (480, 2_880)]
    yield from on_all_cores(_line, tasks)


def _line(task: tuple[_World, int, int]) -> str:
    world, rows, windows = task
    rng = np.random.default_rng([rows, world.stretches, round(10 * world.coefficient)])
    right = _right([_rows(rng, world, 4_800) for _ in range(100)])
    drawn = [_rows(rng, world, rows) for _ in range(windows)]
    cells = []
    ways = [_values(drawn, Sampling(_CONFIDENCE, times)) for times in (None, np.arange(rows))]
    for name in NAMES:
        held = [np.mean([one.low <= right[name] <= one.high for one in way[name]]) for way in ways]
        cells.append(f"{held[0]:.0%} / {held[1]:.0%}")
    return f"| {world.what} | {rows:,} | {' | '.join(cells)} |"


def _right(windows: list[tuple[Array, ClassPredictions]]) -> dict[str, float]:
    """Return the figures of many windows together; each window is a sample of them."""
    said = np.concatenate(
        [one.probabilities for _, one in windows if one.probabilities is not None],
    )
    together = ClassPredictions(said.argmax(axis=1), said, windows[0][1].classes)
    found = _values(
        [(np.concatenate([truth for truth, _ in windows]), together)],
        Sampling(_CONFIDENCE),
    )
    return {name: ones[0].value for name, ones in found.items()}


def _values(
    windows: list[tuple[Array, ClassPredictions]],
    sampling: Sampling,
) -> dict[str, list[MetricInterval]]:
    found: dict[str, list[MetricInterval]] = {name: [] for name in NAMES}
    for truth, answers in windows:
        for name, one in classification_metrics(truth, answers, NAMES, sampling).items():
            if isinstance(one, MetricInterval):
                found[name].append(one)
    return found


def _rows(rng: np.random.Generator, world: _World, rows: int) -> tuple[Array, ClassPredictions]:
    """Return labels whose probabilities differ per stretch, and the predictions of a
    model that does not use the stretch.
    """
    level = np.empty(world.stretches)
    level[0] = rng.normal()
    for stretch in range(1, world.stretches):
        fresh = math.sqrt(1 - world.coefficient**2) * rng.normal()
        level[stretch] = world.coefficient * level[stretch - 1] + fresh
    chances = rng.uniform(0.3, 0.95, rows)
    moved = (
        np.log(chances / (1 - chances))
        + world.strength * level[np.arange(rows) * world.stretches // rows]
    )
    truth = (rng.random(rows) < 1 / (1 + np.exp(-moved))).astype(np.int64)
    said = np.stack([1 - chances, chances], axis=1)
    return truth, ClassPredictions(said.argmax(axis=1), said, ("no", "yes"))
