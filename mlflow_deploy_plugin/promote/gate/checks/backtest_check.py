"""Back-test: on captured requests, the version must answer like the served versions,
and not worse if labels exist.
"""

from datetime import UTC, datetime

import numpy as np

from mlflow_deploy_plugin.core.errors import NotFound, Refused
from mlflow_deploy_plugin.core.registry.policy import GatePolicy
from mlflow_deploy_plugin.promote.gate.verdict import CheckResult, state_of
from mlflow_deploy_plugin.promote.replay.backtest import backtest
from mlflow_deploy_plugin.promote.replay.traffic import Traffic
from mlflow_deploy_plugin.serve.inference_log.windows import parse_time_range
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedModel

NAME = "backtest"


def check_backtest(candidate: LoadedModel, traffic: Traffic, policy: GatePolicy) -> CheckResult:
    """Replay the captured requests that the policy selects, or skip the check without
    rows. Raises InvalidConfig and OnnxserveError if the rows cannot be replayed.
    """
    limits = policy.backtest
    evaluation = policy.evaluation
    try:
        report = backtest(
            traffic,
            parse_time_range(limits.window, None, datetime.now(UTC)),
            candidate,
            "the version",
            limits.max_rows,
            evaluation.metric,
            evaluation.confidence,
            evaluation.resamples,
            policy.seed,
        )
    except NotFound as error:
        return CheckResult(NAME, "skipped", error.message)
    figures = {
        name: float(value)
        for name, value in vars(report).items()
        if isinstance(value, int | float) and np.isfinite(value)
    }
    if report.rows < limits.min_rows:
        return CheckResult(
            NAME,
            "skipped",
            f"{report.rows:,} captured rows are too few; the policy requires {limits.min_rows:,}",
            figures,
        )
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
    compared = report.comparison
    if not isinstance(compared, Refused):  # There are labelled rows.
        margin = evaluation.margin
        if compared.high < -margin or not np.isfinite(compared.candidate):
            failures.append(f"the labelled answers are worse by more than the margin of {margin:g}")
        results.append(
            compared.describe("the served answers", report.labelled_rows, evaluation.confidence)
        )
        figures |= compared.figures()
        figures |= {"margin": margin, "confidence": evaluation.confidence}
    return CheckResult(
        NAME,
        state_of(failures),
        "; ".join([*failures, *results]),
        figures,
        notes=tuple(f"{noted.rows:,} rows are refused: {noted.text}" for noted in report.refused),
    )
