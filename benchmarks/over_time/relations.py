"""Measure how often a change of only the relations between columns is called drifted,
on real columns.

A changed day has the same values in each column as a calm day, but in another order in
all or half of the columns. Two worlds have a reference of 90 days: the 30 columns of
scikit-learn's breast cancer data, and New York's flights of 2013 with weather. Their
rows are drawn with probabilities that change from day to day.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa
from sklearn.datasets import load_breast_cancer

from benchmarks.drifting.judging import Judge, Line, found_line, is_alarm, on_all_cores, rate_line
from benchmarks.drifting.worlds import CALM_DAYS, DAY_US, Array, Rows, flights, reference_of
from mlflow_deploy_plugin.watch.drift.sketches.relations import RELATIONS

_STREAMS = 20
_DAYS = 40
_DAY_ROWS = 300
_TARGETED = "30 columns of cells"
_CHANGES: Mapping[str, float] = {
    "all columns in another order": 1.0,
    "half of the columns": 0.5,
    "three columns": 0.1,
}
"""The changes, each with the share of columns whose values are in another order."""


def lines(share: float) -> Iterator[Line]:
    """Yield the shares of days that are called drifted. `share` is the part of the
    streams that is used.
    """
    for title in _WORLDS:
        streams = on_all_cores(
            _judged,
            [(title, seed) for seed in range(max(round(_STREAMS * share), 1))],
        )
        yield rate_line(f"{title}: calm days", [calm for calm, _, _ in streams])
        for number, what in enumerate(_CHANGES):
            least = 0.9 if title == _TARGETED and number < 2 else None
            yield found_line(f"{title}: {what}", [found[number] for _, found, _ in streams], least)
        named = [name for _, _, names in streams for name in names]
        yield found_line(f"{title}: the finding is about relations", [named], None)


def _judged(task: tuple[str, int]) -> tuple[list[bool | None], list[list[bool]], list[bool]]:
    """Return the verdicts on the calm days, those on the days of each change, and
    whether their alarms are about relations.
    """
    title, seed = task
    rng = np.random.default_rng([seed, len(title)])
    days = _WORLDS[title](rng)
    tables = [
        days.between(day * DAY_US, (day + 1) * DAY_US).table
        for day in range(CALM_DAYS, CALM_DAYS + _DAYS)
    ]
    judge = Judge(reference_of(days.between(0, CALM_DAYS * DAY_US), 0, DAY_US))
    later = list(enumerate(tables, CALM_DAYS))
    calm = [is_alarm(judge(table, day * DAY_US)) for day, table in later]
    found: list[list[bool]] = []
    named: list[bool] = []
    for part in _CHANGES.values():
        verdicts = [
            judge(_in_another_order(rng, table, part), day * DAY_US) for day, table in later
        ]
        found.append([verdict.state == "drift" for verdict in verdicts])
        named += [
            verdict.findings[0].subject == RELATIONS
            for verdict in verdicts
            if verdict.state == "drift"
        ]
    return calm, found, named


def _in_another_order(rng: np.random.Generator, table: pa.Table, part: float) -> pa.Table:
    names = rng.choice(table.column_names, round(part * table.num_columns), replace=False)
    for name in names:
        order = pa.array(rng.permutation(len(table)))
        table = table.set_column(
            table.column_names.index(name),
            name,
            table.column(name).take(order),
        )
    return table


def _cancer_days(rng: np.random.Generator) -> Rows:
    """Return days of the breast cancer rows;
    the size of the cells depends on the day.
    """
    data = load_breast_cancer(as_frame=True).data
    return _drawn_days(
        rng,
        pa.Table.from_pandas(data, preserve_index=False),
        np.log(data["mean area"].to_numpy()),
    )


def _flight_days(rng: np.random.Generator) -> Rows:
    """Return days of flights from the whole year;
    the temperature depends on the day.
    """
    table = flights().table
    return _drawn_days(rng, table, np.nan_to_num(table.column("temp").to_numpy(), nan=55.0))


def _drawn_days(rng: np.random.Generator, table: pa.Table, values: Array) -> Rows:
    """Return days with rows of the table. The level of a day favours rows with small or
    large `values`, [N]; it has a standard deviation of 0.3 standard deviations of the
    values.
    """
    score = (values - values.mean()) / values.std()
    drawn = []
    for level in rng.normal(0, 0.3, CALM_DAYS + _DAYS):
        weights = np.exp(level * score)
        drawn.append(rng.choice(len(table), _DAY_ROWS, p=weights / weights.sum()))
    return Rows(
        table.take(pa.array(np.concatenate(drawn))),
        np.repeat(np.arange(len(drawn)) * DAY_US, _DAY_ROWS),
    )


_WORLDS: Mapping[str, Callable[[np.random.Generator], Rows]] = {
    _TARGETED: _cancer_days,
    "flights": _flight_days,
}
