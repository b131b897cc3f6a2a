"""Brings the public keys of the issuer of tokens to the workers, as `jwks.json` in the state folder."""

import logging
import threading
from pathlib import Path

import requests
from jwt import PyJWKSet
from jwt.exceptions import PyJWTError

from mlflow_deploy_plugin.statedir import JWKS, write_atomically

_log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 5.0
_AGAIN_SECONDS = 5.0
"""Until the next try after one that failed."""


class JwksFetcher(threading.Thread):
    """Fetches the public keys of an OpenID Connect issuer every minute; those fetched last hold on meanwhile."""

    def __init__(self, state_dir: Path, issuer: str, stop: threading.Event, seconds: float = 60.0) -> None:
        super().__init__(name="jwks", daemon=True)
        self._file = state_dir / JWKS
        self._issuer = issuer
        self._seconds = seconds
        self._stop_agent = stop

    def run(self) -> None:
        before = ""
        while not self._stop_agent.is_set():
            error = ""
            try:
                self._fetch()
            except (requests.RequestException, PyJWTError, ValueError, KeyError, TypeError, OSError) as failure:
                error = " ".join(str(failure).split())[:300] or type(failure).__name__
            if error and error != before:
                _log.warning("the keys of %s are those of before: %s", self._issuer, error)
            before = error
            self._stop_agent.wait(min(self._seconds, _AGAIN_SECONDS) if error else self._seconds)

    def _fetch(self) -> None:
        """Discover where the keys are (OpenID Connect Discovery 1.0 §4), and write them down if they have changed."""
        with requests.Session() as session:
            session.max_redirects = 3
            where = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
            found = session.get(where, timeout=_TIMEOUT_SECONDS)
            found.raise_for_status()
            answer = session.get(found.json()["jwks_uri"], timeout=_TIMEOUT_SECONDS)
            answer.raise_for_status()
        text = answer.text
        PyJWKSet.from_json(text)
        if not self._file.is_file() or self._file.read_text() != text:
            write_atomically(self._file, text.encode())
            _log.info("the keys of %s were fetched", self._issuer)
