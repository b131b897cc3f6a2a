"""The interface of a login adapter, and the table of all adapters."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from flask import Flask, Response, request

from mlflow_deploy_plugin.core.errors import InvalidConfig

if TYPE_CHECKING:
    from fastapi import FastAPI

GROUP = "onnxserve.logins"
_ADAPTERS = {
    "basic-auth": "mlflow_deploy_plugin.ui.logins.basic_auth:BasicAuth",
    "kubernetes-auth": "mlflow_deploy_plugin.ui.logins.kubernetes_auth:KubernetesAuth",
    "oidc-auth": "mlflow_deploy_plugin.ui.logins.oidc_auth:OidcAuth",
}
"""The name of an app of the group `mlflow.app` → its adapter, which is imported only
together with the app.
"""
HEADERS_VARIABLE = "_ONNXSERVE_HEADERS"
"""The environment variable with the headers, as a JSON object, that a job sends to
MLflow for a caller without a password or a token.
"""


@dataclass(frozen=True)
class ModelPermission:
    """The permission for a registered model and its versions."""

    can_read: bool = False
    can_update: bool = False


class Login:
    """A login adapter. This class is the adapter of a server without accounts, and
    others replace its methods.

    All methods except the first three are called within a Flask request, and all except
    `refusal` after the login's own checks.

    Attributes:
        counts_failures: False if all callers have the address of a proxy, so that one
            caller's wrong logins must not refuse the others.
    """

    counts_failures = True

    def install(self, app: Flask, served: "Flask | FastAPI") -> None:
        """Prepare the app. `served` is the app for the WSGI or ASGI server, which
        contains `app`.
        """

    def allow_page(self, path: str, method: str) -> None:
        """Let all authenticated callers send requests to a page of onnxserve, which
        checks permissions itself.
        """

    def is_open(self, path: str) -> bool:
        """Return True if requests to a path need no login, such as health checks."""
        return False

    def refusal(self) -> Response | None:
        """Return the answer to a request that has no valid login, or None. The body of
        the request is not read yet. None if the login itself refuses before it reads.
        """
        return None

    def enter_workspace(self, name: str) -> None:
        """Apply the permissions in this workspace, which the URL of a page selects
        instead of the workspace header.
        """

    def user(self) -> str:
        """Return the name of the caller; empty for an anonymous caller."""
        return ""

    def is_administrator(self) -> bool:
        """Return True if the caller may see and change everything."""
        return True

    def groups(self) -> frozenset[str]:
        """Return the groups or roles of the caller."""
        return frozenset()

    def permission(self, model: str) -> ModelPermission:
        """Return the caller's permission for a registered model. An unknown model
        raises no exception.
        """
        return ModelPermission(can_read=True, can_update=True)

    def list_filter(self) -> Callable[[str], bool]:
        """Return a predicate that is True for the models that MLflow lists for the
        caller.
        """
        return lambda model: self.permission(model).can_read

    def readable_workspaces(self, names: Iterable[str]) -> set[str]:
        """Return the workspaces that MLflow lists for the caller."""
        return set(names)

    def credentials(self) -> dict[str, str]:
        """Return environment variables with which a process on this machine calls
        MLflow as the caller.

        By default, MLflow's client sends the Authorization header of the request (basic
        or bearer).
        """
        header = request.authorization
        if header is None:
            return {}
        if header.type == "basic":
            password = header.password or ""
            return {
                "MLFLOW_TRACKING_USERNAME": header.username or "",
                "MLFLOW_TRACKING_PASSWORD": password,
            }
        if header.type == "bearer" and header.token:
            return {"MLFLOW_TRACKING_TOKEN": header.token}
        return {}


def login_of(app: str) -> Login:
    """Return the adapter of an app of the group `mlflow.app`.

    Raises InvalidConfig if the app has no adapter, because callers without a known name
    would have all permissions, and any exception if the adapter does not fit the
    version of the app.
    """
    registered = {entry.name: entry.value for entry in entry_points(group=GROUP)}
    address = registered.get(app) or _ADAPTERS.get(app)
    if address is None:
        names = ", ".join(sorted({*_ADAPTERS, *registered}))
        raise InvalidConfig(
            f"ONNXSERVE_MLFLOW_APP: {app} has no login adapter, which reads the caller's name and "
            f"permissions. There are adapters for {names}. "
            f"A distribution registers an adapter in the entry point group {GROUP}"
        )
    adapter: Login = EntryPoint(app, address, GROUP).load()()
    return adapter
