"""The counts of a column in several profiles, as arrays."""

from collections.abc import Sequence

import numpy as np

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.sketches.bins import Bins
from mlflow_deploy_plugin.watch.drift.sketches.sketch import Profile


def column_counts(profiles: Sequence[Profile], name: str, bins: Bins) -> Array:
    """Return a column's histograms, [P, K + 1] float64. The values of rows without the
    column count as missing.
    """
    counts = np.zeros((len(profiles), bins.size + 1))
    for position, profile in enumerate(profiles):
        column = profile.columns.get(name)
        if column is None or len(column.counts) != bins.size + 1:
            counts[position, -1] = profile.rows
        else:
            counts[position] = column.counts
            counts[position, -1] += profile.rows - column.rows
    return counts


def row_counts(profiles: Sequence[Profile]) -> Array:
    """Return the number of rows of each profile, [P] int64."""
    return np.array([profile.rows for profile in profiles], dtype=np.int64)
