"""Specs as documents for those who run servers: `FORMATS` has one function for each, and nothing here is applied."""

from collections.abc import Callable, Mapping

from mlflow_deploy_plugin.manifests import kubernetes
from mlflow_deploy_plugin.manifests.kubernetes import Document, Place, dump_documents, kubernetes_documents
from mlflow_deploy_plugin.spec import EndpointSpec

FORMATS: Mapping[str, Callable[[EndpointSpec, Place], str]] = {"kubernetes": kubernetes.render}
"""Name of a format → the function that returns the text of an endpoint in it; it raises InvalidConfig."""

__all__ = ["FORMATS", "Document", "Place", "dump_documents", "kubernetes_documents"]
