"""Back-test: on captured requests, the version must answer like the served versions,
and not worse if labels exist.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from mlflow_deploy_plugin.core.errors import NotFound, Refused
from mlflow_deploy_plugin.core.registry.policy import BacktestPolicy, EvaluationPolicy, GatePolicy
from mlflow_deploy_plugin.promote.gate.verdict import CheckResult, state_of
from mlflow_deploy_plugin.promote.replay.backtest import BacktestReport, backtest
from mlflow_deploy_plugin.promote.replay.traffic import Traffic
from mlflow_deploy_plugin.serve.inference_log.windows import parse_time_range
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedModel

NAME = "backtest"


def check_backtest(candidate: LoadedModel, traffic: Traffic, policy: GatePolicy) -> CheckResult:
    """Replay the captured requests that the policy selects, or skip the check without
    rows. Raises InvalidConfig and OnnxserveError if the rows cannot be replayed.
    """
    limits = policy.backtest
    try:
        report = backtest(
            traffic,
            parse_time_range(limits.window, None, datetime.now(UTC)),
            candidate,
            "the version",
            limits.max_rows,
            policy.evaluation.metric,
            policy.evaluation.confidence,
            policy.evaluation.resamples,
            policy.seed,
        )
    except NotFound as error:
        return CheckResult(NAME, "skipped", error.message)
    figures = _figures(report)
    if report.rows < limits.min_rows:
        reason = (
            f"{report.rows:,} captured rows are too few; the policy requires {limits.min_rows:,}"
        )
        return CheckResult(NAME, "skipped", reason, figures)
    answers = _judge_answers(report, limits)
    labels = _judge_labels(report, policy.evaluation)
    failures = [*answers.failures, *labels.failures]
    return CheckResult(
        NAME,
        state_of(failures),
        "; ".join([*failures, *answers.results, *labels.results]),
        figures | labels.figures,
        notes=tuple(f"{row.rows:,} rows are refused: {row.text}" for row in report.refused),
    )


@dataclass(frozen=True)
class _Judgement:
    """The texts of the exceeded limits (`failures`) and of all results, and the
    additional figures.
    """

    failures: list[str]
    results: list[str]
    figures: dict[str, float] = field(default_factory=dict)


def _figures(report: BacktestReport) -> dict[str, float]:
    """Return the finite numbers of the report."""
    return {
        name: float(value)
        for name, value in vars(report).items()
        if isinstance(value, int | float) and np.isfinite(value)
    }


def _judge_answers(report: BacktestReport, limits: BacktestPolicy) -> _Judgement:
    """Judge the shares of refused rows and of different answers."""
    refusals = report.refused_rows / report.rows
    failures = []
    if refusals > limits.max_refusals:
        failures.append(f"more than {limits.max_refusals:.2%} of the rows are refused")
    if limits.max_disagreement is not None and report.disagreement > limits.max_disagreement:
        failures.append(f"more than {limits.max_disagreement:.2%} of the answers differ")
    results = [
        f"{report.disagreement:.2%} of the answers differ",
        f"{refusals:.2%} of {report.rows:,} rows are refused",
    ]
    return _Judgement(failures, results)


def _judge_labels(report: BacktestReport, limits: EvaluationPolicy) -> _Judgement:
    """Judge the metric of the labelled rows, if there are any."""
    compared = report.comparison
    if isinstance(compared, Refused):
        return _Judgement([], [])
    failures = []
    if compared.high < -limits.margin or not np.isfinite(compared.candidate):
        failures.append(
            f"the labelled answers are worse by more than the margin of {limits.margin:g}"
        )
    results = [compared.describe("the served answers", report.labelled_rows, limits.confidence)]
    figures = {"margin": limits.margin, "confidence": limits.confidence}
    return _Judgement(failures, results, compared.figures() | figures)
