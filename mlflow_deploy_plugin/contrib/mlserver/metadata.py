"""The settings of a model in MLServer's form, and its documents about models and the
server.

The settings are the key `mlserver` of an MLmodel's metadata, which has the form of
`model-settings.json`. A model without settings is one of MLServer's MLflow runtime, whose
metadata are the signature (`mlserver_mlflow/metadata.py`).
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from mlflow_deploy_plugin.core.mlmodel import read_mlmodel
from mlflow_deploy_plugin.core.version import __version__
from mlflow_deploy_plugin.serve.protocols.v2 import EXTENSIONS
from mlflow_deploy_plugin.serve.protocols.v2_tensors import datatype_of
from mlflow_deploy_plugin.serve.runtime.artifact import TENSOR_DTYPES, Artifact
from mlflow_deploy_plugin.serve.variants import LoadedVersion

MLFLOW = "MLflowRuntime"
_COLUMNS = {
    "boolean": ("BOOL", "np"),
    "integer": ("INT32", "np"),
    "long": ("INT64", "np"),
    "float": ("FP32", "np"),
    "double": ("FP64", "np"),
    "string": ("BYTES", "str"),
    "binary": ("BYTES", "base64"),
    "datetime": ("BYTES", "datetime"),
}
"""The datatype and the content type of MLflow's columns; those of other types are JSON."""
_OBJECT = ("BYTES", "pd_json")


def settings_of(artifact: Artifact) -> Mapping[str, Any]:
    """Return the settings of a model; empty without them."""
    settings = artifact.metadata.get("mlserver")
    return settings if isinstance(settings, Mapping) else {}


def _parameters_of(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = settings.get("parameters")
    return parameters if isinstance(parameters, Mapping) else {}


def runtime_of(artifact: Artifact) -> str:
    """Return the name of the class of MLServer's runtime for a model."""
    implementation = settings_of(artifact).get("implementation") or MLFLOW
    return str(implementation).rpartition(".")[2]


def content_type_of(request: Mapping[str, object], artifact: Artifact) -> str:
    """Return the content type of a request's parameters, or that of the settings; empty
    without one.
    """
    of_settings = _parameters_of(settings_of(artifact)).get("content_type")
    return str(request.get("content_type") or of_settings or "")


def version_of(loaded: LoadedVersion) -> str:
    """Return the version in a model's settings, or the registered version if the model
    has no settings; empty if there is none.
    """
    settings = settings_of(loaded.predictor.artifact)
    if not settings:
        return loaded.version
    version = _parameters_of(settings).get("version")
    return "" if version is None else str(version)


def server_name() -> str:
    """Return the name that MLServer's variable gives to the server."""
    return os.environ.get("MLSERVER_SERVER_NAME") or "mlserver"


def describe_server() -> dict[str, object]:
    return {"name": server_name(), "version": __version__, "extensions": EXTENSIONS}


def describe_model(endpoint: str, artifact: Artifact) -> dict[str, object]:
    """Return the document of `GET /v2/models/NAME`: the fields of the settings and, for a
    model of MLflow, the tensors of its signature.
    """
    settings = settings_of(artifact)
    document: dict[str, object] = {
        "name": endpoint,
        "versions": settings.get("versions") or [],
        "platform": settings.get("platform") or "",
        "inputs": settings.get("inputs") or [],
        "outputs": settings.get("outputs") or [],
    }
    content_type = _parameters_of(settings).get("content_type")
    if runtime_of(artifact) == MLFLOW:
        signature = read_mlmodel(artifact.folder).get("signature") or {}
        inputs = json.loads(signature.get("inputs") or "[]")
        outputs = json.loads(signature.get("outputs") or "[]")
        if inputs:
            document["inputs"] = _tensors(inputs, "input-")
            document["outputs"] = _tensors(outputs, "output-")
            content_type = "pd"
            if inputs[0].get("type") == "tensor":
                content_type = "dict" if inputs[0].get("name") else "np"
    document["parameters"] = {"content_type": content_type} if content_type else {}
    return document


def _tensors(entries: list[Mapping[str, Any]], prefix: str) -> list[dict[str, object]]:
    """Return the tensors of a signature. One without a name has the prefix and its
    position.
    """
    tensors = []
    for position, entry in enumerate(entries):
        if entry.get("type") == "tensor":
            spec = entry["tensor-spec"]
            shape = list(spec["shape"])
            kind = datatype_of(TENSOR_DTYPES.get(spec["dtype"], "str")), "np"
        else:
            shape = [-1, 1]
            kind = _COLUMNS.get(str(entry.get("type")), _OBJECT)
        datatype, content_type = kind
        tensors.append(
            {
                "name": entry.get("name") or f"{prefix}{position}",
                "datatype": datatype,
                "shape": shape,
                "parameters": {"content_type": content_type},
            }
        )
    return tensors
