"""The test that judges a rollout: a mixture sequential probability ratio test (mSPRT),
which is valid at any time.

A fixed-sample test is not valid if it is repeated: a 5 % test after every request
eventually finds a difference in most A/A comparisons. Here, the evidence is an
e-process: a mixture of likelihood ratios. Under the null hypothesis, the mixture is a
non-negative supermartingale that starts at 1. By Ville's inequality, the probability
that the mixture *ever* reaches 1/level is at most `level`, independent of the number
and times of the evaluations.

    H. Robbins, Statistical methods related to the law of the iterated logarithm, Ann.
    Math. Statist. 41, 1970 R. Johari, P. Koomen, L. Pekelis, D. Walsh, Peeking at A/B
    tests, KDD 2017 (the mSPRT) S. Howard, A. Ramdas, J. McAuliffe, J. Sekhon,
    Time-uniform, nonparametric, nonasymptotic confidence sequences,
        Ann. Statist. 49, 2021

The candidate is rejected if two null hypotheses are both rejected at the full level (an
intersection-union test, R. Berger 1982):

1. *The candidate's share of events is at most the threshold.* The test is binomial
   against the threshold.
2. *The candidate's share is at most the current version's share.* If both versions
   together had f events since the last evaluation, the number of the candidate's events
   is binomial with the candidate's share of the requests (the conditional test of the
   maximized SPRT, M. Kulldorff et al., Sequential Analysis 30, 2011). The exact
   distribution is hypergeometric. A binomial distribution dominates this distribution
   in convex order (W. Hoeffding, J. Amer. Statist. Assoc. 58, 1963, theorem 4), so the
   test is conservative. Only requests between the same two evaluations are compared, so
   an outage of both versions is not evidence against either version.

For the alternative that the odds are θ times the odds of the null hypothesis, both
tests have the likelihood ratio θ^events / (1 + p(θ-1))^n.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

ODDS_RATIOS: Floats = np.array(
    [
        1.25,
        1.5,
        2.0,
        3.0,
        5.0,
        10.0,
        30.0,
    ]
)
"""The odds ratios of the alternatives, mixed with equal weights: from 25 % worse odds
to 30 times the odds.
"""

_BISECTIONS = 50
"""The number of halvings after which two limits are equal floats."""


def growth(events: ArrayLike, trials: ArrayLike, probability: ArrayLike) -> Floats:
    """Return the logarithm of each alternative's likelihood ratio for `events` of
    `trials` against `probability`.

    The arguments broadcast to one shape. The result has this shape and an additional
    last axis for ODDS_RATIOS.
    """
    events = np.asarray(events, float)[..., None]
    trials = np.asarray(trials, float)[..., None]
    probability = np.asarray(probability, float)[..., None]
    normalization = np.log1p(probability * (ODDS_RATIOS - 1))
    log_ratios: Floats = events * np.log(ODDS_RATIOS) - trials * normalization
    return log_ratios


def log_evidence(wealth: Floats) -> Floats:
    """Return the logarithm of the e-value, which is the mean of the alternatives'
    likelihood ratios.
    """
    evidence: Floats = np.logaddexp.reduce(wealth, axis=-1) - math.log(wealth.shape[-1])
    return evidence


def upper_limit(events: float, trials: float, level: float) -> float:
    """Return an upper limit (Chernoff's bound) for the share of events after `events`
    of `trials`; 1 without trials.

    H. Chernoff, Ann. Math. Statist. 23, 1952: for a share p, the probability of at most
    this number of events is at most exp(-n KL(events/n, p)). The exact limit needs
    scipy, which installations that run rollouts may lack.
    """
    if trials <= 0:
        return 1.0
    share = events / trials
    max_divergence = math.log(1 / level) / trials
    low = share
    high = 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        # The Kullback-Leibler divergence KL(share, middle), in which 0 log 0 is 0.
        divergence = math.inf if share < 1 else 0.0
        if middle < 1:
            divergence = (1 - share) * math.log((1 - share) / (1 - middle))
            if share > 0:
                divergence += share * math.log(share / middle)
        if divergence < max_divergence:
            low = middle
        else:
            high = middle
    return high


@dataclass
class SequentialTest:
    """The evidence of one step for one kind of event.

    Attributes:
        threshold: the share of the candidate's requests that may have the event; an
            array if several tests run at once.
        level: the probability of a false rejection, over all evaluations.
        against_current: True if the candidate must also be worse than the current
            version.
        above_threshold: the log likelihood ratios of the test against the threshold;
            the last axis has the alternatives.
        above_current: the ratios of the test against the current version.
    """

    threshold: float | Floats
    level: float
    against_current: bool = True
    above_threshold: Floats = field(default_factory=lambda: np.zeros(len(ODDS_RATIOS)))
    above_current: Floats = field(default_factory=lambda: np.zeros(len(ODDS_RATIOS)))

    def look(
        self,
        events: ArrayLike,
        trials: ArrayLike,
        current_events: ArrayLike = 0,
        current_trials: ArrayLike = 0,
    ) -> None:
        """Add the candidate's and the current version's counts since the last
        evaluation to the evidence.
        """
        self.above_threshold = self.above_threshold + growth(events, trials, self.threshold)
        if self.against_current:
            all_trials = np.asarray(trials, float) + np.asarray(current_trials, float)
            share = np.divide(
                trials,
                all_trials,
                out=np.zeros_like(all_trials),
                where=all_trials > 0,
            )
            all_events = np.asarray(events, float) + np.asarray(current_events, float)
            self.above_current = self.above_current + growth(events, all_events, share)

    @property
    def log_evidence(self) -> Floats:
        """Return the log evidence against the candidate: the smaller value if both null
        hypotheses must be rejected.
        """
        evidence = log_evidence(self.above_threshold)
        if self.against_current:
            return np.minimum(evidence, log_evidence(self.above_current))
        return evidence

    @property
    def rejects(self) -> NDArray[np.bool_]:
        rejected: NDArray[np.bool_] = self.log_evidence >= math.log(1 / self.level)
        return rejected
