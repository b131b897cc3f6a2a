"""The signed figures of windows: level, spread, missing share and share of the most frequent value of each column.

| figure | of | definition |
|---|---|---|
| level | numbers | the mean of the binned values, so that a single extreme value has a limited effect |
| spread | numbers | the logarithm of the standard deviation of the binned values |
| frequent | categories; numbers with a value in 10 % of the rows | the share of the reference's most frequent value |
| missing | all | the share of missing values |

A projection (`relations.py`) has only a spread, because its level depends only on the levels of the columns.

With a `rolling:` reference, each figure is the difference from the window one lag earlier.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mlflow_deploy_plugin.monitoring.drift.references.windows import DriftReference
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins, OrderedBins
from mlflow_deploy_plugin.monitoring.drift.sketches.relations import PROJECTIONS, shown_name
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.monitoring.drift.threshold.null import column_counts, row_counts
from mlflow_deploy_plugin.monitoring.sequential.evidence import alarm_key
from mlflow_deploy_plugin.runtime.feeds import Array

MISSING = "missing"
_LEAST_FREQUENT = 0.1


class Series(NamedTuple):
    """A figure of a column over the windows, in all rows (empty `segment`) or in a segment."""

    segment: str
    column: str
    figure: str

    @property
    def key(self) -> str:
        return alarm_key(shown_name(self.column), self.segment)

    def __str__(self) -> str:
        return f"{alarm_key(self.column, self.segment)}/{self.figure}"


@dataclass(frozen=True, eq=False)
class WindowLevels:
    """The figures of windows.

    Attributes:
        starts_us: the start of each window in microseconds since 1970, [N] int64, ascending.
        figures: the figures of each window, [N] float64 each; NaN if unknown.
    """

    starts_us: Array
    figures: Mapping[Series, Array]


def reference_levels(
    reference: DriftReference, columns: Sequence[str], segments: Mapping[str, DriftReference]
) -> WindowLevels:
    """Return the figures of the reference's windows with at least half of the usual number of rows."""
    pieces = reference.pieces
    rows = row_counts(pieces.windows)
    starts = np.array(pieces.window_starts_us, np.int64)
    if pieces.grid.lag_windows:
        later, earlier = pieces.pairs()
        rows = np.minimum(rows[later], rows[earlier])
        starts = starts[later]
    kept = 2 * rows >= np.median(rows) if len(rows) else np.zeros(0, bool)
    figures: dict[Series, Array] = {}
    for segment, own in {"": reference, **segments}.items():
        profiles = own.pieces.windows_at(pieces.window_starts_us)
        for series, values in _figures(own, profiles, columns, segment):
            changes = values[later] - values[earlier] if pieces.grid.lag_windows else values
            figures[series] = changes[kept]
    return WindowLevels(starts[kept], figures)


def window_levels(
    reference: DriftReference, window: Profile, columns: Sequence[str], segment: str
) -> dict[Series, float]:
    """Return the known figures of a judged window."""
    is_rolling = reference.pieces.grid.lag_windows
    profiles = [window, reference.pieces.others] if is_rolling else [window]
    figures = _figures(reference, profiles, columns, segment)
    values = {series: float(both[0] - both[1] if is_rolling else both[0]) for series, both in figures}
    return {series: value for series, value in values.items() if np.isfinite(value)}


def _figures(
    reference: DriftReference, profiles: Sequence[Profile], columns: Sequence[str], segment: str
) -> Iterator[tuple[Series, Array]]:
    for name in columns:
        if name in reference.bins:
            bins, total = reference.bins[name], reference.pieces.total.columns.get(name)
            counts = column_counts(profiles, name, bins)
            usual = total.counts[:-1] if total is not None and len(total.counts) == bins.size + 1 else counts[0, :-1]
            for figure, values in _column_figures(bins, counts, usual):
                if name not in PROJECTIONS or figure == "spread":
                    yield Series(segment, name, figure), values


def _column_figures(bins: Bins, counts: Array, usual: Array) -> Iterator[tuple[str, Array]]:
    """Yield the figures of a column with the histograms `counts`, [P, K + 1]; `usual`, [K], are the reference's."""
    known = counts[:, :-1]
    rows = known.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        yield MISSING, counts[:, -1] / counts.sum(axis=1)
        if isinstance(bins, OrderedBins):
            level = known @ bins.positions / rows
            yield "level", level
            variance = (known * np.square(bins.positions - level[:, None])).sum(axis=1) / rows
            yield "spread", np.where(variance > 0, np.log(variance) / 2, np.nan)
        frequent = int(usual.argmax())
        if not isinstance(bins, OrderedBins) or usual[frequent] >= _LEAST_FREQUENT * usual.sum():
            yield "frequent", known[:, frequent] / rows
