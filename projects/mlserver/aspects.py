"""The aspects of an answer, and the aspects in which our answers may differ."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_deploy_plugin.serve.http.plan import PlanTable
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.messages import RawRequest
from projects.mlserver.sent_requests import Document
from tests.support import handling

NEW_ID = "a new id"


@dataclass(frozen=True)
class Difference:
    """Aspects (a regular expression) that may differ, in the answers with one of the
    statuses (any if empty) to the requests of these names (a regular expression).

    `ours` are the possible statuses of our answers; any if empty.
    """

    aspects: str
    reason: str
    requests: str = ".*"
    statuses: tuple[int | str, ...] = ()
    ours: tuple[int | str, ...] = ()

    def allows(self, name: str, statuses: tuple[Any, Any], aspect: str) -> bool:
        """Return True if this aspect of the request `name` may differ, for their status
        and ours.
        """
        theirs, ours = statuses
        return (
            bool(re.fullmatch(self.aspects, aspect) and re.fullmatch(self.requests, name))
            and theirs in (self.statuses or (theirs,))
            and ours in (self.ours or (ours,))
        )


ALL = ".*"
REFUSED = (400,)
MLSERVER = (
    Difference(
        ALL,
        "MLServer fails without JSON (500). Ours answers 400 with the reason.",
        statuses=(500,),
        ours=REFUSED,
    ),
    Difference(
        ALL,
        "MLServer fails (500), because a model of MLflow without a signature, or a tensor in "
        "another datatype, needs the right content type. Ours computes the predictions.",
        "mlflow-(plain: (usual|named output|np of the tensor)|array: FP32)",
        (500,),
        (200,),
    ),
    Difference(
        "status|detail|error",
        "A body that is not a request: 422 and pydantic's list in MLServer, 400 and `error` in "
        "ours.",
        statuses=(422,),
        ours=REFUSED,
    ),
    Difference(
        "error", "The messages differ: ours name the remedy.", statuses=(400, 404), ours=(400, 404)
    ),
    Difference(
        "error|detail",
        "Unknown paths and methods: `detail` in MLServer, `error` in ours.",
        "unknown path|iris: infer by GET",
    ),
    Difference(
        ALL,
        "MLServer answers /generate like /infer. Ours has no such path.",
        "iris: generate",
        ours=(404,),
    ),
    Difference(
        "body|content-type|name|ready|live",
        "Health and readiness: MLServer's 200 has no body, ours has V2's JSON.",
        ".*(ready|live)",
        (200,),
        (200,),
    ),
    Difference(
        "version|extensions",
        "The metadata have our version and our extensions.",
        "server metadata",
    ),
    Difference(
        "info|openapi|paths|servers|components|tags|security",
        "The OpenAPI document is ours: 3.1, with the schema of each model.",
        ".*document",
    ),
    Difference(
        "body",
        "The index has our order and an entry's version.",
        "repository index",
    ),
    Difference(
        "ce-(request)?id|id",
        "An empty id counts as none, so that the answer has a new one.",
        "iris: empty id",
    ),
    Difference(
        "id|ce-(request)?id",
        "A request without an id takes the id of its header X-Request-Id.",
        "iris: id in the header",
    ),
)
ONNX = (
    Difference(
        "inputs|outputs|parameters",
        "A converted model has a signature, even if its original has none.",
        "mlflow-plain: metadata",
    ),
)
OF_FORM: dict[str, tuple[Difference, ...]] = {"onnx": ONNX, "original": ()}
KSERVE = (
    Difference(
        ALL,
        "KServe answers 500 to a body that is not valid. Ours answers 400 with the reason.",
        statuses=(500,),
        ours=REFUSED,
    ),
    Difference(
        ALL,
        "KServe fails (500) for records outside of lists. Ours accepts them.",
        "flights: records",
        (500,),
        (200,),
    ),
    Difference("error", "The messages differ: ours name the remedy.", statuses=(400, 404)),
    Difference(
        "model_version_status",
        "Readiness also has the versions, as in TensorFlow Serving.",
        ".*: ready",
    ),
    Difference("models", "One server lists all models.", ".*: list"),
)
GRPC = (
    Difference("error", "The messages differ: ours name the remedy."),
    Difference(
        "version|extensions", "The metadata have our version and extensions.", "server metadata"
    ),
    Difference(
        r"outputs\[0\].contents",
        "MLServer sends an empty field `contents` next to raw contents.",
        ".*: raw contents",
    ),
)


def send(server: Server, recording: Document) -> Document:
    """Answer the request of a recording, by a plan if there is one."""
    content = recording.get("body", "")
    if not isinstance(content, str):
        content = json.dumps(content)
    headers = {name.lower(): value for name, value in recording.get("headers", {}).items()}
    request = RawRequest(
        recording["method"],
        recording["path"],
        {"content-type": "application/json", **headers},
        content.encode(),
    )
    response = PlanTable(server).answer(request) or handling.handle(server, request)
    fields = {name.lower(): value for name, value in response.headers.items()}
    try:
        answered = json.loads(response.body)
    except ValueError:
        answered = response.body.decode()
    return {
        "status": response.status,
        "headers": {**fields, "content-type": response.content_type},
        "body": answered,
    }


def aspects_of(answer: Document) -> Document:
    """Return the aspects of an HTTP answer by name."""
    body = answer["body"]
    aspects = {"status": answer["status"]}
    aspects |= {
        name: value
        for name, value in answer["headers"].items()
        if name == "content-type" or name.startswith("ce-")
    }
    if not isinstance(body, dict):
        return {**aspects, "body": body}
    return aspects | parts_of(body)


def parts_of(document: Document) -> Document:
    """Return the entries of a document and, for an answer, the entries of each
    output.
    """
    if "model_name" not in document:
        return document
    outputs = document["outputs"]
    parts = {name: value for name, value in document.items() if name != "outputs"}
    for position, output in enumerate(outputs):
        parts |= {f"outputs[{position}].{name}": value for name, value in output.items()}
    return parts


def call_aspects(answer: Document) -> Document:
    """Return the aspects of the answer to a gRPC call by name."""
    return {
        "status": answer["status"],
        "error": answer["error"],
        **answer["metadata"],
        **parts_of(answer["message"]),
    }


def mask_new_id(recording: Document, aspects: Document) -> None:
    """Replace the id that a server has made for a request without one."""
    sent = recording.get("body", recording.get("message"))
    given = recording.get("headers", {}).values()
    new = aspects.get("id")
    if isinstance(sent, dict) and not sent.get("id") and new and new not in given:
        aspects |= {name: NEW_ID for name, value in aspects.items() if value == new}


def differences(
    recording: Document, theirs: Document, ours: Document, allowed: Iterable[Difference]
) -> tuple[Document, set[Difference]]:
    """Return the aspects that differ and may not, with both values, and the rows of the
    table that allow the others.
    """
    mask_new_id(recording, theirs)
    mask_new_id(recording, ours)
    statuses = theirs["status"], ours["status"]
    wrong = {}
    used: set[Difference] = set()
    for aspect in theirs.keys() | ours.keys():
        values = theirs.get(aspect), ours.get(aspect)
        if not are_equal(*values):
            rows = [row for row in allowed if row.allows(recording["name"], statuses, aspect)]
            used.update(rows)
            if not rows:
                wrong[aspect] = values
    return wrong, used


def are_equal(one: Any, other: Any) -> bool:
    """Return True for equal values; numbers may differ in the seventh digit."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(are_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(are_equal(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.isclose(one, other, rtol=2e-6, atol=1e-7))
    return type(one) is type(other) and one == other
