"""Large JSON bodies of numbers, read by simdjson without a Python object for each: of `/invocations` and of V2.

simdjson (https://simdjson.org, by `pysimdjson`) hands out all numbers of nested arrays as one buffer. It does not say
whether the arrays were ragged, and takes documents that Python reads otherwise (a key that stands twice). So every
function returns None for a body that is not plainly rows of numbers, and for each where simdjson is not installed; the
caller then reads it by `content.load_json`.

Measured, 10,000 x 30 numbers as float64 in 6 MB: a third of the time of orjson and numpy. As one V2 tensor: FP32 in
6 MB 11 ms instead of 35 flat, 13 instead of 50 nested; INT64 in 2 MB 4 and 6 instead of 29 and 35.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlflow_deploy_plugin.runtime import Array, Feeds, Schema, fits_shape
from mlflow_deploy_plugin.server.protocols.content import check_containers
from mlflow_deploy_plugin.server.protocols.v2_tensors import kind_of

try:
    import simdjson
except ImportError:  # it has no wheel for Python 3.14
    simdjson = None  # type: ignore[assignment]

LARGE_BYTES = 16 * 1024
"""Smaller bodies are read as fast by orjson."""

_EXACT = 2.0**53
"""The largest integer that a double holds exactly; the caller reads larger ones one by one."""
_MOST_ENTRIES = 16
_MOST_TENSORS = 1_000
_FLOATING = frozenset({"double", "float", "float16", "float32", "float64"})
"""The types of columns, and the dtypes of tensors, that take any number."""
_NOT_PLAIN = (ValueError, TypeError, RuntimeError, AttributeError, KeyError)
"""The errors of simdjson, and of the functions below, for a body that is not plainly rows of numbers."""


def read_large_feeds(body: bytes, schema: Schema) -> Feeds | None:
    """Return the feeds in a body of `/invocations`; None if it is small, or not plainly what the signature wants.

    Raises:
        InvalidRequest: it holds more arrays and objects than are taken.
        SchemaMismatch: a number is too large for the model's type.
    """
    if not simdjson or len(body) < LARGE_BYTES or b"\\" in body or len(schema.tensors) > 1:
        return None  # simdjson's keys keep their escapes, so that names would not be found
    if not {*(column.type for column in schema.columns), *(tensor.dtype for tensor in schema.tensors)} <= _FLOATING:
        return None
    opened = check_containers(body)
    try:
        ((field, value),) = object_entries(simdjson.Parser().parse(body)).items()
        if field == "dataframe_split":
            table = object_entries(value)
            names, rows = table.pop("columns").as_list(), table.pop("data")
            if table or not schema.columns or set(map(type, names)) != {str}:
                return None
            return _feeds_of_columns(schema, names, _exact_numbers(rows, opened - 1))
        if field not in ("inputs", "instances"):
            return None
        array = _exact_numbers(value, opened)
        if schema.columns:
            return _feeds_of_columns(schema, schema.names, array)
        return schema.from_array(array) if fits_shape(schema.tensors[0].shape, array.shape) else None
    except _NOT_PLAIN:
        return None


def _exact_numbers(value: Any, opened: int) -> Array:
    """Return the numbers of nested arrays. Raises ValueError if one may be inexact, or is not in these arrays."""
    array, seen = numbers_of(value, opened)
    if seen != opened or np.abs(array).max() > _EXACT:
        raise ValueError
    return array


def _feeds_of_columns(schema: Schema, names: Sequence[str], rows: Array) -> Feeds | None:
    positions = {name: position for position, name in enumerate(names)}
    if rows.shape[1:] != (len(names),) or len(positions) != len(names):
        return None
    if [*names] != [*schema.names]:
        rows = rows[:, [positions[name] for name in schema.names]]
    return schema.from_array(rows)


def load_infer_request(text: bytes) -> dict[str, Any] | None:
    """Return a V2 infer request, the `data` of each tensor of numbers as an array; None if it is small or not plain.

    The arrays are float64, int64 or uint64, flat or nested as they came.

    Raises:
        InvalidRequest: it holds more arrays and objects than are taken.
    """
    if not simdjson or len(text) < LARGE_BYTES or b"\\" in text:
        return None
    opened = check_containers(text)
    try:
        document = object_entries(simdjson.Parser().parse(text))
        given = document.pop("inputs")
        if len(given) > _MOST_TENSORS:
            return None
        inputs, seen = [], 1
        for tensor in given:
            entries, arrays = _read_tensor(tensor, opened)
            inputs.append(entries)
            seen += arrays
        rest = {name: _plain(value) for name, value in document.items()}
        return {**rest, "inputs": inputs} if seen + _count_arrays(rest) == opened else None
    except _NOT_PLAIN:
        return None


def _read_tensor(value: Any, opened: int) -> tuple[dict[str, Any], int]:
    """Return a tensor's entries, and the number of arrays among them; `data` may be missing."""
    entries = object_entries(value)
    has_data, data = "data" in entries, entries.pop("data", None)
    plain = {name: _plain(entry) for name, entry in entries.items()}
    arrays = _count_arrays(plain)
    if not has_data:
        return plain, arrays
    kind = kind_of(plain["datatype"])
    if kind not in ("f", "i", "u"):
        texts = data.as_list()
        return {**plain, "data": texts}, arrays + _count_arrays([texts])
    array, seen = numbers_of(data, opened, kind)
    return {**plain, "data": array}, arrays + seen


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Array):
        return value.as_list()
    return value.as_dict() if isinstance(value, simdjson.Object) else value


def _count_arrays(value: Any) -> int:
    """Return the number of arrays within a container."""
    within = value.values() if isinstance(value, dict) else value
    if {list, dict}.isdisjoint(map(type, within)):
        return 0
    return sum(isinstance(one, list) + _count_arrays(one) for one in within if isinstance(one, list | dict))


def object_entries(value: Any) -> dict[str, Any]:
    """Return an object's entries. Its arrays and objects are not read yet.

    simdjson looks a key up among all of them, one after the other: 100,000 (1.1 MB) took half a minute.

    Raises:
        ValueError: a key stands twice, or there are more entries than any document has that is read here, or none.
    """
    keys = list(value.keys()) if len(value) <= _MOST_ENTRIES else []
    if not keys or len(set(keys)) != len(keys):
        raise ValueError
    return {key: value[key] for key in keys}


def numbers_of(value: Any, at_most: int, kind: str = "f") -> tuple[Array, int]:
    """Return the numbers of nested arrays, and the number of these arrays.

    simdjson flattens an array that stands among the numbers. Then the body opens more arrays than that: the caller
    compares.

    Args:
        at_most: the arrays that the body opens.
        kind: numpy's, `f` for float64, `i` for int64, `u` for uint64. Integers take no fraction.

    Raises:
        ValueError: there are more than `at_most` arrays, or they are ragged.
        TypeError: an element is not of this type.
    """
    level, shape, seen = [value], [len(value)], 1
    while shape[-1] and isinstance(level[0][0], simdjson.Array):
        if seen + len(level) * shape[-1] > at_most:
            raise ValueError
        level = [child for array in level for child in array]
        if set(map(type, level)) != {simdjson.Array} or len(set(map(len, level))) != 1:
            raise ValueError
        shape.append(len(level[0]))
        seen += len(level)
    numbers = value.as_buffer(of_type="d" if kind == "f" else kind)
    return np.frombuffer(numbers, dtype=f"{kind}8").reshape(shape), seen
