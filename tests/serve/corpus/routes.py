"""The routes of a server with the endpoints flights (a table, the default), tensor and
single, and valid responses.

A record of `flights` is encoded in each language that a route reads, so that all
receive the same mistake. The language of a protocol's example has the name of the
protocol, and is derived from the protocol, with its routes.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.serve.protocols.examples import Example
from mlflow_deploy_plugin.serve.runtime.artifact import Column
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from tests.serve.corpus.case import Route
from tests.support.bodies import arrow_file, arrow_stream, v2_tensor
from tests.support.protocols import JSON_FORMS, protocol_paths
from tests.support.tables import columns_of

JSON = "application/json"
JSONL = "application/jsonl"
CSV = "text/csv"
STREAM = "application/vnd.apache.arrow.stream"
FILE = "application/vnd.apache.arrow.file"

MAX_BODY_BYTES = 2_000_000
VERTEX = "/vertex"
VERTEX_HEALTH = "/vertex/health"

Record = Mapping[str, Any]
RECORD = {"carrier": "AA", "distance": 100.5, "hour": 3, "late": True}
COLUMNS = list(RECORD)
DATATYPES = {"carrier": "BYTES", "distance": "FP64", "hour": "INT64", "late": "BOOL"}


def dump(document):
    """Return JSON as Python's `json` writes it, with NaN, escaped surrogates, and
    repeated keys for a `Twice`.
    """
    return json.dumps(document).encode()


def table(records):
    return pa.table(columns_of(records))


def _rows(records):
    return [list(record.values()) for record in records]


def _columns(records):
    return columns_of(records)


def _split(records):
    return {"columns": list(records[0]), "data": _rows(records)}


def _v2(records):
    return dump(
        {"id": "7", "inputs": [tensor(name, values) for name, values in _columns(records).items()]}
    )


def tensor(name, values):
    return v2_tensor(name, DATATYPES.get(name, "FP64"), values)


def _jsonl(records):
    return b"".join(dump(record) + b"\n" for record in records)


FLIGHTS = compile_schema(
    (
        Column("carrier", "string"),
        Column("distance", "double"),
        Column("hour", "long"),
        Column("late", "boolean"),
    ),
    (),
    (),
)


def _in_form(body):
    """Return the function that writes records as in the example of the OpenAPI
    document.
    """
    return lambda records: dump(body.example(FLIGHTS, Example(_columns(records), len(records))))


LANGUAGES = {
    **{protocol.name: _in_form(body) for protocol, body in JSON_FORMS.items()},
    "dataframe_records": lambda records: dump({"dataframe_records": records}),
    "instances": lambda records: dump({"instances": records}),
    "inputs": lambda records: dump({"inputs": _columns(records)}),
    "records": dump,
    "v2": _v2,  # The protocol's own example has no datatypes for unknown columns.
    "tf columns": lambda records: dump({"inputs": _columns(records)}),
    "jsonl": _jsonl,
}
"""A table of flights in each JSON language."""

_TYPES = {"csv": CSV, "jsonl": JSONL, "arrow": STREAM, "arrow file": FILE}
_UNTYPED = {"v2", "v2 binary", "tfserving", "tf columns", "tf tensor", "index", "parameters"}


def _route(path, reads, good, right, **more):
    headers = {} if reads in _UNTYPED else {"Content-Type": _TYPES.get(reads, JSON)}
    return Route("POST", path, reads, good, right, {**headers, **more.pop("headers", {})}, **more)


def _flights(path, reads, right):
    return _route(path, reads, LANGUAGES[reads]([RECORD]), right)


YES = b'{"predictions":["yes"]}'
IMAGE = np.arange(4, dtype="<f4").reshape(1, 2, 2)
_HEAD = dump(
    {
        "inputs": [
            {
                "name": "image",
                "shape": [1, 2, 2],
                "datatype": "FP32",
                "parameters": {"binary_data_size": IMAGE.nbytes},
            }
        ]
    }
)
BINARY = _route(
    "/v2/models/tensor/infer",
    "v2 binary",
    _HEAD + IMAGE.tobytes(),
    b'"data":[0.0,2.0,4.0,6.0]',
    headers={"Inference-Header-Content-Length": str(len(_HEAD))},
)
CSV_TEXT = b"carrier,distance,hour,late\nAA,100.5,3,true\n"

_DERIVED = tuple(
    _flights(path, protocol.name, b"yes")
    for protocol in JSON_FORMS
    for path in protocol_paths(protocol, "flights", "1", "v")
)
RECORDS = (
    *_DERIVED,
    _flights("/invocations", "dataframe_records", YES),
    _flights("/invocations", "instances", YES),
    _flights("/invocations", "inputs", YES),
    _flights("/invocations", "jsonl", b'"yes"\n'),
    _flights("/predict/batch", "records", b'{"predictions":["yes"],'),
    _flights(VERTEX, "instances", YES),
    _flights("/v1/models/flights/labels/v:predict", "tf columns", b'{"outputs":{"label":["yes"],'),
)
"""The routes that accept a table of flights in JSON."""

ARROW = _route("/invocations", "arrow", arrow_stream(table([RECORD])), b"yes")
TABLES = (
    _route("/invocations", "csv", CSV_TEXT, YES),
    _route("/predict/batch", "csv", CSV_TEXT, b'{"predictions":["yes"],'),
    ARROW,
    _route("/invocations", "arrow file", arrow_file(table([RECORD])), b"yes"),
)
TENSORS = (
    BINARY,
    _route(
        "/endpoints/tensor/invocations",
        "tensor",
        dump({"inputs": IMAGE.tolist()}),
        b'"total":[6.0]',
    ),
    _route(
        "/v1/models/tensor:predict",
        "tf tensor",
        dump({"instances": IMAGE.tolist()}),
        b'"total":6.0',
    ),
)
_NOBODY = b"this server does not allow requests to"
ADMIN = (
    _route("/v2/repository/index", "index", b"{}", b'"name":"flights"'),
    *(
        _route(path, "parameters", b"", _NOBODY, status=400, headers={"Host": "localhost"})
        for path in ("/v2/repository/models/other/load", "/v2/repository/models/flights/unload")
    ),
)
READS = tuple(
    Route("GET", path, right=right)
    for path, right in {
        "/docs": b"<html",
        "/openapi.json": b'"openapi":',
        "/pages/page.css": b"{",
        "/ping": b"\n",
        "/health": b'{"status":"ok"}',
        "/version": b"",
        "/metrics": b"onnxserve_",
        "/metrics/history": b"",
        "/endpoints/flights": b"<html",
        "/endpoints/flights/docs": b"<html",
        "/endpoints/flights/openapi.json": b'"openapi":',
        VERTEX_HEALTH: b'{"status":"ok"}',
        "/v2": b'"name":"onnxserve"',
        "/v2/health/live": b'{"live":true}',
        "/v2/health/ready": b'{"ready":true}',
        "/v2/models/stats": b"model_stats",
        "/v2/models/flights": b'"platform":"onnxruntime_onnx"',
        "/v2/models/flights/versions/1": b'"versions":["1"]',
        "/v2/models/flights/ready": b'"ready":true',
        "/v2/models/flights/versions/1/ready": b'"ready":true',
        "/v2/models/flights/stats": b"model_stats",
        "/v2/models/flights/config": b'"name":"flights"',
        "/v1/models/flights": b"AVAILABLE",
        "/v1/models/flights/metadata": b"signature_def",
        "/": b"<html",
    }.items()
)
POSTS = RECORDS + TABLES + TENSORS + ADMIN
ALL = POSTS + READS
TREE_WIDE = tuple({route.path: route for route in ALL}.values())
"""Each path once."""


def reading(*languages):
    return tuple(route for route in POSTS if route.reads in languages)


JSON_ROUTES = tuple(
    route for route in POSTS if route.reads not in _TYPES and route.reads != "v2 binary"
)
"""Routes whose body is a single JSON document."""
