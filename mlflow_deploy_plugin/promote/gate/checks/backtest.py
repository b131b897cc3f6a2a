"""Back-test: on captured requests, the version must answer like the served versions,
and not worse if labels exist.
"""

from datetime import UTC, datetime

import numpy as np

from mlflow_deploy_plugin.core.errors import NotFound, Refused
from mlflow_deploy_plugin.core.registry.policy import GatePolicy
from mlflow_deploy_plugin.promote.gate.verdict import CheckResult
from mlflow_deploy_plugin.promote.replay.backtest import backtest
from mlflow_deploy_plugin.promote.replay.traffic import Traffic
from mlflow_deploy_plugin.serve.inference_log.windows import parse_time_range
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedModel

NAME = "backtest"


def check_backtest(candidate: LoadedModel, traffic: Traffic, policy: GatePolicy) -> CheckResult:
    """Replay the captured requests that the policy selects, or skip the check without
    rows. Raises like `backtest`.
    """
    limits = policy.backtest
    evaluation = policy.evaluation
    bootstrap = evaluation.confidence, evaluation.resamples, policy.seed
    times = parse_time_range(limits.window, None, datetime.now(UTC))
    try:
        report = backtest(
            traffic,
            times,
            candidate,
            "the version",
            limits.max_rows,
            evaluation.metric,
            *bootstrap,
        )
    except NotFound as error:
        return CheckResult(NAME, "skipped", error.message)
    figures = {
        name: float(v)
        for name, v in vars(report).items()
        if isinstance(v, int | float) and np.isfinite(v)
    }
    if report.rows < limits.min_rows:
        reason = (
            f"{report.rows:,} captured rows are too few; the policy requires {limits.min_rows:,}"
        )
        return CheckResult(NAME, "skipped", reason, figures)
    refusals = report.refused_rows / report.rows
    differing = report.disagreement
    results = [
        f"{differing:.2%} of the answers differ",
        f"{refusals:.2%} of {report.rows:,} rows are refused",
    ]
    failures = []
    if refusals > limits.max_refusals:
        failures.append(f"more than {limits.max_refusals:.2%} of the rows are refused")
    if limits.max_disagreement is not None and differing > limits.max_disagreement:
        failures.append(f"more than {limits.max_disagreement:.2%} of the answers differ")
    if not isinstance(compared := report.comparison, Refused):
        figures |= compared.figures() | {
            "margin": evaluation.margin,
            "confidence": evaluation.confidence,
        }
        results.append(
            compared.describe("the served answers", report.labelled_rows, evaluation.confidence),
        )
        if compared.high < -evaluation.margin or not np.isfinite(compared.candidate):
            failures.append(
                f"the labelled answers are worse by more than the margin of {evaluation.margin:g}",
            )
    notes = tuple(f"{row.rows:,} rows are refused: {row.text}" for row in report.refused)
    return CheckResult(
        NAME,
        "failed" if failures else "passed",
        "; ".join([*failures, *results]),
        figures,
        notes,
    )
