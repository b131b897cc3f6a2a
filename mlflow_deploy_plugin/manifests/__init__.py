"""Specs as documents for other platforms. `FORMATS` has one function per format, which does not apply the documents."""

from collections.abc import Callable, Mapping

from mlflow_deploy_plugin.manifests import compose, helm, kserve, kubernetes, seldon, systemd
from mlflow_deploy_plugin.manifests.helm import values_schema
from mlflow_deploy_plugin.manifests.kubernetes import CONTAINER, endpoint_labels, kubernetes_documents
from mlflow_deploy_plugin.manifests.served import (
    HOME_FOLDER,
    NAMESPACE,
    OWNER,
    STATE_FOLDER,
    USER,
    Document,
    Place,
    asks_mlflow,
    dump_documents,
    http_port,
    lacks_mlflow_address,
    local_files,
)
from mlflow_deploy_plugin.spec import EndpointSpec

FORMATS: Mapping[str, Callable[[EndpointSpec, Place], Mapping[str, str]]] = {
    "kubernetes": kubernetes.render,
    "keda": kubernetes.render_keda,
    "helm": helm.render,
    "kserve": kserve.render,
    "seldon": seldon.render,
    "compose": compose.render,
    "systemd": systemd.render,
}
"""Format → a function that returns the files of an endpoint (path → text), or raises InvalidConfig."""

__all__ = [
    "CONTAINER",
    "FORMATS",
    "HOME_FOLDER",
    "NAMESPACE",
    "OWNER",
    "STATE_FOLDER",
    "USER",
    "Document",
    "Place",
    "asks_mlflow",
    "dump_documents",
    "endpoint_labels",
    "http_port",
    "kubernetes_documents",
    "lacks_mlflow_address",
    "local_files",
    "values_schema",
]
