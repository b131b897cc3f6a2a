"""Says whether a form was sent from our own page: another site's page must not press our buttons.

Two things have to hold. The browser says that the form comes from this origin (`Sec-Fetch-Site`, else `Origin`; what
names neither is no browser). And the form carries the token that belongs to the cookie, which only our page knows.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from flask import Response, request

_COOKIE = "onnxserve_console"
_KEY_BYTES = 32


class CsrfTokens:
    """Tokens by the key in `key_file`, which the workers of a server share; it is made by the first who needs it."""

    def __init__(self, key_file: Path) -> None:
        self._file = key_file
        self._key = b""

    def token(self, user: str) -> tuple[str, str]:
        """(the cookie, the token of a form), for the request at hand."""
        cookie = request.cookies.get(_COOKIE) or secrets.token_urlsafe(24)
        return cookie, self._sign(cookie, user)

    def keep(self, response: Response, cookie: str, path: str) -> None:
        """Sends the cookie with a page."""
        response.set_cookie(
            _COOKIE, cookie, path=path, httponly=True, samesite="Strict", secure=request.scheme == "https"
        )

    def refusal(self, user: str) -> str:
        """Why the form at hand is not taken; empty where it is."""
        if not _is_same_origin():
            return "the form was sent from another site"
        cookie = request.cookies.get(_COOKIE, "")
        if not cookie or not hmac.compare_digest(self._sign(cookie, user), request.form.get("token", "")):
            return "the page is out of date: load it again and repeat what you wanted"
        return ""

    def _sign(self, cookie: str, user: str) -> str:
        return hmac.new(self._read_key(), f"{cookie}\n{user}".encode(), hashlib.sha256).hexdigest()

    def _read_key(self) -> bytes:
        if not self._key:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # linked when it is whole: of two workers one makes it, and both read the same
            own = self._file.with_name(f".{self._file.name}.{secrets.token_hex(8)}")
            with os.fdopen(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
            try:
                os.link(own, self._file)
            except FileExistsError:
                pass
            finally:
                own.unlink()
            self._key = self._file.read_bytes()
        return self._key


def _is_same_origin() -> bool:
    if site := request.headers.get("Sec-Fetch-Site"):
        return site == "same-origin"
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    # no form of another site can set X-Forwarded-Host: a proxy did, or several, the outermost first
    hosts = (request.host, *request.headers.get("X-Forwarded-Host", "").split(","))
    return urlsplit(origin).netloc in {host.strip() for host in hosts} - {""}  # empty is what `null` names
