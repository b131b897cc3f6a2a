"""The gate and the audit trail in MLflow's own API: whatever changes a stage or an alias goes through here.

The functions that MLflow's routes call are wrapped, not the routes: `/api`, `/ajax-api` and the preview paths reach the
same ones, and MLflow's basic auth has spoken before. A refusal is 403 PERMISSION_DENIED, which MLflow's UI shows in its
own notice, and which its clients do not retry. What goes to the database directly does not come by; an endpoint that
must not serve such a version says `require: gate=passed` itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flask import Flask, Response, jsonify, make_response

from mlflow_deploy_plugin.errors import InvalidConfig, OnnxserveError, StoreUnavailable
from mlflow_deploy_plugin.gate.policy import policy_of
from mlflow_deploy_plugin.registry.rollback import ROLLED_BACK_TAG
from mlflow_deploy_plugin.registry.tags import (
    GATE_POLICY_DIGEST_TAG,
    GATE_POLICY_TAG,
    GATE_TAG,
    Standing,
    standing_of,
)
from mlflow_deploy_plugin.ui.caller import caller
from mlflow_deploy_plugin.ui.returning import stood_before
from mlflow_deploy_plugin.ui.trail import Trail

_VIA = "mlflow"


@dataclass(frozen=True)
class Change:
    """A change of what a reference to a model means, as it is written into the audit trail.

    Attributes:
        action: `transition`, `alias` or `tag`.
        before / after: the stage of the version, which version has the alias, or the value of the tag.
        gated: the policy lets only a passed version do it.
        refusal: why it may not be; empty where it may.
        figures: what else belongs to it.
    """

    action: str
    model: str
    version: str
    before: str
    after: str
    why: str = ""
    refusal: str = ""
    figures: dict[str, Any] | None = None


def install(app: Flask, trail: Trail) -> None:
    """Puts the gate before MLflow's views.

    Raises:
        OnnxserveError: this MLflow has no such view. Without the gate its server would not be what was asked for.
    """
    for view, read in _READERS.items():
        if view not in app.view_functions:
            raise OnnxserveError(f"this MLflow has no view {view}: onnxserve does not know it")
        app.view_functions[view] = _guarded(app.view_functions[view], read, trail)


def _guarded(view: Callable[..., Any], read: Callable[[Trail], Change | None], trail: Trail) -> Callable[..., Any]:
    from mlflow.exceptions import MlflowException

    def guarded(**arguments: Any) -> Response:
        try:
            change = read(trail)
        except MlflowException:
            change = None  # a question that MLflow itself has to answer: no such version, no such stage, not JSON
        if change is not None and change.refusal:
            _record(trail, change, "refused")
            body = jsonify(error_code="PERMISSION_DENIED", message=change.refusal)
            return make_response(body, 403)
        response = make_response(view(**arguments))
        if change is not None and response.status_code == 200 and change.before != change.after:
            _record(trail, change, change.action)
        return response

    return guarded


def _record(trail: Trail, change: Change, action: str) -> None:
    who = caller()
    trail.record(
        action,
        who.actor,
        model=change.model,
        version=change.version,
        before=change.before,
        after=change.after,
        why=change.refusal or change.why,
        detail={"via": _VIA, "address": who.address, **(change.figures or {})},
    )


def _transition(trail: Trail) -> Change:
    from mlflow.entities.model_registry.model_version_stages import get_canonical_stage
    from mlflow.protos.model_registry_pb2 import TransitionModelVersionStage

    asked, registry = _asked(TransitionModelVersionStage()), _registry()
    model, version = registry.get_registered_model(asked.name), registry.get_model_version(asked.name, asked.version)
    stage = get_canonical_stage(asked.stage)
    stood = [str(one.version) for one in registry.get_latest_versions(asked.name, [stage]) if stage not in _QUIET]
    refusal, why = _judged(trail, model, version, stage, stood[0] if stood else "")
    figures: dict[str, Any] = {}
    if others := [other for other in stood if other != str(version.version)]:
        figures = {"stood_there": others[0], "archived": bool(asked.archive_existing_versions)}
    return Change("transition", asked.name, str(version.version), version.current_stage, stage, why, refusal, figures)


def _alias(trail: Trail) -> Change | None:
    from mlflow.protos.model_registry_pb2 import SetRegisteredModelAlias

    asked, registry = _asked(SetRegisteredModelAlias()), _registry()
    model, version = registry.get_registered_model(asked.name), registry.get_model_version(asked.name, asked.version)
    if model._is_prompt():
        return None
    stood = model.aliases.get(asked.alias)
    refusal, why = _judged(trail, model, version, f"@{asked.alias}", str(stood or ""))
    before = _alias_shown(asked.alias, stood)
    after = _alias_shown(asked.alias, version.version)
    return Change("alias", asked.name, str(version.version), before, after, why, refusal)


def _no_alias(trail: Trail) -> Change | None:
    from mlflow.protos.model_registry_pb2 import DeleteRegisteredModelAlias

    asked = _asked(DeleteRegisteredModelAlias())
    model = _registry().get_registered_model(asked.name)
    stood = model.aliases.get(asked.alias)
    if model._is_prompt() or stood is None:
        return None
    return Change("alias", asked.name, str(stood), _alias_shown(asked.alias, stood), _alias_shown(asked.alias, None))


def _deleted(trail: Trail) -> Change | None:
    """A version that goes leaves its stage: the one before it in the stage is served again."""
    from mlflow.protos.model_registry_pb2 import DeleteModelVersion

    asked = _asked(DeleteModelVersion())
    version = _registry().get_model_version(asked.name, asked.version)
    if version.current_stage in _QUIET and not version.aliases:
        return None
    return Change("transition", asked.name, str(version.version), version.current_stage, "deleted")


def _version_tag(trail: Trail) -> Change | None:
    """The verdict itself: whoever writes it by hand answers for it by name."""
    from mlflow.protos.model_registry_pb2 import SetModelVersionTag

    asked = _asked(SetModelVersionTag())
    if asked.key != GATE_TAG:
        return None
    version = _registry().get_model_version(asked.name, asked.version)
    before = version.tags.get(GATE_TAG, "")
    return Change("tag", asked.name, str(version.version), before, asked.value, figures={"tag": GATE_TAG})


def _model_tag(trail: Trail) -> Change | None:
    """What is demanded of a model's versions."""
    from mlflow.protos.model_registry_pb2 import SetRegisteredModelTag

    asked = _asked(SetRegisteredModelTag())
    return _policy(asked.name, asked.value) if asked.key == GATE_POLICY_TAG else None


def _no_model_tag(trail: Trail) -> Change | None:
    from mlflow.protos.model_registry_pb2 import DeleteRegisteredModelTag

    asked = _asked(DeleteRegisteredModelTag())
    return _policy(asked.name, "") if asked.key == GATE_POLICY_TAG else None


def _policy(model: str, after: str) -> Change:
    before = _registry().get_registered_model(model).tags.get(GATE_POLICY_TAG, "")
    return Change("tag", model, "", before, after, figures={"tag": GATE_POLICY_TAG})


_READERS: dict[str, Callable[[Trail], Change | None]] = {
    "_transition_stage": _transition,
    "_set_registered_model_alias": _alias,
    "_delete_registered_model_alias": _no_alias,
    "_delete_model_version": _deleted,
    "_set_model_version_tag": _version_tag,
    "_set_registered_model_tag": _model_tag,
    "_delete_registered_model_tag": _no_model_tag,
}
"""The name of MLflow's view → what it is asked to change."""

_QUIET = ("None", "Archived")
"""Stages from which nothing is served."""


def _judged(trail: Trail, model: Any, version: Any, place: str, holder: str) -> tuple[str, str]:
    """(why the gate refuses, why it does not), one of them empty; both where nothing is gated.

    Args:
        place: a stage, or @alias.
        holder: the version that is there now, or an empty text.
    """
    number, what = str(version.version), f"version {version.version} of {model.name}"
    try:
        policy = policy_of(model.name, model.tags)
    except InvalidConfig as error:  # nobody can tell what is gated
        return f"{what} was not moved to {place}: {error.message}", ""
    is_alias = place.startswith("@")
    if policy is None or not (policy.gates_alias(place[1:]) if is_alias else policy.gates_stage(place)):
        return "", ""
    standing = standing_of(version.tags)
    judged_by = version.tags.get(GATE_POLICY_DIGEST_TAG, policy.digest)
    if standing.state == "passed" and judged_by != policy.digest:
        standing = Standing(False, "", "it passed another policy than the model has now")
    if standing.passed:
        return "", f"gate {standing.state}: {standing.reason}"
    if holder == number:
        return "", "it is there already"
    if holder and ROLLED_BACK_TAG not in version.tags and _stood_before(trail, model.name, number, place, holder):
        return "", f"back to what stood there before version {holder}; its gate: {standing.reason}"
    return (
        f"{what} may not become {place}: {standing.reason}. "
        f"`onnxserve promote {model.name} {number} --to {place}` runs the gate and says what is missing",
        "",
    )


def _stood_before(trail: Trail, model: str, version: str, place: str, holder: str) -> bool:
    try:
        return stood_before(trail.store(), model, version, place, holder)
    except StoreUnavailable:
        return False


def _alias_shown(alias: str, version: Any) -> str:
    return "" if version is None else f"version {version} in @{alias}"


def _asked(message: Any) -> Any:
    """The request, read as MLflow reads it. Raises MlflowException where MLflow refuses to."""
    from mlflow.server import handlers

    return handlers._get_request_message(message)


def _registry() -> Any:
    """MLflow's registry in this process: no question of ours goes over HTTP to the server that we are."""
    from mlflow.server import handlers

    return handlers._get_model_registry_store()
