"""Large infer requests in JSON, their numbers read without making a Python object of each; see `numbers.py`.

What is not plainly an infer request is left to `content.load_json` and the exact way: None.
Measured, 10,000 x 30 numbers as one tensor: FP32 in 6 MB 11 ms instead of 35 flat, 13 instead of 50 nested; INT64 in
2 MB 4 and 6 instead of 29 and 35.
"""

from typing import Any

import simdjson

from mlflow_deploy_plugin.runtime import Array
from mlflow_deploy_plugin.server.protocols.content import check_containers
from mlflow_deploy_plugin.server.protocols.numbers import LARGE_BYTES, entries_of, nested_shape, numbers_in
from mlflow_deploy_plugin.server.protocols.v2_tensors import MANY_TENSORS, kind_of

_BUFFERS = {"f": "d", "i": "i", "u": "u"}
"""What simdjson calls the numbers of a numpy kind. It refuses a fraction among integers, and anything else."""
_NOTHING = object()


def load_large(text: bytes) -> dict[str, Any] | None:
    """The document in `text`, in it the `data` of each tensor of numbers as an array: float64, int64 or uint64, flat
    or nested as they came. None: it is small, or not plainly an infer request.

    Raises:
        InvalidRequest: it holds more arrays and objects than are taken.
    """
    if len(text) < LARGE_BYTES or b"\\" in text:
        return None
    opened = check_containers(text)
    try:
        document = entries_of(simdjson.Parser().parse(text))
        given = document.pop("inputs")
        if len(given) > MANY_TENSORS:
            return None
        inputs, seen = [], 1
        for tensor in given:
            read = _tensor(tensor, opened)
            if read is None:
                return None
            inputs.append(read[0])
            seen += read[1]
        rest = {name: _plain(value) for name, value in document.items()}
        return {**rest, "inputs": inputs} if seen + _arrays_in(rest) == opened else None
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError):
        return None


def _tensor(value: Any, opened: int) -> tuple[dict[str, Any], int] | None:
    """A tensor's entries, and how many arrays are among them; None: something is odd."""
    entries = entries_of(value)
    data = entries.pop("data", _NOTHING)
    plain = {name: _plain(entry) for name, entry in entries.items()}
    arrays = _arrays_in(plain)
    if data is _NOTHING:
        return (plain, arrays) if plain else None
    if not isinstance(data, simdjson.Array):
        return None
    of_type = _BUFFERS.get(kind_of(plain["datatype"]))
    if of_type is None:
        texts = data.as_list()
        return {**plain, "data": texts}, arrays + _arrays_in([texts])
    found = nested_shape(data, opened)
    array: Array | None = numbers_in(data, found[0], of_type) if found else None
    return ({**plain, "data": array}, arrays + found[1]) if found and array is not None else None


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Array):
        return value.as_list()
    return value.as_dict() if isinstance(value, simdjson.Object) else value


def _arrays_in(value: Any) -> int:
    """How many arrays are within a container."""
    within = value.values() if isinstance(value, dict) else value
    if {list, dict}.isdisjoint(map(type, within)):
        return 0
    return sum(isinstance(one, list) + _arrays_in(one) for one in within if isinstance(one, list | dict))
