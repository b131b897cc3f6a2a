"""Requests and answers as a table: the columns of the inference log and of a model's reference sample.

Both hold the signature's columns under their own names, then `prediction` (what `predict` answers, where that is one
value a row) and `output.NAME` for every other output, so that drift can lay one over the other. Names that begin with
an underscore are the log's own (`EVENT_TIME`, …).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mlflow_deploy_plugin.runtime.artifact import COLUMN_TYPES, Column
from mlflow_deploy_plugin.runtime.schema import Array, Schema

PREDICTION = "prediction"
OUTPUT_PREFIX = "output."
EVENT_TIME = "_event_time"


def as_rows(
    schema: Schema, prediction: tuple[str, ...], feeds: Mapping[str, Array], outputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Columns of [N] (tensors and outputs of higher rank: [N, …]) by name, in a stable order."""
    columns = schema.to_columns(feeds)
    for name, array in outputs.items():
        alone = prediction == (name,) and array.ndim == 1
        columns[PREDICTION if alone else OUTPUT_PREFIX + name] = array
    return columns


def row_count(arrays: Mapping[str, Array]) -> int:
    """How many rows the arrays have; of those that differ, the most, and 0 where none has rows."""
    return max((len(array) for array in arrays.values() if array.ndim), default=0)


def in_types(columns: Sequence[Column], rows: Mapping[str, Array]) -> dict[str, Array]:
    """The same rows, in which an integer or a boolean that lies among floats, as the graph takes it, is one again."""
    types = {column.name: np.dtype(COLUMN_TYPES.get(column.type, "O")) for column in columns}
    return {
        name: array.astype(types[name])
        if array.dtype.kind == "f" and name in types and types[name].kind in "ib" and np.isfinite(array).all()
        else array
        for name, array in rows.items()
    }
