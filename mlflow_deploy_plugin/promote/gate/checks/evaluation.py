"""Evaluation: on labelled rows, the new version must not be worse than the current
version by more than a margin.

The lower bound of the paired bootstrap's interval must be above the negative margin, so
too few rows fail the check. Each resample weights a row equally for both versions.
Pairing needs far fewer rows than two separate intervals.
"""

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.policy import EvaluationPolicy
from mlflow_deploy_plugin.promote.gate.verdict import NO_CURRENT, CheckResult, state_of
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
        return CheckResult(NAME, "failed", reason, figures)
    if not np.isfinite(value):
        reason = f"{metric} of the new version is {value}: not a finite number"
        return CheckResult(NAME, "failed", reason, figures)
    too_low = ""
    if policy.at_least is not None:
        is_worse = value > policy.at_least
        if metrics.HIGHER_IS_BETTER[metric]:
            is_worse = value < policy.at_least
        if is_worse:
            too_low = (
                f"{metric} {value:.4f} is worse than {policy.at_least:g}, the worst that the "
                "policy allows"
            )
    if current is None:
        reason = too_low or f"{metric} {value:.4f} on {rows:,} rows; {NO_CURRENT}"
        return CheckResult(NAME, state_of(too_low), reason, figures)
    try:
        theirs = metrics.weighted_metric(metric, truth, current)
        value = theirs(np.ones(rows))
        if not np.isfinite(value):
            raise InvalidConfig(f"its {metric} is {value}: not a finite number")
    except InvalidConfig as error:
        reason = f"the comparison with {against} failed: {error.message}"
        return CheckResult(NAME, "failed", reason, figures)
    compared = metrics.paired_bootstrap(
        metric, ours, theirs, rows, policy.confidence, policy.resamples, seed
    )
    figures |= compared.figures() | {"margin": policy.margin, "confidence": policy.confidence}
    comparison = compared.describe(against, rows, policy.confidence)
    if compared.low >= -policy.margin:
        return CheckResult(NAME, state_of(too_low), too_low or comparison, figures)
    margin = f"{policy.margin:.4f}"
    if metric in metrics.RELATIVE_METRICS:
        margin = f"{policy.margin:.1%}"
    reason = f"too few rows to prove that the version is not worse by more than {margin}"
    if compared.high < -policy.margin:
        reason = f"worse by more than the margin of {margin}"
    elif compared.difference < -policy.margin:
        reason = (
            f"worse by more than the margin of {margin} on these rows, but not with the required "
            "confidence"
        )
    reason = "; ".join(filter(None, (reason, comparison, too_low)))
    return CheckResult(NAME, "failed", reason, figures)
