"""Profiles as Parquet files.

Histograms of an hour hold mostly zeros, so only the other counts are stored. Each line of the table is one column of
one profile. A line without a name holds the number of rows of a profile, so that a profile without columns is stored,
too.
"""

from collections.abc import Sequence
from itertools import pairwise
from operator import attrgetter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import ColumnSketch, Profile
from mlflow_deploy_plugin.runtime import Array

_PLAIN = {
    "kind": pa.string(),
    "arrow_type": pa.string(),
    "rows": pa.int64(),
    "missing": pa.int64(),
    "mistyped": pa.int64(),
    "below": pa.int64(),
    "above": pa.int64(),
    "unseen": pa.int64(),
    "minimum": pa.float64(),
    "maximum": pa.float64(),
    "finite": pa.int64(),
    "mean": pa.float64(),
    "m2": pa.float64(),
    "expected_type": pa.string(),
}
_plain_values = attrgetter(*_PLAIN)
_NO_COUNTS = np.empty(0, np.int64)
SCHEMA = pa.schema(
    [
        ("profile", pa.int32()),
        ("name", pa.string()),
        *_PLAIN.items(),
        ("size", pa.int32()),
        ("bins", pa.list_(pa.int32())),
        ("counts", pa.list_(pa.int64())),
        ("fresh", pa.list_(pa.string())),
        ("fresh_rows", pa.list_(pa.int64())),
    ]
)


def profiles_to_table(profiles: Sequence[Profile]) -> pa.Table:
    lines: list[tuple[int, ColumnSketch]] = []
    for number, profile in enumerate(profiles):
        lines.append((number, ColumnSketch("", "other", "", _NO_COUNTS, profile.rows)))
        lines += [(number, column) for column in profile.columns.values()]
    columns = [column for _, column in lines]
    filled = [column.counts.nonzero()[0] for column in columns]
    counts = [column.counts[some] for column, some in zip(columns, filled, strict=True)]
    fresh = [list(column.fresh) for column in columns]
    plain = zip(*map(_plain_values, columns), strict=True) if columns else ([] for _ in _PLAIN)
    arrays = {
        "profile": pa.array([number for number, _ in lines], pa.int32()),
        "name": pa.array([column.name or None for column in columns], pa.string()),
        **{name: pa.array(values, kind) for (name, kind), values in zip(_PLAIN.items(), plain, strict=True)},
        "size": pa.array([len(column.counts) for column in columns], pa.int32()),
        "bins": _lists(filled, pa.int32()),
        "counts": _lists(counts, pa.int64()),
        "fresh": pa.array(fresh, pa.list_(pa.string())),
        "fresh_rows": pa.array([list(column.fresh.values()) for column in columns], pa.list_(pa.int64())),
    }
    return pa.table(arrays, schema=SCHEMA)


def _lists(arrays: Sequence[Array], kind: pa.DataType) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, arrays)]).astype(np.int32)
    values = np.concatenate([_NO_COUNTS, *arrays])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, kind))


def table_to_profiles(table: pa.Table) -> list[Profile]:
    """Return the profiles that `profiles_to_table` made the table of.

    Raises:
        pa.ArrowException, KeyError, ValueError: it is no such table.
    """
    if table.schema.names != SCHEMA.names:
        raise ValueError("the columns of the table are not those of a profile")
    plain = {name: table.column(name).to_pylist() for name in ("profile", "name", "size", *_PLAIN)}
    slices = {}
    for name in ("bins", "counts"):
        column = table.column(name).combine_chunks()
        values, offsets = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy().tolist()
        slices[name] = [values[first:last] for first, last in pairwise(offsets)]
    fresh, fresh_rows = (table.column(name).to_pylist() for name in ("fresh", "fresh_rows"))
    profiles: list[tuple[int, dict[str, ColumnSketch]]] = []
    for line, name in enumerate(plain["name"]):
        if name is None:
            if plain["profile"][line] != len(profiles):
                raise ValueError("a profile of the table is missing")
            profiles.append((plain["rows"][line], {}))
            continue
        histogram = np.zeros(plain["size"][line], np.int64)
        histogram[slices["bins"][line]] = slices["counts"][line]
        profiles[-1][1][name] = ColumnSketch(
            name=name,
            counts=histogram,
            fresh=dict(zip(fresh[line], fresh_rows[line], strict=True)) if fresh[line] else {},
            **{key: plain[key][line] for key in _PLAIN},
        )
    return [Profile(rows, columns) for rows, columns in profiles]


def profile_to_parquet(profile: Profile) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(profiles_to_table([profile]), sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def profile_from_parquet(content: bytes) -> Profile:
    """Return the profile that `profile_to_parquet` has written.

    Raises:
        pa.ArrowException, ValueError: it has not written these bytes.
    """
    (profile,) = table_to_profiles(pq.read_table(pa.BufferReader(content)))
    return profile
