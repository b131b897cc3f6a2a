"""Measure whether `alarms.min_effect` silences shifts of columns that hardly change the
predictions, and how much later it lets other shifts be found.

The level of one of ten columns shifts on the first judged day. The models are boosted
trees. The truth uses this column with a weight between 0 and 1.5, one column not at
all, and each other column with a weight of 0.7. Alarms about the relations between
columns count too.
"""

import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

import mlflow_deploy_plugin as onnxserve
from benchmarks.drifting.judging import Line, found_line, on_all_cores
from benchmarks.drifting.worlds import Array
from benchmarks.over_time.streams import (
    CHANGED,
    Change,
    Monitor,
    World,
    median_line,
    simulated_rows,
    some,
    stream_of,
)
from mlflow_deploy_plugin.serve.runtime.feeds import sample_positions
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.watch.drift.effects import measure_effect
from mlflow_deploy_plugin.watch.drift.sketches.relations import RELATIONS, shown_name
from mlflow_deploy_plugin.watch.sequential.shifts import shown_shifts

_WORLD = World(10, 0.2, 400)
_REFERENCE = 90
_DAYS = 30
_STREAMS = 20
_WITHIN = 3
_ROWS = 5_000
_MIN_EFFECT = {"classifier": 0.02, "regressor": 0.1}
"""The smallest effect: on the probability, and in units of a target whose deviation is
2 to 3.
"""
_HARMLESS = ((0.0, 2.0), (0.0, 4.0), (0.0, 10.0), (0.05, 4.0))
_HARMFUL = ((1.5, 2.0), (1.5, 4.0), (0.7, 4.0))
"""The weight of the column, and its shift in deviations of days."""

_Task = tuple[str, float, float, int]
"""The kind of the model, the weight of the column, its shift, and the seed."""


def lines(share: float) -> Iterator[Line]:
    """Yield the lines of the table; `share` is the part of the streams that is used."""
    streams = some(_STREAMS, share)
    for kind in _MIN_EFFECT:
        for weight, shift in _HARMLESS:
            found = _days(kind, weight, shift, streams)
            yield found_line(
                f"{kind}, weight {weight:g}, +{shift:g}: silent for {_DAYS} days",
                [[math.isinf(later)] for first, later in found if math.isfinite(first)],
                0.95,
            )
        for weight, shift in _HARMFUL:
            found = _days(kind, weight, shift, streams)
            what = f"{kind}, weight {weight:g}, +{shift:g}"
            yield found_line(
                f"{what}: found within {_WITHIN} days of the detector without the filter",
                [[later <= first + _WITHIN] for first, later in found if math.isfinite(first)],
                0.9,
            )
            yield median_line(
                f"{what}: days until the alarm without the filter",
                [first for first, _ in found],
            )
            yield median_line(f"{what}: with it", [later for _, later in found])


def _days(kind: str, weight: float, shift: float, streams: int) -> list[tuple[float, float]]:
    return on_all_cores(_first_days, [(kind, weight, shift, seed) for seed in range(streams)])


def _first_days(task: _Task) -> tuple[float, float]:
    """Return the first days with an alarm of the shifted column or the relations,
    without and with the smallest effect; infinity without an alarm.
    """
    kind, weight, shift, seed = task
    model = _model(kind, weight)
    table, numbers = simulated_rows(_WORLD, seed, _REFERENCE, _DAYS, Change(shift=shift))
    earlier = table.slice(0, int(np.searchsorted(numbers, _REFERENCE)))
    sample = earlier.take(sample_positions(len(earlier), _ROWS, 0))
    first = math.inf
    with Monitor(stream_of(table, numbers, _WORLD, _REFERENCE, _DAYS), 1.0) as monitor:
        for day in range(_DAYS):
            alarms = _alarms(monitor, day)
            if not alarms:
                continue
            first = min(first, day + 1)
            window = table.slice(
                int(np.searchsorted(numbers, _REFERENCE + day)),
                _WORLD.rows,
            )
            if RELATIONS in alarms or _effect(model, sample, window) >= _MIN_EFFECT[kind]:
                return first, day + 1
    return first, math.inf


def _alarms(monitor: Monitor, day: int) -> set[str]:
    """Return the shifted column and the relations, if they have an alarm."""
    assert monitor.course is not None
    course = replace(monitor.course, tracking=monitor.tracking(day))
    names = {shown_name(course.series[shift.series].column) for shift in shown_shifts(course)}
    names |= {item.subject for item in monitor.verdict(day).findings if item.is_alarm}
    return names & {_WORLD.changed, RELATIONS}


def _effect(model: OnnxModel, sample: pa.Table, window: pa.Table) -> float:
    effect = measure_effect(model, sample, window, _WORLD.changed, _ROWS)
    assert effect is not None
    return effect.effect_size


@cache
def _model(kind: str, weight: float) -> OnnxModel:
    """Return boosted trees that were trained on 20,000 rows of their own."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20_000, _WORLD.columns))
    weights: Array = np.full(_WORLD.columns, 0.7)
    weights[-1] = 0.0
    weights[CHANGED] = weight
    score = rows @ weights
    data = pd.DataFrame(rows, columns=[f"x{number}" for number in range(_WORLD.columns)])
    if kind == "classifier":
        chances = 1 / (1 + np.exp(-score))
        trained = HistGradientBoostingClassifier(random_state=0).fit(
            data,
            (rng.random(len(rows)) < chances).astype(int),
        )
    else:
        trained = HistGradientBoostingRegressor(random_state=0).fit(
            data,
            score + rng.normal(size=len(rows)),
        )
    with tempfile.TemporaryDirectory(prefix="onnxserve-benchmark-") as folder:
        onnxserve.save_model(trained, Path(folder) / "model", input_example=data.head(200))
        return OnnxModel.load(Path(folder) / "model")
