"""The caller of a request and their permissions, by MLflow's own accounts if its server has them."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flask import g, request

from mlflow_deploy_plugin.registry import models_served_by
from mlflow_deploy_plugin.store import AuditEvent, Store


@dataclass(frozen=True)
class Caller:
    """The person or program that a request comes from.

    Attributes:
        user: the name that MLflow's basic auth has checked; empty if the server has no accounts.
        address: of the other end of the connection, which may be a proxy.
    """

    user: str
    address: str

    @property
    def actor(self) -> str:
        """Return the caller's name for the audit trail."""
        return self.user or f"anonymous@{self.address}"


def caller() -> Caller:
    """Return the caller of the request at hand."""
    return Caller(str(g.get("mlflow_authenticated_user") or ""), request.remote_addr or "unknown")


def may_read(model: str) -> bool:
    """Return True if the caller may read this registered model."""
    return is_administrator() or _permissions(model)[0]


def may_act_on(models: Sequence[str]) -> bool:
    """Return True if the caller may move versions of these registered models; without accounts everybody may.

    An endpoint without a registered model is for administrators.
    """
    return is_administrator() or (bool(models) and all(_permissions(model)[1] for model in models))


def is_administrator() -> bool:
    """Return True for an administrator; without accounts everybody is one."""
    if "onnxserve_administrator" not in g:
        auth = _auth_module()
        g.onnxserve_administrator = auth is None or bool(auth.sender_is_admin())
    return bool(g.onnxserve_administrator)


def allow_pages(method: str, *paths: str) -> None:
    """Open these paths to everybody who has an account.

    MLflow's basic auth with MLFLOW_BASIC_AUTH_FAIL_CLOSED refuses paths that it does not know.
    """
    auth = _auth_module()
    if auth is not None:
        for path in paths:
            auth.BEFORE_REQUEST_VALIDATORS[path, method] = lambda: True


def hidden_endpoints(store: Store, names: Iterable[str]) -> frozenset[str]:
    """Return the endpoints that the caller may not see.

    They serve, or served before they were deleted, a model that the caller may not read, or nobody knows what they
    serve.
    """
    if is_administrator():
        return frozenset()
    unreadable = {one.name for one in store.unreadable()}
    hidden = set()
    for name in set(names):
        models = models_served_by(store, name)
        if name in unreadable or models is None or not all(map(may_read, models)):
            hidden.add(name)
    return frozenset(hidden)


def visible_events(store: Store, events: Sequence[AuditEvent]) -> list[AuditEvent]:
    """Return the events of endpoints and models that the caller may see."""
    hidden = hidden_endpoints(store, (event.endpoint for event in events if event.endpoint))
    return [event for event in events if event.endpoint not in hidden and (not event.model or may_read(event.model))]


def _permissions(model: str) -> tuple[bool, bool]:
    """Return (may read, may update) for a registered model.

    MLflow is asked once a request and model: it checks the password each time.
    """
    from mlflow.exceptions import MlflowException

    known: dict[str, tuple[bool, bool]] = g.setdefault("onnxserve_permissions", {})
    if model not in known:
        try:
            permission = _auth_module()._get_registered_model_or_prompt_permission(model)  # type: ignore[union-attr]
            known[model] = bool(permission.can_read), bool(permission.can_update)
        except MlflowException:  # no such model (any more)
            known[model] = False, False
    return known[model]


def _auth_module() -> Any | None:
    """Return MLflow's module of basic auth; None if this server does not use it."""
    auth = sys.modules.get("mlflow.server.auth")
    return auth if auth is not None and auth._auth_initialized else None
