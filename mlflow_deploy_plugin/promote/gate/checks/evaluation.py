"""Evaluation: on labelled rows, the new version must not be worse than the current
version by more than a margin.

The lower bound of the paired bootstrap's interval must be above the negative margin, so
too few rows fail the check. Each resample weights a row equally for both versions.
Pairing needs far fewer rows than two separate intervals.
"""

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.policy import EvaluationPolicy
from mlflow_deploy_plugin.core.spec.evaluation_names import MetricName
from mlflow_deploy_plugin.promote.gate.verdict import NO_CURRENT, CheckResult, CheckState
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.evaluation import metrics
from mlflow_deploy_plugin.wrap.evaluation.model import ModelPredictions

NAME = "evaluation"


def check_evaluation(
    truth: Array,
    candidate: ModelPredictions,
    current: ModelPredictions | None,
    policy: EvaluationPolicy,
    seed: int,
    against: str = "",
) -> CheckResult:
    """Compare the predictions of two versions on the same labelled rows, whose labels
    are `truth`, [N].

    Without `current`, only `at_least` is checked. Raises InvalidConfig if the metric
    does not fit predictions or truth.
    """
    metric = policy.metric or metrics.default_metric(truth, candidate)
    rows = len(truth)
    ours = metrics.weighted_metric(metric, truth, candidate)
    value = ours(np.ones(rows))
    figures = {"rows": float(rows), f"{metric}_candidate": value}
    if rows < policy.min_rows:
        reason = (
            f"{rows:,} rows with a known target are too few; the policy requires "
            f"{policy.min_rows:,}"
        )
    elif not np.isfinite(value):
        reason = f"{metric} of the new version is {value}: not a finite number"
    else:
        reason = ""
    if reason:
        return CheckResult(NAME, "failed", reason, figures)
    too_low = _too_low_reason(metric, value, policy)
    state: CheckState = "failed" if too_low else "passed"
    if current is None:
        reason = too_low or f"{metric} {value:.4f} on {rows:,} rows; {NO_CURRENT}"
        return CheckResult(NAME, state, reason, figures)
    try:
        theirs = _current_metric(metric, truth, current)
    except InvalidConfig as error:
        reason = f"the comparison with {against} failed: {error.message}"
        return CheckResult(NAME, "failed", reason, figures)
    compared = metrics.paired_bootstrap(
        metric,
        ours,
        theirs,
        rows,
        policy.confidence,
        policy.resamples,
        seed,
    )
    figures |= compared.figures() | {"margin": policy.margin, "confidence": policy.confidence}
    comparison = compared.describe(against, rows, policy.confidence)
    if compared.low >= -policy.margin:
        return CheckResult(NAME, state, too_low or comparison, figures)
    margin_text = (
        f"{policy.margin:.1%}" if metric in metrics.RELATIVE_METRICS else f"{policy.margin:.4f}"
    )
    if compared.high < -policy.margin:
        worse_reason = f"worse by more than the margin of {margin_text}"
    elif compared.difference < -policy.margin:
        worse_reason = (
            f"worse by more than the margin of {margin_text} on these rows, but not with the "
            "required confidence"
        )
    else:
        worse_reason = (
            f"too few rows to prove that the version is not worse by more than {margin_text}"
        )
    reasons = [worse_reason, comparison]
    if too_low:
        reasons.append(too_low)
    return CheckResult(NAME, "failed", "; ".join(reasons), figures)


def _too_low_reason(metric: MetricName, value: float, policy: EvaluationPolicy) -> str:
    """Return a text if the value is worse than `at_least`, or empty."""
    if policy.at_least is None:
        return ""
    if metrics.HIGHER_IS_BETTER[metric]:
        is_worse = value < policy.at_least
    else:
        is_worse = value > policy.at_least
    if not is_worse:
        return ""
    return (
        f"{metric} {value:.4f} is worse than {policy.at_least:g}, the worst that the policy allows"
    )


def _current_metric(
    metric: MetricName,
    truth: Array,
    current: ModelPredictions,
) -> metrics.WeightedMetric:
    """Return the metric of the current version. Raises InvalidConfig if it is not a
    finite number.
    """
    theirs = metrics.weighted_metric(metric, truth, current)
    value = theirs(np.ones(len(truth)))
    if not np.isfinite(value):
        raise InvalidConfig(f"its {metric} is {value}: not a finite number")
    return theirs
