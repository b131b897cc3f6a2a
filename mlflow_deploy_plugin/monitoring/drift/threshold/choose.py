"""The choice of the null distribution: the first that supports the asked rate, or a refusal with the smallest rate that
can be had; and the number of rows that are compared.

Null distributions are kept on disk, so that the second window of an hourly monitor costs its window and not its
reference.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.monitoring.drift.references import DriftReference
from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import (
    HoldOutAlarms,
    NullDistribution,
    NullKind,
    needed_windows,
    show_rate,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.independent_rows import IndependentRows
from mlflow_deploy_plugin.monitoring.drift.threshold.null import (
    MAX_WINDOWS,
    MIN_COMPARED_ROWS,
    ColumnGroup,
    Null,
    WindowNull,
    column_level,
    row_counts,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.stationary_bootstrap import (
    FEWEST_WINDOWS,
    MOST_WINDOWS,
    StationaryBootstrap,
    can_bootstrap,
    dependence_of,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.windows import Contiguous, Lagged, Overlapping
from mlflow_deploy_plugin.spec import SMALLEST_ROLLING_RATE, MonitorSpec, duration_text
from mlflow_deploy_plugin.statedir import FileCache

NULLS: Mapping[NullKind, type[Null]] = {
    null.kind: null for null in (Contiguous, Overlapping, StationaryBootstrap, Lagged, IndependentRows)
}
_MAX_CELLS = 20_000_000
"""The most histogram counts that are compared: for a thousand columns some sixty windows, in seconds."""
_SIZE_STEP = 1.15
_PAIRS, _MOST_PAIRS = 3.0, 0.75
"""The pairs that must have the compared number of rows: three times those that the rate needs, or three quarters."""
_NO_TIMES = (
    "the reference has no event times, so there are no windows to compare with; log the model with event_time=, the "
    "column (or the values) that say when each row happened, or say independent_rows"
)
_METHOD = 10
"""Part of every key: raise it when figures or nulls are computed in another way."""
_MAX_FILES = 200
_MAX_BYTES = 256 * 1024 * 1024
_PLAIN = ("kind", "effective_n", "widening", "block_length", "persistence", "slowest_column", "length")
_ARRAYS = ("figures", "scales", "floors", "starts")


def null_distribution(
    groups: Sequence[ColumnGroup], rate: float, independent_rows: bool, cache: Path | None
) -> NullDistribution | Refused:
    """Return the distribution of the first null that supports the rate, from the cache if it is there.

    Args:
        groups: all rows first, then the segments.
        cache: the folder; None: nothing is kept.
    """
    files = FileCache(cache, ".npz", _MAX_FILES, _MAX_BYTES) if cache else None
    path = files.path(_key_of(groups, rate, independent_rows)) if files else None
    kept = _read(path) if path else None
    if kept is not None:
        return kept
    null = IndependentRows.cut(groups[0], rate) if independent_rows else choose_null(groups[0], rate)
    if isinstance(null, Refused):
        return null
    persistence, slowest_column = null.persistence(groups[0])
    made = replace(
        null.compare(groups),
        persistence=persistence,
        slowest_column=slowest_column,
        held_out=null.hold_out(groups, rate, persistence),
    )
    if files and path:
        with files.writing(path) as temporary:
            about = {name: getattr(made, name) for name in _PLAIN} | {"held_out": asdict(made.held_out)}
            np.savez(temporary, about=np.array(json.dumps(about)), **{name: getattr(made, name) for name in _ARRAYS})
    return made


def choose_null(group: ColumnGroup, rate: float) -> WindowNull | Refused:
    """Return the first null that supports the rate.

    A `rolling:` reference has pairs of windows. Others have contiguous windows, else overlapping ones, else the
    stationary bootstrap.
    """
    needed = needed_windows(rate)
    supported = []
    for null in _candidates(group, needed):
        if null.effective_n >= needed:
            return null
        supported.append(null.effective_n)
    most = int(max(supported))
    smallest = show_rate(1 / (most + 1))
    pieces = group.reference.pieces
    length = duration_text(pieces.grid.length_us // 1_000_000)
    if pieces.grid.lag_windows:
        has, instead = f"the log has {most}", "wait until it is older"
        if rate < SMALLEST_ROLLING_RATE:  # no age of the log, and no choice of columns helps
            has, instead = f"at most {pieces.grid.max_pairs} are kept", f"ask {SMALLEST_ROLLING_RATE:g} of an older log"
        elif needed > pieces.grid.max_pairs:
            has, instead = f"of so many columns at most {pieces.grid.max_pairs} are kept", "judge fewer columns"
        ask = f"the smallest rate that they support is {smallest}: ask for that, or " if most else ""
        return Refused(
            f"a false-alarm rate of {rate:g} needs at least {needed} pairs of a window and the one "
            f"{pieces.grid.lag_windows} windows of {length} before it, and {has}; {ask}{instead}"
        )
    windows = int(Contiguous.cut(row_counts(pieces.windows), group.compared).effective_n)
    worth = f", worth {most} with overlapping and resampled ones" if most > windows else ""
    supports = f"the smallest rate that it supports is {smallest}" if most else "it supports no rate at all"
    return Refused(
        f"a false-alarm rate of {rate:g} needs at least {needed} windows of {length} in the reference, and it has "
        f"{windows}{worth}; {supports}: ask for that, judge shorter windows, or take a reference over a longer time"
    )


def _candidates(group: ColumnGroup, needed: int) -> Iterator[WindowNull]:
    """Yield the nulls of a reference in the order in which they are preferred."""
    pieces, bins = group.reference.pieces, group.reference.bins
    cells = max(sum(bins[name].size for name in group.columns), 1)
    most = max(needed, _MAX_CELLS // cells)
    if pieces.grid.lag_windows:
        yield Lagged.cut(row_counts(pieces.windows), *pieces.pairs(), group.compared, min(most, MAX_WINDOWS))
        return
    yield Contiguous.cut(row_counts(pieces.windows), group.compared, most)
    steps, length = row_counts(pieces.steps), pieces.grid.window_steps
    if length < 2 or not steps.any():
        return
    yield Overlapping.cut(steps, length, group.compared)
    if not FEWEST_WINDOWS * length <= np.count_nonzero(steps) <= len(steps) <= 2 * MOST_WINDOWS * length:
        return
    found = dependence_of(column_level(group, name, pieces.steps) for name in group.columns)
    if can_bootstrap(steps, length, found):
        yield StationaryBootstrap.cut(steps, length, found.block_length)


def _key_of(groups: Sequence[ColumnGroup], *parts: object) -> str:
    """Return 40 hexadecimal digits that name the distribution of these groups, and of `parts`, by their repr."""
    digest = hashlib.sha256(repr((_METHOD, *parts)).encode())
    for group in groups:
        pieces = group.reference.pieces
        for part in (
            (group.segment, group.compared, group.columns, group.reference.bins_key),
            (pieces.grid, pieces.window_starts_us, pieces.total.rows),
        ):
            digest.update(repr(part).encode())
        for profile in (*pieces.windows, *pieces.steps):
            digest.update(profile.rows.to_bytes(8, "little"))
        for name in group.columns:
            column = pieces.total.columns.get(name)
            if column is not None:
                digest.update(column.counts.tobytes())
    return digest.hexdigest()[:40]


def _read(path: Path) -> NullDistribution | None:
    """Return the stored threshold; None if there is none, or it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            os.utime(path)
            told = about.pop("held_out")
            held_out = (
                Refused(**told) if "reason" in told else HoldOutAlarms(**told | {"columns": tuple(told["columns"])})
            )
            return NullDistribution(**about, held_out=held_out, **{name: stored[name] for name in _ARRAYS})
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def too_few_rows(reference: DriftReference, rows: int, columns: Sequence[str], compared: int, spec: MonitorSpec) -> str:
    """Return why there is no verdict on distributions; empty if there is one."""
    if not rows:
        return "the window has no rows"
    if rows < spec.min_rows:
        return f"the window has {rows:,} rows; min_rows is {spec.min_rows:,}"
    if rows < MIN_COMPARED_ROWS:
        return f"the window has {rows} rows; at least {MIN_COMPARED_ROWS} are needed"
    if not columns:
        return "the window and the reference have no column in common that can be judged"
    pieces = reference.pieces
    if pieces.grid.lag_windows and pieces.others.rows < MIN_COMPARED_ROWS:
        return (
            f"the window {pieces.grid.lag_windows} windows before, with which it is compared, has "
            f"{pieces.others.rows:,} rows; at least {MIN_COMPARED_ROWS} are needed"
        )
    if spec.independent_rows:
        if len(reference.sample) < MIN_COMPARED_ROWS:
            return f"the reference has too few rows to draw samples from; at least {MIN_COMPARED_ROWS} are needed"
        return ""
    if pieces.grid.lag_windows and not len(pieces.pairs()[0]):
        return "no window of the reference has another one so long before it: the log is too young"
    if not pieces.windows:
        return _NO_TIMES if pieces.total.rows else "the reference has no rows"
    if compared < MIN_COMPARED_ROWS:
        return (
            f"the reference has {pieces.total.rows:,} rows in {len(pieces.windows)} windows of this length, "
            f"{compared} in the middle one; at least {MIN_COMPARED_ROWS} are needed: judge longer windows (every)"
        )
    return ""


def compared_rows(reference: DriftReference, rows: int, spec: MonitorSpec) -> int:
    """Return how many rows every side of a comparison has: those of the window, or of the middle reference window if
    that has fewer. A window's are rounded down to a step of 15 %, so that windows of about one size share a null
    distribution.

    With a `rolling:` reference, it is the number of the smaller window of the two; fewer, if too few pairs of the
    reference have so many rows for the rate to be known.
    """
    pieces = reference.pieces
    if pieces.grid.lag_windows:
        rows = min(rows, pieces.others.rows)
    if spec.independent_rows or not pieces.windows:
        return rows
    sizes = np.array([window.rows for window in pieces.windows])
    if pieces.grid.lag_windows:
        pairs = np.sort(np.minimum(*(sizes[side] for side in pieces.pairs())))
        most = max(math.ceil(_MOST_PAIRS * len(pairs)), needed_windows(spec.false_alarm_rate))
        wanted = min(math.ceil(_PAIRS / spec.false_alarm_rate), most, len(pairs))
        middle = int(pairs[-wanted]) if wanted else 0
    else:
        middle = int(np.median(sizes))
    if rows >= middle:
        return middle
    if rows < MIN_COMPARED_ROWS:
        return rows
    size = float(MIN_COMPARED_ROWS)
    while int(size * _SIZE_STEP) <= rows:
        size *= _SIZE_STEP
    return int(size)
