"""The limit of a single window: the innovation of a figure that is exceeded by chance
at a given rate.

The innovations of a figure have Student's distribution with an unknown number of
degrees of freedom. A reference of 90 windows says little about the tail of one figure,
so the proportions of light and heavy tails are estimated from all figures of a kind
together (an empirical Bayes estimate by expectation maximisation: Efron, Large-Scale
Inference, 2010, chapter 1), and each figure's limit is that of its own mixture.

A day on which one customer sends many rows that are alike, or on which a part of the
values is missing, is rare, and the reference may show it only in other columns.
Therefore the limit of a share of missing, new or distant values is beyond all bursts of
such shares in the reference.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln, stdtr

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.sequential.levels import LEVEL, MISSING, NEW, OUTSIDE

_FREEDOMS = np.array([2.5, 3.5, 5.0, 8.0, 15.0, 60.0])
_STEPS = 30
_PRIOR = 0.3 * np.array([[0.02], [0.03], [0.05], [0.1], [0.3], [0.5]])
"""The freedoms of a part of an imagined figure: most figures are means of many rows,
and nearly normal.
"""
_QUIET = 0.25
_BURST = 12
"""The largest innovation of a share with bursts, as a multiple of the median. It is
about 4 if the innovations are normal.
"""
_BEYOND = 1.5
_MOST = 0.75
"""The limit of a share, relative to the largest burst of such shares in the reference,
and the largest of these limits.
"""
_SMALLEST = 0.8
"""The smallest variance of the innovations, which have a variance of 1."""
_GRID = np.geomspace(2.0, 500.0, 400)


class Tails:
    """The tails of m figures."""

    def __init__(
        self,
        innovations: Array,
        season: int,
        kinds: Sequence[str],
        deviations: Array | float = 1.0,
    ) -> None:
        """`innovations` are those of the reference in `deviations`, [R, m]; `kinds` are
        the names of the figures' kinds, m; `deviations` are in the figures' unit, [m].
        """
        # Estimated deviations make the tails heavier.
        self._freedoms = 1 / (1 / _FREEDOMS + 1 / max(len(innovations) - season, 2))
        fits = [_fit(innovations, freedom) for freedom in _FREEDOMS]
        self._scales, likelihoods = map(np.stack, zip(*fits, strict=True))
        self._shares = np.empty_like(likelihoods)
        kind_of = np.array(kinds)
        for kind in {*kinds}:
            self._shares[:, kind_of == kind] = _mixtures(likelihoods[:, kind_of == kind])
        # The windows of figures that hardly vary do not show the weight of their tails.
        is_quiet = np.square(innovations).mean(axis=0) < _QUIET
        sizes = np.abs(innovations)
        bursts = sizes.max(axis=0) * deviations
        bursts[sizes.max(axis=0) < _BURST * np.median(sizes, axis=0)] = 0
        self._smallest_limits = np.zeros(len(kind_of))
        for kind in (MISSING, NEW, OUTSIDE):
            largest = bursts[kind_of == kind].max(initial=0)
            self._smallest_limits[kind_of == kind] = min(_BEYOND * largest, _MOST)
        for kind in {*kind_of[is_quiet]}:
            is_kind = kind_of == kind
            # Rows are out of range on days with a distant level.
            alike = is_kind | (kind_of == LEVEL) if kind == OUTSIDE else is_kind
            known = alike & ~is_quiet
            if not known.any():
                known = ~is_quiet
            of_others = self._shares[:, known]
            if not known.any():  # Nearly normal.
                of_others = np.eye(len(_FREEDOMS))[:, -1:]
            self._shares[:, is_kind & is_quiet] = of_others.mean(axis=1, keepdims=True)
        self._smallest_limits /= deviations

    def p_values(self, innovations: Array) -> Array:
        """Return the probability of at least the absolute innovations, [..., m], on
        their side.
        """
        scaled = -np.abs(innovations)[..., None, :] / self._scales
        tails = stdtr(self._freedoms[:, None], scaled)
        p_values: Array = (self._shares * tails).sum(axis=-2)
        return p_values

    def limits(self, p_values: Array) -> Array:
        """Return the innovation of each figure, [m], that has the probability of the
        figure, [m].
        """
        targets = np.log(p_values)
        columns = np.arange(self._scales.shape[1])
        # The grid has decreasing probabilities, so two neighbours contain the target.
        low = np.zeros_like(columns)
        high = np.full_like(columns, len(_GRID) - 1)
        while (high - low > 1).any():
            middle = (low + high) // 2
            is_above = np.log(self.p_values(_GRID[middle])) > targets
            low = np.where(is_above, middle, low)
            high = np.where(is_above, high, middle)
        ends = _GRID[np.stack([low, high])]
        logs = np.log(self.p_values(ends))
        limits = [np.interp(-targets[each], -logs[:, each], ends[:, each]) for each in columns]
        return np.maximum(limits, self._smallest_limits)


def _fit(innovations: Array, freedom: float) -> tuple[Array, Array]:
    """Return the scale of each figure, [m], for Student's distribution with this
    freedom, and its log likelihood, [m] (Lange, Little and Taylor, JASA 84, 1989).
    """
    squares = np.square(innovations)
    # Figures that hardly vary have the smallest deviation, not their own.
    smallest = _SMALLEST * (freedom - 2) / freedom
    scale = np.maximum(squares.mean(axis=0), smallest)
    for _ in range(_STEPS):
        weights = (freedom + 1) / (freedom + squares / scale)
        scale = np.maximum((weights * squares).mean(axis=0), smallest)
    constant = gammaln((freedom + 1) / 2) - gammaln(freedom / 2) - np.log(freedom * np.pi) / 2
    kernels = (freedom + 1) / 2 * np.log1p(squares / scale / freedom)
    likelihood = (constant - np.log(scale) / 2 - kernels).sum(axis=0)
    return np.sqrt(scale), likelihood


def _mixtures(likelihoods: Array) -> Array:
    """Return the probability of each freedom for each figure, [freedoms, m]."""
    relative = np.exp(likelihoods - likelihoods.max(axis=0))
    proportions = _PRIOR / _PRIOR.sum()
    for _ in range(_STEPS):
        shares: Array = proportions * relative / (proportions * relative).sum(axis=0)
        found = shares.sum(axis=1, keepdims=True) + _PRIOR
        proportions = found / found.sum()
    return shares
