"""Brings the API keys that hold from the store to the workers, as `keys.json` in the state folder."""

import logging
import threading
from contextlib import closing
from pathlib import Path

from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.statedir import KEYS, KeyEntry, ValidKeys, read_state, write_state

_log = logging.getLogger(__name__)


class KeyFetcher(threading.Thread):
    """Fetches the keys again and again, in a thread of its own: a slow store delays nothing else.

    While the store cannot be reached, the keys that were fetched last hold on, each until it expires.
    """

    def __init__(self, state_dir: Path, store_url: str, seconds: float, stop: threading.Event) -> None:
        super().__init__(name="keys", daemon=True)
        self._file = state_dir / KEYS
        self._store_url = store_url
        self._seconds = seconds
        self._stop_agent = stop
        self._error = ""

    def run(self) -> None:
        while not self._stop_agent.is_set():
            try:
                self._fetch_until_failure()
            except OnnxserveError as error:
                if error.message != self._error:
                    self._error = error.message
                    _log.warning("the API keys are those of before: %s", error.message)
            self._stop_agent.wait(self._seconds)

    def _fetch_until_failure(self) -> None:
        from mlflow_deploy_plugin import store  # SQLAlchemy takes memory that a server without keys need not have

        with closing(store.open_store(self._store_url)) as opened:
            keys = store.ApiKeys(opened)
            while not self._stop_agent.is_set():
                found = ValidKeys(
                    keys={
                        key.digest: KeyEntry(
                            name=key.name,
                            scopes=tuple(key.scopes),
                            endpoints=tuple(key.endpoints),
                            expires_at=None if key.expires_at is None else key.expires_at.timestamp(),
                        )
                        for key in keys.valid()
                    }
                )
                if found != read_state(self._file, ValidKeys):
                    write_state(self._file, found)
                    _log.info("%d API keys hold", len(found.keys))
                self._error = ""
                self._stop_agent.wait(self._seconds)
