"""A small input example of a version, in the form of every protocol.

The example is the first rows of the model's own input example, or a row of zeros. A
large tensor has no example.
"""

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES, INPUT_EXAMPLE
from mlflow_deploy_plugin.serve.protocols import mlflow
from mlflow_deploy_plugin.serve.protocols.content import JSON, load_json
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.variants import LoadedVersion, ServedVariant

Document = dict[str, Any]
MAX_ROWS = 3
MAX_VALUES = 1024
_MAX_DOCUMENT_BYTES = 64 * 1024
_MAX_FILE_BYTES = 4 * 1024 * 1024
_BLANKS = {"str": "text", "bool": False}  # not "", because an empty field in CSV is null


@dataclass(frozen=True)
class Example:
    """An input example with values by column (lists of N) or by tensor (nested lists,
    or a scalar's value).

    Attributes:
        values: empty if an example would be too large, or the signature is unknown.
        rows: the number of rows; 1 if the model's tensors have no rows.
        document: the model's own example of an `/invocations` body, if it cannot be
            converted to named values.
    """

    values: Document = field(default_factory=dict)
    rows: int = 0
    is_own: bool = False
    document: Document = field(default_factory=dict)

    def record(self, row: int = 0) -> Document:
        return {name: values[row] for name, values in self.values.items()}

    def records(self) -> list[Document]:
        return list(map(self.record, range(self.rows)))


def example_of(variant: ServedVariant) -> Example:
    """Return the example of the step `before` or the model's own example, or a row of
    zeros and placeholder strings; an empty example if the row would be too large.
    """
    loaded = variant.loaded
    if variant.steps is not None and variant.steps.before is not None:
        row = variant.steps.example
        return Example({name: [row[name]] for name in row}, rows=1, is_own=True)
    if example := _read_example(loaded):
        return example
    schema = loaded.predictor.schema
    if schema.columns:
        blanks = {
            column.name: [_BLANKS.get(COLUMN_TYPES.get(column.type, "str"), 0)]
            for column in schema.columns
        }
        return Example(blanks, rows=1)
    shapes = [tuple(map(abs, tensor.shape)) for tensor in schema.tensors]  # A free size is -1.
    if not shapes or any(0 in shape for shape in shapes) or sum(map(prod, shapes)) > MAX_VALUES:
        return Example()
    values = {}
    for tensor, shape in zip(schema.tensors, shapes, strict=True):
        blank = _BLANKS.get(tensor.dtype, 0)
        values[tensor.name] = np.full(shape, blank, dtype=object).tolist()
    return Example(values, rows=shapes[0][0] if schema.has_rows else 1)


def invocations_example(schema: Schema, example: Example) -> Document:
    """Return a body of `/invocations`; empty if there is no example."""
    if not example.values:
        return example.document
    if schema.columns:
        rows = [list(record.values()) for record in example.records()]
        return {"dataframe_split": {"columns": list(example.values), "data": rows}}
    tensors = list(example.values.values())
    if len(tensors) == 1 and isinstance(tensors[0], list):
        return {"inputs": tensors[0]}
    return {"inputs": example.values}


def rows_example(schema: Schema, example: Example) -> Document:
    """Return a body with `instances`, or a body of `/invocations` if the model has no
    rows; empty if there is no example.
    """
    if not example.values:
        return {}
    if not schema.has_rows:
        return invocations_example(schema, example)
    if schema.columns or len(example.values) > 1:
        return {"instances": example.records()}
    return {"instances": next(iter(example.values.values()))}


def _read_example(loaded: LoadedVersion) -> Example | None:
    """Return the first rows of the model's own input example; None if it is missing,
    too large, or cannot be displayed.
    """
    path = loaded.folder / INPUT_EXAMPLE
    schema = loaded.predictor.schema
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            return None
        text = path.read_bytes()
        document = load_json(text)
        if not schema.names:
            if len(text) <= _MAX_DOCUMENT_BYTES and isinstance(document, dict):
                return Example(is_own=True, document=document)
            return None
        split = document.get("dataframe_split") if isinstance(document, dict) else None
        if schema.columns and isinstance(split, dict) and isinstance(split.get("columns"), list):
            data = split["data"][:MAX_ROWS]
            columns = dict(
                zip(map(str, split["columns"]), zip(*data, strict=True), strict=True),
            )
            values = {name: list(columns[name]) for name in schema.names if name in columns}
            return Example(values, len(data), is_own=True) if values and data else None
        arrays = schema.to_columns(mlflow.decode(JSON, text, schema))
    except (OSError, OnnxserveError, LookupError, TypeError, ValueError, NotImplementedError):
        # The example fits the model, because the warm-up used it, but it cannot be
        # displayed.
        return None
    rows = 1
    if schema.has_rows:
        rows = min(
            MAX_ROWS,
            MAX_VALUES // max(sum(array[:1].size for array in arrays.values()), 1),
            *map(len, arrays.values()),
        )
        arrays = {name: array[:rows] for name, array in arrays.items()}
    if not arrays or not rows or sum(array.size for array in arrays.values()) > MAX_VALUES:
        return None
    values = {name: _plain_lists(array.tolist()) for name, array in arrays.items()}
    return Example(values, rows, is_own=True)


def _plain_lists(value: Any) -> Any:
    """Return the value with null instead of NaN, which JSON cannot represent."""
    if isinstance(value, list):
        return [_plain_lists(entry) for entry in value]
    if isinstance(value, float) and value != value:
        return None
    return value
