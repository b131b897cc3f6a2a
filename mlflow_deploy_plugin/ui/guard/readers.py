"""The readers of the requests to MLflow's registry that the guard decides about.

If the policy requires approvals or names judges, only administrators may change the
policy, or rename or delete the model, because it would otherwise not apply. A promotion
is refused while the approvals cannot be read.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flask import request
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.utils.models import get_model_name_and_version

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.registry.policy import policy_from_tags
from mlflow_deploy_plugin.core.registry.resolution import newest
from mlflow_deploy_plugin.core.registry.tags import ERROR_TAG, GATE_POLICY_TAG, GATE_TAG
from mlflow_deploy_plugin.core.registry.transitions import ROLLED_BACK_TAG, StageOrAlias
from mlflow_deploy_plugin.core.store.audit import move_detail
from mlflow_deploy_plugin.core.store.people import name_key
from mlflow_deploy_plugin.core.store.served_files import LEFT, SERVED, served_entry
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.promote.gate.approvals import version_authors
from mlflow_deploy_plugin.ui.access import caller, is_administrator
from mlflow_deploy_plugin.ui.audit_trail import AuditTrail
from mlflow_deploy_plugin.ui.guard.mlflow_stores import (
    gated_models,
    model_and_version,
    registered_model,
    registry,
)
from mlflow_deploy_plugin.ui.guard.moves import (
    UNSERVED_STAGES,
    Move,
    RegistryChange,
    adopted_entries,
    holders,
    stays,
    uncovering_refusal,
    unsigned_refusal,
    valid_policy,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from mlflow.entities.model_registry import RegisteredModel


Reader = Callable[[AuditTrail, "Message"], RegistryChange | None]


def _transition(trail: AuditTrail, message: "Message") -> RegistryChange:
    """Read the request to move a version to a stage."""
    from mlflow.entities.model_registry.model_version_stages import get_canonical_stage

    model, version = model_and_version(message.name, message.version)
    stage = get_canonical_stage(message.stage)
    number = str(version.version)
    place = StageOrAlias(stage=stage)
    holder = dict(holders(model)).get(place, "")
    replaced = "" if holder == number else holder
    detail = move_detail(stage, replaced)
    if replaced:
        detail |= {"stood_there": holder, "archived": bool(message.archive_existing_versions)}
    change = RegistryChange(
        action="transition",
        model=message.name,
        version=number,
        before=version.current_stage,
        after=stage,
        detail=detail,
        is_gated=_is_gated(model, place, StageOrAlias(stage=version.current_stage)),
    )
    refusal = "" if stage == version.current_stage else uncovering_refusal(trail, model, version)
    if refusal:
        return change.with_refusal(refusal)
    return Move(trail, change, model, version, place, holder).decide()


def _alias(trail: AuditTrail, message: "Message") -> RegistryChange | None:
    """Read the request to set or delete an alias. None for the alias of a prompt."""
    model = registered_model(message.name)
    if _is_only_a_prompt(model):
        return None
    holder = str(model.aliases.get(message.alias, ""))
    place = StageOrAlias(alias=message.alias)
    change = RegistryChange(
        action="alias",
        model=message.name,
        version=holder,
        before=f"version {holder} in {place}" if holder else "",
        detail={LEFT: str(place)},
        is_gated=_is_gated(model, place),
    )
    if not hasattr(message, "version"):
        return change
    version = registry().get_model_version(message.name, message.version)
    number = str(version.version)
    after = f"version {number} in {place}"
    detail = move_detail(str(place), holder)
    change = replace(change, version=number, after=after, detail=detail)
    policy = valid_policy(model)
    if policy is not None and not holder:
        aliases = (*policy.gated_aliases, *model.aliases)
        if refusal := _lookalike_refusal("alias", message.alias, aliases):
            return change.with_refusal(refusal)
    return Move(trail, change, model, version, place, holder).decide()


def _version_creation(trail: AuditTrail, message: Any) -> RegistryChange:
    """Read the request to create a version, and remove the tags of a verdict from it:
    MLflow's client sends the tags of a version that it copies. The authors of a copied
    version are also authors of the copy.
    """
    model = registered_model(message.name)
    is_gated = GATE_POLICY_TAG in model.tags
    kept = [
        {"key": tag.key, "value": tag.value}
        for tag in message.tags
        if not name_key(tag.key).startswith((GATE_TAG, ERROR_TAG, ROLLED_BACK_TAG))
    ]
    refusal = ""
    if len(kept) < len(message.tags):
        # Flask keeps the document, so MLflow's view reads the same object again.
        document: Any = request.get_json(force=True, silent=True)
        with suppress(TypeError):  # MLflow accepts a document in a JSON string too.
            document["tags"] = kept
        if len(read_message("CreateModelVersion").tags) != len(kept):
            refusal = f"only MLflow's server writes tags such as {GATE_TAG}: leave them out"
    authors = [*filter(None, [caller().user])]
    source: Sequence[str] = ()
    with suppress(MlflowException):  # It is not a version, or MLflow refuses it.
        source = get_model_name_and_version(registry(), message.source)
    try:
        if len(source) == 2:  # A logged model has only an id.
            original = registry().get_model_version(*source)
            created = int(original.creation_timestamp)
            number = str(original.version)
            authors += version_authors(trail.store(), original.name, number, created)
    except OnnxserveError:
        if is_gated:
            raise
    newest_version = newest(model.latest_versions)
    return RegistryChange(
        action="register",
        model=message.name,
        before=f"version {newest_version.version}" if newest_version else "",
        after="a new version",
        detail={"authors": authors},
        is_gated=is_gated,
    ).with_refusal(refusal)


def _version_deletion(trail: AuditTrail, message: "Message") -> RegistryChange | None:
    """Read the request to delete a version. Endpoints that follow its stage then serve
    the previous version. None if no endpoint can follow the version.
    """
    model, version = model_and_version(message.name, message.version)
    if version.current_stage in UNSERVED_STAGES and not version.aliases:
        return None
    change = RegistryChange(
        action="transition",
        model=message.name,
        version=str(version.version),
        before=version.current_stage,
        after="deleted",
        is_gated=_is_gated(
            model,
            StageOrAlias(stage=version.current_stage),
            *(StageOrAlias(alias=alias) for alias in version.aliases),
        ),
    )
    return change.with_refusal(uncovering_refusal(trail, model, version))


def _model_creation(trail: AuditTrail, message: "Message") -> RegistryChange:
    """Read the request to create a model, whose tags may contain a gate policy."""
    model_tags = {tag.key: tag.value for tag in message.tags}
    policy = model_tags.get(GATE_POLICY_TAG, "")
    return RegistryChange(
        action="tag", model=message.name, after=policy, detail={"tag": GATE_POLICY_TAG}
    ).with_refusal(
        unsigned_refusal(trail, needs_approvals="approvals" in policy)
        or _name_refusal(message.name)
    )


def _model(trail: AuditTrail, message: "Message") -> RegistryChange | None:
    """Read the request to rename or delete a model. After a rename, the policy applies
    to the new name. None for a prompt.
    """
    model = registered_model(message.name)
    if _is_only_a_prompt(model):
        return None
    new_name = getattr(message, "new_name", "")
    action = "rename" if hasattr(message, "new_name") else "delete"
    change = RegistryChange(
        action=action,
        model=message.name,
        before=message.name,
        after=new_name,
        is_gated=_is_gated(model, *(place for place, _ in holders(model))),
    ).with_refusal(
        _policy_refusal(model, f"{action} this model") or _name_refusal(new_name, model.name)
    )
    if not new_name or change.is_refused:
        return change
    entries = []
    with suppress(OnnxserveError):  # The rename of a gated model is refused then.
        for place, number, stay in stays(trail.store(), model):
            if stay.is_counted:
                entries.append(served_entry(number, place, stay.files))
    return replace(change, detail={SERVED: entries})


def _version_tag(_trail: AuditTrail, message: Any) -> RegistryChange | None:
    """Read the request to set or delete a tag of a version: a refusal for the tags of a
    verdict, which only this server sets (`ui/verdicts.py`). None if the guard does not
    watch the tag.
    """
    is_of_verdict = name_key(message.key).startswith(GATE_TAG)
    is_deleted = not hasattr(message, "value")
    if not (is_of_verdict or (is_deleted and name_key(message.key) == ROLLED_BACK_TAG)):
        return None
    _, version = model_and_version(message.name, message.version)
    number = str(version.version)
    refusal = ""
    if is_of_verdict:
        refusal = (
            f"only MLflow's server writes the tag {message.key}: `onnxserve gate "
            f"models:/{message.name}/{number}` judges the version and records the verdict"
        )
    return RegistryChange(
        action="tag",
        model=message.name,
        version=number,
        before=version.tags.get(message.key, ""),
        after=getattr(message, "value", ""),
        detail={"tag": message.key},
    ).with_refusal(refusal)


def _model_tag(trail: AuditTrail, message: Any) -> RegistryChange | None:
    """Read the request to set or delete a tag of a model. None for another tag than the
    gate policy. The detail contains the files that the new policy adopts.
    """
    if name_key(message.key) != GATE_POLICY_TAG:
        return None
    model = registered_model(message.name)
    policy = getattr(message, "value", "")
    refusal = _policy_refusal(model, f"change its tag {message.key}")
    refusal = refusal or unsigned_refusal(trail, needs_approvals="approvals" in policy)
    detail: Json = {"tag": message.key}
    if policy and not refusal:
        with suppress(InvalidConfig):
            gates = policy_from_tags(model.name, {GATE_POLICY_TAG: policy})
            if gates and (adopted := adopted_entries(trail, model, gates)):
                detail[SERVED] = adopted
    return RegistryChange(
        action="tag",
        model=message.name,
        before=model.tags.get(message.key, ""),
        after=policy,
        detail=detail,
        is_gated=True,
    ).with_refusal(refusal)


READERS: dict[str, tuple[str, Reader]] = {
    "_transition_stage": ("TransitionModelVersionStage", _transition),
    "_set_registered_model_alias": ("SetRegisteredModelAlias", _alias),
    "_delete_registered_model_alias": ("DeleteRegisteredModelAlias", _alias),
    "_create_model_version": ("CreateModelVersion", _version_creation),
    "_delete_model_version": ("DeleteModelVersion", _version_deletion),
    "_create_registered_model": ("CreateRegisteredModel", _model_creation),
    "_rename_registered_model": ("RenameRegisteredModel", _model),
    "_delete_registered_model": ("DeleteRegisteredModel", _model),
    "_set_model_version_tag": ("SetModelVersionTag", _version_tag),
    "_delete_model_version_tag": ("DeleteModelVersionTag", _version_tag),
    "_set_registered_model_tag": ("SetRegisteredModelTag", _model_tag),
    "_delete_registered_model_tag": ("DeleteRegisteredModelTag", _model_tag),
}
"""The name of a view of MLflow → the protobuf message of the view's requests, and the
reader of the message.
"""


def _is_gated(model: "RegisteredModel", *places: StageOrAlias) -> bool:
    """Return True if the model's policy gates one of the places, or cannot be read."""
    try:
        policy = policy_from_tags(model.name, model.tags)
    except InvalidConfig:
        return True
    return policy is not None and any(map(policy.gates, places))


def _policy_refusal(model: "RegisteredModel", change: str) -> str:
    """Return why the caller may not make a change that removes required approvals,
    judges or witnesses; empty if the caller may make it.
    """
    try:
        policy = policy_from_tags(model.name, model.tags)
        is_protected = policy is not None and bool(
            policy.approvals or policy.judges or policy.witnessed
        )
    except InvalidConfig:  # The policy is not valid, but may be meant to name people.
        text = model.tags[GATE_POLICY_TAG]
        is_protected = any(name in text for name in ("approvals", "judges", "witnessed"))
    if not is_protected or is_administrator():
        return ""
    return (
        f"only an administrator may {change}, because the gate policy of {model.name} requires "
        "approvals or witnesses, or names judges"
    )


def _name_refusal(name: str, own_name: str = "") -> str:
    """Return why a model may not receive this name; empty if it may."""
    names = {model.name for model in gated_models()} - {own_name}
    return _lookalike_refusal("model", name, names)


def _lookalike_refusal(kind: str, name: str, others: Iterable[str]) -> str:
    """Return why a name is refused: another one has the same `name_key`; empty if there
    is none.
    """
    for other in others:
        if other != name and name_key(other) == name_key(name):
            return (
                f"{name!r} is written like the {kind} {other!r}, and a database may take both for "
                "one: use another name"
            )
    return ""


def _is_only_a_prompt(model: "RegisteredModel") -> bool:
    """Return True for a prompt. A model with a policy is not a prompt, because any user
    can set the prompt tag.
    """
    return bool(model._is_prompt()) and GATE_POLICY_TAG not in model.tags


def read_message(message: str) -> "Message":
    """Return the current request as MLflow reads it. Raise MlflowException if MLflow
    refuses it.
    """
    from mlflow.protos import model_registry_pb2

    empty = getattr(model_registry_pb2, message)()
    texts = [field.name for field in empty.DESCRIPTOR.fields if field.type == field.TYPE_STRING]
    return mlflow_private._get_request_message(
        empty, schema={name: [mlflow_private._assert_string] for name in texts}
    )
