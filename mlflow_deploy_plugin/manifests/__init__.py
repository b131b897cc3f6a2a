"""Specs as documents for those who run servers: `FORMATS` has one function for each, and nothing here is applied."""

from collections.abc import Callable, Mapping

from mlflow_deploy_plugin.manifests import compose, helm, kubernetes, systemd
from mlflow_deploy_plugin.manifests.helm import values_schema
from mlflow_deploy_plugin.manifests.kubernetes import kubernetes_documents
from mlflow_deploy_plugin.manifests.served import Document, Place, dump_documents
from mlflow_deploy_plugin.spec import EndpointSpec

FORMATS: Mapping[str, Callable[[EndpointSpec, Place], Mapping[str, str]]] = {
    "kubernetes": kubernetes.render,
    "helm": helm.render,
    "compose": compose.render,
    "systemd": systemd.render,
}
"""Name of a format → the function that returns the files of an endpoint in it, path → text; it raises InvalidConfig."""

__all__ = ["FORMATS", "Document", "Place", "dump_documents", "kubernetes_documents", "values_schema"]
