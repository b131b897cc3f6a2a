"""An endpoint for KServe: a ServingRuntime with the image, and an InferenceService that
uses it by protocol V2.

KServe copies a model at a storage address (s3://…, pvc://…, mlflow://…) into the pod.
Any other model, such as a followed stage, is named in the spec, and the server loads
it. The spec is in a ConfigMap, so its changes do not need new pods. For mlflow://…,
KServe runs `onnxserve fetch` as a ClusterStorageContainer.
https://kserve.github.io/website/docs/concepts/resources describes the objects.
"""

from collections.abc import Mapping
from typing import NamedTuple

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import dump_spec
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.ship.manifests.kubernetes_objects import check_name, pod_of, spec_of_pod
from mlflow_deploy_plugin.ship.manifests.served import (
    SPEC_FILE,
    SPEC_FOLDER,
    Document,
    Place,
    dump_documents,
    http_port,
    make_document,
)

MODEL_FOLDER = "/mnt/models"
_REGISTRY = "mlflow://"
_SCHEMES = ("gs://", "s3://", "pvc://", "hdfs://", "webhdfs://", "hf://", "oci://")
"""The addresses that KServe's own storage initializer supports. MLflow's artifact
stores do not support all of them.
"""
_FORMAT = "onnxserve"
_SERVING_CONTAINER = "kserve-container"
_CANARY = "canary"
_CANARY_FILE = f"{_CANARY}.yaml"
_NOT_TAKEN = ("name", "startupProbe", "livenessProbe", "lifecycle", "ports")
"""The container fields that Knative Serving refuses or expects in another format."""


def render(spec: EndpointSpec, place: Place) -> Mapping[str, str]:
    """Return a file with the ConfigMap of the spec, the ServingRuntime and the
    InferenceService. With a model at mlflow://…, a second file has the
    ClusterStorageContainer, which applies to the whole cluster.

    Without auth, the InferenceService is only reachable within the cluster. Raises
    InvalidConfig if the spec requests an object that KServe itself creates, or if the
    name is not valid for a Service.
    """
    check_name(spec)
    if spec.kubernetes.host is not None:
        raise InvalidConfig(
            "kubernetes.host: KServe creates host names and gateways; remove this field"
        )
    models = _Models.of(spec)
    pod = pod_of(spec, place)
    (container,) = pod["containers"]
    # Set the pod's security context on the container: ServingRuntime and Knative do not
    # accept it on the pod.
    container["securityContext"] = {**pod["securityContext"], **container["securityContext"]}
    data = {file: dump_spec(spec_of_pod(served)) for file, served in models.served.items()}
    documents = [
        make_document(spec.name, place, "v1", "ConfigMap", data=data),
        _serving_runtime(spec, place, pod, container),
        _inference_service(spec, place, models),
    ]
    files = {f"{spec.name}.kserve.yaml": dump_documents(documents)}
    if any(variant.model.startswith(_REGISTRY) for variant in spec.variants.values()):
        storage = _storage_container(spec, container)
        files["onnxserve.storage.yaml"] = f"---\n{dump_documents([storage])}"
    return files


def _serving_runtime(
    spec: EndpointSpec, place: Place, pod: Document, container: Document
) -> Document:
    port = http_port(spec)
    readiness = container["readinessProbe"]
    runtime: Document = {
        "annotations": {
            "prometheus.kserve.io/port": str(port),
            "prometheus.kserve.io/path": "/metrics",
        },
        "supportedModelFormats": [{"name": _FORMAT, "version": "1"}],
        "protocolVersions": ["v2"],
        "containers": [
            {
                "name": _SERVING_CONTAINER,
                **{name: value for name, value in container.items() if name not in _NOT_TAKEN},
                "ports": [{"containerPort": port, "protocol": "TCP"}],
                "readinessProbe": {**readiness, "httpGet": {**readiness["httpGet"], "port": port}},
            }
        ],
        **{
            name: pod[name]
            for name in ("volumes", "imagePullSecrets", "nodeSelector", "tolerations")
            if name in pod
        },
    }
    return make_document(
        spec.name, place, "serving.kserve.io/v1alpha1", "ServingRuntime", spec=runtime
    )


def _inference_service(spec: EndpointSpec, place: Place, models: "_Models") -> Document:
    visibility = {}
    if spec.server.is_open:
        visibility = {"networking.kserve.io/visibility": "cluster-local"}
    kubernetes = spec.kubernetes
    predictor: Document = {"minReplicas": kubernetes.replicas}
    if kubernetes.replicas:
        predictor["maxReplicas"] = kubernetes.replicas
    model = {"modelFormat": {"name": _FORMAT}, "runtime": spec.name, "protocolVersion": "v2"}
    predictor["model"] = {**model, **models.storage}
    if kubernetes.max_replicas is not None:
        predictor |= {
            "maxReplicas": kubernetes.max_replicas,
            "scaleMetric": "cpu",
            "scaleTarget": kubernetes.target_cpu_percent,
        }
    if kubernetes.service_account is not None:
        predictor["serviceAccountName"] = kubernetes.service_account
    service = make_document(
        spec.name,
        place,
        "serving.kserve.io/v1beta1",
        "InferenceService",
        visibility,
        spec={"predictor": predictor},
    )
    if models.canary:
        # The canary has the other fields of the predictor. Its schema requires the name
        # of the container.
        canary = {
            "name": _CANARY,
            "model": {"name": _SERVING_CONTAINER, **model, **models.canary},
        }
        share = {"predictor": canary, "trafficPercent": models.canary_percent}
        service["spec"]["canary"] = [share]
        mode = {"serving.kserve.io/deploymentMode": "Standard"}
        service["metadata"].setdefault("annotations", {}).update(mode)
    return service


def _storage_container(spec: EndpointSpec, container: Document) -> Document:
    """Return the object of the cluster that lets KServe fetch versions of the registry,
    with the image and the environment of the server's container.
    """
    requirements = ["--require", spec.require] if spec.require else []
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ClusterStorageContainer",
        "metadata": {"name": "onnxserve"},
        "spec": {
            "container": {
                "name": "storage-initializer",
                "image": container["image"],
                # KServe adds the URI and the folder as arguments.
                "command": ["onnxserve", "fetch", *requirements],
                # The pods of other runtimes have no files of this endpoint.
                "env": [
                    variable
                    for variable in container["env"]
                    if variable["name"] not in spec.container.secret_files
                ],
                "securityContext": {
                    **container["securityContext"],
                    "readOnlyRootFilesystem": False,
                },
            },
            "supportedUriFormats": [{"prefix": "models:/"}, {"prefix": _REGISTRY}],
            "workloadType": "initContainer",
            "supportsMultiModelDownload": False,
        },
    }


class _Models(NamedTuple):
    """The models of an endpoint in KServe.

    Attributes:
        served: the specs for the servers, by their files.
        storage: the field with the model that KServe copies; empty if the server loads
            the models.
        canary: the fields with the model of the canary and the file of its spec; empty
            without a canary.
    """

    served: Mapping[str, EndpointSpec]
    storage: Document
    canary: Document
    canary_percent: int = 0

    @staticmethod
    def of(spec: EndpointSpec) -> "_Models":
        """Decide whether KServe copies the models.

        If the models of both variants have storage addresses, the variant with the
        smaller weight is the canary. KServe does not split the traffic of an
        InferenceService that is only reachable within the cluster.
        """
        variants = sorted(spec.variants.items(), key=lambda item: -item[1].weight)
        # The cluster's storage container may not have this endpoint's requirements.
        schemes = _SCHEMES if spec.require else (*_SCHEMES, _REGISTRY)
        in_stores = all(variant.model.startswith(schemes) for _, variant in variants)
        if (
            not in_stores
            or any(variant.shadow for _, variant in variants)
            or spec.sticky is not None
            or len(variants) > 2
            or (len(variants) > 1 and spec.server.is_open)
        ):
            return _Models({SPEC_FILE: spec}, {}, {})
        served = {}
        for file, (name, variant) in zip((SPEC_FILE, _CANARY_FILE), variants, strict=False):
            in_pod = variant.model_copy(update={"model": MODEL_FOLDER, "weight": 100})
            served[file] = spec.model_copy(update={"variants": {name: in_pod}})
        _, stable = variants[0]
        models = _Models(served, {"storageUri": stable.model}, {})
        if len(variants) == 1:
            return models
        _, newest = variants[1]
        return models._replace(
            canary={
                "storageUri": newest.model,
                # KServe appends these arguments, and the last --spec is used.
                "args": ["--spec", f"{SPEC_FOLDER}/{_CANARY_FILE}"],
            },
            canary_percent=round(100 * newest.weight / (stable.weight + newest.weight)),
        )
