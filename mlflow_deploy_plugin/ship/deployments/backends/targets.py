"""Target URIs, the backend of each target, and the interface of a backend."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal, NamedTuple, Protocol

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotInstalled, Refused
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.statedir.files import refuse_windows
from mlflow_deploy_plugin.core.statedir.models import RefusedVersion, WantedEndpoint, WorkerState
from mlflow_deploy_plugin.ship.manifests.served import NAMESPACE

Progress = Callable[[str], None]
"""A callback that receives one line per long step."""
DeploymentState = Literal["running", "starting", "stopped", "failed", "empty", "observed"]
"""The state of an endpoint's server. `empty` means that the endpoint has no deployment,
and so no server; `observed`, that another server serves its model.
"""


@dataclass(frozen=True)
class Observation:
    """The state of an endpoint's server at one moment, as observed by a backend.

    Attributes:
        reason: the reason why the server is not running, or the pending work; empty if
            there is no problem.
        url: empty while the server does not answer.
        pid: the process id of the supervisor; None if it is not running.
        started_at: the start time of the supervisor; None if it is not running.
        restarts: the number of gunicorn restarts since the start; None if the backend
            does not count them.
        wanted: the versions to be served, as the agent has resolved them.
        workers: the state files of the running workers.
        errors: variant → the reason why a worker could not load the wanted version. The
            earlier version still answers.
        refused: versions that the registry selects and that the agent refuses to serve.
        registry_error: the last failure to read the registry.
        shipping_error: the last failure to ship captured requests.
        log: the path of the server's log, or the command that prints the log.
    """

    state: DeploymentState
    reason: str = ""
    url: str = ""
    pid: int | None = None
    started_at: float | None = None
    restarts: int | None = None
    wanted: WantedEndpoint | None = None
    workers: tuple[WorkerState, ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)
    refused: tuple[RefusedVersion, ...] = ()
    registry_error: str = ""
    shipping_error: str = ""
    log: str = ""


class TargetKind(NamedTuple):
    """A kind of target.

    Attributes:
        servers: a noun for help texts.
        backend: the module and the class of the backend, which is imported on use,
            because it may need an SDK. The arguments of the class are the settings and,
            if the URI has a namespace, the namespace.
    """

    uri: str
    servers: str
    backend: str
    is_on_this_machine: bool = True


TARGETS = {
    "local": TargetKind(
        "onnxserve",
        "a server on this machine, which outlives the command that starts it",
        "local:LocalBackend",
    ),
    "docker": TargetKind(
        "onnxserve:/docker", "a container of this machine's Docker engine", "docker:DockerBackend"
    ),
    "kubernetes": TargetKind(
        "onnxserve:/kubernetes/NAMESPACE",
        "pods of the cluster that kubectl reaches",
        "kubernetes:KubernetesBackend",
        is_on_this_machine=False,
    ),
    "observed": TargetKind(
        "onnxserve:/observed",
        "no server: the rows of a model that another server serves are read from a source",
        "observed:ObservedBackend",
        is_on_this_machine=False,
    ),
}


class Backend(Protocol):
    """A platform that can run deployments. Callers of functions that change something
    must have the endpoint's lock.

    `apply` performs only the missing work, so after a crash the same call completes it.
    """

    def apply(self, spec: EndpointSpec, progress: Progress) -> str:
        """Serve `spec`, which has a variant. Wait until every worker serves it, and
        return the address for callers.

        Raises InvalidConfig if the backend cannot serve the spec, for example without a
        port, image or registry. The running server is not changed. Raises
        DeploymentFailed if the server did not become ready. A server that was started
        for this call is stopped.
        """

    def observe(self, spec: EndpointSpec) -> Observation:
        """Return the state of the server of an endpoint with a variant. `reason` does
        not name the endpoint.
        """

    def server_pages(
        self, spec: EndpointSpec, path: str, timeout_seconds: float
    ) -> Mapping[str, bytes | Refused]:
        """Return the name of each server → its page at `path`, or the reason why the
        page is missing.
        """

    def place(self, name: str) -> str:
        """Return an id of the server's machine or cluster. Raises NotReady if this
        process cannot reach the server.
        """

    def stop(self, name: str) -> None:
        """Stop the server after it has completed its open requests. `apply` starts it
        again.
        """

    def remove(self, name: str) -> None:
        """Stop the server and remove all its objects. Shipped rows remain in the
        inference log.
        """

    def is_running(self, name: str) -> bool:
        """Return True if the endpoint's server runs (even if it is not ready) and is
        not stopping.
        """

    def poll_registry(self, name: str) -> None:
        """Make the endpoint's agent poll the registry immediately. Do nothing if the
        agent cannot be reached.
        """

    def reached(self, spec: EndpointSpec) -> AbstractContextManager[str]:
        """Yield an address at which this machine reaches the running server."""

    def logs(self, name: str, lines: int, follow: bool) -> Iterator[str]:
        """Yield the last lines of the server's log. If `follow` is set, also yield new
        lines until the log ends.
        """


@dataclass(frozen=True)
class Target:
    """A platform to deploy to, parsed from its URI."""

    kind: str
    namespace: str = ""

    def __str__(self) -> str:
        return TARGETS[self.kind].uri.replace("NAMESPACE", self.namespace)

    @property
    def is_on_this_machine(self) -> bool:
        return TARGETS[self.kind].is_on_this_machine

    def backend(self, settings: Settings) -> Backend:
        """Return the backend. Raises NotInstalled if its SDK is not installed."""
        if self.is_on_this_machine:
            refuse_windows()
        module, _, name = TARGETS[self.kind].backend.partition(":")
        try:
            backend_module = import_module(
                f"mlflow_deploy_plugin.ship.deployments.backends.{module}"
            )
        except ImportError as error:
            raise NotInstalled(
                f"-t {self} needs the package {error.name}: pip install "
                f"'mlflow-onnxserve[{self.kind}]'"
            ) from None
        backend: Backend = getattr(backend_module, name)(settings, *filter(None, [self.namespace]))
        return backend


LOCAL = Target("local")
OBSERVED = Target("observed")


def parse_target(uri: str) -> Target:
    """Return the target of a URI. Raises InvalidConfig if the URI is not a known
    target.
    """
    for kind, target in TARGETS.items():
        pattern = target.uri.replace("NAMESPACE", f"({NAMESPACE.pattern})")
        if match := re.fullmatch(pattern, uri.rstrip("/:")):
            return Target(kind, *match.groups()[:1])
    uris = ", ".join(target.uri for target in TARGETS.values())
    raise InvalidConfig(
        f"unknown target {uri!r}; the targets are {uris} (a namespace has letters a-z, digits "
        "and -)"
    )
