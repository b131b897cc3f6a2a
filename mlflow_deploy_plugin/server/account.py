"""One worker's own account: what it has loaded, and what it could not load, for whoever asks (`server/state.py`)."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from mlflow_deploy_plugin.runtime import no_batch_dimension_reason
from mlflow_deploy_plugin.server.served import ServedEndpoint, ServedVariant, Table
from mlflow_deploy_plugin.server.state import LoadedVariant, WorkerState, worker_file, write_state

logger = logging.getLogger(__name__)

Errors = Mapping[str, Mapping[str, str]]
"""Endpoint → variant → why the wanted version could not be loaded."""


class Account:
    """The state file of this worker."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._untold: WorkerState | None = None
        self._failure = ""

    def give(self, table: Table, errors: Errors, generation: int) -> None:
        """Writes down what is served from now on, which is how this worker has dealt with that generation."""
        endpoints = {
            name: {
                variant: _told(served.variants.get(variant), errors.get(name, {}).get(variant, ""))
                for variant in dict.fromkeys([*served.variants, *errors.get(name, {})])
            }
            for name, served in table.items()
        }
        self._untold = WorkerState(pid=os.getpid(), generation=generation, endpoints=endpoints)
        self.try_again()

    def try_again(self) -> None:
        """Writes what could not be written, on a disk that was full."""
        if self._untold is None:
            return
        try:
            write_state(worker_file(self._state_dir, self._untold.pid), self._untold)
        except OSError as error:
            if (reason := str(error.strerror)) != self._failure:
                logger.error("the state of this worker cannot be written: %s", reason)
            self._failure = reason
            return
        self._untold, self._failure = None, ""

    def remove(self) -> None:
        worker_file(self._state_dir, os.getpid()).unlink(missing_ok=True)


def _told(variant: ServedVariant | None, error: str) -> LoadedVariant:
    if variant is None:
        return LoadedVariant(error=error)
    loaded = variant.loaded
    return LoadedVariant(
        version=loaded.version, error=error, no_batch=no_batch_dimension_reason(loaded.predictor.artifact)
    )


def silence(endpoint: str, served: ServedEndpoint | None, told: Mapping[str, str]) -> str:
    """Why nobody answers for the endpoint: what keeps its variants away, and what was told of them."""
    away = {name: variant.loaded.unavailable_reason for name, variant in served.variants.items()} if served else {}
    reasons = "; ".join(f"{variant}: {error}" for variant, error in {**away, **told}.items() if error)
    return f"endpoint {endpoint!r} has no version that answers" + (f": {reasons}" if reasons else "")
