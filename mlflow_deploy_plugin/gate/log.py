"""A verdict in MLflow: one run with the report and the figures, and the tags of the version that lead to it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.gate.judge import Evaluated
from mlflow_deploy_plugin.gate.model import Answers
from mlflow_deploy_plugin.gate.report import as_document, as_page
from mlflow_deploy_plugin.gate.result import Verdict
from mlflow_deploy_plugin.registry.resolve import ResolvedModel
from mlflow_deploy_plugin.registry.runs import LoggedRun, get_or_create_experiment, log_metrics, log_run
from mlflow_deploy_plugin.registry.tags import (
    GATE_AGAINST_TAG,
    GATE_AT_TAG,
    GATE_POLICY_DIGEST_TAG,
    GATE_REASON_TAG,
    GATE_REPORT_TAG,
    GATE_TAG,
    MAX_TAG_LENGTH,
    tag_version,
)

HTML, JSON = "gate_report.html", "gate.json"

_LARGEST = 1e300  # MLflow stores infinity as the largest number there is, which reads as a figure


def log_verdict(verdict: Verdict, candidate: ResolvedModel, evaluated: Evaluated | None) -> LoggedRun:
    """Logs the run: to the MLflow project's that this process belongs to, else a new one where the model was logged.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """

    def log_content(client: MlflowClient, run_id: str) -> None:
        log_metrics(client, run_id, candidate.aspects.get("model_id", ""), _metrics(verdict))
        client.log_text(run_id, as_page(verdict), HTML)
        client.log_dict(run_id, as_document(verdict), JSON)
        if evaluated is not None:
            _log_evaluation(run_id, evaluated)

    name = f"gate {verdict.model} v{verdict.version}"
    return log_run("the run of the gate", name, _tags(verdict), partial(_experiment_id, candidate), log_content)


def report_of(run: LoggedRun) -> str:
    """What the version's tag says: the page of the report in MLflow, else the artifact."""
    return f"{run.url}/artifacts/{HTML}" if run.url else f"{run.run_id}/{HTML}"


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


def _tags(verdict: Verdict) -> dict[str, str]:
    """The run's."""
    return {
        "onnxserve.model": verdict.model,
        "onnxserve.version": verdict.version,
        GATE_TAG: verdict.state,
        GATE_REASON_TAG: verdict.reason[:MAX_TAG_LENGTH],
        GATE_AGAINST_TAG: verdict.against,
        GATE_POLICY_DIGEST_TAG: verdict.policy_digest,
    }


def _experiment_id(candidate: ResolvedModel, client: MlflowClient) -> str:
    """The experiment in which the model was logged, where this tracking server has it, else one of the model's own."""
    try:
        if run_id := candidate.aspects.get("run_id"):
            return str(client.get_run(run_id).info.experiment_id)
        if model_id := candidate.aspects.get("model_id"):
            return str(client.get_logged_model(model_id).experiment_id)
    except MlflowException:
        pass  # the model comes from another tracking server, or its run was deleted
    return get_or_create_experiment(client, f"onnxserve/{candidate.name}")


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
                mlflow.set_tag(f"onnxserve.gate.evaluate.{side}", f"mlflow.models.evaluate: {error}"[:MAX_TAG_LENGTH])


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
