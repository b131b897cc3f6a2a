"""Checks of values, and their conversion into a column or a tensor of the signature's
type.

The rules follow MLflow's signature enforcement: floating-point columns accept integers.
In lists, integer columns accept numbers such as 20.0. Any other type is an error, whose
message has the column, the row and the value.
"""

import reprlib
from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import chain
from typing import Any

import numpy as np

from mlflow_deploy_plugin.core.errors import SchemaMismatch
from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Tensor
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Dtype, object_array

LISTS = frozenset({list, tuple})
NO_ROWS = "the data has no rows; at least one is needed"

_EXPECTED = {"f": "a number", "i": "an integer", "b": "true or false", "s": "a string"}
_ACCEPTED = {"f": frozenset("fi"), "i": frozenset("i"), "b": frozenset("b"), "s": frozenset("s")}
_KINDS = {"f": "f", "i": "i", "u": "i", "b": "b", "O": "s"}
"""The kind of value for each numpy kind. Strings are in object arrays."""
_SOURCES = {"f": "fiu", "i": "iu", "u": "iu", "b": "b", "O": "OUT"}
"""The numpy kinds of arrays that can be converted to an array of this kind."""

_SHOWN = reprlib.Repr()
_SHOWN.maxlevel = 3
_SHOWN.maxlist = 4
_SHOWN.maxdict = 4
_SHOWN.maxstring = 60
_SHOWN.maxother = 60
_SHOWN.maxlong = 60


class Missing(Enum):
    """Specifies that a missing string stays None instead of becoming a replacement
    text.
    """

    KEPT = None


def numpy_dtype(dtype: str) -> Dtype:
    """Return the numpy dtype for a dtype of a signature or a graph. Strings are Python
    objects.
    """
    if dtype == "str":
        return np.dtype(object)
    return np.dtype(dtype)


def is_lossless_cast(wide: Dtype, values: Dtype) -> bool:
    """Return True if a cast preserves every value. numpy wrongly considers int64 to
    float64 a safe cast.
    """
    is_rounded = values.kind in "iu" and values.itemsize == 8 and wide.kind == "f"
    return np.can_cast(values, wide) and not is_rounded


def fits_shape(expected: Sequence[int], shape: Sequence[int]) -> bool:
    """Return True if an array of this shape fits the `expected` shape, in which -1
    means any size.
    """
    return len(expected) == len(shape) and all(
        a in (-1, b) for a, b in zip(expected, shape, strict=True)
    )


def short_repr(value: object) -> str:
    """Return a short text of a value for an error message: JSON words, limited length
    and depth.
    """
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    return _SHOWN.repr(value)


def too_many_values(most: int) -> str:
    return (
        f"the answer has more than {most} values, which is the server's limit: send fewer rows or "
        "smaller rows (a larger server.max_body_bytes allows more)"
    )


def convert_column(
    column: Column, values: Sequence[object] | Array, missing: str | Missing | None
) -> Array:
    """Return the values of one column as an array of [N] in the column's type.

    `missing` is the text that replaces a missing string. `Missing.KEPT` keeps the
    string None; None raises the error. Raises SchemaMismatch if a value has another
    type, is out of range, or is missing in a type without missing values.
    """
    dtype = numpy_dtype(COLUMN_TYPES[column.type])
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        if dtype.kind == "O" or values.dtype.kind not in _SOURCES[dtype.kind]:
            column_note = ""
            if values.dtype.kind == "f":
                column_note = f", and the whole column is {values.dtype}"
            raise _mistyped(column, 0, values[0].item(), column_note)
        if dtype.kind == "i" and not np.can_cast(values.dtype, dtype):
            limits = np.iinfo(dtype)
            outside = np.flatnonzero((values < limits.min) | (values > limits.max))
            if len(outside):
                raise _unfit(column, int(outside[0]), values[outside[0]].item())
        try:
            return values.astype(dtype, copy=False)
        except FloatingPointError:
            is_outside = np.isfinite(values) & (np.abs(values) > np.finfo(dtype).max)
            row = int(np.flatnonzero(is_outside)[0])
            raise _unfit(column, row, values[row].item()) from None
    listed: Sequence[object] = values.tolist() if isinstance(values, np.ndarray) else values
    if dtype.kind != "O":
        return _convert_numbers(column, listed, dtype)
    if set(map(type, listed)) == {str}:  # Check the usual case first, which is ten times as fast.
        if isinstance(values, np.ndarray):
            return values.astype(object, copy=False)
        return object_array(listed)
    strings = np.empty(len(listed), dtype=object)
    for row, value in enumerate(listed):
        if isinstance(value, str):
            strings[row] = value
        # A missing string is NaN in a frame.
        elif missing is not None and (
            value is None or (not isinstance(value, np.ndarray) and value != value)
        ):
            strings[row] = missing.value if isinstance(missing, Missing) else missing
        else:
            raise _mistyped(column, row, value)
    return strings


def convert_tensor(tensor: Tensor, values: object) -> Array:
    """Return one tensor in the dtype and shape of the signature. In a floating-point
    tensor, null becomes NaN.

    Raises SchemaMismatch if the value is ragged, has another type or shape, or has a
    number that is out of range.
    """
    label = tensor_label(tensor.name)
    dtype = numpy_dtype(tensor.dtype)
    if not isinstance(values, np.ndarray):
        _check_nesting(label, tensor, values)
    array = _as_array(label, values, dtype)
    if dtype.kind in "iu" and array.dtype.kind == "f" and not isinstance(values, np.ndarray):
        # numpy converts integers to floats if one number is a fraction, or beyond
        # int64.
        # Above 2**53, a float may be another number than the integer.
        limits = np.iinfo(dtype)
        low = max(limits.min, 1 - 2**53)
        high = min(limits.max, 2**53 - 1)
        if ((array == np.trunc(array)) & (array >= low) & (array <= high)).all():
            array = array.astype(dtype)
        elif all(_kind_of(type(value)) == "i" for value in np.array(values, dtype=object).flat):
            try:
                array = np.array(values, dtype=dtype)
            except OverflowError:
                raise SchemaMismatch(f"{label} has a number that does not fit {dtype}") from None
    if not fits_shape(tensor.shape, array.shape):
        if array.shape[:1] == (0,):
            raise SchemaMismatch(NO_ROWS)
        raise SchemaMismatch(
            f"{label} has the shape {shape_text(array.shape)}; {shape_text(tensor.shape)} is "
            "expected"
        )
    if array.size and array.dtype.kind not in _SOURCES[dtype.kind]:
        raise SchemaMismatch(
            f"{label} has {_kind_words(array.dtype.kind)}, but {tensor.dtype} is expected"
        )
    converted = cast_tensor(tensor.name, array, tensor.dtype)
    if dtype.kind in "iu" and converted is not array and not np.array_equal(array, converted):
        raise SchemaMismatch(f"{label} has a number that does not fit {tensor.dtype}")
    return converted


def cast_tensor(name: str, array: Array, dtype: str) -> Array:
    """Return the array in this dtype. Raises SchemaMismatch on overflow, if numpy's
    `errstate` raises errors.
    """
    try:
        return array.astype(numpy_dtype(dtype), copy=False)
    except FloatingPointError:
        raise SchemaMismatch(
            f"{tensor_label(name)} has a number that does not fit {dtype}"
        ) from None


def tensor_label(name: str) -> str:
    """Return the name of a tensor for an error message. The only tensor of a signature
    may be unnamed.
    """
    return f"tensor {name!r}" if name else "the tensor"


def overflow_error(arrays: Mapping[str, Array]) -> SchemaMismatch:
    """Return an error about the first number that became infinite in a 32-bit input of
    the graph.
    """
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            rows = np.flatnonzero(np.isfinite(array) & (np.abs(array) > np.finfo(np.float32).max))
            if len(rows):
                value = array[rows[0]].item()
                reason = f"{value!r} is too large for the model's 32-bit input"
                return SchemaMismatch(f"column {name!r}, row {rows[0]}: {reason}", column=name)
    return SchemaMismatch("a number is too large for the model's floating-point type")


def _check_nesting(label: str, tensor: Tensor, values: object) -> None:
    """Refuse values for which numpy would allocate gigabytes, because numpy pads every
    number to the longest text.
    """
    level: Sequence[Any] = [values]
    is_ragged = False
    for _ in range(len(tensor.shape) + 1):
        kinds = set(map(type, level))
        if str in kinds and tensor.dtype != "str":
            raise SchemaMismatch(f"{label} has {_kind_words('U')}, but {tensor.dtype} is expected")
        if kinds.isdisjoint(LISTS):
            break
        is_ragged = is_ragged or not kinds <= LISTS or len(set(map(len, level))) > 1
        if is_ragged:
            level = [value for value in level if type(value) in LISTS]
        level = list(chain.from_iterable(level))
    if is_ragged or not kinds.isdisjoint(LISTS):
        expected = shape_text(tensor.shape)
        raise SchemaMismatch(
            f"{label} is ragged or nested too deeply: the shape {expected} is expected"
        )


def _as_array(label: str, values: object, dtype: Dtype) -> Array:
    """Return numpy's array for the values: objects for texts, and NaN for null if
    `dtype` is floating-point.
    """
    try:
        if dtype.kind == "O":
            texts = np.array(values, dtype=object)
            for value in texts.flat:
                if not isinstance(value, str):
                    raise SchemaMismatch(
                        f"{label} has {short_repr(value)}, but a string is expected"
                    )
            return texts
        array = np.asarray(values)
    except (ValueError, OverflowError):
        raise SchemaMismatch(
            f"{label} is ragged or nested too deeply: all rows must have the same shape"
        ) from None
    if array.dtype.kind != "O" or dtype.kind != "f":
        return array
    if any(_kind_of(kind) not in "fin" for kind in set(map(type, array.flat))):
        raise SchemaMismatch(f"{label} is ragged or has a value that is not a number")
    try:
        return array.astype(np.float64)  # numpy converts None to NaN.
    except OverflowError:
        raise SchemaMismatch(f"{label} has a number that does not fit {dtype}") from None


def _kind_of(kind: type) -> str:
    """Return the kind of a value's type: f, i, b or s, n for None, and ? for any other
    type.
    """
    if issubclass(kind, bool | np.bool_):
        return "b"
    if issubclass(kind, int | np.integer):
        return "i"
    if issubclass(kind, float | np.floating):
        return "f"
    if issubclass(kind, str):
        return "s"
    return "n" if kind is type(None) else "?"


def _convert_numbers(column: Column, values: Sequence[Any], dtype: Dtype) -> Array:
    """Convert a list of numbers or booleans. In a floating-point column, null becomes
    NaN. The error is about the first value that has another type or is out of range.
    """
    accepted = _ACCEPTED[_KINDS[dtype.kind]]
    kinds = _kinds_of(values)
    if dtype.kind == "f":
        accepted |= {"n"}  # numpy converts None to NaN.
    elif dtype.kind == "i" and "f" in kinds:
        # Above 2**53, a float may have been another integer, such as a JSON integer
        # beyond 64 bits.
        values = [
            int(value) if _is_whole_float(value) and abs(value) < 2**53 else value
            for value in values
        ]
        kinds = _kinds_of(values)
    if not kinds <= accepted:
        row, value = next(
            (row, value)
            for row, value in enumerate(values)
            if _kind_of(type(value)) not in accepted
        )
        if dtype.kind == "i" and _is_whole_float(value):
            raise _unfit(column, row, value)
        raise _mistyped(column, row, value)
    try:
        return np.array(values, dtype=dtype)
    except (OverflowError, FloatingPointError):
        for row, value in enumerate(values):
            try:
                np.array(value, dtype=dtype)
            except (OverflowError, FloatingPointError):
                raise _unfit(column, row, value) from None
        raise


def _is_whole_float(value: Any) -> bool:
    return _kind_of(type(value)) == "f" and float(value).is_integer()


def _kinds_of(values: Sequence[object]) -> set[str]:
    return set(map(_kind_of, set(map(type, values))))


def _mistyped(column: Column, row: int, value: object, column_note: str = "") -> SchemaMismatch:
    """Return the error about a value of the wrong type. `column_note` follows the type
    that is expected.
    """
    expected = _EXPECTED[_KINDS[numpy_dtype(COLUMN_TYPES[column.type]).kind]]
    label = f"column {column.name!r} ({column.type}), row {row}"
    return SchemaMismatch(
        f"{label}: {short_repr(value)}; {expected} is expected{column_note}", column=column.name
    )


def _unfit(column: Column, row: int, value: object) -> SchemaMismatch:
    """Return the error about a number that is out of range."""
    label = f"column {column.name!r}, row {row}"
    return SchemaMismatch(
        f"{label}: {short_repr(value)} does not fit the type {column.type}", column=column.name
    )


def _kind_words(kind: str) -> str:
    """Return the words for the values of a numpy kind in an error message."""
    names = {
        "f": "numbers with fractions",
        "i": "integers",
        "u": "integers",
        "b": "booleans",
        "U": "strings",
    }
    return names.get(kind, "null, or a mixture of types")


def shape_text(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)).replace("-1", "any") + "]"
