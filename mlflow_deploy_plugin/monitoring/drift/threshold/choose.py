"""The choice of the null distribution: the first that supports the asked rate, or a refusal with the smallest rate that
can be had."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.monitoring.drift.references import DriftReference
from mlflow_deploy_plugin.monitoring.drift.threshold.cache import key_of, load_or_build
from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import NullDistribution, NullKind
from mlflow_deploy_plugin.monitoring.drift.threshold.figures import ColumnGroup, column_counts
from mlflow_deploy_plugin.monitoring.drift.threshold.hold_out import needed_windows, show_rate
from mlflow_deploy_plugin.monitoring.drift.threshold.independent_rows import IndependentRows
from mlflow_deploy_plugin.monitoring.drift.threshold.null import MAX_WINDOWS, Null, WindowNull, row_counts
from mlflow_deploy_plugin.monitoring.drift.threshold.stationary_bootstrap import (
    FEWEST_WINDOWS,
    MOST_WINDOWS,
    StationaryBootstrap,
    can_bootstrap,
    dependence_of,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.windows import Contiguous, Lagged, Overlapping
from mlflow_deploy_plugin.spec import SMALLEST_ROLLING_RATE

NULLS: Mapping[NullKind, type[Null]] = {
    null.kind: null for null in (Contiguous, Overlapping, StationaryBootstrap, Lagged, IndependentRows)
}
_SEED = 0
_MAX_CELLS = 20_000_000
"""So many counts are compared at most: of a thousand columns some sixty windows, in seconds."""


def null_distribution(
    groups: Sequence[ColumnGroup], rate: float, independent_rows: bool, cache: Path | None
) -> NullDistribution | Refused:
    """Return the distribution of the first null that supports the rate, from the cache if it is there.

    Args:
        groups: all rows first, then the segments.
        cache: the folder; None: nothing is kept.
    """

    def build() -> NullDistribution | Refused:
        null = IndependentRows.cut(groups[0], rate) if independent_rows else choose_null(groups[0], rate)
        if isinstance(null, Refused):
            return null
        persistence, slowest_column = null.persistence(groups[0])
        held_out = null.hold_out(groups, rate, persistence, _SEED)
        distribution = null.compare(groups, _SEED)
        return replace(distribution, persistence=persistence, slowest_column=slowest_column, held_out=held_out)

    if cache is None:
        return build()
    return load_or_build(cache, key_of(groups, rate, independent_rows), build)


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
    most = int(max(supported, default=0))
    if group.reference.pieces.lag_windows:
        return Refused(_too_few_pairs(group, rate, needed, most))
    return Refused(_too_few_windows(group, rate, needed, most))


def _candidates(group: ColumnGroup, needed: int) -> Iterator[WindowNull]:
    pieces, bins = group.reference.pieces, group.reference.bins
    cells = max(sum(bins[name].size for name in group.columns), 1)
    most = max(needed, _MAX_CELLS // cells)
    if pieces.lag_windows:
        yield Lagged.cut(row_counts(pieces.windows), *pieces.pairs(), group.compared, min(most, MAX_WINDOWS))
        return
    yield Contiguous.cut(row_counts(pieces.windows), group.compared, most)
    steps, length = row_counts(pieces.steps), pieces.window_steps
    if length < 2 or not steps.any():
        return
    yield Overlapping.cut(steps, length, group.compared)
    if not FEWEST_WINDOWS * length <= np.count_nonzero(steps) <= len(steps) <= 2 * MOST_WINDOWS * length:
        return
    found = dependence_of({name: column_counts(pieces.steps, name, bins[name]) for name in group.columns}, bins)
    if can_bootstrap(steps, length, found):
        yield StationaryBootstrap.cut(steps, length, found.block_length, _SEED)


def _too_few_windows(group: ColumnGroup, rate: float, needed: int, most: int) -> str:
    windows = int(Contiguous.cut(row_counts(group.reference.pieces.windows), group.compared).effective_n)
    length = _length(group.reference)
    smallest = (
        f"the smallest rate that it supports is {show_rate(1 / (most + 1))}" if most else "it supports no rate at all"
    )
    worth = f", worth {most} with overlapping and resampled ones" if most > windows else ""
    return (
        f"a false-alarm rate of {rate:g} needs at least {needed} windows of {length} in the reference, and it has "
        f"{windows}{worth}; {smallest}: ask for that, judge shorter windows, or take a reference over a longer time"
    )


def _too_few_pairs(group: ColumnGroup, rate: float, needed: int, most: int) -> str:
    pieces = group.reference.pieces
    has, instead = f"the log has {most}", "wait until it is older"
    if rate < SMALLEST_ROLLING_RATE:  # no age of the log, and no choice of columns helps
        has, instead = f"at most {pieces.max_pairs} are kept", f"ask {SMALLEST_ROLLING_RATE:g} of an older log"
    elif needed > pieces.max_pairs:
        has, instead = f"of so many columns at most {pieces.max_pairs} are kept", "judge fewer columns"
    smallest = f"the smallest rate that they support is {show_rate(1 / (most + 1))}: ask for that, or " if most else ""
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
