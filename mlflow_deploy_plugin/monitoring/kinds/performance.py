"""Performance: were the answers right, now that it is known? Before it is, how right they may be expected to be."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mlflow_deploy_plugin.inference_log.reader import MAX_ROWS, WindowRows
from mlflow_deploy_plugin.monitoring.features import Array
from mlflow_deploy_plugin.monitoring.judgement import Finding, Judged
from mlflow_deploy_plugin.monitoring.kinds.answers import Answered, listed, read_answers
from mlflow_deploy_plugin.monitoring.kinds.estimate import Estimate
from mlflow_deploy_plugin.monitoring.kinds.expected import Expectation, expect
from mlflow_deploy_plugin.monitoring.kinds.intervals import Measure
from mlflow_deploy_plugin.monitoring.kinds.measures import (
    CLASSIFICATION,
    Measured,
    classification,
    regression,
)
from mlflow_deploy_plugin.monitoring.kinds.notes import row_notes
from mlflow_deploy_plugin.monitoring.kinds.required import conclude, confidence_of, finding, sampling_of, worst_first
from mlflow_deploy_plugin.monitoring.kinds.segments import Segment, segments_of
from mlflow_deploy_plugin.monitoring.kinds.versions import version_artifact
from mlflow_deploy_plugin.monitoring.question import Question
from mlflow_deploy_plugin.runtime.artifact import Artifact
from mlflow_deploy_plugin.spec.monitors import REGRESSION

_MOST_CELLS = 20_000_000
_INFORMS = "an estimate informs and decides nothing, unless the monitor says `estimate: decides`"


@dataclass(frozen=True, eq=False)
class _Window:
    """What is known of the window.

    Attributes:
        labelled: [N] bool of the table's rows.
    """

    question: Question
    rows: WindowRows
    artifact: Artifact | None
    answered: Answered
    labelled: Array
    notes: tuple[str, ...]

    @property
    def labels(self) -> int:
        return int(self.labelled.sum())

    @property
    def names(self) -> tuple[str, ...]:
        """The figures that fit what the model answers."""
        return CLASSIFICATION if self.answered.classified is not None else REGRESSION


def judge(question: Question) -> Judged:
    """Judges what is required on the labelled rows; with fewer than `min_rows` of them, on what may be expected.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    rows = question.log.labelled(question.endpoint, question.window, affordable_rows(question))
    if rows is None:
        return question.not_judged("the window has no rows")
    artifact = version_artifact(question, rows.model, rows.version)
    answered = read_answers(rows.table, artifact)
    notes = tuple(row_notes(rows, question.log))
    if isinstance(answered, str):
        return question.not_judged(answered, model=rows.model, version=rows.version, rows=rows.rows, notes=notes)
    window = _Window(question, rows, artifact, answered, answered.is_labelled, notes)
    if answered.unfit:
        return _judged_by_nothing(window, answered.unfit)
    if window.labels >= question.spec.min_rows:
        return _judged_by_labels(window)
    return _judged_by_estimate(window)


def affordable_rows(question: Question) -> int:
    """Rows are held with all of their columns, since labels may name them by any of these."""
    first = next(question.log.batches(question.endpoint, question.window), None)
    return MAX_ROWS if first is None else min(MAX_ROWS, _MOST_CELLS // first.num_columns)


def _judged_by_labels(window: _Window) -> Judged:
    spec = window.question.spec
    segments, segment_notes = segments_of(window.rows.table, spec.segment_by, spec.min_rows, window.labelled)
    confidence = confidence_of(spec.false_alarm_rate, len(spec.requirements) * (1 + len(segments)))
    measured = _measure(window, window.labelled, window.names, confidence)
    findings = list(_findings(window, measured, confidence))
    for segment in segments:
        names = tuple(one.name for one in spec.requirements if one.name in window.names)
        of_segment = _measure(window, window.labelled & segment.rows, names, confidence)
        findings += _findings(window, of_segment, confidence, segment)
    return _conclusion(window, findings, _figures(window, measured), (*_label_notes(window), *segment_notes))


def _judged_by_nothing(window: _Window, reason: str) -> Judged:
    requirements = window.question.spec.requirements
    findings = [Finding(one.name, "criterion", "not judged", reason, None, one.value) for one in requirements]
    return _conclusion(window, findings, _figures(window, {}), ())


def _judged_by_estimate(window: _Window) -> Judged:
    """What the labels cannot say yet."""
    spec = window.question.spec
    if window.rows.rows < spec.min_rows:
        return _judged_by_nothing(window, f"the window has {window.rows.rows:,} rows; min_rows is {spec.min_rows}")
    missing = f"{window.labels:,} of {len(window.rows.table):,} rows have a label; min_rows is {spec.min_rows}"
    expected = expect(window.question, window.rows, window.artifact, window.answered)
    figures = _figures(window, {})
    if isinstance(expected, str):
        return _judged_by_nothing(window, f"{missing}; nothing is estimated before: {expected}")
    expectations, notes = expected
    of_all = expectations[0].estimate
    confidence = confidence_of(spec.false_alarm_rate, len(spec.requirements) * len(expectations))
    findings = [one for expectation in expectations for one in _expected_findings(window, expectation, confidence)]
    corrected = "corrected by isotonic regression" if of_all.is_corrected else "as the model gives them"
    note = (
        f"{missing}; what is said is estimated from the model's own probabilities (CBPE), {corrected}, "
        f"checked on {of_all.windows} earlier windows with labels"
    )
    figures = {**figures, **_estimated_figures(of_all, confidence)}
    return _conclusion(window, findings, figures, (note, *notes))


def _expected_findings(window: _Window, expected: Expectation, confidence: float) -> Iterator[Finding]:
    spec = window.question.spec
    for requirement in spec.requirements:
        name = requirement.name
        known = name in expected.estimate.values
        measured = expected.estimate.measure(name, expected.rows, confidence) if known else _unfit(window, name)
        found = finding(requirement, measured, confidence, expected.segment, prefix="estimated ")
        if spec.estimate == "informs" and found.state != "not judged":
            found = replace(found, state="not judged", reason=f"{found.reason}; {_INFORMS}")
        yield found


def _measure(window: _Window, rows: Array, names: tuple[str, ...], confidence: float) -> Measured:
    answered = window.answered
    sampling = sampling_of(window.question, window.rows.table, confidence)
    if answered.classified is not None:
        return classification(answered.truth[rows], answered.classified.take(rows), names, sampling.of(rows))
    assert answered.numbers is not None
    usable = rows & np.isfinite(answered.numbers)
    if not usable.any():
        return dict.fromkeys(names, "no labelled row has an answer that is a number")
    return regression(answered.truth[usable], answered.numbers[usable], names, sampling.of(usable))


def _findings(
    window: _Window, measured: Measured, confidence: float, segment: Segment | None = None
) -> Iterator[Finding]:
    for requirement in window.question.spec.requirements:
        found = measured.get(requirement.name, _unfit(window, requirement.name))
        yield finding(requirement, found, confidence, segment.name if segment else "")


def _unfit(window: _Window, name: str) -> str:
    answers, needs = ("labels", "numbers") if window.answered.classified is not None else ("numbers", "labels")
    return f"{name} is a figure of {needs}, and the model answers {answers}"


def _figures(window: _Window, measured: Measured) -> dict[str, float]:
    figures = {
        "labelled_rows": float(window.labels),
        "labelled_share": window.labels / max(len(window.rows.table), 1),
    }
    for name, one in measured.items():
        if isinstance(one, Measure):
            figures |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    return figures


def _estimated_figures(expected: Estimate, confidence: float) -> Mapping[str, float]:
    figures = {f"estimated/{name}": value for name, value in expected.values.items() if not isinstance(value, str)}
    for name in expected.errors:
        measured = expected.measure(name, 0, confidence)
        if isinstance(measured, Measure):
            figures |= {f"estimated/{name}_low": measured.low, f"estimated/{name}_high": measured.high}
    figures["estimated/windows"] = float(expected.windows)
    if expected.calibration_error is not None:
        figures["estimated/calibration_error"] = expected.calibration_error
    return figures


def _label_notes(window: _Window) -> Iterator[str]:
    rows = len(window.rows.table)
    if window.labels < rows:
        yield f"{window.labels:,} of {rows:,} rows have a label; the figures are of these alone"
    if window.answered.unusable:
        yield f"{window.answered.unusable:,} labels are no numbers and are left out"
    unknown, names = window.answered.unknown
    if unknown:
        yield (
            f"{unknown:,} labels name a class that the model does not know ({listed(names)}); each counts as a wrong "
            "answer"
        )


def _conclusion(
    window: _Window, findings: list[Finding], figures: Mapping[str, float], notes: tuple[str, ...]
) -> Judged:
    rows = window.rows
    state, reason = conclude(findings)
    return Judged(
        window.question.judgement(
            state,
            reason,
            model=rows.model,
            version=rows.version,
            model_id=window.artifact.model_id if window.artifact else "",
            rows=rows.rows,
            findings=worst_first(findings),
            figures=figures,
            notes=(*window.notes, *notes),
        )
    )
