"""The budget of false alarms per year: its parts, the windows of a detector, and the
limits of a reference.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

import numpy as np
from scipy.special import pdtrc, pdtri

from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.types import duration_text, length_of
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.column_findings import MIN_COMPARED_ROWS
from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference, ReferencePieces
from mlflow_deploy_plugin.watch.drift.sketches.relations import PROJECTIONS
from mlflow_deploy_plugin.watch.sequential.baseline import RunningBaseline, remove_cycle
from mlflow_deploy_plugin.watch.sequential.detector import (
    Windows,
    limit_for,
    reference_correlation,
    track,
)
from mlflow_deploy_plugin.watch.sequential.levels import (
    MEAN,
    MISSING,
    MODE,
    NEARLY_NORMAL,
    NEW,
    ROWS,
    ROWS_FIGURE,
    UPWARD,
    FigureSeries,
    ReferenceLevels,
    reference_levels,
)

FEWEST_OF_ONE = 8
"""The smallest number of windows in the reference from which a window can be judged."""
FEWEST_WINDOWS = 20
"""The smallest number of windows in the reference for a budget."""
FEW_WINDOWS = 40
LASTING_SHARE = 0.75
"""The share of the budget for lasting shifts. The rest is for single windows with a
jump.
"""
_WEEK = timedelta(days=7)
_SEASONS = 3
"""The number of weeks in the reference from which the cycle of a week is removed by
default.
"""
_MOST_CORRELATED = 0.9
_ERRORS = 1.5
"""The largest correlation of consecutive windows, which an estimate must exceed by 1.5
standard errors.
"""
_EXCESS = 4
"""The factor by which the alarms of such windows exceeded the budget in simulations."""
_SHORTER = (
    172_800,
    86_400,
    43_200,
    21_600,
    10_800,
    3_600,
    1_800,
    900,
    300,
    60,
)
"""The lengths of windows in seconds that a message proposes, the longest first."""
_UNLIKELY = 0.05
_CLEAR = 5.0
"""The standard errors by which a trend differs from none: many slow figures rise by
chance.
"""
_LINE_ERRORS = 2.0
"""The least shift from a line in standard errors of its rise in as many windows as the
reference has.
"""
_LEAST = {ROWS_FIGURE: math.log(1.2), MODE: math.log(1.5)}
"""The change of a figure below which a lasting shift is no alarm: 25 % more rows per
year are a trend, and the largest share of an interval depends on the level.
"""
OPEN_WINDOWS = 10
"""The windows for which a false alarm is open on average, by simulation."""
_MOST_OPEN = 0.25
_FAR = 1_000
"""The gap before a window that is older than the window before it: the windows are
unrelated.
"""


def single_window_rate(spec: MonitorSpec, false_per_year: float) -> float:
    """Return the number of false alarms per window for jumps; requirements of the
    monitor get the same number.
    """
    rate = (1 - LASTING_SHARE) * false_per_year / spec.windows_per_year
    if spec.require:
        rate /= 2
    return min(rate, spec.window_rate)


def lasting_rate(spec: MonitorSpec, false_per_year: float) -> float:
    """Return the number of false alarms per window for lasting shifts."""
    return LASTING_SHARE * false_per_year / spec.windows_per_year


def season_windows(spec: MonitorSpec, reference: int, length_us: int) -> int:
    """Return the number of windows of this length in a cycle, 1 without a cycle. Raises
    InvalidConfig if the reference, which has this number of windows, does not contain
    the spec's season twice.
    """
    every = timedelta(microseconds=length_us)
    if spec.season is None:
        weekly = _WEEK // every if _WEEK % every == timedelta() else 1
        return weekly if _SEASONS * weekly <= reference else 1
    season = length_of(spec.season) // every
    if 2 * season > reference:
        longest = duration_text(int((reference // 2 * every).total_seconds()))
        raise InvalidConfig(
            f"season {spec.season} is too long: the reference has {reference} windows of "
            f"{spec.every} and must contain the season twice; at most {longest} is expected",
        )
    return max(season, 1)


def relative_deviations(
    residuals: Array,
    rows: Array,
    row_variances: Array,
    of_reference: Array,
) -> Array:
    """Return the standard deviation of each figure in each window relative to that in a
    window with the usual number of rows, [N, m]; 1 where the number of rows is unknown.

    The variance of a figure is that between windows plus that of its rows, which is
    inversely proportional to their number.

    Args:
        residuals: the figures of the reference without their cycle, [R, m].
        rows: the number of rows of all windows, [N, m]; NaN if unknown.
        row_variances: the variance that a single row adds to a figure, [m].
        of_reference: the number of rows of the reference's windows, [R, m].
    """
    by_rows = np.where(of_reference > 0, row_variances / np.maximum(of_reference, 1), 0)
    between = np.maximum((np.square(residuals) - by_rows).mean(axis=0), 0)
    usual = between + row_variances / np.maximum(np.median(of_reference, axis=0), 1)
    variances = between + row_variances / np.maximum(rows, 1)
    is_known = np.isfinite(variances) & (usual > 0)
    deviations: Array = np.sqrt(np.where(is_known, variances / np.where(usual > 0, usual, 1), 1))
    return deviations


def sampling_factor(
    distances: Array,
    rows: Array,
    row_variance: float,
    of_reference: Array,
) -> Array:
    """Return the factor by which the distances of windows with `rows`, [N], are larger
    because of their number of rows, relative to a usual window; 1 where it is unknown.
    The squared distance of n rows is the sum of that between windows and `row_variance`
    / n, and / N for the N rows of the reference.

    Args:
        distances: the distances of the reference's windows, [R].
        of_reference: the number of rows of these windows, [R].
    """
    squared = max(float(np.nanmean(np.square(distances))), 1e-12)
    of_total = 1 / np.maximum(of_reference.sum(), 1)
    usual = 1 / np.maximum(np.median(of_reference), 1) + of_total
    share = min(row_variance * usual / squared, 1.0)
    by_rows = 1 / np.maximum(rows, 1) + of_total
    factors: Array = np.sqrt(1 - share + share * by_rows / usual)
    return np.nan_to_num(factors, nan=1.0)


def follow_trends(levels: ReferenceLevels, spec: MonitorSpec) -> ReferenceLevels:
    """Return the levels with the trends of means and of numbers of rows. A mean with a
    trend leaves the range of the reference, so the column's other figures of its values
    and the relations are omitted.

    Raises InvalidConfig if the reference does not contain the season twice.
    """
    count = len(levels.values)
    numbers = levels.starts_us // levels.length_us
    season = season_windows(spec, count, levels.length_us)
    known = np.isfinite(levels.values)
    times = np.where(known, numbers[:, None] - numbers[:1], np.nan)
    times = remove_cycle(times, count, numbers % season, season)
    residuals = remove_cycle(levels.values, count, numbers % season, season)
    squares = np.maximum(np.square(times).sum(axis=0), 1)
    slopes = (times * residuals).sum(axis=0) / squares
    around = RunningBaseline(residuals - times * slopes, season, levels.floors)
    correlation = around.correlation
    errors = around.deviation * np.sqrt((1 + correlation) / (1 - correlation) / squares)
    slopes[[series.figure not in (MEAN, ROWS_FIGURE) for series in levels.series]] = 0
    slopes[np.abs(slopes) < (math.inf if spec.is_rolling else _CLEAR) * errors] = 0
    of_figures = [_LEAST.get(series.figure, 0.0) for series in levels.series]
    least = np.maximum(of_figures, np.where(slopes, _LINE_ERRORS * count * errors, 0))
    kept = _are_judged(levels.series, slopes)
    return replace(
        levels,
        series=tuple(itertools.compress(levels.series, kept)),
        values=levels.values[:, kept],
        rows=levels.rows[:, kept],
        row_variances=levels.row_variances[kept],
        floors=levels.floors[kept],
        slopes=slopes[kept],
        least=least[kept],
    )


def _are_judged(all_series: Sequence[FigureSeries], slopes: Array) -> Array:
    """Return the series whose figures a trend does not distort, [m] bool."""
    trending = {
        (series.segment, series.column) for series in itertools.compress(all_series, slopes)
    }
    segments = {segment for segment, column in trending if column != ROWS}
    judged: Array = np.array(
        [
            series.figure in (MEAN, MISSING, NEW, ROWS_FIGURE)
            or (
                (series.segment, series.column) not in trending
                and not (series.column in PROJECTIONS and series.segment in segments)
            )
            for series in all_series
        ],
        bool,
    )
    return judged


def detector_windows(
    levels: ReferenceLevels,
    spec: MonitorSpec,
    starts_us: Array,
    values: Array,
    rows: Array,
) -> Windows:
    """Return the reference, and then the windows with `starts_us`, [N] int64, `values`,
    [N, m], and `rows`, [N, m].
    """
    starts = np.concatenate([levels.starts_us, starts_us]) // levels.length_us
    count = len(levels.values)
    season = season_windows(spec, count, levels.length_us)
    gaps = np.diff(starts, prepend=starts[:1] - 1)
    all_rows = np.concatenate([levels.rows, rows])
    # Distances are those of windows with the usual number of rows.
    trends = (starts - starts[:1])[:, None] * levels.slopes
    values = np.concatenate([levels.values, values]) - trends
    for index in np.flatnonzero(levels.is_distance).tolist():
        values[:, index] /= sampling_factor(
            levels.values[:, index],
            all_rows[:, index],
            float(levels.row_variances[index]),
            levels.rows[:, index],
        )
        values[:, index] **= NEARLY_NORMAL
    residuals = remove_cycle(values[:count], count, starts[:count] % season, season)
    of_rows = np.where(levels.is_distance, 0, levels.row_variances)
    return Windows(
        values=values,
        reference=count,
        phases=starts % season,
        season=season,
        gaps=np.where(gaps > 0, gaps, _FAR),
        floors=levels.floors,
        restarts=np.full(len(levels.series), len(starts)),
        scales=relative_deviations(residuals, all_rows, of_rows, levels.rows),
        is_upward=np.array([series.figure in UPWARD for series in levels.series], bool),
        is_followed=~levels.is_distance,
        least=levels.least,
        trends=trends,
    )


def require_windows(
    reference: DriftReference,
    levels: ReferenceLevels,
    spec: MonitorSpec,
    fewest: int,
) -> None:
    """Raise InvalidConfig if the reference has no windows, because it has no event
    times, or fewer than the `fewest` windows, or for a budget, if only some of them are
    kept.
    """
    what = "alarms.false_per_year" if fewest == FEWEST_WINDOWS else "a verdict"
    seconds = levels.length_us // 1_000_000
    length = duration_text(seconds)
    needs = f"{what} needs at least {fewest} windows of {length} in the reference"
    if reference.pieces.total.rows and not reference.pieces.grid.windows:
        remedy = (
            "log the model with event_time= (the column or the values with the time of each row)"
        )
        if spec.reference_kind == "dataset":
            remedy = f"add the column {EVENT_TIME} with the time of each row"
        raise InvalidConfig(
            f"{needs} {spec.reference}, which has no event times and therefore no windows: "
            f"{remedy}",
        )
    windows = len(levels.starts_us)
    if windows < fewest:
        is_scheduled = length_of(spec.every).total_seconds() == seconds
        remedy = _more_windows(
            seconds, windows, fewest, "every=" if is_scheduled else "judge windows of "
        )
        raise InvalidConfig(f"{needs} {spec.reference}, and it has {windows}: {remedy}")
    grid = reference.pieces.grid
    is_cut = grid.windows > grid.max_windows and not levels.is_complete
    if is_cut and fewest == FEWEST_WINDOWS:
        longer = duration_text(seconds * -(-grid.windows // grid.max_windows))
        raise InvalidConfig(
            f"alarms.false_per_year needs consecutive windows, and only {windows} of "
            f"{grid.windows:,} are kept with so many columns: judge fewer columns, or use "
            f"every={longer}",
        )


def _more_windows(seconds: int, windows: int, fewest: int, shorten: str = "every=") -> str:
    """Return how a reference with this number of windows of this length gets the
    `fewest` windows.
    """
    remedy = f"use a reference of at least {duration_text(seconds * fewest)}"
    shorter = next((length for length in _SHORTER if length * fewest <= seconds * windows), 0)
    if shorter:
        remedy += f", or {shorten}{duration_text(shorter)}"
    return remedy


def few_rows(pieces: ReferencePieces) -> str:
    """Return the reason why windows with so few rows cannot be compared, or an empty
    text.
    """
    median = int(np.median([window.rows for window in pieces.windows]))
    if median >= MIN_COMPARED_ROWS:
        return ""
    return (
        f"the reference has {pieces.total.rows:,} rows in {len(pieces.windows)} windows of "
        f"this length, with a median of {median}; at least {MIN_COMPARED_ROWS} are "
        "needed: judge longer windows (every)"
    )


def check_budget(
    reference: DriftReference,
    spec: MonitorSpec,
    false_per_year: float,
    segments: Mapping[str, DriftReference] | None = None,
) -> list[str]:
    """Return statements about a budget that the reference cannot keep, or with which
    many windows have an open alarm, each with a remedy.

    Args:
        false_per_year: the monitor's share of the endpoint's budget.

    Raises InvalidConfig if the reference has fewer than 20 windows or few rows in each,
    or if it does not contain the season twice.
    """
    levels = reference_levels(reference, sorted(reference.bins), segments or {})
    require_windows(reference, levels, spec, FEWEST_WINDOWS)
    if reason := few_rows(reference.pieces):
        raise InvalidConfig(reason)
    levels = follow_trends(levels, spec)
    lines = [*unkept(levels, spec, false_per_year)]
    red = open_share(spec, false_per_year)
    if red > _MOST_OPEN:
        most = _MOST_OPEN * spec.windows_per_year / OPEN_WINDOWS
        lines.append(
            f"with a share of {false_per_year:.2g} false alarms per year, a false alarm is open in "
            f"about {red:.0%} of the windows: set a share of at most {most:.2g}, or a smaller every"
        )
    return lines


def open_share(spec: MonitorSpec, false_per_year: float) -> float:
    """Return the share of windows in which a false alarm is open."""
    return min(false_per_year * OPEN_WINDOWS / spec.windows_per_year, 1.0)


def unkept(levels: ReferenceLevels, spec: MonitorSpec, false_per_year: float) -> Iterator[str]:
    """Yield the reasons why the reference cannot keep the budget: few windows,
    correlation, or its own alarms.
    """
    count = len(levels.values)
    if not levels.series:
        return
    windows = detector_windows(
        levels,
        spec,
        levels.starts_us[:0],
        levels.values[:0],
        levels.rows[:0],
    )
    if spec.is_rolling:
        rolling = ""
    else:
        rolling = ": use reference rolling:7d, which compares a window with a recent one"
    cannot = f"a share of {false_per_year:.2g} false alarms per year cannot be kept"
    if count < FEW_WINDOWS:
        yield (
            f"{cannot} with certainty: the reference has {count} windows: "
            f"{_more_windows(levels.length_us // 1_000_000, count, FEW_WINDOWS)}"
        )
    correlation = reference_correlation(windows)
    slow = int(correlation.argmax())
    error = math.sqrt((1 - correlation[slow] ** 2) / count)
    if correlation[slow] - _ERRORS * error > _MOST_CORRELATED:
        yield (
            f"{cannot}: consecutive windows of {levels.series[slow].series_key} have a correlation "
            f"of {correlation[slow]:.2f}, more than {_MOST_CORRELATED}; about "
            f"{_EXCESS * false_per_year:.2g} false alarms per year are expected{rolling}"
        )
    later = count - count // 2
    found: list[int] = []
    smallest = false_per_year
    while True:  # A larger share has a lower limit, which may raise more alarms.
        rate = lasting_rate(spec, smallest)
        alarms = 0
        half = windows.reference // 2
        if half >= FEWEST_WINDOWS:
            season = windows.season if _SEASONS * windows.season <= half else 1
            earlier = replace(
                windows, reference=half, season=season, phases=windows.phases % season
            )
            alarms = len(track(earlier, limit_for(earlier, rate)).alarms)
        if not alarms or pdtrc(alarms - 1, rate * later) >= _UNLIKELY:
            break
        found.append(alarms)
        smallest = pdtri(alarms - 1, 1 - _UNLIKELY) / later  # alarms per window
        # The message rounds to two digits, by at most 5 %.
        smallest = 1.05 * smallest * spec.windows_per_year / LASTING_SHARE
    if found:
        yield (
            f"{cannot}: the later half of the reference, judged by the earlier half, has "
            f"{found[0]} in {later} windows; the smallest share that can be kept is about "
            f"{smallest:.2g}{rolling}"
        )
