"""Promotion: run the gate, move the stage or the alias, and record the gate and the
move in the audit trail.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
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
    Permissions,
    PolicyChoice,
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
        return f"{'has the alias' if self.to.startswith('@') else 'is in'} {self.to}"


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
        allowed / original: see `promote.gate.judge.judge`.
        is_request: only run the gate, because people must approve the promotion before
            the version is moved.

    Raises GateRefused if the version failed the gate, was rolled back without `force`
    or lacks approvals, InvalidConfig if an argument or the policy is not valid or
    MLflow refuses the move, CodeRefused (see `promote.gate.judge.judge`), NotFound,
    RegistryUnavailable, and StoreUnavailable.
    """
    if force and not why.strip():
        raise InvalidConfig("a forced promotion requires a reason (--why)")
    target = transitions.parse_stage_or_alias(to)
    candidate = registered_version(model, version)
    choice = choose_policy(model, policy_file)
    if not choice.is_models_own:
        raise InvalidConfig(
            f"model {model} already has a policy, in its tag {tags.GATE_POLICY_TAG}; omit the file",
        )
    if is_request:
        choice.policy.required_approvals(model, target)
    with store_or_default(store) as trail:
        begun = trail.now()
        before = transitions.version_at(model, target, exclude=candidate.version)
        with registry_errors(f"model {candidate.name} version {candidate.version}"):
            entry = registry_client().get_model_version(candidate.name, candidate.version)
        by = actor or trail.user
        run = partial(
            gate_version,
            candidate,
            before,
            choice,
            by,
            trail,
            progress,
            allowed=allowed,
            original=original,
        )
        request = _Request(candidate, entry, target, before, choice, why, by, begun, run)
        refusal = transitions.rolled_back_refusal(
            candidate.name,
            candidate.version,
            target,
            entry.tags,
        )
        if refusal and not force:
            request.record(
                trail,
                "refused",
                tags.GateStatus(False, tags.gate_status_of(entry.tags).state, refusal),
            )
            raise GateRefused(refusal)
        is_there = (
            not refusal
            and before is None
            and transitions.version_at(candidate.name, target) is not None
        )
        if is_there and not is_request and (status := request.ungated() or request.verdict).passed:
            return request.stay(trail, status)
        status = request.gate_status(force, progress)
        if not status.passed and not force:
            request.record(trail, "refused", status)
            report = f"; report: {status.report}" if status.report else ""
            raise GateRefused(
                f"{candidate.name} version {candidate.version} cannot be promoted to {target}, "
                f"because it has not passed its gate: {status.reason}{report}",
            )
        if is_request:
            return request.promotion(
                status,
                before=before.version if before else "",
                is_moved=False,
            )
        subject = subject_of(entry, target, status.digest, choice.policy)
        if not is_there and (refusal := missing_approvals(trail, choice.policy, subject)):
            request.record(
                trail,
                "refused",
                tags.GateStatus(False, status.state, refusal, status.report),
            )
            raise GateRefused(refusal)
        if not status.passed:
            status = request.record_forced(trail, status)
        elif not force and choice.policy.gates(target):
            now = transitions.version_at(model, target, exclude=candidate.version)
            if now is not None and (before is None or now.version != before.version):
                raise GateRefused(
                    f"version {now.version} moved to {target} while version {candidate.version} "
                    f"was judged; promote version {candidate.version} again to compare both "
                    "versions",
                )
        progress(f"moving version {candidate.version} to {target}")
        request.move()
        request.record(trail, "promote", status)
    return request.promotion(status, before=before.version if before else "")


@dataclass(frozen=True)
class _Request:
    """A requested promotion. `entry` is the candidate in the registry, and `before` the
    current version in `place`.

    `run_gate` judges the candidate now.
    """

    candidate: ResolvedModel
    entry: "ModelVersion"
    place: StageOrAlias
    before: ResolvedModel | None
    chosen: PolicyChoice
    why: str
    actor: str
    begun: datetime
    run_gate: Callable[[], GateRun]

    @cached_property
    def verdict(self) -> tags.GateStatus:
        """The verdict from the tags, which is void if the version's files have
        changed.
        """
        status = tags.gate_status_of(self.entry.tags)
        if status.state:
            return status.on_files(version_digest(self.candidate.source))
        return status

    def gate_status(self, force: bool, progress: ProgressCallback) -> tags.GateStatus:
        """Return the gate status of the version for `place`. The gate is run unless
        there is a fresh verdict.
        """
        if (ungated := self.ungated()) is not None:
            return ungated
        # With `force`, a fresh failed verdict is reused too.
        counted = ("passed", tags.PASSED_WITHOUT_EVALUATION, *(("failed",) if force else ()))
        try:
            if self.is_fresh() and (status := self.verdict).state in counted:
                version = self.candidate.version
                at = self.entry.tags[tags.GATE_AT_TAG]
                progress(f"the verdict on version {version} from {at} is {status.state}")
                return status
            gated = self.run_gate()
        except OnnxserveError as error:
            if not force:
                raise
            digest = ""
            with suppress(OnnxserveError):  # Unreadable files have no digest, and are not served.
                digest = version_digest(self.candidate.source)
            return tags.GateStatus(
                False,
                "",
                f"the gate could not be run: {error.message}",
                digest=digest,
            )
        verdict = gated.verdict
        return tags.GateStatus(
            verdict.passed,
            verdict.state,
            verdict.reason,
            gated.report,
            verdict.digest,
        )

    def ungated(self) -> tags.GateStatus | None:
        if self.chosen.policy.gates(self.place):
            return None
        return tags.GateStatus(True, "not asked", f"the policy does not gate {self.place}")

    def has_approvals(self, store: Store) -> bool:
        """Return True if the version, with the files of its verdict, has approvals for
        `place` that are not used up.
        """
        policy = self.chosen.policy
        if policy.approvals_for(self.place) is None:
            return False
        return not missing_approvals(
            store,
            policy,
            subject_of(self.entry, self.place, self.verdict.digest, policy),
        )

    def stay(self, store: Store, status: tags.GateStatus) -> Promotion:
        """Return the promotion of a version in `place`. MLflow's server records files
        that were approved again.
        """
        if self.has_approvals(store):
            self.move()
        return self.promotion(status, before=self.candidate.version, is_moved=False)

    def move(self) -> None:
        """Move the version to `place`, without a timeout, because MLflow's server may
        first read all its files.
        """
        reference = parse_model_uri(self.place.uri(self.candidate.name))
        with no_request_timeout:
            transitions.move_version(
                reference,
                self.candidate.version,
                clears_rollback=self.place.is_served_from,
            )

    def is_fresh(self) -> bool:
        try:
            age = datetime.now(UTC) - datetime.fromisoformat(self.entry.tags[tags.GATE_AT_TAG])
        except (KeyError, ValueError, TypeError):
            return False
        return (
            self.entry.tags.get(tags.GATE_POLICY_DIGEST_TAG) == self.chosen.policy.digest
            and self.entry.tags.get(tags.GATE_AGAINST_TAG, "")
            == (self.before.source if self.before else "")
            and abs(age) < timedelta(hours=self.chosen.policy.fresh_hours)
        )

    def record_forced(self, store: Store, status: tags.GateStatus) -> tags.GateStatus:
        """Record that the version is forced before the move, because endpoints that
        require the gate read its tag.
        """
        reason = f"forced by {self.actor}: {self.why} (the gate: {status.reason})"
        name = self.candidate.name
        version = self.candidate.version
        forced = VerdictRecord(
            model=name,
            version=version,
            state="forced",
            reason=reason,
            files=status.digest,
            actor=self.actor,
        )
        write_verdict(forced, store)
        return tags.GateStatus(True, "forced", reason, status.report, status.digest)

    def record(self, store: Store, action: str, status: tags.GateStatus) -> None:
        detail = {"to": str(self.place), "gate": status.state, "report": status.report}
        store.record(
            action,
            model=self.candidate.name,
            version=self.candidate.version,
            before=f"version {self.before.version} in {self.place}" if self.before else "",
            after=f"version {self.candidate.version} in {self.place}"
            if action == "promote"
            else "",
            why=self.why or status.reason,
            detail=detail
            | {transitions.STARTED_AT: self.begun.isoformat()}
            | ({"gate_reason": status.reason} if self.why else {})
            | ({"forced": True} if status.state == "forced" else {})
            | (
                move_detail(str(self.place), self.before.version if self.before else "")
                if action == "promote"
                else {}
            ),
            actor=self.actor,
        )

    def promotion(self, status: tags.GateStatus, before: str, is_moved: bool = True) -> Promotion:
        return Promotion(
            model=self.candidate.name,
            version=self.candidate.version,
            to=str(self.place),
            uri=self.place.uri(self.candidate.name),
            before=before,
            gate=status.state,
            reason=status.reason,
            report=status.report,
            is_moved=is_moved,
        )
