"""Performance: the metrics of labelled rows, and metrics estimated before the labels
are known.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.spec.monitors import MIN_LABELLED_WINDOWS, REGRESSION
from mlflow_deploy_plugin.core.spec.types import EPOCH, length_of
from mlflow_deploy_plugin.serve.inference_log.log_reader import MAX_ROWS, WindowRows
from mlflow_deploy_plugin.serve.inference_log.tables import concat_tables
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.history import earlier_values, with_history
from mlflow_deploy_plugin.watch.result import Finding, MonitorResult, WindowRequest
from mlflow_deploy_plugin.watch.segments import find_segments
from mlflow_deploy_plugin.watch.sequential.budget import LASTING_SHARE
from mlflow_deploy_plugin.watch.sequential.evidence import Levels, SeriesKey, alarm_key
from mlflow_deploy_plugin.watch.sequential.metric_shifts import (
    COMPLAINTS,
    LABEL,
    LABELLED,
    PREDICTED,
    follow_metrics,
)
from mlflow_deploy_plugin.watch.statistics import intervals
from mlflow_deploy_plugin.watch.statistics.cbpe import (
    COMPLETE,
    CbpeEstimate,
    LabelledWindow,
    estimate,
    labels_fit,
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
_KEPT_CLASSES = 10
_TICK = timedelta(microseconds=1)
_HARMLESS_FALL = 0.1
"""The accuracy is unchanged if the interval of its estimate excludes a larger fall."""
_RATE = 0.05
"""The chance that any of the intervals of a window is wrong."""
_MOST_DESCRIBED = 3
_FEW_WINDOWS = (
    f"{MIN_LABELLED_WINDOWS} windows with labels before the change, and as many that show a small "
    "error of the estimate, are needed"
)
_UNSEEN = "an estimate, which cannot see a changed relation between inputs and label"
_INFORMS = "an estimate is only informative, unless the monitor sets `estimate: decides`"
_ASK = (
    "set `labels: sampled` (a random sample of the rows gets labels), `labels: reported` (mostly "
    "rows with one outcome, such as complaints) or `labels: late` (all rows in the end)"
)


@dataclass(frozen=True, eq=False)
class _Estimates:
    """The name, the number of rows and the estimates of all rows (segment "") and of
    each segment.
    """

    parts: list[tuple[str, int, CbpeEstimate]]
    notes: list[str]

    @property
    def of_all(self) -> CbpeEstimate:
        return self.parts[0][2]


@dataclass(frozen=True, eq=False)
class _JoinedWindows:
    """The rows of a window and the labelled rows of earlier windows.

    Attributes:
        classified: the predictions; all windows share class indices.
        number: the number of each row's window, [N]; 0 is the judged window.
    """

    table: pa.Table
    predictions: Predictions
    classified: ClassPredictions
    number: Array
    notes: list[str]

    @property
    def judged(self) -> LabelledWindow:
        return self._labelled(0, self.predictions.is_labelled)

    def earlier(self, chosen: Array, least: int) -> list[LabelledWindow]:
        """Return the chosen rows, [N] bool, of each earlier window with at least
        `least` chosen labelled rows.
        """
        rows = chosen & self.predictions.is_labelled
        numbers = range(1, int(self.number.max()) + 1)
        windows = [self._labelled(window, rows) for window in numbers]
        return [window for window in windows if len(window.truth) >= least]

    def _labelled(self, window: int, rows: Array) -> LabelledWindow:
        indices = np.flatnonzero(rows & (self.number == window))
        return LabelledWindow(self.predictions.truth[indices], self.classified.take(indices))


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

    @property
    def required(self) -> tuple[str, ...]:
        """The metrics of the model that the monitor requires."""
        required = (requirement.name for requirement in self.request.spec.requirements)
        return tuple(name for name in required if name in self.names)

    def confidence(self, parts: int) -> float:
        """Return the confidence of each interval for this number of groups of rows.
        Lasting shifts use a part of a budget.
        """
        count = len(self.request.spec.requirements) * parts
        rate = self.request.requirement_rate
        if self.request.false_per_year:
            rate *= 1 - LASTING_SHARE
        return intervals.bonferroni_confidence(rate, count)


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
    window = _read_window(request, rows)
    if isinstance(window, Refused):
        version = rows.model, rows.version
        notes = row_notes(rows, request.log)
        return request.result("not judged", window.reason, version, rows.rows, notes=notes)
    spec = request.spec
    is_bounded = (
        spec.labels == "reported" and window.labels > 0 and len(rows.table) >= spec.min_rows
    )
    if window.labels < spec.min_rows and not is_bounded:
        return _judge_by_estimate(window)
    if window.predictions.label_mismatch:
        return _not_judged(window, window.predictions.label_mismatch)
    return _judge_by_labels(window)


def _read_window(request: WindowRequest, rows: WindowRows) -> _Window | Refused:
    """Return the window with the predictions of its rows; Refused if they cannot be
    read.
    """
    spec = request.spec
    artifact = version_artifact(request, rows.model, rows.version)
    predictions = read_predictions(rows.table, artifact, request.capture.mask)
    if isinstance(predictions, Refused):
        return predictions
    labelled = weigh_labels(rows.table, predictions, spec.segment_by, spec.window_rate)
    notes = (*row_notes(rows, request.log), *predictions.notes())
    return _Window(request, rows, artifact, predictions, labelled, notes)


@dataclass(frozen=True)
class AccuracyChange:
    """The estimated accuracy of a window, and the mean accuracy of the labelled windows
    before a change.
    """

    before: float
    now: intervals.MetricInterval

    @property
    def has_fallen(self) -> bool:
        return self.now.high < self.before

    @property
    def figures(self) -> dict[str, float]:
        numbers = {**self.now.figures, "accuracy_before": self.before}
        return {f"estimated/{name}": number for name, number in numbers.items()}

    def describe(self, segment: str) -> str:
        """Return the change in words, such as `accuracy probably fell to 0.701 (0.680
        to 0.730), 0.834 before`.
        """
        subject = f"accuracy {segment}" if segment else "accuracy"
        verb = "is probably unchanged:"
        if self.has_fallen:
            verb = "probably fell to"
        elif self.now.low > self.before:
            verb = "probably rose to"
        now = f"{self.now.value:.3f} ({self.now.low:.3f} to {self.now.high:.3f})"
        return f"{subject} {verb} {now}, {self.before:.3f} before"


def accuracy_changes(
    request: WindowRequest,
    since: datetime,
) -> Mapping[str, AccuracyChange] | Refused:
    """Return the change of the accuracy since this time, for all rows (segment "") and
    for the segments in which it is known. Labels since the change correct the estimate.
    """
    if not request.labels.count:
        return Refused("the log has no labels")
    rows = request.log.labelled(
        request.endpoint, request.window, affordable_rows(request), request.labels
    )
    if rows is None:
        return Refused("the window has no rows")
    window = _read_window(request, rows)
    if isinstance(window, Refused):
        return window
    parts = []
    for start in (request.window.start, since):
        estimates = _estimate_window(window, start)
        if isinstance(estimates, Refused):
            return estimates
        parts.append(estimates.parts)
    changes: dict[str, AccuracyChange] = {}
    for (segment, size, estimated), before in zip(*parts, strict=True):
        now = estimated.measure("accuracy", size, 1 - _RATE / len(parts[0]))
        if isinstance(now, Refused) or before[2].windows < MIN_LABELLED_WINDOWS:
            continue
        change = AccuracyChange(float(np.mean(before[2].accuracies)), now)
        if change.has_fallen or change.before - now.low < _HARMLESS_FALL:
            changes[segment] = change
    return changes or Refused(_FEW_WINDOWS)


def describe_accuracy(changes: Mapping[str, AccuracyChange]) -> str:
    """Return the change for all rows, then for the first segments with a fall; empty if
    it is unknown.
    """
    texts = [
        change.describe(segment)
        for segment, change in changes.items()
        if change.has_fallen or not segment
    ]
    return f"{', '.join(texts[:_MOST_DESCRIBED])} ({_UNSEEN})" if texts else ""


def affordable_rows(request: WindowRequest) -> int:
    """Return the number of rows that fit into memory with all columns, because labels
    may use any column as a key.
    """
    first = next(request.log.batches(request.endpoint, request.window), None)
    if first is None:
        return MAX_ROWS
    return min(MAX_ROWS, _MOST_CELLS // int(first.num_columns))


def _judge_by_labels(window: _Window) -> MonitorResult:
    """Judge the requirements on all rows and on each segment by the metrics of the
    labelled rows.
    """
    segments, notes = find_segments(window.rows.table, window.request.spec, window.labelled.rows)
    confidence = window.confidence(1 + len(segments))
    usable = _usable_labels(window)
    measure = partial(
        weighted_metrics,
        window.predictions,
        sampling=intervals.event_sampling(window.request, window.rows.table, confidence),
    )
    everyone = np.ones(len(window.rows.table), bool)
    measured = measure(usable.labelled, everyone, window.names)
    measured = _with_noise(window, measured, confidence)
    findings = [*_findings(window, measured, confidence)]
    for segment, rows in segments:
        of_rows = measure(usable.labelled, rows, window.required)
        of_rows = _with_noise(window, of_rows, confidence, segment)
        findings += _findings(window, of_rows, confidence, segment)
    if usable.may_be_complaints:
        # Labels that may be complaints cannot tell whether a requirement is violated.
        for index, finding in enumerate(findings):
            if finding.state == "violated":
                findings[index] = replace(
                    finding,
                    state="cannot tell",
                    reason=f"{finding.reason}; labelled rows may be complaints",
                )
    followed = measured
    if usable.labelled.unknown.any():  # The metrics are bounds.
        followed = measure(window.labelled, everyone, window.required)
    notes = [*usable.notes, *notes]
    if window.labels != len(window.rows.table):
        text = f"{window.labels:,} of {len(window.rows.table):,} rows have a label"
        if not window.labelled.differing and not usable.labelled.unknown.any():
            text += "; the metrics use only these rows"
            compared = ", ".join(window.labelled.compared)
            if compared:
                text += f", which do not differ from the other rows in {compared}"
        notes = [text, *notes]
    return _result(
        window,
        findings,
        _label_figures(measured, usable.labelled),
        notes,
        _label_figures(followed, usable.labelled),
    )


def _with_noise(
    window: _Window,
    measured: Metrics,
    confidence: float,
    segment: str = "",
) -> Metrics:
    """Return the metrics, whose intervals include the noise of the schedule's windows,
    unless the requirements refer to the judged window only.
    """
    request = window.request
    if request.spec.independent_rows or not request.follows_levels:
        return measured
    widened = dict(measured)
    for name, metric in measured.items():
        if isinstance(metric, intervals.MetricInterval):
            key = alarm_key(name, segment)
            before = earlier_values(request, key, request.window.start)
            widened[name] = metric.widened([*before.values()], confidence)
    return widened


def _label_figures(measured: Metrics, labelled: LabelWeights) -> dict[str, float]:
    """Return the figures of the metrics that could be measured, and with weights, the
    number of rows of equal weight that the labels are worth.
    """
    figures: dict[str, float] = {}
    for metric in measured.values():
        if isinstance(metric, intervals.MetricInterval):
            figures |= metric.figures
    if labelled.weights is not None:
        figures["effective_sample_size"] = labelled.effective_n
    return figures


@dataclass(frozen=True, eq=False)
class _UsableLabels:
    """The labels with the weights to use, and notes on unlabelled rows that the labels
    may not represent.

    Attributes:
        may_be_complaints: True if the labels could also not be tested.
    """

    labelled: LabelWeights
    notes: list[str]
    may_be_complaints: bool = False


def _usable_labels(window: _Window) -> _UsableLabels:
    labelled = window.labelled
    labels = window.request.spec.labels
    is_complete = labelled.rows.mean() >= COMPLETE
    if labels == "reported" or (labels == "late" and not is_complete):
        is_bounded = not labelled.rows.all()
        notes = [f"the monitor sets `labels: {labels}`, {_bounds(window)}"] if is_bounded else []
        return _UsableLabels(labelled.at_worst, notes)
    if labels == "sampled":
        text = (
            "the monitor sets `labels: sampled`, and the metrics use the labelled rows without "
            "weights; but"
        )
        notes = [f"{text} {_difference(window)}"] if labelled.differing else []
        return _UsableLabels(labelled.as_sample, notes)
    if is_complete and not labelled.is_selected:
        notes = [_difference(window) + _describe_weights(labelled)] if labelled.differing else []
        return _UsableLabels(labelled, notes)
    # The labels represent the unlabelled rows unless they do not fit the model's
    # probabilities, calibrated on earlier windows with nearly all labels. Without
    # probabilities, this is unknown.
    fits = None
    notes = []
    classified = window.predictions.classified
    if classified is not None and classified.probabilities is not None:
        joined = _join_earlier_windows(window, COMPLETE, window.request.window.start)
        if joined is not None and joined.classified.probabilities is not None:
            complete = joined.earlier(
                np.ones(len(joined.table), bool), window.request.spec.min_rows
            )
            fits = labels_fit(joined.judged, complete, 1 - window.request.spec.window_rate)
            notes = joined.notes
    assumed = "that labels are not missing because of their values"
    if fits is False:
        assumed = "that the unlabelled rows may have any label"
        text = "the labels do not fit the model's probabilities: the model may have changed, or "
        if labelled.is_selected:
            text = f"{_difference(window)}, and they do not fit the model's probabilities: "
        text += f"labels may be missing because of their values, {_bounds(window)}"
        labelled = labelled.at_worst
        notes = [text, *notes]
    elif labelled.differing:
        text = _difference(window) + _describe_weights(labelled)
        if labelled.is_selected and fits is None:
            text += (
                "; without probabilities, it cannot be tested whether labels are missing because "
                "of their values"
            )
        notes = [text, *notes]
    if labels is not None:
        return _UsableLabels(labelled, notes)
    ask = f"the monitor does not set `labels`, and assumes {assumed}: {_ASK}"
    return _UsableLabels(labelled, [*notes, ask], may_be_complaints=fits is None)


def _bounds(window: _Window) -> str:
    unlabelled = int((~window.labelled.rows).sum())
    return f"so that the metrics are bounds for any labels of the unlabelled rows ({unlabelled:,})"


def _difference(window: _Window) -> str:
    """Return how the labelled rows differ from the unlabelled rows."""
    labelled = window.labelled
    return (
        f"labelled rows differ from unlabelled rows in {', '.join(labelled.differing)} (chi-square "
        f"tests of {', '.join(labelled.compared)}, together at "
        f"{window.request.spec.window_rate:g})"
    )


def _describe_weights(labelled: LabelWeights) -> str:
    """Return how labelled rows that differ from the unlabelled rows represent them."""
    text = ""
    if labelled.weights is not None:
        worth = f"{labelled.effective_n:,.0f}"
        text = (
            f"; they are weighted by the share of similar rows with a label, and worth {worth} "
            "rows of equal weight"
        )
    unknown = int(labelled.unknown.sum())
    if unknown:
        text += (
            f"; unlabelled rows with hardly any similar labelled row ({unknown:,}) may have any "
            "label"
        )
    return text


def _not_judged(window: _Window, reason: str) -> MonitorResult:
    """Return the result with this reason for every requirement."""
    findings = [
        intervals.criterion_finding(rule, Refused(reason), 1.0)
        for rule in window.request.spec.requirements
    ]
    return _result(window, findings)


def _judge_by_estimate(window: _Window) -> MonitorResult:
    """Judge the requirements on metrics that are estimated from the model's
    probabilities. If they cannot be estimated, no requirement is judged.
    """
    if window.rows.rows < window.request.spec.min_rows:
        return _not_judged(
            window,
            f"the window has {window.rows.rows:,} rows; min_rows is {window.request.spec.min_rows}",
        )
    missing = (
        f"{window.labels:,} of {len(window.rows.table):,} rows have a label; min_rows is "
        f"{window.request.spec.min_rows}"
    )
    if window.predictions.label_mismatch:
        missing += f"; {window.predictions.label_mismatch}"
    estimates = _estimate_window(window, window.request.window.start)
    if isinstance(estimates, Refused):
        return _not_judged(window, f"{missing}; the metric is not estimated: {estimates.reason}")
    confidence = window.confidence(len(estimates.parts))
    findings = []
    for segment, rows, estimated in estimates.parts:
        metrics = {name: estimated.measure(name, rows, confidence) for name in estimated.values}
        for finding in _findings(window, metrics, confidence, segment, prefix="estimated "):
            if window.request.spec.estimate == "informs" and finding.state != "not judged":
                finding = replace(
                    finding, state="not judged", reason=f"{finding.reason}; {_INFORMS}"
                )
            findings.append(finding)
    # The figures have the bounds that are known.
    figures = {
        f"estimated/{name}": value
        for name, value in estimates.of_all.values.items()
        if not isinstance(value, Refused)
    }
    for name in estimates.of_all.errors:
        value = estimates.of_all.measure(name, 0, confidence)
        if isinstance(value, intervals.MetricInterval):
            figures[f"estimated/{name}_low"] = value.low
            figures[f"estimated/{name}_high"] = value.high
    figures["estimated/windows"] = float(estimates.of_all.windows)
    if estimates.of_all.calibration_error is not None:
        figures["estimated/calibration_error"] = estimates.of_all.calibration_error
    missing += "; the figures are estimated from the model's probabilities (CBPE), "
    if estimates.of_all.is_corrected:
        missing += "corrected by isotonic regression"
    else:
        missing += "as returned by the model"
    missing += f", validated on {estimates.of_all.windows} earlier labelled windows"
    return _result(
        window,
        findings,
        figures,
        [missing, *estimates.notes],
    )


def _findings(
    window: _Window,
    measured: Metrics,
    confidence: float,
    segment: str = "",
    prefix: str = "",
) -> Iterator[Finding]:
    """Yield a finding for each requirement, which is not judged if the `measured`
    metrics lack its metric. `prefix` precedes the metric in the reason.
    """
    if window.predictions.classified is not None:
        mismatch = "needs numbers, and this model returns labels"
    else:
        mismatch = "needs labels, and this model returns numbers"
    for requirement in window.request.spec.requirements:
        name = requirement.name
        metric = measured.get(name, Refused(f"{name} {mismatch}"))
        yield intervals.criterion_finding(requirement, metric, confidence, segment, prefix)


def _result(
    window: _Window,
    findings: list[Finding],
    figures: Mapping[str, float] = MappingProxyType({}),
    notes: Sequence[str] = (),
    followed: Mapping[str, float] = MappingProxyType({}),
) -> MonitorResult:
    """Return the result with the findings and their history, and with the shifts of the
    required metrics among the `followed` figures. Reported labels are complaints, of
    which only the number is followed. The window's notes precede the `notes`.
    """
    rows = window.rows
    spec = window.request.spec
    share = window.labels / max(len(rows.table), 1)
    metrics = {name: followed[name] for name in window.required if name in followed}
    labels = _label_levels(window) if metrics else {}
    size = window.labels
    if spec.labels == "reported":
        labels = {}
        size = len(rows.table)
        metrics = {COMPLAINTS: 1_000 * share} if size >= spec.min_rows else {}
    evidence, shifts = follow_metrics(window.request, metrics, size, labels)
    findings = [*with_history(window.request, findings), *shifts]
    return window.request.result(
        *intervals.overall_state(findings),
        (rows.model, rows.version),
        rows.rows,
        model_id=window.artifact.model_id if window.artifact else "",
        findings=findings,
        figures={"labelled_rows": float(window.labels), "labelled_share": share, **figures},
        notes=(*window.notes, *notes),
        evidence=evidence,
    )


def _label_levels(window: _Window) -> Levels:
    """Return the share of labelled rows, and the shares of the most frequent classes
    among the labels and among the predictions.
    """
    predictions = window.predictions
    is_labelled = window.labelled.rows
    levels = {LABELLED: float(is_labelled.mean())}
    classified = predictions.classified
    if classified is None:
        return levels
    truth = predictions.truth[is_labelled]
    count = len(classified.classes)
    labels = np.bincount(truth, minlength=count) / len(truth)
    answered = classified.predicted[classified.predicted >= 0]  # Some rows have no prediction.
    predicted = np.bincount(answered, minlength=count) / len(is_labelled)
    for index in np.argsort(-labels, kind="stable")[:_KEPT_CLASSES].tolist():
        name = classified.classes[index]
        levels[SeriesKey(name, LABEL)] = float(labels[index])
        levels[SeriesKey(name, PREDICTED)] = float(predicted[index])
    return levels


def _estimate_window(window: _Window, since: datetime) -> _Estimates | Refused:
    """Return the estimates for all rows and for each segment, validated on the same
    segment of windows of the version before `since`.
    """
    classified = window.predictions.classified
    if classified is None:
        return Refused(
            "the model returns numbers, and their errors cannot be estimated without labels",
        )
    if (
        window.artifact
        and classified.probabilities is None
        and any(output.role == "probabilities" for output in window.artifact.outputs)
    ):
        return Refused(
            "the class probabilities, which an estimate needs, are not available: they are read "
            "from the log for at most 8 labels, and the model has "
            f"{len(window.artifact.classes) or len(classified.classes):,}",
        )
    spec = window.request.spec
    joined = _join_earlier_windows(
        window,
        COMPLETE if spec.labels == "reported" else 0.0,
        since,
        spec.labels_within or "0s",
    )
    if joined is None:
        return Refused("the rows of earlier windows do not match this window")
    is_judged = joined.number == 0
    segments, notes = find_segments(joined.table, spec, is_judged)
    estimates = _Estimates([], [*joined.notes, *notes])
    for name, is_member in (("", np.ones(len(joined.table), bool)), *segments):
        of_rows = estimate(
            joined.classified.take(is_member & is_judged),
            joined.earlier(is_member, spec.min_rows),
            window.required,
        )
        if isinstance(of_rows, Refused):
            return of_rows
        estimates.parts.append((name, int((is_member & is_judged).sum()), of_rows))
    return estimates


def _join_earlier_windows(
    window: _Window,
    least_share: float,
    since: datetime,
    wait: str = "0s",
) -> _JoinedWindows | None:
    """Return the window's rows with the labelled rows of the latest earlier windows
    that have enough labels and that the same version has answered. Windows in which
    labels may depend on their value are skipped and counted in the notes, unless labels
    are declared a sample. Return None if the rows of all windows together cannot be
    classified.

    Args:
        least_share: the smallest share of labelled rows in an earlier window.
        since: the start of the first window that is not earlier.
        wait: the time until labels are available.
    """
    request = window.request
    spec = request.spec
    tables = [window.rows.table]
    skipped = 0
    for past in islice(_earlier_windows(request, wait, since), _LOOKED_AT):
        rows = request.log.labelled(request.endpoint, past, _EARLIER_ROWS, request.labels)
        if rows is None:
            continue
        if (rows.model, rows.version) != (window.rows.model, window.rows.version):
            continue
        predictions = read_predictions(rows.table, window.artifact, request.capture.mask)
        if isinstance(predictions, Refused) or predictions.label_mismatch:
            continue
        is_labelled = predictions.is_labelled
        if is_labelled.sum() < spec.min_rows or is_labelled.mean() < least_share:
            continue
        labelled = weigh_labels(rows.table, predictions, spec.segment_by, spec.window_rate)
        if labelled.is_selected and spec.labels != "sampled":
            skipped += 1
            continue
        tables.append(rows.table.filter(pa.array(labelled.rows)))
        if len(tables) > _EARLIER_WINDOWS:
            break
    together = concat_tables(tables)
    predictions = read_predictions(together, window.artifact, request.capture.mask)
    if isinstance(predictions, Refused) or predictions.classified is None:
        return None
    notes = []
    if skipped:
        notes.append(
            "earlier windows that are skipped, because their labelled and unlabelled rows differ: "
            f"{skipped}",
        )
    number = np.repeat(np.arange(len(tables)), [*map(len, tables)])
    return _JoinedWindows(together, predictions, predictions.classified, number, notes)


def _earlier_windows(request: WindowRequest, wait: str, start: datetime) -> Iterator[Window]:
    """Yield the windows with rows before `start` for which labels should be available,
    the latest window first.
    """
    length = request.window.length
    # The number of windows between the judged window and the next yielded window:
    number = max(math.ceil(length_of(wait) / length) - 1, 0)
    until = Window(EPOCH, start - number * length)
    for hour in request.log.walk_hours(request.endpoint, until, newest_first=True):
        last = (start - hour.start - _TICK) // length
        for between in range(max((start - hour.end) // length, number), last + 1):
            yield Window(start - (between + 1) * length, start - between * length)
        number = max(number, last + 1)
