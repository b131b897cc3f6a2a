"""Performance: the metrics of labelled rows, and metrics estimated before the labels
are known.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.spec.monitors import REGRESSION, REPEATED_WINDOWS
from mlflow_deploy_plugin.core.spec.types import EPOCH, length_of
from mlflow_deploy_plugin.serve.inference_log.reader import MAX_ROWS, WindowRows
from mlflow_deploy_plugin.serve.inference_log.tables import concat_tables
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.history import with_history
from mlflow_deploy_plugin.watch.result import Finding, MonitorResult, WindowRequest
from mlflow_deploy_plugin.watch.segments import find_segments
from mlflow_deploy_plugin.watch.statistics import intervals
from mlflow_deploy_plugin.watch.statistics.cbpe import (
    COMPLETE,
    CbpeEstimate,
    LabelledWindow,
    LabelTrust,
    estimate,
    trust_labels,
)
from mlflow_deploy_plugin.watch.statistics.label_weights import (
    LabelWeights,
    weigh_labels,
    weighted_metrics,
)
from mlflow_deploy_plugin.watch.statistics.metrics import CLASSIFICATION, ClassPredictions, Metrics
from mlflow_deploy_plugin.watch.statistics.predictions import (
    Predictions,
    read_predictions,
    row_notes,
    version_artifact,
)

_MOST_CELLS = 20_000_000
_EARLIER_WINDOWS = 8
_LOOKED_AT = 24
_EARLIER_ROWS = 10_000
_TICK = timedelta(microseconds=1)
_INFORMS = "an estimate is only informative, unless the monitor sets `estimate: decides`"


@dataclass(frozen=True, eq=False)
class _JoinedWindows:
    """The rows of a window (number 0) and the labelled rows of earlier windows. All
    windows share class indices. `shares` are the shares of labelled rows, by window.
    """

    table: pa.Table
    predictions: Predictions
    classified: ClassPredictions
    number: Array
    shares: list[float]
    notes: list[str]

    @property
    def judged(self) -> LabelledWindow:
        return self._labelled(0, self.predictions.is_labelled)

    def earlier(self, chosen: Array, least: int) -> list[LabelledWindow]:
        """Return the chosen rows, [N] bool, of each earlier window with at least
        `least` chosen labelled rows.
        """
        rows = chosen & self.predictions.is_labelled
        windows = [self._labelled(window, rows) for window in range(1, len(self.shares))]
        return [window for window in windows if len(window.truth) >= least]

    def _labelled(self, window: int, rows: Array) -> LabelledWindow:
        indices = np.flatnonzero(rows & (self.number == window))
        return LabelledWindow(
            self.predictions.truth[indices],
            self.classified.take(indices),
            self.shares[window],
        )


@dataclass(frozen=True, eq=False)
class _Window:
    """The window's rows and predictions, and the labelled rows with weights that
    represent the unlabelled rows.
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
        """The metrics that fit the type of the model's answers."""
        if self.predictions.classified is not None:
            return CLASSIFICATION
        return REGRESSION


def judge(request: WindowRequest) -> MonitorResult:
    """Judge the requirements on labelled rows, or on estimates if there are fewer than
    `min_rows` labelled rows.
    """
    rows = request.log.labelled(
        request.endpoint,
        request.window,
        affordable_rows(request),
        request.labels,
    )
    if rows is None:
        return request.result("not judged", "the window has no rows")
    artifact = version_artifact(request, rows.model, rows.version)
    predictions = read_predictions(rows.table, artifact, request.capture.mask)
    notes = tuple(row_notes(rows, request.log))
    if isinstance(predictions, Refused):
        version = rows.model, rows.version
        return request.result("not judged", predictions.reason, version, rows.rows, notes=notes)
    spec = request.spec
    labelled = weigh_labels(rows.table, predictions, spec.segment_by, spec.false_alarm_rate)
    window = _Window(request, rows, artifact, predictions, labelled, (*notes, *predictions.notes()))
    is_bounded = (
        spec.labels == "reported" and window.labels > 0 and len(rows.table) >= spec.min_rows
    )
    if window.labels < spec.min_rows and not is_bounded:
        return _judge_by_estimate(window)
    if predictions.label_mismatch:
        return _not_judged(window, predictions.label_mismatch)
    return _judge_by_labels(window)


def affordable_rows(request: WindowRequest) -> int:
    """Return the number of rows that fit into memory with all columns, because labels
    may use any column as a key.
    """
    first = next(request.log.batches(request.endpoint, request.window), None)
    if first is None:
        return MAX_ROWS
    return min(MAX_ROWS, _MOST_CELLS // int(first.num_columns))


def _judge_by_labels(window: _Window) -> MonitorResult:
    spec = window.request.spec
    table = window.rows.table
    segments, segment_notes = find_segments(
        table,
        spec.segment_by,
        spec.min_rows,
        window.labelled.rows,
    )
    rate = window.request.requirement_rate
    confidence = intervals.bonferroni_confidence(rate, len(spec.requirements) * (1 + len(segments)))
    sampling = intervals.event_sampling(window.request, table, confidence)
    labelled, label_notes = _usable_labels(window)
    measured = weighted_metrics(
        window.predictions,
        labelled,
        np.ones(len(table), bool),
        window.names,
        sampling,
    )
    findings = list(_findings(window, measured, confidence))
    for segment, rows in segments:
        names = tuple(
            requirement.name
            for requirement in spec.requirements
            if requirement.name in window.names
        )
        of_segment = weighted_metrics(window.predictions, labelled, rows, names, sampling)
        findings += _findings(window, of_segment, confidence, segment)
    figures: dict[str, float] = {}
    for metric in measured.values():
        if isinstance(metric, intervals.MetricInterval):
            figures |= metric.figures
    if labelled.weights is not None:
        figures["effective_sample_size"] = labelled.effective_n
    notes = [*label_notes, *segment_notes]
    if window.labels < len(table):
        is_bounded = bool(labelled.unknown.any())
        if window.labelled.differing or is_bounded:
            text = ""
        else:
            text = "; the metrics use only these rows"
        if window.labelled.compared and text:
            text += (
                ", which do not differ from the other rows in "
                f"{', '.join(window.labelled.compared)}"
            )
        notes.insert(0, f"{window.labels:,} of {len(table):,} rows have a label{text}")
    return _result(window, findings, figures, notes)


def _usable_labels(window: _Window) -> tuple[LabelWeights, list[str]]:
    """Return the labels with the weights to use, and notes on unlabelled rows that the
    labels may not represent.
    """
    labelled = window.labelled
    spec = window.request.spec
    unlabelled = int((~labelled.rows).sum())
    bounds = (
        f"so that the metrics are bounds for any labels of the unlabelled rows ({unlabelled:,})"
    )
    unlike = f"labelled rows differ from unlabelled rows in {', '.join(labelled.differing)}"
    unlike += (
        f" (chi-square tests of {', '.join(labelled.compared)}, together at "
        f"{spec.false_alarm_rate:g})"
    )
    if spec.labels == "reported":
        return labelled.at_worst, [
            f"the monitor sets `labels: reported`, {bounds}",
        ] if unlabelled else []
    if spec.labels == "sampled":
        text = (
            "the monitor sets `labels: sampled`, and the metrics use the labelled rows without "
            "weights; but"
        )
        return labelled.as_sample, [f"{text} {unlike}"] if labelled.differing else []
    is_tested = spec.labels is None and (labelled.is_selected or labelled.rows.mean() < COMPLETE)
    trust, notes = _trust_labels(window) if is_tested else (None, [])
    if trust is not None and trust.outcome != "fits":
        if labelled.is_selected:
            text = (
                "and they do not fit the model's probabilities: labels may be missing because of "
                "their values"
            )
            return labelled.at_worst, [f"{unlike}, {text}, {bounds}", *notes]
        if trust.outcome == "doubted":
            return labelled.at_worst, [f"{_describe_trust(trust)}, {bounds}", *notes]
        notes = [_describe_trust(trust), *notes]
    if not labelled.differing:
        return labelled, notes
    text = ""
    if labelled.weights is not None:
        worth = f"{labelled.effective_n:,.0f}"
        text = (
            f"; they are weighted by the share of similar rows with a label, and worth {worth} "
            "rows of equal weight"
        )
    if unknown := int(labelled.unknown.sum()):
        text += (
            f"; unlabelled rows with hardly any similar labelled row ({unknown:,}) may have any "
            "label"
        )
    if is_tested and labelled.is_selected and trust is None:
        text += (
            "; without probabilities, it cannot be tested whether labels are missing because of "
            "their values"
        )
    return labelled, [f"{unlike}{text}", *notes]


def _describe_trust(trust: LabelTrust) -> str:
    if trust.windows == 1:
        row = "in this window"
    else:
        row = f"in {trust.windows} windows in a row, in the same direction"
    reasons = {
        "changed": (
            f"in this window, but in {trust.windows} earlier windows with a similar share of "
            "labels: the model has changed, and the metrics use the labels"
        ),
        "repeated": (
            f"{row}, and the metrics use the labels. If labels are missing because of their "
            "values, set `labels: reported`"
        ),
        "doubted": (
            f"{row} ({REPEATED_WINDOWS} are needed to use the labels; if you know how rows get "
            "their labels, set `labels`). The model may have changed, or labels may be missing "
            "because of their values"
        ),
    }
    return f"the labels do not fit the model's probabilities {reasons[trust.outcome]}"


def _not_judged(window: _Window, reason: str) -> MonitorResult:
    findings = [
        intervals.criterion_finding(rule, Refused(reason), 1.0)
        for rule in window.request.spec.requirements
    ]
    return _result(window, findings)


def _judge_by_estimate(window: _Window) -> MonitorResult:
    """Judge the requirements on metrics that are estimated from the model's
    probabilities.
    """
    spec = window.request.spec
    if window.rows.rows < spec.min_rows:
        return _not_judged(
            window,
            f"the window has {window.rows.rows:,} rows; min_rows is {spec.min_rows}",
        )
    missing = (
        f"{window.labels:,} of {len(window.rows.table):,} rows have a label; min_rows is "
        f"{spec.min_rows}"
    )
    if window.predictions.label_mismatch:
        missing += f"; {window.predictions.label_mismatch}"
    expected = _estimate_window(window)
    if isinstance(expected, Refused):
        return _not_judged(window, f"{missing}; the metric is not estimated: {expected.reason}")
    expectations, notes = expected
    *_, of_all = expectations[0]
    rate = window.request.requirement_rate
    confidence = intervals.bonferroni_confidence(rate, len(spec.requirements) * len(expectations))
    findings = []
    for segment, rows, estimated in expectations:
        metrics = {name: estimated.measure(name, rows, confidence) for name in estimated.values}
        for finding in _findings(window, metrics, confidence, segment, prefix="estimated "):
            if spec.estimate == "informs" and finding.state != "not judged":
                finding = replace(
                    finding,
                    state="not judged",
                    reason=f"{finding.reason}; {_INFORMS}",
                )
            findings.append(finding)
    if of_all.is_corrected:
        corrected = "corrected by isotonic regression"
    else:
        corrected = "as returned by the model"
    note = (
        f"{missing}; the figures are estimated from the model's probabilities (CBPE), {corrected}, "
        f"validated on {of_all.windows} earlier labelled windows"
    )
    figures = {
        f"estimated/{name}": value
        for name, value in of_all.values.items()
        if not isinstance(value, Refused)
    }
    for name in of_all.errors:
        measured = of_all.measure(name, 0, confidence)
        if isinstance(measured, intervals.MetricInterval):
            figures |= {
                f"estimated/{name}_low": measured.low,
                f"estimated/{name}_high": measured.high,
            }
    figures["estimated/windows"] = float(of_all.windows)
    if of_all.calibration_error is not None:
        figures["estimated/calibration_error"] = of_all.calibration_error
    return _result(window, findings, figures, [note, *notes])


def _findings(
    window: _Window,
    measured: Metrics,
    confidence: float,
    segment: str = "",
    prefix: str = "",
) -> Iterator[Finding]:
    answers, needs = (
        ("labels", "numbers")
        if window.predictions.classified is not None
        else ("numbers", "labels")
    )
    for requirement in window.request.spec.requirements:
        name = requirement.name
        metric = measured.get(
            name,
            Refused(f"{name} needs {needs}, and this model returns {answers}"),
        )
        yield intervals.criterion_finding(requirement, metric, confidence, segment, prefix)


def _result(
    window: _Window,
    findings: list[Finding],
    figures: Mapping[str, float] = MappingProxyType({}),
    notes: Sequence[str] = (),
) -> MonitorResult:
    rows, share = window.rows, window.labels / max(len(window.rows.table), 1)
    findings = with_history(window.request, findings)
    return window.request.result(
        *intervals.overall_state(findings),
        (rows.model, rows.version),
        rows.rows,
        model_id=window.artifact.model_id if window.artifact else "",
        findings=findings,
        figures={"labelled_rows": float(window.labels), "labelled_share": share, **figures},
        notes=(*window.notes, *notes),
    )


def _estimate_window(
    window: _Window,
) -> tuple[list[tuple[str, int, CbpeEstimate]], list[str]] | Refused:
    """Return the estimates for all rows (segment "") and for each segment, each with
    the segment's name and number of rows, and validated on the same segment of earlier
    windows of the version. Also return notes on skipped values.
    """
    spec = window.request.spec
    artifact = window.artifact
    classified = window.predictions.classified
    if classified is None:
        return Refused(
            "the model returns numbers, and their errors cannot be estimated without labels",
        )
    gives = artifact is not None and any(
        output.role == "probabilities" for output in artifact.outputs
    )
    if classified.probabilities is None and gives:
        assert artifact is not None
        labels = len(artifact.classes) or len(classified.classes)
        return Refused(
            "the class probabilities, which an estimate needs, are not available: they are read "
            f"from the log for at most 8 labels, and the model has {labels:,}",
        )
    least_share = COMPLETE if spec.labels == "reported" else 0.0
    joined = _join_earlier_windows(window, least_share, spec.labels_within or "0s")
    if joined is None:
        return Refused("the rows of earlier windows do not match this window")
    names = [
        requirement.name for requirement in spec.requirements if requirement.name in CLASSIFICATION
    ]
    segments, notes = find_segments(
        joined.table,
        spec.segment_by,
        spec.min_rows,
        joined.number == 0,
    )
    estimates = []
    for name, is_member in (("", np.ones(len(joined.table), bool)), *segments):
        in_window = is_member & (joined.number == 0)
        of_rows = estimate(
            joined.classified.take(in_window),
            joined.earlier(is_member, spec.min_rows),
            names,
        )
        if isinstance(of_rows, Refused):
            return of_rows
        estimates.append((name, int(in_window.sum()), of_rows))
    return estimates, [*joined.notes, *notes]


def _trust_labels(window: _Window) -> tuple[LabelTrust | None, list[str]]:
    """Return how far the labels are trusted, None if the model returns no
    probabilities, and notes on skipped windows. If labelled and unlabelled rows differ,
    only earlier windows with nearly all labels are used.
    """
    spec = window.request.spec
    classified = window.predictions.classified
    if classified is None or classified.probabilities is None:
        return None, []
    joined = _join_earlier_windows(window, COMPLETE if window.labelled.is_selected else 0.0)
    if joined is None or joined.classified.probabilities is None:
        return None, []
    earlier = joined.earlier(np.ones(len(joined.table), bool), spec.min_rows)
    return trust_labels(joined.judged, earlier, 1 - spec.false_alarm_rate), joined.notes


def _join_earlier_windows(
    window: _Window,
    least_share: float = 0.0,
    wait: str = "0s",
) -> _JoinedWindows | None:
    """Return the window's rows with the labelled rows of the latest earlier windows
    that have enough labels. Windows in which labels may depend on their value are
    skipped and counted in the notes, unless labels are declared a sample. `wait` is the
    time until labels are available.
    """
    request, rows, artifact, spec = (
        window.request,
        window.rows,
        window.artifact,
        window.request.spec,
    )
    tables = [rows.table]
    shares = [float(window.labelled.rows.mean())]
    selected = 0
    for past in islice(_earlier_windows(request, wait), _LOOKED_AT):
        earlier = request.log.labelled(request.endpoint, past, _EARLIER_ROWS, request.labels)
        if earlier is None or (earlier.model, earlier.version) != (rows.model, rows.version):
            continue
        earlier_predictions = read_predictions(earlier.table, artifact, request.capture.mask)
        if isinstance(earlier_predictions, Refused) or earlier_predictions.label_mismatch:
            continue
        if (
            earlier_predictions.is_labelled.sum() < spec.min_rows
            or earlier_predictions.is_labelled.mean() < least_share
        ):
            continue
        compared = weigh_labels(
            earlier.table, earlier_predictions, spec.segment_by, spec.false_alarm_rate
        )
        if compared.is_selected and spec.labels != "sampled":
            selected += 1
            continue
        shares.append(float(earlier_predictions.is_labelled.mean()))
        tables.append(earlier.table.filter(pa.array(earlier_predictions.is_labelled)))
        if len(tables) > _EARLIER_WINDOWS:
            break
    together = concat_tables(tables)
    predictions = read_predictions(together, artifact, request.capture.mask)
    if isinstance(predictions, Refused) or predictions.classified is None:
        return None
    left_out = (
        "earlier windows that are skipped, because their labelled and unlabelled rows differ: "
        f"{selected}"
    )
    number = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    notes = [left_out] if selected else []
    return _JoinedWindows(together, predictions, predictions.classified, number, shares, notes)


def _earlier_windows(request: WindowRequest, wait: str) -> Iterator[Window]:
    """Yield the earlier windows with rows for which labels should be available, the
    latest window first.
    """
    length = request.window.length
    start = request.window.start
    # The number of windows between the judged window and the next yielded window:
    number = max(math.ceil(length_of(wait) / length) - 1, 0)
    for hour in request.log.walk_hours(
        request.endpoint,
        Window(EPOCH, start - number * length),
        newest_first=True,
    ):
        last = (start - hour.start - _TICK) // length
        for between in range(max((start - hour.end) // length, number), last + 1):
            yield Window(start - (between + 1) * length, start - between * length)
        number = max(number, last + 1)
