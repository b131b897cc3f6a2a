"""The bounds of a share of rows. Counts may be fractions, such as the number of
independent rows that dependent rows are worth; `scipy.stats.binomtest` accepts only
integers.
"""

import math

from scipy.special import betainccinv, betaincinv, ndtri


def wilson_bounds(share: float, count: float, confidence: float) -> tuple[float, float]:
    """Return the bounds of Wilson's score interval (JASA 22, 1927) for a `share` of
    `count` > 0 independent rows.
    """
    z = float(ndtri((1 + confidence) / 2))
    widened = 1 + z**2 / count
    centre = (share + z**2 / (2 * count)) / widened
    half = z / widened * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)


def clopper_pearson_bounds(hits: float, count: float, confidence: float) -> tuple[float, float]:
    """Return the bounds of the exact interval (Clopper & Pearson, Biometrika 26, 1934)
    for `hits` of `count` > 0 independent rows.
    """
    tail = (1 - confidence) / 2
    low = float(betaincinv(hits, count - hits + 1, tail)) if hits > 0 else 0.0
    high = float(betainccinv(hits + 1, count - hits, tail)) if hits < count else 1.0
    return low, high
