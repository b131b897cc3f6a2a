"""The adapter of the distribution mlflow-oidc-auth (OpenID Connect and SAML); tested
with 11.0.2.

FastAPI authenticates a request and passes the caller to Flask. A browser has a session
cookie, and a client an access token (basic) or a token of the issuer (bearer). The
plugin's database contains groups and permissions.
"""

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mlflow_oidc_auth.auth as oidc
from cachetools import TTLCache
from flask import Flask, Response, jsonify, make_response, request
from mlflow.exceptions import MlflowException
from mlflow_oidc_auth.bridge import get_fastapi_admin_status, get_fastapi_username
from mlflow_oidc_auth.entities.auth_context import AUTH_CONTEXT_KEY
from mlflow_oidc_auth.hooks import before_request
from mlflow_oidc_auth.middleware.route_path import is_unprotected_route
from mlflow_oidc_auth.store import store
from mlflow_oidc_auth.utils.prompt_kind import effective_registry_permission
from mlflow_oidc_auth.utils.workspace_cache import get_workspace_permission_cached

from mlflow_deploy_plugin.ui.logins.login import HEADERS_VARIABLE, Login, ModelPermission

if TYPE_CHECKING:
    from fastapi import FastAPI

_FETCH_SECONDS = 60
_KNOWN_SECONDS = 300  # if the issuer does not answer
_MOST_ISSUERS = 32


class OidcAuth(Login):
    """The plugin validates a token of the issuer on the event loop, and fetches the
    issuer's keys again for each false signature. A token is therefore validated in a
    thread before, and keys are fetched at most once a minute.
    """

    def install(self, app: Flask, served: "Flask | FastAPI") -> None:
        oidc._load_jwks = _once_a_minute(oidc._load_jwks)

    def is_open(self, path: str) -> bool:
        return bool(is_unprotected_route(path))

    def refusal(self) -> Response | None:
        header = request.authorization
        if header is None or header.type != "bearer":
            return None  # The plugin does not use the event loop, or asks only its database.
        try:
            oidc.validate_token(header.token)
        except Exception:  # noqa: BLE001 - The plugin answers every error in this way.
            return make_response(jsonify(detail="Authentication required"), 401)
        return None

    def allow_page(self, path: str, method: str) -> None:
        before_request.BEFORE_REQUEST_VALIDATORS[path, method] = lambda user: True

    def enter_workspace(self, name: str) -> None:
        request.environ[AUTH_CONTEXT_KEY] = replace(
            request.environ[AUTH_CONTEXT_KEY],
            workspace=name,
        )

    def user(self) -> str:
        return str(get_fastapi_username())

    def is_administrator(self) -> bool:
        return bool(get_fastapi_admin_status())

    def groups(self) -> frozenset[str]:
        return frozenset(store.get_groups_for_user(self.user()))

    def permission(self, model: str) -> ModelPermission:
        try:
            permission = effective_registry_permission(model, self.user()).permission
        except MlflowException:  # The model or the user does not exist.
            return ModelPermission()
        return ModelPermission(bool(permission.can_read), bool(permission.can_update))

    def readable_workspaces(self, names: Iterable[str]) -> set[str]:
        if self.is_administrator():
            return set(names)
        permissions = {name: get_workspace_permission_cached(self.user(), name) for name in names}
        return {
            name
            for name, permission in permissions.items()
            if permission is not None and permission.can_read
        }

    def credentials(self) -> dict[str, str]:
        """Return the variables for the Authorization header, otherwise for the session
        cookie of a browser.
        """
        cookies = request.headers.get("Cookie", "")
        session = {HEADERS_VARIABLE: json.dumps({"Cookie": cookies})} if cookies else {}
        return super().credentials() or session


def _once_a_minute(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return the plugin's function that loads the keys of an issuer, with at most one
    fetch a minute. During a fetch, the known keys are valid.
    """
    fetching = threading.Lock()
    tried = TTLCache[Any, bool](_MOST_ISSUERS, _FETCH_SECONDS)
    known = TTLCache[Any, Any](_MOST_ISSUERS, _KNOWN_SECONDS)

    def load_keys(url: str, *, cache_key: Any, **given: Any) -> Any:
        if cache_key not in known or not fetching.locked():
            with fetching:
                if cache_key not in tried:
                    tried[cache_key] = True
                    given |= {"cache": {}, "force_refresh": False}
                    known[cache_key] = load(url, cache_key=cache_key, **given)
        return known[cache_key]

    return load_keys
