"""Estimates of a window without labels, of all rows and by segment: `cbpe.py`, fed by the log."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.inference_log import EPOCH, Window, WindowRows, concat_tables
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array
from mlflow_deploy_plugin.monitoring.kinds.cbpe import CbpeEstimate, LabelledWindow, estimate, labels_contradict
from mlflow_deploy_plugin.monitoring.kinds.label_weights import weigh_labels
from mlflow_deploy_plugin.monitoring.kinds.metrics import CLASSIFICATION, ClassPredictions
from mlflow_deploy_plugin.monitoring.kinds.predictions import Predictions, read_predictions
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.monitoring.segments import find_segments
from mlflow_deploy_plugin.runtime import Artifact
from mlflow_deploy_plugin.spec import duration_seconds

_EARLIER_WINDOWS = 8
_LOOKED_AT = 24
_EARLIER_ROWS = 10_000
_COMPLETE = 0.95
"""Share of labelled rows from which on it makes little of a difference why the others have none."""
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True)
class SegmentEstimate:
    """The estimate of some rows of the window.

    Attributes:
        segment: as `carrier=AA`; empty: all rows.
        rows: how many they are.
    """

    segment: str
    rows: int
    estimate: CbpeEstimate


def estimate_window(
    request: WindowRequest, rows: WindowRows, artifact: Artifact | None, predictions: Predictions
) -> tuple[list[SegmentEstimate], list[str]] | Refused:
    """Return the estimates of all rows and of each segment, each checked on the same rows of earlier windows of the
    version; and a line for each thing that is left out.

    Args:
        answered: the window's rows.
    """
    why_not = _why_not(predictions, artifact)
    if why_not:
        return Refused(why_not)
    joined = _join_earlier_windows(request, rows, artifact)
    if joined is None:
        return Refused("the rows of earlier windows do not fit")
    least = request.spec.min_rows
    names = [one.name for one in request.spec.requirements if one.name in CLASSIFICATION]
    segments, notes = find_segments(joined.table, request.spec.segment_by, least, joined.number == 0)
    found = []
    for name, chosen in (("", np.ones(len(joined.table), bool)), *((one.name, one.rows) for one in segments)):
        own = chosen & (joined.number == 0)
        of_rows = estimate(joined.classified.take(own), joined.earlier(chosen, least), names)
        if isinstance(of_rows, Refused):
            return of_rows
        found.append(SegmentEstimate(name, int(own.sum()), of_rows))
    return found, [*joined.notes, *notes]


def labels_contradict_model(
    request: WindowRequest, rows: WindowRows, artifact: Artifact | None
) -> tuple[bool | None, list[str]]:
    """Return True if the window's labels do not fit the probabilities of their rows, and what is left out, a line each.

    The probabilities are corrected by earlier windows whose rows have nearly all a label. None: there are none.
    """
    joined = _join_earlier_windows(request, rows, artifact, _COMPLETE)
    if joined is None or joined.classified.probabilities is None:
        return None, []
    own = (joined.number == 0) & joined.predictions.is_labelled
    earlier = joined.earlier(np.ones(len(joined.table), bool), request.spec.min_rows)
    confidence = 1 - request.spec.false_alarm_rate
    return labels_contradict(
        joined.predictions.truth[own], joined.classified.take(own), earlier, confidence
    ), joined.notes


@dataclass(frozen=True, eq=False)
class _JoinedWindows:
    """The rows of a window and the labelled ones of earlier windows, whose classes have the same places.

    Attributes:
        number: [N] of each row's window; 0: the one that is judged.
    """

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


def _join_earlier_windows(
    request: WindowRequest, rows: WindowRows, artifact: Artifact | None, least_share: float = 0.0
) -> _JoinedWindows | None:
    notes: list[str] = []
    tables = [rows.table, *_earlier_tables(request, rows, artifact, notes, least_share)]
    together = concat_tables(tables)
    predictions = read_predictions(together, artifact)
    if isinstance(predictions, Refused) or predictions.classified is None:
        return None
    number = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    return _JoinedWindows(together, predictions, predictions.classified, number, notes)


def _why_not(predictions: Predictions, artifact: Artifact | None) -> str:
    if predictions.classified is None:
        return "the model answers numbers, and how far they are off cannot be seen from them"
    gives = artifact is not None and any(output.role == "probabilities" for output in artifact.outputs)
    if predictions.classified.probabilities is None and gives:
        assert artifact is not None
        labels = len(artifact.classes) or len(predictions.classified.classes)
        return (
            "the probability of each label, from which it could be estimated, is not at hand: of at most 8 labels "
            f"they are read from the log, and the model has {labels:,}"
        )
    return ""


def _earlier_tables(
    request: WindowRequest, rows: WindowRows, artifact: Artifact | None, notes: list[str], least_share: float
) -> Iterator[pa.Table]:
    """Yield the labelled rows of the latest windows of the same length that have enough of them. A window whose
    labels may be missing by what they would say is left out; `notes` gets how many such there are.

    Args:
        least_share: of their rows that have a label.
    """
    found = selected = 0
    spec = request.spec
    for past in _earlier_windows(request)[:_LOOKED_AT]:
        earlier = request.log.labelled(request.endpoint, past, _EARLIER_ROWS)
        if earlier is None or (earlier.model, earlier.version) != (rows.model, rows.version):
            continue
        predictions = read_predictions(earlier.table, artifact)
        if (
            isinstance(predictions, Refused)
            or predictions.label_mismatch
            or predictions.is_labelled.sum() < spec.min_rows
        ):
            continue
        if predictions.is_labelled.mean() < least_share:
            continue
        if weigh_labels(earlier.table, predictions, spec.segment_by, spec.false_alarm_rate).is_selected:
            selected += 1
            continue
        yield earlier.table.filter(pa.array(predictions.is_labelled))
        found += 1
        if found == _EARLIER_WINDOWS:
            break
    if selected:
        notes.append(f"{selected} earlier windows are left out, whose rows with a label are not like those without")


def _earlier_windows(request: WindowRequest) -> list[Window]:
    """Return the earlier windows that have rows and whose labels should be in, the latest first."""
    length = request.window.length
    wait = timedelta(seconds=duration_seconds(request.spec.labels_within) if request.spec.labels_within else 0)
    until = request.window.start - max(math.ceil(wait / length) - 1, 0) * length
    numbers = set()
    for hour in request.log.hours(request.endpoint, Window(EPOCH, until)):
        # so many windows lie between the judged one and the one of the hour's first, and last, microsecond
        numbers |= {(request.window.start - one) // length for one in (hour.start + _TICK, hour.end)}
    starts = [request.window.start - (number + 1) * length for number in sorted(numbers)]
    return [Window(start, start + length) for start in starts if start + length <= until]
