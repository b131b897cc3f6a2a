"""A run of the gate: judge the version, log the report, tag the version and record the
event.
"""

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.core.registry import tags
from mlflow_deploy_plugin.core.registry.connection import (
    find_login,
    registry_client,
    registry_errors,
)
from mlflow_deploy_plugin.core.registry.model_files import version_digest
from mlflow_deploy_plugin.core.registry.policy import (
    ALL_PERMISSIONS,
    GatePolicy,
    Permissions,
    PolicyChoice,
    choose_policy,
)
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel, registered_version, resolve
from mlflow_deploy_plugin.core.registry.runs import (
    LoggedRun,
    get_or_create_experiment,
    log_metrics,
    log_run,
)
from mlflow_deploy_plugin.core.registry.transitions import version_at
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.audit import current_actor
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.promote.gate.judge import EvaluationData, judge
from mlflow_deploy_plugin.promote.gate.recording import VerdictRecord, finite, write_verdict
from mlflow_deploy_plugin.promote.gate.verdict import (
    MAX_FIGURE,
    GateVerdict,
    verdict_as_html,
    verdict_as_json,
)

GATE_JSON_FILE = "gate.json"
_OF_RUN = (tags.GATE_REPORT_TAG, tags.GATE_AT_TAG)


@dataclass(frozen=True)
class GateRun:
    """A verdict and the MLflow run with its report. `is_tagged` is True if the verdict
    is in the version's tags.
    """

    verdict: GateVerdict
    run: LoggedRun
    is_tagged: bool

    @property
    def report(self) -> str:
        return self.run.page_of(tags.GATE_REPORT_FILE)


@dataclass(frozen=True)
class ServedVerdict:
    """The verdict on the served version. `stands` lists the gated aliases and stages of
    this version.
    """

    model: str
    version: str
    stands: str
    state: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.model} version {self.version} is the served version ({self.stands}), and "
            f"there is no version to compare it with; its gate remains {self.state}: {self.reason}"
        )


def verdict_of_served(
    model: str,
    version: str,
    policy_file: Path | None = None,
) -> ServedVerdict | None:
    """Return the passed verdict on the only version in the gated aliases and stages, or
    None.

    A new verdict would have no version to compare with. The stored verdict must be for
    this policy and the current files. A forced promotion counts as passed.
    """
    candidate = registered_version(model, version)
    choice = choose_policy(model, policy_file)
    status = candidate.gate_status
    if not choice.is_models_own or not status.passed or _served_version(candidate, choice.policy):
        return None
    # No other version has a gated stage or alias, so a non-empty stage or alias
    # contains the candidate.
    places = [place for place in choice.policy.gated_places if version_at(model, place) is not None]
    with registry_errors(f"model {model} version {version}"):
        version_tags = registry_client().get_model_version(model, candidate.version).tags
    if (
        not places
        or version_tags.get(tags.GATE_POLICY_DIGEST_TAG, choice.policy.digest)
        != choice.policy.digest
    ):
        return None
    if not status.on_files(version_digest(candidate.source)).passed:
        return None
    return ServedVerdict(
        model,
        candidate.version,
        ", ".join(map(str, places)),
        status.state,
        status.reason,
    )


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
    original: str = "",
) -> GateRun:
    """Judge a version, log the report to MLflow, tag the version and record the verdict
    in the audit trail.

    Args:
        against: the model URI to compare with; default: the version in the first gated
            alias or stage that contains another version. A verdict against any other
            version is not stored in the tags of the version.
        actor: see `promote`.
        store: see `promote`.
        allowed: see `promote`.
        original: see `promote`.

    Raises CodeRefused, InvalidConfig, NotFound, RegistryUnavailable, ScopeMissing and
    StoreUnavailable like `promote`.
    """
    candidate = registered_version(model, version)
    choice = choose_policy(model, policy_file)
    served = _served_version(candidate, choice.policy)
    current = resolve(against) if against else served
    is_official = choice.is_models_own and (current and current.source) == (
        served and served.source
    )
    return gate_version(
        candidate,
        current,
        choice,
        actor,
        store,
        progress,
        is_official,
        allowed,
        original,
    )


def _served_version(candidate: ResolvedModel, policy: GatePolicy) -> ResolvedModel | None:
    versions = (
        version_at(candidate.name, place, exclude=candidate.version)
        for place in policy.gated_places
    )
    return next((version for version in versions if version is not None), None)


def gate_version(
    candidate: ResolvedModel,
    current: ResolvedModel | None,
    choice: PolicyChoice,
    actor: str | None,
    store: Store | None,
    progress: ProgressCallback,
    is_official: bool = True,
    allowed: Permissions = ALL_PERMISSIONS,
    original: str = "",
) -> GateRun:
    """Judge the candidate against the current version. Log and record the verdict, and
    set tags if `is_official`, for which this user must be a judge of the policy.
    """
    with store_or_default(store) as trail:
        if is_official:
            choice.policy.require_judge(trail.login.user, candidate.name)
        verdict, evaluation = judge(
            candidate,
            current,
            choice.policy,
            choice.where,
            progress,
            allowed,
            original,
            trail,
        )
        progress("logging the report to MLflow")
        record = VerdictRecord(
            model=verdict.model,
            version=verdict.version,
            state=verdict.state,
            reason=verdict.reason,
            files=verdict.digest,
            policy=choice.where,
            policy_digest=verdict.policy_digest,
            against=verdict.against,
            at=verdict.at.isoformat(timespec="seconds"),
            report_digest=hashlib.sha256(verdict_as_html(verdict).encode()).hexdigest(),
            checks={
                check.name: {"state": check.state, **finite(check.figures)}
                for check in verdict.checks
            },
            actor=actor or trail.user,
            machine=current_actor(),
        )
        logged_run = _log_verdict(verdict, candidate, evaluation, record.tags)
        done = GateRun(verdict, logged_run, is_official)
        record = record.model_copy(
            update={
                "report": done.report,
                "run_id": done.run.run_id,
            }
        )
        if is_official:
            write_verdict(record, trail)
        else:
            record.record(trail, record.actor, is_tagged=False)
    return done


@contextmanager
def store_or_default(store: Store | None) -> Iterator[Store]:
    if store is not None:
        yield store
        return
    with closing(open_store(load_settings().store_url, find_login=find_login)) as trail:
        yield trail


def _log_verdict(
    verdict: GateVerdict,
    candidate: ResolvedModel,
    evaluation: EvaluationData | None,
    verdict_tags: dict[str, str],
) -> LoggedRun:
    """Log the verdict to the run of this MLflow project, or to a new run in the
    experiment of the model's run.
    """

    def experiment_id(client: MlflowClient) -> str:
        try:
            if run_id := candidate.aspects.get("run_id"):
                return str(client.get_run(run_id).info.experiment_id)
            if model_id := candidate.aspects.get("model_id"):
                return str(client.get_logged_model(model_id).experiment_id)
        except MlflowException:
            pass  # The model is from another tracking server, or its run was deleted.
        return get_or_create_experiment(client, f"onnxserve/{candidate.name}")

    def log_content(client: MlflowClient, run_id: str) -> None:
        metrics = [("gate_passed", float(verdict.passed))]
        for check in verdict.checks:
            for name, value in check.figures.items():
                if abs(value) < MAX_FIGURE:  # NaN is excluded too.
                    metrics.append((f"{check.name}/{name}", value))
        log_metrics(client, run_id, candidate.aspects.get("model_id", ""), metrics)
        client.log_text(run_id, verdict_as_html(verdict), tags.GATE_REPORT_FILE)
        client.log_dict(run_id, verdict_as_json(verdict), GATE_JSON_FILE)
        if evaluation is not None:
            _log_evaluation(run_id, evaluation)

    name = f"gate {verdict.model} v{verdict.version}"
    names = {"onnxserve.model": verdict.model, "onnxserve.version": verdict.version}
    # The run has the time, and its own page is the report.
    verdict_tags = {key: value for key, value in verdict_tags.items() if key not in _OF_RUN}
    return log_run("the run of the gate", name, names | verdict_tags, experiment_id, log_content)


def _log_evaluation(run_id: str, evaluation: EvaluationData) -> None:
    """Log MLflow's evaluation of the predictions of both versions, with metrics and
    plots.

    The verdict does not use this evaluation, which has no margin or interval. Errors of
    MLflow are written to a tag.
    """
    sides = {"candidate": evaluation.candidate, "current": evaluation.current}
    logger = logging.getLogger("mlflow.models.evaluation")
    with (
        mlflow.start_run(run_id=run_id, nested=mlflow.active_run() is not None),
        ExitStack() as silenced,
    ):
        silenced.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)  # Do not print MLflow's messages in the command's output.
        for side, predictions in sides.items():
            if predictions is None or predictions.prediction.ndim > 1:
                continue
            kind = "classifier" if predictions.is_label else "regressor"
            table = pd.DataFrame({"target": evaluation.truth, "prediction": predictions.prediction})
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # MLflow warns about an unused schema.
                    mlflow.models.evaluate(
                        data=mlflow.data.from_pandas(
                            table,
                            name=evaluation.dataset[-200:],
                            targets="target",
                            predictions="prediction",
                        ),
                        model_type=kind,
                        evaluators=kind,
                        evaluator_config={
                            "metric_prefix": f"mlflow_{side}_",
                            "log_model_explainability": False,
                        },
                    )
            except Exception as error:  # noqa: BLE001 - Several libraries raise their own errors.
                mlflow.set_tag(
                    f"onnxserve.gate.evaluate.{side}",
                    f"mlflow.models.evaluate: {error}"[: tags.MAX_TAG_LENGTH],
                )
