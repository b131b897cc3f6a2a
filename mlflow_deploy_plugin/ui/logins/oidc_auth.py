"""The adapter of the distribution mlflow-oidc-auth (OpenID Connect and SAML); tested
with 11.0.2.

FastAPI authenticates a request and passes the caller to Flask. A browser has a session
cookie, and a client an access token (basic) or a token of the issuer (bearer). The
plugin's database contains groups and permissions.
"""

import json
from collections.abc import Iterable
from dataclasses import replace

from flask import request
from mlflow.exceptions import MlflowException
from mlflow_oidc_auth.bridge import get_fastapi_admin_status, get_fastapi_username
from mlflow_oidc_auth.entities.auth_context import AUTH_CONTEXT_KEY
from mlflow_oidc_auth.hooks import before_request
from mlflow_oidc_auth.store import store
from mlflow_oidc_auth.utils.prompt_kind import effective_registry_permission
from mlflow_oidc_auth.utils.workspace_cache import get_workspace_permission_cached

from mlflow_deploy_plugin.ui.logins.login import HEADERS_VARIABLE, Login, ModelPermission


class OidcAuth(Login):
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
