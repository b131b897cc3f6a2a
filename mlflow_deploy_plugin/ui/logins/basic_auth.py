"""The adapter of MLflow's basic auth. The groups of a caller are the caller's roles in
MLflow.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING

from flask import Flask, g
from mlflow.exceptions import MlflowException
from mlflow.protos.service_pb2 import ListWorkspaces
from mlflow.server import auth
from mlflow.server.auth.permissions import NO_PERMISSIONS
from mlflow.server.auth.requirements import ACTION_NOT_DENIED, Requirement
from mlflow.utils.workspace_context import get_request_workspace
from mlflow.utils.workspace_utils import DEFAULT_WORKSPACE_NAME

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.ui.logins.login import Login, ModelPermission

if TYPE_CHECKING:
    from fastapi import FastAPI


class BasicAuth(Login):
    def install(self, app: Flask, served: "Flask | FastAPI") -> None:
        """Check the password once per request. A check takes 0.1 s, and MLflow 3.17
        repeats it for each permission.
        """
        authenticate = auth.authenticate_request

        @wraps(authenticate)
        def once() -> object:
            if "onnxserve_authorization" not in g:
                g.onnxserve_authorization = authenticate()
            return g.onnxserve_authorization

        auth.authenticate_request = once

    def allow_page(self, path: str, method: str) -> None:
        auth.BEFORE_REQUEST_VALIDATORS[path, method] = lambda: True

    def user(self) -> str:
        return str(g.get("mlflow_authenticated_user") or "")

    def is_administrator(self) -> bool:
        return bool(auth.sender_is_admin())

    def groups(self) -> frozenset[str]:
        user = auth.store.get_user(self.user())
        workspace = get_request_workspace() or DEFAULT_WORKSPACE_NAME
        return frozenset(
            role.name for role in auth.store.list_user_roles_for_workspace(user.id, workspace)
        )

    def permission(self, model: str) -> ModelPermission:
        """Return the permission that the caller has for the model and for its versions,
        for which MLflow has separate grants. An explicit DENY of either one wins.
        """
        try:
            registered = mlflow_private._get_model_registry_store().get_registered_model(model)
        except MlflowException:  # The model does not exist.
            return ModelPermission()
        kind = "prompt" if registered._is_prompt() else "registered_model"
        named = (kind, registered.name)
        # Conditions on aliases (mlflow#24742) would be further requirements here.
        required = [
            Requirement(*named, "read"),
            Requirement(f"{kind}_version", "*", "read", fallback_if_no_grant=(named,)),
        ]
        found = auth.resolve_requirements(self.user(), named, required) or [NO_PERMISSIONS]
        return ModelPermission(
            all(permission.can_read for permission in found),
            all(permission.can_update for permission in found),
        )

    def list_filter(self) -> Callable[[str], bool]:
        """Return MLflow's own predicate for versions. One query covers all models;
        `permission` uses several per model.
        """
        is_listed: Callable[[str], bool] = mlflow_private._role_based_read_predicate(
            self.user(),
            "registered_model",
            [Requirement("registered_model_version", "*", ACTION_NOT_DENIED)],
        )
        return is_listed

    def readable_workspaces(self, names: Iterable[str]) -> set[str]:
        """Filter a response with the names, because MLflow's basic auth filters only
        responses.
        """
        message = ListWorkspaces.Response()
        for name in names:
            message.workspaces.add(name=name)
        answer = mlflow_private._wrap_response(message)
        auth.filter_list_workspaces(answer)
        return {entry["name"] for entry in answer.get_json().get("workspaces", ())}
