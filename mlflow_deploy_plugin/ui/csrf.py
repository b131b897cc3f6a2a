"""Protection of the console's forms against other sites (CSRF): another site's page must not press our buttons.

Two conditions must hold. The browser says that the form comes from this origin (`Sec-Fetch-Site`, else `Origin`; a
client that sends neither is no browser). And the form has the token of the caller's session, by Flask-WTF.
"""

import hashlib
import logging
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from flask import Flask, request
from flask.sessions import SecureCookieSessionInterface

try:
    from flask_wtf.csrf import generate_csrf, validate_csrf
    from wtforms import ValidationError
except ModuleNotFoundError as error:
    command = "pip install 'mlflow-onnxserve[ui]'"
    raise ModuleNotFoundError(f"the console needs {error.name}: {command}", name=error.name) from None

FIELD = "csrf_token"
_TOKEN_SECONDS = 365 * 24 * 3600  # a page may stay open as long as the browser: Flask-WTF's own limit is an hour
_KEY_BYTES = 32

_log = logging.getLogger(__name__)


def install(app: Flask, key_file: Path) -> None:
    """Give the app sessions.

    MLflow's basic auth has set a key already. Without accounts the workers share the key in `key_file`.
    """
    if not app.secret_key:
        try:
            app.secret_key = _shared_key(key_file)
        except OSError as error:
            _log.warning("%s cannot be used (%s): only this worker takes the forms of its pages", key_file, error)
            app.secret_key = secrets.token_bytes(_KEY_BYTES)
    app.session_interface = _Sessions()
    app.config["SESSION_COOKIE_SAMESITE"] = "Strict"
    # browsers keep one cookie a name for all ports of a host: servers with other keys must not replace ours
    key = app.secret_key.encode() if isinstance(app.secret_key, str) else app.secret_key
    app.config["SESSION_COOKIE_NAME"] = f"onnxserve_{hashlib.sha256(key).hexdigest()[:8]}"


def token(user: str) -> str:
    """Return the token for the forms of the page at hand."""
    return str(generate_csrf(token_key=_session_key(user)))


def refusal(user: str) -> str:
    """Return why the form at hand is refused; empty if it is not."""
    if not _is_same_origin():
        return "the form was sent from another site"
    try:
        validate_csrf(request.form.get(FIELD), time_limit=_TOKEN_SECONDS, token_key=_session_key(user))
    except ValidationError:
        return "the page is out of date: load it again and repeat what you wanted"
    return ""


class _Sessions(SecureCookieSessionInterface):
    """Sessions by a cookie that goes over TLS alone if it was set over TLS."""

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure or super().get_cookie_secure(app)


def _session_key(user: str) -> str:
    """Return where the session keeps the token: a form holds only for the account that loaded the page."""
    return f"onnxserve_csrf_token_{user}"


def _shared_key(file: Path) -> bytes:
    """Return the key in the file. The first worker makes it."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # linked once it is whole: of two workers one makes it, and both read the same
        own = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
            new.write(secrets.token_bytes(_KEY_BYTES))
        try:
            os.link(own, file)
        except FileExistsError:
            pass
        finally:
            own.unlink()
    return file.read_bytes()


def _is_same_origin() -> bool:
    if site := request.headers.get("Sec-Fetch-Site"):
        return site == "same-origin"
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    # no form of another site can set X-Forwarded-Host: a proxy did, or several, the outermost first
    hosts = (request.host, *request.headers.get("X-Forwarded-Host", "").split(","))
    return urlsplit(origin).netloc in {host.strip() for host in hosts} - {""}  # empty is what `null` names
