"""The signed figures of windows, which the detector follows.

| figure | of | value |
|---|---|---|
| rows | all rows | the logarithm of the number of rows |
| level | numbers | the mean of the binned values: a single value has a limited effect |
| mean | numbers | the mean of the values, including values far outside the bins |
| spread | numbers | the logarithm of the standard deviation of the binned values |
| mode | numbers | the logarithm of the share of the window's most frequent bin |
| frequent, second | categories, frequent numbers | the shares of the usual two |
| missing | all columns | the share of missing values |
| new | categories | the share of values that the reference lacks |
| outside | numbers | the share of values outside of the reference's range |
| distance | all columns | the distance from the reference (`bins.py`) |

The usual two are the two values that are most frequent in the reference. Distances and
modes depend on the level of the figure in a way that is not linear: after a reference
with correlated windows they increase by chance. Lasting shifts of distances are not
sought, and only large ones of modes.

A projection (`relations.py`) has only a spread, because its level depends only on the
levels of the columns. With a `rolling:` reference, each figure except the rows and the
distance is the difference from the window one lag earlier.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.references.windows import (
    DriftReference,
    ReferencePieces,
)
from mlflow_deploy_plugin.watch.drift.sketches.bins import Bins, OrderedBins
from mlflow_deploy_plugin.watch.drift.sketches.relations import PROJECTIONS, shown_name
from mlflow_deploy_plugin.watch.drift.sketches.sketch import (
    ColumnSketch,
    Profile,
    column_counts,
    row_counts,
)
from mlflow_deploy_plugin.watch.sequential.evidence import (
    ROWS_KEY,
    Levels,
    SeriesKey,
    alarm_key,
)

NEARLY_NORMAL = 2 / 3
"""The power of a distance that is nearly normal, because its square has about a
chi-square distribution (Wilson and Hilferty, PNAS 17, 1931).
"""
ROWS = ROWS_KEY.column
"""The subject of the figure `rows`, which is not a column."""
ROWS_FIGURE = ROWS_KEY.figure
LEVEL = "level"
MEAN = "mean"
SPREAD = "spread"
MODE = "mode"
"""The share of the most frequent bin of the window, relative to its share in rows that
are drawn from the reference. A sensor that repeats its last value changes it.
"""
MISSING = "missing"
NEW = "new"
OUTSIDE = "outside"
DISTANCE = "distance"
UPWARD = (NEW, OUTSIDE, MODE, DISTANCE)
"""The figures of which only an increase is a change."""
SHARES = ("frequent", "second", MISSING, NEW, OUTSIDE)
QUALITY: Mapping[str, float] = {MISSING: 0.0, NEW: 0.0, ROWS_FIGURE: 0.0, OUTSIDE: 0.5}
"""The figures of which a drift to a value above this one is a sign of harm. A season
moves some values out of range, and another unit most of them.
"""
_IN_ROWS = (LEVEL, MEAN)
"""The figures in the unit of the column."""
FLOORS: Mapping[str, float] = {
    ROWS_FIGURE: 0.07,
    LEVEL: 0.005,
    MEAN: 0.005,
    SPREAD: 0.01,
    MODE: 0.05,
    "frequent": 0.005,
    "second": 0.005,
    MISSING: 0.005,
    NEW: 0.005,
    OUTSIDE: 0.005,
    DISTANCE: 0.01,
}
"""The smallest standard deviation of each figure, in its unit; of the figures in the
unit of the column, in standard deviations of the rows; of a distance, to the power
`NEARLY_NORMAL`.
"""
_DRAWS = 64
_DRAWN_ROWS = 300
_SIZES = (10, 30, 100, 300, 1_000, 10_000)
_FARTHEST = 1e9
"""The limit of a mean of all values, in standard deviations of the rows beyond the
bins: the square of a larger mean may be infinite.
"""
_LEAST_MODE = -0.3
_WIDE = 3
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

    @property
    def rows_key(self) -> SeriesKey:
        """The identity of the number of rows of the segment."""
        return SeriesKey(alarm_key(ROWS, self.segment), ROWS_FIGURE)


@dataclass(frozen=True, eq=False)
class ReferenceLevels:
    """The figures of the reference's windows.

    Attributes:
        starts_us: the start of each window in microseconds since 1970, [R] int64,
            ascending.
        length_us: the length of the windows in microseconds.
        series: the m series that are known in at least 90 % of the windows.
        values: [R, m] float64; NaN if unknown.
        rows: the number of rows of the series' segment in each window, [R, m] float64.
        row_variances: the variance that a single row adds to a figure, which is divided
            by the number of rows, [m] float64.
        floors: the smallest standard deviation of each series, [m] float64.
        is_complete: True if no window was left out because there are many.
        slopes: the trend of each series per window, [m] float64; 0 without a trend.
        least: the smallest size of a lasting shift that is an alarm, [m] float64.
    """

    starts_us: Array
    length_us: int
    series: tuple[FigureSeries, ...]
    values: Array
    rows: Array
    row_variances: Array
    floors: Array
    is_complete: bool = True
    slopes: Array | float = 0.0
    least: Array | float = 0.0

    def since(self, windows: Array) -> "ReferenceLevels":
        """Return only the chosen `windows`, [R] bool."""
        return replace(
            self,
            starts_us=self.starts_us[windows],
            values=self.values[windows],
            rows=self.rows[windows],
        )

    def values_of(self, windows: Iterable[Levels]) -> Array:
        """Return the figures of windows in the order of the series, [N, m] float64; NaN
        if unknown.
        """
        return _table([series.series_key for series in self.series], windows)

    def rows_of(self, windows: Iterable[Levels]) -> Array:
        """Return the number of rows of windows in the order of the series, [N, m]
        float64; NaN if unknown.
        """
        rows: Array = np.exp(_table([series.rows_key for series in self.series], windows))
        return rows

    @property
    def is_distance(self) -> Array:
        """The series that are distances, [m] bool."""
        return np.array([series.figure == DISTANCE for series in self.series], bool)


def _table(keys: Sequence[SeriesKey], windows: Iterable[Levels]) -> Array:
    # The series of a segment share its number of rows.
    positions = {key: position for position, key in enumerate(dict.fromkeys(keys))}
    rows = [[*map(levels.get, positions)] for levels in windows]
    table = np.array(rows, np.float64).reshape(-1, len(positions))
    return table[:, [positions[key] for key in keys]]


def reference_levels(
    reference: DriftReference,
    columns: Sequence[str],
    segments: Mapping[str, DriftReference],
) -> ReferenceLevels:
    """Return the figures of the reference's windows with rows that are known in most
    windows, in all rows and in each segment. The number of rows is included if the
    `columns` contain `ROWS`.
    """
    times = np.array(reference.pieces.window_starts_us, np.int64)
    rows = row_counts(reference.pieces.windows)
    later = np.flatnonzero(rows > 0)
    earlier: Array | None = None
    if reference.pieces.grid.lag_windows:
        later, earlier = reference.pieces.pairs()
        has_rows = np.minimum(rows[later], rows[earlier]) > 0
        later = later[has_rows]
        earlier = earlier[has_rows]
    known: list[_KnownSeries] = []
    for segment, part in {"": reference, **segments}.items():
        part_profiles = part.pieces.windows_at(times.tolist())
        windows = _PartWindows(
            part,
            [part_profiles[index] for index in later],
            None if earlier is None else [part_profiles[index] for index in earlier],
            is_reference=True,
        )
        key = (part.bins_key, segment, times[later].tobytes(), *columns)
        kept_key, kept = _known_series.get(part.pieces, ((), []))
        if kept_key != key:
            kept = [*windows.series(columns, segment)]
            _known_series[part.pieces] = key, kept
        known += (
            each
            for each in kept
            if each.series.column in columns
            and np.isfinite(each.values).sum() >= _MOSTLY * max(len(each.values), 1)
        )
    return ReferenceLevels(
        starts_us=times[later],
        length_us=reference.pieces.grid.length_us,
        series=tuple(each.series for each in known),
        values=_columns([each.values for each in known], len(later)),
        rows=_columns([each.rows for each in known], len(later)),
        row_variances=np.array([each.row_variance for each in known]),
        floors=np.array([each.floor for each in known]),
        is_complete=len(times) >= reference.pieces.grid.windows,
    )


def _columns(columns: Sequence[Array], rows: int) -> Array:
    if not columns:
        return np.empty((rows, 0))
    return np.stack(columns, axis=1)


def window_levels(
    reference: DriftReference,
    window: Profile,
    columns: Sequence[str],
    segment: str,
    rows: int = 0,
) -> dict[SeriesKey, float]:
    """Return the known figures of a judged window; for `rolling:`, their changes since
    one lag earlier. `rows` is the number of rows of the window that all versions have
    answered; 0 if they are those of the profile. No rows of a segment are the level of
    half a row.
    """
    earlier = None
    if reference.pieces.grid.lag_windows:
        earlier = [reference.pieces.others]
    windows = _PartWindows(reference, [window], earlier, is_reference=False)
    levels: dict[SeriesKey, float] = {}
    for each in windows.series(columns, segment):
        level = float(each.values[0])
        if math.isfinite(level):
            levels[each.series.series_key] = level
    counted = rows or (segment and max(window.rows, 0.5))
    if counted:
        levels[FigureSeries(segment, ROWS, ROWS_FIGURE).series_key] = math.log(counted)
    return levels


class _KnownSeries(NamedTuple):
    """A figure in P windows, [P] float64, with the fields of `ReferenceLevels`."""

    series: FigureSeries
    values: Array
    rows: Array
    row_variance: float
    floor: float


_known_series = WeakKeyDictionary[ReferencePieces, tuple[tuple[object, ...], list[_KnownSeries]]]()
"""The last figures of each reference in memory, with their bins, segment, windows and
columns.
"""


@dataclass(frozen=True, eq=False)
class _PartWindows:
    """The windows of all rows or of a segment, and with `rolling:` the windows one lag
    earlier. `is_reference` is True for windows that are a part of the reference.
    """

    part: DriftReference
    windows: Sequence[Profile]
    earlier: Sequence[Profile] | None
    is_reference: bool

    def series(self, columns: Sequence[str], segment: str) -> Iterator[_KnownSeries]:
        """Yield the number of rows, and each figure of each column."""
        with np.errstate(divide="ignore", invalid="ignore"):
            rows = row_counts(self.windows).astype(np.float64)
            yield _KnownSeries(
                FigureSeries(segment, ROWS, ROWS_FIGURE),
                np.log(rows),
                rows,
                0.0,
                FLOORS[ROWS_FIGURE],
            )
            usual_rows = 1.0
            if self.part.pieces.windows:
                usual_rows = float(np.median(row_counts(self.part.pieces.windows)))
            # A row of each window adds to the variance of a difference.
            compared_rows = 1 if self.earlier is None else 2
            for name in columns:
                if name not in self.part.bins:
                    continue
                bins = self.part.bins[name]
                column = _Column(
                    name,
                    bins,
                    column_counts([self.part.pieces.total], name, bins)[0],
                    self.part.pieces.total.columns.get(name),
                )
                values = dict(column.figures(self.windows, self.is_reference))
                if self.earlier is not None:
                    before = dict(column.figures(self.earlier, self.is_reference))
                    values = {figure: now - before[figure] for figure, now in values.items()}
                values[DISTANCE] = column.distances(self.windows, self.earlier, self.is_reference)
                variances = column.row_variances(values) if self.is_reference else {}
                for figure, by_window in values.items():
                    # Of a projection, only the spread is a figure.
                    if name not in PROJECTIONS or figure == SPREAD:
                        yield _KnownSeries(
                            FigureSeries(segment, name, figure),
                            by_window,
                            rows,
                            compared_rows * variances.get(figure, 0.0),
                            column.floor(figure, usual_rows),
                        )


@dataclass(frozen=True, eq=False)
class _Column:
    """A column with its bins and its histogram in the whole reference, [K + 1]
    float64.
    """

    name: str
    bins: Bins
    total: Array
    whole: ColumnSketch | None

    def floor(self, figure: str, usual_rows: float) -> float:
        """Return the smallest standard deviation of the figure, in its own unit: for
        shares, and for the distance of a column with one value, at least the effect of
        one odd row in the usual number of rows; for modes, at least the error of the
        largest share in the reference.
        """
        if figure in _IN_ROWS and isinstance(self.bins, OrderedBins):
            return FLOORS[figure] * self.bins.scale
        smallest = FLOORS[figure]
        if figure in SHARES:
            return max(smallest, 1 / max(usual_rows, 1))
        if figure == MODE:
            return max(smallest, 1 / math.sqrt(max(self.total[:-1].max(), 1)))
        if figure == DISTANCE and np.count_nonzero(self.total[:-1]) == 1:
            # One of the rows has another value than all rows of the reference.
            usual = self.total[:-1] / self.total[:-1].sum()
            odd = np.zeros_like(usual)
            odd[0 if usual[-1] else -1] = 1
            window = usual + (odd - usual) / max(usual_rows, 1)
            distance = float(self.bins.distance(window[None], usual)[0])
            return max(smallest, math.pow(distance, NEARLY_NORMAL))
        return smallest

    def figures(
        self,
        profiles: Sequence[Profile],
        is_reference: bool,
    ) -> Iterator[tuple[str, Array]]:
        """Yield each figure except the distance, [P] float64; NaN if unknown.
        `is_reference` is True for windows that are a part of the reference.
        """
        counts = column_counts(profiles, self.name, self.bins)
        present = counts[:, :-1]
        rows = present.sum(axis=1)
        yield MISSING, counts[:, -1] / counts.sum(axis=1)
        columns = [profile.columns.get(self.name) for profile in profiles]
        usual = self.total[:-1]
        if isinstance(self.bins, OrderedBins):
            yield from self._number_figures(self.bins, present, columns)
            shown = np.flatnonzero(usual >= _LEAST_FREQUENT * max(usual.sum(), 1))
            if not self.bins.tables:
                # The shares of the bins in the reference have errors of their own.
                of_reference = 0 if is_reference else 1 / max(usual.sum(), 1)
                precision = 1 / (1 / rows + of_reference)
                yield MODE, self._mode(self.bins.positions, present, precision)
        else:
            yield NEW, _counts_of(columns, "unseen") / rows
            shown = np.arange(len(self.bins.codes))
        ranked = shown[np.argsort(-usual[shown], kind="stable")]
        for figure, value in zip(("frequent", "second"), ranked, strict=False):
            yield figure, present[:, value] / rows

    def _number_figures(
        self,
        bins: OrderedBins,
        present: Array,
        columns: Sequence[ColumnSketch | None],
    ) -> Iterator[tuple[str, Array]]:
        rows = present.sum(axis=1)
        level = present @ bins.positions / rows
        yield LEVEL, level
        variance = (present * np.square(bins.positions - level[:, None])).sum(axis=1) / rows
        yield SPREAD, np.where(variance > 0, np.log(variance) / 2, np.nan)
        if not bins.tables:
            means = np.array([column.mean if column else math.nan for column in columns])
            reach = _FARTHEST * bins.scale
            yield MEAN, means.clip(bins.positions[0] - reach, bins.positions[-1] + reach)
            outside = _counts_of(columns, "below") + _counts_of(columns, "above")
            yield OUTSIDE, outside / rows

    def distances(
        self,
        windows: Sequence[Profile],
        earlier: Sequence[Profile] | None,
        is_reference: bool,
    ) -> Array:
        """Return the distance of each window from the reference (a window of the
        reference: from the rest of it) or from the window one lag earlier, [P] float64.
        """
        counts = column_counts(windows, self.name, self.bins)
        if earlier is not None:
            others = column_counts(earlier, self.name, self.bins)
        else:
            others = np.maximum(self.total - counts, 0) if is_reference else self.total
        distances: Array = self.bins.distance(counts[:, :-1], others[..., :-1])
        return distances

    def _mode(self, positions: Array, present: Array, precision: Array) -> Array:
        """Return the logarithm of the share of the most frequent bin in each window,
        relative to windows with as many rows that are drawn from the reference.

        Bins that are `_WIDE` times wider than usual have a smaller weight. Otherwise
        they are the most frequent ones if the level moves into the tail of the
        reference. There, the weights differ, so small shares count as `_LEAST_MODE`.

        Args:
            positions: the positions of the bins, [K] float64.
            present: the histograms of the windows, [P, K] float64.
            precision: the number of rows whose shares are as precise as the difference
                from the reference, [P] float64.
        """
        usual = self.total[:-1]
        widths = np.gradient(positions)
        usual_width = np.median(widths[usual >= min(usual.max(), 1)])
        weights = np.minimum(_WIDE * usual_width / widths, 1)
        modes = _drawn_modes(usual.tobytes(), weights.tobytes())
        drawn = np.interp(np.log(np.maximum(precision, 1)), np.log(_SIZES), modes)
        mode: Array = np.log((present * weights).max(axis=1) / present.sum(axis=1)) - drawn
        return np.maximum(mode, _LEAST_MODE)

    def row_variances(self, values: Mapping[str, Array]) -> dict[str, float]:
        """Return the variance that a single row adds to each figure: of a share p, p (1
        - p); of the logarithm of a deviation, (kurtosis - 1) / 4; of a mean, that of
        the values; of the logarithm of a share p, 1 / p; of a distance, its square.
        """
        variances = {}
        rarest = 1 / (self.total.sum() + 2)
        for figure, by_window in values.items():
            known = by_window[np.isfinite(by_window)]
            share = float(known.mean()) if len(known) else 0.0
            share = min(max(share, rarest), 1 - rarest)
            variances[figure] = share * (1 - share)
        variances[DISTANCE] = 0.0
        if self.total[:-1].any():
            # The squared distance of n drawn rows from the reference, times n.
            drawn = _draw(self.total[:-1], _DRAWN_ROWS)
            distances = self.bins.distance(drawn, self.total[:-1])
            variances[DISTANCE] = float(np.square(distances).mean()) * _DRAWN_ROWS
        if isinstance(self.bins, OrderedBins):
            variances[MODE] = self.total.sum() / max(float(self.total[:-1].max()), 1.0)
            shares = self.total[:-1] / max(self.total[:-1].sum(), 1)
            squares = np.square(self.bins.positions - shares @ self.bins.positions)
            variance = max(float(shares @ squares), 1e-300)
            kurtosis = float(shares @ np.square(squares / variance))
            variances[SPREAD] = max(kurtosis - 1, 0) / 4
            variances[LEVEL] = variance
            variances[MEAN] = self.bins.scale**2
            if self.whole is not None and math.isfinite(self.whole.deviation):
                variances[MEAN] = self.whole.deviation**2
        return variances


def _counts_of(columns: Sequence[ColumnSketch | None], field: str) -> Array:
    """Return a count of each column, [P] float64; 0 without the column."""
    return np.array([getattr(column, field) if column else 0 for column in columns], np.float64)


def _draw(usual: Array, rows: int) -> Array:
    """Return histograms of `rows` that are drawn from the histogram of the reference,
    [draws, K] float64.
    """
    rng = np.random.default_rng([rows, len(usual)])
    drawn: Array = rng.multinomial(rows, usual / usual.sum(), _DRAWS)
    return drawn.astype(np.float64)


@lru_cache(maxsize=4_096)
def _drawn_modes(histogram: bytes, bin_weights: bytes) -> Array:
    """Return the mean logarithm of the weighted share of the most frequent bin in drawn
    windows of each of `_SIZES`. The arguments are the bytes of the histogram of the
    reference and of the weights.
    """
    usual = np.frombuffer(histogram)
    weights = np.frombuffer(bin_weights)
    if not usual.any():
        return np.zeros(len(_SIZES))
    modes = np.array([(_draw(usual, size) * weights).max(axis=1) / size for size in _SIZES])
    logs: Array = np.log(modes).mean(axis=1)
    return logs
