"""The header, the data (in JSON or Triton's binary form) and the array of a single V2
tensor.

Shapes do not cause memory to be allocated: a shape is only compared with the number of
elements.
"""

import base64
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from mlflow_deploy_plugin.core.errors import SchemaMismatch
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Dtype
from mlflow_deploy_plugin.serve.runtime.values import short_repr

MAX_RANK = 32
"""The maximum number of dimensions of a tensor; multiplying a million sizes would take
hours.
"""

MAX_EMPTY_TENSOR_SIZE = 65_536
"""The largest product of an empty tensor's sizes other than 0; a sum over zero rows
returns as many elements.
"""

_DTYPES: dict[str, Dtype] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
DATATYPES = tuple(_DTYPES)
_DATATYPE_OF_DTYPE = {dtype: name for name, dtype in _DTYPES.items()}
_DATATYPES = {dtype.name: name for name, dtype in _DTYPES.items()} | {"str": "BYTES"}

_JSON_TYPES: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float, type(None)}),
    "O": frozenset({str, type(None)}),
}
"""The Python types that JSON elements may have, per numpy kind; a null is NaN, or a
missing string.
"""

_ACCEPTED_KINDS = {
    "b": "b",
    "i": "iu",
    "u": "iu",
    "f": "iuf",
    "O": "O",
}
"""The numpy kinds that an input of each kind accepts; integers are converted to
floating point.
"""
_ACCEPTED = frozenset(
    (datatype, dtype)
    for datatype, dtype in product(_DTYPES, _DATATYPES)
    if _DTYPES[datatype].kind in _ACCEPTED_KINDS[_DTYPES[_DATATYPES[dtype]].kind]
)
"""Pairs of a datatype and the numpy dtype of an input that accepts it."""

_LENGTH = struct.Struct("<I")


class TensorHeader(NamedTuple):
    """The name, shape and datatype of a tensor. A frozen dataclass would take three
    times as long to create.

    `content_type` is the parameter with which MLServer's codecs specify the meaning of
    the elements.
    """

    name: str
    shape: tuple[int, ...]
    datatype: str
    content_type: object = None

    def __str__(self) -> str:
        return f"tensor {self.name[:100]!r} ({self.datatype}, shape {list(self.shape)})"

    def mismatch(self, fault: str) -> SchemaMismatch:
        """Return an error about this tensor; the message begins with the tensor's
        description.
        """
        return SchemaMismatch(f"{self}{fault}", column=self.name)


def datatype_of(dtype: str) -> str:
    """Return V2's datatype for a numpy dtype (`str`: strings), or an empty string if V2
    has no datatype for it.
    """
    return _DATATYPES.get(dtype, "")


def array_datatype(array: Array) -> str:
    """Return V2's datatype for an array. The lookup by dtype avoids `dtype.name`, which
    takes 1.7 µs.
    """
    return _DATATYPE_OF_DTYPE.get(array.dtype) or datatype_of(array.dtype.name)


def dtype_of(datatype: str) -> Dtype:
    """Return the numpy dtype of a V2 datatype, which `read_tensor_header` has
    checked.
    """
    return _DTYPES[datatype]


def kind_of(datatype: object) -> str:
    """Return the numpy kind of a V2 datatype, or an empty string for any other
    value.
    """
    if isinstance(datatype, str) and datatype in _DTYPES:
        return _DTYPES[datatype].kind
    return ""


def check_datatype(head: TensorHeader, dtype: str) -> None:
    """Raise SchemaMismatch unless an input with this numpy dtype accepts the tensor's
    datatype.
    """
    if (head.datatype, dtype) not in _ACCEPTED:
        raise head.mismatch(f" is of the wrong datatype; {datatype_of(dtype)} is expected")


def read_tensor_header(position: int, entry: object) -> TensorHeader:
    """Return the header of the tensor at this position of `inputs`. Raises
    SchemaMismatch if the name, shape or datatype is missing or invalid.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise SchemaMismatch(
            f"inputs[{position}] is {short_repr(entry)}; an object with name, shape, datatype is "
            "expected",
        )
    name = entry["name"]
    shape = entry.get("shape")
    datatype = entry.get("datatype")
    if not isinstance(shape, list) or [
        size for size in shape if type(size) is not int or not 0 <= size < 2**63
    ]:
        raise _header_error(name, f"the shape {short_repr(shape)}; an array of sizes is expected")
    if len(shape) > MAX_RANK:
        raise _header_error(name, f"{len(shape)} dimensions; at most {MAX_RANK} are allowed")
    if not isinstance(datatype, str) or datatype not in _DTYPES:
        raise _header_error(
            name,
            f"the datatype {short_repr(datatype)}; the datatypes are {', '.join(DATATYPES)}",
        )
    parameters = entry.get("parameters")
    content_type = parameters.get("content_type") if isinstance(parameters, dict) else None
    head = TensorHeader(name, tuple(shape), datatype, content_type)
    if 0 in shape and prod(size for size in shape if size) > MAX_EMPTY_TENSOR_SIZE:
        raise head.mismatch(
            f" is empty, and the product of its other sizes exceeds {MAX_EMPTY_TENSOR_SIZE}",
        )
    return head


def _header_error(name: str, fault: str) -> SchemaMismatch:
    return SchemaMismatch(f"tensor {name[:100]!r} has {fault}", column=name)


def from_json(head: TensorHeader, data: object) -> Array:
    """Return the array of a tensor whose elements are a JSON array, flat in row-major
    order or nested as the shape.

    `data` is a list, or an array of `large_json.load_infer_request`. Raises
    SchemaMismatch if the number of elements does not match the shape, or an element
    does not fit the datatype. The caller must set `errstate(over="raise")`, because
    otherwise an overflow does not raise.
    """
    dtype = _DTYPES[head.datatype]
    values: Array | Sequence[object]
    if isinstance(data, np.ndarray):
        if data.shape not in (head.shape, (prod(head.shape),)):
            raise head.mismatch(f" has elements of the shape {list(data.shape)}")
        limits = np.iinfo(dtype) if dtype.kind in "iu" and data.size else None
        if limits and (data.min() < limits.min or data.max() > limits.max):
            raise head.mismatch(f" contains a number that does not fit {head.datatype}")
        values = data
    elif isinstance(data, list):
        values = data
        types = set(map(type, data))
        if list in types:
            level: list[Any] = [data]
            for size in head.shape:
                if level and (set(map(type, level)) != {list} or set(map(len, level)) != {size}):
                    raise head.mismatch(" is ragged, or is not nested as its shape")
                level = list(chain.from_iterable(level))
            values = level
            types = set(map(type, values))
        _check_count(head, len(values))
        if not types <= _JSON_TYPES[dtype.kind]:
            index = next(
                i for i, value in enumerate(values) if type(value) not in _JSON_TYPES[dtype.kind]
            )
            raise head.mismatch(
                f": element {index} is {short_repr(values[index])}, which is not {head.datatype}",
            )
    else:
        raise head.mismatch(f" has the data {short_repr(data)}; an array is expected")
    try:
        array = np.asarray(values, dtype)
    except (OverflowError, FloatingPointError):
        raise head.mismatch(f" contains a number that does not fit {head.datatype}") from None
    if array.shape == head.shape:
        return array
    return array.reshape(head.shape)


def from_binary(head: TensorHeader, data: memoryview, is_binary: bool = False) -> Array:
    """Return the array of a tensor from little-endian bytes. A string is preceded by
    its length in 4 bytes.

    With `is_binary`, strings are returned as base64. Raises SchemaMismatch if the
    number of bytes does not match the shape, or a string is truncated or not UTF-8.
    """
    dtype = _DTYPES[head.datatype]
    if dtype.kind == "O":
        return from_texts(head, _split_strings(head, data), is_binary)
    expected_bytes = prod(head.shape) * dtype.itemsize
    if len(data) != expected_bytes:
        raise head.mismatch(f" has {len(data)} bytes of data; its shape requires {expected_bytes}")
    if dtype.kind == "b":
        return np.frombuffer(data, np.uint8).reshape(head.shape).astype(np.bool_)
    if expected_bytes:
        array = np.frombuffer(data, dtype).reshape(head.shape)
    else:
        array = np.empty(head.shape, dtype)
    return array if array.flags.aligned else array.copy()


def _split_strings(head: TensorHeader, data: memoryview) -> Iterator[memoryview]:
    """Yield strings that are each preceded by their length in 4 bytes. Raises
    SchemaMismatch if a string is truncated.
    """
    start = 0
    end = len(data)
    count = 0
    while start < end:
        text = start + _LENGTH.size
        length = _LENGTH.unpack_from(data, start)[0] if text <= end else end
        start = text + length
        if start > end:
            raise head.mismatch(f": the data ends within element {count}")
        yield data[text:start]
        count += 1


def from_texts(
    head: TensorHeader,
    elements: Iterable[bytes | memoryview],
    is_binary: bool,
) -> Array:
    """Return the array of a tensor of strings, as base64 if `is_binary`. Raises
    SchemaMismatch if a string is not UTF-8, or their number does not match the shape.
    """
    texts: list[str] = []
    for element in elements:
        if is_binary:
            texts.append(base64.b64encode(element).decode())
            continue
        try:
            texts.append(str(element, "utf-8"))
        except UnicodeDecodeError:
            raise head.mismatch(f": element {len(texts)} is not valid UTF-8") from None
    _check_count(head, len(texts))
    return np.array(texts, dtype=object).reshape(head.shape)


def to_binary(array: Array) -> bytes:
    """Return the elements of an array as little-endian bytes; each string is preceded
    by its length in 4 bytes.
    """
    if array.dtype.kind != "O":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    parts = []
    for value in array.flat:
        text = value if isinstance(value, bytes) else str(value).encode()
        parts += [_LENGTH.pack(len(text)), text]
    return b"".join(parts)


def _check_count(head: TensorHeader, count: int) -> None:
    if prod(head.shape) != count:
        raise head.mismatch(f" has {count} elements; its shape requires {prod(head.shape)}")
