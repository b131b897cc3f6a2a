"""The null distribution of independent rows: samples of rows instead of windows.

It is used only if the monitor's spec says that rows are independent. Two samples are drawn from the reference's sample
with replacement: one has as many rows as the window, the other as many as what the window is compared with, which is
the reference or, for `rolling:`, one window of it (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter
16).

The columns of one row stay together, so the distribution is joint over columns. A category that occurs once counts as
an unseen one, which gives the expected number of unseen ones (Good, The Population Frequencies of Species and the
Estimation of Population Parameters, Biometrika 40, 1953).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from scipy.stats import chi2, norm

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import ColumnValues, read_columns
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import (
    FEWEST_HELD_OUT,
    HoldOutAlarms,
    NullDistribution,
    NullKind,
    count_alarms,
    needed_windows,
    show_rate,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.null import (
    DISTANCE,
    MIN_COMPARED_ROWS,
    SEED,
    ColumnGroup,
    Null,
    WindowCounts,
    column_counts,
    column_names,
    column_rng,
    count_windows,
    out_of_reference,
    smallest_deviations,
    subsample,
)
from mlflow_deploy_plugin.runtime import Array

MAX_DRAWS = 2_000
_DRAWS = 400
_RANKS = 20
"""The samples that are to lie beyond the threshold; `MAX_DRAWS` limits them."""
_MAX_ROWS = 5_000
_MAX_CELLS = 200_000_000
_UNLIKELY, _MOST_RATE, _NAMED = 0.001, 0.4, 3
_SHARED = 1.5
"""Each pair of windows shares one with two other pairs; the correlation of their chi-squares is 1/4."""


@dataclass(frozen=True)
class IndependentRows(Null):
    """Samples of the reference's rows; `draws` of them are drawn."""

    draws: int

    kind: ClassVar[NullKind] = "rows"
    description: ClassVar[str] = "samples of rows"
    compares_with_whole: ClassVar[bool] = False

    @classmethod
    def cut(cls, group: ColumnGroup, rate: float) -> "IndependentRows | Refused":
        """Return the null of a rate; refused if it takes too many samples, or the reference's windows contradict it."""
        if needed_windows(rate) > MAX_DRAWS:
            return Refused(
                f"a false-alarm rate of {rate:g} needs more than the {MAX_DRAWS:,} samples that are drawn; the "
                f"smallest rate that can be had is {show_rate(1 / (MAX_DRAWS + 1))}"
            )
        return contradiction(group, rate) or cls(min(max(_DRAWS, math.ceil(_RANKS / rate)), MAX_DRAWS))

    def compare(self, groups: Sequence[ColumnGroup]) -> NullDistribution:
        """Return the figures of samples of the window's size, each compared with a sample of the other side's size.

        With many columns, fewer different rows are drawn, so that the time is bounded.
        """
        columns = sum(len(group.columns) for group in groups)
        rows = min(_MAX_ROWS, max(_MAX_CELLS // (columns * self.draws), 500))
        parts = []
        for number, group in enumerate(groups):
            rng = np.random.default_rng([SEED, 2, number])
            sample, pieces = group.reference.sample, group.reference.pieces
            if len(sample) > rows:
                sample = sample.take(np.sort(rng.choice(len(sample), rows, replace=False)))
            features = read_columns(sample)[0]
            even = np.full(len(sample), 1 / max(len(sample), 1))
            sizes = [group.compared, pieces.total.rows, *([group.compared] if pieces.grid.lag_windows else [])]
            sides = [rng.multinomial(size, even, size=self.draws).astype(np.float32) for size in sizes]
            parts += [_drawn_figures(group, features[name], sides) for name in group.columns]
        drawn, floors = zip(*parts, strict=True)
        figures = np.stack(drawn, axis=1)
        return NullDistribution(self.kind, figures, np.ones(figures.shape[1:]), np.stack(floors), float(self.draws))

    def hold_out(self, groups: Sequence[ColumnGroup], rate: float, persistence: float) -> HoldOutAlarms | Refused:
        """Judge all windows of the reference by samples of its rows, which they are if rows are independent."""
        pieces = groups[0].reference.pieces
        now, before = pieces.pairs() if pieces.grid.lag_windows else (np.arange(len(pieces.windows)), None)
        if len(now) < FEWEST_HELD_OUT:
            return Refused("the reference has too few windows with event times, by which it could be told")
        sized, columns = [], []
        for group in groups:
            windows = group.reference.pieces.windows_at(pieces.window_starts_us)
            rows = np.array([window.rows for window in windows])
            rows = rows[now] if before is None else np.minimum(rows[now], rows[before])
            size = min(group.compared, int(np.median(rows)))
            if size < MIN_COMPARED_ROWS:
                if not group.segment:
                    return Refused(f"the reference's own windows have fewer than {MIN_COMPARED_ROWS} rows")
                continue
            sized.append(replace(group, compared=size))
            for name in group.columns:
                figures = _window_figures(sized[-1], name, windows, now, before)
                figures[rows < size] = np.nan
                columns.append(figures)
        distribution = self.compare(sized)
        judged = np.stack(columns, axis=1)
        judged = judged[np.isfinite(judged[..., DISTANCE]).any(axis=1)]
        tests = [distribution.test(window, rate) for window in judged]
        how = f"on its own {len(judged)} windows, judged by samples of {sized[0].compared:,} independent rows"
        return count_alarms(tests, column_names(sized), rate, float(self.draws), len(judged), how, persistence)


def _window_figures(
    group: ColumnGroup, name: str, profiles: Sequence[Profile], now: Array, before: Array | None
) -> Array:
    """Return [M, FIGURES] of the reference's own windows, each compared with the same as the judged window."""
    bins = group.reference.bins[name]
    rng = column_rng(group.segment + name)
    windows = count_windows([profiles[place] for place in now], name, bins)
    if before is None:
        complements = np.maximum(column_counts([group.reference.pieces.total], name, bins) - windows.counts, 0)
    else:
        earlier = column_counts([profiles[place] for place in before], name, bins)
        complements = subsample(earlier, group.compared, rng)
    return windows.subsampled(group.compared, rng).figures(bins, complements)


def _drawn_figures(group: ColumnGroup, feature: ColumnValues, sides: Sequence[Array]) -> tuple[Array, Array]:
    """Return [draws, FIGURES] of one column, and its smallest deviations, [FIGURES].

    Args:
        sides: [draws, N] weights of the rows: those of the windows, of the whole reference, which says what is out of
            range, and last of what the windows are compared with.
    """
    bins = group.reference.bins[feature.name]
    codes = bins.encode(feature)
    codes = np.where(codes < 0, bins.size, codes)
    order = np.argsort(codes, kind="stable")
    present, starts = np.unique(codes[order], return_index=True)
    histograms = [np.zeros((len(weights), bins.size + 1)) for weights in sides]
    for counts, weights in zip(histograms, sides, strict=True):
        counts[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
    windows = histograms[0]
    unseen = np.zeros(len(windows))
    if feature.kind == "category":  # the share of rows whose category no other row has
        known = feature.values[[value is not None for value in feature.values]]
        amounts = np.unique(known.astype(str), return_counts=True)[1]
        single = np.count_nonzero(amounts == 1) / max(len(feature.values), 1)
        rng = column_rng(feature.name, len(windows))
        unseen = rng.binomial(group.compared, single, len(windows)).astype(np.float64)
    outside = out_of_reference(bins, windows, histograms[1]).outside
    floors = smallest_deviations(bins, present, len(codes), group.compared, int(sides[-1][0].sum()))
    return WindowCounts(windows, unseen, outside).figures(bins, histograms[-1]), floors


def contradiction(group: ColumnGroup, rate: float) -> Refused | None:
    """Return the evidence of the reference's own windows against independent rows, or None.

    If the rows of a window are alike, with an intraclass correlation c, its counts vary 1 + (n - 1) c times as much as
    those of n independent rows (the design effect: Kish, Survey Sampling, 1965). The chi-square of each window against
    the others gives that factor for windows of the reference's size (Cochran, Some Methods for Strengthening the Common
    Chi-Square Tests, Biometrics 10, 1954), and so for one of the judged window's size. It is evidence if it doubles the
    false alarms, and if chance explains it with less than `_UNLIKELY`.
    """
    pieces = group.reference.pieces
    now, before = pieces.pairs() if pieces.grid.lag_windows else (np.arange(len(pieces.windows)), None)
    enough = (norm.isf(rate / 2) / norm.isf(rate)) ** 2 if rate < _MOST_RATE else np.inf
    found = []
    for name in group.columns:
        counts = column_counts(pieces.windows, name, group.reference.bins[name])
        # at most four groups of bins with about as many rows, neighbours together, and the missing values: rare bins
        # tell little of dependence, and spoil the distribution of a chi-square
        total = counts.sum(axis=0)
        known = total[:-1]
        middle = (np.cumsum(known) - known / 2) / max(known.sum(), 1)
        place = np.append(np.minimum((4 * middle).astype(np.int64), 3), 4)
        coarse = counts @ np.eye(5)[place][:, np.bincount(place, total, minlength=5) > 0]
        windows = coarse[now]
        others = coarse.sum(axis=0) - windows if before is None else coarse[before]
        effect, chance = _dispersion(windows, others, group.compared, 1.0 if before is None else _SHARED)
        if effect >= enough and chance * len(group.columns) < _UNLIKELY:
            found.append((effect, name))
    if not found:
        return None
    named = ", ".join(f"{name} {effect:.3g}" for effect, name in sorted(found, reverse=True)[:_NAMED])
    return Refused(
        f"the reference contradicts independent_rows: its own {len(now)} windows vary more than windows of independent "
        f"rows do, those of {group.compared:,} rows by so many times the variance: {named}; so calm ones would be "
        "called drifted; say independent_rows: false, with which a window is compared with the reference's own windows"
    )


def _dispersion(windows: Array, others: Array, size: int, shared: float) -> tuple[float, float]:
    """Return how many times as much windows of `size` rows vary as independent rows do, and the p-value of that.

    Args:
        windows, others: [M, G] counts of each window, and of what it is compared with.
        shared: the variance of their sum over that of independent chi-squares.
    """
    rows, beside = windows.sum(axis=1), others.sum(axis=1)
    kept = (rows >= 2) & (beside >= 2)
    windows, others, rows, beside = windows[kept], others[kept], rows[kept], beside[kept]
    both = windows + others
    freedom = int(np.maximum(np.count_nonzero(both, axis=1) - 1, 0).sum())
    if not freedom:
        return 1.0, 1.0
    weights = np.sqrt(beside / rows)[:, None]
    total = float((np.square(weights * windows - others / weights) / np.maximum(both, 1)).sum())
    alike = max(total / freedom - 1, 0) / max(float(np.minimum(rows, beside).mean()) - 1, 1)
    return 1 + (size - 1) * alike, float(chi2.sf(total / shared, freedom / shared))
