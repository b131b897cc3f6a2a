"""Requirements against measured figures: violated only if the whole interval is on the wrong side, kept only if it is
on the right one. If it holds both sides, the state is "cannot tell".
"""

from collections.abc import Sequence

import pyarrow as pa

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.inference_log import microseconds_of
from mlflow_deploy_plugin.monitoring.kinds.intervals import MetricInterval, Sampling
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.monitoring.result import Finding, State
from mlflow_deploy_plugin.runtime import EVENT_TIME
from mlflow_deploy_plugin.spec import Requirement


def bonferroni_confidence(rate: float, intervals: int) -> float:
    """Return the confidence of each interval, so that of all of them together no more than `rate` are called violated
    by chance.

    Bonferroni's inequality: the rate is shared among them, whatever they depend on. An interval has two sides, of which
    one violates and the other keeps: each is passed by chance in half of that share.
    """
    return 1 - rate / max(intervals, 1)


def event_sampling(request: WindowRequest, rows: pa.Table, confidence: float) -> Sampling:
    """Return how rows of the log were drawn, as the monitor's spec says it."""
    if request.spec.independent_rows:
        return Sampling(confidence)
    return Sampling(confidence, microseconds_of(rows.column(EVENT_TIME)))


def criterion_finding(
    requirement: Requirement, measured: MetricInterval | Refused, confidence: float, segment: str = "", prefix: str = ""
) -> Finding:
    """Return the finding of a requirement.

    Args:
        prefix: before the figure's name, as `estimated `.
    """
    subject = f"{prefix}{requirement.name}{f'({requirement.argument})' if requirement.argument else ''}"
    if isinstance(measured, Refused):
        return Finding(subject, "criterion", "not judged", measured.reason, None, requirement.value, segment)
    state = criterion_state(requirement.holds(measured.low), requirement.holds(measured.high))
    return Finding(
        subject,
        "criterion",
        state,
        _reason(requirement, measured, confidence, state),
        measured.value,
        requirement.value,
        segment,
    )


def criterion_state(holds_at_low: bool, holds_at_high: bool) -> State:
    """Return the state of a requirement, given whether it holds at the two ends of the interval."""
    if holds_at_low and holds_at_high:
        return "kept"
    return "cannot tell" if holds_at_low or holds_at_high else "violated"


def overall_state(findings: Sequence[Finding]) -> tuple[State, str]:
    """Return the state of the whole, and why: violated where anything is; kept where everything is shown to hold.

    A segment that was not judged keeps nothing from being kept: its requirement is that of all rows, too.
    """
    violated = [one for one in findings if one.state == "violated"]
    if violated:
        return "violated", _shown_first(violated)
    kept = [one for one in findings if one.state == "kept"]
    unknown = [one for one in findings if one.state == "cannot tell"]
    if kept or unknown:
        unknown += [one for one in findings if one.state == "not judged" and not one.segment]
    if unknown:
        return "cannot tell", _shown_first(unknown)
    if kept:
        return "kept", _shown_first(kept)
    return "not judged", _shown(findings[0]) if findings else "nothing is required"


def sort_criteria(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    order = {"violated": 0, "cannot tell": 1, "kept": 2, "not judged": 3}
    return tuple(sorted(findings, key=lambda one: order[one.state]))


def _reason(requirement: Requirement, measured: MetricInterval, confidence: float, state: State) -> str:
    interval = f"{measured.low:.4g} to {measured.high:.4g} ({measured.method}, confidence {confidence:.4g})"
    fewer = (
        f" (worth {measured.effective_n:,.0f} independent ones)" if measured.effective_n < 0.9 * measured.rows else ""
    )
    said = f"{measured.value:.4g} on {measured.rows:,} rows{fewer}, {interval}; required is {requirement.text}"
    return f"{said}, which lies within the interval" if state == "cannot tell" else said


def _shown_first(ones: Sequence[Finding]) -> str:
    return f"{_shown(ones[0])}{f', and {len(ones) - 1} more' if len(ones) > 1 else ''}"


def _shown(one: Finding) -> str:
    where = f" of {one.segment}" if one.segment else ""
    return f"{one.subject}{where}: {one.reason}"
