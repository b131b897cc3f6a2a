"""Prometheus metrics of the server, summed over its workers, and what V2's statistics say of them.

Every worker keeps its values in files of the folder `PROMETHEUS_MULTIPROC_DIR` (`server/gunicorn_conf.py` makes it
before the first fork; see `mmap_counters.py`); without that, in a folder of its own, and the page shows this process
alone.
"""

import os
import tempfile
import threading
import time
import uuid
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_deploy_plugin.runtime import Array, Artifact
from mlflow_deploy_plugin.server.models.variants import ServedTable, ServedVariant
from mlflow_deploy_plugin.server.observability.capture_counters import CAPTURE_ROWS
from mlflow_deploy_plugin.server.observability.exposition import prometheus_text, read_families
from mlflow_deploy_plugin.server.observability.mmap_counters import MmapCounters

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_PREDICTIONS = 100
"""Values of `prediction` that one version has of its own in each worker; those that come later are "other"."""

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
_OTHER = "other"
_LABEL_LENGTH = 100

Label = str | int | float | bool
RequestLabels = tuple[str, str, str, str, str, str]
"""Endpoint, variant, model, version, protocol, status (HTTP's, or "OK"); all but the last two are empty where nothing
was leased."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What one version has done for one endpoint, in all workers that have lived since the server's start.

    A request that waited in the batcher has its queue time here, and that of the graph once for the whole batch.
    `last_request` is in seconds since 1970, 0 before the first one.
    """

    requests: int = 0
    failures: int = 0
    request_seconds: float = 0.0
    rows: int = 0
    batches: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    last_request: float = 0.0


_Histogram = tuple[int, tuple[int, ...]]
"""The slots of one label set: the sum, and one bucket for each bound and for what lies beyond."""

_RequestSeries = tuple[int, int, tuple[_Histogram, ...]]
"""The slots of the requests and of the last one's time, and the histograms of the seconds."""

_BatchSeries = tuple[_Histogram, _Histogram, _Histogram]
"""Those of rows, seconds in the queue and seconds of the run."""


class Metrics:
    """The values of this worker, and the page that sums up all. Every method may be called from any thread.

    Attributes:
        folder: where every worker has its files.
    """

    def __init__(self) -> None:
        self._own_folder = None if MULTIPROC_DIR in os.environ else tempfile.TemporaryDirectory(prefix="onnxserve-")
        self.folder = Path(self._own_folder.name if self._own_folder else os.environ[MULTIPROC_DIR])
        worker = uuid.uuid4().hex  # a process id comes back, and must not write over what a dead worker has counted
        self._counters = MmapCounters(self.folder / f"counter_{worker}.db")
        self._histograms = MmapCounters(self.folder / f"histogram_{worker}.db")
        self._gauges = MmapCounters(
            self.folder / f"gauge_livesum_{os.getpid()}.db"
        )  # `mark_process_dead` knows this name
        self._latest = MmapCounters(self.folder / f"gauge_max_{worker}.db")
        self._lock = threading.Lock()
        self._requests: dict[RequestLabels, _RequestSeries] = {}
        self._seconds: dict[tuple[str, ...], _Histogram] = {}
        self._batches: dict[tuple[str, str, str], _BatchSeries] = {}
        self._refused: dict[tuple[str, str], int] = {}
        self._predictions: dict[str, dict[Any, int]] = {}
        self._feedback: dict[str, int] = {}
        self._captured_rows: dict[str, tuple[int, int, int]] = {}
        self._served: dict[tuple[str, str, str, str], int] = {}
        self._captures = {
            is_written: self._counter(
                "onnxserve_capture_requests",
                {"outcome": outcome},
                "Requests written to the spool, and those lost because it could not be written.",
            )
            for is_written, outcome in ((True, "captured"), (False, "dropped"))
        }

    def count_request(self, labels: RequestLabels, seconds: float) -> None:
        """One answered request, `seconds` from its body's arrival to the finished answer."""
        bucket = bisect_left(SECONDS, seconds)
        with self._lock:
            requests, last, histograms = self._requests.get(labels) or self._new_request(labels)
            self._counters.cells[requests] += 1
            self._latest.cells[last] = time.time()
            cells = self._histograms.cells
            for total, buckets in histograms:
                cells[total] += seconds
                cells[buckets[bucket]] += 1

    def count_batch(
        self,
        endpoint: str,
        rows: int,
        queue_seconds: float,
        compute_seconds: float,
        model: str = "",
        version: str = "",
    ) -> None:
        """One run of a graph over `rows` rows; `queue_seconds` is how long its oldest request has waited for it."""
        labels = endpoint, model, version
        with self._lock:
            of_rows, of_queue, of_compute = self._batches.get(labels) or self._new_batch(labels)
            cells = self._histograms.cells
            cells[of_rows[0]] += rows
            cells[of_rows[1][bisect_left(_ROWS, rows)]] += 1
            cells[of_queue[0]] += queue_seconds
            cells[of_queue[1][bisect_left(SECONDS, queue_seconds)]] += 1
            cells[of_compute[0]] += compute_seconds
            cells[of_compute[1][bisect_left(SECONDS, compute_seconds)]] += 1

    def count_refused(self, endpoint: str, reason: str) -> None:
        """One request that a limit has turned away; `endpoint` is one of ours, `reason` a word of the code."""
        labels = endpoint, reason
        with self._lock:
            if labels not in self._refused:
                named = {"endpoint": endpoint, "reason": reason}
                self._refused[labels] = self._counter(
                    "onnxserve_refused_requests", named, "Requests that a limit has turned away."
                )
            self._counters.cells[self._refused[labels]] += 1

    def count_prediction(self, version: str, label: Label, rows: int = 1) -> None:
        """`rows` rows for which this version has predicted `label`."""
        with self._lock:
            known = self._predictions.setdefault(version, {})
            # in Python 1 is True, and an unhashable label does not exist
            slot = known.get((type(label), label))
            if slot is None:
                slot = self._new_prediction(known, version, label)
            self._counters.cells[slot] += rows

    def count_capture(self, endpoint: str, rows: int, kept: int, is_written: bool | None) -> None:
        """One answer of `rows` rows, of which `kept` were to be captured; None: the spec leaves it out."""
        with self._lock:
            answered, captured, dropped = self._captured_rows.get(endpoint) or self._new_capture(endpoint)
            cells = self._counters.cells
            cells[answered] += rows
            if is_written:
                cells[captured] += kept
                cells[self._captures[True]] += 1
            elif is_written is not None:
                cells[dropped] += kept
                cells[self._captures[False]] += 1

    def count_shadow_capture(self, endpoint: str, rows: int, kept: int, is_written: bool | None) -> None:
        """As `count_capture`, of what a shadow has computed, which answers nobody."""
        if is_written is not None:
            with self._lock:
                self._counters.cells[self._captures[is_written]] += 1

    def count_feedback(self, outcome: str, labels: int) -> None:
        """Labels of earlier predictions that were accepted, or requests with labels that were refused."""
        with self._lock:
            if outcome not in self._feedback:
                text = "Labels of earlier predictions that were accepted, and requests with some that were refused."
                self._feedback[outcome] = self._counter("onnxserve_feedback_labels", {"outcome": outcome}, text)
            self._counters.cells[self._feedback[outcome]] += labels

    def set_served_versions(self, table: ServedTable) -> None:
        """What this worker serves from now on."""
        served = set(_versions(table))
        with self._lock:
            for labels in served - self._served.keys():
                named = dict(zip(("endpoint", "variant", "model", "version"), labels, strict=True))
                name = "onnxserve_served_version"
                self._served[labels] = self._gauges.slot(name, name, named, "Workers that serve this version.")
            for labels, slot in self._served.items():
                self._gauges.cells[slot] = float(labels in served)

    def page(self) -> bytes:
        """The values of all workers in Prometheus' text format."""
        return prometheus_text(read_families(self.folder))

    def statistics(self) -> dict[tuple[str, str, str], Statistics]:
        """What each (endpoint, model, version) has done, summed over all workers, as V2's statistics need it."""
        summed: dict[tuple[str, str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for family in read_families(self.folder):
            if (fields := _STATISTICS.get(family.name)) is None:
                continue
            for series in family.series.values():
                labels = series.labels
                values = summed[labels["endpoint"], labels["model"], labels["version"]]
                values[fields[0]] += series.value
                if fields[1:] == ("batches",):
                    values["batches"] += series.count
                elif fields[1:] == ("failures",) and not _is_success(labels["status"]):
                    values["failures"] += series.value
        return {
            labels: Statistics(**{k: v if k.endswith(("seconds", "request")) else int(v) for k, v in values.items()})  # type: ignore[arg-type]
            for labels, values in summed.items()
        }

    def _new_request(self, labels: RequestLabels) -> _RequestSeries:
        endpoint, variant, model, version, protocol, status = labels
        version_of = {"endpoint": endpoint, "model": model, "version": version}
        named = {"endpoint": endpoint, "variant": variant, "model": model, "version": version, "protocol": protocol}
        requests = self._counter("onnxserve_requests", {**named, "status": status}, "Requests answered.")
        name = "onnxserve_last_request_timestamp_seconds"
        last = self._latest.slot(name, name, version_of, "When the last request was answered, since 1970.")
        text = "From the body's arrival to the finished answer."
        histograms = [self._histogram("onnxserve_request_duration_seconds", named, text, SECONDS)]
        if _is_success(status):
            text = "The same for predictions that succeeded, by version alone."
            name = "ml_prediction_latency_seconds"
            histograms.append(self._histogram(name, {"model_version": version}, text, SECONDS))
        series = self._requests[labels] = requests, last, tuple(histograms)
        return series

    def _new_capture(self, endpoint: str) -> tuple[int, int, int]:
        text = "Rows answered, and of those the rows written to the spool or lost because it could not be written."
        answered, captured, dropped = (
            self._counter(CAPTURE_ROWS, {"endpoint": endpoint, "outcome": outcome}, text)
            for outcome in ("answered", "captured", "dropped")
        )
        slots = self._captured_rows[endpoint] = answered, captured, dropped
        return slots

    def _new_batch(self, labels: tuple[str, str, str]) -> _BatchSeries:
        named = dict(zip(("endpoint", "model", "version"), labels, strict=True))
        rows = self._histogram("onnxserve_batch_rows", named, "Rows of one run of a graph.", _ROWS)
        text = "How long the oldest request waited for its run."
        queue = self._histogram("onnxserve_queue_seconds", named, text, SECONDS)
        compute = self._histogram("onnxserve_compute_seconds", named, "How long one run of a graph took.", SECONDS)
        series = self._batches[labels] = rows, queue, compute
        return series

    def _new_prediction(self, known: dict[Any, int], version: str, label: Any) -> int:
        if len(known) > MAX_PREDICTIONS:
            return known[_OTHER]
        if not known:
            known[_OTHER] = self._prediction(version, _OTHER)
        known[type(label), label] = slot = self._prediction(version, str(label)[:_LABEL_LENGTH])
        return slot

    def _prediction(self, version: str, label: str) -> int:
        named = {"model_version": version, "prediction": label}
        return self._counter("ml_predictions", named, "Rows by version and predicted label.")

    def _counter(self, family: str, labels: Mapping[str, str], text: str) -> int:
        return self._counters.slot(family, family + "_total", labels, text)

    def _histogram(self, family: str, labels: Mapping[str, str], text: str, bounds: tuple[float, ...]) -> _Histogram:
        """One for each label set, however many series share it."""
        key = family, *labels.values()
        if key not in self._seconds:
            buckets = [
                self._histograms.slot(family, family + "_bucket", {**labels, "le": bound}, text)
                for bound in (*map(str, bounds), "+Inf")
            ]
            total = self._histograms.slot(family, family + "_sum", labels, text)
            self._seconds[key] = total, tuple(buckets)
        return self._seconds[key]


_STATISTICS: dict[str, tuple[str, ...]] = {
    "onnxserve_requests": ("requests", "failures"),
    "onnxserve_request_duration_seconds": ("request_seconds",),
    "onnxserve_last_request_timestamp_seconds": ("last_request",),
    "onnxserve_batch_rows": ("rows", "batches"),
    "onnxserve_queue_seconds": ("queue_seconds",),
    "onnxserve_compute_seconds": ("compute_seconds",),
}
"""The metrics that V2's statistics are made of: the field of a series' value, and another that it adds to."""


def _is_success(status: str) -> bool:
    return status in ("200", "OK")


def _versions(table: ServedTable) -> Iterator[tuple[str, str, str, str]]:
    for endpoint, served in table.items():
        for variant in served.variants.values():
            yield endpoint, variant.name, variant.loaded.model, variant.loaded.version


def count_response(
    metrics: Metrics,
    variant: ServedVariant | None,
    protocol: str,
    status: str,
    seconds: float,
    outputs: Mapping[str, Array] | None = None,
) -> None:
    """One answered request, and the labels that it predicted.

    Args:
        variant: None: none was leased. Its labels are empty then, because the endpoint is the caller's text.
        outputs: those of the graph; None: it was not run.
    """
    if variant is None:
        metrics.count_request(("", "", "", "", protocol, status), seconds)
        return
    loaded = variant.loaded
    labels = variant.endpoint, variant.name, loaded.model, loaded.version, protocol, status
    metrics.count_request(labels, seconds)
    if outputs:
        for label, rows in predicted_labels(loaded.predictor.artifact, outputs):
            metrics.count_prediction(loaded.version, label, rows)


def predicted_labels(artifact: Artifact, outputs: Mapping[str, Array]) -> list[tuple[Label, int]]:
    """Each label that was predicted, with its rows: of the label output, else the class of the highest probability.

    Empty for a model that has neither: a number that it predicts is no label.
    """
    for output in artifact.outputs:
        array = outputs.get(output.name)
        if array is None or not array.size:
            continue
        if output.role == "label":
            return _counted(array)
        if output.role == "probabilities" and array.shape[1:] == (len(artifact.classes),) and not _has_label(artifact):
            return [(artifact.classes[place], rows) for place, rows in _counted(array.argmax(axis=1))]  # type: ignore[index]
    return []


def _has_label(artifact: Artifact) -> bool:
    return any(output.role == "label" for output in artifact.outputs)


def _counted(array: Array) -> list[tuple[Label, int]]:
    if array.size == 1:
        return [(array.item(), 1)]
    if array.dtype.kind == "O":
        return list(Counter(array.ravel().tolist()).items())
    values, rows = np.unique(array, return_counts=True)
    return list(zip(values.tolist(), rows.tolist(), strict=True))
