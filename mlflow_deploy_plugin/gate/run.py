"""The gate as one act: judge the version, log the report, tag the version, record the event."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.gate.judge import ProgressCallback, judge
from mlflow_deploy_plugin.gate.policy import ALL_PERMISSIONS, GatePolicy, Permissions, PolicyChoice, choose_policy
from mlflow_deploy_plugin.gate.report import log_verdict, report_location, tag_verdict
from mlflow_deploy_plugin.gate.verdict import GateVerdict
from mlflow_deploy_plugin.registry import (
    GATE_POLICY_DIGEST_TAG,
    LoggedRun,
    ResolvedModel,
    registered_version,
    registry_client,
    registry_errors,
    resolve,
    version_at,
)
from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.store import Store, open_store


@dataclass(frozen=True)
class GateRun:
    """A verdict and the MLflow run that holds its report.

    Attributes:
        is_tagged: the verdict is written on the version.
    """

    verdict: GateVerdict
    run: LoggedRun
    is_tagged: bool

    @property
    def report(self) -> str:
        return report_location(self.run)


@dataclass(frozen=True)
class ServedVerdict:
    """The verdict on the version that is served, which has nothing left to be compared with.

    Attributes:
        stands: the gated stages and aliases that it has; the name is that of `onnxserve gate --output json`.
    """

    model: str
    version: str
    stands: str
    state: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.model} version {self.version} is what is served ({self.stands}), and there is nothing to compare "
            f"it with; its gate stays {self.state}: {self.reason}"
        )


def verdict_of_served(model: str, version: str, policy_file: Path | None = None) -> ServedVerdict | None:
    """Return the verdict on a version that alone has the gated stages and aliases, and that passed by this policy.

    Judging such a version again would replace the verdict by one without a comparison. The result is None for any other
    version. A forced version counts as passed.

    Raises:
        InvalidConfig, NotFound, RegistryUnavailable: as `run_gate`.
    """
    candidate, chosen = registered_version(model, version), choose_policy(model, policy_file)
    status = candidate.gate_status
    if not chosen.is_models_own or not status.passed or _served_version(candidate, chosen.policy):
        return None
    # no other version is in these places, so a version that is there is the candidate
    places = [place for place in chosen.policy.gated_places if version_at(model, place) is not None]
    with registry_errors(f"model {model} version {version}"):
        tags = registry_client().get_model_version(model, candidate.version).tags
    if not places or tags.get(GATE_POLICY_DIGEST_TAG, chosen.policy.digest) != chosen.policy.digest:
        return None
    return ServedVerdict(model, candidate.version, ", ".join(map(str, places)), status.state, status.reason)


def run_gate(
    model: str,
    version: str,
    *,
    policy_file: Path | None = None,
    against: str | None = None,
    actor: str | None = None,
    store: Store | None = None,
    progress: ProgressCallback = lambda line: None,
    allowed: Permissions = ALL_PERMISSIONS,
) -> GateRun:
    """Judge a version, log the report to MLflow, tag the version and record the verdict in the audit trail.

    Args:
        against: the model URI to compare with; default: the version in the first gated stage, else with the first gated
            alias, that has another version. A comparison with any other version is not written on the version.
        actor: who runs it; default: the user of this process.
        store: default: this machine's.
        allowed: see `judge`.

    Raises:
        CodeRefused: see `judge`.
        InvalidConfig: the policy, the version or `against` is not valid.
        NotFound: there is no such version.
        RegistryUnavailable: MLflow does not answer.
        StoreUnavailable: the audit trail cannot be written.
    """
    candidate = registered_version(model, version)
    chosen = choose_policy(model, policy_file)
    served = _served_version(candidate, chosen.policy)
    current = resolve(against) if against else served
    is_official = chosen.is_models_own and (current and current.source) == (served and served.source)
    return gate_version(candidate, current, chosen, actor, store, progress, is_official, allowed)


def _served_version(candidate: ResolvedModel, policy: GatePolicy) -> ResolvedModel | None:
    """Return the version that the candidate would replace."""
    found = (version_at(candidate.name, place, exclude=candidate.version) for place in policy.gated_places)
    return next((version for version in found if version is not None), None)


def gate_version(
    candidate: ResolvedModel,
    current: ResolvedModel | None,
    chosen: PolicyChoice,
    actor: str | None,
    store: Store | None,
    progress: ProgressCallback,
    is_official: bool = True,
    allowed: Permissions = ALL_PERMISSIONS,
) -> GateRun:
    """Judge the candidate against the current version; log, tag and record the verdict.

    Args:
        is_official: the verdict is the one that the model's policy requires, so the version is tagged with it.
    """
    with store_or_default(store) as trail:
        verdict, evaluation = judge(candidate, current, chosen.policy, chosen.where, progress, allowed)
        progress("logging the report to MLflow")
        run = log_verdict(verdict, candidate, evaluation)
        if is_official:
            tag_verdict(verdict, report_location(run))
        trail.record(
            "gate",
            model=verdict.model,
            version=verdict.version,
            before=verdict.against,
            after=verdict.state,
            why=verdict.reason,
            detail={
                "report": report_location(run),
                "run_id": run.run_id,
                "policy": chosen.where,
                "tagged": is_official,
                "checks": {check.name: {"state": check.state, **check.figures} for check in verdict.checks},
            },
            actor=actor,
        )
    return GateRun(verdict, run, is_official)


@contextmanager
def store_or_default(store: Store | None) -> Iterator[Store]:
    """Yield the store, or this machine's if it is None; the latter is closed at the end."""
    if store is not None:
        yield store
        return
    own = open_store(load_settings().store_url)
    try:
        yield own
    finally:
        own.close()
