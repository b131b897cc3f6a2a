"""Performance: the metrics of labelled rows, and estimates of them before the labels are in."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.inference_log import EPOCH, Window, concat_tables
from mlflow_deploy_plugin.inference_log.reader import MAX_ROWS, WindowRows
from mlflow_deploy_plugin.monitoring.kinds.cbpe import CbpeEstimate, LabelledWindow, estimate, labels_contradict
from mlflow_deploy_plugin.monitoring.kinds.intervals import (
    MetricInterval,
    bonferroni_confidence,
    criterion_finding,
    event_sampling,
    overall_state,
)
from mlflow_deploy_plugin.monitoring.kinds.label_weights import LabelWeights, weigh_labels, weighted_metrics
from mlflow_deploy_plugin.monitoring.kinds.metrics import CLASSIFICATION, ClassPredictions, Metrics
from mlflow_deploy_plugin.monitoring.kinds.predictions import (
    Predictions,
    quote_names,
    read_predictions,
    row_notes,
    version_artifact,
)
from mlflow_deploy_plugin.monitoring.result import Finding, MonitorResult, WindowRequest
from mlflow_deploy_plugin.monitoring.segments import find_segments
from mlflow_deploy_plugin.runtime import Artifact
from mlflow_deploy_plugin.runtime.feeds import Array
from mlflow_deploy_plugin.spec import REGRESSION
from mlflow_deploy_plugin.spec.types import length_of

_MOST_CELLS = 20_000_000
_EARLIER_WINDOWS = 8
_LOOKED_AT = 24
_EARLIER_ROWS = 10_000
_COMPLETE = 0.95
"""The share of labelled rows above which it hardly matters why the others have no label."""
_TICK = timedelta(microseconds=1)
_INFORMS = "an estimate informs and decides nothing, unless the monitor says `estimate: decides`"


@dataclass(frozen=True, eq=False)
class _JoinedWindows:
    """The rows of a window (number 0) and the labelled ones of earlier windows, whose classes have the same places."""

    table: pa.Table
    predictions: Predictions
    classified: ClassPredictions
    number: Array
    notes: list[str]

    def earlier(self, chosen: Array, least: int) -> list[LabelledWindow]:
        """Return the chosen rows, [N] bool, of each earlier window that has `least` labelled ones among them."""
        found = []
        for window in range(1, int(self.number.max()) + 1):
            places = np.flatnonzero(chosen & (self.number == window) & self.predictions.is_labelled)
            if len(places) >= least:
                found.append(LabelledWindow(self.predictions.truth[places], self.classified.take(places)))
        return found


@dataclass(frozen=True, eq=False)
class _Window:
    """The window's rows and predictions, and the rows with a label, weighted for the rows without a label."""

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
        """The metrics that fit the model's answers."""
        return CLASSIFICATION if self.predictions.classified is not None else REGRESSION


def judge(request: WindowRequest) -> MonitorResult:
    """Judge the requirements on the labelled rows; with fewer than `min_rows` of them, on estimates."""
    rows = request.log.labelled(request.endpoint, request.window, affordable_rows(request), request.labels)
    if rows is None:
        return request.result("not judged", "the window has no rows")
    artifact = version_artifact(request, rows.model, rows.version)
    predictions = read_predictions(rows.table, artifact, request.capture.mask)
    notes = tuple(row_notes(rows, request.log))
    if isinstance(predictions, Refused):
        version = rows.model, rows.version
        return request.result("not judged", predictions.reason, version, rows.rows, notes=notes)
    if predictions.unusable:
        notes = (*notes, f"{predictions.unusable:,} labels are no numbers and are left out")
    if predictions.unanswered:
        notes = (*notes, f"{predictions.unanswered:,} rows with a label have an answer that is no number: left out")
    unknown, names = predictions.unknown
    if unknown and not predictions.label_mismatch:
        named = f"{unknown:,} labels name a class that the model does not know ({quote_names(names)})"
        notes = (*notes, f"{named}; each counts as a wrong answer")
    spec = request.spec
    labelled = weigh_labels(rows.table, predictions, spec.segment_by, spec.false_alarm_rate)
    window = _Window(request, rows, artifact, predictions, labelled, notes)
    if window.labels < spec.min_rows:
        return _judge_by_estimate(window)
    return _not_judged(window, predictions.label_mismatch) if predictions.label_mismatch else _judge_by_labels(window)


def affordable_rows(request: WindowRequest) -> int:
    """Return how many rows fit into memory with all columns, because labels may name a row by any of them."""
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
    for segment, rows in segments:
        names = tuple(one.name for one in spec.requirements if one.name in window.names)
        of_segment = weighted_metrics(window.predictions, labelled, rows, names, sampling)
        findings += _findings(window, of_segment, confidence, segment)
    figures = _figures(window, measured)
    if labelled.weights is not None:
        figures["effective_sample_size"] = labelled.effective_n
    notes = [*label_notes, *segment_notes]
    if window.labels < len(table):
        said = "" if window.labelled.differing else "; the metrics are of these alone"
        if window.labelled.compared and said:
            said += f", which are like the others in {', '.join(window.labelled.compared)}"
        notes.insert(0, f"{window.labels:,} of {len(table):,} rows have a label{said}")
    return _result(window, findings, figures, tuple(notes))


def _usable_labels(window: _Window) -> tuple[LabelWeights, list[str]]:
    """Return the labels as far as they represent rows without a label, and a note on each limit."""
    labelled, spec = window.labelled, window.request.spec
    if not labelled.differing:
        return labelled, []
    others = int((~labelled.rows).sum())
    unlike = f"rows with a label differ from those without in {', '.join(labelled.differing)}"
    tests = f"chi-square tests of {', '.join(labelled.compared)}, together at {spec.false_alarm_rate:g}"
    departs: bool | None = None
    notes: list[str] = []
    if labelled.is_selected:
        departs, notes = _labels_contradict_model(window)
    if departs:
        said = (
            "and they do not fit the model's probabilities: labels may be missing by what they would say, so that the "
            f"metrics are bounds, for any label of the {others:,} rows without"
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
    findings = [criterion_finding(one, Refused(reason), 1.0) for one in window.request.spec.requirements]
    return _result(window, findings, _figures(window, {}), ())


def _judge_by_estimate(window: _Window) -> MonitorResult:
    """Judge the requirements on metrics that are estimated from the model's own probabilities."""
    spec = window.request.spec
    if window.rows.rows < spec.min_rows:
        return _not_judged(window, f"the window has {window.rows.rows:,} rows; min_rows is {spec.min_rows}")
    missing = f"{window.labels:,} of {len(window.rows.table):,} rows have a label; min_rows is {spec.min_rows}"
    if window.predictions.label_mismatch:
        missing += f"; {window.predictions.label_mismatch}"
    expected = _estimate_window(window)
    figures = _figures(window, {})
    if isinstance(expected, Refused):
        return _not_judged(window, f"{missing}; nothing is estimated before: {expected.reason}")
    expectations, notes = expected
    of_all = expectations[0].estimate
    confidence = bonferroni_confidence(spec.false_alarm_rate, len(spec.requirements) * len(expectations))
    findings = []
    for segment, rows, estimated in expectations:
        metrics = {name: estimated.measure(name, rows, confidence) for name in estimated.values}
        for found in _findings(window, metrics, confidence, segment, prefix="estimated "):
            if spec.estimate == "informs" and found.state != "not judged":
                found = replace(found, state="not judged", reason=f"{found.reason}; {_INFORMS}")
            findings.append(found)
    corrected = "corrected by isotonic regression" if of_all.is_corrected else "as the model gives them"
    note = (
        f"{missing}; what is said is estimated from the model's own probabilities (CBPE), {corrected}, "
        f"checked on {of_all.windows} earlier windows with labels"
    )
    figures |= {f"estimated/{name}": value for name, value in of_all.values.items() if not isinstance(value, Refused)}
    for name in of_all.errors:
        measured = of_all.measure(name, 0, confidence)
        if isinstance(measured, MetricInterval):
            figures |= {f"estimated/{name}_low": measured.low, f"estimated/{name}_high": measured.high}
    figures["estimated/windows"] = float(of_all.windows)
    if of_all.calibration_error is not None:
        figures["estimated/calibration_error"] = of_all.calibration_error
    return _result(window, findings, figures, (note, *notes))


def _findings(
    window: _Window, measured: Metrics, confidence: float, segment: str = "", prefix: str = ""
) -> Iterator[Finding]:
    answers, needs = ("labels", "numbers") if window.predictions.classified is not None else ("numbers", "labels")
    for requirement in window.request.spec.requirements:
        name = requirement.name
        found = measured.get(name, Refused(f"{name} is a metric of {needs}, and the model answers {answers}"))
        yield criterion_finding(requirement, found, confidence, segment, prefix)


def _figures(window: _Window, measured: Metrics) -> dict[str, float]:
    figures = {"labelled_rows": float(window.labels), "labelled_share": window.labels / max(len(window.rows.table), 1)}
    for one in measured.values():
        if isinstance(one, MetricInterval):
            figures |= one.figures
    return figures


def _result(
    window: _Window, findings: list[Finding], figures: Mapping[str, float], notes: tuple[str, ...]
) -> MonitorResult:
    rows = window.rows
    return window.request.result(
        *overall_state(findings),
        (rows.model, rows.version),
        rows.rows,
        model_id=window.artifact.model_id if window.artifact else "",
        findings=findings,
        figures=figures,
        notes=(*window.notes, *notes),
    )


class _SegmentEstimate(NamedTuple):
    """The estimate for the `rows` judged rows of a segment; the segment without a name has all rows."""

    segment: str
    rows: int
    estimate: CbpeEstimate


def _estimate_window(window: _Window) -> tuple[list[_SegmentEstimate], list[str]] | Refused:
    """Return the estimates of all rows and of each segment, each checked on the same rows of earlier windows of the
    version; and a line for each thing that is left out."""
    spec, artifact, classified = window.request.spec, window.artifact, window.predictions.classified
    if classified is None:
        return Refused("the model answers numbers, and how far they are off cannot be seen from them")
    gives = artifact is not None and any(output.role == "probabilities" for output in artifact.outputs)
    if classified.probabilities is None and gives:
        assert artifact is not None
        labels = len(artifact.classes) or len(classified.classes)
        return Refused(
            "the probability of each label, from which it could be estimated, is not at hand: of at most 8 labels "
            f"they are read from the log, and the model has {labels:,}"
        )
    joined = _join_earlier_windows(window)
    if joined is None:
        return Refused("the rows of earlier windows do not fit")
    names = [one.name for one in spec.requirements if one.name in CLASSIFICATION]
    segments, notes = find_segments(joined.table, spec.segment_by, spec.min_rows, joined.number == 0)
    found = []
    for name, chosen in (("", np.ones(len(joined.table), bool)), *segments):
        own = chosen & (joined.number == 0)
        of_rows = estimate(joined.classified.take(own), joined.earlier(chosen, spec.min_rows), names)
        if isinstance(of_rows, Refused):
            return of_rows
        found.append(_SegmentEstimate(name, int(own.sum()), of_rows))
    return found, [*joined.notes, *notes]


def _labels_contradict_model(window: _Window) -> tuple[bool | None, list[str]]:
    """Return True if the window's labels do not fit the probabilities of their rows (None: there are none), and notes.
    Earlier windows whose rows have nearly all a label correct the probabilities."""
    spec, joined = window.request.spec, _join_earlier_windows(window, _COMPLETE)
    if joined is None or joined.classified.probabilities is None:
        return None, []
    own = (joined.number == 0) & joined.predictions.is_labelled
    earlier = joined.earlier(np.ones(len(joined.table), bool), spec.min_rows)
    truth, answers = joined.predictions.truth[own], joined.classified.take(own)
    return labels_contradict(truth, answers, earlier, 1 - spec.false_alarm_rate), joined.notes


def _join_earlier_windows(window: _Window, least_share: float = 0.0) -> _JoinedWindows | None:
    """Return the rows with the labelled ones of the latest windows of the same length that have enough of them. Windows
    whose labels may be missing by the label itself are left out and counted in the notes."""
    request, rows, artifact, spec = window.request, window.rows, window.artifact, window.request.spec
    tables, selected = [rows.table], 0
    for past in islice(_earlier_windows(request), _LOOKED_AT):
        earlier = request.log.labelled(request.endpoint, past, _EARLIER_ROWS, request.labels)
        if earlier is None or (earlier.model, earlier.version) != (rows.model, rows.version):
            continue
        known = read_predictions(earlier.table, artifact, request.capture.mask)
        if isinstance(known, Refused) or known.label_mismatch:
            continue
        if known.is_labelled.sum() < spec.min_rows or known.is_labelled.mean() < least_share:
            continue
        if weigh_labels(earlier.table, known, spec.segment_by, spec.false_alarm_rate).is_selected:
            selected += 1
            continue
        tables.append(earlier.table.filter(pa.array(known.is_labelled)))
        if len(tables) > _EARLIER_WINDOWS:
            break
    together = concat_tables(tables)
    predictions = read_predictions(together, artifact, request.capture.mask)
    if isinstance(predictions, Refused) or predictions.classified is None:
        return None
    left_out = f"{selected} earlier windows are left out, whose rows with a label are not like those without"
    number = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    return _JoinedWindows(together, predictions, predictions.classified, number, [left_out] if selected else [])


def _earlier_windows(request: WindowRequest) -> Iterator[Window]:
    """Yield the earlier windows of hours that have rows and whose labels should be in, the latest first."""
    length, start = request.window.length, request.window.start
    wait = length_of(request.spec.labels_within or "0s")
    number = max(math.ceil(wait / length) - 1, 0)  # windows between the judged and the next one
    for hour in request.log.walk_hours(request.endpoint, Window(EPOCH, start - number * length), newest_first=True):
        last = (start - hour.start - _TICK) // length
        for between in range(max((start - hour.end) // length, number), last + 1):
            yield Window(start - (between + 1) * length, start - between * length)
        number = max(number, last + 1)
