"""The caller of a page, the caller's permissions from the server's login (`logins/`),
and protection against CSRF.

A form must come from this origin according to `Sec-Fetch-Site`, or `Origin` if
`Sec-Fetch-Site` is missing. A client that sends neither header is not a browser. The
form must also contain the Flask-WTF token of the caller's session.
"""

import hashlib
import logging
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask, Response, current_app, g, jsonify, make_response, request
from flask.sessions import SecureCookieSessionInterface

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.core.errors import CallerRefused, NotFound
from mlflow_deploy_plugin.core.registry.transitions import ACT_HEADER, models_served_by
from mlflow_deploy_plugin.core.statedir.files import read_or_make_secret
from mlflow_deploy_plugin.core.store.audit import ACT, AuditEvent
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.serve.protocols.content import check_depth, load_json
from mlflow_deploy_plugin.ui.logins.login import Login, ModelPermission

try:
    from flask_wtf.csrf import generate_csrf, validate_csrf
    from wtforms import ValidationError
except ModuleNotFoundError as error:
    command = "pip install 'mlflow-onnxserve[ui]'"
    raise ModuleNotFoundError(
        f"the console needs {error.name}: {command}",
        name=error.name,
    ) from None

TOKEN_FIELD = "csrf_token"
# A page may be open for days, longer than Flask-WTF's default of an hour.
_TOKEN_SECONDS = 365 * 24 * 3600
_KEY_BYTES = 32
_EXTENSION = "onnxserve.login"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """The sender of a request. `user` is empty without accounts, and `address` may be
    the address of a proxy.
    """

    user: str
    address: str

    @property
    def actor(self) -> str:
        return self.user or f"anonymous@{self.address}"


def asked(name: str) -> str:
    """Return a parameter of the current request's URL; empty without it."""
    return request.args.get(name, "")


def refusal(code: str, message: str, status: int) -> Response:
    """Return an error as MLflow's clients read it."""
    return make_response(jsonify(error_code=code, message=message), status)


def static_prefix() -> str:
    """Return the path below which MLflow serves its pages (`--static-prefix`), without
    a slash at the end.
    """
    return str(mlflow_private._add_static_prefix("/")).rstrip("/")


def set_login(app: Flask, login: Login) -> None:
    app.extensions[_EXTENSION] = login


def login() -> Login:
    """Return the login adapter of the current app."""
    adapter: Login = current_app.extensions[_EXTENSION]
    return adapter


def caller() -> Caller:
    return Caller(login().user(), request.remote_addr or "unknown")


def act_detail() -> dict[str, str]:
    """Return the id of the act that the request belongs to, for the detail of an event;
    empty if the request names none.
    """
    act = request.headers.get(ACT_HEADER, "")[:16]  # Any caller may send any text.
    return {ACT: act} if act.isalnum() else {}


def may_read(model: str) -> bool:
    return is_administrator() or (may_list(model) and _permission(model).can_read)


def require_readable(model: str) -> None:
    """Raise NotFound if the caller may not read the model."""
    if not may_read(model):
        raise NotFound(f"there is no registered model {model!r}, or you may not read it")


def may_list(model: str) -> bool:
    """Return True if MLflow lists this model for the caller. `may_read` may need
    several queries per model.
    """
    if is_administrator():
        return True
    if "onnxserve_is_listed" not in g:
        g.onnxserve_is_listed = login().list_filter()
    return bool(g.onnxserve_is_listed(model))


def may_act_on(models: Sequence[str]) -> bool:
    """Return True if the caller may move versions of all `models`. Without accounts,
    every caller may move versions.

    Only administrators may act on an endpoint without a registered model.
    """
    return is_administrator() or (
        bool(models) and all(_permission(model).can_update for model in models)
    )


def is_administrator() -> bool:
    """Return True for an administrator. Without accounts, every caller is an
    administrator.
    """
    if "onnxserve_administrator" not in g:
        g.onnxserve_administrator = login().is_administrator()
    return bool(g.onnxserve_administrator)


def seen_workspaces() -> list[str]:
    """Return the caller's workspaces and the workspace of the request; an empty list if
    workspaces are disabled.
    """
    from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
    from mlflow.utils.workspace_context import get_request_workspace

    if not MLFLOW_ENABLE_WORKSPACES.get():
        return []
    names = login().readable_workspaces(
        workspace.name for workspace in mlflow_private._get_workspace_store().list_workspaces()
    )
    return sorted({*names, get_request_workspace()} - {None})


def hidden_endpoints(store: Store, names: Iterable[str]) -> frozenset[str]:
    """Return the endpoints that serve or served an unknown model, or a model that the
    caller may not read.
    """
    if is_administrator():
        return frozenset()
    requested = set(names)
    hidden = g.setdefault("onnxserve_hidden_endpoints", {})
    if unknown := requested - hidden.keys():
        unreadable = {endpoint.name for endpoint in store.unreadable()}
        for name in unknown:
            models = models_served_by(store, name)
            hidden[name] = name in unreadable or models is None or not all(map(may_read, models))
    return frozenset(name for name in requested if hidden[name])


def visible_events(store: Store, events: Sequence[AuditEvent]) -> list[AuditEvent]:
    """Return the events that the caller may see. Only administrators see events with
    neither endpoint nor model.
    """
    if is_administrator():
        return list(events)
    hidden = hidden_endpoints(store, (event.endpoint for event in events if event.endpoint))
    return [
        event
        for event in events
        if (event.endpoint or event.model)
        and event.endpoint not in hidden
        and (not event.model or may_read(event.model))
    ]


def _permission(model: str) -> ModelPermission:
    permissions: dict[str, ModelPermission] = g.setdefault("onnxserve_permissions", {})
    if model not in permissions:
        permissions[model] = login().permission(model)
    return permissions[model]


def add_sessions(app: Flask, key_file: Path) -> None:
    """Add sessions to the app. If the login sets no key, the workers share the key in
    `key_file`.
    """
    if not app.secret_key:
        try:
            shared_or_new_key = read_or_make_secret(key_file, secrets.token_bytes(_KEY_BYTES))
        except OSError as error:
            _log.warning(
                "%s cannot be used (%s): only this worker accepts forms of its pages",
                key_file,
                error,
            )
            shared_or_new_key = secrets.token_bytes(_KEY_BYTES)
        app.secret_key = shared_or_new_key
    app.session_interface = _Sessions()
    app.config["SESSION_COOKIE_SAMESITE"] = "Strict"
    # Browsers share a cookie between all ports of a host, and a server with another key
    # must not replace our cookie.
    if isinstance(app.secret_key, str):
        key = app.secret_key.encode()
    else:
        key = app.secret_key
    app.config["SESSION_COOKIE_NAME"] = f"onnxserve_{hashlib.sha256(key).hexdigest()[:8]}"


def form_token(user: str) -> str:
    return str(generate_csrf(token_key=_session_key(user)))


def is_host_allowed() -> bool:
    """Return True if the operator allows the Host of the request. A caller can send any
    Host header.
    """
    from mlflow.server.security_utils import get_allowed_hosts_from_env

    return request.host in (get_allowed_hosts_from_env() or ())


def require_own_site() -> None:
    """Raise CallerRefused if a page of another site has sent the request."""
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    # A form cannot set X-Forwarded-Host, so the hosts in this header, which proxies
    # set, are also ours.
    hosts = {
        host.strip()
        for host in (request.host, *request.headers.get("X-Forwarded-Host", "").split(","))
    }
    # The Origin `null` has an empty host.
    is_ours = origin is None or origin.partition("://")[2] in hosts - {""}
    if site:
        is_ours = site == "same-origin"
    if not is_ours:
        raise CallerRefused("the request was sent from another site")


def read_own_json() -> Any:
    """Return the JSON document in the body of the current request, or None for a body
    of another content type. Raises CallerRefused for a request of another site, and
    InvalidRequest if the body is not JSON or is nested too deeply.
    """
    require_own_site()
    if not request.is_json:
        return None
    document = load_json(request.get_data(), takes_nan=False)
    check_depth(document)  # The audit trail writes its events with Python's `json`.
    return document


def require_own_form(user: str) -> None:
    """Raise CallerRefused if the form was not sent from a page that this user has
    loaded.
    """
    require_own_site()
    try:
        validate_csrf(
            request.form.get(TOKEN_FIELD),
            time_limit=_TOKEN_SECONDS,
            token_key=_session_key(user),
        )
    except ValidationError:
        message = "no action was started, because the page was out of date: repeat the action"
        raise CallerRefused(message) from None


class _Sessions(SecureCookieSessionInterface):
    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure or super().get_cookie_secure(app)


def _session_key(user: str) -> str:
    """Return the session's key for the token of this user: a form is only valid for the
    user who loaded the page.
    """
    return f"onnxserve_csrf_token_{user}"
