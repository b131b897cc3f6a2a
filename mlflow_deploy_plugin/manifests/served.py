"""The parts that every format shares: the paths in a container, the served spec, and YAML."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.registry import parse_model_uri
from mlflow_deploy_plugin.settings import workspace_environment, workspace_of
from mlflow_deploy_plugin.spec import EndpointSpec

Document = dict[str, Any]

SPEC_FOLDER, SPEC_FILE = "/etc/onnxserve", "spec.yaml"
HOME_FOLDER = "/var/lib/onnxserve"
"""The folder of the image that every user may write: state, or the volume by which containers share a listener."""
STATE_FOLDER = f"{HOME_FOLDER}/server"
SERVE = ["serve", "--spec", f"{SPEC_FOLDER}/{SPEC_FILE}", "--state-dir", STATE_FOLDER]
"""The arguments of the image."""
PORT = 8080
STARTUP_SECONDS = 600
"""The time to fetch and load the models; pods are not asked by their other probes until then."""
TLS_FILES = {"ca_certs": "ca.crt", "certfile": "tls.crt", "keyfile": "tls.key"}
"""Field of `server` → the name that its file has in a pod, and for a unit."""
USER = 10001
"""The user of `docker/Dockerfile`."""
OWNER = "onnxserve/owner"
"""The annotation that names the store whose endpoint an object belongs to."""
NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""The names that a Kubernetes namespace can have."""
_NOT_SERVED = ("monitors", "container", "kubernetes")


@dataclass(frozen=True)
class Place:
    """The place that documents are for. Raises InvalidConfig if no namespace can have this name.

    Attributes:
        environment: further variables of the server; the spec's variables win.
        owner: the store that the objects belong to; empty for files that others apply.
    """

    namespace: str = "default"
    environment: Mapping[str, str] = field(default_factory=workspace_environment)
    owner: str = ""

    def __post_init__(self) -> None:
        if not NAMESPACE.fullmatch(self.namespace):
            raise InvalidConfig(
                f"namespace: small letters, digits and - within are expected, at most 63 (got {self.namespace!r})"
            )


def make_document(
    name: str, place: Place, api_version: str, kind: str, labels: Mapping[str, str] | None = None, **content: Any
) -> Document:
    metadata: Document = {"name": name, "namespace": place.namespace}
    if labels:
        metadata["labels"] = dict(labels)
    if place.owner:
        metadata["annotations"] = {OWNER: place.owner}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}


_BOOLEANS = ("y", "Y", "n", "N")
"""Texts that kubectl, Helm and Compose read as booleans unless they are quoted, and PyYAML does not."""
_LINE_BREAKS = "\x85\u2028\u2029"
"""Characters that YAML takes for line breaks, so that a block or a plain text would lose them."""


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and repeats equal objects instead of YAML aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def text(self, text: str) -> yaml.ScalarNode:
        style = "|" if "\n" in text else None
        if text in _BOOLEANS or any(one in text for one in _LINE_BREAKS):
            style = '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.text)


def dump_documents(documents: list[Document]) -> str:
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def http_port(spec: EndpointSpec) -> int:
    return spec.server.port or PORT


def served_spec(spec: EndpointSpec, host: str | None = None) -> EndpointSpec:
    """Return the spec for the server, without the fields that only the controller or its surroundings need.

    It listens on `host`, by default on every address of its own container. The maker of that container protects a
    server without auth: by a NetworkPolicy, or a port that is published only on loopback.
    """
    update = {
        "host": host or "0.0.0.0",
        "port": http_port(spec),
        "insecure": spec.server.insecure or (host is None and spec.server.is_open),
    }
    left_out = {name: EndpointSpec.model_fields[name].get_default(call_default_factory=True) for name in _NOT_SERVED}
    return spec.model_copy(update={**left_out, "server": spec.server.model_copy(update=update)})


def refuse_strangers(spec: EndpointSpec, entrance: str) -> None:
    """Raise InvalidConfig if the endpoint has no auth, and everybody who reaches `entrance` could use it."""
    if spec.server.is_open:
        raise InvalidConfig(
            f"everybody who reaches {entrance} could use the endpoint: say -C server.api_keys=true or "
            "-C server.jwt_issuer=…; or -C server.insecure=true if something before it authenticates"
        )


def asks_mlflow(spec: EndpointSpec) -> bool:
    return any(parse_model_uri(one.model).kind not in ("path", "remote") for one in spec.variants.values())


def lacks_mlflow_address(spec: EndpointSpec) -> bool:
    """Return True if MLFLOW_TRACKING_URI is needed (`asks_mlflow`), and the spec does not set it."""
    return "MLFLOW_TRACKING_URI" not in {**spec.container.environment, **spec.container.secrets} and asks_mlflow(spec)


def machine_name(spec: EndpointSpec, place: Place) -> str:
    """Return the endpoint's name on a machine, where another MLflow workspace may have an endpoint of the same name."""
    workspace = workspace_of(environment_of(spec, place))
    return f"{workspace}_{spec.name}" if workspace else spec.name


def environment_of(spec: EndpointSpec, place: Place) -> dict[str, str]:
    """Return the variables with known values of the spec and the place, without secrets."""
    found = {**place.environment, **spec.container.environment, **spec.container.secret_files}
    return {name: found[name] for name in sorted(found) if name not in spec.container.secrets}


def local_files(spec: EndpointSpec) -> list[str]:
    """Return the paths of this machine that the spec names: folders of models, certificate and key, files of secrets.

    Raises InvalidConfig if one is relative: the server runs elsewhere.
    """
    models = {f"variants.{name}.model": parse_model_uri(variant.model) for name, variant in spec.variants.items()}
    paths = {name: uri.name for name, uri in models.items() if uri.kind == "path"}
    paths |= {
        f"server.{name}": path for name in ("certfile", "keyfile", "ca_certs") if (path := getattr(spec.server, name))
    }
    paths |= {f"container.secret_files.{name}": path for name, path in spec.container.secret_files.items()}
    if relative := [name for name, path in paths.items() if not path.startswith("/")]:
        raise InvalidConfig(f"{relative[0]}: an absolute path is expected, not {paths[relative[0]]!r}")
    return list(paths.values())
