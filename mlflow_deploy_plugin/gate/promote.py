"""Promotion: the gate first, then the stage or the alias, both in the audit trail."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mlflow_deploy_plugin.errors import GateRefused, InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.gate.judge import ProgressCallback
from mlflow_deploy_plugin.gate.policy import ALL_PERMISSIONS, Permissions
from mlflow_deploy_plugin.gate.run import PolicyChoice, choose_policy, judge_and_log, store_or_default
from mlflow_deploy_plugin.registry import (
    GATE_AGAINST_TAG,
    GATE_AT_TAG,
    GATE_POLICY_DIGEST_TAG,
    GATE_POLICY_TAG,
    GATE_REASON_TAG,
    GATE_TAG,
    STARTED_AT,
    GateStatus,
    ResolvedModel,
    StageOrAlias,
    gate_status_of,
    move_version,
    parse_stage_or_alias,
    registered_version,
    registry_client,
    registry_errors,
    rolled_back_refusal,
    tag_version,
    version_at,
)
from mlflow_deploy_plugin.store import Store, current_actor


@dataclass(frozen=True)
class Promotion:
    """A version that was moved.

    Attributes:
        to: the stage, or @alias.
        uri: the reference that endpoints follow it by.
        before: the version that was there; empty where there was none.
        gate: `passed`, `forced`, or `not asked` where the policy does not gate the place.
        reason: what the gate said, or why it was forced.
        report: where the gate's report is; empty where there is none.
        is_moved: False where it was there already, and nothing was done.
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
    def stands(self) -> str:
        """Where the version is now, as a sentence goes on after its number."""
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
) -> Promotion:
    """Moves a version to a stage or an alias once it has passed the gate that the policy puts before it.

    A passed verdict (with `force` a failed one too) is taken as it is where it is fresh: by the same policy, against
    the version that is there now, not older than the policy says. Else the gate is run. Of the version that is there
    already, alone and with the gate's consent, nothing is done.

    Args:
        to: a stage, or @alias.
        force: moves it whatever the gate says; the version's tag, and with `why` the audit trail, say so.
        actor: who does it; None: the user of this process.
        store: default: this machine's.
        allowed: see `gate.judge.judge`.

    Raises:
        CodeRefused: see `gate.judge.judge`.
        GateRefused: it has not passed (the message says what failed), or it was rolled back and is not forced.
        InvalidConfig: the place, the version or the policy is not what it should be, or `force` comes without `why`.
        NotFound / RegistryUnavailable: the version is not there, or MLflow does not answer, or does not allow the move.
        StoreUnavailable: the audit trail cannot be written.
    """
    if force and not why.strip():
        raise InvalidConfig("a forced promotion needs its reason: say why (--why)")
    place = parse_stage_or_alias(to)
    candidate = registered_version(model, version)
    chosen = choose_policy(model, policy_file)
    if not chosen.is_the_models:
        raise InvalidConfig(f"model {model} has a policy of its own, in its tag {GATE_POLICY_TAG}; leave the file out")
    actor = actor or current_actor()
    with store_or_default(store) as trail:
        begun = trail.now()
        before = version_at(model, place, beside=candidate.version)
        tags = _tags(candidate)
        if refusal := rolled_back_refusal(candidate.name, candidate.version, place, tags):
            if not force:
                refused = GateStatus(False, gate_status_of(tags).state, refusal)
                _record(trail, "refused", candidate, before, place, refused, why, actor, begun)
                raise GateRefused(refusal)
        elif before is None and (there := _there_already(candidate, place, chosen, tags)) is not None:
            return there
        standing = _standing(candidate, before, place, chosen, force, actor, trail, progress, allowed, tags)
        if not standing.passed:
            if not force:
                _record(trail, "refused", candidate, before, place, standing, why, actor, begun)
                raise GateRefused(_refusal(candidate, place, standing))
            standing = _forced(candidate, standing, why, actor)
        progress(f"moving version {candidate.version} to {place}")
        move_version(model, candidate.version, place)
        _record(trail, "promote", candidate, before, place, standing, why, actor, begun)
    return Promotion(
        model=model,
        version=candidate.version,
        to=str(place),
        uri=place.uri(model),
        before=before.version if before else "",
        gate=standing.state,
        reason=standing.reason,
        report=standing.report,
    )


def _standing(
    candidate: ResolvedModel,
    before: ResolvedModel | None,
    place: StageOrAlias,
    chosen: PolicyChoice,
    force: bool,
    actor: str,
    store: Store,
    progress: ProgressCallback,
    allowed: Permissions,
    tags: dict[str, str],
) -> GateStatus:
    """Where the version stands before the gate of this place, which is run where nothing fresh is known."""
    if not _is_gated(chosen, place):
        return _not_asked(place)
    known = gate_status_of(tags)
    taken = ("passed", "failed") if force else ("passed",)  # what is forced does not wait for the same verdict again
    if known.state in taken and _is_fresh(tags, before, chosen):
        progress(f"the gate said of version {candidate.version} at {tags[GATE_AT_TAG]}: {known.state}")
        return known
    try:
        gated = judge_and_log(candidate, before, chosen, actor, store, progress, allowed=allowed)
    except OnnxserveError as error:
        if not force:
            raise
        return GateStatus(False, "", f"the gate could not be run: {error.message}")
    return GateStatus(gated.verdict.passed, gated.verdict.state, gated.verdict.reason, gated.report)


def _there_already(
    candidate: ResolvedModel, place: StageOrAlias, chosen: PolicyChoice, tags: dict[str, str]
) -> Promotion | None:
    """What is said of a version that is there, and that the gate lets be there; None where there is something to do."""
    standing = gate_status_of(tags) if _is_gated(chosen, place) else _not_asked(place)
    if not standing.passed or version_at(candidate.name, place) is None:
        return None
    return Promotion(
        model=candidate.name,
        version=candidate.version,
        to=str(place),
        uri=place.uri(candidate.name),
        before=candidate.version,
        gate=standing.state,
        reason=standing.reason,
        report=standing.report,
        is_moved=False,
    )


def _is_gated(chosen: PolicyChoice, place: StageOrAlias) -> bool:
    return chosen.policy.gates(place)


def _not_asked(place: StageOrAlias) -> GateStatus:
    return GateStatus(True, "not asked", f"the policy does not gate {place}")


def _is_fresh(tags: dict[str, str], before: ResolvedModel | None, chosen: PolicyChoice) -> bool:
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(tags[GATE_AT_TAG])
    except (KeyError, ValueError, TypeError):
        return False
    return (
        tags.get(GATE_POLICY_DIGEST_TAG) == chosen.policy.digest
        and tags.get(GATE_AGAINST_TAG, "") == (before.source if before else "")
        and age < timedelta(hours=chosen.policy.fresh_hours)
    )


def _forced(candidate: ResolvedModel, standing: GateStatus, why: str, actor: str) -> GateStatus:
    """Writes on the version that it was forced, before it is moved: an endpoint that asks for the gate reads that."""
    reason = f"forced by {actor}: {why} (the gate: {standing.reason})"
    for key, value in ((GATE_REASON_TAG, reason), (GATE_TAG, "forced")):
        tag_version(candidate.name, candidate.version, key, value)
    return GateStatus(True, "forced", reason, standing.report)


def _record(
    store: Store,
    action: str,
    candidate: ResolvedModel,
    before: ResolvedModel | None,
    place: StageOrAlias,
    standing: GateStatus,
    why: str,
    actor: str,
    begun: datetime,
) -> None:
    store.record(
        action,
        model=candidate.name,
        version=candidate.version,
        before=f"version {before.version} in {place}" if before else "",
        after=f"version {candidate.version} in {place}" if action == "promote" else "",
        why=why or standing.reason,
        detail={"to": str(place), "gate": standing.state, "report": standing.report, STARTED_AT: begun.isoformat()}
        | ({"gate_reason": standing.reason} if why else {})
        | ({"forced": True} if standing.state == "forced" else {}),
        actor=actor,
    )


def _refusal(candidate: ResolvedModel, place: StageOrAlias, standing: GateStatus) -> str:
    report = f"; report: {standing.report}" if standing.report else ""
    return (
        f"{candidate.name} version {candidate.version} does not go to {place}, it has not passed its gate: "
        f"{standing.reason}{report}"
    )


def _tags(candidate: ResolvedModel) -> dict[str, str]:
    with registry_errors(f"model {candidate.name} version {candidate.version}"):
        return dict(registry_client().get_model_version(candidate.name, candidate.version).tags)
