"""The effect of a window's number of rows on its figures: their deviation, and the size
of distances.
"""

import numpy as np

from mlflow_deploy_plugin.serve.runtime.feeds import Array

NEARLY_NORMAL = 2 / 3
"""The power of a distance that is nearly normal, because its square has about a
chi-square distribution (Wilson and Hilferty, PNAS 17, 1931).
"""


def relative_deviations(
    residuals: Array,
    rows: Array,
    row_variances: Array,
    of_reference: Array,
) -> Array:
    """Return the standard deviation of each figure in each window relative to that in a
    window with the usual number of rows, [N, m]; 1 where the number of rows is unknown.

    The variance of a figure is that between windows plus that of its rows, which is
    inversely proportional to their number.

    Args:
        residuals: the figures of the reference without their cycle, [R, m].
        rows: the number of rows of all windows, [N, m]; NaN if unknown.
        row_variances: the variance that a single row adds to a figure, [m].
        of_reference: the number of rows of the reference's windows, [R, m].
    """
    by_rows = np.where(of_reference > 0, row_variances / np.maximum(of_reference, 1), 0)
    between = np.maximum((np.square(residuals) - by_rows).mean(axis=0), 0)
    usual = between + row_variances / np.maximum(np.median(of_reference, axis=0), 1)
    variances = between + row_variances / np.maximum(rows, 1)
    is_known = np.isfinite(variances) & (usual > 0)
    deviations: Array = np.sqrt(np.where(is_known, variances / np.where(usual > 0, usual, 1), 1))
    return deviations


def sampling_factor(
    distances: Array,
    rows: Array,
    row_variance: float,
    of_reference: Array,
) -> Array:
    """Return the factor by which the distances of windows with `rows`, [N], are larger
    because of their number of rows, relative to a usual window; 1 where it is unknown.
    The squared distance of n rows is the sum of that between windows and `row_variance`
    / n, and / N for the N rows of the reference.

    Args:
        distances: the distances of the reference's windows, [R].
        of_reference: the number of rows of these windows, [R].
    """
    squared = max(float(np.nanmean(np.square(distances))), 1e-12)
    of_total = 1 / np.maximum(of_reference.sum(), 1)
    usual = 1 / np.maximum(np.median(of_reference), 1) + of_total
    share = min(row_variance * usual / squared, 1.0)
    by_rows = 1 / np.maximum(rows, 1) + of_total
    factors: Array = np.sqrt(1 - share + share * by_rows / usual)
    return np.nan_to_num(factors, nan=1.0)
