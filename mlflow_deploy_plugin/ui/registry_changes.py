"""What a request to MLflow's registry is about to change, of what the gate and the audit trail look at."""

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
from mlflow_deploy_plugin.store import AuditEvent, Store
from mlflow_deploy_plugin.ui.audit import AuditTrail

_UNSERVED_STAGES = ("None", "Archived")
"""Stages from which nothing is served."""
_VERDICT = (GATE_TAG, GATE_POLICY_DIGEST_TAG)


@dataclass(frozen=True)
class RegistryChange:
    """A change of what a reference to a model means, as it is written into the audit trail.

    Attributes:
        action: `transition`, `alias`, `tag`, or of a registered model itself `rename` or `delete`.
        before / after: the stage of the version, which version has the alias, the value of the tag, the model's name.
        refusal: why it may not be; empty where it may.
        figures: what else belongs to it.
        also_of: other models in whose trail it stands.
        is_served_again: the version was rolled back, and comes where it is meant to be served.
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
    from mlflow.protos.model_registry_pb2 import TransitionModelVersionStage

    asked, known = (
        _request_message(TransitionModelVersionStage(), ("name", "version", "stage"), ("archive_existing_versions",)),
        registry(),
    )
    model, version = known.get_registered_model(asked.name), known.get_model_version(asked.name, asked.version)
    stage = get_canonical_stage(asked.stage)
    stood = [
        str(one.version) for one in known.get_latest_versions(asked.name, [stage]) if stage not in _UNSERVED_STAGES
    ]
    refusal, why = gate_decision(trail, model, version, stage, stood[0] if stood else "")
    figures: dict[str, Any] = {}
    if others := [other for other in stood if other != str(version.version)]:
        figures = {"stood_there": others[0], "archived": bool(asked.archive_existing_versions)}
    again = StageOrAlias(stage=stage).is_served_from and ROLLED_BACK_TAG in version.tags
    return RegistryChange(
        "transition",
        asked.name,
        str(version.version),
        version.current_stage,
        stage,
        why,
        refusal,
        figures,
        is_served_again=again,
    )


def _alias(trail: AuditTrail) -> RegistryChange | None:
    from mlflow.protos.model_registry_pb2 import SetRegisteredModelAlias

    asked, known = _request_message(SetRegisteredModelAlias(), ("name", "alias", "version")), registry()
    model, version = known.get_registered_model(asked.name), known.get_model_version(asked.name, asked.version)
    if _is_only_a_prompt(model):
        return None
    stood = model.aliases.get(asked.alias)
    refusal, why = gate_decision(trail, model, version, f"@{asked.alias}", str(stood or ""))
    before = _alias_shown(asked.alias, stood)
    after = _alias_shown(asked.alias, version.version)
    again = ROLLED_BACK_TAG in version.tags
    return RegistryChange("alias", asked.name, str(version.version), before, after, why, refusal, is_served_again=again)


def _no_alias(trail: AuditTrail) -> RegistryChange | None:
    from mlflow.protos.model_registry_pb2 import DeleteRegisteredModelAlias

    asked = _request_message(DeleteRegisteredModelAlias())
    model = registry().get_registered_model(asked.name)
    stood = model.aliases.get(asked.alias)
    if _is_only_a_prompt(model) or stood is None:
        return None
    return RegistryChange(
        "alias", asked.name, str(stood), _alias_shown(asked.alias, stood), _alias_shown(asked.alias, None)
    )


def _deleted(trail: AuditTrail) -> RegistryChange | None:
    """A version that goes leaves its stage: the one before it in the stage is served again."""
    from mlflow.protos.model_registry_pb2 import DeleteModelVersion

    asked = _request_message(DeleteModelVersion())
    version = registry().get_model_version(asked.name, asked.version)
    if version.current_stage in _UNSERVED_STAGES and not version.aliases:
        return None
    return RegistryChange("transition", asked.name, str(version.version), version.current_stage, "deleted")


def _version_tag(trail: AuditTrail) -> RegistryChange | None:
    """The verdict itself, and the policy that it was given by: whoever writes it by hand answers for it by name."""
    from mlflow.protos.model_registry_pb2 import SetModelVersionTag

    asked = _request_message(SetModelVersionTag())
    return _tagged(asked, asked.value) if asked.key in _VERDICT else None


def _no_version_tag(trail: AuditTrail) -> RegistryChange | None:
    from mlflow.protos.model_registry_pb2 import DeleteModelVersionTag

    asked = _request_message(DeleteModelVersionTag())
    return _tagged(asked, "") if asked.key in (*_VERDICT, ROLLED_BACK_TAG) else None


def _tagged(asked: Any, after: str) -> RegistryChange:
    version = registry().get_model_version(asked.name, asked.version)
    before = version.tags.get(asked.key, "")
    return RegistryChange("tag", asked.name, str(version.version), before, after, figures={"tag": asked.key})


def _model_created(trail: AuditTrail) -> RegistryChange | None:
    from mlflow.protos.model_registry_pb2 import CreateRegisteredModel

    asked = _request_message(CreateRegisteredModel())
    given = {tag.key: tag.value for tag in asked.tags}.get(GATE_POLICY_TAG, "")
    return RegistryChange("tag", asked.name, "", "", given, figures={"tag": GATE_POLICY_TAG})


def _model_renamed(trail: AuditTrail) -> RegistryChange | None:
    """What follows the new name serves what this model has in its stages, by the policy that it has."""
    from mlflow.protos.model_registry_pb2 import RenameRegisteredModel

    asked = _request_message(RenameRegisteredModel())
    if _is_only_a_prompt(registry().get_registered_model(asked.name)):
        return None
    return RegistryChange("rename", asked.name, "", asked.name, asked.new_name, also_of=(asked.new_name,))


def _model_deleted(trail: AuditTrail) -> RegistryChange | None:
    """Its policy goes with it: one of the same name is made anew without."""
    from mlflow.protos.model_registry_pb2 import DeleteRegisteredModel

    asked = _request_message(DeleteRegisteredModel())
    if _is_only_a_prompt(registry().get_registered_model(asked.name)):
        return None
    return RegistryChange("delete", asked.name, "", asked.name, "")


def _model_tag(trail: AuditTrail) -> RegistryChange | None:
    """What is demanded of a model's versions."""
    from mlflow.protos.model_registry_pb2 import SetRegisteredModelTag

    asked = _request_message(SetRegisteredModelTag())
    return _policy(asked.name, asked.value) if asked.key == GATE_POLICY_TAG else None


def _no_model_tag(trail: AuditTrail) -> RegistryChange | None:
    from mlflow.protos.model_registry_pb2 import DeleteRegisteredModelTag

    asked = _request_message(DeleteRegisteredModelTag())
    return _policy(asked.name, "") if asked.key == GATE_POLICY_TAG else None


def _policy(model: str, after: str) -> RegistryChange:
    before = registry().get_registered_model(model).tags.get(GATE_POLICY_TAG, "")
    return RegistryChange("tag", model, "", before, after, figures={"tag": GATE_POLICY_TAG})


READERS: dict[str, Callable[[AuditTrail], RegistryChange | None]] = {
    "_transition_stage": _transition,
    "_set_registered_model_alias": _alias,
    "_delete_registered_model_alias": _no_alias,
    "_delete_model_version": _deleted,
    "_set_model_version_tag": _version_tag,
    "_delete_model_version_tag": _no_version_tag,
    "_create_registered_model": _model_created,
    "_rename_registered_model": _model_renamed,
    "_delete_registered_model": _model_deleted,
    "_set_registered_model_tag": _model_tag,
    "_delete_registered_model_tag": _no_model_tag,
}
"""The name of MLflow's view → what it is asked to change."""

GATED = ("_transition_stage", "_set_registered_model_alias")
"""The views that nothing goes through unread."""


def _is_only_a_prompt(model: Any) -> bool:
    """Of a model with a policy the tag that makes it a prompt means nothing: anybody can set it, and take it away."""
    return bool(model._is_prompt()) and GATE_POLICY_TAG not in model.tags


def _alias_shown(alias: str, version: Any) -> str:
    return "" if version is None else f"version {version} in @{alias}"


def _request_message(message: Any, texts: Sequence[str] = (), flags: Sequence[str] = ()) -> Any:
    """The request, read as MLflow reads it. Raises MlflowException where MLflow refuses to.

    Args:
        texts / flags: the fields that MLflow's view asks for, of a view that is not asked itself where these are wrong.
    """
    from mlflow.server import handlers

    schema = {field: [handlers._assert_string, handlers._assert_required] for field in texts}
    schema |= {field: [handlers._assert_bool] for field in flags}
    return handlers._get_request_message(message, schema=schema)


def registry() -> Any:
    """MLflow's registry in this process: no question of ours goes over HTTP to the server that we are."""
    from mlflow.server import handlers

    return handlers._get_model_registry_store()


def gate_decision(trail: AuditTrail, model: Any, version: Any, place: str, holder: str) -> tuple[str, str]:
    """(why the gate refuses, why it does not), one of them empty; both where nothing is gated.

    Args:
        model / version: MLflow's entities.
        place: a stage, or @alias.
        holder: the version that is there now, or an empty text.
    """
    number, what = str(version.version), f"version {version.version} of {model.name}"
    try:
        policy = policy_from_tags(model.name, model.tags)
    except InvalidConfig as error:  # nobody can tell what is gated
        return f"{what} was not moved to {place}: {error.message}", ""
    is_alias = place.startswith("@")
    if policy is None or not (policy.gates_alias(place[1:]) if is_alias else policy.gates_stage(place)):
        return "", ""
    standing = gate_status_of(version.tags)
    judged_by = version.tags.get(GATE_POLICY_DIGEST_TAG, policy.digest)
    if standing.state == "passed" and judged_by != policy.digest:
        standing = GateStatus(False, "", "it passed another policy than the model has now")
    if standing.passed:
        return "", f"gate {standing.state}: {standing.reason}"
    if holder == number:
        return "", "it is there already"
    if holder and ROLLED_BACK_TAG not in version.tags and _is_rollback_target(trail, model.name, number, place, holder):
        return "", f"back to what stood there before version {holder}; its gate: {standing.reason}"
    return (
        f"{what} may not become {place}: {standing.reason}. "
        f"`onnxserve promote {model.name} {number} --to {place}` runs the gate and says what is missing",
        "",
    )


def _is_rollback_target(trail: AuditTrail, model: str, version: str, place: str, holder: str) -> bool:
    try:
        return is_rollback_target(trail.store(), model, version, place, holder)
    except StoreUnavailable:
        return False


def is_rollback_target(store: Store, model: str, version: str, place: str, holder: str) -> bool:
    """Whether `version` is what `holder` took the place of, by the audit trail; False where it does not say.

    Args:
        place: a stage, or @alias.
        holder: the version that is there now.

    Raises:
        StoreUnavailable: the trail cannot be read.
    """
    for event in reversed(store.events(model=model)):
        if not event.endpoint and event.action in ("rename", "delete"):
            return False  # another model had this name: its numbers are not those of this one
        if event.version == holder and (before := _before(event, place)) is not None:
            return before == version
    return False


def _before(event: AuditEvent, place: str) -> str | None:
    """The version whose place was taken by this event; None where it is about another place, or another thing."""
    if event.action == "transition" and event.after == place:
        return str(event.detail.get("stood_there", ""))
    if event.action in ("promote", "alias") and event.after.lower().endswith(f" in {place}".lower()):
        return event.before.removeprefix("version ").partition(" ")[0]
    return None
