"""Brings the API keys that hold to the workers, as `keys.json` in the state folder: from the store, or from a file."""

import logging
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.statedir import KEYS, ValidKeys, read_state, write_state

_log = logging.getLogger(__name__)


class KeyFetcher(threading.Thread):
    """Fetches the keys again and again, in a thread of its own: a slow store delays nothing else.

    While they cannot be read, the keys that were fetched last hold on, each until it expires.

    Args:
        source: the URL of the store, or the file.
    """

    def __init__(self, state_dir: Path, source: str | Path, seconds: float, stop: threading.Event) -> None:
        super().__init__(name="keys", daemon=True)
        self._file = state_dir / KEYS
        self._source = source
        self._seconds = seconds
        self._stop_agent = stop
        self._error = ""

    def run(self) -> None:
        fetch = self._copy_until_failure if isinstance(self._source, Path) else self._fetch_until_failure
        while not self._stop_agent.is_set():
            try:
                fetch(self._source)
            except (OnnxserveError, OSError, ValueError) as error:
                message = error.message if isinstance(error, OnnxserveError) else " ".join(str(error).split())[:300]
                if message != self._error:
                    self._error = message
                    _log.warning("the API keys are those of before: %s", message)
            self._stop_agent.wait(self._seconds)

    def _copy_until_failure(self, source: Any) -> None:
        while not self._stop_agent.is_set():
            self._publish(ValidKeys.model_validate_json(source.read_bytes()))

    def _fetch_until_failure(self, source: Any) -> None:
        from mlflow_deploy_plugin import store  # SQLAlchemy takes memory that a server without keys need not have

        with closing(store.open_store(source)) as opened:
            keys = store.ApiKeys(opened)
            while not self._stop_agent.is_set():
                self._publish(ValidKeys(keys={key.digest: key.entry for key in keys.valid()}))

    def _publish(self, found: ValidKeys) -> None:
        """Write the keys if they have changed, and wait for the next look."""
        if found != read_state(self._file, ValidKeys):
            write_state(self._file, found)
            _log.info("%d API keys hold", len(found.keys))
        self._error = ""
        self._stop_agent.wait(self._seconds)
