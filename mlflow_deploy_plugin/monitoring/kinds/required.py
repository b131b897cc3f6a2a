"""Requirements against what was measured: violated only where the whole interval is on the wrong side."""

from collections.abc import Sequence

import pyarrow as pa

from mlflow_deploy_plugin.inference_log.rows import microseconds_of
from mlflow_deploy_plugin.monitoring.judgement import Finding, State
from mlflow_deploy_plugin.monitoring.kinds.intervals import ERROR_BEFORE, Measure, Sampling
from mlflow_deploy_plugin.monitoring.question import Question
from mlflow_deploy_plugin.runtime.rows import EVENT_TIME
from mlflow_deploy_plugin.spec.criteria import Requirement


def confidence_of(rate: float, questions: int) -> float:
    """Of each interval, so that of all questions together no more than `rate` are called violated by chance.

    Bonferroni's inequality: the rate is shared among them, whatever they depend on. An interval has two sides, of which
    one violates; what is kept is twice as sure.
    """
    return 1 - rate / max(questions, 1)


def sampling_of(question: Question, rows: pa.Table, confidence: float) -> Sampling:
    """How rows of the log were drawn, as the monitor's spec says it."""
    if question.spec.independent_rows:
        return Sampling(confidence)
    return Sampling(confidence, microseconds_of(rows.column(EVENT_TIME)))


def finding(
    requirement: Requirement, measured: Measure | str, confidence: float, segment: str = "", prefix: str = ""
) -> Finding:
    """What is found of a requirement; a text says why the figure could not be had.

    Args:
        prefix: before the figure's name, as `estimated `.
    """
    subject = f"{prefix}{requirement.name}{f'({requirement.of})' if requirement.of else ''}"
    if isinstance(measured, str):
        return Finding(subject, "criterion", "not judged", measured, None, requirement.value, segment)
    state: State = "kept"
    if not (requirement.holds(measured.low) or requirement.holds(measured.high)):
        state = "violated"
    return Finding(
        subject,
        "criterion",
        state,
        _reason(requirement, measured, confidence, state),
        measured.value,
        requirement.value,
        segment,
    )


def conclude(findings: Sequence[Finding]) -> tuple[State, str]:
    """The state of the whole, and why."""
    violated = [one for one in findings if one.state == "violated"]
    if violated:
        rest = f", and {len(violated) - 1} more" if len(violated) > 1 else ""
        return "violated", f"{_shown(violated[0])}{rest}"
    judged = [one for one in findings if one.state == "kept"]
    if judged:
        return "kept", f"{_shown(judged[0])}{f', and {len(judged) - 1} more' if len(judged) > 1 else ''}"
    return "not judged", _shown(findings[0]) if findings else "nothing is required"


def worst_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    order = {"violated": 0, "drift": 0, "kept": 1, "no drift": 1, "not judged": 2}
    return tuple(sorted(findings, key=lambda one: order[one.state]))


def _reason(requirement: Requirement, measured: Measure, confidence: float, state: State) -> str:
    sure = "" if measured.method == ERROR_BEFORE else f", confidence {confidence:.4g}"
    interval = f"{measured.low:.4g} to {measured.high:.4g} ({measured.method}{sure})"
    fewer = f" (worth {measured.worth:,.0f} independent ones)" if measured.worth < 0.9 * measured.rows else ""
    said = f"{measured.value:.4g} on {measured.rows:,} rows{fewer}, {interval}; required is {requirement.text}"
    if state == "kept" and not requirement.holds(measured.value):
        return f"{said}, which the interval does not exclude"
    return said


def _shown(one: Finding) -> str:
    where = f" of {one.segment}" if one.segment else ""
    return f"{one.subject}{where}: {one.reason}"
