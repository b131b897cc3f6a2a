"""Values of each window of a reference that the rest of the reference lacks: categories, and numbers beyond its range.

Measured against the whole reference none of its own windows has anything new, and the first odd value of a later window
would be an alarm. Left out one by one, they show how much that is new a calm window brings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.inference_log import microseconds_of, summarise_lists
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins, OrderedBins
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import OWN_PREFIX, Array, as_floats
from mlflow_deploy_plugin.monitoring.drift.sketches.counting import type_family
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.runtime import EVENT_TIME

RestCounts = list[dict[str, int]]


def count_out_of_rest(
    bins: Mapping[str, Bins], table: pa.Table, groups: Array, count: int, counted: Array | None = None
) -> dict[str, RestCounts]:
    """Return for each column the counts `unseen`, `below` and `above` of each group, against the rows of all others.

    Args:
        groups: [N] int64, the group of each row, from 0 to count - 1.
        asked: [count] bool, the groups that are among the others; None: all.
    """
    counted = np.ones(count, bool) if counted is None else counted
    summarised = summarise_lists(table, bins)
    nothing: RestCounts = [{}] * count
    found: dict[str, RestCounts] = {}
    for name in summarised.column_names:
        if name.startswith(OWN_PREFIX):
            continue
        column = summarised.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        one, family = bins.get(name), type_family(column.type)
        if one is None or family not in ("number", "category"):
            found[name] = nothing
        elif isinstance(one, OrderedBins):
            found[name] = _range(as_floats(column), groups, counted)
        else:
            found[name] = _unseen(column, groups, counted)
    return found


def correct_for_rest(
    bins: Mapping[str, Bins],
    windows: Sequence[Profile],
    starts_us: Sequence[int],
    length_us: int,
    sample: pa.Table,
    until_us: int | None = None,
) -> tuple[Profile, ...]:
    """Return the windows with `unseen`, `below` and `above` against the others, if bins were frozen on a sample of
    them.

    Measured against the whole sample they would have nothing new, since their own rows are in it. If a window has
    sampled rows, the share of them that is new to the rest of the sample stands for all of its rows. What it has beyond
    the sample is new in any case.

    Args:
        sample: with the column of event times.
        until_us: only the windows before it count as others; None: all.
    """
    if not windows:
        return ()
    numbers = (microseconds_of(sample.column(EVENT_TIME)) - starts_us[0]) // length_us
    present, groups = np.unique(numbers, return_inverse=True)
    sampled = np.bincount(groups).tolist()
    counted = None if until_us is None else starts_us[0] + present * length_us < until_us
    alone = count_out_of_rest(bins, sample, groups, len(present), counted)
    places = {number: place for place, number in enumerate(present.tolist())}
    corrected = []
    for window, start_us in zip(windows, starts_us, strict=True):
        place = places.get((start_us - starts_us[0]) // length_us)
        if place is None:  # of this one no row was sampled: all of it is measured against others already
            corrected.append(window)
            continue
        columns = dict(window.columns)
        for name, column in window.columns.items():
            rows = alone[name][place] if name in alone else {}
            new = {key: round(count * window.rows / sampled[place]) for key, count in rows.items()}
            columns[name] = replace(column, **{key: max(getattr(column, key), count) for key, count in new.items()})
        corrected.append(Profile(window.rows, columns))
    return tuple(corrected)


def _unseen(column: pa.ChunkedArray, groups: Array, counted: Array) -> RestCounts:
    """Return the rows of each group whose value no other group has."""
    encoded = column.combine_chunks().dictionary_encode()
    is_known = encoded.indices.is_valid().to_numpy(zero_copy_only=False)
    values = encoded.indices.drop_null().to_numpy().astype(np.int64)
    owners, count = groups[is_known], len(counted)
    size = len(encoded.dictionary)
    first, last = np.full(size, count), np.full(size, -1)
    is_counted = counted[owners]
    np.minimum.at(first, values[is_counted], owners[is_counted])
    np.maximum.at(last, values[is_counted], owners[is_counted])
    first, last = first[values], last[values]
    is_alone = (last < 0) | ((first == last) & (first == owners))
    return [{"unseen": rows} for rows in np.bincount(owners[is_alone], minlength=count).tolist()]


def _range(values: Array, groups: Array, counted: Array) -> RestCounts:
    """Return the rows of each group below the smallest and above the largest number of all others."""
    is_known = ~np.isnan(values)
    numbers, owners, count = values[is_known], groups[is_known], len(counted)
    least, most = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(least, owners, numbers)
    np.maximum.at(most, owners, numbers)
    least[~counted], most[~counted] = np.inf, -np.inf
    below = np.bincount(owners[numbers < _of_others(least)[owners]], minlength=count)
    above = np.bincount(owners[numbers > -_of_others(-most)[owners]], minlength=count)
    return [{"below": low, "above": high} for low, high in zip(below.tolist(), above.tolist(), strict=True)]


def _of_others(least: Array) -> Array:
    """Return [count]: the smallest of all others' values; infinite if there are none, as nothing is beyond it then."""
    if len(least) < 2:
        return np.full(len(least), -np.inf)
    order = np.argsort(least, kind="stable")
    smallest: Array = np.full(len(least), least[order[0]])
    smallest[order[0]] = least[order[1]]
    return smallest
