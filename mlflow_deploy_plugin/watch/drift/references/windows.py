"""A reference in contiguous windows with the length and phase of the judged window.

Unseen categories and out-of-range numbers of a reference window are counted against all
other windows. Against the whole reference, every count would be zero, and the first
rare value in a later window would be an alarm.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.serve.inference_log.scan import microseconds_of
from mlflow_deploy_plugin.serve.inference_log.windows import HOUR_US
from mlflow_deploy_plugin.serve.runtime.feeds import Array, sample_positions
from mlflow_deploy_plugin.watch.drift.sketches.bins import Bins, OrderedBins
from mlflow_deploy_plugin.watch.drift.sketches.columns import as_floats, decoded, feature_columns
from mlflow_deploy_plugin.watch.drift.sketches.sketch import (
    Profile,
    merge,
    sketch_batches,
    sketch_by,
    sketch_groups,
)

MAX_WINDOWS = 500
_FEW_WINDOWS = 100
_MOST_WINDOWS = 10_000
_MAX_CELLS = 16_000_000
"""The maximum number of histogram counts (128 MB) of all windows if these are more than
a hundred.
"""
_MERGED_AT = 16
RANDOM_WINDOWS = 90
"""The number of random windows, which begin one hour apart."""
END = timedelta(hours=RANDOM_WINDOWS)
"""The end of the last random window, from 1970."""
_MOST_RANDOM_ROWS = 200_000
"""The maximum number of rows that are divided, which takes about three seconds."""
_FEWEST_PARTS = 8
_RANDOM_SEED = 0
"""The seed of the division, so that a reference always has the same windows."""


class WindowGrid(NamedTuple):
    """Consecutive windows of equal length (`length_us`).

    Attributes:
        max_windows: the maximum number of windows to keep.
        lag_windows: the distance (in windows) to the earlier window that a window is
            compared with; 0 to compare with all others. The window `lag_windows` before
            the end of the grid is kept for comparison with the next window.
    """

    start_us: int
    length_us: int
    windows: int
    max_windows: int
    lag_windows: int = 0

    @property
    def max_pairs(self) -> int:
        """The maximum number of pairs of windows to keep, excluding the pair of the
        window that follows the grid.
        """
        return self.max_windows // 2 - 1 if self.lag_windows else 0

    def choose(self, count: int) -> Array:
        """Return the indices of at most `max_windows` of `count` windows, evenly
        spaced.
        """
        if self.lag_windows and count > self.max_windows:
            later = np.linspace(
                self.lag_windows,
                count - 1,
                self.max_pairs,
            ).astype(np.int64)
            # The judged window, which follows the grid, also needs its earlier window.
            of_judged = count - self.lag_windows
            return np.union1d(np.append(later, of_judged), later - self.lag_windows)
        if count <= self.max_windows:
            return np.arange(count)
        return np.linspace(0, count - 1, self.max_windows).astype(np.int64)

    def starts_us(self, numbers: Array) -> tuple[int, ...]:
        """Return the starts of the windows with these numbers, in microseconds since
        1970.
        """
        starts: list[int] = (self.start_us + numbers * self.length_us).tolist()
        return tuple(starts)


@dataclass(frozen=True, eq=False)
class ReferencePieces:
    """A reference in windows of one length, with the phase of the judged window.

    Attributes:
        windows: the windows with rows, in order of time; if their bins do not fit into
            memory, at most `MAX_WINDOWS` (for pairs, twice as many), evenly spaced. If
            the rows are available, `unseen`, `below` and `above` are counted against
            all other windows.
        window_starts_us: [B] the start of each window, microseconds since 1970.
        total: all rows of the reference, including rows outside of the windows.
        lagged: with `lag_windows`, the window that the judged window is compared with.
            This window may have no rows.
    """

    windows: tuple[Profile, ...]
    window_starts_us: tuple[int, ...]
    grid: WindowGrid
    total: Profile
    lagged: Profile | None = None

    @property
    def others(self) -> Profile:
        """The rows that the judged window is compared with: those of the window one lag
        before, or all rows without a lag.
        """
        return self.total if self.lagged is None else self.lagged

    def windows_at(self, starts_us: Iterable[int]) -> tuple[Profile, ...]:
        """Return the windows that begin at `starts_us`, with an empty profile for each
        missing window.
        """
        by_start = dict(zip(self.window_starts_us, self.windows, strict=True))
        return tuple(by_start.get(start, Profile(0, {})) for start in starts_us)

    def pairs(self) -> tuple[Array, Array]:
        """Return the indices of the later and the earlier windows of all pairs, [P]
        int64 each, `lag_windows` apart.
        """
        numbers = (
            np.array(self.window_starts_us, np.int64) - self.grid.start_us
        ) // self.grid.length_us
        _, later, earlier = np.intersect1d(
            numbers - self.grid.lag_windows,
            numbers,
            return_indices=True,
        )
        return later, earlier


@dataclass(frozen=True, eq=False)
class DriftReference:
    """A reference for windows of one length. `sample` has a limited number of rows, for
    the report.
    """

    bins: Mapping[str, Bins]
    bins_key: str
    pieces: ReferencePieces
    sample: pa.Table
    model_id: str = ""
    notes: tuple[str, ...] = ()


def window_grid(
    bins: Mapping[str, Bins],
    start_us: int,
    length_us: int,
    first_us: int,
    last_us: int,
    lag_windows: int = 0,
) -> WindowGrid:
    """Return the grid for the times from `first_us` to `last_us` (inclusive), with the
    phase of `start_us`. The number of windows is limited by the memory for their bins.
    """
    first = (first_us - start_us) // length_us
    last = (last_us - start_us) // length_us
    windows = last - first + 1
    cells = max(
        sum(column_bins.size + 1 for column_bins in bins.values()),
        1,
    )
    fitting = min(_MOST_WINDOWS, _MAX_CELLS // cells)
    max_windows = 2 * MAX_WINDOWS if lag_windows else MAX_WINDOWS
    max_windows = min(max(fitting, _FEW_WINDOWS), max_windows)
    if windows <= fitting and not lag_windows:
        max_windows = max(windows, max_windows)
    return WindowGrid(
        start_us=start_us + first * length_us,
        length_us=length_us,
        windows=windows,
        max_windows=max_windows,
        lag_windows=lag_windows,
    )


def cut_pieces(
    bins: Mapping[str, Bins],
    table: pa.Table,
    times: Array | None,
    start_us: int,
    length_us: int,
) -> ReferencePieces:
    """Return the pieces of a table with event `times`, [N] int64, microseconds since
    1970 (None: return only the total). `start_us` and `length_us` describe the judged
    window.
    """
    total = sketch_batches(bins, [table])
    if times is None or not len(times):
        return ReferencePieces((), (), WindowGrid(0, length_us, 0, 0), total)
    grid = window_grid(
        bins,
        start_us,
        length_us,
        int(times.min()),
        int(times.max()),
    )
    present, groups = np.unique((times - grid.start_us) // length_us, return_inverse=True)
    selected = grid.choose(len(present))
    return ReferencePieces(
        cut_windows(bins, table, groups, selected),
        grid.starts_us(present[selected]),
        grid,
        total,
    )


def cut_windows(
    bins: Mapping[str, Bins],
    table: pa.Table,
    groups: Array,
    selected: Array,
) -> tuple[Profile, ...]:
    """Return the windows with the indices `selected`, whose values are compared with
    all other windows. `groups`, [N] int64, is the window of each row.
    """
    count = int(groups.max()) + 1
    rest = count_out_of_rest(bins, table, groups, count)
    group_of = np.full(count, -1)
    group_of[selected] = np.arange(len(selected))
    groups = group_of[groups]
    is_selected = groups >= 0
    if not is_selected.all():
        table = table.filter(pa.array(is_selected))
    windows = sketch_groups(bins, table, groups[is_selected], len(selected))
    return tuple(
        _with_counts(window, rest[index], window.rows)
        for index, window in zip(selected.tolist(), windows, strict=True)
    )


def assemble_pieces(grid: WindowGrid, parts: Iterable[tuple[int, Profile]]) -> ReferencePieces:
    """Return the pieces from `parts`: profiles in order of time, each within a window,
    with its start (microseconds).
    """
    windows: dict[int, list[Profile]] = {}
    total: dict[int, list[Profile]] = {}
    is_kept = set(grid.choose(grid.windows).tolist())
    for begin_us, profile in parts:
        if not profile.rows:
            continue
        number = (begin_us - grid.start_us) // grid.length_us
        _add_part(total, 0, profile)
        if number in is_kept:
            _add_part(windows, number, profile)
    numbers = np.array(sorted(windows), np.int64)
    lagged = None
    if grid.lag_windows:
        lagged = merge(windows.get(grid.windows - grid.lag_windows, []))
    return ReferencePieces(
        windows=tuple(merge(windows[number]) for number in numbers.tolist()),
        window_starts_us=grid.starts_us(numbers),
        grid=grid,
        total=merge(total.get(0, [])),
        lagged=lagged,
    )


def _add_part(
    parts_by_number: dict[int, list[Profile]],
    number: int,
    profile: Profile,
) -> None:
    parts = parts_by_number.setdefault(number, [])
    parts.append(profile)
    if len(parts) >= _MERGED_AT:  # Merging limits the memory of the parts.
        parts_by_number[number] = [merge(parts)]


def sketch_pieces(
    bins: Mapping[str, Bins],
    batches: Iterable[tuple[pa.Table, Array]],
    grid: WindowGrid,
) -> ReferencePieces:
    """Return the pieces of the rows in `batches` of a table and its event times, [N]
    int64, microseconds since 1970.
    """

    def parts() -> Iterator[tuple[int, Profile]]:
        for table, times in batches:
            numbers = (times - grid.start_us) // grid.length_us
            for number, profile in sketch_by(bins, table, numbers):
                yield grid.start_us + number * grid.length_us, profile

    return assemble_pieces(grid, parts())


RestCounts = list[dict[str, dict[str, int]]]
"""The counts of each group of rows against all other groups, by column and field."""


def count_out_of_rest(
    bins: Mapping[str, Bins],
    table: pa.Table,
    groups: Array,
    count: int,
) -> RestCounts:
    """Return the counts `unseen`, `below` and `above` of each column with bins.
    `groups`, [N] int64, is the group of each row.
    """
    rest: RestCounts = [{} for _ in range(count)]
    for name, raw_column in feature_columns(table, bins):
        column = decoded(raw_column)
        column_bins = bins.get(name)
        counts: list[dict[str, int]] = []
        if isinstance(column_bins, OrderedBins):
            counts = _count_out_of_range(as_floats(column), groups, count)
        elif column_bins is not None:
            counts = _count_unseen(column, groups, count)
        for of_group, fields in zip(rest, counts, strict=False):
            of_group[name] = fields
    return rest


def correct_for_rest(
    bins: Mapping[str, Bins],
    windows: Sequence[Profile],
    starts_us: Sequence[int],
    length_us: int,
    sample: pa.Table,
) -> tuple[Profile, ...]:
    """Return the windows with `unseen`, `below` and `above` counted against the other
    windows, for bins that were frozen on a sample of the same rows. The counts in the
    sample are extrapolated to all rows of the window. A window without rows in the
    sample needs no correction.

    Args:
        sample: rows with event times.
    """
    if not windows:
        return ()
    numbers = (microseconds_of(sample.column(EVENT_TIME)) - starts_us[0]) // length_us
    present, groups = np.unique(numbers, return_inverse=True)
    present_us: list[int] = (starts_us[0] + present * length_us).tolist()
    rest = count_out_of_rest(bins, sample, groups, len(present))
    window_at = dict(zip(starts_us, windows, strict=True))
    for start_us, counts, rows in zip(present_us, rest, np.bincount(groups).tolist(), strict=True):
        if start_us in window_at:
            window_at[start_us] = _with_counts(window_at[start_us], counts, rows)
    return tuple(window_at.values())


def _with_counts(window: Profile, counts: Mapping[str, dict[str, int]], rows: int) -> Profile:
    """Return the window with the counts by column and field in `rows` of its rows,
    extrapolated to all rows, where they are larger than its own.
    """
    columns = dict(window.columns)
    for name, fields in counts.items():
        if name in columns:
            column = columns[name]
            larger: dict[str, Any] = {
                field: max(getattr(column, field), round(count * window.rows / rows))
                for field, count in fields.items()
            }
            columns[name] = replace(column, **larger)
    return Profile(window.rows, columns)


def _count_unseen(column: pa.ChunkedArray, groups: Array, count: int) -> list[dict[str, int]]:
    """Return, for each group, the number of rows whose value occurs in no other
    group.
    """
    encoded = column.combine_chunks().dictionary_encode()
    is_known = encoded.indices.is_valid().to_numpy(zero_copy_only=False)
    values = encoded.indices.drop_null().to_numpy().astype(np.int64)
    owners = groups[is_known]
    size = len(encoded.dictionary)
    first = np.full(size, count)
    last = np.full(size, -1)
    np.minimum.at(first, values, owners)
    np.maximum.at(last, values, owners)
    first = first[values]
    last = last[values]
    is_alone = first == last
    return [{"unseen": rows} for rows in np.bincount(owners[is_alone], minlength=count).tolist()]


def _count_out_of_range(values: Array, groups: Array, count: int) -> list[dict[str, int]]:
    """Return, for each group, the number of values below the minimum and above the
    maximum of all other groups.
    """
    is_known = ~np.isnan(values)
    numbers = values[is_known]
    owners = groups[is_known]
    least = np.full(count, np.inf)
    most = np.full(count, -np.inf)
    np.minimum.at(least, owners, numbers)
    np.maximum.at(most, owners, numbers)
    below = np.bincount(
        owners[numbers < _of_others(least)[owners]],
        minlength=count,
    )
    above = np.bincount(
        owners[numbers > -_of_others(-most)[owners]],
        minlength=count,
    )
    return [
        {"below": low, "above": high}
        for low, high in zip(below.tolist(), above.tolist(), strict=True)
    ]


def _of_others(least: Array) -> Array:
    """Return, for each group, the minimum of all other groups, [count]; minus infinity
    without other groups.
    """
    if len(least) < 2:
        return np.full(len(least), -np.inf)
    order = np.argsort(least, kind="stable")
    smallest: Array = np.full(len(least), least[order[0]])
    smallest[order[0]] = least[order[1]]
    return smallest


def with_random_windows(reference: DriftReference, rows: int) -> DriftReference:
    """Return the reference with windows of `rows` random rows. The values of a window
    are compared with all other rows, so a window has at most an eighth of the rows. A
    sample with few rows is divided repeatedly.
    """
    positions = sample_positions(len(reference.sample), _MOST_RANDOM_ROWS, _RANDOM_SEED)
    sample = reference.sample.take(positions)
    size = max(min(rows, len(sample) // _FEWEST_PARTS), 1)
    parts = len(sample) // size
    rng = np.random.default_rng(_RANDOM_SEED)
    windows: list[Profile] = []
    while len(windows) < RANDOM_WINDOWS:
        part_of_row = rng.permutation(len(sample)) % parts
        selected = np.arange(min(parts, RANDOM_WINDOWS - len(windows)))
        windows += cut_windows(reference.bins, sample, part_of_row, selected)
    grid = WindowGrid(0, HOUR_US, RANDOM_WINDOWS, RANDOM_WINDOWS)
    starts_us = grid.starts_us(np.arange(RANDOM_WINDOWS))
    pieces = ReferencePieces(tuple(windows), starts_us, grid, reference.pieces.total)
    return replace(reference, pieces=pieces)
