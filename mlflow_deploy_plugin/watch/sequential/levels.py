"""The signed figures of windows: level, spread, missing share and share of the most
frequent value of each column.

- level, of numbers: the mean of the binned values, so that a single extreme value has a
  limited effect
- spread, of numbers: the logarithm of the standard deviation of the binned values
- frequent, of categories, and of numbers with a value in 10 % of the rows: the share of
  the reference's most frequent value
- missing, of all columns: the share of missing values

A projection (`relations.py`) has only a spread, because its level depends only on the
levels of the columns.

With a `rolling:` reference, each figure is the difference from the window one lag
earlier.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.references.windows import (
    DriftReference,
    ReferencePieces,
    profiles_at,
)
from mlflow_deploy_plugin.watch.drift.sketches.bins import Bins, OrderedBins
from mlflow_deploy_plugin.watch.drift.sketches.relations import PROJECTIONS, shown_name
from mlflow_deploy_plugin.watch.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.watch.drift.threshold.null import column_counts, row_counts
from mlflow_deploy_plugin.watch.sequential.evidence import Levels, SeriesKey, alarm_key

MISSING = "missing"
FLOORS: Mapping[str, float] = {
    "level": 0.005,
    "spread": 0.01,
    "frequent": 0.005,
    MISSING: 0.005,
}
"""The smallest standard deviation of each figure, in its unit; of levels, in standard
deviations of the rows.
"""
_LEAST_FREQUENT = 0.1
_MOSTLY = 0.9


class FigureSeries(NamedTuple):
    """A figure of a column over the windows, in all rows (empty `segment`) or in a
    segment.
    """

    segment: str
    column: str
    figure: str

    @property
    def key(self) -> str:
        return alarm_key(shown_name(self.column), self.segment)

    @property
    def series_key(self) -> SeriesKey:
        figure = self.column if self.column in PROJECTIONS else self.figure
        return SeriesKey(self.key, figure)


@dataclass(frozen=True, eq=False)
class ReferenceLevels:
    """The figures of the reference's windows.

    Attributes:
        starts_us: the start of each window in microseconds since 1970, [R] int64,
            ascending.
        series: the m series that are known in at least 90 % of the windows.
        values: [R, m] float64; NaN if unknown.
        floors: the smallest standard deviation of each series, [m] float64.
        is_complete: True if no window was left out because there are many.
    """

    starts_us: Array
    series: tuple[FigureSeries, ...]
    values: Array
    floors: Array
    is_complete: bool = True

    def since(self, windows: Array) -> "ReferenceLevels":
        """Return only the chosen `windows`, [R] bool."""
        return replace(
            self,
            starts_us=self.starts_us[windows],
            values=self.values[windows],
        )

    def values_of(self, windows: Iterable[Levels]) -> Array:
        """Return the figures of windows in the order of the series, [N, m] float64; NaN
        if unknown.
        """
        keys = [series.series_key for series in self.series]
        rows = []
        for levels in windows:
            rows.append([levels.get(key, math.nan) for key in keys])
        return np.array(rows)


def reference_levels(
    reference: DriftReference,
    columns: Sequence[str],
    segments: Mapping[str, DriftReference],
    figures: Collection[str] = FLOORS,
) -> ReferenceLevels:
    """Return the figures of the reference's windows with at least half of the usual
    number of rows: those of `figures` that are known in most windows, in all rows and
    in each segment.
    """
    times, profiles = _windows(reference.pieces)
    used = _UsedWindows.of(reference.pieces, row_counts(profiles))
    values: dict[FigureSeries, Array] = {}
    for segment, part in {"": reference, **segments}.items():
        part_profiles = profiles_at(times, *_windows(part.pieces))
        for series, by_window in _figure_series(part, part_profiles, columns, segment):
            if series.figure in figures and used.is_mostly_known(by_window):
                values[series] = used.select(by_window)
    starts = np.array(times, np.int64)[used.later]
    table = np.empty((len(starts), 0))
    if values:
        table = np.stack([*values.values()], axis=1)
    return ReferenceLevels(
        starts_us=starts,
        series=tuple(values),
        values=table,
        floors=np.array([_floor(series, reference.bins[series.column]) for series in values]),
        is_complete=len(profiles) >= reference.pieces.grid.windows,
    )


@dataclass(frozen=True, eq=False)
class _UsedWindows:
    """The positions of the windows with at least half of the usual number of rows, [R]
    int64, and for `rolling:` those of the windows one lag earlier.
    """

    later: Array
    earlier: Array | None

    @classmethod
    def of(cls, pieces: ReferencePieces, rows: Array) -> "_UsedWindows":
        if not pieces.grid.lag_windows:
            return cls(np.flatnonzero(_is_full(rows)), None)
        later, earlier = pieces.pairs()
        is_full = _is_full(np.minimum(rows[later], rows[earlier]))
        return cls(later[is_full], earlier[is_full])

    def select(self, by_window: Array) -> Array:
        """Return the figure in the used windows; for `rolling:`, its changes since one
        lag earlier.
        """
        if self.earlier is None:
            return by_window[self.later]
        changes: Array = by_window[self.later] - by_window[self.earlier]
        return changes

    def is_mostly_known(self, by_window: Array) -> bool:
        """Return True if a figure is known in most windows."""
        is_known = np.isfinite(self.select(by_window))
        return bool(is_known.sum() >= _MOSTLY * max(len(is_known), 1))


def _is_full(rows: Array) -> Array:
    """Return which windows, [N] bool, have at least half of the median number of
    rows.
    """
    is_full: Array = rows > 0
    if is_full.any():
        is_full &= 2 * rows >= np.median(rows[is_full])
    return is_full


def _floor(series: FigureSeries, bins: Bins) -> float:
    """Return the smallest standard deviation of the series, in its own unit."""
    if series.figure == "level" and isinstance(bins, OrderedBins):
        return FLOORS["level"] * bins.scale
    return FLOORS[series.figure]


def _windows(pieces: ReferencePieces) -> tuple[Sequence[int], Sequence[Profile]]:
    """Return the starts and profiles of the windows. If a window is one step, all
    windows are known as steps.
    """
    if pieces.grid.window_steps == 1 and pieces.steps:
        return pieces.step_starts_us, pieces.steps
    return pieces.window_starts_us, pieces.windows


def window_levels(
    reference: DriftReference,
    window: Profile,
    columns: Sequence[str],
    segment: str,
) -> dict[SeriesKey, float]:
    """Return the known figures of a judged window; for `rolling:`, their changes since
    one lag earlier.
    """
    is_rolling = bool(reference.pieces.grid.lag_windows)
    profiles = [window, reference.pieces.others] if is_rolling else [window]
    levels: dict[SeriesKey, float] = {}
    for series, values in _figure_series(reference, profiles, columns, segment):
        level = float(values[0])
        if is_rolling:
            level -= float(values[1])
        if math.isfinite(level):
            levels[series.series_key] = level
    return levels


def _figure_series(
    reference: DriftReference,
    profiles: Sequence[Profile],
    columns: Sequence[str],
    segment: str,
) -> Iterator[tuple[FigureSeries, Array]]:
    """Yield each figure of each column with its value per profile, [P] float64. Of a
    projection, only the spread is a figure.
    """
    for name in columns:
        if name in reference.bins:
            bins = reference.bins[name]
            total = reference.pieces.total.columns.get(name)
            counts = column_counts(profiles, name, bins)
            if total is not None and len(total.counts) == bins.size + 1:
                usual = total.counts[:-1]
            else:
                usual = counts[0, :-1]
            for figure, values in _column_figures(bins, counts, usual):
                if name not in PROJECTIONS or figure == "spread":
                    yield FigureSeries(segment, name, figure), values


def _column_figures(
    bins: Bins,
    counts: Array,
    usual: Array,
) -> Iterator[tuple[str, Array]]:
    """Yield the figures of a column with the histograms `counts`, [P, K + 1]; `usual`,
    [K], are the reference's.
    """
    present = counts[:, :-1]
    rows = present.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        yield MISSING, counts[:, -1] / counts.sum(axis=1)
        if isinstance(bins, OrderedBins):
            level = present @ bins.positions / rows
            yield "level", level
            variance = (present * np.square(bins.positions - level[:, None])).sum(axis=1) / rows
            yield (
                "spread",
                np.where(
                    variance > 0,
                    np.log(variance) / 2,
                    np.nan,
                ),
            )
        frequent = int(usual.argmax())
        if not isinstance(bins, OrderedBins) or usual[frequent] >= _LEAST_FREQUENT * usual.sum():
            yield "frequent", present[:, frequent] / rows
