"""The adapter of MLflow's basic auth. The groups of a caller are the caller's roles in
MLflow.
"""

import hmac
import secrets
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from cachetools import LRUCache
from flask import Flask, Response, g, request
from mlflow.exceptions import MlflowException
from mlflow.gateway.constants import MLFLOW_GATEWAY_AUTH_HEADER
from mlflow.protos.databricks_pb2 import RESOURCE_EXHAUSTED
from mlflow.protos.service_pb2 import ListWorkspaces
from mlflow.server import auth
from mlflow.server.auth.permissions import NO_PERMISSIONS
from mlflow.server.auth.requirements import ACTION_NOT_DENIED, Requirement
from mlflow.server.handlers import catch_mlflow_exception
from mlflow.utils.workspace_context import get_request_workspace
from mlflow.utils.workspace_utils import DEFAULT_WORKSPACE_NAME
from werkzeug.security import check_password_hash, generate_password_hash

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.ui.access import static_prefix
from mlflow_deploy_plugin.ui.logins.login import Login, ModelPermission

if TYPE_CHECKING:
    from fastapi import FastAPI


_KEY = secrets.token_bytes(32)
_REMEMBERED = 10_000
_MOST_WAITING = 8
_BUSY = "the server checks other passwords: try again in a second"


class BasicAuth(Login):
    """A password is hashed once, because a hash takes 0.1 s and 32 MB. An accepted
    password is then known by a digest, also of its stored hash, so that the digest ends
    with a changed password and with a deleted account. One password is hashed at a
    time, and also for the name of no account.
    """

    def __init__(self) -> None:
        self._accepted = LRUCache[bytes, bool](_REMEMBERED)
        self._hasher = ThreadPoolExecutor(1, "onnxserve-password")
        self._lock = threading.Lock()
        self._waiting: dict[bytes, Future[bool]] = {}
        self._of_nobody = generate_password_hash(secrets.token_hex())

    def install(self, app: Flask, served: "Flask | FastAPI") -> None:
        auth.store.authenticate_user = self._is_password

    def _is_password(self, username: str, password: str) -> bool:
        """Return True if it is the user's password. Requests with the same password
        wait for one hash. Raises MlflowException (429) if too many passwords wait.
        """
        try:
            stored = auth.store.get_user(username).password_hash
        except MlflowException:
            stored = self._of_nobody
        sent = repr((stored, username, password)).encode()
        digest = hmac.digest(_KEY, sent, "sha256")
        with self._lock:
            if digest in self._accepted:
                return True
            waiting = self._waiting.get(digest)
            if waiting is None:
                if len(self._waiting) >= _MOST_WAITING:
                    raise MlflowException(_BUSY, RESOURCE_EXHAUSTED)
                waiting = self._hasher.submit(check_password_hash, stored, password)
                self._waiting[digest] = waiting
        try:
            is_right = waiting.result()
        finally:
            with self._lock:
                self._waiting.pop(digest, None)
        if is_right:
            with self._lock:
                self._accepted[digest] = True
        return is_right

    def is_open(self, path: str) -> bool:
        return bool(auth.is_unprotected_route(path))

    def refusal(self) -> Response | None:
        # A provider's key is in the usual header of requests to MLflow's gateway.
        header = request.headers.get(MLFLOW_GATEWAY_AUTH_HEADER)
        if header and request.path.startswith(f"{static_prefix()}/gateway/"):
            request.environ["HTTP_AUTHORIZATION"] = header
        answer = catch_mlflow_exception(auth.authenticate_request)()
        return answer if isinstance(answer, Response) else None

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
