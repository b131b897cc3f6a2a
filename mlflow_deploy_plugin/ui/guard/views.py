"""The gate and the audit trail in MLflow's API, which check and record every change of
a stage or an alias.

The guard wraps MLflow's view functions, which `/api` and `/ajax-api` share and which
run after the basic auth. A refusal is 403 PERMISSION_DENIED, which MLflow's UI shows
and its clients do not retry. Direct changes in the database bypass the guard; those of
a gated place are an alert, and an event at the next request that changes the place.

Before a change of a gated place, its intention is stored, and its result afterwards. If
the intention cannot be stored, the change is refused with 503 (`audit_trail.py`). For
other changes, a failure of the audit trail or of the notification of the agents never
fails a request to MLflow.
"""

import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, make_response
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.core.errors import GateRefused, OnnxserveError, StoreUnavailable
from mlflow_deploy_plugin.core.registry.transitions import ROLLED_BACK_TAG
from mlflow_deploy_plugin.core.store.audit import (
    AWAITED,
    FAILED,
    INTEND,
    INTENDED,
    INTENTION,
    AuditEvent,
)
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.promote.gate.approvals import begin_move
from mlflow_deploy_plugin.ui.access import act_detail, caller, refusal
from mlflow_deploy_plugin.ui.audit_trail import AuditTrail
from mlflow_deploy_plugin.ui.guard.mlflow_stores import files_digest, registry
from mlflow_deploy_plugin.ui.guard.moves import (
    RegistryChange,
    outside_changes,
    valid_policy,
)
from mlflow_deploy_plugin.ui.guard.readers import READERS, Reader, read_message
from mlflow_deploy_plugin.ui.witnesses import require_cosignatures, too_few_witnesses

if TYPE_CHECKING:
    from fastapi import FastAPI

_log = logging.getLogger(__name__)

_RETRY_AFTER_SECONDS = 5


def check_views(app: Flask, served: "Flask | FastAPI") -> None:
    """Raise OnnxserveError if MLflow's Flask app lacks a view that the gate wraps, or
    if a route of `served` before the Flask app answers the view's requests.
    """
    from starlette.routing import Match

    # A Flask app has no attribute `routes`. FastAPI contains it at the path "".
    routes = getattr(served, "routes", ())
    before = [*takewhile(lambda route: getattr(route, "path", None) != "", routes)]
    for view in READERS:
        if view not in app.view_functions:
            raise OnnxserveError(
                f"this MLflow has no view {view}: onnxserve does not support its version"
            )
        for rule in app.url_map.iter_rules(view):
            for method in rule.methods or ():
                scope = {"type": "http", "method": method, "path": rule.rule}
                if any(route.matches(scope)[0] is Match.FULL for route in before):
                    raise OnnxserveError(
                        f"{method} {rule.rule} is answered before the gate's view {view}: "
                        "onnxserve does not support this version of MLflow"
                    )


def install(app: Flask, trail: AuditTrail, served: "Flask | FastAPI") -> None:
    """Wrap MLflow's views with the gate. Raises the errors of `check_views`."""
    from mlflow.server.handlers import catch_mlflow_exception

    check_views(app, served)
    for view, (message, read) in READERS.items():  # A request that cannot be read is refused.
        app.view_functions[view] = catch_mlflow_exception(
            _guarded(app.view_functions[view], message, read, trail)
        )


def _guarded(
    view: Callable[..., Any], message: str, read: Reader, trail: AuditTrail
) -> Callable[..., Any]:
    """Return a view that refuses or records the change of each request.

    Args:
        view: MLflow's view, which is called unless the change is refused.
        message: the name of the protobuf message of the view's requests.
        read: returns the change that a message requests, or None if it is not recorded.
        trail: stores the event and notifies the agents.
    """

    def guarded(**arguments: Any) -> Response:
        """Return the answer of MLflow's view, or refuse the change. A change that
        MLflow has made is recorded, and the agents are notified.
        """
        requested = read_message(message)
        caller()  # A login that refuses the caller must refuse before the change.
        try:
            # A change of nothing is neither gated nor recorded.
            change = read(trail, requested) or RegistryChange("", requested.name)
            if change.is_gated:
                change = _check_gated(trail, change)
            if change.is_refused:
                record = trail.record_now if change.is_gated else trail.record
                _record(record, change, "refused")
                return refusal("PERMISSION_DENIED", change.why, 403)
            intention: Json = {}
            if change.is_gated and change.is_recorded:
                intention = _intend(trail, change)
        except GateRefused as error:
            return refusal("PERMISSION_DENIED", error.message, 403)
        except OnnxserveError as error:
            reason = f"nothing was changed: {error.message}"
            refused = refusal(StoreUnavailable.error_code, reason, 503)
            refused.headers["Retry-After"] = str(_RETRY_AFTER_SECONDS)
            return refused
        response = make_response(view(**arguments))
        if response.status_code != 200:
            now = None
            # After an error, MLflow may have made the change, or be unreadable.
            with suppress(MlflowException, OnnxserveError):
                now = read(trail, requested) if intention else None
            if now is not None and now.before == change.before:
                why = f"MLflow's server answered {response.status_code}"
                _record(trail.record, replace(change, why=why), FAILED, intention)
            return response
        if change.action == "register":
            change = change.with_version(response.get_json()["model_version"])
        if change.is_recorded:
            _record(trail.record, change, change.action, intention)
        if change.is_served_again:
            registry().delete_model_version_tag(change.model, change.version, ROLLED_BACK_TAG)
        if change.is_served_again or not change.is_recorded:
            trail.notify_agents(requested.name)
        return response

    return guarded


def _check_gated(trail: AuditTrail, change: RegistryChange) -> RegistryChange:
    """Record the versions in gated places that did not move there through this server.
    Return the change with the number of its witnesses, or with a refusal if they are
    too few.
    """
    model = registry().get_registered_model(change.model)
    for found in outside_changes(trail.store(), model):
        if found.action:
            _record(trail.record_now, found, found.action)
    policy = valid_policy(model)
    is_move = change.action in ("transition", "alias") and change.is_recorded
    if policy is None or not is_move or change.is_refused:
        return change
    refused = too_few_witnesses(trail.store(), policy.witnessed)
    if refused:
        return change.with_refusal(refused)
    return replace(change, witnesses=policy.witnessed)


def _intend(trail: AuditTrail, change: RegistryChange) -> Json:
    """Store the intention of a change, and return its number. Raises StoreUnavailable
    if it is not stored or not cosigned by the required witnesses, or if the files of
    the version have changed while this server waited for them, and GateRefused if
    somebody has declined the promotion meanwhile.
    """
    intention = {INTENTION: secrets.token_hex(8)}
    intended = {**intention, INTENDED: change.action, AWAITED: change.witnesses}
    _record(trail.record_now, change, INTEND, intended)
    if change.witnesses:
        try:
            require_cosignatures(trail.store(), change.witnesses)
            judged = change.detail.get("moved", {}).get("files")
            if judged and files_digest(change.model, change.version) != judged:
                raise StoreUnavailable("the files of the version have changed meanwhile")
            _record(partial(begin_move, trail.store()), change, INTEND, {**intended, AWAITED: 0})
        except (OnnxserveError, MlflowException) as error:
            _record(trail.record, replace(change, why=error.message), FAILED, intention)
            raise
    return intention


def _record(
    record: Callable[[AuditEvent], None],
    change: RegistryChange,
    action: str,
    intention: Json | None = None,
) -> None:
    """Record a change by the caller; a rename that was made is recorded for the old and
    the new name.
    """
    who = caller()
    models = [change.model]
    if action == "rename":
        models.append(change.after)
    detail = {
        "via": "mlflow",
        "address": who.address,
        **act_detail(),
        **change.detail,
        **(intention or {}),
    }
    for model in models:
        event = AuditEvent(
            datetime.now(UTC),
            who.actor,
            action,
            model=model,
            version=change.version,
            before=change.before,
            after=change.after,
            why=change.why,
            detail=detail,
        )
        record(event)
