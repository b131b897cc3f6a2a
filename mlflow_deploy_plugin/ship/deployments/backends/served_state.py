"""The state folder of an endpoint's server: reading it, and waiting until the server
serves its spec.

Local servers and containers have the folder on this machine. `kubernetes.py` reads the
files in a pod.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import requests

from mlflow_deploy_plugin.core.errors import DeploymentFailed, NotReady, OnnxserveError, Refused
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import load_stored_specs
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec, ServerSpec
from mlflow_deploy_plugin.core.spec.types import reachable_url
from mlflow_deploy_plugin.core.statedir import files
from mlflow_deploy_plugin.core.statedir.models import (
    AgentState,
    ServerState,
    Wanted,
    WantedEndpoint,
    WorkerState,
)
from mlflow_deploy_plugin.ship.deployments.backends.targets import (
    DeploymentState,
    Observation,
    Progress,
)
from mlflow_deploy_plugin.ship.deployments.server_client import ServerSession
from mlflow_deploy_plugin.ship.deployments.server_metrics import fetch_page

STARTING = "the server is being started"
STOPPED = "stopped"
"""A file in the state folder, which exists if the user has stopped the server."""
_PLACE = ".place"
_PING_SECONDS = 2.0


@dataclass(frozen=True)
class AppliedSpec:
    """The progress of a server's processes in applying the spec of an endpoint.

    Attributes:
        is_resolved: True if the agent has resolved all models of the spec.
        pending: the remaining work; empty if every worker has applied the spec
            completely, or failed to apply it.
        errors: variant → the reason why a worker could not load the wanted version.
        missing: the variants with traffic that have no version in at least one worker.
        wanted: the versions to be served; None until the agent has resolved the models
            for the first time.
    """

    is_resolved: bool
    pending: str
    errors: dict[str, str]
    missing: tuple[str, ...]
    wanted: WantedEndpoint | None


@dataclass(frozen=True)
class ServedState:
    """The state files of one server: the served spec, and the states of the agent and
    the running workers.
    """

    spec: EndpointSpec | None = None
    agent: AgentState | None = None
    wanted: Wanted = field(default_factory=Wanted)
    workers: tuple[WorkerState, ...] = ()

    def has_loaded(self, name: str, endpoint: WantedEndpoint) -> bool:
        """Return True if the workers have loaded all versions, so that only fields such
        as traffic remain to be applied.
        """
        wanted = {variant: resolved.version for variant, resolved in endpoint.variants.items()}
        for worker in self.workers:
            if wanted != {variant: worker.loaded(name, variant).version for variant in wanted}:
                return False
        return True


def lock_path(name: str, settings: Settings) -> Path:
    return settings.deployments_path / f".{name}.lock"


@dataclass
class MachineBackend:
    """The part of a `Backend` that is common to all servers with a state folder on this
    machine.
    """

    settings: Settings

    def server_pages(
        self, spec: EndpointSpec, path: str, timeout_seconds: float
    ) -> Mapping[str, bytes | Refused]:
        url = f"{server_url(spec.server)}{path}"
        return {spec.name: fetch_page(url, timeout_seconds, self.settings.deployments_path)}

    def place(self, name: str) -> str:
        """Return the id of this machine's state folders. Raises NotReady if the
        endpoint has no state folder here.

        The id is stored next to the folders, because a pod or another machine with the
        same store has other folders.
        """
        if not self.settings.state_dir(name).is_dir():
            raise NotReady(f"the server of {name!r} is on another machine")
        written = self.settings.deployments_path / _PLACE
        if not written.exists():
            with files.locked(written.with_name(f"{_PLACE}.lock")):
                if not written.exists():
                    files.write_atomically(written, uuid.uuid4().hex.encode())
        return written.read_text()

    def poll_registry(self, name: str) -> None:
        with suppress(OSError):  # The agent also polls on a schedule.
            (self.settings.state_dir(name) / files.LOOK).touch()

    def reached(self, spec: EndpointSpec) -> AbstractContextManager[str]:
        return nullcontext(server_url(spec.server))

    def lives(self, pid: int) -> bool:
        """Return True if the worker with this process id is running. A killed gunicorn
        leaves files of dead workers.
        """
        return psutil.pid_exists(pid)

    def observe_absent(self, name: str, gone: str, log: str) -> Observation:
        """Return the observation of an endpoint whose server is not running. `gone` is
        the reason.
        """
        folder = self.settings.state_dir(name)
        locks = (lock_path(name, self.settings), folder / files.SERVER_LOCK)
        if any(map(files.is_locked, locks)):  # The server has not written its process id yet.
            return Observation("starting", STARTING, log=log)
        if (folder / STOPPED).exists():
            return Observation("stopped", f"`onnxserve start {name}` starts it", log=log)
        return Observation("failed", f"{gone}; `onnxserve start {name}` restarts it", log=log)

    def observe_server(
        self, spec: EndpointSpec, state_dir: Path, server: ServerState, log: str
    ) -> Observation:
        """Return the observation of an endpoint whose server is running, from the files
        in `state_dir`. `log` is the path of the server's log.
        """
        served = read_served_state(state_dir, self.lives)
        applied = compare_applied(spec, served)
        agent = served.agent or AgentState(pid=0)
        failures = [applied.errors[name] for name in applied.missing if name in applied.errors]
        # While a new version is loaded, the previous version answers.
        state: DeploymentState = "running"
        reason = applied.pending
        if server.phase == "stopping":
            state = "stopped"
            reason = "it completes the open requests"
        elif failures:
            state = "failed"
            reason = failures[0]
        elif server.phase == "starting" or not any(item.endpoints for item in served.workers):
            state = "starting"
            reason = applied.pending or STARTING
        return Observation(
            state=state,
            reason=reason,
            url=server_url(spec.server),
            pid=server.pid,
            started_at=server.started_at,
            restarts=server.restarts,
            wanted=applied.wanted,
            workers=served.workers,
            errors=applied.errors,
            refused=agent.refused,
            registry_error=agent.error,
            shipping_error=agent.shipping.error,
            log=log,
        )

    def state_before(self, state_dir: Path) -> ServedState:
        return replace(read_served_state(state_dir, self.lives), spec=written_spec(state_dir))

    def wait_until_served(
        self,
        spec: EndpointSpec,
        folder: Path,
        before: ServedState,
        why_ended: Callable[[], str],
        progress: Progress,
    ) -> None:
        """Wait until every worker serves `spec` and the server reports that it is
        ready.

        Changed variants must be loaded; an unchanged variant may keep its earlier
        version. `why_ended` returns the reason for the server's end, or an empty string
        if it is running. Raises DeploymentFailed with the reason if the server cannot
        become ready, or is not ready in time.
        """

        def pending() -> str:
            """Return the step that is awaited; empty if the server is ready."""
            ended = why_ended()
            state = read_served_state(folder, self.lives)
            applied = compare_applied(spec, state)
            if failure := served_failure(applied, spec, before, state.agent) or ended:
                raise DeploymentFailed(f"{spec.name}: {failure}")
            if applied.pending:
                return applied.pending
            server = files.read_state(folder / files.SERVER, ServerState)
            url = server_url(spec.server)
            if server is None or server.phase != "serving":
                return "waiting for the workers to answer"
            try:
                with ServerSession() as session:
                    response = session.get(f"{url}/ping", timeout=_PING_SECONDS)
            except requests.RequestException:
                return f"waiting for an answer at {url}"
            return "" if response.ok else "waiting until the server reports that it is ready"

        wait_while_pending(spec.name, pending, self.settings.ready_timeout_seconds, progress)


def written_spec(state_dir: Path) -> EndpointSpec | None:
    """Return the spec in a state folder; None if it is missing or cannot be read."""
    try:
        (spec,) = load_stored_specs((state_dir / files.SPEC).read_text())
    except (OSError, OnnxserveError):
        return None
    return spec


def written_server(state_dir: Path) -> ServerSpec:
    """Return the server of the spec in a state folder, or its defaults if there is no
    spec.
    """
    spec = written_spec(state_dir)
    return ServerSpec() if spec is None else spec.server


def server_url(server: ServerSpec) -> str:
    return reachable_url(server.host, server.port, server.scheme)


def read_served_state(
    state_dir: Path, lives: Callable[[int], bool] = psutil.pid_exists
) -> ServedState:
    """Read the state folder of a server, without its spec. Workers are omitted if
    `lives(process id)` is False.
    """
    workers = tuple(worker for worker in files.read_workers(state_dir) if lives(worker.pid))
    agent = files.read_state(state_dir / files.AGENT, AgentState)
    wanted = files.read_state(state_dir / files.WANTED, Wanted) or Wanted()
    return ServedState(None, agent, wanted, workers)


def compare_applied(spec: EndpointSpec, state: ServedState) -> AppliedSpec:
    """Compare the endpoint of `spec` with the state of its server's agent and running
    workers.
    """
    endpoint = state.wanted.endpoints.get(spec.name)
    specified = {
        name: (variant.model, variant.weight, variant.shadow)
        for name, variant in spec.variants.items()
    }
    resolved = None
    # The agent may not have resolved the models and the traffic of `spec` yet.
    if endpoint is not None and (
        (endpoint.capture, endpoint.serve, endpoint.sticky, endpoint.guard)
        == (spec.capture, spec.serve, spec.sticky, spec.guard)
    ):
        resolved = {
            name: (variant.model_uri, variant.weight, variant.shadow)
            for name, variant in endpoint.variants.items()
        }
    if endpoint is None or resolved != specified:
        new = {variant.model for variant in spec.variants.values()}
        if endpoint is not None:
            new -= {variant.model_uri for variant in endpoint.variants.values()}
        pending = f"fetching {', '.join(sorted(new))}" if new else "applying the changed spec"
        return AppliedSpec(
            is_resolved=False, pending=pending, errors={}, missing=(), wanted=endpoint
        )
    informed = [worker for worker in state.workers if worker.generation == state.wanted.generation]
    pending = ""
    count = spec.server.workers
    if len(informed) < count:
        pending = "loading the model"
        if len(state.workers) >= count and state.has_loaded(spec.name, endpoint):
            pending = "applying the change"
        pending += f", {len(informed)} of {count} workers have it"
    errors = {}
    missing = []
    for name, variant in spec.variants.items():
        loaded = [worker.loaded(spec.name, name) for worker in informed]
        for item in loaded:
            if item.error:
                errors[name] = item.error
        if variant.weight > 0 and not all(item.version for item in loaded):
            missing.append(name)
    return AppliedSpec(
        is_resolved=True, pending=pending, errors=errors, missing=tuple(missing), wanted=endpoint
    )


def wait_while_pending(
    name: str,
    pending: Callable[[], str],
    seconds: float,
    progress: Progress,
    poll_seconds: float = 0.1,
    last_words: Callable[[], str] = str,
) -> None:
    """Wait until `pending` returns an empty string. The pending work is reported
    whenever it changes.

    Raises DeploymentFailed, ending with `last_words()`, if work is still pending after
    `seconds`.
    """
    deadline = time.monotonic() + seconds
    reported = ""
    while work := pending():
        if time.monotonic() > deadline:
            raise DeploymentFailed(
                f"{name}: not ready after {seconds:g} s, still {work}{last_words()} "
                "(ONNXSERVE_READY_TIMEOUT_SECONDS sets the limit)"
            )
        if work != reported:
            progress(f"{name}: {work}")
            reported = work
        time.sleep(poll_seconds)


def _loaded_by_variant(spec: EndpointSpec) -> dict[str, tuple[object, ...]]:
    """Return each variant with the fields whose change reloads it: its model, the
    settings of captured columns, and the steps.
    """
    columns = spec.capture.drop, spec.capture.mask, spec.capture.keys
    return {name: (variant.model, columns, spec.serve) for name, variant in spec.variants.items()}


def served_failure(
    applied: AppliedSpec, spec: EndpointSpec, before: ServedState, agent: AgentState | None
) -> str:
    """Return the reason why the server cannot become ready; empty if it may become
    ready.

    Args:
        applied: the progress of the server's processes.
        spec: the spec to serve.
        before: the state before the change, whose unchanged variants may keep an error.
        agent: the state of the agent; None until it has started.
    """
    earlier = _loaded_by_variant(before.spec) if before.spec is not None else {}
    changed = {
        name for name, loaded in _loaded_by_variant(spec).items() if loaded != earlier.get(name)
    }
    for name, error in applied.errors.items():
        if name in changed or name in applied.missing:
            return error if name == spec.name else f"deployment {name}: {error}"
    if agent is None or not agent.error or applied.is_resolved:
        return ""
    seen = before.agent
    # If the agent has not polled since the spec was written, its error is about the
    # earlier spec.
    is_earlier = (
        seen is not None
        and (seen.pid, seen.error) == (agent.pid, agent.error)
        and agent.looks <= seen.looks
    )
    return "" if is_earlier else agent.error
