"""Select a runtime and make a pod, as KServe's controller does, which needs a newer
Kubernetes than the tests have.

The functions follow `GetSupportingRuntimes` (predictor_model.go in
pkg/apis/serving/v1beta1), `SetMlServerDefaults` (inference_service_defaults.go) and
`MergeRuntimeContainers` and `ReplacePlaceholders` (inferenceservice/utils/utils.go in
pkg/controller/v1beta1) of KServe at aaac4e294dae, August 2026. The model's volume takes
the place of the storage initializer.
"""

import gzip
import json
import re
from itertools import chain
from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[1] / "contrib" / "mlserver" / "kserve"
RELEASES = {
    "0.18": ("clusterservingruntimes-0.18", "inferenceservices-0.18"),
    "0.19": ("clusterservingruntimes-0.18", "inferenceservices-0.18"),
    "0.20": ("clusterservingruntimes-0.18", "inferenceservices-0.20"),
    "0.21": ("clusterservingruntimes-0.21", "inferenceservices-0.20"),
}
"""A release → the files of its CustomResourceDefinitions (config/crd/full); equal
definitions are stored once. 0.21 is the main branch of August 2026.
"""
SERVER_TYPE = "serving.kserve.io/server-type"
_CLASSES = {
    "xgboost": "mlserver_xgboost.XGBoostModel",
    "lightgbm": "mlserver_lightgbm.LightGBMModel",
    "mlflow": "mlserver_mlflow.MLflowRuntime",
}
_CLASS = "mlserver_sklearn.SKLearnModel"
_DEFAULT_PROBE = {"tcpSocket": {"port": 8080}, "timeoutSeconds": 1, "periodSeconds": 10}


def own_runtimes():
    """Return the runtimes that KServe installs, by name."""
    documents = yaml.safe_load_all((FOLDER / "runtimes.yaml").read_text())
    return {document["metadata"]["name"]: document for document in documents if document}


def definitions(release):
    """Return the definitions of ClusterServingRuntime and InferenceService."""
    return [
        json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))
        for name in RELEASES[release]
    ]


def strict_schema(definition):
    """Return the JSON schema of a definition's objects, which refuses unknown fields
    like kubectl.
    """
    (version,) = definition["spec"]["versions"]

    def strict(schema):
        if isinstance(schema, list):
            return [strict(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        made = {name: strict(value) for name, value in schema.items()}
        is_open = schema.get("x-kubernetes-preserve-unknown-fields")
        if isinstance(schema.get("properties"), dict) and not is_open:
            made.setdefault("additionalProperties", False)
        if schema.get("x-kubernetes-int-or-string"):
            made.pop("type", None)
        return made

    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def inference_service(name, format_name, **model):
    """Return an InferenceService; `model` has further fields of `predictor.model`."""
    model = {"modelFormat": {"name": format_name}, "storageUri": f"s3://models/{name}", **model}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"predictor": {"model": model}},
    }


def selected_runtime(runtimes, service):
    """Return the runtime of an InferenceService that KServe selects, or None.

    Args:
        runtimes: ClusterServingRuntimes, the newest first.
        service: an InferenceService with `predictor.model`.
    """
    model = service["spec"]["predictor"]["model"]
    wanted = model["modelFormat"]
    protocol = model.get("protocolVersion", "v1")
    label = (wanted["name"], wanted.get("version"))

    def supports(spec):
        formats = [
            given
            for given in spec["supportedModelFormats"]
            if model.get("runtime") or given.get("autoSelect")
        ]
        labels = chain.from_iterable(
            ((given["name"], None), (given["name"], given.get("version"))) for given in formats
        )
        protocols = spec.get("protocolVersions")
        return label in labels and (not protocols or protocol in protocols)

    def priority(runtime):
        formats = runtime["spec"]["supportedModelFormats"]
        named = [given for given in formats if given["name"] == wanted["name"]]
        return named[0].get("priority", 0)

    name = model.get("runtime")
    if name:
        runtimes = [runtime for runtime in runtimes if runtime["metadata"]["name"] == name]
    able = [
        runtime
        for runtime in runtimes
        if not runtime["spec"].get("disabled") and supports(runtime["spec"])
    ]
    return max(able, key=priority, default=None)


def predictor_pod(runtime, service, volume):
    """Return the pod that KServe makes of an InferenceService in its mode `Standard`.

    Args:
        volume: the source of the volume with the model.
    """
    container = _predictor_container(runtime, service)
    mount = {"name": "kserve-provision-location", "mountPath": "/mnt/models", "readOnly": True}
    container["volumeMounts"] = [*container.get("volumeMounts", []), mount]
    name = service["metadata"]["name"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-predictor",
            "labels": {"serving.kserve.io/inferenceservice": name},
            "annotations": runtime["spec"].get("annotations", {}),
        },
        "spec": {
            "automountServiceAccountToken": False,
            "containers": [container],
            "volumes": [*runtime["spec"].get("volumes", []), {"name": mount["name"], **volume}],
        },
    }


def _predictor_container(runtime, service):
    model = service["spec"]["predictor"]["model"]
    name = service["metadata"]["name"]
    format_name = model["modelFormat"]["name"]
    labels = dict(service["metadata"].get("labels", {}))
    annotations = {"modelFormat": format_name, **service["metadata"].get("annotations", {})}
    own_variables = []
    if runtime["metadata"].get("annotations", {}).get(SERVER_TYPE) == "mlserver":
        labels["modelClass"] = _CLASSES.get(format_name, _CLASS)
        own_variables = [
            {"name": "MLSERVER_MODEL_NAME", "value": name},
            {"name": "MLSERVER_MODEL_URI", "value": "/mnt/models"},
        ]
    (own,) = runtime["spec"]["containers"]
    container = {
        "readinessProbe": _DEFAULT_PROBE,
        **own,
        **{field: model[field] for field in ("image", "resources", "ports") if field in model},
        "args": [*own.get("args", []), *model.get("args", [])],
        "env": _merged(own.get("env", []), _merged(own_variables, model.get("env", []))),
    }
    metadata = {"Name": name, "Labels": labels, "Annotations": annotations}
    return json.loads(_expanded(json.dumps(container), metadata))


def _merged(variables, changes):
    """Return Kubernetes' strategic merge of two lists of variables."""
    by_name = {variable["name"]: variable for variable in (*variables, *changes)}
    return list(by_name.values())


def _expanded(text, metadata):
    """Return the text of a container after Go's template, which has no value for an
    unknown label.
    """

    def value(match):
        field, key = match.groups()
        found = metadata[field]
        return found if key is None else found.get(key, "<no value>")

    return re.sub(r"\{\{\.(\w+)(?:\.(\w+))?\}\}", value, text)
