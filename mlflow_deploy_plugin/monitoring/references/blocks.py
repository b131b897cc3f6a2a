"""Cuts a reference into its own contiguous windows: blocks of the judged window's length and phase, and finer steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.monitoring.bins import Bins
from mlflow_deploy_plugin.monitoring.features import Array
from mlflow_deploy_plugin.monitoring.sketch import Profile, merge, sketch_groups

MAX_BLOCKS = 500
_STEPS_A_WINDOW = 24
_HOUR_US = 3_600_000_000
_MAX_STEPS = 10_000
_MAX_CELLS = 16_000_000
"""Counts that all steps together may hold: 128 MB."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference, ready to be compared with windows of one length.

    Attributes:
        bins: frozen on the reference, by column.
        bins_key: names the bins (`bins.bins_digest`).
        blocks: the reference's own windows that have rows, of the judged window's length and in its phase, in the order
            of time; of more than `MAX_BLOCKS` an even choice. What a block has `unseen`, `below` and `above` is
            measured against the rest of the reference, where its rows are at hand: what a block alone has is new to it.
        block_starts_us: [B] when each begins, microseconds since 1970.
        steps: finer contiguous pieces of equal length without a gap from `steps_start_us` on, in the phase of the
            blocks; one without rows has no columns. So many of them as `window_steps` make a window.
        total: all rows of the reference, also those that are in none of the blocks.
        model_id: the logged model, for links in MLflow; empty where it was never logged.
        notes: what the reader has to know of it.
        sample: rows of the reference, bounded, for the report.
    """

    bins: Mapping[str, Bins]
    bins_key: str
    blocks: tuple[Profile, ...]
    block_starts_us: tuple[int, ...]
    steps: tuple[Profile, ...]
    steps_start_us: int
    step_seconds: int
    window_steps: int
    total: Profile
    model_id: str
    notes: tuple[str, ...]
    sample: pa.Table


@dataclass(frozen=True, eq=False)
class Pieces:
    """What `Reference` holds of the windows of one length."""

    blocks: tuple[Profile, ...]
    block_starts_us: tuple[int, ...]
    steps: tuple[Profile, ...]
    steps_start_us: int
    step_seconds: int
    window_steps: int
    total: Profile


def cut(bins: Mapping[str, Bins], table: pa.Table, times: Array | None, start_us: int, length_us: int) -> Pieces:
    """The pieces of rows that are at hand.

    Args:
        times: [N] int64, microseconds since 1970; None: they are not known, and there is nothing but the total.
        start_us, length_us: of the window to be judged.
    """
    everything = np.zeros(len(table), np.int64)
    total = sketch_groups(bins, table, everything, 1)[0]
    window_steps = steps_of(length_us)
    if times is None or not len(times):
        return Pieces((), (), (), start_us, length_us // window_steps // 1_000_000, window_steps, total)
    numbers = (times - start_us) // length_us
    present = choose(np.unique(numbers))
    inside = np.isin(numbers, present)
    blocks = sketch_groups(
        bins, table.filter(pa.array(inside)), np.searchsorted(present, numbers[inside]), len(present)
    )
    first, last = int(numbers.min()), int(numbers.max())
    window_steps = affordable(window_steps, last - first + 1, bins)
    step_us = length_us // window_steps
    count = (last - first + 1) * window_steps
    starts_us = start_us + first * length_us
    return Pieces(
        blocks=tuple(blocks),
        block_starts_us=tuple((start_us + present * length_us).tolist()),
        steps=_steps(bins, table, (times - starts_us) // step_us, count) if count <= _MAX_STEPS else (),
        steps_start_us=starts_us,
        step_seconds=step_us // 1_000_000,
        window_steps=window_steps,
        total=total,
    )


def choose(numbers: Array) -> Array:
    """At most `MAX_BLOCKS` of the ascending numbers, evenly."""
    if len(numbers) <= MAX_BLOCKS:
        return numbers
    chosen: Array = numbers[np.linspace(0, len(numbers) - 1, MAX_BLOCKS).astype(np.int64)]
    return chosen


def steps_of(length_us: int) -> int:
    """How many steps make a window: at most 24, each a whole number of seconds and at least an hour; else one."""
    for count in range(_STEPS_A_WINDOW, 1, -1):
        if length_us % (count * 1_000_000) == 0 and length_us // count >= _HOUR_US:
            return count
    return 1


def affordable(window_steps: int, windows: int, bins: Mapping[str, Bins]) -> int:
    """The largest divisor of `window_steps` whose steps are few enough to be held."""
    cells = max(sum(one.size + 1 for one in bins.values()), 1)
    for count in range(window_steps, 1, -1):
        steps = windows * count
        if window_steps % count == 0 and steps <= _MAX_STEPS and steps * cells <= _MAX_CELLS:
            return count
    return 1


def merged(steps: Sequence[Profile], window_steps: int) -> list[Profile]:
    """The windows that the steps make, one after another."""
    return [merge(steps[first : first + window_steps]) for first in range(0, len(steps), window_steps)]


def _steps(bins: Mapping[str, Bins], table: pa.Table, numbers: Array, count: int) -> tuple[Profile, ...]:
    present, groups = np.unique(numbers, return_inverse=True)
    profiles = [Profile(0, {})] * count
    for number, profile in zip(present.tolist(), sketch_groups(bins, table, groups, len(present)), strict=True):
        profiles[number] = profile
    return tuple(profiles)
