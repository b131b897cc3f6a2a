"""Performance: were the answers right, now that it is known? Before it is, how right they may be expected to be."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mlflow_deploy_plugin.inference_log.reader import MAX_ROWS, WindowRows
from mlflow_deploy_plugin.monitoring.judgement import Finding, Judged
from mlflow_deploy_plugin.monitoring.kinds.answers import Answered, listed, read_answers
from mlflow_deploy_plugin.monitoring.kinds.estimate import Estimate
from mlflow_deploy_plugin.monitoring.kinds.expected import Expectation, expect, labels_depart
from mlflow_deploy_plugin.monitoring.kinds.intervals import Measure
from mlflow_deploy_plugin.monitoring.kinds.labelled import Labelled, compare_labelled, measure
from mlflow_deploy_plugin.monitoring.kinds.measures import CLASSIFICATION, Measured
from mlflow_deploy_plugin.monitoring.kinds.notes import row_notes
from mlflow_deploy_plugin.monitoring.kinds.required import conclude, confidence_of, finding, sampling_of, worst_first
from mlflow_deploy_plugin.monitoring.kinds.segments import Segment, segments_of
from mlflow_deploy_plugin.monitoring.kinds.versions import version_artifact
from mlflow_deploy_plugin.monitoring.question import Question
from mlflow_deploy_plugin.runtime import Artifact
from mlflow_deploy_plugin.spec import REGRESSION

_MOST_CELLS = 20_000_000
_INFORMS = "an estimate informs and decides nothing, unless the monitor says `estimate: decides`"


@dataclass(frozen=True, eq=False)
class _Window:
    """What is known of the window.

    Attributes:
        labelled: which of the table's rows have a label, and for whom they speak.
    """

    question: Question
    rows: WindowRows
    artifact: Artifact | None
    answered: Answered
    labelled: Labelled
    notes: tuple[str, ...]

    @property
    def labels(self) -> int:
        return int(self.labelled.rows.sum())

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
    notes = (*notes, *_odd_labels(answered))
    spec = question.spec
    labelled = compare_labelled(rows.table, answered, spec.segment_by, spec.false_alarm_rate)
    window = _Window(question, rows, artifact, answered, labelled, notes)
    if window.labels < spec.min_rows:
        return _judged_by_estimate(window)
    return _judged_by_nothing(window, answered.unfit) if answered.unfit else _judged_by_labels(window)


def affordable_rows(question: Question) -> int:
    """Rows are held with all of their columns, since labels may name them by any of these."""
    first = next(question.log.batches(question.endpoint, question.window), None)
    return MAX_ROWS if first is None else min(MAX_ROWS, _MOST_CELLS // first.num_columns)


def _judged_by_labels(window: _Window) -> Judged:
    spec, table = window.question.spec, window.rows.table
    segments, segment_notes = segments_of(table, spec.segment_by, spec.min_rows, window.labelled.rows)
    confidence = confidence_of(spec.false_alarm_rate, len(spec.requirements) * (1 + len(segments)))
    sampling = sampling_of(window.question, table, confidence)
    labelled, label_notes = _trusted(window)
    measured = measure(window.answered, labelled, np.ones(len(table), bool), window.names, sampling)
    findings = list(_findings(window, measured, confidence))
    for segment in segments:
        names = tuple(one.name for one in spec.requirements if one.name in window.names)
        of_segment = measure(window.answered, labelled, segment.rows, names, sampling)
        findings += _findings(window, of_segment, confidence, segment)
    figures = _figures(window, measured)
    if labelled.weights is not None:
        figures["effective_sample_size"] = labelled.worth
    notes = (*_label_notes(window), *label_notes, *segment_notes)
    return _conclusion(window, findings, figures, notes)


def _trusted(window: _Window) -> tuple[Labelled, list[str]]:
    """The labels as far as they speak for rows without one, and what is said of that, a line each."""
    labelled, spec = window.labelled, window.question.spec
    if not labelled.differing:
        return labelled, []
    others = int((~labelled.rows).sum())
    unlike = f"rows with a label differ from those without in {', '.join(labelled.differing)}"
    tests = f"chi-square tests of {', '.join(labelled.compared)}, together at {spec.false_alarm_rate:g}"
    departs: bool | None = None
    notes: list[str] = []
    if labelled.is_selected:
        departs, notes = labels_depart(window.question, window.rows, window.artifact)
    if departs:
        said = (
            "and they do not fit the model's probabilities: labels may be missing by what they would say, so that the "
            f"figures are bounds, for any label of the {others:,} rows without"
        )
        return labelled.at_worst, [f"{unlike} ({tests}), {said}", *notes]
    unknown = int(labelled.unknown.sum())
    said = ""
    if labelled.weights is not None:
        said = f"; they are weighted by how often such rows have one, and worth {labelled.worth:,.0f} of equal weight"
    if unknown:
        said += f"; of {unknown:,} rows without a label hardly one like them has any, and any is possible for them"
    if labelled.is_selected and departs is None:
        said += "; whether they are missing by what they would say cannot be seen without probabilities"
    return labelled, [f"{unlike} ({tests}){said}", *notes]


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
    if window.answered.unfit:
        missing += f"; {window.answered.unfit}"
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
        said = "" if window.labelled.differing else "; the figures are of these alone"
        if window.labelled.compared and said:
            said += f", which are like the others in {', '.join(window.labelled.compared)}"
        yield f"{window.labels:,} of {rows:,} rows have a label{said}"


def _odd_labels(answered: Answered) -> Iterator[str]:
    if answered.unusable:
        yield f"{answered.unusable:,} labels are no numbers and are left out"
    unknown, names = answered.unknown
    if unknown and not answered.unfit:
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
