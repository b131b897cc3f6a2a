"""Batches: model inputs as a DataFrame or as named tensors, and the two ways they are handed on.

A `Batch` is what the original model understands. `feed` turns it into the feeds of the graph through the compiled
signature of the saved model, exactly as the pyfunc flavor does it and as the server does it for requests.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.runtime.artifact import Column, ColumnType, Tensor
from mlflow_deploy_plugin.runtime.schema import Array, Feeds, Schema

Batch: TypeAlias = pd.DataFrame | dict[str, Array]
"""N rows: a table, or tensors [N, …] by name (the only tensor may have the empty name)."""


def rows(batch: Batch) -> int:
    return len(batch) if isinstance(batch, pd.DataFrame) else len(next(iter(batch.values())))


def take(batch: Batch, positions: Any) -> Batch:
    """The rows at `positions` (indices, a slice or a boolean mask)."""
    if isinstance(batch, pd.DataFrame):
        return batch.iloc[positions]
    return {name: array[positions] for name, array in batch.items()}


def concatenate(batches: list[Batch]) -> Batch:
    """The rows of all, in order; columns and dtypes are those of the first."""
    first = batches[0]
    if isinstance(first, pd.DataFrame):
        tables = [pd.DataFrame(batch)[list(first.columns)].astype(first.dtypes.to_dict()) for batch in batches]
        return pd.concat(tables, ignore_index=True)
    tensors: list[dict[str, Array]] = [batch for batch in batches if isinstance(batch, dict)]
    return {name: np.concatenate([batch[name] for batch in tensors]) for name in first}


def chunks(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, rows(batch), size):
        yield take(batch, slice(start, start + size))


def nudged(batch: Batch, toward: float) -> Batch:
    """The batch with every floating-point number rounded to 32 bits and moved one step of those toward `toward`."""
    if isinstance(batch, pd.DataFrame):
        moved = {name: _step(batch[name].to_numpy(), toward) for name in batch.columns if _is_float(batch[name])}
        return batch.assign(**{str(name): values for name, values in moved.items()})
    return {name: _step(array, toward) if array.dtype.kind == "f" else array for name, array in batch.items()}


def _step(values: Array, toward: float) -> Array:
    return np.nextafter(values.astype(np.float32), np.float32(toward)).astype(values.dtype)


def _is_float(series: "pd.Series[Any]") -> bool:
    return isinstance(series.dtype, np.dtype) and series.dtype.kind == "f"


def feed(schema: Schema, batch: Batch) -> Feeds:
    """The feeds of the graph.

    Raises:
        SchemaMismatch: the batch does not fit the signature.
    """
    if isinstance(batch, pd.DataFrame):
        return schema.from_columns({str(name): column_values(batch[name]) for name in batch.columns})
    return schema.from_columns(batch)


def column_values(series: "pd.Series[Any]") -> Array:
    """One column as the schema reads it: numbers as they are, text as objects, missing values as NaN or None."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(series.cat.categories.dtype) if not series.hasnans else series.astype(object)
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "fiub":
        return series.to_numpy()
    if pd.api.types.is_float_dtype(series.dtype) or (
        pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype) and series.hasnans
    ):
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    values = series.to_numpy(dtype=object)
    return np.where(pd.isna(values), None, values) if series.hasnans else values


def columns_of(table: pd.DataFrame) -> tuple[Column, ...]:
    """The signature's columns for a table: names, order, MLflow types.

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
        return "integer" if dtype.itemsize < 4 or str(dtype).lower() == "int32" else "long"
    if types.is_float_dtype(dtype):
        return "float" if dtype.itemsize < 8 else "double"
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
