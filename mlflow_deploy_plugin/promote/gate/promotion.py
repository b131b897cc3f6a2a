"""Promotion: run the gate, move the stage or the alias, and record the gate and the
move in the audit trail.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.errors import GateRefused, InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.core.registry import tags, transitions
from mlflow_deploy_plugin.core.registry.connection import (
    no_request_timeout,
    registry_client,
    registry_errors,
)
from mlflow_deploy_plugin.core.registry.model_files import version_digest
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.policy import (
    ALL_PERMISSIONS,
    GatePolicy,
    Permissions,
    choose_policy,
)
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel, registered_version
from mlflow_deploy_plugin.core.registry.transitions import StageOrAlias
from mlflow_deploy_plugin.core.store.audit import move_detail
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.promote.gate.approvals import missing_approvals, subject_of
from mlflow_deploy_plugin.promote.gate.recording import VerdictRecord, write_verdict
from mlflow_deploy_plugin.promote.gate.run import GateRun, gate_version, store_or_default

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Promotion:
    """The result of a promotion.

    Attributes:
        to: the stage or @alias.
        before: the previous version in the stage or alias, or empty.
        gate: a passed `VerdictState`, `forced`, or `not asked` if the policy does not
            gate the stage or alias.
        report: the URL of the gate's report, or empty.
        is_moved: False if the version already had the stage or alias.
    """

    model: str
    version: str
    to: str
    uri: str
    before: str
    gate: str
    reason: str
    report: str
    is_moved: bool = True

    @property
    def location_text(self) -> str:
        where = "has the alias" if self.to.startswith("@") else "is in"
        return f"{where} {self.to}"


@transitions.one_act()
def promote(
    model: str,
    version: str,
    to: str,
    force: bool = False,
    why: str = "",
    actor: str | None = None,
    *,
    policy_file: Path | None = None,
    store: Store | None = None,
    progress: ProgressCallback = lambda line: None,
    allowed: Permissions = ALL_PERMISSIONS,
    original: str = "",
    is_request: bool = False,
    is_trial: bool = False,
) -> Promotion:
    """Move a version to a stage or an alias if it passes the gate that the policy
    requires.

    A fresh passed verdict is reused, and with `force` also a fresh failed verdict. A
    verdict is fresh if the policy, the files of the version and the compared version
    have not changed, and if its age is below the policy's limit. Otherwise the gate is
    run. If only this version has the stage or alias and it passed the gate, no change
    is made. The approvals that the policy requires are read from the store. `force`
    does not replace approvals.

    Args:
        to: a stage or @alias.
        force: ignore the gate's verdict, and record this in the version's tag and in
            the audit trail.
        actor: the user in the audit trail; default: the user of this process.
        store: the store of the audit trail; default: the store of this machine.
        allowed: what the gate may do: run the code of models, and read files.
        original: the URI of the torch model that the version was made from; default:
            named by the version.
        is_request: only run the gate, because people must approve the promotion before
            the version is moved.
        is_trial: return what would happen, without a run of the gate, a move or an
            event.

    Raises GateRefused if the version failed the gate, was rolled back without `force`
    or lacks approvals, ScopeMissing if the gate must be run and this user is not a
    judge of the policy, InvalidConfig if an argument or the policy is not valid or
    MLflow refuses the move, CodeRefused if a version has no ONNX form and its code may
    not run, NotFound, RegistryUnavailable, and StoreUnavailable.
    """
    if force and not why.strip():
        raise InvalidConfig("a forced promotion requires a reason (--why)")
    place = transitions.parse_stage_or_alias(to)
    candidate = registered_version(model, version)
    choice = choose_policy(model, policy_file)
    if not choice.is_models_own:
        raise InvalidConfig(
            f"model {model} already has a policy, in its tag {tags.GATE_POLICY_TAG}; omit the file"
        )
    if is_request:
        choice.policy.required_approvals(model, place)
    with store_or_default(store) as trail:
        before = transitions.version_at(model, place, exclude=candidate.version)
        user = actor or trail.user
        with registry_errors(f"model {candidate.name} version {candidate.version}"):
            entry = registry_client().get_model_version(candidate.name, candidate.version)
        request = _Request(
            trail=trail,
            force=force,
            progress=progress,
            candidate=candidate,
            entry=entry,
            place=place,
            before=before,
            policy=choice.policy,
            why=why,
            actor=user,
            run_gate=partial(
                gate_version,
                candidate,
                before,
                choice,
                user,
                trail,
                progress,
                allowed=allowed,
                original=original,
            ),
        )
        if is_trial:
            return request.foresee()
        return request.judge() if is_request else request.judge_and_move()


@dataclass(frozen=True)
class _Request:
    """A requested promotion, whose events are recorded in `trail`.

    Attributes:
        entry: the candidate in the registry.
        before: the current version in `place`.
        run_gate: judges the candidate now.
    """

    trail: Store
    force: bool
    progress: ProgressCallback
    candidate: ResolvedModel
    entry: "ModelVersion"
    place: StageOrAlias
    before: ResolvedModel | None
    policy: GatePolicy
    why: str
    actor: str
    run_gate: Callable[[], GateRun]

    def foresee(self) -> Promotion:
        """Return the promotion that would follow from the recorded verdict, without a
        change. Raises GateRefused if the version was rolled back or lacks approvals.
        """
        if self.rollback_refusal and not self.force:
            raise GateRefused(self.rollback_refusal)
        if self.is_there():
            status = self.ungated() or self.verdict
            if status.passed:
                return self.promotion(status, is_moved=False)
        if reason := self.missing_approvals(self.verdict.digest):
            raise GateRefused(reason)
        recorded = self.verdict.state or "nothing"
        unknown = tags.GateStatus(False, "would be run", f"recorded: {recorded}")
        return self.promotion(self.ungated() or self.reusable_verdict() or unknown)

    def judge(self) -> Promotion:
        """Run the gate without moving the version."""
        self.require_not_rolled_back()
        return self.promotion(self.require_gate(), is_moved=False)

    def judge_and_move(self) -> Promotion:
        """Run the gate, check the approvals, and move the version. A version that has
        the place and passed the gate remains there.
        """
        self.require_not_rolled_back()
        if is_there := self.is_there():
            status = self.ungated() or self.verdict
            if status.passed:
                return self.stay(status)
        status = self.require_gate()
        if not is_there and (reason := self.missing_approvals(status.digest)):
            self.record("refused", replace(status, passed=False, reason=reason))
            raise GateRefused(reason)
        if not status.passed:
            status = self.record_forced(status)
        elif not self.force:
            self.require_same_current_version()
        self.progress(f"moving version {self.candidate.version} to {self.place}")
        self.move()
        self.record("promote", status)
        return self.promotion(status)

    @cached_property
    def verdict(self) -> tags.GateStatus:
        """The verdict from the tags, which is void if the version's files have
        changed.
        """
        status = tags.gate_status_of(self.entry.tags)
        if status.state:
            return status.on_files(version_digest(self.candidate.source))
        return status

    @cached_property
    def rollback_refusal(self) -> str:
        """The reason why the version must not return to `place` after its rollback;
        empty if there was no rollback.
        """
        return transitions.rolled_back_refusal(
            self.candidate.name, self.candidate.version, self.place, self.entry.tags
        )

    def is_there(self) -> bool:
        """Return True if only this version has the stage or alias."""
        if self.rollback_refusal or self.before is not None:
            return False
        return transitions.version_at(self.candidate.name, self.place) is not None

    def require_not_rolled_back(self) -> None:
        """Raise GateRefused, and record the refusal, if the version was rolled back,
        without `force`.
        """
        reason = self.rollback_refusal
        if reason and not self.force:
            state = tags.gate_status_of(self.entry.tags).state
            self.record("refused", tags.GateStatus(False, state, reason))
            raise GateRefused(reason)

    def require_gate(self) -> tags.GateStatus:
        """Return the gate status. Raise GateRefused, and record the refusal, if the
        version failed, without `force`.
        """
        status = self.gate_status()
        if status.passed or self.force:
            return status
        report = f"; report: {status.report}" if status.report else ""
        self.record("refused", status)
        raise GateRefused(
            f"{self.candidate.name} version {self.candidate.version} cannot be promoted to "
            f"{self.place}, because it has not passed its gate: {status.reason}{report}"
        )

    def missing_approvals(self, files: str) -> str:
        """Return why the version with these files lacks approvals for `place`; empty if
        it needs none, or has approvals that are not used up.
        """
        subject = subject_of(self.entry, self.place, files, self.policy)
        return missing_approvals(self.trail, self.policy, subject)

    def require_same_current_version(self) -> None:
        """Raise GateRefused if another version moved to a gated place during the
        gate.
        """
        if not self.policy.gates(self.place):
            return
        version = self.candidate.version
        now = transitions.version_at(self.candidate.name, self.place, exclude=version)
        if now is not None and (self.before is None or now.version != self.before.version):
            raise GateRefused(
                f"version {now.version} moved to {self.place} while version {version} was "
                f"judged; promote version {version} again to compare both versions"
            )

    def gate_status(self) -> tags.GateStatus:
        """Return the gate status of the version for `place`. The gate is run unless
        there is a fresh verdict.
        """
        if (ungated := self.ungated()) is not None:
            return ungated
        try:
            if reused := self.reusable_verdict():
                return reused
            gated = self.run_gate()
            judged = gated.verdict
            return tags.GateStatus(
                judged.passed, judged.state, judged.reason, gated.report, judged.digest
            )
        except OnnxserveError as error:
            if not self.force:
                raise
            reason = f"the gate could not be run: {error.message}"
        digest = ""
        with suppress(OnnxserveError):  # Unreadable files have no digest, and are not served.
            digest = version_digest(self.candidate.source)
        return tags.GateStatus(reason=reason, digest=digest)

    def reusable_verdict(self) -> tags.GateStatus | None:
        """Return the fresh verdict if it passed or, with `force`, failed; None if the
        gate must be run.
        """
        counted = ["passed", tags.PASSED_WITHOUT_EVALUATION]
        if self.force:
            counted.append("failed")
        if not self.is_fresh() or self.verdict.state not in counted:
            return None
        at = self.entry.tags[tags.GATE_AT_TAG]
        self.progress(
            f"the verdict on version {self.candidate.version} from {at} is {self.verdict.state}"
        )
        return self.verdict

    def ungated(self) -> tags.GateStatus | None:
        """Return the status of a place that the policy does not gate; None for a gated
        place.
        """
        if self.policy.gates(self.place):
            return None
        return tags.GateStatus(True, "not asked", f"the policy does not gate {self.place}")

    def stay(self, status: tags.GateStatus) -> Promotion:
        """Return the promotion of a version that is in `place`. Move it again if
        MLflow's server decides about the move, so that it records newly approved files,
        or a move that it has not made.
        """
        is_decided = self.trail.login.registry and self.policy.gates(self.place)
        if is_decided and not self.missing_approvals(self.verdict.digest):
            self.require_same_current_version()
            self.move()
        promotion = self.promotion(status, is_moved=False)
        return replace(promotion, before=self.candidate.version)

    def move(self) -> None:
        """Move the version to `place`, without a timeout, because MLflow's server may
        first read all its files.
        """
        reference = parse_model_uri(self.place.uri(self.candidate.name))
        with no_request_timeout:
            transitions.move_version(
                reference, self.candidate.version, clears_rollback=self.place.is_served_from
            )

    def is_fresh(self) -> bool:
        """Return True if the verdict is by this policy, against the current version,
        and younger than the limit of the policy.
        """
        try:
            age = datetime.now(UTC) - datetime.fromisoformat(self.entry.tags[tags.GATE_AT_TAG])
        except (KeyError, ValueError, TypeError):
            return False
        against = self.before.source if self.before else ""
        return (
            self.entry.tags.get(tags.GATE_POLICY_DIGEST_TAG) == self.policy.digest
            and self.entry.tags.get(tags.GATE_AGAINST_TAG, "") == against
            and abs(age) < timedelta(hours=self.policy.fresh_hours)
        )

    def record_forced(self, status: tags.GateStatus) -> tags.GateStatus:
        """Record that the version is forced before the move, because endpoints that
        require the gate read its tag.
        """
        reason = f"forced by {self.actor}: {self.why} (the gate: {status.reason})"
        forced = VerdictRecord(
            model=self.candidate.name,
            version=self.candidate.version,
            state="forced",
            reason=reason,
            files=status.digest,
            actor=self.actor,
        )
        write_verdict(forced, self.trail)
        return replace(status, passed=True, state="forced", reason=reason)

    def record(self, action: str, status: tags.GateStatus) -> None:
        """Record the action `promote` or `refused` in the audit trail."""
        place = str(self.place)
        before = self.before_version
        detail: dict[str, object] = {
            "to": place,
            "gate": status.state,
            "report": status.report,
        }
        if self.why:
            detail["gate_reason"] = status.reason
        if status.state == "forced":
            detail["forced"] = True
        after = ""
        if action == "promote":
            detail |= move_detail(place, before)
            after = f"version {self.candidate.version} in {place}"
        self.trail.record(
            action,
            model=self.candidate.name,
            version=self.candidate.version,
            before=f"version {before} in {place}" if before else "",
            after=after,
            why=self.why or status.reason,
            detail=detail,
            actor=self.actor,
        )

    @property
    def before_version(self) -> str:
        return self.before.version if self.before else ""

    def promotion(self, status: tags.GateStatus, is_moved: bool = True) -> Promotion:
        return Promotion(
            model=self.candidate.name,
            version=self.candidate.version,
            to=str(self.place),
            uri=self.place.uri(self.candidate.name),
            before=self.before_version,
            gate=status.state,
            reason=status.reason,
            report=status.report,
            is_moved=is_moved,
        )
