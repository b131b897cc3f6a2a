"""The groups of the OpenAPI document's operations, and the bodies whose form does not
depend on the model.
"""

from mlflow_deploy_plugin.serve.http.views import JOB_FORMATS
from mlflow_deploy_plugin.serve.protocols import feedback, v2
from mlflow_deploy_plugin.serve.protocols.content import JSON
from mlflow_deploy_plugin.serve.protocols.protocol import Bodies
from mlflow_deploy_plugin.serve.protocols.schemas import (
    SIZE,
    STRING,
    JsonSchema,
    array_schema,
    object_schema,
)
from mlflow_deploy_plugin.serve.protocols.table import PROTOCOLS

PREDICTIONS = "Predictions"
V2 = v2.TAG
SERVER = "Server"
PAGES = "Pages"
TAGS = tuple(
    dict.fromkeys([PREDICTIONS, V2, *(protocol.tag for protocol in PROTOCOLS), SERVER, PAGES])
)
"""The groups of operations, in their order on the page."""
HTML: Bodies = {"text/html": STRING}
"""A page; its errors are also pages."""
TEXT: Bodies = {"text/plain": STRING}


def json_object(title: str, /, **types: str) -> Bodies:
    """Return the body of a JSON object from its property names and their types; client
    generators use the title.
    """
    properties = {}
    for name, kind in types.items():
        properties[name] = array_schema() if kind == "array" else {"type": kind}
    return {JSON: object_schema(properties, title=title)}


_TENSORS = array_schema(
    object_schema(
        {"name": STRING, "datatype": STRING, "shape": array_schema(SIZE)},
        title="v2 tensor",
    ),
)
V2_MODEL: Bodies = {
    JSON: object_schema(
        {
            "name": STRING,
            "versions": array_schema(STRING),
            "platform": STRING,
            "inputs": _TENSORS,
            "outputs": _TENSORS,
        },
        title="v2 model",
    )
}
EXPLANATION: Bodies = {
    JSON: object_schema(
        {
            "columns": array_schema(STRING),
            "outputs": array_schema(),
            "base_values": array_schema(
                description="[rows][outputs], or [rows] if a single number is explained",
            ),
            "values": array_schema(description="[rows][columns][outputs], or [rows][columns]"),
            "predictions": {},
            "background": object_schema(
                {"source": STRING, "rows": {"type": "integer"}}, title="background"
            ),
            "method": {"type": "string", "enum": ["tree", "linear", "permutation"]},
            "link": {"type": "string", "enum": ["identity", "logit", "log"]},
            "max_evals": {"type": ["integer", "null"]},
        },
        title="explanation",
    )
}
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
FEEDBACK: Bodies = {
    JSON: {"anyOf": [_FEEDBACK_BY_ID, _FEEDBACK_BY_KEY, _FEEDBACK_ENTRIES], "title": "feedback"}
}
JOB = json_object(
    "job", id="string", state="string", version="string", rows="integer", error="string"
)
JOB_FILES: Bodies = dict.fromkeys(JOB_FORMATS, STRING)
V2_INDEX: Bodies = {
    JSON: array_schema(object_schema({"name": STRING, "state": STRING}, title="v2 index entry"))
}
V2_INDEX_REQUEST: Bodies = {
    JSON: object_schema({}, {"ready": {"type": ["boolean", "null"]}}, title="v2 index request")
}
V2_CONTROL: Bodies = {
    JSON: object_schema(
        {}, {"parameters": {"type": ["object", "null"]}}, title="v2 control request"
    )
}
V2_CONFIG: Bodies = {JSON: {"type": "object", "required": ["name", "platform", "input", "output"]}}
V2_STATISTICS = json_object("v2 statistics", model_stats="array")
STATUS = json_object("status", status="string")
DOCUMENT: Bodies = {JSON: {"type": "object"}}
REQUESTS: Bodies = {
    **HTML,
    **json_object(
        "requests", requests="array", shows_values="boolean", status="string", find="string"
    ),
}
