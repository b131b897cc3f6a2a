"""The settings of a model in MLServer's form, and its documents about models and the
server.

The settings are the key `mlserver` of an MLmodel's metadata, which has the form of
`model-settings.json`. A model without settings is one of MLServer's MLflow runtime,
whose metadata are the signature (`mlserver_mlflow/metadata.py`).
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_deploy_plugin.core.errors import InvalidArtifact
from mlflow_deploy_plugin.core.mlmodel import MALFORMED, read_mlmodel
from mlflow_deploy_plugin.core.version import __version__
from mlflow_deploy_plugin.serve.protocols.content import dump_json
from mlflow_deploy_plugin.serve.protocols.v2 import EXTENSIONS
from mlflow_deploy_plugin.serve.protocols.v2_tensors import DATATYPES, datatype_of
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
"""The datatype and the content type of MLflow's columns; other types are
JSON.
"""
_OBJECT = ("BYTES", "pd_json")


def settings_of(artifact: Artifact) -> Mapping[str, Any]:
    """Return the settings of a model; empty without them."""
    settings = artifact.metadata.get("mlserver")
    return settings if isinstance(settings, Mapping) else {}


def parameters_of_settings(artifact: Artifact) -> Mapping[str, Any]:
    """Return the `parameters` of a model's settings; empty without them."""
    parameters = settings_of(artifact).get("parameters")
    return parameters if isinstance(parameters, Mapping) else {}


def runtime_of(artifact: Artifact) -> str:
    """Return the name of the class of MLServer's runtime for a model."""
    implementation = settings_of(artifact).get("implementation") or MLFLOW
    return str(implementation).rpartition(".")[2]


def content_type_of(request: Mapping[str, object], artifact: Artifact) -> str:
    """Return the content type in a request's parameters, otherwise in the settings;
    empty without one.
    """
    of_settings = parameters_of_settings(artifact).get("content_type")
    return str(request.get("content_type") or of_settings or "")


def version_of(loaded: LoadedVersion) -> str:
    """Return the version in a model's settings, or the registered version if the model
    has no settings; empty if there is none.
    """
    artifact = loaded.predictor.artifact
    if not settings_of(artifact) and loaded.version.isdigit():
        return loaded.version
    version = str(parameters_of_settings(artifact).get("version") or "")
    if not (version.isascii() and version.isprintable()):
        return ""
    return version


def server_name() -> str:
    """Return the name that MLServer's variable gives to the server."""
    return os.environ.get("MLSERVER_SERVER_NAME") or "mlserver"


def describe_server() -> dict[str, object]:
    return {"name": server_name(), "version": __version__, "extensions": EXTENSIONS}


def describe_model(endpoint: str, loaded: Sequence[str], artifact: Artifact) -> dict[str, object]:
    """Return the document of `GET /v2/models/NAME`: the fields of the settings and, for
    a model of MLflow, the tensors of its signature. MLServer does not list the loaded
    versions. Raises InvalidArtifact if the MLmodel file has values that cannot be
    understood, or sent.
    """
    settings = settings_of(artifact)
    versions = settings.get("versions")
    content_type = parameters_of_settings(artifact).get("content_type")
    inputs = _declared(settings.get("inputs"))
    outputs = _declared(settings.get("outputs"))
    if runtime_of(artifact) == MLFLOW:
        signature = read_mlmodel(artifact.folder).get("signature") or {}
        try:
            entries = json.loads(signature.get("inputs") or "[]")
            if entries:
                inputs = [_tensor(*entry, "input-") for entry in enumerate(entries)]
                returned = json.loads(signature.get("outputs") or "[]")
                outputs = [_tensor(*entry, "output-") for entry in enumerate(returned)]
                content_type = "pd"
                if entries[0].get("type") == "tensor":
                    content_type = "np"
                    if entries[0].get("name"):
                        content_type = "dict"
        except MALFORMED as error:
            raise InvalidArtifact(
                f"the signature in the MLmodel file cannot be understood: {type(error).__name__}"
            ) from None
    document: dict[str, object] = {
        "name": endpoint,
        "versions": list(map(str, versions)) if isinstance(versions, list) else [],
        "platform": str(settings.get("platform") or ""),
        "inputs": inputs,
        "outputs": outputs,
        "parameters": {"content_type": str(content_type)} if content_type else {},
    }
    try:
        dump_json(document)
    except TypeError:
        raise InvalidArtifact(
            "the MLmodel file has a text or a number that JSON cannot have"
        ) from None
    return document


def _declared(entries: object) -> list[dict[str, object]]:
    """Return the tensors that settings declare, without entries that are not
    tensors.
    """
    if not isinstance(entries, list):
        return []
    tensors = []
    for entry in entries:
        if not isinstance(entry, Mapping) or entry.get("datatype") not in DATATYPES:
            continue
        shape = entry.get("shape")
        if not isinstance(shape, list) or not all(type(size) is int for size in shape):
            continue
        tensor = {"name": str(entry.get("name")), "datatype": entry["datatype"], "shape": shape}
        parameters = entry.get("parameters")
        if isinstance(parameters, Mapping) and parameters.get("content_type"):
            tensor["parameters"] = {"content_type": str(parameters["content_type"])}
        tensors.append(tensor)
    return tensors


def _tensor(position: int, entry: Mapping[str, Any], prefix: str) -> dict[str, object]:
    """Return a tensor of a signature. One without a name has the prefix and its
    position.
    """
    if entry.get("type") == "tensor":
        spec = entry["tensor-spec"]
        shape = [int(size) for size in spec["shape"]]
        datatype = datatype_of(TENSOR_DTYPES.get(spec["dtype"], "str"))
        content_type = "np"
    else:
        shape = [-1, 1]
        datatype, content_type = _COLUMNS.get(str(entry.get("type")), _OBJECT)
    return {
        "name": str(entry.get("name") or f"{prefix}{position}"),
        "datatype": datatype,
        "shape": shape,
        "parameters": {"content_type": content_type},
    }
