"""The verdict: does this window differ from the reference more than the reference's own windows differ from it?

Rows of real traffic are not independent: the weather of a day is shared by all of its flights. A test that resamples
the reference row by row calls every real day drifted (90 of 90 measured). So the null distribution is made of the
reference's own contiguous windows of the same length and phase in event time, the blocks, each against the rest:

1. Every side is reduced to the same number of rows (seeded), because distances shrink as rows grow.
2. Each feature has two figures: the distance of its known values (`bins.py`) and the change of its missing share.
3. Over the pool of the B blocks and the window, each member's figure is standardised by the mean and the deviation of
   all others; the statistic of a member is the largest of its standardised figures, over all features.
4. p = (1 + #{blocks with a statistic >= the window's}) / (B + 1); drift if p <= the false-alarm rate. The threshold,
   in standard deviations, is the statistic of the block at that rank: it holds for the family of all features, so a
   feature above it and the verdict always agree.

Every member of the pool is treated alike, so that for a window that is exchangeable with the blocks the rate of false
alarms is at most the stated one, whatever the distributions are and however the features depend on each other
(conformal p-value: Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005). It holds for a trend within
the reference no more than for any method: the windows are taken as a fair sample of calm. Measured on flights and
weather (`benchmarks/drift.py`): 6 % of 200 held-out days at a nominal 5 %, 98 % of the days from June to August. Ranks
instead of standard deviations lose all power as features multiply, logarithms and robust scales lose a part of it.

B blocks cannot support a rate below 1/(B + 1): such a question is answered "not judged", never guessed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.monitoring.bins import Bins, freeze_bins
from mlflow_deploy_plugin.monitoring.features import Array, Feature
from mlflow_deploy_plugin.monitoring.null.sizes import MIN_COMPARED_ROWS
from mlflow_deploy_plugin.monitoring.verdict import FeatureVerdict, Verdict

_MAX_BLOCKS = 500
_FOLDS = 10
_SCALE_FLOOR = 0.005
"""Smallest deviation that is believed, in the distances' own units (standard deviations, shares): where the blocks
agree to the last digit, a constant feature for one, the first odd row is no drift; 1 % of odd rows is."""


@dataclass(frozen=True, eq=False)
class _Histograms:
    """One feature's counts, [.., K] over its bins with the missing values last.

    Attributes:
        blocks: [B, K] all rows of each block; equal: [B, K] those that are compared.
        outside: [K] reference rows that are in none of the blocks.
        current: [M, K] the windows to be judged, those rows that are compared.
    """

    bins: Bins
    blocks: Array
    equal: Array
    outside: Array
    current: Array

    def hold_out(self, held: Array) -> "_Histograms":
        """The same with some blocks ([B] bool) judged instead of being part of the reference."""
        return _Histograms(self.bins, self.blocks[~held], self.equal[~held], self.outside, self.equal[held])

    def figures(self) -> tuple[Array, Array]:
        """[B, 2] and [M, 2]: distance and change of the missing share, of each block from the rest of the reference,
        and of each current window from all of it."""
        total = self.blocks.sum(axis=0) + self.outside
        return self._compare(self.equal, total - self.blocks), self._compare(self.current, total)

    def _compare(self, counts: Array, others: Array) -> Array:
        change = np.abs(_missing_share(counts) - _missing_share(others))
        return np.stack([self.bins.distance(counts[..., :-1], others[..., :-1]), change], axis=-1)


def judge(
    pairs: Sequence[tuple[Feature, Feature]],
    reference_times: Array | None,
    start: int,
    length: int,
    min_rows: int,
    false_alarm_rate: float,
    seed: int = 0,
) -> Verdict:
    """Judges one window.

    Args:
        pairs: each feature's values in the reference and in the window.
        reference_times: [N] int64, the event times of the reference's rows; None: they are not known.
        start, length: of the window, in the units of the times; they also cut the reference into blocks.
        min_rows: a window with fewer is not judged.
        false_alarm_rate: share of windows like the reference that may be called drifted.
        seed: chooses the rows where a side has more than are compared.
    """
    rows, reference_rows = (len(pairs[0][1].values), len(pairs[0][0].values)) if pairs else (0, 0)

    def not_judged(reason: str) -> Verdict:
        return Verdict("not judged", rows, reference_rows, false_alarm_rate, reason)

    if not pairs:
        return not_judged("the window and the reference have no feature in common")
    if rows < min_rows:
        return not_judged(f"the window has {rows} rows; min_rows is {min_rows}")
    if rows < MIN_COMPARED_ROWS:
        return not_judged(f"the window has {rows} rows; at least {MIN_COMPARED_ROWS} are needed")
    if reference_times is None:
        return not_judged(
            "the model's reference has no event times, so there are no windows to compare with; "
            "log the model with event_time=, the column (or the values) that say when each row happened"
        )
    rng = np.random.default_rng(seed)
    blocks, compared = _cut(reference_times, start, length, rows, rng)
    if compared < MIN_COMPARED_ROWS:
        return not_judged(
            f"the reference has {reference_rows} rows in {len(np.unique((reference_times - start) // length))} windows "
            f"of this length, {compared} in the middle one; at least {MIN_COMPARED_ROWS} are needed"
        )
    needed = math.ceil(1 / false_alarm_rate - 1e-9) - 1
    if len(blocks) < needed:
        return not_judged(
            f"a false-alarm rate of {false_alarm_rate:g} needs at least {needed} windows of this length in the "
            f"reference, and it has {len(blocks)}: judge shorter windows, or log a reference over a longer time"
        )
    equal = [rng.permutation(block)[:compared] for block in blocks]
    chosen = rng.permutation(rows)[:compared]
    histograms = [_count(left, right, blocks, equal, chosen) for left, right in pairs]
    return _conclude(pairs, histograms, compared, false_alarm_rate, seed)


def _cut(times: Array, start: int, length: int, rows: int, rng: np.random.Generator) -> tuple[list[Array], int]:
    """The blocks, as row numbers of the reference, and the number of rows that every side is reduced to.

    A block with less than half of that number (cut off at an end, a gap in the log) is no window like the others.
    """
    numbers = (times - start) // length
    order = np.argsort(numbers, kind="stable")
    blocks = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    compared = min(rows, int(np.median([len(block) for block in blocks])))
    whole = [block for block in blocks if 2 * len(block) >= compared]
    if len(whole) > _MAX_BLOCKS:
        whole = [whole[position] for position in sorted(rng.choice(len(whole), _MAX_BLOCKS, replace=False))]
    return whole, compared


def _count(reference: Feature, current: Feature, blocks: list[Array], equal: list[Array], chosen: Array) -> _Histograms:
    """The histograms of one feature; `blocks`, `equal` and `chosen` are row numbers."""
    bins = freeze_bins(reference)
    codes = bins.encode(reference)
    full = np.stack([_histogram(codes[block], bins.size) for block in blocks])
    compared = np.stack([_histogram(codes[block], bins.size) for block in equal])
    total = _histogram(codes, bins.size)
    window = _histogram(bins.encode(current)[chosen], bins.size)
    return _Histograms(bins, full, compared, total - full.sum(axis=0), window[None])


def _histogram(codes: Array, size: int) -> Array:
    """[size + 1] float64, the missing values last."""
    return np.bincount(np.where(codes < 0, size, codes), minlength=size + 1).astype(np.float64)


def _conclude(
    pairs: Sequence[tuple[Feature, Feature]],
    histograms: list[_Histograms],
    compared: int,
    false_alarm_rate: float,
    seed: int,
) -> Verdict:
    figures = [histogram.figures() for histogram in histograms]
    pool = np.stack([blocks for blocks, _ in figures], axis=1)  # [B, features, 2]
    window = np.stack([current[0] for _, current in figures])  # [features, 2]
    scores = _scores(np.concatenate([pool, window[None]]))  # [B + 1, features]
    statistics = scores.max(axis=1)
    threshold = _threshold(statistics[:-1], false_alarm_rate)
    features = [
        FeatureVerdict(
            name=reference.name,
            kind=reference.kind,
            score=float(scores[-1, position]),
            distance=float(window[position, 0]),
            missing=_missing(current),
            reference_missing=_missing(reference),
            is_drifted=bool(scores[-1, position] > threshold),
        )
        for position, (reference, current) in enumerate(pairs)
    ]
    return Verdict(
        state="drift" if statistics[-1] > threshold else "no drift",
        rows=len(pairs[0][1].values),
        reference_rows=len(pairs[0][0].values),
        false_alarm_rate=false_alarm_rate,
        compared_rows=compared,
        blocks=len(pool),
        p_value=float((1 + np.count_nonzero(statistics[:-1] >= statistics[-1])) / len(statistics)),
        statistic=float(statistics[-1]),
        threshold=threshold,
        measured_false_alarm_rate=_measure(histograms, false_alarm_rate, seed),
        features=tuple(sorted(features, key=lambda feature: -feature.score)),
    )


def _scores(pool: Array) -> Array:
    """[n, features] from figures [n, features, 2]: each standardised by all others, the larger of a feature's two."""
    others = len(pool) - 1
    centred = pool - pool.mean(axis=0)
    means = -centred / others
    variances = (np.square(centred).sum(axis=0) - np.square(centred)) / others - np.square(means)
    deviations = np.maximum(np.sqrt(np.maximum(variances, 0)), _SCALE_FLOOR)
    scores: Array = ((centred - means) / deviations).max(axis=2)
    return scores


def _threshold(statistics: Array, false_alarm_rate: float) -> float:
    """The statistic of the block at the last rank that the rate leaves to drift; above it p <= the rate."""
    rank = math.floor(false_alarm_rate * (len(statistics) + 1) + 1e-9)
    return float(np.sort(statistics)[-rank])


def _measure(histograms: list[_Histograms], false_alarm_rate: float, seed: int) -> float | None:
    """The share of blocks that are called drifted, each held out with a tenth of the blocks and judged by the rest."""
    count = len(histograms[0].blocks)
    folds = np.random.default_rng(seed).permutation(count) % _FOLDS
    kept = count - math.ceil(count / _FOLDS)
    if math.floor(false_alarm_rate * (kept + 1) + 1e-9) < 1:
        return None
    alarms = 0
    for fold in np.unique(folds):
        figures = [histogram.hold_out(folds == fold).figures() for histogram in histograms]
        pool = np.stack([blocks for blocks, _ in figures], axis=1)
        held = np.stack([current for _, current in figures], axis=1)
        for window in held:
            statistics = _scores(np.concatenate([pool, window[None]])).max(axis=1)
            alarms += int(statistics[-1] > _threshold(statistics[:-1], false_alarm_rate))
    return alarms / count


def _missing_share(counts: Array) -> Array:
    share: Array = counts[..., -1] / np.maximum(counts.sum(axis=-1), 1)
    return share


def _missing(feature: Feature) -> float:
    if feature.kind == "number":
        return float(np.isnan(feature.values).mean())
    return sum(value is None for value in feature.values) / len(feature.values)
