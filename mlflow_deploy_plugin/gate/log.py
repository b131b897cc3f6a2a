"""A verdict in MLflow: one run with the report and the figures, and the tags of the version that lead to it."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from mlflow_deploy_plugin.gate.judge import Evaluated
from mlflow_deploy_plugin.gate.model import Answers
from mlflow_deploy_plugin.gate.report import as_document, as_page
from mlflow_deploy_plugin.gate.result import Verdict
from mlflow_deploy_plugin.registry.connection import patience_for_files, registry_errors
from mlflow_deploy_plugin.registry.resolve import ResolvedModel
from mlflow_deploy_plugin.registry.tags import (
    GATE_AGAINST_TAG,
    GATE_AT_TAG,
    GATE_POLICY_DIGEST_TAG,
    GATE_REASON_TAG,
    GATE_REPORT_TAG,
    GATE_TAG,
    tag_version,
)

HTML, JSON = "gate_report.html", "gate.json"

_PROJECT_RUN = "MLFLOW_RUN_ID"  # MLflow sets it for the process of a project
_LARGEST = 1e300  # MLflow stores infinity as the largest number there is, which reads as a figure
_LONGEST_TAG = 5000


@dataclass(frozen=True)
class LoggedRun:
    """The run in MLflow; `url` is empty where the tracking server has no pages (a database URI)."""

    run_id: str
    experiment: str
    url: str

    @property
    def report(self) -> str:
        """What the version's tag says: the page of the report in MLflow, else the artifact."""
        return f"{self.url}/artifacts/{HTML}" if self.url else f"{self.run_id}/{HTML}"


def log_verdict(verdict: Verdict, candidate: ResolvedModel, evaluated: Evaluated | None) -> LoggedRun:
    """Logs the run: to the MLflow project's that this process belongs to, else a new one where the model was logged.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    client = MlflowClient()
    with registry_errors("the run of the gate"), patience_for_files():
        run_id, is_new = _begin(client, verdict, candidate)
        is_complete = False
        try:
            _log_content(client, run_id, verdict, candidate)
            if evaluated is not None:
                _log_evaluation(run_id, evaluated)
            is_complete = True
        finally:
            if is_new:
                client.set_terminated(run_id, "FINISHED" if is_complete else "FAILED")
        experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
    return LoggedRun(run_id, experiment.name, _url(experiment.experiment_id, run_id))


def tag_verdict(verdict: Verdict, report: str) -> None:
    """Writes the verdict on the version, the state last: whoever sees it finds the rest.

    Raises:
        NotFound / RegistryUnavailable: the version is gone, or MLflow does not answer.
    """
    tags = {
        GATE_REASON_TAG: verdict.reason,
        GATE_REPORT_TAG: report,
        GATE_AGAINST_TAG: verdict.against,
        GATE_AT_TAG: verdict.at.isoformat(timespec="seconds"),
        GATE_POLICY_DIGEST_TAG: verdict.policy_digest,
        GATE_TAG: verdict.state,
    }
    for key, value in tags.items():
        tag_version(verdict.model, verdict.version, key, value)


def _begin(client: MlflowClient, verdict: Verdict, candidate: ResolvedModel) -> tuple[str, bool]:
    """The run to log to, with its tags, and whether it was made here."""
    tags = {
        "onnxserve.model": verdict.model,
        "onnxserve.version": verdict.version,
        GATE_TAG: verdict.state,
        GATE_REASON_TAG: verdict.reason[:_LONGEST_TAG],
        GATE_AGAINST_TAG: verdict.against,
        GATE_POLICY_DIGEST_TAG: verdict.policy_digest,
    }
    if run_id := os.environ.get(_PROJECT_RUN):
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        return run_id, False
    name = f"gate {verdict.model} v{verdict.version}"
    run = client.create_run(_experiment_id(client, candidate), run_name=name, tags=tags)
    return str(run.info.run_id), True


def _experiment_id(client: MlflowClient, candidate: ResolvedModel) -> str:
    """The experiment in which the model was logged, where this tracking server has it, else one of the model's own."""
    try:
        if run_id := candidate.aspects.get("run_id"):
            return str(client.get_run(run_id).info.experiment_id)
        if model_id := candidate.aspects.get("model_id"):
            return str(client.get_logged_model(model_id).experiment_id)
    except MlflowException:
        pass  # the model comes from another tracking server, or its run was deleted
    name = f"onnxserve/{candidate.name}"
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another gate made it in between
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _log_content(client: MlflowClient, run_id: str, verdict: Verdict, candidate: ResolvedModel) -> None:
    model_id = _known_model(client, candidate.aspects.get("model_id", ""))
    now = get_current_time_millis()
    metrics = [Metric(key, value, now, 0, model_id=model_id) for key, value in _metrics(verdict)]
    client.log_batch(run_id, metrics=metrics)
    if model_id is not None:
        client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
    client.log_text(run_id, as_page(verdict), HTML)
    client.log_dict(run_id, as_document(verdict), JSON)


def _metrics(verdict: Verdict) -> Iterator[tuple[str, float]]:
    yield "gate_passed", float(verdict.passed)
    for check in verdict.checks:
        for name, value in check.figures.items():
            if abs(value) < _LARGEST:  # and no NaN
                yield f"{check.name}/{name}", value


def _log_evaluation(run_id: str, evaluated: Evaluated) -> None:
    """MLflow's own evaluation of both versions' answers, with its metrics and plots, beside ours.

    It decides nothing: it knows no margin, no interval and no pair of models. It is given the answers that were judged,
    and where it cannot take them, the run does without.
    """
    sides = {"candidate": evaluated.candidate, "current": evaluated.current}
    with mlflow.start_run(run_id=run_id, nested=mlflow.active_run() is not None):
        for side, answers in sides.items():
            if answers is None or answers.prediction.ndim > 1:
                continue
            try:
                _evaluate(side, evaluated, answers)
            except Exception as error:  # noqa: BLE001 - scikit-learn, matplotlib and pandas each have their own
                mlflow.set_tag(f"onnxserve.gate.evaluate.{side}", f"mlflow.models.evaluate: {error}"[:_LONGEST_TAG])


def _evaluate(side: str, evaluated: Evaluated, answers: Answers) -> None:
    kind = "classifier" if answers.is_label else "regressor"
    table = pd.DataFrame({"target": evaluated.truth, "prediction": answers.prediction})
    with warnings.catch_warnings(), _silent("mlflow.models.evaluation"):
        warnings.simplefilter("ignore")  # on types that it infers for a schema which nobody uses
        mlflow.models.evaluate(
            data=mlflow.data.from_pandas(
                table, name=evaluated.dataset[-200:], targets="target", predictions="prediction"
            ),
            model_type=kind,
            evaluators=kind,
            evaluator_config={"metric_prefix": f"mlflow_{side}_", "log_model_explainability": False},
        )


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Keeps what a library tells of its steps from between the lines of a command."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _known_model(client: MlflowClient, model_id: str) -> str | None:
    """The model's id where this tracking server has it; a model may come from another one."""
    try:
        return str(client.get_logged_model(model_id).model_id) if model_id else None
    except MlflowException:
        return None


def _url(experiment_id: str, run_id: str) -> str:
    uri = str(mlflow.get_tracking_uri()).rstrip("/")
    return f"{uri}/#/experiments/{experiment_id}/runs/{run_id}" if uri.startswith(("http://", "https://")) else ""
