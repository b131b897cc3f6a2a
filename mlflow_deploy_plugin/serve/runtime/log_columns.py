"""Requests and answers as a table: the columns of the inference log and of a model's
reference sample.

Such a table has the signature's columns, then `prediction` (if `predict` returns one
value per row) and `output.NAME` for other outputs. Names with a leading underscore
belong to the log. Labels, keys and masks are compared as text.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

from mlflow_deploy_plugin.core.column_names import GUARD, OUTPUT_PREFIX, PREDICTION
from mlflow_deploy_plugin.core.errors import SchemaMismatch
from mlflow_deploy_plugin.serve.runtime.feeds import Array, object_array
from mlflow_deploy_plugin.serve.runtime.values import numpy_dtype, short_repr

if TYPE_CHECKING:
    from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema

_INTEGERS = range(-(2**63), 2**63)
_EXACT = range(-(2**53), 2**53)
_TRUTH = {"true": "1", "false": "0"}
_CAST_KINDS = {"f": "f", "i": "fiu", "u": "fiu", "b": "fiu"}
"""The numpy kinds that `cast_columns` converts to this kind: any numbers to integers,
but only floats to floats, so that integers stay integers.
"""


def to_log_columns(
    schema: "Schema",
    prediction: tuple[str, ...],
    feeds: Mapping[str, Array],
    outputs: Mapping[str, Array],
) -> dict[str, Array]:
    """Return the columns of a request by name, [N] each (tensors: [N, …]), in a stable
    order.
    """
    columns = schema.to_columns(feeds)
    for name, array in outputs.items():
        columns[output_column(prediction, name, array)] = array
    return columns


def output_column(prediction: tuple[str, ...], name: str, array: Array) -> str:
    """Return the log column of an output; `prediction` has the names of the outputs
    that `predict` returns.
    """
    if prediction == (name,) and array.ndim == 1:
        return PREDICTION
    return name if name == GUARD else OUTPUT_PREFIX + name


def only_answer_columns(prediction: tuple[str, ...]) -> set[str]:
    """Return the two columns that may contain the only output, depending on its shape;
    empty for several outputs.
    """
    if len(prediction) == 1:
        return {PREDICTION, OUTPUT_PREFIX + prediction[0]}
    return set()


def cast_columns(dtypes: Mapping[str, str], rows: Mapping[str, Array]) -> dict[str, Array]:
    """Return the rows with the numbers in the types of the signature. Fractions are
    rounded.

    A CSV file has only 64-bit numbers, and may have floats for integers and booleans.
    If the conversion would change an integer, the column remains unchanged, and a later
    check reports the column. Rows of the log must use `cast_columns_losslessly`.
    `dtypes` are numpy dtypes; a column that is not in `dtypes` remains unchanged.
    """
    cast = dict(rows)
    for name, values in rows.items():
        if name not in dtypes:
            continue
        dtype = numpy_dtype(dtypes[name])
        if values.dtype.kind not in _CAST_KINDS.get(dtype.kind, ""):
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            converted = values.astype(dtype)
        if dtype.kind == "f":
            is_same = np.array_equal(np.isfinite(converted), np.isfinite(values))
        else:
            is_same = np.array_equal(converted, values)
        if is_same:
            cast[name] = converted
    return cast


def cast_columns_losslessly(
    dtypes: Mapping[str, str], rows: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the rows, with a column in the type of the signature if this cast is
    lossless for every value.

    `dtypes` are numpy dtypes by column. Texts and columns that are not in `dtypes`
    remain unchanged.
    """
    cast = dict(rows)
    for name, values in rows.items():
        dtype = dtypes.get(name, "str")
        if dtype == "str" or values.dtype.kind == "O" or values.dtype == dtype:
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            converted = values.astype(dtype)
            back = converted.astype(values.dtype)
        is_same = np.array_equal(back, values, equal_nan=values.dtype.kind == "f")
        if is_same and _is_in_range(values, converted) and _is_in_range(converted, values):
            cast[name] = converted
    return cast


def _is_in_range(floats: Array, integers: Array) -> bool:
    """Return True if the floats are within the range of the integers' type.

    Casting back and forth would accept the first float above the range: the largest
    integers round to this float.
    """
    if floats.dtype.kind != "f" or integers.dtype.kind not in "iu":
        return True
    limits = np.iinfo(integers.dtype)
    return bool(((floats >= float(limits.min)) & (floats < float(limits.max) + 1.0)).all())


def as_key(value: object) -> str | None:
    """Return the text to compare a key by: `as_text` of the value, but 1 or 0 for a
    boolean in any spelling.

    The same boolean may be 1 in the log and True in a CSV file.
    """
    text = as_text(value)
    if text is not None and len(text) <= len("false"):
        return _TRUTH.get(text.lower(), text)
    return text


def as_text(value: object) -> str | None:
    """Return a label or key as text: 1 for 1.0, true for True, 0.1 for a float32's 0.1;
    None for NaN and None.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, np.float32):  # Its text is 0.1, but its item is 0.10000000149011612.
        return as_text(float(str(value)))
    if isinstance(value, np.generic):
        return as_text(value.item())
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if value.is_integer() and abs(value) < 2**63:
            return str(int(value))
        return repr(value)
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        if value.is_finite():
            return format(value.normalize(), "f")
        return as_text(float(value))
    return str(value)


def key_array(name: str, values: Sequence[object] | Array) -> Array:
    """Return an array of a key's values: numbers or booleans, or objects if a value is
    a text or missing.

    Values of mixed types become texts. Raises SchemaMismatch if a value is a list or an
    object.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "bif":
        return values
    cells: list[object] = (
        list(values) if isinstance(values, list | tuple) else np.asarray(values).tolist()
    )
    present = [value for value in cells if value is not None]
    kinds = set(map(type, present))
    integers = [value for value in present if type(value) is int]
    if kinds in ({float}, {float, int}) and all(value in _EXACT for value in integers):
        return np.array(cells, dtype=np.float64)  # None becomes NaN.
    if kinds == {bool} or (kinds == {int} and all(value in _INTEGERS for value in integers)):
        if len(present) == len(cells):
            return np.array(cells)
        return object_array(cells)
    if not kinds <= {str}:
        for row, value in enumerate(cells):
            if not isinstance(value, str | int | float | bool | None):
                reason = f"{short_repr(value)} is neither a text nor a number nor a boolean"
                raise SchemaMismatch(f"key {name!r}, row {row}: {reason}", column=name)
        cells = [as_text(value) for value in cells]
    return object_array(cells)
