"""Who asks, and what they may do: MLflow's own accounts where its server has them."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flask import g, request

from mlflow_deploy_plugin.registry import models_served_by
from mlflow_deploy_plugin.store import AuditEvent, Store


@dataclass(frozen=True)
class Caller:
    """Who a request comes from.

    Attributes:
        user: the name that MLflow's basic auth has checked; empty where the server has no accounts.
        address: of the other end of the connection, which may be a proxy.
    """

    user: str
    address: str

    @property
    def actor(self) -> str:
        """As the audit trail names them."""
        return self.user or f"anonymous@{self.address}"


def caller() -> Caller:
    """The caller of the request at hand."""
    return Caller(str(g.get("mlflow_authenticated_user") or ""), request.remote_addr or "unknown")


def may_read(model: str) -> bool:
    return is_administrator() or _permissions(model)[0]


def may_act_on(models: Sequence[str]) -> bool:
    """Whether the caller may move versions of these registered models; without accounts everybody may.

    What is served without a registered model is for administrators.
    """
    return is_administrator() or (bool(models) and all(_permissions(model)[1] for model in models))


def is_administrator() -> bool:
    """Without accounts everybody is."""
    if "onnxserve_administrator" not in g:
        auth = _auth_module()
        g.onnxserve_administrator = auth is None or bool(auth.sender_is_admin())
    return bool(g.onnxserve_administrator)


def _permissions(model: str) -> tuple[bool, bool]:
    """(read, update), asked once a request and model: MLflow checks the password again at every question."""
    from mlflow.exceptions import MlflowException

    known: dict[str, tuple[bool, bool]] = g.setdefault("onnxserve_permissions", {})
    if model not in known:
        try:
            permission = _auth_module()._get_registered_model_or_prompt_permission(model)  # type: ignore[union-attr]
            known[model] = bool(permission.can_read), bool(permission.can_update)
        except MlflowException:  # no such model (any more)
            known[model] = False, False
    return known[model]


def allow_pages(method: str, *paths: str) -> None:
    """Tells MLflow's basic auth that these paths are for everybody who has an account.

    Without it a server with MLFLOW_BASIC_AUTH_FAIL_CLOSED refuses them, since it does not know them.
    """
    auth = _auth_module()
    if auth is not None:
        for path in paths:
            auth.BEFORE_REQUEST_VALIDATORS[path, method] = lambda: True


def _auth_module() -> Any | None:
    """MLflow's module of basic auth where this server uses it."""
    auth = sys.modules.get("mlflow.server.auth")
    return auth if auth is not None and auth._auth_initialized else None


def hidden_endpoints(store: Store, names: Iterable[str]) -> frozenset[str]:
    """Those that serve, or served before they were deleted, a model which the caller may not read; and those of which
    nobody can tell what they serve.
    """
    if is_administrator():
        return frozenset()
    unreadable = {one.name for one in store.unreadable()}
    return frozenset(
        name for name in set(names) if name in unreadable or not _may_read_all(models_served_by(store, name))
    )


def _may_read_all(models: Sequence[str] | None) -> bool:
    return models is not None and all(may_read(model) for model in models)


def visible_events(store: Store, events: Sequence[AuditEvent]) -> list[AuditEvent]:
    hidden = hidden_endpoints(store, (event.endpoint for event in events if event.endpoint))
    return [event for event in events if event.endpoint not in hidden and (not event.model or may_read(event.model))]
