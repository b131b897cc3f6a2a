"""The signed figures of windows: level, spread, missing share and share of the most
frequent value of each column.

| figure | of | definition |
|---|---|---|
| level | numbers | the mean of the binned values, so that a single extreme value has a limited effect |
| spread | numbers | the logarithm of the standard deviation of the binned values |
| frequent | categories; numbers with a value in 10 % of the rows | the share of the reference's most frequent value |
| missing | all | the share of missing values |

A projection (`relations.py`) has only a spread, because its level depends only on the
levels of the columns.

With a `rolling:` reference, each figure is the difference from the window one lag
earlier.
"""  # noqa: E501

from collections.abc import Collection, Iterator, Mapping, Sequence
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
from mlflow_deploy_plugin.watch.sequential.evidence import SeriesKey, alarm_key

MISSING = "missing"
FLOORS: Mapping[str, float] = {"level": 0.005, "spread": 0.01, "frequent": 0.005, MISSING: 0.005}
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
        is_projection = self.column in PROJECTIONS
        return SeriesKey(self.key, self.column if is_projection else self.figure)


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
        return replace(self, starts_us=self.starts_us[windows], values=self.values[windows])


def reference_levels(
    reference: DriftReference,
    columns: Sequence[str],
    segments: Mapping[str, DriftReference],
    figures: Collection[str] = FLOORS,
) -> ReferenceLevels:
    """Return the figures of the reference's windows with at least half of the usual
    number of rows.
    """
    times, profiles = _windows(reference.pieces)
    starts = np.array(times, np.int64)
    rows = row_counts(profiles)
    is_rolling = bool(reference.pieces.grid.lag_windows)
    later, earlier = reference.pieces.pairs() if is_rolling else (np.arange(len(starts)),) * 2
    rows = np.minimum(rows[later], rows[earlier])
    if rows.any():
        is_full = (rows > 0) & (2 * rows >= np.median(rows[rows > 0]))
    else:
        is_full = np.zeros(len(rows), bool)
    series_values: dict[FigureSeries, Array] = {}
    for segment, segment_reference in {"": reference, **segments}.items():
        for series, figure in _figures(
            segment_reference,
            profiles_at(times, *_windows(segment_reference.pieces)),
            columns,
            segment,
        ):
            values = (figure[later] - figure[earlier] if is_rolling else figure)[is_full]
            if series.figure in figures and np.isfinite(values).sum() >= _MOSTLY * max(
                len(values),
                1,
            ):
                series_values[series] = values
    scales = {
        series: bins.scale
        for series in series_values
        if series.figure == "level"
        and isinstance(bins := reference.bins[series.column], OrderedBins)
    }
    return ReferenceLevels(
        starts_us=starts[later][is_full],
        series=tuple(series_values),
        values=np.stack([*series_values.values()], axis=1)
        if series_values
        else np.empty((is_full.sum(), 0)),
        floors=np.array(
            [FLOORS[series.figure] * scales.get(series, 1.0) for series in series_values]
        ),
        is_complete=len(profiles) >= reference.pieces.grid.windows,
    )


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
) -> dict[FigureSeries, float]:
    """Return the known figures of a judged window."""
    is_rolling = reference.pieces.grid.lag_windows
    profiles = [window, reference.pieces.others] if is_rolling else [window]
    figures = _figures(reference, profiles, columns, segment)
    values = {
        series: float(both[0] - both[1] if is_rolling else both[0]) for series, both in figures
    }
    return {series: value for series, value in values.items() if np.isfinite(value)}


def _figures(
    reference: DriftReference,
    profiles: Sequence[Profile],
    columns: Sequence[str],
    segment: str,
) -> Iterator[tuple[FigureSeries, Array]]:
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


def _column_figures(bins: Bins, counts: Array, usual: Array) -> Iterator[tuple[str, Array]]:
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
            yield "spread", np.where(variance > 0, np.log(variance) / 2, np.nan)
        frequent = int(usual.argmax())
        if not isinstance(bins, OrderedBins) or usual[frequent] >= _LEAST_FREQUENT * usual.sum():
            yield "frequent", present[:, frequent] / rows
