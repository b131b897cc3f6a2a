"""Backends: the platforms that can run a deployment. `targets.py` has the table of backends and their interface."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mlflow_deploy_plugin.statedir import RefusedVersion, WantedEndpoint, WorkerState

Progress = Callable[[str], None]
"""A callback that receives one line per long step."""
DeploymentState = Literal["running", "starting", "stopped", "failed", "empty"]
"""The state of an endpoint's server. `empty` means that the endpoint has no deployment, and so no server."""


@dataclass(frozen=True)
class Observation:
    """The state of an endpoint's server at one moment, as observed by a backend.

    Attributes:
        reason: the reason why the server is not running, or the pending work; empty if there is no problem.
        url: empty while the server does not answer.
        pid / started_at: the process id and start time of the supervisor; None if it is not running.
        restarts: the number of gunicorn restarts since the start; None if the backend does not count them.
        wanted: the versions to be served, as the agent has resolved them.
        workers: the state files of the running workers.
        errors: variant → the reason why a worker could not load the wanted version. The earlier version still answers.
        refused: versions that the registry selects and that the agent refuses to serve.
        registry_error / shipping_error: the last failure to read the registry, or to ship captured requests.
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
