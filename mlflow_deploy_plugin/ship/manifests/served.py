"""The parts that all formats share: the paths in a container, the served spec, and
YAML.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.settings import workspace_environment, workspace_of
from mlflow_deploy_plugin.core.spec.document import apply_config
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec

Document = dict[str, Any]

SPEC_FOLDER = "/etc/onnxserve"
SPEC_FILE = "spec.yaml"
HOME_FOLDER = "/var/lib/onnxserve"
"""The folder of the image that every user can write. It contains the state, or the
listener's socket.
"""
STATE_FOLDER = f"{HOME_FOLDER}/server"
SERVE = ["serve", "--spec", f"{SPEC_FOLDER}/{SPEC_FILE}", "--state-dir", STATE_FOLDER]
"""The arguments of the image's entry point."""
PORT = 8080
USER = 10001
"""The user of `docker/Dockerfile`."""
OWNER = "onnxserve/owner"
"""The annotation with the store that owns the endpoint of an object."""
NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""The pattern of a valid Kubernetes namespace."""
_CREDENTIALS = (
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_ACCESS_KEY",
    "DATABRICKS_TOKEN",
)
_NOT_SERVED = ("monitors", "alarms", "container", "kubernetes", "proxy")


@dataclass(frozen=True)
class Place:
    """The platform for which documents are made. Raises InvalidConfig if the namespace
    is not valid.

    Attributes:
        environment: additional variables of the server; variables of the spec take
            precedence.
        owner: the store that owns the objects; empty for files that a user applies.
    """

    namespace: str = "default"
    environment: Mapping[str, str] = field(default_factory=workspace_environment)
    owner: str = ""

    def __post_init__(self) -> None:
        if not NAMESPACE.fullmatch(self.namespace):
            raise InvalidConfig(
                "namespace: at most 63 lowercase letters, digits and inner - are expected (got "
                f"{self.namespace!r})"
            )


def make_document(
    name: str,
    place: Place,
    api_version: str,
    kind: str,
    labels: Mapping[str, str] | None = None,
    **content: Any,
) -> Document:
    """Return an object of Kubernetes with the name and the owner of the place.
    `content` has its fields after the metadata.
    """
    metadata: Document = {"name": name, "namespace": place.namespace}
    if labels:
        metadata["labels"] = dict(labels)
    if place.owner:
        metadata["annotations"] = {OWNER: place.owner}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}


_BOOLEANS = ("y", "Y", "n", "N")
"""The texts that kubectl, Helm and Compose read as booleans unless quoted, and that
PyYAML does not quote.
"""
_LINE_BREAKS = "\x85\u2028\u2029"
"""The characters that YAML treats as line breaks. A text with such a character is
quoted to keep the character.
"""


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that writes multi-line texts as blocks, and repeats equal objects
    instead of using YAML aliases.
    """

    def ignore_aliases(self, data: object) -> bool:
        return True

    def text(self, text: str) -> yaml.ScalarNode:
        style = "|" if "\n" in text else None
        if text in _BOOLEANS or any(character in text for character in _LINE_BREAKS):
            style = '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.text)


def dump_documents(documents: list[Document]) -> str:
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def http_port(spec: EndpointSpec) -> int:
    return spec.server.port or PORT


def served_spec(spec: EndpointSpec, host: str | None = None) -> EndpointSpec:
    """Return the spec for the server, without the fields that only the controller or
    the platform needs.

    The server listens on `host`, by default on all addresses of its container. The
    platform protects a server without auth by a NetworkPolicy, or by a port that is
    published only on loopback. Raises InvalidConfig for equal ports.
    """
    update = {
        "server.host": host or "0.0.0.0",
        "server.port": http_port(spec),
        "server.insecure": spec.server.insecure or (host is None and spec.server.is_open),
    }
    left_out = {
        name: EndpointSpec.model_fields[name].get_default(call_default_factory=True)
        for name in _NOT_SERVED
    }
    # Another port may be equal to the default port.
    return apply_config(spec.model_copy(update=left_out), update)


def refuse_strangers(spec: EndpointSpec, entrance: str) -> None:
    """Raise InvalidConfig if the endpoint has no auth, because all clients that reach
    `entrance` could use it.
    """
    if spec.server.is_open:
        raise InvalidConfig(
            f"without auth, all clients that reach {entrance} could use the endpoint: set -C "
            "server.api_keys=true or -C server.jwt_issuer=…; or -C server.insecure=true if a "
            "proxy authenticates the clients"
        )


def asks_mlflow(spec: EndpointSpec) -> bool:
    """Return True if the server needs MLflow to find or to fetch a model."""
    return any(
        parse_model_uri(variant.model).kind not in ("path", "remote")
        for variant in spec.variants.values()
    )


def lacks_mlflow_address(spec: EndpointSpec) -> bool:
    """Return True if the endpoint needs MLFLOW_TRACKING_URI (`asks_mlflow`) and the
    spec does not set this variable.
    """
    variables = {**spec.container.environment, **spec.container.secrets}
    return "MLFLOW_TRACKING_URI" not in variables and asks_mlflow(spec)


def missing_settings(spec: EndpointSpec) -> Iterator[str]:
    """Yield what the server of the spec lacks: the address of MLflow, credentials that
    this machine has, and the key of Prometheus.
    """
    container = spec.container
    variables = {**container.environment, **container.secrets, **container.secret_files}
    if lacks_mlflow_address(spec):
        yield (
            "needs the address of MLflow, which is not set: "
            "-C container.environment.MLFLOW_TRACKING_URI=http://…"
        )
    for name in _CREDENTIALS:
        if name in os.environ and name not in variables:
            yield f"does not have this machine's {name}: -C container.secrets.{name}=SECRET/KEY"
    kubernetes = spec.kubernetes
    needs_key = spec.server.authenticates and spec.server.metrics_port is None
    if kubernetes.service_monitor and needs_key and not kubernetes.service_monitor_key:
        yield (
            "refuses Prometheus without a key: -C "
            "kubernetes.service_monitor_key=SECRET/KEY, or -C server.metrics_port=9100"
        )


def machine_name(spec: EndpointSpec, place: Place) -> str:
    """Return a name with the MLflow workspace, because other workspaces on a machine
    may use the same endpoint name.
    """
    workspace = workspace_of(environment_of(spec, place))
    if workspace:
        return f"{workspace}_{spec.name}"
    return spec.name


def environment_of(spec: EndpointSpec, place: Place) -> dict[str, str]:
    """Return the environment variables from the place and the spec (variable → value),
    without secrets.
    """
    variables = {**place.environment, **spec.container.environment, **spec.container.secret_files}
    return {
        name: variables[name] for name in sorted(variables) if name not in spec.container.secrets
    }


def local_files(spec: EndpointSpec) -> list[str]:
    """Return the local paths in the spec: model folders, certificate and key, files of
    secrets, the key of signatures.

    Raises InvalidConfig if a path is relative, because the server has another working
    directory.
    """
    models = {
        f"variants.{name}.model": parse_model_uri(variant.model)
        for name, variant in spec.variants.items()
    }
    paths = {name: uri.name for name, uri in models.items() if uri.kind == "path"}
    for name in ("certfile", "keyfile", "ca_certs"):
        file = getattr(spec.server, name)
        if file:
            paths[f"server.{name}"] = file
    for name, file in spec.container.secret_files.items():
        paths[f"container.secret_files.{name}"] = file
    if spec.trusted_file:
        paths["require"] = spec.trusted_file
    for name, path in paths.items():
        if not path.startswith("/"):
            hint = "; a registered model is models:/NAME@ALIAS" if name in models else ""
            raise InvalidConfig(f"{name}: an absolute path is expected, not {path!r}{hint}")
    return list(paths.values())
