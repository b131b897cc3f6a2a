"""Target URIs, the backend of each, and the functions that a backend has."""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple, Protocol

from mlflow_deploy_plugin.deployments.backends import Observation, Progress
from mlflow_deploy_plugin.errors import InvalidConfig, NotInstalled, Refused
from mlflow_deploy_plugin.manifests import NAMESPACE
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import EndpointSpec


class TargetKind(NamedTuple):
    """A kind of target.

    Attributes:
        servers: a noun for help texts.
        backend: module and class, imported on use because it may need an SDK. Its arguments are the settings and, if
            the URI has one, the namespace.
        is_on_this_machine: its servers use ports and state folders of this machine.
    """

    uri: str
    servers: str
    backend: str
    is_on_this_machine: bool = True


TARGETS = {
    "local": TargetKind(
        "onnxserve", "a server on this machine, which outlives the command that starts it", "local:LocalBackend"
    ),
    "docker": TargetKind("onnxserve:/docker", "a container of this machine's Docker engine", "docker:DockerBackend"),
    "kubernetes": TargetKind(
        "onnxserve:/kubernetes/NAMESPACE",
        "pods of the cluster that kubectl reaches",
        "kubernetes:KubernetesBackend",
        is_on_this_machine=False,
    ),
}


class Backend(Protocol):
    """A place to deploy to. Callers of functions that change something hold the endpoint's lock.

    `apply` does only the work that is missing, so the same call after a crash finishes it.
    """

    def apply(self, spec: EndpointSpec, progress: Progress) -> str:
        """Serve `spec`, which has a variant, wait until every worker does, and return the address for callers.

        Raises InvalidConfig if the spec cannot be served there, for example without a port, image or registry; the
        running server goes on. Raises DeploymentFailed if it did not become ready; a server that was started for it is
        stopped.
        """

    def observe(self, spec: EndpointSpec) -> Observation:
        """Return the state of the server of an endpoint with a variant; `reason` does not name the endpoint."""

    def server_pages(self, spec: EndpointSpec, path: str, timeout_seconds: float) -> Mapping[str, bytes | Refused]:
        """Return a page of each server of the endpoint, by the server's name, or why it does not return it."""

    def place(self, name: str) -> str:
        """Return the name of the server's place. Raises NotReady if this process does not reach the server."""

    def stop(self, name: str) -> None:
        """End the server, which finishes the requests in flight; `apply` starts it again."""

    def remove(self, name: str) -> None:
        """End the server and remove all that was made for it; shipped rows stay in the inference log."""

    def is_running(self, name: str) -> bool:
        """Return True if the endpoint's server lives, ready or not, and is not stopping."""

    def poll_registry(self, name: str) -> None:
        """Make the endpoint's agent ask the registry at once; do nothing where it cannot be reached."""

    def reached(self, spec: EndpointSpec) -> AbstractContextManager[str]:
        """Yield the address at which this machine reaches the server, which runs."""

    def logs(self, name: str, lines: int, follow: bool) -> Iterator[str]:
        """Yield the last lines of the server's log, and with `follow` those to come until it ends."""


@dataclass(frozen=True)
class Target:
    """A place to deploy to, as its URI names it."""

    kind: str
    namespace: str = ""

    def __str__(self) -> str:
        return TARGETS[self.kind].uri.replace("NAMESPACE", self.namespace)

    @property
    def is_on_this_machine(self) -> bool:
        return TARGETS[self.kind].is_on_this_machine

    def backend(self, settings: Settings) -> Backend:
        """Return the backend. Raises NotInstalled if its SDK is not there."""
        module, _, name = TARGETS[self.kind].backend.partition(":")
        try:
            found = import_module(f"mlflow_deploy_plugin.deployments.backends.{module}")
        except ImportError as error:
            raise NotInstalled(
                f"-t {self} needs the package {error.name}: pip install 'mlflow-onnxserve[{self.kind}]'"
            ) from None
        backend: Backend = getattr(found, name)(settings, *filter(None, [self.namespace]))
        return backend


LOCAL = Target("local")


def parse_target(uri: str) -> Target:
    """Return the target that a URI names. Raises InvalidConfig if it names none."""
    for kind, target in TARGETS.items():
        pattern = target.uri.replace("NAMESPACE", f"({NAMESPACE.pattern})")
        if match := re.fullmatch(pattern, uri.rstrip("/:")):
            return Target(kind, *match.groups()[:1])
    known = ", ".join(target.uri for target in TARGETS.values())
    raise InvalidConfig(f"there is no target {uri!r}; there are {known} (a namespace has letters a-z, digits and -)")
