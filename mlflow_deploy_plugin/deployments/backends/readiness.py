"""Readiness: whether a server serves its spec, by the state files of its processes, and the wait until it does."""

import time
from collections.abc import Callable
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

_POLL_SECONDS = 0.1
_PING_SECONDS = 2.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}


@dataclass(frozen=True)
class AppliedSpec:
    """The progress of a server's processes in applying the spec of an endpoint.

    Attributes:
        is_resolved: the agent has versions for exactly what the spec says.
        pending: what is still to be done; empty once every worker has applied the whole spec, or failed to.
        errors: variant → why a worker could not load the wanted version.
        missing: the variants with a share of the traffic that have no version in some worker.
        wanted: the versions to be served; None before the agent has found the first.
        workers: the state files of the living workers.
    """

    is_resolved: bool
    pending: str
    errors: dict[str, str]
    missing: tuple[str, ...]
    wanted: WantedEndpoint | None
    workers: tuple[WorkerState, ...]


@dataclass(frozen=True)
class PreviousState:
    """The content of the state folder before a spec is written there, to tell later what is new."""

    spec: EndpointSpec | None
    agent: AgentState | None

    def changed_variants(self, spec: EndpointSpec) -> list[str]:
        """Return the variants of `spec` that are new or name another model; all if other columns are excluded."""
        if self.spec is None or _excluded_columns(self.spec) != _excluded_columns(spec):
            return list(spec.variants)
        old = {name: variant.model for name, variant in self.spec.variants.items()}
        return [name for name, variant in spec.variants.items() if old.get(name) != variant.model]


def read_previous_state(state_dir: Path) -> PreviousState:
    """Return the state before a change; call it before the new spec is written."""
    return PreviousState(served_spec(state_dir), read_state(state_dir / AGENT, AgentState))


def served_spec(state_dir: Path) -> EndpointSpec | None:
    """Return the spec that was last written into the state folder."""
    try:
        (spec,) = load_specs((state_dir / SPEC).read_text())
    except (OSError, OnnxserveError):
        return None
    return spec


def server_url(server: ServerSpec) -> str:
    """Return the address at which this machine reaches the server."""
    host = _ANY_ADDRESS.get(server.host, f"[{server.host}]" if ":" in server.host else server.host)
    return f"{'https' if server.certfile else 'http'}://{host}:{server.port}"


def read_applied_spec(state_dir: Path, spec: EndpointSpec) -> AppliedSpec:
    """Read what agent and workers have written about the endpoint of `spec`."""
    wanted = read_state(state_dir / WANTED, Wanted) or Wanted()
    endpoint = wanted.endpoints.get(spec.name)
    workers = tuple(worker for worker in read_workers(state_dir) if psutil.pid_exists(worker.pid))
    if endpoint is None or not _is_resolved(spec, endpoint):
        resolved = {variant.model_uri for variant in endpoint.variants.values()} if endpoint is not None else set()
        new = sorted({variant.model for variant in spec.variants.values()} - resolved)
        pending = f"fetching {', '.join(new)}" if new else "applying the changed spec"
        return AppliedSpec(False, pending, {}, (), endpoint, workers)
    informed = [w.endpoints.get(spec.name, {}) for w in workers if w.generation == wanted.generation]
    errors = {name: variant.error for variants in informed for name, variant in variants.items() if variant.error}
    missing = tuple(
        name
        for name, variant in spec.variants.items()
        if variant.weight > 0 and any(not variants.get(name, LoadedVariant()).version for variants in informed)
    )
    count = spec.server.workers
    is_loaded = len(workers) >= count and all(  # so that only the traffic and its like are still to change
        worker.endpoints.get(spec.name, {}).get(name, LoadedVariant()).version == variant.version
        for worker in workers
        for name, variant in endpoint.variants.items()
    )
    step = "applying the change" if is_loaded else "loading the model"
    pending = "" if len(informed) >= count else f"{step}, {len(informed)} of {count} workers have it"
    return AppliedSpec(True, pending, errors, missing, endpoint, workers)


def wait_until_served(
    spec: EndpointSpec,
    state_dir: Path,
    before: PreviousState,
    pid: int,
    seconds: float,
    progress: Callable[[str], None],
) -> None:
    """Return when every worker serves `spec` and the server says that it is ready.

    A variant that `spec` changes must be loaded. An unchanged one may go on with the version it had.

    Raises:
        DeploymentFailed: it cannot become ready, or has not in `seconds`; the message says why.
    """
    deadline = time.monotonic() + seconds
    last_line = ""
    while True:
        is_alive = supervisor.is_alive(state_dir, pid)  # asked first: the end of the log is read after its end
        applied = read_applied_spec(state_dir, spec)
        if failure := _failure(applied, spec, before, read_state(state_dir / AGENT, AgentState)):
            raise DeploymentFailed(f"{spec.name}: {failure}")
        if not is_alive:
            error = last_error(state_dir) or "it left no word in its log"
            raise DeploymentFailed(f"{spec.name}: the server has ended: {error}")
        pending = applied.pending or _pending_at_server(state_dir, server_url(spec.server))
        if not pending:
            return
        if time.monotonic() > deadline:
            raise DeploymentFailed(
                f"{spec.name}: not ready after {seconds:g} s, still {pending} "
                "(ONNXSERVE_READY_TIMEOUT_SECONDS sets the limit)"
            )
        if pending != last_line:
            progress(f"{spec.name}: {pending}")
            last_line = pending
        time.sleep(_POLL_SECONDS)


def _is_resolved(spec: EndpointSpec, endpoint: WantedEndpoint) -> bool:
    resolved = {name: (v.model_uri, v.weight, v.shadow) for name, v in endpoint.variants.items()}
    given = {name: (v.model, v.weight, v.shadow) for name, v in spec.variants.items()}
    return resolved == given and (endpoint.capture, endpoint.sticky) == (spec.capture, spec.sticky)


def _excluded_columns(spec: EndpointSpec) -> tuple[tuple[str, ...], ...]:
    return spec.capture.drop, spec.capture.mask


def _failure(applied: AppliedSpec, spec: EndpointSpec, before: PreviousState, agent: AgentState | None) -> str:
    """Return why the server cannot become ready; empty while it may."""
    must_load = {*before.changed_variants(spec), *applied.missing}
    for name, error in applied.errors.items():
        if name in must_load:
            return error if name == spec.name else f"deployment {name}: {error}"
    if agent is None or not agent.error or applied.is_resolved:
        return ""
    if before.agent is None or (agent.pid, agent.error) != (before.agent.pid, before.agent.error):
        return agent.error
    # the same error as before: it is about this spec only if the agent has looked since the spec was written
    return agent.error if agent.looks > before.agent.looks else ""


def _pending_at_server(state_dir: Path, url: str) -> str:
    """Return what the server still waits for; empty once its supervisor has seen the workers answer and it is ready."""
    server = read_state(state_dir / SERVER, ServerState)
    if server is None or server.phase != "serving":
        return "waiting for the workers to answer"
    try:
        with ServerSession() as session:
            response = session.get(f"{url}/ping", timeout=_PING_SECONDS)
    except requests.RequestException:
        return f"waiting for an answer at {url}"
    return "" if response.ok else "waiting until the server says that it is ready"
