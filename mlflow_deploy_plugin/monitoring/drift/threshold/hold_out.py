"""The rate of false alarms that really comes: the reference's later windows, judged by its earlier ones alone.

A window that is held out and judged by all others, earlier and later ones, says nothing: of M such windows floor(rate
(M + 1)) are called drifted by construction, whatever the windows are. A monitor judges what comes after its reference.
So the later half of the reference is judged by the earlier half, as if that were the whole reference: what walks, what
is replaced little by little and what persists brings the alarms there that it brings later.

A walk is self-similar, so that the later half beside the earlier one is what a time as long as the reference is beside
the reference. The earlier half has half as many windows. If these do not support the asked rate, the alarms are counted
at the next one. Nothing is measured on fewer than `FEWEST_HELD_OUT` windows.

Chance explains the alarms if their number is likely for windows of which none is odder than others: then it has a
beta-binomial distribution, since the earlier windows have their luck, too (of n windows the k-th largest is beyond a
share of all that has a beta distribution with k and n + 1 - k). Windows that depend on each other count as their
effective number, yet as no fewer than the rate needs: if they are fewer, the verdict says that by itself.

How windows are held out is the `hold_out` of each null distribution.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy.special import betaincinv
from scipy.stats import betabinom, binom

from mlflow_deploy_plugin.errors import Refused

if TYPE_CHECKING:
    from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import TestResult

FEWEST_HELD_OUT = 5
UNLIKELY = 0.05
"""The reader of one in twenty calm references is told that more alarms come than promised."""
NOT_HELD_OUT = Refused("not looked for")
_NAMED = 3


@dataclass(frozen=True)
class HoldOutAlarms:
    """The alarms among windows of the reference that were judged by rows that are not theirs.

    Attributes:
        alarms: of so many `windows`, which are worth `effective_n` independent ones.
        rate: that they were judged at: the asked one, or the next that so few windows support.
        p_value: the probability of so many alarms or more if that rate holds.
        columns: beyond the threshold in most of the alarms, the worst first.
        how: the windows were judged, to stand behind "measured".
    """

    alarms: int
    windows: int
    effective_n: float
    rate: float
    p_value: float
    columns: tuple[str, ...]
    how: str

    @property
    def share(self) -> float:
        return self.alarms / self.windows

    @property
    def is_beyond(self) -> bool:
        """True if chance does not explain so many alarms."""
        return self.p_value <= UNLIKELY

    @property
    def interval(self) -> tuple[float, float]:
        """Return the interval of 95 % for the rate of windows that are judged by these very others (Clopper & Pearson,
        Biometrika 26, 1934)."""
        hits = self.share * self.effective_n
        low = betaincinv(hits, self.effective_n - hits + 1, 0.025) if self.alarms else 0.0
        high = betaincinv(hits + 1, self.effective_n - hits, 0.975) if self.alarms < self.windows else 1.0
        return float(low), float(high)


def needed_windows(rate: float) -> int:
    """Return how many independent windows a rate needs: 19 for 5 %."""
    return math.ceil(1 / rate - 1e-9) - 1


def show_rate(rate: float) -> str:
    """Return the rate, rounded up so that it can be asked for."""
    return f"{math.ceil(rate * 10_000) / 10_000:g}"


def count_alarms(
    tests: "Sequence[TestResult]",
    columns: Sequence[str],
    rate: float,
    judges: float,
    windows: int,
    persistence: float,
    how: str,
) -> HoldOutAlarms:
    """Return the alarms that the tests of held-out windows show.

    Args:
        columns: their names, in the order of the tests' scores.
        rate: that the windows were judged at.
        judges: by so many independent windows, whose luck all share; infinite: each window by others.
        windows: so many of the judged ones fit side by side.
        persistence: so many windows are worth one independent one.
    """
    alarms = [test for test in tests if test.is_drifted]
    named = Counter(
        name
        for alarm in alarms
        for name, score in zip(columns, alarm.scores.max(axis=1), strict=True)
        if score > alarm.threshold
    )
    spacing = min(persistence, max(min(judges, windows) / needed_windows(rate), 1.0))
    effective_n = max(round(windows / spacing), 1)
    hits = math.ceil(len(alarms) / len(tests) * effective_n - 1e-9)
    if math.isinf(judges):
        chance = binom(effective_n, rate)
    else:
        last = max(math.floor(rate * (judges + 1) + 1e-9), 1)
        chance = betabinom(effective_n, last / spacing, (judges + 1 - last) / spacing)
    return HoldOutAlarms(
        alarms=len(alarms),
        windows=len(tests),
        effective_n=float(effective_n),
        rate=rate,
        p_value=float(chance.sf(hits - 1)),
        columns=tuple(f"{name} ({count})" for name, count in named.most_common(_NAMED)),
        how=how,
    )
