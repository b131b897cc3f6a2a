"""Chooses the null distribution that supports the asked rate, and builds its pool; or refuses, with the smallest rate
that can be had."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlflow_deploy_plugin.monitoring.drift.references import DriftReference
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.monitoring.drift.threshold.cache import DistributionCache, key_of
from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import (
    ColumnGroup,
    NullDistribution,
    build_distribution,
    column_counts,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.hold_out import hold_out_rows, hold_out_windows
from mlflow_deploy_plugin.monitoring.drift.threshold.row_samples import (
    MAX_DRAWS,
    build_row_distribution,
    contradiction,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.windows import (
    FEWEST_WINDOWS,
    MAX_WINDOWS,
    MOST_WINDOWS,
    NullWindows,
    bootstrap,
    can_bootstrap,
    contiguous,
    dependence_of,
    lagged,
    needed_windows,
    overlapping,
    slowest_column,
)
from mlflow_deploy_plugin.refused import Refused
from mlflow_deploy_plugin.spec import SMALLEST_ROLLING_RATE

_SEED = 0
_MAX_CELLS = 20_000_000
"""So many counts are compared at most: of a thousand columns some sixty windows, in seconds."""


def null_distribution(
    groups: Sequence[ColumnGroup], rate: float, independent_rows: bool, cache: Path | None
) -> NullDistribution | Refused:
    """The pool of the first null that supports the rate, from the cache where it is there.

    Args:
        groups: all rows first, then the segments.
        cache: the folder; None: nothing is kept.
    """

    def build() -> NullDistribution | Refused:
        if independent_rows:
            return _row_pool(groups, rate)
        null = choose_null(groups[0], rate)
        if isinstance(null, Refused):
            return null
        longest, slowest = _persistence(groups[0], null)
        measured = hold_out_windows(groups, null, rate, longest, _SEED)
        return replace(
            build_distribution(groups, null, _SEED), persistence=longest, slowest_column=slowest, held_out=measured
        )

    if cache is None:
        return build()
    return DistributionCache(cache).get_or_build(key_of(groups, rate, independent_rows), build)


def choose_null(group: ColumnGroup, rate: float) -> NullWindows | Refused:
    """Pairs so long apart where such are compared, and contiguous windows, else overlapping ones, else the stationary
    bootstrap where a window is compared with all others; else a refusal."""
    needed = needed_windows(rate)
    supported = []
    for null in _candidates(group, needed):
        if null.effective_n >= needed:
            return null
        supported.append(null.effective_n)
    most = int(max(supported, default=0))
    return Refused(_reason(group, rate, needed, most))


def _candidates(group: ColumnGroup, needed: int) -> Iterator[NullWindows]:
    reference = group.reference
    most = max(needed, _MAX_CELLS // _cells(group))
    if reference.pieces.lag_windows:
        yield lagged(_rows(reference.pieces.windows), *reference.pieces.pairs(), group.compared, min(most, MAX_WINDOWS))
        return
    yield contiguous(_rows(reference.pieces.windows), group.compared, most)
    steps, length = _rows(reference.pieces.steps), reference.pieces.window_steps
    if length < 2 or not steps.any():
        return
    yield overlapping(steps, length, group.compared)
    if not FEWEST_WINDOWS * length <= np.count_nonzero(steps) <= len(steps) <= 2 * MOST_WINDOWS * length:
        return
    counts = {name: column_counts(reference.pieces.steps, name, reference.bins[name]) for name in group.columns}
    found = dependence_of(counts, reference.bins)
    if can_bootstrap(steps, length, found):
        yield bootstrap(steps, length, found.block_length, _SEED)


def _cells(group: ColumnGroup) -> int:
    return max(sum(group.reference.bins[name].size for name in group.columns), 1)


def _row_pool(groups: Sequence[ColumnGroup], rate: float) -> NullDistribution | Refused:
    if needed_windows(rate) > MAX_DRAWS:
        return Refused(
            f"a false-alarm rate of {rate:g} needs more than the {MAX_DRAWS:,} samples that are drawn; the smallest "
            f"rate that can be had is {_shown(1 / (MAX_DRAWS + 1))}"
        )
    why_not = contradiction(groups[0], rate)
    if why_not:
        return Refused(why_not)
    return replace(build_row_distribution(groups, rate, _SEED), held_out=hold_out_rows(groups, rate, _SEED))


def _persistence(group: ColumnGroup, null: NullWindows) -> tuple[float, str]:
    """Return `slowest_of` of the windows of a null; what is drawn is drawn in stretches as long as they need to be."""
    if null.kind == "bootstrap":
        return 1.0, ""
    blocks, bins = group.reference.pieces.windows, group.reference.bins
    counts = {name: column_counts(blocks, name, bins[name]) for name in group.columns}
    if null.kind == "lagged":
        sides = ({name: side @ one for name, one in counts.items()} for side in (null.windows, null.complements))
        return slowest_column(next(sides), bins, next(sides))
    return slowest_column(counts, bins)


def _reason(group: ColumnGroup, rate: float, needed: int, most: int) -> str:
    if group.reference.pieces.lag_windows:
        return _reason_of_pairs(group, rate, needed, most)
    blocks = int(contiguous(_rows(group.reference.pieces.windows), group.compared).effective_n)
    length = _length(group.reference)
    smallest = (
        f"the smallest rate that it supports is {_shown(1 / (most + 1))}" if most else "it supports no rate at all"
    )
    worth = f", worth {most} with overlapping and resampled ones" if most > blocks else ""
    return (
        f"a false-alarm rate of {rate:g} needs at least {needed} windows of {length} in the reference, and it has "
        f"{blocks}{worth}; {smallest}: ask for that, judge shorter windows, or take a reference over a longer time"
    )


def _reason_of_pairs(group: ColumnGroup, rate: float, needed: int, most: int) -> str:
    pieces = group.reference.pieces
    has, instead = f"the log has {most}", "wait until it is older"
    if rate < SMALLEST_ROLLING_RATE:  # no age of the log, and no choice of columns helps
        has, instead = f"at most {pieces.max_pairs} are kept", f"ask {SMALLEST_ROLLING_RATE:g} of an older log"
    elif needed > pieces.max_pairs:
        has, instead = f"of so many columns at most {pieces.max_pairs} are kept", "judge fewer columns"
    smallest = f"the smallest rate that they support is {_shown(1 / (most + 1))}: ask for that, or " if most else ""
    return (
        f"a false-alarm rate of {rate:g} needs at least {needed} pairs of a window and the one {pieces.lag_windows} "
        f"windows of {_length(group.reference)} before it, and {has}; {smallest}{instead}"
    )


def _length(reference: DriftReference) -> str:
    seconds = reference.pieces.step_seconds * reference.pieces.window_steps
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _shown(rate: float) -> str:
    """Rounded up, so that it can be asked for."""
    return f"{np.ceil(rate * 10_000) / 10_000:g}"


def _rows(profiles: Sequence[Profile]) -> Array:
    return np.array([profile.rows for profile in profiles], dtype=np.int64)
