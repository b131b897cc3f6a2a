"""Batches: model inputs as a DataFrame or as named tensors, and their conversion to feeds.

The original model takes a `Batch`. `to_feeds` turns it into the feeds of the graph by the compiled signature of the
saved model, exactly as the pyfunc flavor does, and as the server does for requests.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.runtime import Array, Column, ColumnType, Feeds, Schema, Tensor

_SHORT = ("int8", "uint8", "int16", "uint16", "int32")

Batch: TypeAlias = pd.DataFrame | dict[str, Array]
"""N rows: a table, or tensors [N, …] by name (the only tensor may have the empty name)."""


def row_count(batch: Batch) -> int:
    """Return the number of rows; a scalar is one."""
    if isinstance(batch, pd.DataFrame):
        return len(batch)
    first = next(iter(batch.values()))
    return len(first) if first.ndim else 1


def take_rows(batch: Batch, positions: Any) -> Batch:
    """Return the rows at `positions` (indices, a slice or a boolean mask)."""
    if isinstance(batch, pd.DataFrame):
        table: pd.DataFrame = batch.iloc[positions]
        return table
    return {name: array[positions] for name, array in batch.items()}


def chunks(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, row_count(batch), size):
        yield take_rows(batch, slice(start, start + size))


def concatenate(batches: list[Batch]) -> Batch:
    """Join batches with the same columns."""
    tables = [batch for batch in batches if isinstance(batch, pd.DataFrame)]
    if tables:
        return pd.concat(tables, ignore_index=True)
    tensors = [batch for batch in batches if isinstance(batch, dict)]
    return {name: np.concatenate([batch[name] for batch in tensors]) for name in tensors[0]}


def to_feeds(schema: Schema, batch: Batch) -> Feeds:
    """Return the feeds of the graph.

    Raises:
        SchemaMismatch: the batch does not fit the signature.
    """
    if isinstance(batch, pd.DataFrame):
        return schema.from_columns({str(name): column_values(batch[name]) for name in batch.columns})
    return schema.from_columns(batch)


def column_values(series: "pd.Series[Any]") -> Array:
    """Return a column as the schema reads it: numbers as they are, text as objects, missing values as NaN or None."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(series.cat.categories.dtype) if not series.hasnans else series.astype(object)
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "fiub":
        return series.to_numpy()
    if pd.api.types.is_float_dtype(series.dtype) or (
        pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype) and series.hasnans
    ):
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    values: Array = series.to_numpy(dtype=object, copy=series.hasnans)
    if series.hasnans:
        values[pd.isna(values)] = None
    return values


def columns_of(table: pd.DataFrame) -> tuple[Column, ...]:
    """Return the signature's columns for a table: names, order, MLflow types.

    Raises:
        InvalidConfig: a column has a type that no ONNX graph can take; the message names it.
    """
    return tuple(Column(str(name), _column_type(str(name), table[name])) for name in table.columns)


def tensors_of(batch: Mapping[str, Array]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(name, "str" if array.dtype.kind in "OUT" else str(array.dtype), (-1, *array.shape[1:]))
        for name, array in batch.items()
    )


def _column_type(name: str, series: "pd.Series[Any]") -> ColumnType:
    dtype = series.cat.categories.dtype if isinstance(series.dtype, pd.CategoricalDtype) else series.dtype
    types = pd.api.types
    if types.is_bool_dtype(dtype):
        return "boolean"
    if types.is_integer_dtype(dtype):
        if series.hasnans:
            return "double"
        return "integer" if str(dtype).lower() in _SHORT else "long"
    if types.is_float_dtype(dtype):
        return "float" if str(dtype).lower() in ("float16", "float32") else "double"
    if isinstance(dtype, pd.StringDtype):
        return "string"
    present = series.dropna()
    if types.is_string_dtype(dtype) or types.is_object_dtype(dtype):
        if len(present) and all(isinstance(value, bool | np.bool_) for value in present):
            return "boolean"
        if all(isinstance(value, str) for value in present):
            return "string"
    raise InvalidConfig(
        f"input_example: column {name!r} has the type {dtype}, which an ONNX model cannot take; "
        "it takes numbers, booleans and strings"
    )
