"""The OpenAPI descriptions of the routes, and their request and response bodies."""

from collections.abc import Callable
from dataclasses import dataclass, field

from mlflow_deploy_plugin.serve.http.views import JOB_FORMATS
from mlflow_deploy_plugin.serve.protocols import feedback, tfserving, v2
from mlflow_deploy_plugin.serve.protocols.content import JSON
from mlflow_deploy_plugin.serve.protocols.invocations import INVOCATIONS
from mlflow_deploy_plugin.serve.protocols.protocol import Bodies, Protocol
from mlflow_deploy_plugin.serve.protocols.schemas import (
    SIZE,
    STRING,
    JsonSchema,
    array_schema,
    object_schema,
)
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.explained import is_explainable

TAGS = ("Predictions", v2.TAG, tfserving.TAG, "Server", "Pages")
"""The groups of operations, in their order on the page."""
PREDICTIONS, V2, TENSORFLOW, SERVER, PAGES = TAGS

_PREDICTION_ERRORS = (400, 413, 415, 422, 429, 503, 504)


@dataclass(frozen=True)
class Operation:
    """The description of one method of one path.

    Attributes:
        response: the bodies of a successful response; empty if there is no body or no
            description.
        request: the accepted bodies; empty if the operation has no body.
        errors: the statuses of errors, in addition to 404 for a path with a name.
        is_prediction: True if the operation uses the headers of a prediction.
        applies_to: returns False for a model that the operation rejects.
    """

    summary: str
    tag: str
    response: Bodies
    request: Bodies = field(default_factory=dict)
    errors: tuple[int, ...] = ()
    status: int = 200
    needs_body: bool = True
    is_prediction: bool = False
    applies_to: Callable[[Artifact], bool] = lambda artifact: True


def _object_of(title: str, /, **types: str) -> JsonSchema:
    """Return the schema of an object from its property names and their types; client
    generators use the title.
    """
    properties = {}
    for name, kind in types.items():
        properties[name] = array_schema() if kind == "array" else {"type": kind}
    return object_schema(properties, title=title)


def prediction(protocol: Protocol) -> Operation:
    return Operation(
        protocol.summary,
        protocol.tag,
        protocol.response,
        protocol.request,
        errors=_PREDICTION_ERRORS,
        is_prediction=True,
        applies_to=lambda artifact: not protocol.refuses(artifact),
    )


def _readable(summary: str, tag: str, response: Bodies) -> Operation:
    """Return the operation of a GET that needs a loaded model."""
    return Operation(summary, tag, response, errors=(503,))


HTML: Bodies = {"text/html": STRING}
"""A page; its errors are also pages."""

_TENSORS = array_schema(
    object_schema(
        {"name": STRING, "datatype": STRING, "shape": array_schema(SIZE)},
        title="v2 tensor",
    ),
)
_V2_MODEL = object_schema(
    {
        "name": STRING,
        "versions": array_schema(STRING),
        "platform": STRING,
        "inputs": _TENSORS,
        "outputs": _TENSORS,
    },
    title="v2 model",
)
_EXPLANATION = object_schema(
    {
        "columns": array_schema(STRING),
        "outputs": array_schema(),
        "base_values": array_schema(
            description="[rows][outputs], or [rows] if a single number is explained",
        ),
        "values": array_schema(description="[rows][columns][outputs], or [rows][columns]"),
        "predictions": {},
        "background": _object_of("background", source="string", rows="integer"),
        "method": {"type": "string", "enum": ["tree", "linear", "permutation"]},
        "link": {"type": "string", "enum": ["identity", "logit", "log"]},
        "max_evals": {"type": ["integer", "null"]},
    },
    title="explanation",
)
EXPLAIN = Operation(
    "The contribution of each column of each row to its prediction: its SHAP values",
    PREDICTIONS,
    {JSON: _EXPLANATION},
    INVOCATIONS.request,
    errors=_PREDICTION_ERRORS,
    applies_to=is_explainable,
)

_LABEL: JsonSchema = {
    "type": ["string", "number", "boolean", "null"],
    "maxLength": 1000,
    "title": "label",
}
_FEEDBACK_BY_ID = object_schema(
    {"prediction_id": {"type": "string", "minLength": 1, "maxLength": 128}, "label": _LABEL},
    {
        "row": {
            "type": ["integer", "null"],
            "minimum": 0,
            "maximum": 2**31 - 1,
        }
    },
    additionalProperties=False,
    title="feedback by id",
)
_FEEDBACK_KEY: JsonSchema = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": feedback.MOST_KEY_COLUMNS,
    "additionalProperties": _LABEL,
    "description": "values of the row's columns, by their names in the signature",
}
_FEEDBACK_BY_KEY = object_schema(
    {"key": _FEEDBACK_KEY, "label": _LABEL},
    additionalProperties=False,
    title="feedback by key",
)
_FEEDBACK_LIST = array_schema(
    {"anyOf": [_FEEDBACK_BY_ID, _FEEDBACK_BY_KEY], "title": "feedback entry"},
    minItems=1,
    maxItems=feedback.MOST_ENTRIES,
)
_FEEDBACK_ENTRIES = object_schema(
    {"feedback": _FEEDBACK_LIST},
    additionalProperties=False,
    title="feedback list",
)
FEEDBACK = Operation(
    "True labels of earlier predictions, by X-Prediction-Id or by columns; the last label for a "
    "row is used",
    PREDICTIONS,
    {JSON: _object_of("feedback answer", accepted="integer")},
    {JSON: {"anyOf": [_FEEDBACK_BY_ID, _FEEDBACK_BY_KEY, _FEEDBACK_ENTRIES], "title": "feedback"}},
    errors=(400, 413, 415, 429, 503),
    status=202,
)

_JOB: Bodies = {
    JSON: _object_of(
        "job", id="string", state="string", version="string", rows="integer", error="string"
    )
}
_JOB_FILES: Bodies = dict.fromkeys(JOB_FORMATS, STRING)
CREATE_JOB = Operation(
    "Predictions for a file, or for files in a bucket, as a batch job",
    PREDICTIONS,
    _JOB,
    {**_JOB_FILES, JSON: _object_of("job of uris", input="string", output="string")},
    errors=(400, 413, 415, 429, 503),
    status=202,
)
JOB = Operation("The state of a batch job, which DELETE cancels", PREDICTIONS, _JOB)
JOB_RESULT = Operation("The predictions of a batch job's file", PREDICTIONS, _JOB_FILES)

_ENDPOINTS = _object_of("endpoints", models="array")
MODELS = Operation("The endpoints, for KServe's clients", SERVER, {JSON: _ENDPOINTS})
_TF_STATUS = _object_of(
    "tfserving status",
    name="string",
    ready="boolean",
    model_version_status="array",
)
TF_STATUS = _readable("The loaded versions", TENSORFLOW, {JSON: _TF_STATUS})
_TF_METADATA = _object_of("tfserving metadata", model_spec="object", metadata="object")
TF_METADATA = _readable("The inputs and outputs", TENSORFLOW, {JSON: _TF_METADATA})
_V2_SERVER = _object_of("v2 server", name="string", version="string", extensions="array")
V2_SERVER = Operation("The server's name and version", V2, {JSON: _V2_SERVER})
V2_LIVE = Operation("The liveness of the server", V2, {JSON: _object_of("v2 live", live="boolean")})
V2_READY = _readable(
    "The readiness of the server",
    V2,
    {JSON: _object_of("v2 ready", ready="boolean")},
)
V2_METADATA = _readable("The inputs and outputs of the graph", V2, {JSON: _V2_MODEL})
_V2_MODEL_READY = _object_of("v2 model ready", name="string", ready="boolean")
V2_MODEL_READY = _readable(
    "The readiness of the endpoint, or of a version of it",
    V2,
    {JSON: _V2_MODEL_READY},
)
V2_CONFIG = _readable(
    "The configuration of the endpoint, in Triton's form",
    V2,
    {JSON: {"type": "object", "required": ["name", "platform", "input", "output"]}},
)
_V2_STATISTICS: Bodies = {JSON: _object_of("v2 statistics", model_stats="array")}
V2_MODEL_STATISTICS = _readable(
    "The number and the duration of requests to the endpoint",
    V2,
    _V2_STATISTICS,
)
V2_STATISTICS = _readable("The statistics of all endpoints", V2, _V2_STATISTICS)
V2_INDEX = Operation(
    "The endpoints and their states",
    V2,
    {JSON: array_schema(_object_of("v2 index entry", name="string", state="string"))},
    {
        JSON: object_schema(
            {},
            {"ready": {"type": ["boolean", "null"]}},
            title="v2 index request",
        )
    },
    errors=(400, 413),
    needs_body=False,
)
V2_LOAD, V2_UNLOAD = (
    Operation(
        f"{verb} an endpoint, if the server allows it",
        V2,
        {},
        {
            JSON: object_schema(
                {},
                {"parameters": {"type": ["object", "null"]}},
                title="v2 control request",
            ),
        },
        errors=(400, 403, 404, 413, 415, 429, 503, 504),
        needs_body=False,
    )
    for verb in ("Loads", "Unloads")
)
PING = _readable("The readiness of the server, as MLflow's empty line", SERVER, {})
HEALTH = _readable(
    "The readiness of the server",
    SERVER,
    {JSON: _object_of("status", status="string")},
)
MLFLOW_VERSION = _readable(
    "The version of MLflow that the model was logged with",
    SERVER,
    {"text/plain": STRING},
)
METRICS = Operation(
    "Metrics for Prometheus, summed over the workers",
    SERVER,
    {"text/plain": STRING},
)
METRICS_HISTORY = Operation(
    "The metrics of the last hour or day, a line per interval",
    SERVER,
    {"application/x-ndjson": STRING},
    errors=(400,),
)
OPENAPI = Operation("This document", PAGES, {JSON: {"type": "object"}})
ENDPOINT_OPENAPI = _readable("This document for one endpoint", PAGES, {JSON: {"type": "object"}})
TRY_PAGE = Operation(
    "A page to try the default endpoint in the browser",
    PAGES,
    {**HTML, JSON: _object_of("status", status="string")},
)
DOCS_PAGE = Operation("This document as a page", PAGES, HTML)
ENDPOINT_TRY_PAGE = _readable("A page to try the endpoint in the browser", PAGES, HTML)
ENDPOINT_DOCS_PAGE = _readable("The requests and responses of the endpoint as a page", PAGES, HTML)
_REQUESTS: Bodies = {
    **HTML,
    JSON: _object_of(
        "requests",
        requests="array",
        shows_values="boolean",
        status="string",
        find="string",
    ),
}
REQUESTS_PAGE = Operation("The last requests to the server, as a page or as JSON", PAGES, _REQUESTS)
ENDPOINT_REQUESTS_PAGE = _readable(
    "The last requests to the endpoint, as a page or as JSON",
    PAGES,
    _REQUESTS,
)
STYLESHEET = Operation("The style sheet of the pages", PAGES, {"text/css": STRING})
SCRIPT = Operation("A script of the pages", PAGES, {"text/javascript": STRING})
ICON = Operation("The icon of the pages", PAGES, {"image/svg+xml": STRING})
