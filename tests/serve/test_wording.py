"""The wording of the responses that callers of a server see most."""

import json

import pytest

from tests.support import servers
from tests.support.handling import ask

RECORD = {"carrier": "AA", "distance": 0.0, "hour": 0, "late": False}
Body = dict[str, object] | bytes


def _tensor(**change):
    return {
        "inputs": [
            {
                "name": "image",
                "datatype": "FP32",
                "shape": [1, 2, 2],
                "data": [0, 1, 2, 3],
                **change,
            }
        ]
    }


MESSAGES: dict[str, tuple[str, Body, dict[str, str], int, str]] = {
    "an empty body": (
        "/invocations",
        b"",
        {},
        400,
        "the body is empty; a JSON document is expected",
    ),
    "none of the forms": (
        "/invocations",
        {"rows": []},
        {},
        400,
        (
            "the JSON object must have exactly one of the fields dataframe_split, "
            "dataframe_records, instances, inputs; this object has 'rows'"
        ),
    ),
    "an unknown content type": (
        "/invocations",
        b"x",
        {"content_type": "image/png"},
        415,
        (
            "this route does not accept the Content-Type 'image/png'; it accepts application/json "
            "or text/csv or application/vnd.apache.arrow.stream or "
            "application/vnd.apache.arrow.file or application/jsonl or application/x-ndjson or "
            "application/jsonlines"
        ),
    ),
    "an unknown encoding": (
        "/invocations",
        b"x",
        {"content_encoding": "br"},
        415,
        (
            "the Content-Encoding is 'br'; this encoding is not supported: send gzip, deflate, "
            "zstd or identity"
        ),
    ),
    "a damaged encoding": (
        "/invocations",
        b"x",
        {"content_encoding": "gzip"},
        400,
        "the gzip body ends too early",
    ),
    "a CSV with a short row": (
        "/invocations",
        b"carrier,distance,hour,late\nAA,1\n",
        {"content_type": "text/csv"},
        400,
        "row 0 has 2 fields; the header has 4",
    ),
    "two records for one": (
        "/predict",
        {"inputs": [RECORD]},
        {},
        400,
        "/predict accepts one record; send inputs to /predict/batch or /invocations",
    ),
    "an unknown endpoint": (
        "/endpoints/nobody/invocations",
        {"dataframe_records": [RECORD]},
        {},
        404,
        "endpoint 'nobody' does not exist; existing endpoints: 'mixed', 'tensor'",
    ),
    "an unknown model": (
        "/v2/models/nobody/infer",
        _tensor(),
        {},
        404,
        "endpoint 'nobody' does not exist; existing endpoints: 'mixed', 'tensor'",
    ),
    "an unknown route": (
        "/invocation",
        {"dataframe_records": [RECORD]},
        {},
        404,
        (
            "the path /invocation does not exist; the nearest are /invocations, "
            "/endpoints/NAME/invocations, /version; /docs lists all routes"
        ),
    ),
    "a tensor of another shape": (
        "/v2/models/tensor/infer",
        _tensor(shape=[1, 3], data=[1, 2, 3]),
        {},
        400,
        "tensor 'image' has the shape [1, 3]; [any, 2, 2] is expected",
    ),
    "too few values": (
        "/v2/models/tensor/infer",
        _tensor(data=[0, 1]),
        {},
        400,
        "tensor 'image' (FP32, shape [1, 2, 2]) has 2 elements; its shape requires 4",
    ),
    "feedback without a label": (
        "/feedback",
        {"prediction_id": "a"},
        {},
        400,
        "the feedback has no label; null withdraws an earlier label",
    ),
}


@pytest.fixture
def server(serve_here, model_folders):
    mixed = model_folders["mixed"]
    tensor = model_folders["tensor"]
    return serve_here(
        {"mixed": {"v": servers.variant(mixed)}, "tensor": {"v": servers.variant(tensor)}}
    )


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "message"), MESSAGES.values(), ids=MESSAGES
)
def test_a_refusal_names_the_mistake_and_the_correct_form(
    server, path, body, headers, status, message
):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = ask(server, path, body=content, **headers)
    document = json.loads(answer.body)
    assert (answer.status, document.get("message") or document["error"]) == (status, message)
