"""The formats of `onnxserve render`, with one function per format."""

from collections.abc import Callable, Mapping

from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.ship.manifests import compose, helm, kserve, kubernetes_objects
from mlflow_deploy_plugin.ship.manifests.served import Place

FORMATS: Mapping[str, Callable[[EndpointSpec, Place], Mapping[str, str]]] = {
    "kubernetes": kubernetes_objects.render,
    "keda": kubernetes_objects.render_keda,
    "helm": helm.render,
    "kserve": kserve.render,
    "compose": compose.render,
}
"""Format → a function that returns the files of an endpoint (path → text), or raises
InvalidConfig.
"""
