"""Backends, the places to deploy to. `targets.py` has the table of them and the functions that each has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mlflow_deploy_plugin.statedir import RefusedVersion, WantedEndpoint, WorkerState

Progress = Callable[[str], None]
"""Takes one line for each long step."""
DeploymentState = Literal["running", "starting", "stopped", "failed", "empty"]
"""The state of an endpoint's server. `empty` is an endpoint without a deployment, which has no server."""


@dataclass(frozen=True)
class Observation:
    """An endpoint's server at one moment, as a backend sees it.

    Attributes:
        reason: why it is not running, or what it still waits for; empty while all is well.
        url: empty while the server does not answer.
        pid / started_at: of the supervisor; None while it does not live.
        restarts: how often gunicorn was killed and restarted since then; None if the backend does not count it.
        wanted: the versions to be served, as the agent has resolved them.
        workers: the state files of the living workers.
        errors: variant → why a worker could not load the wanted version; the earlier version still answers.
        refused: versions that the registry names and the agent does not let be served.
        registry_error / shipping_error: the last failure to read the registry, or to ship captured requests.
        log: the path of the server's log, or the command that shows it.
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
