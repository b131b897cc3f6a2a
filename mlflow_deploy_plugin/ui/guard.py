"""The gate and the audit trail in MLflow's API, which check and record every change of
a stage or an alias.

The guard wraps MLflow's view functions, which `/api` and `/ajax-api` share and which
run after the basic auth. A refusal is 403 PERMISSION_DENIED, which MLflow's UI shows
and its clients do not retry. Direct changes in the database bypass the guard; `require:
gate=passed` in an endpoint's spec covers them.

If the policy requires approvals or names judges, only administrators may change the
policy, or rename or delete the model, because it would otherwise not apply. A promotion
is refused while the approvals cannot be read.

Every version in a gated stage or alias has the files that were judged or, with
approvals, approved. `_Move.decide` and `_uncovering_refusal` list the exceptions with
their reasons. For this purpose, each move to a gated place records the digest of the
version's files (`core/store/served_files.py`). Without a policy, no files are read.

A verdict covers the files of a version. All files of the version are read once, and
again if a file name, a size or the MLmodel file changes, or for each decision if the
policy requires approvals. The MLmodel file contains the digests of our flavor's files.
Before a change of a gated place, its intention is stored, and its result afterwards. If
the intention cannot be stored, the change is refused with 503 (`audit_trail.py`). For
other changes, a failure of the audit trail or of the notification of the agents never
fails a request to MLflow.
"""

import hashlib
import logging
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from flask import Flask, Response, jsonify, make_response, request

from mlflow_deploy_plugin.core.errors import (
    InvalidConfig,
    NotFound,
    OnnxserveError,
    StoreUnavailable,
)
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.mlmodel import MLMODEL, combine_hashes, hash_files
from mlflow_deploy_plugin.core.registry import tags
from mlflow_deploy_plugin.core.registry.model_files import is_extra_file
from mlflow_deploy_plugin.core.registry.policy import GatePolicy, policy_from_tags
from mlflow_deploy_plugin.core.registry.resolution import all_versions
from mlflow_deploy_plugin.core.registry.transitions import ROLLED_BACK_TAG, StageOrAlias
from mlflow_deploy_plugin.core.settings import active_workspace, load_settings
from mlflow_deploy_plugin.core.store.audit import (
    FAILED,
    INTEND,
    INTENDED,
    INTENTION,
    AuditEvent,
    move_detail,
)
from mlflow_deploy_plugin.core.store.served_files import SERVED, served_entry, served_files
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.promote.gate.approvals import (
    Subject,
    approved_files,
    missing_approvals,
    subject_of,
    version_authors,
)
from mlflow_deploy_plugin.ui.access import caller, is_administrator, may_read, static_prefix
from mlflow_deploy_plugin.ui.audit_trail import NO_KEY, AuditTrail

if TYPE_CHECKING:
    from fastapi import FastAPI
    from google.protobuf.message import Message
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from mlflow.store.model_registry.abstract_store import AbstractStore as Registry

_log = logging.getLogger(__name__)

_ROLLBACK = "rollback"
_NEW_VERSION = "_create_model_version"
_RETRY_AFTER_SECONDS = 5
_RECORD_BYTES = 50_000_000
"""The maximum size of a file that this process reads for a record."""
_UNSERVED_STAGES = ("None", "Archived")
"""The stages that no endpoint serves."""
_MOVES_OR_ENDS = ("transition", "promote", "alias", "rename", "delete")


@dataclass(frozen=True)
class RegistryChange:
    """A change of a model, a stage, an alias or a tag in the registry, as the audit
    trail records the change.

    Attributes:
        action: `transition`, `alias`, `tag` or `register`, or `rename` or `delete` of a
            registered model.
        before: the stage of the version, the version with the alias, the value of the
            tag, or the model's name.
        after: the same after the change.
        why: the reason why the gate accepts or refuses the change; empty if the change
            is not gated.
        is_gated: True if the change is of the policy, or of a place that it gates.
        is_served_again: True if a version that was rolled back moves to a stage or
            alias that may be served.
        has_new_files: True if people have approved files of the version that are not
            recorded for its place yet.
    """

    action: str
    model: str
    version: str = ""
    before: str = ""
    after: str = ""
    why: str = ""
    is_refused: bool = False
    detail: Json = field(default_factory=dict)
    is_gated: bool = False
    is_served_again: bool = False
    has_new_files: bool = False

    def with_refusal(self, reason: str) -> "RegistryChange":
        """Return the change, which is refused unless the reason is empty."""
        return replace(self, why=reason, is_refused=bool(reason))

    @property
    def is_recorded(self) -> bool:
        """True if something differs after the change."""
        return self.before != self.after or self.has_new_files or bool(self.detail.get(SERVED))


_Reader = Callable[[AuditTrail, "Message"], RegistryChange | None]


def _transition(trail: AuditTrail, message: "Message") -> RegistryChange:
    """Read the request to move a version to a stage."""
    from mlflow.entities.model_registry.model_version_stages import get_canonical_stage

    model, version = model_and_version(message.name, message.version)
    stage = get_canonical_stage(message.stage)
    number = str(version.version)
    served = []
    if stage not in _UNSERVED_STAGES:
        served = registry().get_latest_versions(message.name, [stage])
    holder = str(served[0].version) if served else ""
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
        is_gated=_is_gated(
            model, StageOrAlias(stage=stage), StageOrAlias(stage=version.current_stage)
        ),
    )
    refusal = "" if stage == version.current_stage else _uncovering_refusal(trail, model, version)
    if refusal:
        return change.with_refusal(refusal)
    return _Move(
        trail,
        change,
        model,
        version,
        StageOrAlias(stage=stage),
        holder,
    ).decide()


def _alias(trail: AuditTrail, message: "Message") -> RegistryChange | None:
    """Read the request to set or delete an alias. None for the alias of a prompt."""
    model = registry().get_registered_model(message.name)
    if _is_only_a_prompt(model):
        return None
    holder = str(model.aliases.get(message.alias, ""))
    before = f"version {holder} in @{message.alias}" if holder else ""
    place = StageOrAlias(alias=message.alias)
    if not hasattr(message, "version"):
        return RegistryChange(
            action="alias",
            model=message.name,
            version=holder,
            before=before,
            is_gated=_is_gated(model, place),
        )
    version = registry().get_model_version(message.name, message.version)
    number = str(version.version)
    detail = move_detail(f"@{message.alias}", holder)
    after = f"version {number} in @{message.alias}"
    change = RegistryChange(
        action="alias",
        model=message.name,
        version=number,
        before=before,
        after=after,
        detail=detail,
        is_gated=_is_gated(model, place),
    )
    return _Move(
        trail,
        change,
        model,
        version,
        place,
        holder,
    ).decide()


def _version_deletion(trail: AuditTrail, message: "Message") -> RegistryChange | None:
    """Read the request to delete a version. Endpoints that follow its stage then serve
    the previous version. None if no endpoint can follow the version.
    """
    model, version = model_and_version(message.name, message.version)
    if version.current_stage in _UNSERVED_STAGES and not version.aliases:
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
    return change.with_refusal(_uncovering_refusal(trail, model, version))


def _model_creation(trail: AuditTrail, message: "Message") -> RegistryChange:
    """Read the request to create a model, whose tags may contain a gate policy."""
    model_tags = {tag.key: tag.value for tag in message.tags}
    policy = model_tags.get(tags.GATE_POLICY_TAG, "")
    return RegistryChange(
        action="tag",
        model=message.name,
        after=policy,
        detail={"tag": tags.GATE_POLICY_TAG},
    ).with_refusal(_unsigned_refusal(trail, needs_approvals="approvals" in policy))


def _model(trail: AuditTrail, message: "Message") -> RegistryChange | None:
    """Read the request to rename or delete a model. After a rename, the policy applies
    to the new name. None for a prompt.
    """
    model = registry().get_registered_model(message.name)
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
    ).with_refusal(_policy_refusal(model, f"{action} this model"))
    if not new_name or change.is_refused:
        return change
    entries = [
        served_entry(number, str(place), recorded_files(trail, model.name, number, place))
        for place, number in holders(model)
    ]
    return replace(
        change,
        detail={SERVED: [entry for entry in entries if entry["files"]]},
    )


def holders(model: "RegisteredModel") -> Iterator[tuple[StageOrAlias, str]]:
    """Yield the stages and aliases that endpoints may follow, with the version that
    they serve.
    """
    for version in model.latest_versions:
        if version.current_stage not in _UNSERVED_STAGES:
            yield StageOrAlias(stage=version.current_stage), str(version.version)
    for alias, number in model.aliases.items():
        yield StageOrAlias(alias=alias), str(number)


def recorded_files(trail: AuditTrail, model: str, version: str, place: StageOrAlias) -> str:
    """Return the digest of the files with which the version moved to the place; empty
    if it is not known.
    """
    with suppress(OnnxserveError):
        return served_files(trail.store(), model, version, str(place))
    return ""


def _adopted_files(trail: AuditTrail, model: "RegisteredModel", policy: str) -> list[Json]:
    """Return the files of the versions in the places that a new policy gates, and of
    the versions that they replaced.

    Files that are already recorded are not returned. The other versions moved there
    without this server, or before the policy. They stay served, and may return.
    """
    try:
        gates = policy_from_tags(model.name, {tags.GATE_POLICY_TAG: policy})
    except InvalidConfig:
        return []
    entries: list[Json] = []
    for place, number in holders(model):
        if gates is None or not gates.gates(place):
            continue
        moves = _moves_to(trail, model.name, number, place)
        replaced = (event.detail["moved"]["before"] for event in moves[:1])
        for version in filter(None, [number, *replaced]):
            if not recorded_files(trail, model.name, version, place):
                with suppress(NotFound):
                    entries.append(
                        served_entry(version, str(place), files_digest(model.name, version, gates))
                    )
    return entries


def _tag_change(trail: AuditTrail, message: "Message") -> RegistryChange | None:
    """Read the request to set or delete a tag of a version or a model. None if the
    guard does not watch the tag.
    """
    if hasattr(message, "version"):
        return _version_tag_change(message)
    return _policy_tag_change(trail, message)


def _version_tag_change(message: Any) -> RegistryChange | None:
    """Return the change of a version's tag: a refusal for the tags of a verdict, which
    only this server sets (`ui/verdicts.py`). None if the guard does not watch the tag.
    """
    is_of_verdict = message.key.startswith(tags.GATE_TAG)
    is_deleted = not hasattr(message, "value")
    if not (is_of_verdict or (is_deleted and message.key == ROLLED_BACK_TAG)):
        return None
    version = registry().get_model_version(message.name, message.version)
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


def _policy_tag_change(trail: AuditTrail, message: Any) -> RegistryChange | None:
    """Return the change of a model's gate policy, or None for another tag of the model.
    The detail contains the files that the new policy adopts.
    """
    if message.key != tags.GATE_POLICY_TAG:
        return None
    model = registry().get_registered_model(message.name)
    policy = getattr(message, "value", "")
    refusal = _policy_refusal(model, f"change its tag {message.key}")
    refusal = refusal or _unsigned_refusal(trail, needs_approvals="approvals" in policy)
    detail: Json = {"tag": message.key}
    if policy and not refusal:
        adopted = _adopted_files(trail, model, policy)
        if adopted:
            detail[SERVED] = adopted
    return RegistryChange(
        action="tag",
        model=message.name,
        before=model.tags.get(message.key, ""),
        after=policy,
        detail=detail,
        is_gated=True,
    ).with_refusal(refusal)


_READERS: dict[str, tuple[str, _Reader]] = {
    "_transition_stage": ("TransitionModelVersionStage", _transition),
    "_set_registered_model_alias": ("SetRegisteredModelAlias", _alias),
    "_delete_registered_model_alias": ("DeleteRegisteredModelAlias", _alias),
    "_delete_model_version": ("DeleteModelVersion", _version_deletion),
    "_create_registered_model": ("CreateRegisteredModel", _model_creation),
    "_rename_registered_model": ("RenameRegisteredModel", _model),
    "_delete_registered_model": ("DeleteRegisteredModel", _model),
    "_set_model_version_tag": ("SetModelVersionTag", _tag_change),
    "_delete_model_version_tag": ("DeleteModelVersionTag", _tag_change),
    "_set_registered_model_tag": ("SetRegisteredModelTag", _tag_change),
    "_delete_registered_model_tag": ("DeleteRegisteredModelTag", _tag_change),
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
    """Return why the caller may not make a change that removes required approvals or
    judges; empty if the caller may make it.
    """
    try:
        policy = policy_from_tags(model.name, model.tags)
        is_protected = policy is not None and bool(policy.approvals or policy.judges)
    except InvalidConfig:  # The policy is not valid, but may be meant to name people.
        text = model.tags[tags.GATE_POLICY_TAG]
        is_protected = "approvals" in text or "judges" in text
    if not is_protected or is_administrator():
        return ""
    return (
        f"only an administrator may {change}, because the gate policy of {model.name} requires "
        "approvals or names judges"
    )


def _unsigned_refusal(trail: AuditTrail, *, needs_approvals: bool) -> str:
    """Return why approvals cannot count on this server; empty if they can, or if none
    are needed.
    """
    if needs_approvals and trail.store().keys is None:
        return f"approvals need a signed audit trail, and {NO_KEY}"
    return ""


def _is_only_a_prompt(model: "RegisteredModel") -> bool:
    """Return True for a prompt. A model with a policy is not a prompt, because any user
    can set the prompt tag.
    """
    return bool(model._is_prompt()) and tags.GATE_POLICY_TAG not in model.tags


def _read(message: str) -> "Message":
    """Return the current request as MLflow reads it. Raise MlflowException if MLflow
    refuses it.
    """
    from mlflow.protos import model_registry_pb2
    from mlflow.server import handlers

    empty = getattr(model_registry_pb2, message)()
    texts = [field.name for field in empty.DESCRIPTOR.fields if field.type == field.TYPE_STRING]
    return handlers._get_request_message(
        empty,
        schema={name: [handlers._assert_string] for name in texts},
    )


def registry() -> "Registry":
    """Return MLflow's registry store, which runs in this process and needs no HTTP
    request.
    """
    from mlflow.server import handlers

    return handlers._get_model_registry_store()


def model_and_version(model: str, version: str) -> "tuple[RegisteredModel, ModelVersion]":
    return registry().get_registered_model(model), registry().get_model_version(model, version)


@contextmanager
def known_to_mlflow() -> Iterator[None]:
    """Raise NotFound instead of MLflow's exception within the block."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise NotFound(one_line(error)) from None


@dataclass(frozen=True)
class _Move:
    """A version that moves to a place, which `holder` has now."""

    trail: AuditTrail
    change: RegistryChange
    model: "RegisteredModel"
    version: "ModelVersion"
    place: StageOrAlias
    holder: str

    def decide(self) -> RegistryChange:
        """Return the change with the gate's reason for accepting or refusing the
        version.

        A version needs a passed verdict on its files, and the approvals of these files.
        The exceptions are:

        - The policy does not gate the place. If it requires approvals, the files are
          recorded, because a later policy may gate the place. Otherwise,
          `_adopted_files` records the files when a policy gates the place.
        - The version is already there. No version moves, and the recorded files stay
          the approved ones, unless the files that it has now have their own verdict and
          approvals.
        - The version returns, because `holder` replaced it. A rollback must not wait
          for a gate or for people. The version needs the files with which it was
          served.
        - The verdict is `forced`. It counts under any policy, because a person answers
          for these files.
        """
        try:
            policy = policy_from_tags(self.model.name, self.model.tags)
        except InvalidConfig as error:  # The unreadable policy may gate this stage.
            return self.change.with_refusal(
                f"{self._subject} was not moved to {self.place}: {error.message}"
            )
        if policy is not None and policy.gates(self.place):
            return self._decide_by_gate(policy)
        if policy is None or policy.approvals is None or self.place.stage in _UNSERVED_STAGES:
            return self._accepted()
        files, _ = self._read_files(policy)
        return self._accepted(detail=self._detail(files))

    def _decide_by_gate(self, policy: GatePolicy) -> RegistryChange:
        """Accept files with a verdict and approvals, a version that is already there,
        and the return of a version with the files that were served; refuse the rest.
        """
        files, unreadable = self._read_files(policy)
        status = _status(self.version, policy)
        if status.passed and unreadable:
            status = tags.GateStatus(False, "", unreadable)
        elif status.passed:
            status = status.on_files(files)
        if status.passed:
            subject = subject_of(self.version, self.place, files, policy)
            refusal = _missing_approvals(self.trail, policy, subject)
        else:
            refusal = (
                f"{self._subject} may not become {self.place}: {status.reason}. {self._remedy}"
            )
        if not refusal:
            # A version that has the place already with other recorded files is recorded
            # again.
            number = self.change.version
            detail = self._detail(files)
            has_new_files = (
                self.holder == number
                and recorded_files(self.trail, self.model.name, number, self.place) != files
            )
            if has_new_files:
                detail |= move_detail(detail["moved"]["place"], number, files)
            why = f"gate {status.state}: {status.reason}"
            return self._accepted(why=why, detail=detail, has_new_files=has_new_files)
        if self.holder == self.change.version:
            return self._accepted(why="already there")
        if self._is_return(policy):
            changed = unreadable or _changed_files(
                self.trail,
                self.model.name,
                self.change.version,
                self.place,
                files,
            )
            if not changed:
                return self._accepted(
                    why=f"rollback to the version before version {self.holder}; its gate: "
                    f"{status.reason}",
                    detail=self._detail(files) | {_ROLLBACK: True},
                )
            refusal = f"{self._subject} may not return to {self.place}: {changed}. {self._remedy}"
        return self.change.with_refusal(refusal)

    def _read_files(self, policy: GatePolicy) -> tuple[str, str]:
        """Return the digest of the version's files, or the reason why they cannot be
        read; the other text is empty.
        """
        try:
            return files_digest(self.model.name, self.change.version, policy), ""
        except NotFound as error:
            return "", error.message

    def _is_return(self, policy: GatePolicy) -> bool:
        """Return True if `holder` has replaced the version, which was not rolled back.

        With approvals, return False if `holder` itself came by a rollback.
        """
        if not self.holder or self._is_rolled_back:
            return False
        moves = _moves_to(self.trail, self.model.name, self.holder, self.place)
        if not moves or moves[0].detail["moved"]["before"] != self.change.version:
            return False
        return policy.approvals is None or not any(event.detail.get(_ROLLBACK) for event in moves)

    @property
    def _is_rolled_back(self) -> bool:
        return ROLLED_BACK_TAG in self.version.tags

    @property
    def _subject(self) -> str:
        return f"version {self.version.version} of {self.model.name}"

    @property
    def _remedy(self) -> str:
        return (
            f"`onnxserve promote models:/{self.model.name}/{self.change.version} "
            f"--to {self.place}` runs the gate and lists the failed checks"
        )

    def _detail(self, files: str) -> Json:
        moved = self.change.detail["moved"]
        return self.change.detail | move_detail(moved["place"], moved["before"], files)

    def _accepted(self, **fields: Any) -> RegistryChange:
        is_served_again = self._is_rolled_back and self.place.is_served_from
        return replace(self.change, is_served_again=is_served_again, **fields)


def _status(version: "ModelVersion", policy: GatePolicy) -> tags.GateStatus:
    """Return the verdict on the version by the current policy of its model."""
    status = tags.gate_status_of(version.tags)
    judged_by = version.tags.get(tags.GATE_POLICY_DIGEST_TAG, policy.digest)
    if status.passed and status.state != "forced" and judged_by != policy.digest:
        return tags.GateStatus(
            False,
            "",
            "it passed a different policy from the model's current policy",
        )
    return status


def _changed_files(
    trail: AuditTrail,
    model: str,
    version: str,
    place: StageOrAlias,
    files: str,
) -> str:
    """Return why `files` are not the files with which the version moved to the place;
    empty if they are.
    """
    recorded = served_files(trail.store(), model, version, str(place))
    if files and recorded == files:
        return ""
    if not recorded:
        return "the audit trail does not have the digest of the files that were served"
    present = files[:12] or "unknown"
    compared = f"sha256 {present}, served {recorded[:12]}"
    return (
        f"its files differ from the files that were served there ({compared}); restore the served "
        "files"
    )


def _uncovering_refusal(
    trail: AuditTrail,
    model: "RegisteredModel",
    version: "ModelVersion",
) -> str:
    """Return why the version may not leave its stage; empty if it may.

    In a stage, endpoints serve the highest version. If it leaves, the next version is
    served, as after a move. Neither a new verdict nor new approvals are needed, because
    the next version was let in, but its files must be the same. If they are not
    recorded, a verdict on its files counts too or, with approvals, the approvals of its
    files.
    """
    stage = StageOrAlias(stage=version.current_stage)
    try:
        policy = policy_from_tags(model.name, model.tags)
    except InvalidConfig:  # A version must be able to leave.
        return ""
    if policy is None or not policy.gates(stage):
        return ""
    versions = [
        entry
        for entry in all_versions(registry(), model.name)
        if entry.current_stage == stage.stage
    ]
    highest = sorted(versions, key=lambda entry: int(entry.version), reverse=True)
    if len(highest) < 2 or int(highest[0].version) != int(version.version):
        return ""
    below = highest[1]
    try:
        files = files_digest(below.name, str(below.version), policy)
        if policy.approvals is None:
            is_right = _status(below, policy).on_files(files).passed
        else:
            is_right = files in approved_files(trail.store(), policy, below)
        if is_right:
            changed = ""
        else:
            changed = _changed_files(trail, below.name, str(below.version), stage, files)
    except NotFound as error:
        changed = error.message
    return changed and (
        f"version {version.version} of {model.name} may not leave {stage}, because version "
        f"{below.version} would then be served: {changed}, or archive version {below.version} "
        "first"
    )


def _missing_approvals(trail: AuditTrail, policy: GatePolicy, subject: Subject) -> str:
    """Return why the promotion lacks approvals; empty if it needs none, or has all.
    Raises StoreUnavailable.
    """
    if policy.approvals is None:
        return ""
    refusal = _unsigned_refusal(trail, needs_approvals=True)
    if refusal:
        return f"{subject} is refused: {refusal}"
    page = console_page(model=subject.model)
    missing = missing_approvals(trail.store(), policy, subject, page)
    login = "" if caller().user else ". An approval requires a login, and this caller is anonymous"
    return missing and missing + login


def console_page(path: str = "", **query: str) -> str:
    """Return the URL of a page of the console, with the request's Host unless
    ONNXSERVE_MLFLOW_URL is set.
    """
    here = f"{request.host_url.rstrip('/')}{static_prefix()}"
    base = load_settings().mlflow_url.rstrip("/") or here
    if name := active_workspace():
        query["workspace"] = name
    return f"{base}/onnxserve{path}?{urlencode(query)}"


def promotion_now(
    model: str,
    version: str,
    place: StageOrAlias,
) -> tuple[GatePolicy, Subject]:
    """Return the model's gate policy, and the promotion of the version as it is now,
    for an approval.

    Raises InvalidConfig if the policy is missing or invalid, NotFound if the files
    cannot be read, and MLflow's exception if the version does not exist.
    """
    registered, entry = model_and_version(model, version)
    policy = policy_from_tags(model, registered.tags)
    if policy is None:
        raise InvalidConfig(
            f"model {model} has no gate policy (tag {tags.GATE_POLICY_TAG}), so it needs no "
            "approvals"
        )
    return policy, subject_of(
        entry,
        place,
        files_digest(model, str(entry.version), policy),
        policy,
    )


def read_report(run_id: str) -> bytes:
    """Return the gate report in MLflow, which people who may edit the run can replace.
    Raises NotFound if the report cannot be read.
    """
    from mlflow.server import handlers

    with (
        _reading(f"the gate report of run {run_id}"),
        tempfile.TemporaryDirectory() as folder,
    ):
        address = handlers._get_tracking_store().get_run(run_id).info.artifact_uri
        return fetch_file(address, Path(folder), tags.GATE_REPORT_FILE).read_bytes()


def report_digest(run_id: str) -> str:
    """Return the SHA-256 of the gate report in MLflow. Raises NotFound."""
    return hashlib.sha256(read_report(run_id)).hexdigest()


class OwnStores:
    """The stores of this process with the caller's permissions, and with methods of
    MLflow's client for `record_of`.

    Only administrators may read runs, because a login does not report permissions for
    experiments.
    """

    def get_model_version(self, name: str, version: str) -> "ModelVersion":
        if not may_read(name):
            raise NotFound(f"there is no registered model {name} that you may read")
        return registry().get_model_version(name, version)

    def get_model_version_download_uri(self, name: str, version: str) -> str:
        return str(registry().get_model_version_download_uri(name, version))

    def get_run(self, run_id: str) -> "Run":
        from mlflow.server import handlers

        if not is_administrator():
            raise NotFound(f"only an administrator may read the run {run_id} here")
        return handlers._get_tracking_store().get_run(run_id)


def fetch_file(address: str, folder: Path, name: str) -> Path:
    """Copy the file `name` of the folder at `address` to `folder`. Raises NotFound,
    also for a large file.
    """
    with _reading(f"the file {name}"):
        store, root = artifact_store(address)
        path = f"{root}/{name}".lstrip("/")
        sizes = {entry.path: entry.file_size for entry in store.list_artifacts(root or None)}
        if (size := sizes.get(path)) is not None and size <= _RECORD_BYTES:
            return Path(store.download_artifacts(path, str(folder)))
    raise NotFound(f"the file {name} does not exist, or is larger than {_RECORD_BYTES:,} bytes")


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Raise NotFound if an artifact store, which has its own exceptions, cannot read
    `what` within the block.
    """
    try:
        yield
    except Exception:  # noqa: BLE001 - It becomes an error of onnxserve.
        _log.exception("%s cannot be read", what)
        raise NotFound(f"{what} cannot be read (see the log of MLflow's server)") from None


def files_digest(model: str, version: str, policy: GatePolicy | None) -> str:
    """Return the digest of all files of a version. Raises NotFound if they cannot be
    read.

    If the policy requires approvals, all files are read. Otherwise, files with the same
    names and sizes and the same MLmodel file are read only once.
    """
    with _reading(f"version {version} of {model}"):
        uri = registry().get_model_version_download_uri(model, version)
        store, root = artifact_store(uri)
        files = []
        folders = [root]
        while folders:
            for entry in store.list_artifacts(folders.pop() or None):
                if entry.is_dir:
                    folders.append(entry.path)
                elif not is_extra_file(Path(entry.path).relative_to(root)):
                    files.append((entry.path, entry.file_size))
        mlmodel = _sha256(store, f"{root}/{MLMODEL}".lstrip("/"))
        read = (
            _digest_of_files
            if policy is None or policy.approvals is None
            else _digest_of_files.__wrapped__
        )
        return read(uri, root, tuple(sorted(files)), mlmodel)


@lru_cache(maxsize=256)
def _digest_of_files(
    uri: str,
    root: str,
    files: tuple[tuple[str, int], ...],
    _mlmodel: str,
) -> str:
    """Return the digest of `files` (with sizes) in `root` of the artifact store.
    `_mlmodel` is a cache key.
    """
    store, _ = artifact_store(uri)
    return combine_hashes({Path(path).relative_to(root): _sha256(store, path) for path, _ in files})


def artifact_store(uri: str) -> tuple["ArtifactRepository", str]:
    """Return the artifact store of `uri` and its folder there, as MLflow's server
    resolves them.
    """
    from mlflow.server import handlers
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if not handlers._is_servable_proxied_run_artifact_root(uri):
        return get_artifact_repository(uri), ""
    folder = handlers._get_proxied_run_artifact_destination_path(uri)
    return (
        handlers._get_artifact_repo_mlflow_artifacts(),
        handlers._get_workspace_scoped_repo_path_if_enabled(folder),
    )


def _sha256(store: "ArtifactRepository", path: str) -> str:
    with tempfile.TemporaryDirectory(prefix="onnxserve-guard-") as folder:
        store.download_artifacts(path, folder)
        return next(iter(hash_files(Path(folder)).values()))


def _moves_to(
    trail: AuditTrail,
    model: str,
    holder: str,
    place: StageOrAlias,
) -> list[AuditEvent]:
    """Return the events of the last move of `holder` to the stage or alias, newest
    first; none if they are not known.

    A move may have several events, by MLflow and by a command.
    """
    moves: list[AuditEvent] = []
    with suppress(OnnxserveError):
        for event in reversed(trail.store().counted_events(model, _MOVES_OR_ENDS)):
            if not event.endpoint and event.action in ("rename", "delete"):
                break  # Earlier versions belong to a different model.
            moved = event.detail.get("moved")
            if not moved or moved["place"].lower() != str(place).lower():
                continue
            if event.version == moved["before"]:
                continue  # The version was already there, and its files were approved again.
            if event.version == holder:
                moves.append(event)
            elif moves:
                break
        return moves
    return []


def check_views(app: Flask, served: "Flask | FastAPI") -> None:
    """Raise OnnxserveError if MLflow's Flask app lacks a view that the gate wraps, or
    if a route of `served` before the Flask app answers the view's requests.
    """
    from starlette.routing import Match

    # A Flask app has no attribute `routes`. FastAPI contains it at the path "".
    routes = getattr(served, "routes", ())
    before = [*takewhile(lambda route: getattr(route, "path", None) != "", routes)]
    for view in (*_READERS, _NEW_VERSION):
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
    for view, (message, read) in _READERS.items():  # A request that cannot be read is refused.
        app.view_functions[view] = catch_mlflow_exception(
            _guarded(app.view_functions[view], message, read, trail)
        )
    create = app.view_functions[_NEW_VERSION]

    def create_without_verdict(**arguments: Any) -> Response:
        """Create a version without gate tags, because MLflow may copy the tags of a
        version of another model.
        """
        response = make_response(create(**arguments))
        if response.status_code == 200:
            version = response.get_json()["model_version"]
            for tag in version.get("tags", ()):
                if tag["key"].startswith(tags.GATE_TAG) or tag["key"] in (
                    tags.ERROR_TAG,
                    ROLLED_BACK_TAG,
                ):
                    registry().delete_model_version_tag(
                        version["name"],
                        version["version"],
                        tag["key"],
                    )
            _record_authors(trail, version)
        return response

    app.view_functions[_NEW_VERSION] = create_without_verdict


def _record_authors(trail: AuditTrail, version: Json) -> None:
    """Record who created a version. The authors of a copied version are also authors of
    the copy.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.utils.models import _parse_model_uri

    name = version["name"]
    number = version["version"]
    authors = [*filter(None, [caller().user])]
    try:
        source = _read("CreateModelVersion").source
        if urlsplit(source).scheme == "models" and (copied := _parse_model_uri(source)).version:
            original = registry().get_model_version(copied.name, copied.version)
            authors += version_authors(
                trail.store(),
                str(original.version),
                int(original.creation_timestamp),
            )
    except (MlflowException, OnnxserveError) as error:
        # The version exists, so the request has succeeded.
        _log.error(
            "%s version %s is a copy, and the authors of its source cannot be read: %s",
            name,
            number,
            error,
        )
    detail = {"created": int(version["creation_timestamp"]), "authors": authors}
    change = RegistryChange(
        action="register",
        model=name,
        version=number,
        before="",
        after=f"version {number}",
        detail=detail,
    )
    _record(trail.record, change, change.action)


def _guarded(
    view: Callable[..., Any],
    message: str,
    read: _Reader,
    trail: AuditTrail,
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
        requested = _read(message)
        try:
            change = read(trail, requested)
            if change is not None and change.is_refused:
                record = trail.record_now if change.is_gated else trail.record
                _record(record, change, "refused")
                refusal = jsonify(error_code="PERMISSION_DENIED", message=change.why)
                return make_response(refusal, 403)
            intention: Json = {}
            if change is not None and change.is_gated and change.is_recorded:
                intention = {INTENTION: secrets.token_hex(8)}
                detail = {**intention, INTENDED: change.action}
                _record(trail.record_now, change, INTEND, detail)
        except OnnxserveError as error:
            text = f"nothing was changed, because the audit trail is away: {error.message}"
            refusal = jsonify(error_code=StoreUnavailable.error_code, message=text)
            return make_response(refusal, 503, {"Retry-After": str(_RETRY_AFTER_SECONDS)})
        response = make_response(view(**arguments))
        if response.status_code != 200:
            if change is not None and intention and _is_unmade(trail, change, read, requested):
                why = f"MLflow's server answered {response.status_code}"
                _record(trail.record, replace(change, why=why), FAILED, intention)
            return response
        if change is not None:
            if change.is_recorded:
                _record(trail.record, change, change.action, intention)
            if change.is_served_again:
                registry().delete_model_version_tag(change.model, change.version, ROLLED_BACK_TAG)
        if change is None or not change.is_recorded or change.is_served_again:
            trail.notify_agents(requested.name)
        return response

    return guarded


def _is_unmade(
    trail: AuditTrail,
    change: RegistryChange,
    read: _Reader,
    requested: "Message",
) -> bool:
    """Return True if the registry is as before the change. It may be unreadable after
    an error of MLflow, which may have made the change.
    """
    from mlflow.exceptions import MlflowException

    try:
        now = read(trail, requested)
    except (MlflowException, OnnxserveError):
        return False
    return now is not None and now.before == change.before


def _record(
    record: Callable[[AuditEvent], None],
    change: RegistryChange,
    action: str,
    intention: Json | None = None,
) -> None:
    """Record a change by the caller; a rename is recorded for the old and the new
    name.
    """
    who = caller()
    models = [change.model]
    if change.action == "rename":
        models.append(change.after)
    detail = {"via": "mlflow", "address": who.address, **change.detail, **(intention or {})}
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
