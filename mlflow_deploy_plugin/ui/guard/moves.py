"""The decision on a change of a stage or an alias.

Every version in a gated stage or alias has the files that were judged or, with
approvals, approved. `Move.decide` and `uncovering_refusal` list the exceptions with
their reasons. For this purpose, each move to a gated place records the digest of the
version's files (`core/store/served_files.py`). Without a policy, no files are read.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from flask import request

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.registry.policy import GatePolicy, policy_from_tags
from mlflow_deploy_plugin.core.registry.resolution import all_versions, newest
from mlflow_deploy_plugin.core.registry.tags import GATE_POLICY_TAG, PASSED_STATES, GateStatus
from mlflow_deploy_plugin.core.registry.transitions import ROLLED_BACK_TAG, StageOrAlias
from mlflow_deploy_plugin.core.settings import active_workspace, load_settings
from mlflow_deploy_plugin.core.store.audit import AuditEvent, move_detail
from mlflow_deploy_plugin.core.store.audit_verify import BROKEN
from mlflow_deploy_plugin.core.store.served_files import (
    MOVES,
    OUTSIDE,
    REPLACED,
    ROLLBACK,
    SERVED,
    Stay,
    served_entry,
    stay_of,
)
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.promote.gate.approvals import (
    Subject,
    approved_files,
    missing_approvals,
    subject_of,
)
from mlflow_deploy_plugin.ui.access import caller, static_prefix
from mlflow_deploy_plugin.ui.audit_trail import NO_KEY, AuditTrail
from mlflow_deploy_plugin.ui.guard.mlflow_stores import files_digest, model_and_version, registry

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

UNSERVED_STAGES = ("None", "Archived")
"""The stages that no endpoint serves."""


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
        has_new_files: True if the version has its place, and its files there are not
            recorded yet, or its move is not.
        witnesses: the number of witnesses that must cosign the intention.
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
    witnesses: int = 0

    def with_refusal(self, reason: str) -> "RegistryChange":
        """Return the change, which is refused unless the reason is empty."""
        return replace(self, why=reason, is_refused=bool(reason))

    def with_version(self, made: Json) -> "RegistryChange":
        """Return the registration of the version that MLflow has created, which is a
        document of MLflow's API.
        """
        number = made["version"]
        detail = self.detail | {"created": int(made["creation_timestamp"])}
        after = f"version {number}"
        return replace(self, version=number, before="", after=after, detail=detail)

    @property
    def is_recorded(self) -> bool:
        """True if something differs after the change."""
        has_moved_others = self.detail.get("archived") or self.detail.get(SERVED)
        return self.before != self.after or self.has_new_files or bool(has_moved_others)


def holders(model: "RegisteredModel") -> Iterator[tuple[StageOrAlias, str]]:
    """Yield the stages and aliases that endpoints may follow, with the version that
    they serve.
    """
    for version in model.latest_versions:
        if version.current_stage not in UNSERVED_STAGES:
            yield StageOrAlias(stage=version.current_stage), str(version.version)
    for alias, number in model.aliases.items():
        yield StageOrAlias(alias=alias), str(number)


def valid_policy(model: "RegisteredModel") -> GatePolicy | None:
    """Return None without a policy, and for an invalid policy."""
    with suppress(InvalidConfig):
        return policy_from_tags(model.name, model.tags)
    return None


def stays(store: Store, model: "RegisteredModel") -> Iterator[tuple[StageOrAlias, str, Stay]]:
    """Yield the `holders`, each with its stay. Raises StoreUnavailable."""
    events = store.counted_events(model.name, MOVES)
    for place, version in holders(model):
        yield place, version, stay_of(events, version, place)


def outside_changes(store: Store, model: "RegisteredModel") -> Iterator[RegistryChange]:
    """Yield the versions in gated places that did not move there through this server.
    The action is empty if an event reports this already. Raises StoreUnavailable.
    """
    policy = valid_policy(model)
    if policy is None:
        return
    for place, version, stay in stays(store, model):
        if policy.gates(place) and not stay.is_counted:
            yield RegistryChange(
                OUTSIDE if stay.is_counted is None else "",
                model.name,
                version,
                after=f"version {version} in {place}",
                why=f"version {version} is in {place}, but did not move there through this server",
                detail=move_detail(str(place), ""),
            )


def unsigned_refusal(trail: AuditTrail, *, needs_approvals: bool) -> str:
    """Return why approvals cannot count on this server; empty if they can, or if none
    are needed.
    """
    if needs_approvals and trail.store().keys is None:
        return f"approvals need a signed audit trail, and {NO_KEY}"
    return ""


@dataclass(frozen=True)
class Move:
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
          `_model_tag` records the files when a policy gates the place.
        - The version is already there by a counted move. No version moves, and the
          recorded files stay the approved ones, unless the files that it has now have
          their own verdict and approvals.
        - The version returns, because `holder` replaced it, by a move or past this
          server. A rollback must not wait for a gate or for people. The version needs
          the files with which it was served.
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
        if policy is None or policy.approvals is None or self.place.stage in UNSERVED_STAGES:
            return self._accepted()
        files, _ = self._read_files()
        return self._accepted(detail=self._detail(files))

    def _decide_by_gate(self, policy: GatePolicy) -> RegistryChange:
        """Accept files with a verdict and approvals, a version that is already there,
        and the return of a version with the files that were served; refuse the rest.
        """
        files, unreadable = self._read_files()
        events = self.trail.store().counted_events(self.model.name, MOVES)
        status = gate_status(events, self.version, policy)
        is_there = self.holder == self.change.version
        stay = stay_of(events, self.change.version, self.place)
        if status.passed and unreadable:
            status = GateStatus(reason=unreadable)
        elif status.passed:
            status = status.on_files(files)
        if status.passed:
            refusal = _missing_approvals(
                self.trail, policy, subject_of(self.version, self.place, files, policy)
            )
        else:
            refusal = (
                f"{self._subject} may not become {self.place}: {status.reason}. {self._remedy}"
            )
        if not refusal:
            # A version that has the place already with other recorded files, or without
            # a counted move, is recorded again.
            detail = self._detail(files)
            has_new_files = is_there and not (stay.is_counted and stay.files == files)
            if has_new_files:
                detail |= move_detail(detail["moved"]["place"], self.holder, files)
            return self._accepted(
                why=f"gate {status.state}: {status.reason}",
                detail=detail,
                has_new_files=has_new_files,
            )
        if stay.is_counted and is_there:
            return self._accepted(why="already there")
        # A version returns that `holder` has replaced by a counted move. It was not
        # rolled back: it has no such tag, which an editor may delete, and `holder`
        # itself is not there by a rollback.
        holder = stay_of(events, self.holder, self.place)
        is_replaced = holder.is_counted and holder.replaced == self.change.version
        if stay.is_counted or (is_replaced and not self._is_rolled_back):
            changed = unreadable or _changed_files(stay.files, files)
            if not changed:
                return self._accepted(
                    why=f"rollback to the version before version {self.holder}; its gate: "
                    f"{status.reason}",
                    detail=self._detail(files) | {ROLLBACK: True},
                )
            refusal = f"{self._subject} may not return to {self.place}: {changed}. {self._remedy}"
        return self.change.with_refusal(refusal)

    def _read_files(self) -> tuple[str, str]:
        """Return the digest of the version's files, or the reason why they cannot be
        read; the other text is empty.
        """
        try:
            return files_digest(self.model.name, self.change.version), ""
        except NotFound as error:
            return "", error.message

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


def last_verdict(events: Sequence[AuditEvent], version: "ModelVersion") -> AuditEvent | None:
    """Return the last verdict on the version from the counted events `MOVES` of its
    model. The tags of the version are not read, because MLflow's database has other
    writers, and MLflow copies them to a copy in another model.

    Events of another version of the same number, which was created at another time, and
    verdicts before a fault of the trail do not count. The registration of a version is
    recorded before its verdict (`ensure_registered`).
    """
    created = int(version.creation_timestamp)
    verdict = None
    for event in events:
        if event.action == BROKEN or event.ends_model:
            verdict = None
        is_of_version = event.detail.get("created", created) == created
        if event.action != "gate" or event.version != str(version.version) or not is_of_version:
            continue
        if event.detail.get("tagged"):
            verdict = event
    return verdict


def gate_status(
    events: Sequence[AuditEvent], version: "ModelVersion", policy: GatePolicy
) -> GateStatus:
    """Return the verdict on the version (`last_verdict`) by the policy."""
    verdict = last_verdict(events, version)
    if verdict is None:
        command = f"onnxserve gate models:/{version.name}/{version.version}"
        return GateStatus(reason=f"the audit trail has no verdict on it; run `{command}`")
    state = verdict.after
    detail = verdict.detail
    if state == "forced" and policy.judges and detail.get("account") not in policy.judges:
        reason = f"{verdict.actor}, who forced it, is not a judge of the model's current policy"
    elif state not in ("forced", "failed") and detail.get("policy_digest") != policy.digest:
        reason = "it passed a different policy from the model's current policy"
    else:
        passed = state in PASSED_STATES
        return GateStatus(passed, state, verdict.why, digest=detail.get("files", ""))
    return GateStatus(reason=reason)


def _changed_files(recorded: str, files: str) -> str:
    """Return why `files` are not the files with which the version moved to the place;
    empty if they are.
    """
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


def uncovering_refusal(trail: AuditTrail, model: "RegisteredModel", version: "ModelVersion") -> str:
    """Return why the version may not leave its stage; empty if it may.

    In a stage, endpoints serve the highest version. If it leaves, the next version is
    served, as after a move. Neither a new verdict nor new approvals are needed, because
    the next version was let in, but its files must be the same. If they are not
    recorded, a verdict on its files counts too or, with approvals, the approvals of its
    files.
    """
    stage = StageOrAlias(stage=version.current_stage)
    policy = valid_policy(model)  # With an invalid policy, a version must be able to leave.
    if policy is None or not policy.gates(stage):
        return ""
    below = newest(
        entry
        for entry in all_versions(registry(), model.name)
        if entry.current_stage == stage.stage and entry.version != version.version
    )
    if below is None or int(below.version) > int(version.version):
        return ""
    try:
        files = files_digest(below.name, str(below.version))
        events = trail.store().counted_events(model.name, MOVES)
        if policy.approvals is None:
            is_right = gate_status(events, below, policy).on_files(files).passed
        else:
            is_right = files in approved_files(trail.store(), policy, below)
        recorded = stay_of(events, str(below.version), stage).files
        changed = "" if is_right else _changed_files(recorded, files)
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
    refusal = unsigned_refusal(trail, needs_approvals=policy.approvals is not None)
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


def promotion_now(model: str, version: str, place: StageOrAlias) -> tuple[GatePolicy, Subject]:
    """Return the model's gate policy, and the promotion of the version as it is now,
    for an approval.

    Raises InvalidConfig if the policy is missing or invalid, NotFound if the files
    cannot be read, and MLflow's exception if the version does not exist.
    """
    registered, entry = model_and_version(model, version)
    policy = policy_from_tags(model, registered.tags)
    if policy is None:
        raise InvalidConfig(
            f"model {model} has no gate policy (tag {GATE_POLICY_TAG}), so it needs no approvals"
        )
    return policy, subject_of(entry, place, files_digest(model, str(entry.version)), policy)


def adopted_entries(trail: AuditTrail, model: "RegisteredModel", policy: GatePolicy) -> list[Json]:
    """Return the `served_entry` of the versions in the places that a new policy gates,
    and of the versions that they replaced, unless their files are recorded already.

    These versions moved there without this server, or before the policy. They stay
    served, and may return. Raises StoreUnavailable.
    """
    adopted: list[Json] = []
    events = trail.store().counted_events(model.name, MOVES)
    for place, number in holders(model):
        if not policy.gates(place):
            continue
        for version in filter(None, (number, stay_of(events, number, place).replaced)):
            if stay_of(events, version, place).files:
                continue
            with suppress(NotFound):
                entry = served_entry(version, place, files_digest(model.name, version))
                adopted.append(entry | {REPLACED: version != number})
    return adopted
