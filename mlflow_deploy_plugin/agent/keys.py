"""Fetches the keys by which workers authenticate callers: API keys into `keys.json`, an issuer's into `jwks.json`."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import requests
from pydantic import ValidationError

from mlflow_deploy_plugin.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.registry import bounded_answers
from mlflow_deploy_plugin.statedir import ValidKeys
from mlflow_deploy_plugin.statedir.files import JWKS, KEYS, assert_content

if TYPE_CHECKING:
    from mlflow_deploy_plugin.store import Store

_log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 5.0
_ISSUER_SECONDS, _ISSUER_AGAIN_SECONDS = 60.0, 5.0


class KeyFetcher(threading.Thread):
    """A thread that fetches keys into a file again and again. While the keys cannot be fetched, the last ones stay
    valid, and each new reason is logged once. `fetched_at` is the end of the last successful fetch (at first the
    start), in seconds since 1970."""

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
        self._file, self._fetch = file, fetch
        self._content: bytes | None = None
        self._writing = threading.Lock()
        self._seconds, self._again_seconds = seconds, again_seconds
        self._ended = stop

    def run(self) -> None:
        before = ""
        while not self._ended.is_set():
            error = ""
            try:
                self._content = self._fetch()
                if self.assert_file():
                    _log.info("%s have changed", self.name)
                self.fetched_at = time.time()
            except Exception as failure:  # noqa: BLE001 - the boundary: a source may send anything, and gets well again
                error = one_line(failure, 300)
            if error and error != before:
                _log.warning("%s cannot be fetched; those fetched before, if any, hold on: %s", self.name, error)
            before = error
            self._ended.wait(self._again_seconds if error else self._seconds)

    def assert_file(self) -> bool:
        """Write the keys that were fetched last unless the file holds them; return True if they were written."""
        with self._writing:  # Two threads write: without the lock, older keys could replace new ones.
            return self._content is not None and assert_content(self._file, self._content)


def api_key_fetcher(state_dir: Path, source: str | Path, seconds: float, stop: threading.Event) -> KeyFetcher:
    """Return the thread that fetches API keys from a store, by its URL, or from a file."""
    opened: Store | None = None

    def read_store() -> ValidKeys:
        """Return the valid keys. The store stays open until it fails."""
        nonlocal opened
        from mlflow_deploy_plugin import store  # SQLAlchemy takes memory that a server without keys need not have

        try:
            opened = opened or store.open_store(str(source))
            return store.ApiKeys(opened).valid_entries()
        except OnnxserveError:
            if opened is not None:
                opened.close()
            opened = None
            raise

    def read_file(file: Path) -> ValidKeys:
        try:
            return ValidKeys.model_validate_json(file.read_bytes())
        except ValidationError:
            raise InvalidConfig(f"{file} is not what `onnxserve keys export` writes") from None

    def fetch() -> bytes:
        keys = read_file(source) if isinstance(source, Path) else read_store()
        return keys.model_dump_json().encode()

    return KeyFetcher("the API keys", state_dir / KEYS, fetch, seconds, seconds, stop)


def issuer_key_fetcher(
    state_dir: Path, issuer: str, stop: threading.Event, seconds: float = _ISSUER_SECONDS
) -> KeyFetcher:
    """Return the thread that fetches the public keys of an OpenID Connect issuer."""
    from jwt import PyJWKSet  # the extra `jwt`
    from jwt.exceptions import PyJWTError

    def fetch() -> bytes:
        """Discover where the keys are (OpenID Connect Discovery 1.0 §4), and return them."""
        with requests.Session() as session, bounded_answers():
            session.max_redirects = 3
            where = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
            found = session.get(where, timeout=_TIMEOUT_SECONDS)
            found.raise_for_status()
            document = found.json()
            named = document.get("issuer") if isinstance(document, dict) else None
            if named != issuer or not isinstance(document.get("jwks_uri"), str):
                raise ValueError(f"{where} is not the discovery document of server.jwt_issuer: it names {named!r}")
            answer = session.get(document["jwks_uri"], timeout=_TIMEOUT_SECONDS)
            answer.raise_for_status()
        try:
            PyJWKSet.from_json(answer.text)
        except PyJWTError as error:
            raise ValueError(str(error)) from None
        return answer.text.encode()

    again_seconds = min(seconds, _ISSUER_AGAIN_SECONDS)
    return KeyFetcher(f"the keys of {issuer}", state_dir / JWKS, fetch, seconds, again_seconds, stop)
