"""The bodies of the clouds, where they differ from MLflow's: Vertex AI's and Azure ML's.

Vertex AI: `{"instances": [...], "parameters": {...}}` → `{"predictions": [...]}`, one element an instance
(https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements#request_requirements).
Azure ML: `{"input_data": …}` → the bare predictions, as its deployments of MLflow models without code
(https://learn.microsoft.com/azure/machine-learning/how-to-deploy-mlflow-models-online-endpoints).
"""

from typing import Any

from mlflow_deploy_plugin.errors import InvalidRequest
from mlflow_deploy_plugin.runtime import Array
from mlflow_deploy_plugin.server.protocols.content import dump_json, json_type, load_json_object, rows_of
from mlflow_deploy_plugin.server.protocols.tfserving import decode_base64


def read_vertex(content_type: str | None, body: bytes) -> dict[str, Any]:
    """MLflow's document for the body of a prediction; MLflow's own, which `rawPredict` passes on, stays as it is.

    `parameters` are MLflow's `params`. Text may come as `{"b64": …}`.

    Raises:
        UnsupportedMediaType, InvalidRequest: it is no JSON object, or its parameters are none.
    """
    document = load_json_object(content_type, body)
    parameters = document.pop("parameters", None)
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidRequest(f"parameters is a JSON {json_type(parameters)}; an object is expected")
    params = {} if parameters is None else {"params": parameters}
    return {**params, **(decode_base64(document) if b'"b64"' in body else document)}


def encode_vertex(prediction: Array | dict[str, Array]) -> bytes:
    """`{"predictions": [...]}`: Vertex AI takes nothing but an array there, so several outputs are one object a row.

    Raises:
        SchemaMismatch: an output has not one value for each row.
    """
    return dump_json({"predictions": rows_of(prediction) if isinstance(prediction, dict) else prediction})


def read_azure(content_type: str | None, body: bytes) -> dict[str, Any]:
    """MLflow's document for `{"input_data": …}`: a table (`columns`, `index`, `data`), rows, records, or columns.

    Raises:
        UnsupportedMediaType, InvalidRequest: it is no JSON object, or lacks the field.
    """
    document = load_json_object(content_type, body)
    if "input_data" not in document:
        raise InvalidRequest("the JSON object must hold the field input_data")
    data: Any = document["input_data"]
    field = "dataframe_split" if isinstance(data, dict) and isinstance(data.get("data"), list) else "inputs"
    params = {"params": document["params"]} if "params" in document else {}
    return {field: data, **params}


def encode_azure(prediction: Array | dict[str, Array]) -> bytes:
    """The predictions by themselves."""
    return dump_json(prediction)
