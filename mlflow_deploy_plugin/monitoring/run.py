"""Judges a window and logs what was found: the same for every kind of monitor."""

from collections.abc import Callable
from dataclasses import dataclass

from mlflow_deploy_plugin.monitoring.judgement import Judged, Judgement
from mlflow_deploy_plugin.monitoring.kinds import drift, performance, service, shadow
from mlflow_deploy_plugin.monitoring.question import Question as Question
from mlflow_deploy_plugin.monitoring.reports import build_report, log_judgement
from mlflow_deploy_plugin.monitoring.verdict import FeatureVerdict, Verdict
from mlflow_deploy_plugin.registry.runs import LoggedRun
from mlflow_deploy_plugin.spec import MonitorKind

_KINDS: dict[MonitorKind, Callable[[Question], Judged]] = {
    "drift": drift.judge,
    "performance": performance.judge,
    "shadow": shadow.judge,
    "service_level": service.judge,
}


@dataclass(frozen=True)
class MonitorResult:
    """What was found, and the run in MLflow that shows it."""

    judgement: Judgement
    run: LoggedRun


def run_monitor(question: Question) -> MonitorResult:
    """Judges the window and logs the run, whatever the outcome is.

    What is wrong with the rows, the reference or the labels is an outcome: "not judged", with its reason.

    Raises:
        InvalidConfig: the monitor's `require` cannot be read.
        RegistryUnavailable: MLflow does not answer.
    """
    kind = question.spec.kind
    if kind not in _KINDS:
        return log_judged(question.not_judged(f"monitors of kind {kind} are not judged yet"))
    return log_judged(_KINDS[kind](question))


def log_judged(judged: Judged) -> MonitorResult:
    """Reports and logs what was found."""
    judgement = judged.judgement
    return MonitorResult(judgement, log_judgement(judgement, build_report(judgement, judged.evidence)))


def as_verdict(judgement: Judgement) -> Verdict:
    """The judgement in the form that the report takes."""
    figures = judgement.figures
    features = tuple(
        FeatureVerdict(
            name=finding.subject,
            kind="number",
            score=finding.value or 0.0,
            distance=figures[f"drift_distance/{finding.subject}"],
            missing=figures[f"missing/{finding.subject}"],
            reference_missing=figures[f"reference_missing/{finding.subject}"],
            is_drifted=finding.is_alarm,
        )
        for finding in judgement.findings
        if finding.check == "distribution"
    )
    return Verdict(
        state="drift" if judgement.state == "drift" else "no drift" if judgement.state == "no drift" else "not judged",
        rows=judgement.rows,
        reference_rows=int(figures.get("reference_rows", 0)),
        false_alarm_rate=figures.get("false_alarm_rate", 0.05),
        reason=judgement.reason,
        compared_rows=int(figures.get("compared_rows", 0)),
        blocks=int(figures.get("blocks", 0)),
        p_value=figures.get("p_value"),
        statistic=figures.get("statistic"),
        threshold=figures.get("threshold"),
        measured_false_alarm_rate=figures.get("measured_false_alarm_rate"),
        features=features,
    )
