"""The formats of `onnxserve render`, with one function per format."""

from collections.abc import Callable, Mapping

from mlflow_deploy_plugin.core.extensions import PROXIES, find_entry
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


def render_files(format_name: str, spec: EndpointSpec, place: Place) -> Mapping[str, str]:
    """Return the files of an endpoint (path → text), with the replicas and the proxy if
    the spec has a proxy. Raises InvalidConfig if the format has none, or does not
    accept a field.
    """
    if spec.proxy is None:
        return FORMATS[format_name](spec, place)
    render: Callable[[EndpointSpec, Place], Mapping[str, str]] = find_entry(
        PROXIES, format_name, "proxied format", ()
    )
    return render(spec, place)
