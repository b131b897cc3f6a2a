"""The gate and the audit trail in MLflow's own API: every change of a stage or an alias goes through here.

The view functions of MLflow are wrapped, not the routes: `/api` and `/ajax-api` reach the same ones, after MLflow's
basic auth. A refusal is 403 PERMISSION_DENIED, which MLflow's UI shows in its own notice, and which its clients do not
retry. A change in the database itself does not pass here; an endpoint that must not serve such a version has
`require: gate=passed` in its spec.
"""

import logging
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, jsonify, make_response

from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.registry import ERROR_TAG, GATE_TAG, ROLLED_BACK_TAG
from mlflow_deploy_plugin.ui.audit import AuditTrail
from mlflow_deploy_plugin.ui.permissions import caller
from mlflow_deploy_plugin.ui.registry_changes import GATED, READERS, RegistryChange, registry

_log = logging.getLogger(__name__)

_VIA = "mlflow"
_NEW_VERSION = "_create_model_version"


def install(app: Flask, trail: AuditTrail) -> None:
    """Put the gate before MLflow's views.

    Raises:
        OnnxserveError: this MLflow lacks such a view, and its server would run without the gate.
    """
    for view in (*READERS, _NEW_VERSION):
        if view not in app.view_functions:
            raise OnnxserveError(f"this MLflow has no view {view}: onnxserve does not know it")
    for view, read in READERS.items():
        app.view_functions[view] = _guarded(app.view_functions[view], read, trail, must_be_known=view in GATED)
    app.view_functions[_NEW_VERSION] = _drop_copied_verdict(app.view_functions[_NEW_VERSION])


def _guarded(
    view: Callable[..., Any],
    read: Callable[[AuditTrail], RegistryChange | None],
    trail: AuditTrail,
    must_be_known: bool,
) -> Callable[..., Any]:
    """Return the view behind the gate; with `must_be_known` it refuses a request that cannot be read."""
    from mlflow.exceptions import MlflowException

    def guarded(**arguments: Any) -> Response:
        try:
            change = read(trail)
        except MlflowException as error:  # no such version, no such stage, not JSON, a database that is busy
            if must_be_known:
                headers = {"Content-Type": "application/json"}
                return make_response(error.serialize_as_json(), error.get_http_status_code(), headers)
            change = None
        if change is not None and change.refusal:
            _record(trail, change, "refused")
            body = jsonify(error_code="PERMISSION_DENIED", message=change.refusal)
            return make_response(body, 403)
        response = make_response(view(**arguments))
        if change is not None and response.status_code == 200:
            if change.is_served_again:
                _forget_rollback(change)
            if change.before != change.after:
                _record(trail, change, change.action)
                trail.notify_agents(change.model)
        return response

    return guarded


def _forget_rollback(change: RegistryChange) -> None:
    """Remove the mark of a rollback from a version that is promoted again: a later rollback may come back to it."""
    from mlflow.exceptions import MlflowException

    try:
        registry().delete_model_version_tag(change.model, change.version, ROLLED_BACK_TAG)
    except MlflowException as error:  # it is promoted all the same
        _log.warning("%s version %s keeps its tag %s: %s", change.model, change.version, ROLLED_BACK_TAG, error)


def _drop_copied_verdict(view: Callable[..., Any]) -> Callable[..., Any]:
    """Return the view that creates versions, without the gate's tags: MLflow copies those of any other model."""

    def created(**arguments: Any) -> Response:
        response = make_response(view(**arguments))
        if response.status_code == 200:
            version = response.get_json()["model_version"]
            for tag in version.get("tags", ()):
                if tag["key"].startswith(GATE_TAG) or tag["key"] in (ERROR_TAG, ROLLED_BACK_TAG):
                    registry().delete_model_version_tag(version["name"], version["version"], tag["key"])
        return response

    return created


def _record(trail: AuditTrail, change: RegistryChange, action: str) -> None:
    who = caller()
    for model in (change.model, *change.also_of):
        trail.record(
            action,
            who.actor,
            model=model,
            version=change.version,
            before=change.before,
            after=change.after,
            why=change.refusal or change.why,
            detail={"via": _VIA, "address": who.address, **(change.figures or {})},
        )
