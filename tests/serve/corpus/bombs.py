"""Small bodies that would take much more memory than their size, and the memory that
reading each body may take.
"""

import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.protocols import jsonlines, mlflow
from mlflow_deploy_plugin.serve.protocols.content import JSON
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from tests.support.schemas import columns_schema, tensor_schema

LIMIT = 16 * 1024 * 1024
"""The default of `server.max_body_bytes`."""

CSV = "text/csv"
LINES = "application/jsonl"


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


DOUBLE = "double"


def _filled(piece, before=b"", after=b"", by=b","):
    return lambda: before + by.join([piece] * ((LIMIT - 100) // len(piece + by))) + after


def _keys(count):
    return b",".join(b'"c%d":1' % number for number in range(count))


NUMBER = columns_schema(x="double")
MATRIX = tensor_schema("float32", -1, 3)
JSON_MIB = 450
"""The limit for 16 MiB of JSON or CSV as Python objects: a million containers of 232
bytes, and small values.
"""

_INPUTS = b'{"inputs":['
_INSTANCES = b'{"instances":['


BOMBS = {
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
    "JSON Lines: blank lines": Bomb(LINES, NUMBER, lambda: b"\n" * LIMIT),
    "CSV: a million columns in quotes": Bomb(
        CSV, NUMBER, lambda: b'"\n"' + b"," * 1_000_000 + b"\n1", 128
    ),
    "CSV: fields": Bomb(CSV, NUMBER, lambda: b"x,y\n" + b"10,12\n" * 900_000, JSON_MIB),
}


def read(bomb, body):
    """
    Raises:
        OnnxserveError: the body is refused.
    """
    if bomb.media == LINES:
        jsonlines.decode(body, bomb.schema)
    else:
        mlflow.decode(bomb.media, body, bomb.schema)


def _peak_mib():
    """Return the peak memory of this process. (`ru_maxrss` would begin with the
    parent's peak at the fork.)
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(name):
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
