"""Fetches the keys by which workers authenticate callers: API keys into `keys.json`, an issuer's into `jwks.json`."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from pydantic import ValidationError

from mlflow_deploy_plugin.errors import InvalidConfig, OnnxserveError, one_line
from mlflow_deploy_plugin.statedir import JWKS, KEYS, ValidKeys, read_state, write_atomically, write_state

_log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 5.0
_ISSUER_SECONDS, _ISSUER_AGAIN_SECONDS = 60.0, 5.0


class KeyFetcher(threading.Thread):
    """A thread that fetches keys again and again. In a thread of its own, a slow source delays nothing else.

    While the keys cannot be fetched, the last ones stay valid, and each new reason is logged once.

    Args:
        what: the name of the keys, for the log.
        fetch: fetches the keys, and writes them if they have changed.
        seconds: the pause between two fetches.
        again_seconds: the pause after a failure.

    Attributes:
        fetched_at: the end of the last fetch that succeeded, before the first one the start; seconds since 1970.
    """

    def __init__(
        self, what: str, fetch: Callable[[], None], seconds: float, again_seconds: float, stop: threading.Event
    ) -> None:
        super().__init__(name=what, daemon=True)
        self.fetched_at = time.time()
        self._fetch = fetch
        self._seconds, self._again_seconds = seconds, again_seconds
        self._ended = stop

    def run(self) -> None:
        before = ""
        while not self._ended.is_set():
            error = ""
            try:
                self._fetch()
                self.fetched_at = time.time()
            except Exception as failure:  # noqa: BLE001 - the boundary: a source may send anything, and gets well again
                error = one_line(failure, 300)
            if error and error != before:
                _log.warning("%s cannot be fetched; those fetched before, if any, hold on: %s", self.name, error)
            before = error
            self._ended.wait(self._again_seconds if error else self._seconds)


def api_key_fetcher(state_dir: Path, source: str | Path, seconds: float, stop: threading.Event) -> KeyFetcher:
    """Return the thread that fetches API keys from a store, by its URL, or from a file."""
    opened: Any = None

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

    def fetch() -> None:
        found = read_file(source) if isinstance(source, Path) else read_store()
        if found != read_state(state_dir / KEYS, ValidKeys):
            write_state(state_dir / KEYS, found)
            _log.info("%d API keys hold", len(found.keys))

    return KeyFetcher("the API keys", fetch, seconds, seconds, stop)


def issuer_key_fetcher(
    state_dir: Path, issuer: str, stop: threading.Event, seconds: float = _ISSUER_SECONDS
) -> KeyFetcher:
    """Return the thread that fetches the public keys of an OpenID Connect issuer."""
    from jwt import PyJWKSet  # the extra `jwt`
    from jwt.exceptions import PyJWTError

    file = state_dir / JWKS

    def fetch() -> None:
        """Discover where the keys are (OpenID Connect Discovery 1.0 §4), and write them down if they have changed."""
        with requests.Session() as session:
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
        if not file.is_file() or file.read_text() != answer.text:
            write_atomically(file, answer.text.encode())
            _log.info("the keys of %s were fetched", issuer)

    return KeyFetcher(f"the keys of {issuer}", fetch, seconds, min(seconds, _ISSUER_AGAIN_SECONDS), stop)
