"""Requests to MLflow's registry as changes for the gate and the audit trail, and the gate's decision about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_deploy_plugin.errors import InvalidConfig, StoreUnavailable
from mlflow_deploy_plugin.gate import policy_from_tags
from mlflow_deploy_plugin.registry import (
    GATE_POLICY_DIGEST_TAG,
    GATE_POLICY_TAG,
    GATE_TAG,
    ROLLED_BACK_TAG,
    GateStatus,
    StageOrAlias,
    gate_status_of,
)
from mlflow_deploy_plugin.store import AuditEvent
from mlflow_deploy_plugin.ui.audit import AuditTrail

_UNSERVED_STAGES = ("None", "Archived")
"""The stages from which nothing is served."""
_VERDICT_TAGS = (GATE_TAG, GATE_POLICY_DIGEST_TAG)


@dataclass(frozen=True)
class GateDecision:
    """The gate's decision: why it refuses, or why it does not. Both are empty if nothing is gated."""

    refusal: str = ""
    why: str = ""


@dataclass(frozen=True)
class RegistryChange:
    """A change of the meaning of a reference to a model, as it is written into the audit trail.

    Attributes:
        action: `transition`, `alias`, `tag`, or `rename` or `delete` of a registered model itself.
        before: the stage of the version, the version with the alias, the value of the tag, or the model's name.
        after: the same after the change.
        refusal: why the gate refuses it; empty if it does not.
        figures: further details.
        also_of: other models whose trail has it, too.
        is_served_again: the version was rolled back, and comes to a stage or alias that is served.
    """

    action: str
    model: str
    version: str
    before: str
    after: str
    why: str = ""
    refusal: str = ""
    figures: dict[str, Any] | None = None
    also_of: tuple[str, ...] = ()
    is_served_again: bool = False


def _transition(trail: AuditTrail) -> RegistryChange:
    from mlflow.entities.model_registry.model_version_stages import get_canonical_stage

    fields = ("name", "version", "stage")
    message, store = _read("TransitionModelVersionStage", fields, ("archive_existing_versions",)), registry()
    model, version = store.get_registered_model(message.name), store.get_model_version(message.name, message.version)
    stage = get_canonical_stage(message.stage)
    is_unserved = stage in _UNSERVED_STAGES
    holders = [] if is_unserved else [str(one.version) for one in store.get_latest_versions(message.name, [stage])]
    decision = _decide(trail, model, version, stage, holders[0] if holders else "")
    figures: dict[str, Any] = {}
    if others := [other for other in holders if other != str(version.version)]:
        figures = {"stood_there": others[0], "archived": bool(message.archive_existing_versions)}
    return RegistryChange(
        "transition",
        message.name,
        str(version.version),
        version.current_stage,
        stage,
        decision.why,
        decision.refusal,
        figures,
        is_served_again=StageOrAlias(stage=stage).is_served_from and ROLLED_BACK_TAG in version.tags,
    )


def _alias(trail: AuditTrail) -> RegistryChange | None:
    message, store = _read("SetRegisteredModelAlias", ("name", "alias", "version")), registry()
    model, version = store.get_registered_model(message.name), store.get_model_version(message.name, message.version)
    if _is_only_a_prompt(model):
        return None
    holder = model.aliases.get(message.alias)
    decision = _decide(trail, model, version, f"@{message.alias}", str(holder or ""))
    return RegistryChange(
        "alias",
        message.name,
        str(version.version),
        _alias_text(message.alias, holder),
        _alias_text(message.alias, version.version),
        decision.why,
        decision.refusal,
        is_served_again=ROLLED_BACK_TAG in version.tags,
    )


def _alias_deletion(_: AuditTrail) -> RegistryChange | None:
    message = _read("DeleteRegisteredModelAlias")
    model = registry().get_registered_model(message.name)
    holder = model.aliases.get(message.alias)
    if _is_only_a_prompt(model) or holder is None:
        return None
    return RegistryChange("alias", message.name, str(holder), _alias_text(message.alias, holder), "")


def _version_deletion(_: AuditTrail) -> RegistryChange | None:
    """Read the deletion of a version: the one before it in its stage is served again."""
    message = _read("DeleteModelVersion")
    version = registry().get_model_version(message.name, message.version)
    if version.current_stage in _UNSERVED_STAGES and not version.aliases:
        return None
    return RegistryChange("transition", message.name, str(version.version), version.current_stage, "deleted")


def _version_tag(request: str, keys: Sequence[str]) -> Callable[[AuditTrail], RegistryChange | None]:
    """Return a reader of tags of versions: a person who changes a verdict or its policy by hand is in the trail."""

    def read(_: AuditTrail) -> RegistryChange | None:
        message = _read(request)
        if message.key not in keys:
            return None
        version = registry().get_model_version(message.name, message.version)
        before, after = version.tags.get(message.key, ""), getattr(message, "value", "")
        return RegistryChange("tag", message.name, str(version.version), before, after, figures={"tag": message.key})

    return read


def _model_tag(request: str) -> Callable[[AuditTrail], RegistryChange | None]:
    """Return a reader of tags of registered models, of which the gate's policy alone counts."""

    def read(_: AuditTrail) -> RegistryChange | None:
        message = _read(request)
        if message.key != GATE_POLICY_TAG:
            return None
        before, after = (
            registry().get_registered_model(message.name).tags.get(message.key, ""),
            getattr(message, "value", ""),
        )
        return RegistryChange("tag", message.name, "", before, after, figures={"tag": GATE_POLICY_TAG})

    return read


def _model_creation(_: AuditTrail) -> RegistryChange | None:
    message = _read("CreateRegisteredModel")
    policy = {tag.key: tag.value for tag in message.tags}.get(GATE_POLICY_TAG, "")
    return RegistryChange("tag", message.name, "", "", policy, figures={"tag": GATE_POLICY_TAG})


def _model_rename(_: AuditTrail) -> RegistryChange | None:
    """Read a rename: endpoints that follow the new name serve this model's stages, by its policy."""
    message = _read("RenameRegisteredModel")
    if _is_only_a_prompt(registry().get_registered_model(message.name)):
        return None
    return RegistryChange("rename", message.name, "", message.name, message.new_name, also_of=(message.new_name,))


def _model_deletion(_: AuditTrail) -> RegistryChange | None:
    """Read a deletion: the policy goes with the model, and a new one of its name has none."""
    message = _read("DeleteRegisteredModel")
    if _is_only_a_prompt(registry().get_registered_model(message.name)):
        return None
    return RegistryChange("delete", message.name, "", message.name, "")


def _is_only_a_prompt(model: Any) -> bool:
    """Return True for a prompt. A model with a policy is none, whatever its tag: anybody can set and remove the tag."""
    return bool(model._is_prompt()) and GATE_POLICY_TAG not in model.tags


def _alias_text(alias: str, version: Any) -> str:
    return "" if version is None else f"version {version} in @{alias}"


def _read(request: str, texts: Sequence[str] = (), flags: Sequence[str] = ()) -> Any:
    """Return the request at hand as MLflow reads it; raise MlflowException if MLflow refuses it.

    Args:
        request: the name of its protobuf message.
        texts: the required text fields of MLflow's view, which is not called if one is wrong.
        flags: its boolean fields.
    """
    from mlflow.protos import model_registry_pb2
    from mlflow.server import handlers

    schema = {field: [handlers._assert_string, handlers._assert_required] for field in texts}
    schema |= {field: [handlers._assert_bool] for field in flags}
    return handlers._get_request_message(getattr(model_registry_pb2, request)(), schema=schema)


def registry() -> Any:
    """Return MLflow's registry store in this process: we are its server, and need no HTTP request."""
    from mlflow.server import handlers

    return handlers._get_model_registry_store()


def _decide(trail: AuditTrail, model: Any, version: Any, place: str, holder: str) -> GateDecision:
    """Return the gate's decision about a version that is moved to a stage or alias.

    Args:
        model: MLflow's entity, as `version`.
        place: a stage, or @alias.
        holder: the version that is there now, or an empty text.
    """
    number, what = str(version.version), f"version {version.version} of {model.name}"
    try:
        policy = policy_from_tags(model.name, model.tags)
    except InvalidConfig as error:  # nobody knows what is gated
        return GateDecision(refusal=f"{what} was not moved to {place}: {error.message}")
    is_alias = place.startswith("@")
    if policy is None or not (policy.gates_alias(place[1:]) if is_alias else policy.gates_stage(place)):
        return GateDecision()
    status = gate_status_of(version.tags)
    judged_by = version.tags.get(GATE_POLICY_DIGEST_TAG, policy.digest)
    if status.state == "passed" and judged_by != policy.digest:
        status = GateStatus(False, "", "it passed another policy than the model has now")
    if status.passed:
        return GateDecision(why=f"gate {status.state}: {status.reason}")
    if holder == number:
        return GateDecision(why="it is there already")
    if holder and ROLLED_BACK_TAG not in version.tags and _is_rollback_target(trail, model.name, number, place, holder):
        return GateDecision(why=f"back to what stood there before version {holder}; its gate: {status.reason}")
    return GateDecision(
        refusal=f"{what} may not become {place}: {status.reason}. "
        f"`onnxserve promote {model.name} {number} --to {place}` runs the gate and says what is missing"
    )


def _is_rollback_target(trail: AuditTrail, model: str, version: str, place: str, holder: str) -> bool:
    """Return True if `version` had the stage or alias before `holder`, by the audit trail; False if it does not say."""
    try:
        events = trail.store().events(model=model)
    except StoreUnavailable:
        return False
    for event in reversed(events):
        if not event.endpoint and event.action in ("rename", "delete"):
            return False  # another model had this name: its numbers are not those of this one
        if event.version == holder and (before := _before(event, place)) is not None:
            return before == version
    return False


def _before(event: AuditEvent, place: str) -> str | None:
    """Return the version that the event has moved out of the place; None if the event is about something else."""
    if event.action == "transition" and event.after == place:
        return str(event.detail.get("stood_there", ""))
    if event.action in ("promote", "alias") and event.after.lower().endswith(f" in {place}".lower()):
        return event.before.removeprefix("version ").partition(" ")[0]
    return None


READERS: dict[str, Callable[[AuditTrail], RegistryChange | None]] = {
    "_transition_stage": _transition,
    "_set_registered_model_alias": _alias,
    "_delete_registered_model_alias": _alias_deletion,
    "_delete_model_version": _version_deletion,
    "_set_model_version_tag": _version_tag("SetModelVersionTag", _VERDICT_TAGS),
    "_delete_model_version_tag": _version_tag("DeleteModelVersionTag", (*_VERDICT_TAGS, ROLLED_BACK_TAG)),
    "_create_registered_model": _model_creation,
    "_rename_registered_model": _model_rename,
    "_delete_registered_model": _model_deletion,
    "_set_registered_model_tag": _model_tag("SetRegisteredModelTag"),
    "_delete_registered_model_tag": _model_tag("DeleteRegisteredModelTag"),
}
"""The name of MLflow's view → the reader of its request."""

GATED = ("_transition_stage", "_set_registered_model_alias")
"""The views that refuse a request that cannot be read."""
