"""Requests and answers as a table: the columns of the inference log and of a model's reference sample.

Both hold the signature's columns under their own names, then `prediction` (what `predict` answers, where that is one
value a row) and `output.NAME` for every other output, so that drift can lay one over the other. Names that begin with
an underscore are the log's own (`EVENT_TIME`, …).
"""

import math
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np

from mlflow_deploy_plugin.runtime.schema import Array, Schema

PREDICTION = "prediction"
OUTPUT_PREFIX = "output."
EVENT_TIME = "_event_time"


def to_log_columns(
    schema: Schema, prediction: tuple[str, ...], feeds: Mapping[str, Array], outputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Columns of [N] (tensors and outputs of higher rank: [N, …]) by name, in a stable order."""
    columns = schema.to_columns(feeds)
    for name, array in outputs.items():
        columns[output_column(prediction, name, array)] = array
    return columns


def output_column(prediction: tuple[str, ...], name: str, array: Array) -> str:
    """The column that an output of the graph is."""
    return PREDICTION if prediction == (name,) and array.ndim == 1 else OUTPUT_PREFIX + name


def cast_columns(dtypes: Mapping[str, str], rows: Mapping[str, Array]) -> dict[str, Array]:
    """The same rows, numbers in the types that the signature says, fractions rounded to them.

    A CSV file has all numbers in 64 bits, and old files of the log have whole numbers and booleans as the graph takes
    them. A whole number that would change stays as it is, to be refused by name. The log, which must not round, takes
    `in_signature_types`.

    Args:
        dtypes: numpy's, by column or tensor; those of others are left alone.
    """
    return {name: _cast(values, dtypes[name]) if name in dtypes else values for name, values in rows.items()}


def _cast(values: Array, wanted: str) -> Array:
    dtype = np.dtype("O" if wanted == "str" else wanted)
    # a whole number goes where any number goes, and is still known to be whole
    sources = {"f": "f", "i": "fiu", "u": "fiu", "b": "fiu"}.get(dtype.kind, "")
    if values.dtype.kind not in sources:
        return values
    with np.errstate(invalid="ignore", over="ignore"):
        cast = values.astype(dtype)
    if dtype.kind == "f":
        return cast if np.array_equal(np.isfinite(cast), np.isfinite(values)) else values
    return cast if np.array_equal(cast, values) else values


def cast_columns_losslessly(dtypes: Mapping[str, str], rows: Mapping[str, Array]) -> dict[str, Array]:
    """The same rows, each column in the type that the signature says, where every value goes there and back.

    Args:
        dtypes: numpy's, by column; those of others, and of texts, are left alone.
    """
    return {name: _cast_losslessly(values, dtypes[name]) if name in dtypes else values for name, values in rows.items()}


def _cast_losslessly(values: Array, wanted: str) -> Array:
    if wanted == "str" or values.dtype.kind == "O" or values.dtype == wanted:
        return values
    with np.errstate(invalid="ignore", over="ignore"):
        cast = values.astype(wanted)
        back = cast.astype(values.dtype)
    is_same = np.array_equal(back, values, equal_nan=values.dtype.kind == "f")
    return cast if is_same and _in_range(values, cast) and _in_range(cast, values) else values


def _in_range(floats: Array, integers: Array) -> bool:
    """Whether the floats are within the integers' type: the first beyond it may come back as itself, since the largest
    integers round to it, and processors clip or wrap around."""
    if floats.dtype.kind != "f" or integers.dtype.kind not in "iu":
        return True
    limits = np.iinfo(integers.dtype)
    return bool(((floats >= float(limits.min)) & (floats < float(limits.max) + 1.0)).all())


_TRUTH = {"true": "1", "false": "0"}


def as_key(value: Any) -> str | None:
    """What a key's value is compared as: `as_text`, of true and false in any spelling 1 and 0.

    A column of booleans stands in the log as booleans or as the numbers that the graph takes; a CSV file says True.
    """
    text = as_text(value)
    return _TRUTH.get(text.lower(), text) if text is not None and len(text) <= len("false") else text


def as_text(value: Any) -> str | None:
    """A label's or a key's value as text: 1 for 1.0, true for True, 0.1 for a float32's 0.1; None for NaN and None."""
    if value is None:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, np.generic):
        value = value.item() if value.dtype != np.float32 else float(str(value))  # 0.1, not 0.10000000149011612
        return as_text(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2**63 else repr(value)
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value.normalize(), "f") if value.is_finite() else as_text(float(value))
    return str(value)
