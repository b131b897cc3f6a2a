"""What each window of a reference has that the rest of the reference lacks: categories, and numbers beyond its range.

Measured against the whole reference none of its own windows has anything new, and the first odd value of a later window
would be an alarm. Left out one by one they show how much that is new a calm window brings.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.inference_log.lists import summarise_lists
from mlflow_deploy_plugin.monitoring.bins import Bins, OrderedBins
from mlflow_deploy_plugin.monitoring.features import OWN_PREFIX, Array
from mlflow_deploy_plugin.monitoring.tally import family_of

Beyond = list[dict[str, int]]


def beyond_the_rest(bins: Mapping[str, Bins], table: pa.Table, groups: Array, count: int) -> dict[str, Beyond]:
    """For each column the counts `unseen`, `below` and `above` of each group, against the rows of all others.

    Args:
        groups: [N] int64, the group of each row, from 0 to count - 1.
    """
    summarised = summarise_lists(table, bins)
    nothing: Beyond = [{}] * count
    found: dict[str, Beyond] = {}
    for name in summarised.column_names:
        if name.startswith(OWN_PREFIX):
            continue
        column = summarised.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        one, family = bins.get(name), family_of(column.type)
        if one is None or family not in ("number", "category"):
            found[name] = nothing
        elif isinstance(one, OrderedBins):
            values = pc.fill_null(pc.cast(column, pa.float64(), safe=False), float("nan")).to_numpy()
            found[name] = _range(values, groups, count)
        else:
            found[name] = _unseen(column, groups, count)
    return found


def _unseen(column: pa.ChunkedArray, groups: Array, count: int) -> Beyond:
    """Rows whose value no other group has."""
    encoded = column.combine_chunks().dictionary_encode()
    is_known = encoded.indices.is_valid().to_numpy(zero_copy_only=False)
    values = encoded.indices.drop_null().to_numpy().astype(np.int64)
    owners = groups[is_known]
    size = len(encoded.dictionary)
    first, last = np.full(size, count), np.full(size, -1)
    np.minimum.at(first, values, owners)
    np.maximum.at(last, values, owners)
    alone = np.bincount(owners[(first == last)[values]], minlength=count)
    return [{"unseen": rows} for rows in alone.tolist()]


def _range(values: Array, groups: Array, count: int) -> Beyond:
    """Rows below the smallest and above the largest number of all other groups."""
    is_known = ~np.isnan(values)
    numbers, owners = values[is_known], groups[is_known]
    least, most = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(least, owners, numbers)
    np.maximum.at(most, owners, numbers)
    below = np.bincount(owners[numbers < _of_others(least)[owners]], minlength=count)
    above = np.bincount(owners[numbers > -_of_others(-most)[owners]], minlength=count)
    return [{"below": low, "above": high} for low, high in zip(below.tolist(), above.tolist(), strict=True)]


def _of_others(least: Array) -> Array:
    """[count] the smallest of all others' values; infinite, where there are no others, as nothing is beyond it then."""
    if len(least) < 2:
        return np.full(len(least), -np.inf)
    order = np.argsort(least, kind="stable")
    smallest: Array = np.full(len(least), least[order[0]])
    smallest[order[0]] = least[order[1]]
    return smallest
