"""Back-test: on captured requests, the version must answer like the served versions, and not worse if labels exist."""

import numpy as np

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.evaluation.model import LoadedModel
from mlflow_deploy_plugin.gate.policy import GatePolicy
from mlflow_deploy_plugin.gate.verdict import CheckResult
from mlflow_deploy_plugin.replay.backtest import Traffic, backtest

NAME = "backtest"


def check_backtest(candidate: LoadedModel, traffic: Traffic, policy: GatePolicy) -> CheckResult:
    """Replay the captured requests that the policy selects. Raises the errors of `backtest`, except for NotFound: the
    check is skipped if there are too few rows."""
    limits, evaluation = policy.backtest, policy.evaluation
    try:
        report = backtest(
            traffic,
            traffic.time_range(limits.window),
            candidate,
            "the version",
            max_rows=limits.max_rows,
            metric=evaluation.metric,
            confidence=evaluation.confidence,
            resamples=evaluation.resamples,
            seed=policy.seed,
        )
    except NotFound as error:
        return CheckResult(NAME, "skipped", error.message)
    figures = report.figures
    if report.rows < limits.min_rows:
        reason = f"{report.rows:,} captured rows are too few; the policy requires {limits.min_rows:,}"
        return CheckResult(NAME, "skipped", reason, figures)
    refused = report.refused_rows / report.rows
    failures, summary = [], [f"{name} {text}" for name, text in report.summary.items() if name != "latency"]
    if refused > limits.max_refusals:
        failures.append(f"{refused:.2%} of the rows are refused; the policy allows {limits.max_refusals:.2%}")
    if limits.max_disagreement is not None and report.disagreement > limits.max_disagreement:
        failures.append(
            f"{report.disagreement:.2%} of the answers differ; the policy allows {limits.max_disagreement:.2%}"
        )
    if (compared := report.comparison) is not None:
        figures |= {"margin": evaluation.margin, "confidence": evaluation.confidence}
        if compared.high < -evaluation.margin or not np.isfinite(compared.candidate):
            failures.append(f"the labelled answers are worse by more than the margin of {evaluation.margin:g}")
    notes = (*report.notes, *(f"{row.rows:,} rows are refused: {row.text}" for row in report.refused))
    return CheckResult(NAME, "failed" if failures else "passed", "; ".join([*failures, *summary]), figures, notes)
