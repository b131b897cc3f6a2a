"""The adapter of the distribution mlflow-kubernetes-plugins; tested with 2.1.0.

The plugin's middleware asks Kubernetes what the caller of each request may do in a
namespace, which is a workspace of MLflow. The adapter asks the plugin's authorizer,
which caches the answers. The caller has a token, or a proxy sends the caller's name and
groups (the mode `subject_access_review`). The name and the groups of a token are not
cached, because tokens rotate.
"""

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs

from flask import Flask, Response, g, request
from kubernetes.client import AuthenticationV1Api, V1TokenReview, V1TokenReviewSpec
from kubernetes.client.exceptions import ApiException
from mlflow.exceptions import MlflowException
from mlflow.utils.workspace_context import get_request_workspace
from mlflow.utils.workspace_utils import WORKSPACE_HEADER_NAME
from mlflow_kubernetes_plugins.auth.authorizer import (
    AuthorizationMode,
    _create_api_client_for_subject_access_reviews,
)
from mlflow_kubernetes_plugins.auth.compiler import _AUTH_RULES
from mlflow_kubernetes_plugins.auth.constants import RESOURCE_REGISTERED_MODELS
from mlflow_kubernetes_plugins.auth.core import (
    _AUTHORIZATION_HANDLED,
    _is_unprotected_path,
    _RequestIdentity,
    _resolve_bearer_token,
    _strip_static_prefix,
)
from mlflow_kubernetes_plugins.auth.middleware import KubernetesAuthMiddleware
from mlflow_kubernetes_plugins.auth.rules import AuthorizationRule
from urllib3.exceptions import HTTPError
from werkzeug.exceptions import HTTPException

from mlflow_deploy_plugin.core.errors import ScopeMissing, StoreUnavailable, Unauthenticated
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.ui.access import refusal
from mlflow_deploy_plugin.ui.logins.login import HEADERS_VARIABLE, Login, ModelPermission

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send

_AnswerT = TypeVar("_AnswerT")

_EVERYTHING = "*"
_TOKEN_HEADERS = ("Authorization", "X-Forwarded-Access-Token")
_SECONDS = 10
_MISSING_RIGHT = (
    "MLflow's server may not create TokenReviews: bind its service account to the ClusterRole "
    "system:auth-delegator"
)


class KubernetesAuth(Login):
    """A refusal aborts the Flask request with a response in MLflow's format."""

    def __init__(self) -> None:
        self._pages: set[str] = set()

    def install(self, app: Flask, served: "Flask | FastAPI") -> None:
        """Let the plugin check the workspace in the URL of a page instead of the
        workspace header.
        """
        (plugin,) = (
            added.kwargs
            for added in served.user_middleware  # type: ignore[union-attr]
            if added.cls is KubernetesAuthMiddleware
        )
        self._authorizer: Any = plugin["authorizer"]
        self._config: Any = plugin["config_values"]
        self._reviews = AuthenticationV1Api(_create_api_client_for_subject_access_reviews())
        workspace_header = WORKSPACE_HEADER_NAME.lower().encode()

        def enclose(inner: "ASGIApp") -> "ASGIApp":
            async def with_workspace(scope: "Scope", receive: "Receive", send: "Send") -> None:
                if scope["type"] == "http" and scope["path"] in self._pages:
                    named = parse_qs(scope["query_string"]).get(b"workspace")
                    if named:
                        others = [pair for pair in scope["headers"] if pair[0] != workspace_header]
                        scope = {**scope, "headers": [*others, (workspace_header, named[0])]}
                await inner(scope, receive, send)

            return with_workspace

        served.add_middleware(enclose)  # type: ignore[union-attr]

    def is_open(self, path: str) -> bool:
        return bool(_is_unprotected_path(_strip_static_prefix(path)))

    def refusal(self) -> Response | None:
        """Ask Kubernetes in a thread if a token is valid. The plugin asks on the event
        loop, and reads some bodies before. It caches the answer for valid tokens.
        """
        if self._config.authorization_mode == AuthorizationMode.SELF_SUBJECT_ACCESS_REVIEW:
            sent = [request.headers.get(name) for name in _TOKEN_HEADERS]
            namespace = self._config.namespace or "default"
            asked = (RESOURCE_REGISTERED_MODELS, "get", namespace)
            _asked(
                lambda: self._authorizer.is_allowed(
                    _RequestIdentity(_resolve_bearer_token(*sent)), *asked
                )
            )
        return None

    def allow_page(self, path: str, method: str) -> None:
        """Add a rule to the plugin's compiled table, because the plugin answers 404 for
        a path without a rule. The caller needs any permission in the workspace. Style
        sheets and scripts need no permission, because their URLs name no workspace.
        """
        self._pages.add(path)
        rule = AuthorizationRule(None, workspace_access_check=True)
        if path.endswith((".css", ".js")):
            rule = AuthorizationRule(None, requires_workspace=False, apply_workspace_filter=True)
        _AUTH_RULES[path, method] = [rule]

    def user(self) -> str:
        return self._reviewed().user or ""

    def is_administrator(self) -> bool:
        return self._may(_EVERYTHING, _EVERYTHING)

    def groups(self) -> frozenset[str]:
        return frozenset(self._reviewed().groups)

    def permission(self, model: str) -> ModelPermission:
        can_read, can_update = (
            self._may(verb, RESOURCE_REGISTERED_MODELS)
            or self._may(verb, RESOURCE_REGISTERED_MODELS, model)
            for verb in ("get", "update")
        )
        return ModelPermission(can_read, can_update)

    def readable_workspaces(self, names: Iterable[str]) -> set[str]:
        identity = _identity()
        return _asked(lambda: set(self._authorizer.accessible_workspaces(identity, names)))

    def credentials(self) -> dict[str, str]:
        """Return the caller's token, or the headers of the proxy."""
        identity = _identity()
        if identity.token:
            return {"MLFLOW_TRACKING_TOKEN": identity.token}
        groups = self._config.groups_separator.join(identity.groups)
        headers = {self._config.user_header: identity.user, self._config.groups_header: groups}
        return {HEADERS_VARIABLE: json.dumps(headers)}

    def _may(self, verb: str, resource: str, name: str | None = None) -> bool:
        """Return True if the caller may do this in the workspace of the request."""
        identity = _identity()
        workspace = self._config.namespace
        if self._config.workspaces_enabled:
            workspace = get_request_workspace()
        return _asked(
            lambda: bool(
                self._authorizer.is_allowed(identity, resource, verb, workspace, resource_name=name)
            )
        )

    def _reviewed(self) -> _RequestIdentity:
        """Return the caller with name and groups. A token is reviewed once per
        request.
        """
        identity = _identity()
        if not identity.token:
            return identity
        if "onnxserve_reviewed" not in g:
            review = V1TokenReview(spec=V1TokenReviewSpec(token=identity.token))
            reviewed = _asked(
                lambda: self._reviews.create_token_review(review, _request_timeout=_SECONDS)
            )
            status = reviewed.status
            if not status.authenticated:
                raise _unauthenticated("Kubernetes refuses the token: it is invalid or expired")
            g.onnxserve_reviewed = _RequestIdentity(
                user=status.user.username, groups=tuple(status.user.groups or ())
            )
        return g.onnxserve_reviewed


def _identity() -> _RequestIdentity:
    """Return the token, or the name and the groups, that the plugin has found in the
    current request.
    """
    authorized = _AUTHORIZATION_HANDLED.get()
    if authorized is None:  # The plugin's open paths may contain the prefix of all pages.
        raise _unauthenticated("mlflow-kubernetes-plugins does not check this path")
    return authorized.identity


def _asked(ask: Callable[[], _AnswerT]) -> _AnswerT:
    """Return an answer of Kubernetes, or refuse the current request."""
    try:
        return ask()
    except MlflowException as error:  # The authorizer's, such as for an expired token.
        text = one_line(error.message)
        refused = refusal(error.error_code, text, error.get_http_status_code())
    except (ApiException, HTTPError) as error:
        if getattr(error, "status", 0) == 403:
            refused = refusal(ScopeMissing.error_code, _MISSING_RIGHT, 403)
        else:
            reason = one_line(getattr(error, "reason", None) or error)
            text = f"Kubernetes does not review the token: {reason}"
            refused = refusal(StoreUnavailable.error_code, text, 503)
    raise HTTPException(response=refused)


def _unauthenticated(reason: str) -> HTTPException:
    return HTTPException(response=refusal(Unauthenticated.error_code, reason, 401))
