"""What the workers say about the versions they were given, and which of them they have died of."""

from collections.abc import Sequence
from pathlib import Path

from mlflow_deploy_plugin.server.state import WorkerState, lives, read_workers, take_deaths

_MOST_DEATHS = 2
"""Of one version; a single one may have been anybody's doing."""


class Workers:
    """The workers of one server."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        take_deaths(state_dir)  # of an earlier server that was killed as a whole
        self._deaths: list[Path] = []

    def living(self) -> list[WorkerState]:
        """Their accounts, as they stand now."""
        return [worker for worker in read_workers(self._state_dir) if lives(worker.pid)]

    def hear_of_deaths(self) -> None:
        """Takes note of what workers have died of since the last time, for `died_of`."""
        self._deaths += take_deaths(self._state_dir)

    def died_of(self, folder: Path | None) -> str:
        """Why the version in this folder is not given to the workers again, which it keeps from living."""
        if folder is None or self._deaths.count(folder) < _MOST_DEATHS:
            return ""
        self._deaths = [died for died in self._deaths if died != folder]
        return f"{_MOST_DEATHS} workers have died while they loaded it: of a crash, or for want of memory"


def load_error(workers: Sequence[WorkerState], endpoint: str, variant: str) -> str:
    """Why some worker could not load what is wanted of a variant; empty: all could, or have not tried yet."""
    loaded = (worker.endpoints.get(endpoint, {}).get(variant) for worker in workers)
    return next((entry.error for entry in loaded if entry is not None and entry.error), "")
