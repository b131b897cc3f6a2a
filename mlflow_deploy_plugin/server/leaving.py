"""Versions that no table names any more, and that requests which began with them have not left yet.

Waiting for them is bounded: one request that hangs must not keep what was promoted from being served. What a third
version then takes is for `server/memory.py` to allow.
"""

import threading
import time
import weakref

from mlflow_deploy_plugin.server.served import LoadedVersion, Table

_LONGEST_SECONDS, _POLL_SECONDS = 5.0, 0.02


class Leaving:
    """Keeps a third version of a model from being loaded while the first is still in memory."""

    def __init__(self) -> None:
        self._versions: weakref.WeakSet[LoadedVersion] = weakref.WeakSet()

    def replaced(self, before: Table, after: Table) -> None:
        """What `before` names and `after` does not is leaving."""
        self._versions.update(_loaded(before) - _loaded(after))

    def wait(self, model: str, stopping: threading.Event) -> None:
        """Returns when no version of the model is leaving, after some seconds at most, or on `stopping`."""
        deadline = time.monotonic() + _LONGEST_SECONDS
        while any(one.model == model for one in self._versions) and time.monotonic() < deadline:
            if stopping.wait(_POLL_SECONDS):
                return


def _loaded(table: Table) -> set[LoadedVersion]:
    return {variant.loaded for served in table.values() for variant in served.variants.values()}
