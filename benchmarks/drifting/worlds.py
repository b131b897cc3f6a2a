"""Rows that are judged: simulated rows with known changes, and New York's flights of
2013 with weather.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.watch.drift.references.load import freeze_table
from mlflow_deploy_plugin.watch.drift.references.windows import (
    DriftReference,
    cut_pieces,
    sketch_pieces,
    window_grid,
)
from mlflow_deploy_plugin.watch.drift.sketches.bins import bins_digest
from projects.flight_delay.data import EVENT_TIME as FLIGHT_TIME
from projects.flight_delay.data import FEATURES, load_flights

Array = npt.NDArray[Any]

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
CALM_DAYS = 90


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows and their event times, microseconds since 1970."""

    table: pa.Table
    times: Array

    def take(self, chosen: Array) -> "Rows":
        """Return the rows of a mask or of positions."""
        positions = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return Rows(self.table.take(pa.array(positions)), self.times[positions])

    def with_times(self) -> pa.Table:
        """Return the rows as the log contains them."""
        return self.table.append_column(
            EVENT_TIME,
            pa.array(self.times, pa.timestamp("us", tz="UTC")),
        )

    def between(self, start_us: int, end_us: int) -> "Rows":
        return self.take((self.times >= start_us) & (self.times < end_us))


def reference_of(
    rows: Rows,
    start_us: int,
    length_us: int,
    has_times: bool = True,
) -> DriftReference:
    """Return the reference of a monitor whose windows have this phase and length."""
    bins, notes = freeze_table(rows.table, (), "the rows")
    pieces = cut_pieces(bins, rows.table, rows.times if has_times else None, start_us, length_us)
    return DriftReference(
        bins,
        bins_digest(bins),
        pieces,
        rows.with_times() if has_times else rows.table,
        notes=tuple(notes),
    )


def rolling_reference_of(
    rows: Rows,
    start_us: int,
    length_us: int,
    lag_windows: int,
) -> DriftReference:
    """Return the reference of `rolling:`, which compares each window with the window
    `lag_windows` earlier.
    """
    bins, _ = freeze_table(rows.table, (), "the rows")
    over = window_grid(bins, start_us, length_us, int(rows.times.min()), start_us - 1, lag_windows)
    return DriftReference(
        bins,
        bins_digest(bins),
        sketch_pieces(bins, [(rows.table, rows.times)], over),
        rows.with_times(),
    )


def busy_hours(rng: np.random.Generator, hours: int, coefficient: float = 0.7) -> Rows:
    """Return hours with many rows and high values by day, and few rows and low values
    at night: a cycle of ± 3 deviations. A random level per hour adds 0.3 deviations,
    and depends on the previous hour with the coefficient.
    """
    cycle = np.sin(2 * np.pi * (np.arange(hours) - 8) / 24)
    counts = (100 + 60 * cycle).astype(np.int64)
    weather = np.empty(hours)
    weather[0] = rng.normal()
    for hour in range(1, hours):
        weather[hour] = coefficient * weather[hour - 1] + np.sqrt(1 - coefficient**2) * rng.normal()
    rows = int(counts.sum())
    level = np.repeat(3 * cycle + 0.3 * weather, counts)
    is_late = rng.random(rows) < 1 / (1 + np.exp(1 - level / 2))
    table = pa.table(
        {
            "level": level + rng.normal(size=rows),
            "noise": rng.normal(size=rows),
            "late": pa.array(np.where(is_late, "yes", "no")),
        },
    )
    return Rows(
        table,
        np.repeat(np.arange(hours) * HOUR_US, counts) + rng.integers(0, HOUR_US, rows),
    )


def independent_rows(rng: np.random.Generator, count: int) -> pa.Table:
    """Return independent rows with eight columns of all kinds,
    two of them correlated.
    """
    first = rng.normal(size=count)
    gaps = rng.normal(size=count)
    gaps[rng.random(count) < 0.05] = np.nan
    return pa.table(
        {
            "normal": first,
            "alike": 0.8 * first + 0.6 * rng.normal(size=count),
            "skewed": rng.lognormal(0, 1, count),
            "count": rng.poisson(3, count),
            "gaps": gaps,
            "four": _texts(rng.choice(4, count, p=[0.4, 0.3, 0.2, 0.1])),
            "many": _texts(np.minimum(rng.zipf(1.7, count), 500)),
            "flag": rng.random(count) < 0.2,
        },
    )


def _texts(codes: Array) -> pa.Array:
    """Return the texts c0, c1, … without a loop over the rows."""
    names, inverse = np.unique(codes, return_inverse=True)
    texts = pa.array([f"c{name}" for name in names], pa.string())
    return pa.DictionaryArray.from_arrays(
        pa.array(inverse.astype(np.int32)),
        texts,
    ).dictionary_decode()


def dependent_days(
    rng: np.random.Generator,
    coefficients: Sequence[float],
    days: int,
    rows: int,
) -> Rows:
    """Return days with random levels: half of each column's variance is the day's
    level, which depends on the previous day with the column's coefficient (an
    autoregressive process in its stationary state).
    """
    return _days_of(rng, _autoregressive(rng, days, coefficients), rows)


def persistent_days(rng: np.random.Generator, days: int, rows: int) -> Rows:
    """Return days with a weekly cycle and random levels, which depend on the previous
    day with a coefficient of 0.85.
    """
    cycle = np.where(np.arange(days) % 7 >= 5, 1.0, -0.4)
    return _days_of(rng, cycle[:, None] + _autoregressive(rng, days, (0.85, 0.85)), rows)


def churning_days(rng: np.random.Generator, days: int, rows: int) -> Rows:
    """Return days of independent rows. One of their 40 categories is replaced by a new
    category every twentieth day.
    """
    newest = 39 + np.arange(days) // 20
    codes = np.repeat(newest, rows) - rng.integers(0, 40, days * rows)
    table = pa.table({"item": _texts(codes), "noise": rng.normal(size=days * rows)})
    return Rows(table, _times_of(rng, days, rows))


def walking_days(rng: np.random.Generator, days: int, rows: int) -> Rows:
    """Return days whose first column has a level that walks at random, by 0.06 standard
    deviations of its rows per day.
    """
    walk = np.cumsum(rng.normal(0, 0.06, days))
    return _days_of(rng, np.stack([walk, np.zeros(days)], axis=1), rows)


def _autoregressive(rng: np.random.Generator, days: int, coefficients: Sequence[float]) -> Array:
    """Return [days, columns] float64: stationary autoregressive processes with variance
    1.
    """
    levels = np.empty((days, len(coefficients)))
    phi = np.asarray(coefficients)
    levels[0] = rng.normal(size=len(phi))
    for day in range(1, days):
        levels[day] = phi * levels[day - 1] + np.sqrt(1 - phi**2) * rng.normal(size=len(phi))
    return levels


def _days_of(rng: np.random.Generator, levels: Array, rows: int) -> Rows:
    """Return `rows` rows per day. The levels [days, columns] are half of their variance
    if the levels have variance 1.
    """
    values = np.sqrt(0.5) * np.repeat(levels, rows, axis=0)
    values += np.sqrt(0.5) * rng.normal(size=values.shape)
    return Rows(
        pa.table({f"x{number}": column for number, column in enumerate(values.T)}),
        _times_of(rng, len(levels), rows),
    )


def _times_of(rng: np.random.Generator, days: int, rows: int) -> Array:
    return np.repeat(np.arange(days) * DAY_US, rows) + rng.integers(0, DAY_US, days * rows)


@cache
def flights() -> Rows:
    """Return all flights, with their times in 2013."""
    frame = load_flights()
    table = pa.Table.from_pandas(frame[list(FEATURES)], preserve_index=False)
    times = (
        pa.array(frame[FLIGHT_TIME]).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    )
    return Rows(table, times)


FIRST_US = pd.Timestamp("2013-01-01", tz="UTC").value // 1000
"""The start of the calm months, January to March."""


def calm() -> Rows:
    return flights().between(FIRST_US, FIRST_US + CALM_DAYS * DAY_US)


def month_of(day: int) -> int:
    """Return the month (1 to 12) of a day since January 1st, 2013."""
    return int((pd.Timestamp("2013-01-01") + pd.Timedelta(days=day)).month)
