"""The gate as one act: judge, log, tag, audit."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.gate.judge import ProgressCallback, judge
from mlflow_deploy_plugin.gate.policy import ALL_PERMISSIONS, GatePolicy, Permissions, read_policy, read_policy_file
from mlflow_deploy_plugin.gate.report import log_verdict, report_location, tag_verdict
from mlflow_deploy_plugin.gate.verdict import GateVerdict
from mlflow_deploy_plugin.registry import (
    GATE_POLICY_DIGEST_TAG,
    GATE_POLICY_TAG,
    LoggedRun,
    ResolvedModel,
    StageOrAlias,
    registered_version,
    registry_client,
    registry_errors,
    resolve,
    version_at,
)
from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.store import Store, open_store


@dataclass(frozen=True)
class PolicyChoice:
    """The policy that a version is judged by.

    Attributes:
        where: where it stands, for a reader.
        is_the_models: it is what the registered model says (or leaves to the defaults), not another one that somebody
            wants to try: the verdict of such a one is not written on the version.
    """

    policy: GatePolicy
    where: str
    is_the_models: bool


@dataclass(frozen=True)
class GateRun:
    """A verdict and where it can be read.

    Attributes:
        is_tagged: it is written on the version.
    """

    verdict: GateVerdict
    run: LoggedRun
    is_tagged: bool

    @property
    def report(self) -> str:
        return report_location(self.run)


def choose_policy(model: str, file: Path | None = None) -> PolicyChoice:
    """The policy of a file, else of the registered model's tag, else the defaults.

    A file stands for the model's policy where the model has none of its own, or the same one.

    Raises:
        NotFound: there is no such model.
        InvalidConfig: the file or the tag is no policy.
        RegistryUnavailable: MLflow does not answer.
    """
    own = read_policy(model)
    if file is not None:
        given = read_policy_file(file)
        return PolicyChoice(given, str(file), own is None or own.digest == given.digest)
    if own is not None:
        return PolicyChoice(own, f"tag {GATE_POLICY_TAG} of model {model}", True)
    return PolicyChoice(GatePolicy(), "the defaults", True)


@dataclass(frozen=True)
class ServedVerdict:
    """The verdict on the version that is served, which has nothing left to be compared with.

    Attributes:
        stands: the gated stages and aliases that it holds.
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
    """What is known of the version that alone holds what the gate protects, where it passed by the present policy (or
    was forced); to judge it again would only wipe out what it was compared with. None of any other version.

    Raises:
        InvalidConfig / NotFound / RegistryUnavailable: as `run_gate`.
    """
    candidate, chosen = registered_version(model, version), choose_policy(model, policy_file)
    standing = candidate.gate_status
    if not chosen.is_the_models or not standing.passed or _served(candidate, chosen.policy):
        return None
    # nobody else is in these places, so that whoever is there is the candidate
    places = [place for place in _places(chosen.policy) if version_at(model, place) is not None]
    with registry_errors(f"model {model} version {version}"):
        tags = registry_client().get_model_version(model, candidate.version).tags
    if not places or tags.get(GATE_POLICY_DIGEST_TAG, chosen.policy.digest) != chosen.policy.digest:
        return None
    return ServedVerdict(model, candidate.version, ", ".join(map(str, places)), standing.state, standing.reason)


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
    """Judges a version, logs the report to MLflow, writes the verdict on the version and into the audit trail.

    Args:
        against: URI of what it is compared with; default: what is in the first gated stage, else under the first gated
            alias, that holds another version. A comparison with anything else is not written on the version.
        actor: who asks; None: the user of this process.
        store: default: this machine's.
        allowed: see `judge`.

    Raises:
        CodeRefused: see `judge`.
        InvalidConfig: the policy, the version or `against` is not what it should be.
        NotFound / RegistryUnavailable: the version is not there, or MLflow does not answer.
        StoreUnavailable: the audit trail cannot be written.
    """
    candidate = registered_version(model, version)
    chosen = choose_policy(model, policy_file)
    served = _served(candidate, chosen.policy)
    current = resolve(against) if against else served
    is_asked_for = chosen.is_the_models and (current and current.source) == (served and served.source)
    return judge_and_log(candidate, current, chosen, actor, store, progress, is_asked_for, allowed)


def _served(candidate: ResolvedModel, policy: GatePolicy) -> ResolvedModel | None:
    """The version that the gate protects: what the candidate would take the place of."""
    found = (version_at(candidate.name, place, beside=candidate.version) for place in _places(policy))
    return next((version for version in found if version is not None), None)


def _places(policy: GatePolicy) -> list[StageOrAlias]:
    return [
        *(StageOrAlias(stage=stage) for stage in policy.gated_stages),
        *(StageOrAlias(alias=alias) for alias in policy.gated_aliases),
    ]


def judge_and_log(
    candidate: ResolvedModel,
    current: ResolvedModel | None,
    chosen: PolicyChoice,
    actor: str | None,
    store: Store | None,
    progress: ProgressCallback,
    is_asked_for: bool = True,
    allowed: Permissions = ALL_PERMISSIONS,
) -> GateRun:
    """Judges, logs, and writes down what is found.

    Args:
        is_asked_for: it is the verdict that the model's policy asks for, and not one that somebody tries out.
    """
    with store_or_default(store) as trail:
        verdict, evaluated = judge(candidate, current, chosen.policy, chosen.where, progress, allowed)
        progress("logging the report to MLflow")
        run = log_verdict(verdict, candidate, evaluated)
        if is_asked_for:
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
                "tagged": is_asked_for,
                "checks": {check.name: {"state": check.state, **check.figures} for check in verdict.checks},
            },
            actor=actor,
        )
    return GateRun(verdict, run, is_asked_for)


@contextmanager
def store_or_default(store: Store | None) -> Iterator[Store]:
    """The store that was given, else this machine's for as long as it is needed."""
    if store is not None:
        yield store
        return
    own = open_store(load_settings().store_url)
    try:
        yield own
    finally:
        own.close()
