"""What a backend sees of an endpoint's server."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mlflow_deploy_plugin.statedir import RefusedVersion, WantedEndpoint, WorkerState

State = Literal["running", "starting", "stopped", "failed", "empty"]
"""`empty`: an endpoint without a deployment, which has no server."""


@dataclass(frozen=True)
class Observation:
    """An endpoint's server at one moment.

    Attributes:
        reason: why it is not running, or what is waited for; empty while all is well.
        url: where it answers; empty where nothing is to be asked.
        pid / started_at: of the supervisor (seconds since the epoch); None while it does not live.
        restarts: how often gunicorn was killed and started anew since then; None: nobody counts that here.
        wanted: the versions that are to be served, as resolved by the agent.
        workers: the accounts of the living workers.
        errors: variant → why a worker could not load the wanted version; what it had before goes on answering.
        refused: versions that the registry names and the agent does not let be served.
        registry_error: why the agent's last look at the registry failed.
        shipping_error: why captured requests do not get into the inference log.
        log: where the server's log is.
    """

    state: State
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
