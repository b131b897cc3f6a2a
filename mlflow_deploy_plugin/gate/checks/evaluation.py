"""Evaluation: on labelled rows, the new version is not worse than what is served by more than a margin.

The burden of proof is the new version's: the lower bound of the paired bootstrap's interval has to lie above the
margin, so that few rows, or rows that decide nothing, do not pass. Both versions answer the same rows, and each
resample weighs both alike: what is common to them cancels out, and far fewer rows are needed than for two intervals.
"""

import numpy as np

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.gate.metrics import (
    HIGHER_IS_BETTER,
    RELATIVE_METRICS,
    MetricComparison,
    default_metric,
    paired_bootstrap,
    weighted_metric,
)
from mlflow_deploy_plugin.gate.model import Predictions
from mlflow_deploy_plugin.gate.policy import EvaluationPolicy
from mlflow_deploy_plugin.gate.verdict import CheckResult
from mlflow_deploy_plugin.runtime import Array

NAME = "evaluation"


def check_evaluation(
    truth: Array, candidate: Predictions, current: Predictions | None, policy: EvaluationPolicy, seed: int
) -> CheckResult:
    """Judges answers to the same labelled rows.

    Args:
        truth: [N].
        current: of what is served now; None: nothing is, and only `at_least` is asked for.

    Raises:
        InvalidConfig: the metric does not fit the answers or the truth.
    """
    metric = policy.metric or default_metric(truth, candidate)
    rows = len(truth)
    ours = weighted_metric(metric, truth, candidate)
    value = ours(np.ones(rows))
    figures = {"rows": float(rows), f"{metric}_candidate": value}
    if rows < policy.min_rows:
        reason = f"{rows:,} rows with a known target are too few; the policy asks for {policy.min_rows:,}"
        return CheckResult(NAME, "failed", reason, figures)
    if not np.isfinite(value):
        return CheckResult(NAME, "failed", f"{metric} of the new version is {value}: it answers no numbers", figures)
    floor = _floor(metric, value, policy.at_least)
    if current is None:
        reason = floor or f"{metric} {value:.4f} on {rows:,} rows; nothing is served that it could be compared with"
        return CheckResult(NAME, "failed" if floor else "passed", reason, figures)
    try:
        theirs = weighted_metric(metric, truth, current)
    except InvalidConfig as error:
        reason = f"what is served cannot be compared with: {error.message}"
        return CheckResult(NAME, "failed", reason, figures)
    compared = paired_bootstrap(metric, ours, theirs, rows, policy.confidence, policy.resamples, seed)
    figures |= {
        f"{metric}_current": compared.current,
        "difference": compared.difference,
        "difference_low": compared.low,
        "difference_high": compared.high,
        "margin": policy.margin,
        "confidence": policy.confidence,
    }
    found = _sentence(metric, compared, policy, rows)
    if not compared.low >= -policy.margin:
        return CheckResult(
            NAME, "failed", "; ".join(filter(None, [_why(metric, compared, policy), found, floor])), figures
        )
    return CheckResult(NAME, "failed" if floor else "passed", floor or found, figures)


def _floor(metric: str, value: float, at_least: float | None) -> str:
    """Why the value is worse than the worst that may be; empty where it is not."""
    if at_least is None or (value >= at_least if HIGHER_IS_BETTER[metric] else value <= at_least):
        return ""
    return f"{metric} {value:.4f} is worse than {at_least:g}, the worst that the policy allows"


def _why(metric: str, compared: MetricComparison, policy: EvaluationPolicy) -> str:
    margin = _amount(metric, policy.margin)
    if compared.high < -policy.margin:
        return f"worse by more than the margin of {margin}"
    if compared.difference < -policy.margin:
        return f"worse by more than the margin of {margin}, as far as these rows can tell"
    return f"these rows cannot tell that it is not worse by more than {margin}; more of them might"


def _sentence(metric: str, compared: MetricComparison, policy: EvaluationPolicy, rows: int) -> str:
    side = "worse" if compared.difference < 0 else "better"
    return (
        f"{metric} {compared.candidate:.4f}, served now {compared.current:.4f}: "
        f"{_amount(metric, abs(compared.difference))} {side} on {rows:,} rows "
        f"({policy.confidence:.0%} bounds {_signed(metric, compared.low)} and {_signed(metric, compared.high)})"
    )


def _signed(metric: str, value: float) -> str:
    return f"{value:+.1%}" if metric in RELATIVE_METRICS else f"{value:+.4f}"


def _amount(metric: str, value: float) -> str:
    return f"{value:.1%}" if metric in RELATIVE_METRICS else f"{value:.4f}"
