"""An endpoint for KServe: a ServingRuntime with the image, and an InferenceService that
uses it by protocol V2.

KServe copies a model at a storage address (s3://…, pvc://…) into the pod. Any other
model, such as a followed stage, is named in the spec, and the server loads it. The spec
is in a ConfigMap, so its changes do not need new pods.
https://kserve.github.io/website/docs/concepts/resources describes the objects.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import dump_spec
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.ship.manifests.kubernetes_objects import check_name, pod_of, spec_of_pod
from mlflow_deploy_plugin.ship.manifests.served import (
    SPEC_FILE,
    Document,
    Place,
    dump_documents,
    http_port,
    make_document,
)

MODEL_FOLDER = "/mnt/models"
_SCHEMES = ("gs://", "s3://", "pvc://", "hdfs://", "webhdfs://", "hf://", "oci://")
"""The addresses that KServe's storage initializer supports. MLflow's artifact stores do
not support all of them.
"""
_FORMAT = "onnxserve"
_NOT_TAKEN = ("name", "startupProbe", "livenessProbe", "lifecycle", "ports")
"""The container fields that Knative Serving refuses or expects in another format."""


def render(spec: EndpointSpec, place: Place) -> Mapping[str, str]:
    """Return a file with the ConfigMap of the spec, the ServingRuntime and the
    InferenceService.

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
    visibility = {}
    if spec.server.is_open:
        visibility = {"networking.kserve.io/visibility": "cluster-local"}
    kubernetes = spec.kubernetes
    predictor: Document = {}
    if kubernetes.replicas:
        predictor = {"minReplicas": kubernetes.replicas, "maxReplicas": kubernetes.replicas}
    predictor["model"] = {
        "modelFormat": {"name": _FORMAT},
        "runtime": spec.name,
        "protocolVersion": "v2",
        **models.storage,
    }
    if kubernetes.max_replicas is not None:
        predictor |= {
            "maxReplicas": kubernetes.max_replicas,
            "scaleMetric": "cpu",
            "scaleTarget": kubernetes.target_cpu_percent,
        }
    predictor |= models.canary
    if kubernetes.service_account is not None:
        predictor["serviceAccountName"] = kubernetes.service_account
    pod = pod_of(spec, place)
    port = http_port(spec)
    (container,) = pod["containers"]
    readiness = container["readinessProbe"]
    # Set the pod's security context on the container: ServingRuntime and Knative do not
    # accept it on the pod.
    runtime: Document = {
        "annotations": {
            "prometheus.kserve.io/port": str(port),
            "prometheus.kserve.io/path": "/metrics",
        },
        "supportedModelFormats": [{"name": _FORMAT, "version": "1"}],
        "protocolVersions": ["v2"],
        "containers": [
            {
                "name": "kserve-container",
                **{name: value for name, value in container.items() if name not in _NOT_TAKEN},
                "securityContext": {**pod["securityContext"], **container["securityContext"]},
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
    document = partial(make_document, spec.name, place)
    return {
        f"{spec.name}.kserve.yaml": dump_documents(
            [
                document(
                    "v1", "ConfigMap", data={SPEC_FILE: dump_spec(spec_of_pod(models.served))}
                ),
                document("serving.kserve.io/v1alpha1", "ServingRuntime", spec=runtime),
                document(
                    "serving.kserve.io/v1beta1",
                    "InferenceService",
                    visibility,
                    spec={"predictor": predictor},
                ),
            ]
        )
    }


class _Models(NamedTuple):
    """The models of an endpoint in KServe.

    Attributes:
        served: the spec for the server.
        storage: the field with the model that KServe copies; empty if the server loads
            the models.
        canary: the field with the canary's share; empty without a canary.
    """

    served: EndpointSpec
    storage: Document
    canary: Document

    @staticmethod
    def of(spec: EndpointSpec) -> "_Models":
        """Decide whether KServe copies the models.

        If the models of both variants have storage addresses, the variant with the
        smaller weight is the canary.
        """
        variants = list(spec.variants.values())
        in_stores = all(variant.model.startswith(_SCHEMES) for variant in variants)
        if (
            not in_stores
            or any(variant.shadow for variant in variants)
            or spec.sticky is not None
            or len(variants) > 2
        ):
            return _Models(spec, {}, {})
        name, newest = min(reversed(spec.variants.items()), key=lambda item: item[1].weight)
        in_pod = newest.model_copy(update={"model": MODEL_FOLDER, "weight": 100})
        served = spec.model_copy(update={"variants": {name: in_pod}})
        canary = {}
        if len(variants) > 1:
            total = sum(variant.weight for variant in variants)
            canary = {"canaryTrafficPercent": round(100 * newest.weight / total)}
        return _Models(served, {"storageUri": newest.model}, canary)
