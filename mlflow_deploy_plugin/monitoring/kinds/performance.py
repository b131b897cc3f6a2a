"""Performance: the metrics of labelled rows, and estimates of them before the labels are in."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.inference_log import MAX_ROWS, WindowRows
from mlflow_deploy_plugin.monitoring.kinds.cbpe import CbpeEstimate
from mlflow_deploy_plugin.monitoring.kinds.estimates import SegmentEstimate, estimate_window, labels_contradict_model
from mlflow_deploy_plugin.monitoring.kinds.intervals import MetricInterval
from mlflow_deploy_plugin.monitoring.kinds.label_weights import LabelWeights, weigh_labels, weighted_metrics
from mlflow_deploy_plugin.monitoring.kinds.log_rows import row_notes, version_artifact
from mlflow_deploy_plugin.monitoring.kinds.metrics import CLASSIFICATION, Metrics
from mlflow_deploy_plugin.monitoring.kinds.predictions import Predictions, quote_names, read_predictions
from mlflow_deploy_plugin.monitoring.kinds.requirements import (
    bonferroni_confidence,
    criterion_finding,
    event_sampling,
    overall_state,
    sort_criteria,
)
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.monitoring.result import Finding, MonitorResult
from mlflow_deploy_plugin.monitoring.segments import Segment, find_segments
from mlflow_deploy_plugin.runtime import Artifact
from mlflow_deploy_plugin.spec import REGRESSION

_MOST_CELLS = 20_000_000
_INFORMS = "an estimate informs and decides nothing, unless the monitor says `estimate: decides`"


@dataclass(frozen=True, eq=False)
class _Window:
    """The window's rows, predictions and labels.

    Attributes:
        labelled: which of the table's rows have a label, and for whom they speak.
    """

    request: WindowRequest
    rows: WindowRows
    artifact: Artifact | None
    predictions: Predictions
    labelled: LabelWeights
    notes: tuple[str, ...]

    @property
    def labels(self) -> int:
        return int(self.labelled.rows.sum())

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that fit what the model answers."""
        return CLASSIFICATION if self.predictions.classified is not None else REGRESSION


def judge(request: WindowRequest) -> MonitorResult:
    """Judge the requirements on the labelled rows; with fewer than `min_rows` of them, on estimates.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    rows = request.log.labelled(request.endpoint, request.window, affordable_rows(request))
    if rows is None:
        return request.not_judged("the window has no rows")
    artifact = version_artifact(request, rows.model, rows.version)
    predictions = read_predictions(rows.table, artifact)
    notes = tuple(row_notes(rows, request.log))
    if isinstance(predictions, Refused):
        return request.not_judged(
            predictions.reason, model=rows.model, version=rows.version, rows=rows.rows, notes=notes
        )
    notes = (*notes, *_odd_labels(predictions))
    spec = request.spec
    labelled = weigh_labels(rows.table, predictions, spec.segment_by, spec.false_alarm_rate)
    window = _Window(request, rows, artifact, predictions, labelled, notes)
    if window.labels < spec.min_rows:
        return _judge_by_estimate(window)
    return _not_judged(window, predictions.label_mismatch) if predictions.label_mismatch else _judge_by_labels(window)


def affordable_rows(request: WindowRequest) -> int:
    """Return how many rows can be held with all of their columns, by any of which labels may name them."""
    first = next(request.log.batches(request.endpoint, request.window), None)
    return MAX_ROWS if first is None else min(MAX_ROWS, _MOST_CELLS // first.num_columns)


def _judge_by_labels(window: _Window) -> MonitorResult:
    spec, table = window.request.spec, window.rows.table
    segments, segment_notes = find_segments(table, spec.segment_by, spec.min_rows, window.labelled.rows)
    confidence = bonferroni_confidence(spec.false_alarm_rate, len(spec.requirements) * (1 + len(segments)))
    sampling = event_sampling(window.request, table, confidence)
    labelled, label_notes = _usable_labels(window)
    measured = weighted_metrics(window.predictions, labelled, np.ones(len(table), bool), window.names, sampling)
    findings = list(_findings(window, measured, confidence))
    for segment in segments:
        names = tuple(one.name for one in spec.requirements if one.name in window.names)
        of_segment = weighted_metrics(window.predictions, labelled, segment.rows, names, sampling)
        findings += _findings(window, of_segment, confidence, segment)
    figures = _figures(window, measured)
    if labelled.weights is not None:
        figures["effective_sample_size"] = labelled.effective_n
    notes = (*_label_notes(window), *label_notes, *segment_notes)
    return _result(window, findings, figures, notes)


def _usable_labels(window: _Window) -> tuple[LabelWeights, list[str]]:
    """Return the labels as far as they speak for rows without one, and a line on each thing that limits them."""
    labelled, spec = window.labelled, window.request.spec
    if not labelled.differing:
        return labelled, []
    others = int((~labelled.rows).sum())
    unlike = f"rows with a label differ from those without in {', '.join(labelled.differing)}"
    tests = f"chi-square tests of {', '.join(labelled.compared)}, together at {spec.false_alarm_rate:g}"
    departs: bool | None = None
    notes: list[str] = []
    if labelled.is_selected:
        departs, notes = labels_contradict_model(window.request, window.rows, window.artifact)
    if departs:
        said = (
            "and they do not fit the model's probabilities: labels may be missing by what they would say, so that the "
            f"figures are bounds, for any label of the {others:,} rows without"
        )
        return labelled.at_worst, [f"{unlike} ({tests}), {said}", *notes]
    unknown = int(labelled.unknown.sum())
    said = ""
    if labelled.weights is not None:
        worth = f"{labelled.effective_n:,.0f}"
        said = f"; they are weighted by how often such rows have one, and worth {worth} of equal weight"
    if unknown:
        said += f"; of {unknown:,} rows without a label hardly one like them has any, and any is possible for them"
    if labelled.is_selected and departs is None:
        said += "; whether they are missing by what they would say cannot be seen without probabilities"
    return labelled, [f"{unlike} ({tests}){said}", *notes]


def _not_judged(window: _Window, reason: str) -> MonitorResult:
    requirements = window.request.spec.requirements
    findings = [Finding(one.name, "criterion", "not judged", reason, None, one.value) for one in requirements]
    return _result(window, findings, _figures(window, {}), ())


def _judge_by_estimate(window: _Window) -> MonitorResult:
    """Judge the requirements on what the model's own probabilities let expect."""
    spec = window.request.spec
    if window.rows.rows < spec.min_rows:
        return _not_judged(window, f"the window has {window.rows.rows:,} rows; min_rows is {spec.min_rows}")
    missing = f"{window.labels:,} of {len(window.rows.table):,} rows have a label; min_rows is {spec.min_rows}"
    if window.predictions.label_mismatch:
        missing += f"; {window.predictions.label_mismatch}"
    expected = estimate_window(window.request, window.rows, window.artifact, window.predictions)
    figures = _figures(window, {})
    if isinstance(expected, Refused):
        return _not_judged(window, f"{missing}; nothing is estimated before: {expected.reason}")
    expectations, notes = expected
    of_all = expectations[0].estimate
    confidence = bonferroni_confidence(spec.false_alarm_rate, len(spec.requirements) * len(expectations))
    findings = [one for expectation in expectations for one in _expected_findings(window, expectation, confidence)]
    corrected = "corrected by isotonic regression" if of_all.is_corrected else "as the model gives them"
    note = (
        f"{missing}; what is said is estimated from the model's own probabilities (CBPE), {corrected}, "
        f"checked on {of_all.windows} earlier windows with labels"
    )
    figures = {**figures, **_estimated_figures(of_all, confidence)}
    return _result(window, findings, figures, (note, *notes))


def _expected_findings(window: _Window, expected: SegmentEstimate, confidence: float) -> Iterator[Finding]:
    spec = window.request.spec
    for requirement in spec.requirements:
        name = requirement.name
        known = name in expected.estimate.values
        measured = expected.estimate.measure(name, expected.rows, confidence) if known else _wrong_metric(window, name)
        found = criterion_finding(requirement, measured, confidence, expected.segment, prefix="estimated ")
        if spec.estimate == "informs" and found.state != "not judged":
            found = replace(found, state="not judged", reason=f"{found.reason}; {_INFORMS}")
        yield found


def _findings(
    window: _Window, measured: Metrics, confidence: float, segment: Segment | None = None
) -> Iterator[Finding]:
    for requirement in window.request.spec.requirements:
        found = measured.get(requirement.name, _wrong_metric(window, requirement.name))
        yield criterion_finding(requirement, found, confidence, segment.name if segment else "")


def _wrong_metric(window: _Window, name: str) -> Refused:
    answers, needs = ("labels", "numbers") if window.predictions.classified is not None else ("numbers", "labels")
    return Refused(f"{name} is a figure of {needs}, and the model answers {answers}")


def _figures(window: _Window, measured: Metrics) -> dict[str, float]:
    figures = {
        "labelled_rows": float(window.labels),
        "labelled_share": window.labels / max(len(window.rows.table), 1),
    }
    for name, one in measured.items():
        if isinstance(one, MetricInterval):
            figures |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    return figures


def _estimated_figures(expected: CbpeEstimate, confidence: float) -> Mapping[str, float]:
    figures = {f"estimated/{name}": value for name, value in expected.values.items() if not isinstance(value, Refused)}
    for name in expected.errors:
        measured = expected.measure(name, 0, confidence)
        if isinstance(measured, MetricInterval):
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


def _odd_labels(predictions: Predictions) -> Iterator[str]:
    if predictions.unusable:
        yield f"{predictions.unusable:,} labels are no numbers and are left out"
    unknown, names = predictions.unknown
    if unknown and not predictions.label_mismatch:
        yield (
            f"{unknown:,} labels name a class that the model does not know ({quote_names(names)}); each counts as a "
            "wrong answer"
        )


def _result(
    window: _Window, findings: list[Finding], figures: Mapping[str, float], notes: tuple[str, ...]
) -> MonitorResult:
    rows = window.rows
    state, reason = overall_state(findings)
    return window.request.result(
        state,
        reason,
        model=rows.model,
        version=rows.version,
        model_id=window.artifact.model_id if window.artifact else "",
        rows=rows.rows,
        findings=sort_criteria(findings),
        figures=figures,
        notes=(*window.notes, *notes),
    )
