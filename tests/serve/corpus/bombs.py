"""Small bodies that would take much more memory than their size, and the memory that
reading each body may take.
"""

import io
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.grpc import inference_pb2 as messages
from mlflow_deploy_plugin.serve.grpc import tensors
from mlflow_deploy_plugin.serve.protocols import (
    arrow,
    feedback,
    jsonlines,
    mlflow,
    tfserving,
)
from mlflow_deploy_plugin.serve.protocols.content import JSON
from mlflow_deploy_plugin.serve.runtime.artifact import ColumnType
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from tests.support.schemas import columns_schema, tensor_schema

LIMIT = 16 * 1024 * 1024
"""The default of `server.max_body_bytes`."""

CSV = "text/csv"
LINES = "application/jsonl"
GRPC = "application/grpc"
_ARTIFACT: Any = SimpleNamespace(outputs=())


@dataclass(frozen=True)
class Bomb:
    """A body, its content type, and the name of its model.

    Attributes:
        most_mib: the memory that reading the body may take in addition to the body.
    """

    media: str
    schema: Schema
    body: Callable[[], bytes]
    most_mib: int = 96


DOUBLE: ColumnType = "double"


def _stream(
    batches: Callable[[], list[Any]], compression: str | None = "zstd"
) -> Callable[[], bytes]:
    def body() -> bytes:
        sink = io.BytesIO()
        written = batches()
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(sink, written[0].schema, options=options) as writer:
            for batch in written:
                writer.write_batch(batch)
        return sink.getvalue()

    return body


def _word(rows: int, characters: int) -> Any:
    words = pa.array(["x" * characters])
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), words)


def _batches_of_words(count: int, rows: int, characters: int) -> Callable[[], list[Any]]:
    return lambda: [pa.record_batch({"x": _word(rows, characters)})] * count


def _views(count: int) -> list[Any]:
    """Batches whose texts all refer to the same piece of one buffer."""
    data = b"x" * 60_000
    views = np.zeros((250, 4), "<i4")
    views[:, 0] = len(data)
    views[:, 1] = int.from_bytes(b"xxxx", "little")
    buffers = [None, pa.py_buffer(views.tobytes()), pa.py_buffer(data)]
    column = pa.Array.from_buffers(pa.string_view(), len(views), buffers)
    return [pa.record_batch({"x": column})] * count


def _filled(
    piece: bytes, before: bytes = b"", after: bytes = b"", by: bytes = b","
) -> Callable[[], bytes]:
    return lambda: before + by.join([piece] * ((LIMIT - 100) // len(piece + by))) + after


def _keys(count: int) -> bytes:
    return b",".join(b'"c%d":1' % number for number in range(count))


NUMBER = columns_schema(x="double")
TEXT = columns_schema(x="string")
MATRIX = tensor_schema("float32", -1, 3)
JSON_MIB = 450
"""The limit for 16 MiB of JSON or CSV as Python objects: a million containers of 232
bytes, and small values.
"""

_INPUTS = b'{"inputs":['
_INSTANCES = b'{"instances":['


def _called(**fields: Any) -> Callable[[], bytes]:
    return lambda: messages.ModelInferRequest(**fields).SerializeToString() * 8_000_000


BOMBS: dict[str, Bomb] = {
    "Arrow: buffers that unpack": Bomb(
        arrow.STREAM, NUMBER, _stream(lambda: [pa.record_batch({"x": np.zeros(30_000_000)})])
    ),
    "Arrow: a text in every row of many batches": Bomb(
        arrow.STREAM, TEXT, _stream(_batches_of_words(900, 160, 100_000))
    ),
    "Arrow: views of one text": Bomb(arrow.STREAM, TEXT, _stream(lambda: _views(230), None)),
    "Arrow: nulls": Bomb(
        arrow.STREAM, NUMBER, _stream(lambda: [pa.record_batch({"x": pa.nulls(2_000_000_000)})])
    ),
    "JSON: three million empty objects": Bomb(
        JSON, NUMBER, lambda: _INSTANCES + b"{}," * 3_000_000 + b"{}]}"
    ),
    "JSON: rows of nothing for many columns": Bomb(
        JSON,
        columns_schema(**{f"c{number}": DOUBLE for number in range(1000)}),
        lambda: _INSTANCES + b"{%s}" % _keys(1000) + b",{}" * 900_000 + b"]}",
        200,
    ),
    "JSON: depth": Bomb(JSON, MATRIX, _filled(b"[" * 900 + b"]" * 900, _INPUTS, b"]}")),
    "JSON: numbers": Bomb(JSON, NUMBER, _filled(b"1.5", _INPUTS, b"]}"), JSON_MIB),
    "JSON: keys": Bomb(JSON, NUMBER, lambda: _INSTANCES + b"{%s}]}" % _keys(1_250_000), JSON_MIB),
    "JSON: base64": Bomb("tf", TEXT, _filled(b'{"b64":"QUE="}', _INSTANCES, b"]}")),
    "JSON: feedback": Bomb("feedback", NUMBER, _filled(b"{}", b'{"feedback":[', b"]}")),
    "JSON Lines: blank lines": Bomb(LINES, NUMBER, lambda: b"\n" * LIMIT),
    "CSV: a million columns in quotes": Bomb(
        CSV, NUMBER, lambda: b'"\n"' + b"," * 1_000_000 + b"\n1", 128
    ),
    "CSV: fields": Bomb(CSV, NUMBER, lambda: b"x,y\n" + b"10,12\n" * 900_000, JSON_MIB),
    "gRPC: empty tensors": Bomb(GRPC, NUMBER, _called(inputs=[{}])),
}


def read(bomb: Bomb, body: bytes) -> None:
    """
    Raises:
        OnnxserveError: the body is refused.
    """
    if bomb.media in arrow.MEDIA_TYPES:
        arrow.decode(body, bomb.schema, LIMIT)
    elif bomb.media == GRPC:
        tensors.decode(
            tensors.read_message(messages.ModelInferRequest, body), _ARTIFACT, bomb.schema
        )
    elif bomb.media == LINES:
        jsonlines.decode(body, bomb.schema)
    elif bomb.media == "tf":
        tfserving.decode(body, bomb.schema)
    elif bomb.media == "feedback":
        feedback.decode(JSON, body)
    else:
        mlflow.decode(bomb.media, body, bomb.schema)


def _peak_mib() -> float:
    """Return the peak memory of this process. (`ru_maxrss` would begin with the
    parent's peak at the fork.)
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(name: str) -> tuple[float, str]:
    """Read a bomb, and return the memory in MiB that it took, and the error."""
    bomb = BOMBS[name]
    body = bomb.body()
    assert len(body) <= LIMIT, len(body)
    # The imports of the first body must not count.
    mlflow.decode(JSON, b'{"inputs":[[1]]}', NUMBER)
    Path("/proc/self/clear_refs").write_text("5")  # Reset the peak.
    before = _peak_mib()
    resource.setrlimit(resource.RLIMIT_AS, (8 * 1024**3, 8 * 1024**3))
    message = ""
    try:
        read(bomb, body)
    except OnnxserveError as error:
        message = f"{error.http_status} {error.message}"
    return _peak_mib() - before, message
