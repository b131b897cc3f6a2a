"""Waiting until a server serves a spec, or until it is clear that it will not."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from mlflow_deploy_plugin.deployments.backends import supervisor
from mlflow_deploy_plugin.deployments.backends.supervisor import last_error
from mlflow_deploy_plugin.deployments.server_client import ServerSession
from mlflow_deploy_plugin.errors import DeploymentFailed, OnnxserveError
from mlflow_deploy_plugin.spec import EndpointSpec, ServerSpec, load_specs
from mlflow_deploy_plugin.statedir import (
    AGENT,
    SERVER,
    SPEC,
    WANTED,
    AgentState,
    LoadedVariant,
    ServerState,
    Wanted,
    WantedEndpoint,
    WorkerState,
    read_state,
    read_workers,
)


@dataclass(frozen=True)
class AppliedSpec:
    """What the processes of a server say of an endpoint.

    Attributes:
        is_resolved: the agent has versions for exactly what the spec says.
        pending: what is waited for; empty where everything that the spec wants has been dealt with by every worker.
        errors: variant → why a worker could not load the wanted version.
        silent: the variants with a share of the traffic that have no version in some worker.
        wanted: the versions that are to be served; None before the agent has found the first.
        workers: the accounts of the living workers.
    """

    is_resolved: bool
    pending: str
    errors: dict[str, str]
    silent: tuple[str, ...]
    wanted: WantedEndpoint | None
    workers: tuple[WorkerState, ...]


def read_applied_spec(state_dir: Path, spec: EndpointSpec) -> AppliedSpec:
    """Reads what agent and workers have written about the endpoint of `spec`."""
    wanted = read_state(state_dir / WANTED, Wanted) or Wanted()
    endpoint = wanted.endpoints.get(spec.name)
    workers = tuple(worker for worker in read_workers(state_dir) if psutil.pid_exists(worker.pid))
    if endpoint is None or not _matches_spec(spec, endpoint):
        return AppliedSpec(False, _resolving(spec, endpoint), {}, (), endpoint, workers)
    informed = [w.endpoints.get(spec.name, {}) for w in workers if w.generation == wanted.generation]
    errors = {name: variant.error for variants in informed for name, variant in variants.items() if variant.error}
    silent = tuple(
        name
        for name, variant in spec.variants.items()
        if variant.weight > 0 and any(not variants.get(name, LoadedVariant()).version for variants in informed)
    )
    count = spec.server.workers
    doing = (
        "applying the change"
        if len(workers) >= count and _is_loaded(spec.name, endpoint, workers)
        else "loading the model"
    )
    pending = "" if len(informed) >= count else f"{doing}, {len(informed)} of {count} workers have it"
    return AppliedSpec(True, pending, errors, silent, endpoint, workers)


def _matches_spec(spec: EndpointSpec, endpoint: WantedEndpoint) -> bool:
    wanted = {name: (v.model_uri, v.weight, v.shadow) for name, v in endpoint.variants.items()}
    said = {name: (v.model, v.weight, v.shadow) for name, v in spec.variants.items()}
    return wanted == said and (endpoint.capture, endpoint.sticky) == (spec.capture, spec.sticky)


def _is_loaded(served_as: str, endpoint: WantedEndpoint, workers: Iterable[WorkerState]) -> bool:
    """Whether no worker lacks a version, so that only the traffic and its like are still to change."""
    return all(
        worker.endpoints.get(served_as, {}).get(name, LoadedVariant()).version == variant.version
        for worker in workers
        for name, variant in endpoint.variants.items()
    )


def _resolving(spec: EndpointSpec, endpoint: WantedEndpoint | None) -> str:
    known = {variant.model_uri for variant in endpoint.variants.values()} if endpoint is not None else set()
    new = sorted({variant.model for variant in spec.variants.values()} - known)
    return f"fetching {', '.join(new)}" if new else "applying the changed spec"


_POLL_SECONDS = 0.1
_PING_SECONDS = 2.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}


@dataclass(frozen=True)
class PreviousState:
    """What stood in the state folder before a spec was written there; what is news afterwards is told from it."""

    spec: EndpointSpec | None
    agent: AgentState | None

    def changed(self, spec: EndpointSpec) -> list[str]:
        """The variants of `spec` that are new or name another model; all, where the log withholds other columns."""
        if self.spec is None or _excluded_columns(self.spec) != _excluded_columns(spec):
            return list(spec.variants)
        old = {name: variant.model for name, variant in self.spec.variants.items()}
        return [name for name, variant in spec.variants.items() if old.get(name) != variant.model]


def read_previous_state(state_dir: Path) -> PreviousState:
    return PreviousState(served_spec(state_dir), read_state(state_dir / AGENT, AgentState))


def served_spec(state_dir: Path) -> EndpointSpec | None:
    """The spec that was last written into the state folder."""
    try:
        (spec,) = load_specs((state_dir / SPEC).read_text())
    except (OSError, OnnxserveError):
        return None
    return spec


def server_url(server: ServerSpec) -> str:
    """Where this machine reaches the server."""
    host = _ANY_ADDRESS.get(server.host, f"[{server.host}]" if ":" in server.host else server.host)
    return f"{'https' if server.certfile else 'http'}://{host}:{server.port}"


def wait_until_served(
    spec: EndpointSpec,
    state_dir: Path,
    before: PreviousState,
    pid: int,
    seconds: float,
    progress: Callable[[str], None],
) -> None:
    """Returns when every worker serves `spec` and the server says that it is ready.

    A variant that `spec` changes must be loaded. One that it does not may go on with the version it had.

    Raises:
        DeploymentFailed: it cannot become ready, or has not in `seconds`; the message says why.
    """
    deadline = time.monotonic() + seconds
    told = ""
    while True:
        is_alive = supervisor.is_alive(state_dir, pid)  # looked at first: its last words are read after its end
        now = read_applied_spec(state_dir, spec)
        if reason := _failure(now, spec, before, read_state(state_dir / AGENT, AgentState)):
            raise DeploymentFailed(f"{spec.name}: {reason}")
        if not is_alive:
            said = last_error(state_dir) or "it left no word in its log"
            raise DeploymentFailed(f"{spec.name}: the server has ended: {said}")
        pending = now.pending or _unready(state_dir) or _ping(server_url(spec.server))
        if not pending:
            return
        if time.monotonic() > deadline:
            raise DeploymentFailed(
                f"{spec.name}: not ready after {seconds:g} s, still {pending} "
                "(ONNXSERVE_READY_TIMEOUT_SECONDS sets the limit)"
            )
        if pending != told:
            progress(f"{spec.name}: {pending}")
            told = pending
        time.sleep(_POLL_SECONDS)


def _excluded_columns(spec: EndpointSpec) -> tuple[tuple[str, ...], ...]:
    return spec.capture.drop, spec.capture.mask


def _failure(now: AppliedSpec, spec: EndpointSpec, before: PreviousState, agent: AgentState | None) -> str:
    """Why there is no use in waiting; empty while there is."""
    must_load = {*before.changed(spec), *now.silent}
    for name, error in now.errors.items():
        if name in must_load:
            return error if name == spec.name else f"deployment {name}: {error}"
    if agent is None or not agent.error or now.is_resolved:
        return ""
    if before.agent is None or (agent.pid, agent.error) != (before.agent.pid, before.agent.error):
        return agent.error
    # the same words as before: an answer to this spec only if they were said after it was written
    return agent.error if agent.looks > before.agent.looks else ""


def _unready(state_dir: Path) -> str:
    """What the supervisor still waits for; empty where it has seen everything answer."""
    server = read_state(state_dir / SERVER, ServerState)
    return "" if server is not None and server.phase == "serving" else "waiting for the workers to answer"


def _ping(url: str) -> str:
    """What the server still waits for; empty where it says that it is ready."""
    try:
        with ServerSession() as session:
            answer = session.get(f"{url}/ping", timeout=_PING_SECONDS)
    except requests.RequestException:
        return f"waiting for an answer at {url}"
    return "" if answer.ok else "waiting until the server says that it is ready"
