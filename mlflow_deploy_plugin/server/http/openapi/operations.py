"""What is said of every route: one `Operation` for each path and method of the tables in `http/routes.py`.

A route that stands in the tables and not here is left out of the document, and fails a test that names it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mlflow_deploy_plugin.runtime import Artifact
from mlflow_deploy_plugin.server.http.openapi.schemas import JsonSchema
from mlflow_deploy_plugin.server.models.explainable import is_explainable
from mlflow_deploy_plugin.server.protocols import arrow, feedback, jsonlines, npy
from mlflow_deploy_plugin.server.protocols.content import CSV, JSON
from mlflow_deploy_plugin.server.protocols.v2 import OCTETS

Bodies = Mapping[str, str | JsonSchema]
"""By media type: a schema, or the name of one that is made for each endpoint (`openapi/document.py`)."""

HTML, TEXT = "text/html", "text/plain"
PREDICTIONS, V2, TF, SERVER, PAGES = (
    "Predictions",
    "Open Inference Protocol V2",
    "TensorFlow Serving",
    "Server",
    "Pages",
)
TAGS = (PREDICTIONS, V2, TF, SERVER, PAGES)
"""The groups of operations, in the order in which they are read."""

_PREDICTION = (400, 413, 415, 429, 503, 504)


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    Attributes:
        request: the bodies that it takes; empty: none.
        answer: the bodies of 200; empty: none, or one that is no document.
        refusals: the statuses of its errors, beside 404 where the path names something.
        status: of the answer.
        needs_body: whether the request may not be empty.
        is_prediction: whether it takes and gives the headers of a prediction.
        fits: whether it has an answer for a model.
    """

    summary: str
    tag: str
    answer: Bodies
    request: Bodies = field(default_factory=dict)
    refusals: tuple[int, ...] = ()
    status: int = 200
    needs_body: bool = True
    is_prediction: bool = False
    fits: Callable[[Artifact], bool] = lambda artifact: True


def _said(**properties: str) -> JsonSchema:
    """An object with these properties, by their JSON types."""
    return {
        "type": "object",
        "required": list(properties),
        "properties": {name: {"type": kind} for name, kind in properties.items()},
    }


def _predicts(summary: str, tag: str, answer: Bodies, request: Bodies) -> Operation:
    return Operation(summary, tag, answer, request, _PREDICTION, is_prediction=True)


_TEXT: JsonSchema = {"type": "string"}
_BYTES: JsonSchema = {"type": "string", "format": "binary"}
_PAGE: Bodies = {HTML: _TEXT}
_TABLES: Bodies = dict.fromkeys((*arrow.MEDIA_TYPES, *jsonlines.MEDIA_TYPES, *npy.MEDIA_TYPES), _BYTES)
_READY = (503,)
_REPOSITORY = (400, 403, 404, 413, 415, 429, 503, 504)
_ADMIN: JsonSchema = {"type": "object", "properties": {"parameters": {"type": ["object", "null"]}}}

_TENSORS: JsonSchema = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"type": "string"},
            "datatype": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer"}},
        },
    },
}
_V2_MODEL: JsonSchema = {
    "type": "object",
    "required": ["name", "versions", "platform", "inputs", "outputs"],
    "properties": {
        "name": {"type": "string"},
        "versions": {"type": "array", "items": {"type": "string"}},
        "platform": {"type": "string"},
        "inputs": _TENSORS,
        "outputs": _TENSORS,
    },
}
_TF_ANSWER: JsonSchema = {
    "type": "object",
    "properties": {"predictions": {"type": "array"}, "outputs": {"type": ["array", "object"]}},
    "minProperties": 1,
}
_EXPLANATION: JsonSchema = {
    "type": "object",
    "required": ["columns", "outputs", "base_values", "values", "predictions", "background", "max_evals"],
    "properties": {
        "columns": {"type": "array", "items": {"type": "string"}},
        "outputs": {"type": "array"},
        "base_values": {"type": "array", "description": "[rows][outputs], or [rows] where one number is explained"},
        "values": {"type": "array", "description": "[rows][columns][outputs], or [rows][columns]"},
        "background": _said(source="string", rows="integer"),
        "max_evals": {"type": "integer"},
    },
}
_INVOCATIONS = _predicts(
    "Predictions, in the protocol of MLflow's scoring server; tables are answered in kind, or as Accept asks",
    PREDICTIONS,
    {JSON: "invocations_answer", **_TABLES},
    {JSON: "invocations", CSV: "csv", **_TABLES},
)
_PREDICT = _predicts("The prediction for one record", PREDICTIONS, {JSON: "predict_answer"}, {JSON: "predict"})
_BATCH = _predicts(
    "Predictions for many records, with the probabilities of the classes",
    PREDICTIONS,
    {JSON: "batch_answer"},
    {JSON: "batch", CSV: "csv"},
)

_EXPLAIN = Operation(
    "What each column of each row has contributed to its prediction, as SHAP says it",
    PREDICTIONS,
    {JSON: _EXPLANATION},
    {JSON: "invocations", CSV: "csv", **_TABLES},
    refusals=(*_PREDICTION, 501),
    fits=is_explainable,
)

_LABEL: JsonSchema = {"type": ["string", "number", "boolean", "null"], "maxLength": 1000}
_BY_ID: JsonSchema = {
    "type": "object",
    "required": ["prediction_id", "label"],
    "properties": {
        "prediction_id": {"type": "string", "minLength": 1, "maxLength": 128},
        "row": {"type": ["integer", "null"], "minimum": 0, "maximum": 2**31 - 1},
        "label": _LABEL,
    },
    "additionalProperties": False,
}
_BY_KEY: JsonSchema = {
    "type": "object",
    "required": ["key", "label"],
    "properties": {
        "key": {
            "type": "object",
            "minProperties": 1,
            "maxProperties": feedback.MOST_KEY_COLUMNS,
            "additionalProperties": _LABEL,
            "description": "values of the row's columns, by their names in the signature",
        },
        "label": _LABEL,
    },
    "additionalProperties": False,
}
_ENTRIES: JsonSchema = {
    "type": "object",
    "required": ["feedback"],
    "properties": {
        "feedback": {
            "type": "array",
            "minItems": 1,
            "maxItems": feedback.MOST_ENTRIES,
            "items": {"anyOf": [_BY_ID, _BY_KEY]},
        }
    },
    "additionalProperties": False,
}
_FEEDBACK = Operation(
    "What turned out to be true of earlier predictions, by their X-Prediction-Id or by columns; the last label wins",
    PREDICTIONS,
    {JSON: _said(accepted="integer")},
    {JSON: {"anyOf": [_BY_ID, _BY_KEY, _ENTRIES]}},
    refusals=(400, 413, 415, 429, 503),
    status=202,
)

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("/invocations", "POST"): _INVOCATIONS,
    ("/endpoints/NAME/invocations", "POST"): _INVOCATIONS,
    ("/explain", "POST"): _EXPLAIN,
    ("/endpoints/NAME/explain", "POST"): _EXPLAIN,
    ("/feedback", "POST"): _FEEDBACK,
    ("/endpoints/NAME/feedback", "POST"): _FEEDBACK,
    ("/predict", "POST"): _PREDICT,
    ("/predict/batch", "POST"): _BATCH,
    ("/endpoints/NAME/predict/batch", "POST"): _BATCH,
    ("/score", "POST"): _predicts(
        "Predictions, in the protocol of Azure ML", PREDICTIONS, {JSON: {"type": ["array", "object"]}}, {JSON: "azure"}
    ),
    ("/v1/models/NAME[/versions/V|/labels/L]:predict", "POST"): _predicts(
        "Predictions, by row (instances) or by column (inputs)", TF, {JSON: _TF_ANSWER}, {JSON: "tfserving"}
    ),
    ("/v1/models/NAME[/versions/V|/labels/L]:classify", "POST"): Operation(
        "Refused: no model here takes tf.Example", TF, {}, {JSON: {"type": "object"}}, refusals=(400, 413, 415)
    ),
    ("/v1/models/NAME[/versions/V|/labels/L]", "GET"): Operation(
        "The versions that are loaded", TF, {JSON: _said(model_version_status="array")}, refusals=_READY
    ),
    ("/v1/models/NAME[/versions/V|/labels/L]/metadata", "GET"): Operation(
        "The inputs and outputs", TF, {JSON: _said(model_spec="object", metadata="object")}, refusals=_READY
    ),
    ("/v2/models/NAME[/versions/V]/infer", "POST"): _predicts(
        "Predictions, in the Open Inference Protocol V2; binary tensors behind the JSON, as Triton's clients send them",
        V2,
        {JSON: "v2_answer", OCTETS: _BYTES},
        {JSON: "v2", OCTETS: _BYTES},
    ),
    ("/v2", "GET"): Operation(
        "The server's name and version",
        V2,
        {JSON: _said(name="string", version="string", extensions="array")},
    ),
    ("/v2/health/live", "GET"): Operation("Whether the server lives", V2, {JSON: _said(live="boolean")}),
    ("/v2/health/ready", "GET"): Operation(
        "Whether every endpoint can answer",
        V2,
        {JSON: _said(ready="boolean")},
        refusals=_READY,
    ),
    ("/v2/models/NAME[/versions/V]", "GET"): Operation(
        "The inputs and outputs of the graph", V2, {JSON: _V2_MODEL}, refusals=_READY
    ),
    ("/v2/models/NAME[/versions/V]/ready", "GET"): Operation(
        "Whether the endpoint, or this version of it, can answer",
        V2,
        {JSON: _said(name="string", ready="boolean")},
        refusals=_READY,
    ),
    ("/v2/models/NAME[/versions/V]/config", "GET"): Operation(
        "The configuration of the endpoint, in Triton's words",
        V2,
        {JSON: {"type": "object", "required": ["name", "platform", "input", "output"]}},
        refusals=_READY,
    ),
    ("/v2/models/NAME[/versions/V]/stats", "GET"): Operation(
        "How many requests were answered, and how long they took",
        V2,
        {JSON: _said(model_stats="array")},
        refusals=_READY,
    ),
    ("/v2/models/stats", "GET"): Operation(
        "The statistics of every endpoint", V2, {JSON: _said(model_stats="array")}, refusals=_READY
    ),
    ("/v2/repository/index", "POST"): Operation(
        "The endpoints, and whether they are ready",
        V2,
        {JSON: {"type": "array", "items": _said(name="string", state="string")}},
        {JSON: {"type": "object", "properties": {"ready": {"type": ["boolean", "null"]}}}},
        refusals=(400, 413),
        needs_body=False,
    ),
    ("/v2/repository/models/NAME/load", "POST"): Operation(
        "Loads an endpoint, where the server lets its callers do so",
        V2,
        {},
        {JSON: _ADMIN},
        refusals=_REPOSITORY,
        needs_body=False,
    ),
    ("/v2/repository/models/NAME/unload", "POST"): Operation(
        "Unloads an endpoint, where the server lets its callers do so",
        V2,
        {},
        {JSON: _ADMIN},
        refusals=_REPOSITORY,
        needs_body=False,
    ),
    ("/ping", "GET"): Operation("Whether every endpoint can answer; MLflow's empty line", SERVER, {}, refusals=_READY),
    ("/health", "GET"): Operation(
        "Whether every endpoint can answer", SERVER, {JSON: _said(status="string")}, refusals=_READY
    ),
    ("/version", "GET"): Operation(
        "The version of MLflow that the model was logged with", SERVER, {TEXT: _TEXT}, refusals=_READY
    ),
    ("/metrics", "GET"): Operation("Figures for Prometheus, summed over the workers", SERVER, {TEXT: _TEXT}),
    ("/openapi.json", "GET"): Operation("This document", PAGES, {JSON: {"type": "object"}}),
    ("/endpoints/NAME/openapi.json", "GET"): Operation(
        "This document, for one endpoint", PAGES, {JSON: {"type": "object"}}, refusals=_READY
    ),
    ("/", "GET"): Operation("A page to try the default endpoint in the browser", PAGES, _PAGE),
    ("/docs", "GET"): Operation("This document, to be read", PAGES, _PAGE),
    ("/endpoints/NAME", "GET"): Operation("A page to try the endpoint in the browser", PAGES, _PAGE),
    ("/endpoints/NAME/docs", "GET"): Operation("What the endpoint takes and answers, to be read", PAGES, _PAGE),
    ("/pages/page.css", "GET"): Operation("The pages' style", PAGES, {"text/css": _TEXT}),
    **{
        (f"/pages/{name}.js", "GET"): Operation("What a page runs", PAGES, {"text/javascript": _TEXT})
        for name in ("try", "answer", "pictures", "docs")
    },
    ("/pages/icon.svg", "GET"): Operation("The pages' icon", PAGES, {"image/svg+xml": _TEXT}),
}
