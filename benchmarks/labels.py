"""Measure the quality of a performance monitor's figures if labels are late, few, or
missing depending on their value.

    .venv/bin/python benchmarks/labels.py               # some minutes on two cores
    .venv/bin/python benchmarks/labels.py --only missing --share 0.2

- estimates: how often the interval of an estimate without labels contains the later
  value from the labels, by the rows of the window, by the number of earlier windows,
  and by the error of the model's probabilities from window to window.
- missing: how often the interval of an accuracy contains the accuracy of all rows if
  some have a label, with the labelled rows as they are, and with the monitor's method.
  Also, how often the verdict is wrong with the bound 0.05 away.
- alarms: the number of alarms per year of daily windows, by `consecutive`, and the time
  until a real change is reported.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.drifting.judging import on_all_cores
from benchmarks.drifting.worlds import Array
from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.watch.statistics.cbpe import (
    CbpeEstimate,
    LabelledWindow,
    estimate,
    expected_metrics,
    labels_fit,
)
from mlflow_deploy_plugin.watch.statistics.intervals import MetricInterval, Sampling
from mlflow_deploy_plugin.watch.statistics.label_weights import (
    LabelWeights,
    weigh_labels,
    weighted_metrics,
)
from mlflow_deploy_plugin.watch.statistics.metrics import ClassPredictions, classification_metrics
from mlflow_deploy_plugin.watch.statistics.predictions import Predictions

CONFIDENCE = 0.95
RATE = 0.05
START = datetime(2013, 4, 1, tzinfo=UTC)
_NAMES = ("accuracy", "f1", "roc_auc")


def answers_of(
    rng: np.random.Generator,
    rows: int,
    skill: float,
    sharper: float = 1.0,
    level: float = 0.0,
    odds: float = 0.0,
) -> LabelledWindow:
    """Return predictions and true classes.

    Args:
        skill: of the model's scores.
        sharper: the factor by which the model's probabilities are too extreme.
        level: the difference of the log odds of the positive class that the model
            cannot observe.
        odds: log odds of the positive class.
    """
    scores = odds + skill * rng.normal(size=rows)
    said, chances = (1 / (1 + np.exp(-one)) for one in (sharper * scores, scores + level))
    both = np.stack([1 - said, said], axis=1)
    truth = (rng.random(rows) < chances).astype(np.int64)
    return LabelledWindow(truth, ClassPredictions(both.argmax(axis=1), both, ("0", "1")))


def of_estimates(share: float) -> Iterator[str]:
    yield (
        "| probabilities | earlier windows | rows | "
        f"{' | '.join(f'{name}: earlier / now' for name in _NAMES)} |"
    )
    yield "|---" * (3 + len(_NAMES)) + "|"
    times = max(round(400 * share), 20)
    tasks = [
        (spread, windows, rows, times)
        for spread in (0.0, 0.5, 1.0)
        for windows in (3, 8)
        for rows in (1, 30, 100, 1_000)
    ]
    yield from on_all_cores(_estimates, tasks)


def _estimates(task: tuple[float, int, int, int]) -> str:
    spread, windows, rows, times = task
    rng = np.random.default_rng([round(10 * spread), windows, rows])
    held: dict[str, list[tuple[bool, bool]]] = {name: [] for name in _NAMES}
    for seed in range(times):
        judged, *earlier = (
            answers_of(rng, count, 2.0, 1.0, spread * rng.normal())
            for count in (rows, *[1_000] * windows)
        )
        found = estimate(judged.answers, earlier, _NAMES, seed)
        assert isinstance(found, CbpeEstimate)
        for name, real in expected_metrics(judged.answers, np.eye(2)[judged.truth], _NAMES).items():
            one = found.measure(name, rows, CONFIDENCE)
            if isinstance(one, MetricInterval) and not isinstance(real, Refused):
                before = abs(one.value - real) <= found.errors[name].largest
                held[name].append((before, one.low <= real <= one.high))
    cells = [_shares(held[name]) if len(held[name]) > times // 2 else "" for name in _NAMES]
    what = "calibrated" if not spread else f"off by {spread:g} log odds (standard deviation)"
    return f"| {what} | {windows} | {rows:,} | {' | '.join(cells)} |"


def _shares(held: list[tuple[bool, bool]]) -> str:
    before, now = np.mean(held, axis=0)
    return f"{before:.0%} / {now:.0%}"


Scheme = Callable[[Array, Array], Array]
_SCHEMES: dict[str, Scheme] = {
    "half, at random": lambda said, true: np.full(len(said), 0.5),
    "by the model's confidence": lambda said, true: 0.05 + 0.9 * np.abs(2 * said - 1),
    "90 % of positives, 20 % of negatives": lambda said, true: np.where(true == 1, 0.9, 0.2),
    "60 % of positives, 40 % of negatives": lambda said, true: np.where(true == 1, 0.6, 0.4),
    "70 % of correct, 40 % of wrong predictions": lambda said, true: np.where(
        (said > 0.5) == true,
        0.7,
        0.4,
    ),
    "more labels for older rows": lambda said, true: np.linspace(0.9, 0.2, len(said)),
}
_ODDS = -1.5  # One row in four is positive, and more of the positive rows are predicted wrongly.
_MODELS = {
    "good, calibrated": (2.0, 1.0, 0),
    "weak, calibrated": (0.5, 1.0, 0),
    "good, overconfident": (2.0, 2.0, 0),
    "good, overconfident, 5 earlier windows": (2.0, 2.0, 5),
}


def of_missing(share: float) -> Iterator[str]:
    yield (
        "| labels | model | rows | covered, unweighted | covered, now | difference found | bounds "
        "| wrong, unweighted | wrong, now |"
    )
    yield "|---" * 9 + "|"
    times = max(round(300 * share), 20)
    tasks = [
        (name, model, rows, times)
        for name in _SCHEMES
        for model in _MODELS
        for rows in (1_000, 10_000)
    ]
    yield from on_all_cores(_missing, tasks)


def _missing(task: tuple[str, str, int, int]) -> str:
    scheme, model, rows, times = task
    rng = np.random.default_rng([rows, list(_SCHEMES).index(scheme), list(_MODELS).index(model)])
    moments = pa.array([START + timedelta(seconds=row) for row in range(rows)])
    table = pa.table({"_event_time": moments})
    trials = [_trial(rng, scheme, model, table) for _ in range(times)]
    cells = " | ".join(f"{share:.0%}" for share in np.mean(trials, axis=0))
    return f"| {scheme} | {model} | {rows:,} | {cells} |"


def _trial(rng: np.random.Generator, scheme: str, model: str, table: pa.Table) -> tuple[bool, ...]:
    """Return the cells of one window with missing labels."""
    skill, sharper, windows = _MODELS[model]
    rows = len(table)
    drawn = answers_of(rng, rows, skill, sharper, odds=_ODDS)
    assert drawn.answers.probabilities is not None
    labelled_share = _SCHEMES[scheme](drawn.answers.probabilities[:, 1], drawn.truth)
    has_label = rng.random(rows) < labelled_share
    predictions = Predictions(drawn.answers, None, np.where(has_label, drawn.truth, -1))
    labelled = weigh_labels(table, predictions, [], RATE)
    window = LabelledWindow(drawn.truth[has_label], drawn.answers.take(has_label))
    earlier = [answers_of(rng, rows, skill, sharper, odds=_ODDS) for _ in range(windows)]
    weights = labelled if labels_fit(window, earlier, CONFIDENCE) else labelled.at_worst
    now = _weighted_accuracy(predictions, weights)
    plain = _unweighted_accuracy(window)
    real = float((drawn.truth == drawn.answers.predicted).mean())
    return (
        plain.low <= real <= plain.high,
        now.low <= real <= now.high,
        bool(labelled.differing),
        now.method == "worst case",
        _is_wrong(plain, real),
        _is_wrong(now, real),
    )


def _weighted_accuracy(predictions: Predictions, weights: LabelWeights) -> MetricInterval:
    everyone = np.ones(len(predictions.truth), bool)
    metrics = weighted_metrics(predictions, weights, everyone, ["accuracy"], Sampling(CONFIDENCE))
    accuracy = metrics["accuracy"]
    assert isinstance(accuracy, MetricInterval)
    return accuracy


def _unweighted_accuracy(window: LabelledWindow) -> MetricInterval:
    metrics = classification_metrics(
        window.truth,
        window.answers,
        ["accuracy"],
        Sampling(CONFIDENCE),
    )
    accuracy = metrics["accuracy"]
    assert isinstance(accuracy, MetricInterval)
    return accuracy


def _is_wrong(interval: MetricInterval, real: float) -> bool:
    return interval.low > real + 0.05 or interval.high < real - 0.05


_DAYS = 365
_BROKEN_DAYS = 60


def of_alarms(share: float) -> Iterator[str]:
    yield "| windows | 1 | 2 | 3 |"
    yield "|---|---|---|---|"
    years = max(round(2_000 * share), 50)
    rng = np.random.default_rng(0)
    for what, persistence in (
        ("independent", 0.0),
        ("persistent, 0.5", 0.5),
        ("persistent, 0.8", 0.8),
    ):
        noise = _persistent(rng, persistence, years, _DAYS)
        drift = np.where(noise > _quantile(0.05), 1, 0)
        yield f"| alarms per year at 5 % per window, {what} | {_begun(drift)} |"
        edge = np.where(noise > _quantile(0.025), 1, np.where(noise < -_quantile(0.025), 0, -1))
        yield (
            f"| the same, accuracy equal to its bound, most windows `cannot tell`, {what} | "
            f"{_begun(edge)} |"
        )
    for power in (0.3, 0.6, 0.9):
        hit = rng.random((years, _BROKEN_DAYS)) < power
        what = f"windows until a change is reported that {power:.0%} of them show"
        yield f"| {what} | {_delays(np.where(hit, 1, 0))} |"
        yield f"| the same, where the others are `cannot tell` | {_delays(np.where(hit, 1, -1))} |"


def _quantile(rate: float) -> float:
    from scipy.stats import norm

    return float(norm.isf(rate))


def _persistent(rng: np.random.Generator, coefficient: float, years: int, days: int) -> Array:
    """Return [years, days] standard normal numbers, each of which depends on the
    previous number.
    """
    drawn = rng.normal(size=(years, days))
    for day in range(1, days):
        drawn[:, day] = (
            coefficient * drawn[:, day - 1] + np.sqrt(1 - coefficient**2) * drawn[:, day]
        )
    return drawn


def _in_a_row(states: Array) -> Array:
    """Return the number of alarms in a row at each window. 1 is an alarm, 0 ends the
    row, and -1 neither counts nor ends it.
    """
    counts = np.zeros(states.shape, np.int64)
    count = np.zeros(len(states), np.int64)
    for day in range(states.shape[1]):
        count = np.where(states[:, day] == 1, count + 1, np.where(states[:, day] == 0, 0, count))
        counts[:, day] = np.where(states[:, day] == 1, count, 0)
    return counts


def _begun(states: Array) -> str:
    """Return how often per year the start of an alarm is reported, for 1, 2 and 3 in a
    row.
    """
    counts = _in_a_row(states)
    return " | ".join(
        f"{(counts == consecutive).sum(axis=1).mean():.2g}" for consecutive in (1, 2, 3)
    )


def _delays(states: Array) -> str:
    """Return the median number of windows until the change is reported."""
    counts = _in_a_row(states)
    firsts = [
        np.where((counts >= one).any(axis=1), (counts >= one).argmax(axis=1) + 1, _BROKEN_DAYS)
        for one in (1, 2, 3)
    ]
    return " | ".join(f"{np.median(first):.0f}" for first in firsts)


SECTIONS = {"estimates": of_estimates, "missing": of_missing, "alarms": of_alarms}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        choices=SECTIONS,
        action="append",
        help="run only this part; can be repeated",
    )
    parser.add_argument("--share", type=float, default=1.0, help="share of the simulated windows")
    asked = parser.parse_args()
    for name in asked.only or SECTIONS:
        print(f"\n## {name}\n")
        for line in SECTIONS[name](asked.share):
            print(line, flush=True)


if __name__ == "__main__":
    main()
