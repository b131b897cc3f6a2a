"""The named arrays of one version's request, as another version takes them."""

import numpy as np

from mlflow_deploy_plugin.runtime import COLUMN_TYPES, Array, Feeds, Schema


def translated(feeds: Feeds, given: Schema, wanted: Schema) -> Feeds:
    """Feeds made by the schema `given`, for the graph behind `wanted`.

    What `given` has not read is not there: a column that it does not know, or what a narrower type has cut off.

    Raises:
        SchemaMismatch: `wanted` needs a column that is not there, or of another type.
    """
    if given == wanted:
        return feeds
    return wanted.from_columns(columns_of(feeds, given))


def columns_of(feeds: Feeds, schema: Schema) -> dict[str, Array]:
    """Arrays of [N] by signature column, in the signature's types (of [N, …] by tensor name)."""
    columns = schema.to_columns(feeds)
    for column in schema.columns:
        array = columns.get(column.name)
        if array is None or array.dtype.kind == "O":
            continue
        dtype = np.dtype(COLUMN_TYPES[column.type])
        if array.dtype != dtype and (dtype.kind == "f" or np.isfinite(array).all()):
            columns[column.name] = array.astype(dtype)  # an integer that was stacked among floats is one again
    for entry in schema.inputs:
        if entry.missing is not None:
            for name in entry.columns:
                columns[name] = _with_none(columns[name], entry.missing)
    return columns


def _with_none(texts: Array, missing: str) -> Array:
    restored = texts.copy()
    restored[restored == missing] = None
    return restored
