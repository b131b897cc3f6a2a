"""numpy's file format (`application/x-npy`), as SageMaker's NumpySerializer writes and its NumpyDeserializer reads it.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. Nothing is unpickled, and nothing is allocated
for the shape in a header: it is compared with the bytes that came.
"""

import io
import re
from math import prod
from typing import Any

import numpy as np
from numpy.lib import format as npy

from mlflow_deploy_plugin.errors import InvalidRequest, SchemaMismatch
from mlflow_deploy_plugin.runtime import Array, Feeds, Schema

MEDIA_TYPES = ("application/x-npy",)

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}
"""The number of bytes of the header's length, by the format's version."""
_LONGEST_HEADER = 1_000
_NUMBERS = rb"[<>](?:f[248]|[iu][248])|\|(?:[iu]1|b1)"
_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>" + _NUMBERS + rb")', 'fortran_order': (?P<order>True|False), "
    rb"'shape': \((?P<shape>(?:[0-9]{1,12}, ){0,31}(?:[0-9]{1,12},?)?)\), \} *\n"
)
"""The header that np.save writes. numpy's own reader evaluates it as Python, and fails in a dozen ways."""


def decode(body: bytes, schema: Schema) -> Feeds:
    """Return the feeds in one array of numbers: [N, columns] in the signature's order, or the only tensor.

    Raises:
        InvalidRequest: the body is no array, or has another size than its header says.
        SchemaMismatch: the array does not fit the signature.
    """
    size = _LENGTH_BYTES.get(body[6:8], 0) if body.startswith(_MAGIC) else 0
    start = 8 + size + int.from_bytes(body[8 : 8 + size], "little")
    header = _HEADER.fullmatch(body[8 + size : start]) if size and start - size <= _LONGEST_HEADER else None
    if header is None:
        raise InvalidRequest("the body is not an array of numbers in numpy's format, as np.save writes it")
    shape = tuple(int(entry) for entry in header["shape"].decode().replace(" ", "").split(",") if entry)
    dtype: np.dtype[Any] = np.dtype(header["dtype"].decode())
    if len(body) - start != prod(shape) * dtype.itemsize:
        raise InvalidRequest(f"the array has {len(body) - start} bytes; its shape {list(shape)} says otherwise")
    array = np.frombuffer(body, dtype, offset=start).reshape(shape, order="F" if header["order"] == b"True" else "C")
    if dtype.kind == "b":
        array = array.view(np.uint8) != 0  # other bytes than 0 and 1 are no booleans to numpy
    array = array.astype(dtype.newbyteorder("="), copy=not array.flags.aligned)
    if not schema.columns:
        return schema.from_array(array)
    width = len(schema.names)
    table = array.reshape(-1, 1) if array.ndim == 1 and width == 1 else array
    if table.ndim != 2 or table.shape[1] != width:
        raise SchemaMismatch(f"the array has the shape {list(array.shape)}; [any, {width}] is expected, a column each")
    return schema.from_columns({name: table[:, position] for position, name in enumerate(schema.names)})


def encode(prediction: Array | dict[str, Array]) -> bytes:
    """Return the only output as an array; strings as numpy's fixed-width strings.

    Raises:
        SchemaMismatch: several outputs, or records: they have no form as one array.
    """
    if isinstance(prediction, dict) or any(isinstance(value, dict) for value in prediction.flat[:1]):
        raise SchemaMismatch("the outputs of this model are no single array; ask for application/json")
    sink = io.BytesIO()
    array = prediction.astype(np.str_) if prediction.dtype.kind == "O" else prediction
    npy.write_array(sink, np.asarray(array), allow_pickle=False)
    return sink.getvalue()
