"""Reads the sources of all observed endpoints every `observe.every`, each in a separate
process, while the controller holds its lease.
"""

import threading
from functools import partial

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.processes.durable_work import WorkRunner
from mlflow_deploy_plugin.core.processes.worker import ProcessEnded, WorkerPool
from mlflow_deploy_plugin.core.spec.types import length_of
from mlflow_deploy_plugin.core.store.leases import LeaseKeeper
from mlflow_deploy_plugin.core.store.store import Endpoint
from mlflow_deploy_plugin.promote.rollouts.leadership import repeat
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.monitors.evaluation import IDLE_SECONDS, judging_worker
from mlflow_deploy_plugin.watch.observed.reading import read_source, reading_lease

_AT_ONCE = 2
_LOOK_SECONDS = 1.0
_FAILURE_SECONDS = 60.0
_READING_SECONDS = 3600.0


def read_sources(
    deployments: Deployments,
    keeper: LeaseKeeper,
    over: threading.Event,
    look_seconds: float = _LOOK_SECONDS,
) -> None:
    """Read the sources that are due until the lease is lost or `over` is set."""
    store = deployments.store
    processes = WorkerPool([judging_worker() for _ in range(_AT_ONCE)])
    work = WorkRunner("source", _AT_ONCE, _FAILURE_SECONDS)
    errors: dict[str, str] = {}

    def read(endpoint: Endpoint, every: str) -> float:
        """Read a source, and return the pause until its next reading in seconds."""
        name = endpoint.name
        try:
            with reading_lease(store, name):
                state = processes.call(
                    read_source, deployments.settings, endpoint, seconds=_READING_SECONDS
                )
            error = state.error
        except ProcessEnded:
            return 0.0
        except OnnxserveError as failure:
            error = failure.message
        if error and error != errors.get(name):
            deployments.progress(f"{name}: its source cannot be read: {error}")
        errors[name] = error
        pause = length_of(every).total_seconds()
        return min(pause, _FAILURE_SECONDS) if error else pause

    def start_due() -> None:
        for endpoint in store.endpoints():
            if endpoint.spec.observe is not None:
                work.start(endpoint.name, partial(read, endpoint, endpoint.spec.observe.every))
        processes.end_idle(IDLE_SECONDS)

    try:
        repeat(start_due, look_seconds)(keeper, over)
    finally:
        processes.end()
        work.stop(wait=True)
