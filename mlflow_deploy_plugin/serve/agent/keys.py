"""Fetches the keys for authenticating callers: API keys into `keys.json`, and an
issuer's keys into `jwks.json`.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.registry.answers import bounded_answers
from mlflow_deploy_plugin.core.statedir.files import JWKS, KEYS, assert_content
from mlflow_deploy_plugin.core.statedir.models import ValidKeys

if TYPE_CHECKING:
    from mlflow_deploy_plugin.core.store.store import Store

_log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 5.0
_MOST_REDIRECTS = 3
_ISSUER_SECONDS = 60.0
_ISSUER_AGAIN_SECONDS = 5.0


class KeyFetcher(threading.Thread):
    """A thread that repeatedly fetches keys into a file. If a fetch fails, the last
    keys remain valid, and a new reason is logged. `fetched_at` is the time of the last
    successful fetch (initially of the start), in seconds since 1970.
    """

    def __init__(
        self,
        what: str,
        file: Path,
        fetch: Callable[[], bytes],
        seconds: float,
        again_seconds: float,
        stop: threading.Event,
    ) -> None:
        super().__init__(name=what, daemon=True)
        self.fetched_at = time.time()
        self._file = file
        self._fetch = fetch
        self._content: bytes | None = None
        self._writing = threading.Lock()
        self._seconds = seconds
        self._again_seconds = again_seconds
        self._ended = stop

    def run(self) -> None:
        """Fetch the keys regularly until the agent ends."""
        logged_error = ""
        while not self._ended.is_set():
            error = ""
            try:
                self._content = self._fetch()
                if self.assert_file():
                    _log.info("%s have changed", self.name)
                self.fetched_at = time.time()
            except Exception as failure:  # noqa: BLE001 - the source of the keys may send anything, and may recover
                error = one_line(failure, 300)
            if error and error != logged_error:
                _log.warning(
                    "%s cannot be fetched; previously fetched keys remain valid: %s",
                    self.name,
                    error,
                )
            logged_error = error
            pause = self._again_seconds if error else self._seconds
            self._ended.wait(pause)

    def assert_file(self) -> bool:
        """Write the last fetched keys unless the file already has these keys. Return
        True if the file was written.
        """
        # Two threads write the file: without a lock, older keys could replace newer
        # keys.
        with self._writing:
            return self._content is not None and assert_content(self._file, self._content)


class _StoreReader:
    """Reads API keys from a store, which remains open until a read fails."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opened: Store | None = None

    def read(self) -> ValidKeys:
        """Return the valid keys of the store."""
        # Servers without keys do not need SQLAlchemy in memory.
        from mlflow_deploy_plugin.core.store.database import open_store
        from mlflow_deploy_plugin.core.store.keys import ApiKeys

        try:
            self._opened = self._opened or open_store(self._url)
            return ApiKeys(self._opened).valid_entries()
        except OnnxserveError:
            if self._opened is not None:
                self._opened.close()
            self._opened = None
            raise


def api_key_fetcher(
    state_dir: Path,
    source: str | Path,
    seconds: float,
    stop: threading.Event,
) -> KeyFetcher:
    """Return a thread that fetches API keys from a store URL or from a file."""
    reader = None if isinstance(source, Path) else _StoreReader(source)

    def fetch() -> bytes:
        """Return the keys as JSON. Raises InvalidConfig for a file of another kind."""
        if reader is not None:
            return reader.read().model_dump_json().encode()
        try:
            keys = ValidKeys.model_validate_json(Path(source).read_bytes())
        except ValidationError:
            raise InvalidConfig(
                f"{source} is not a file written by `onnxserve keys export`",
            ) from None
        return keys.model_dump_json().encode()

    return KeyFetcher("the API keys", state_dir / KEYS, fetch, seconds, seconds, stop)


def issuer_key_fetcher(
    state_dir: Path,
    issuer: str,
    stop: threading.Event,
    seconds: float = _ISSUER_SECONDS,
) -> KeyFetcher:
    """Return a thread that fetches the public keys of an OpenID Connect issuer."""
    import requests  # The import takes a tenth of a server's start.
    from jwt import PyJWKSet  # This import needs the extra `jwt`.
    from jwt.exceptions import PyJWTError

    def fetch() -> bytes:
        """Return the issuer's keys as JSON. Raises ValueError if they are malformed."""
        with requests.Session() as session, bounded_answers():
            session.max_redirects = _MOST_REDIRECTS
            # The issuer's discovery document (OpenID Connect Discovery 1.0 §4).
            discovery_url = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
            discovery = session.get(discovery_url, timeout=_TIMEOUT_SECONDS)
            discovery.raise_for_status()
            document = discovery.json()
            document_issuer = document.get("issuer") if isinstance(document, dict) else None
            keys_url = document.get("jwks_uri") if document_issuer == issuer else None
            if not isinstance(keys_url, str):
                raise ValueError(
                    f"{discovery_url} is not the discovery document of server.jwt_issuer: it names "
                    f"{document_issuer!r}",
                )
            answer = session.get(keys_url, timeout=_TIMEOUT_SECONDS)
            answer.raise_for_status()
        try:
            PyJWKSet.from_json(answer.text)
        except PyJWTError as error:
            raise ValueError(str(error)) from None
        return answer.text.encode()

    again_seconds = min(seconds, _ISSUER_AGAIN_SECONDS)
    return KeyFetcher(
        f"the keys of {issuer}",
        state_dir / JWKS,
        fetch,
        seconds,
        again_seconds,
        stop,
    )
