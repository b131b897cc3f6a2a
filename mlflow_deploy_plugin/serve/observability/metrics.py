"""Prometheus metrics of the server, summed over its workers by
`core/statedir/metric_files.py`, and V2's statistics.
"""

import os
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from mlflow_deploy_plugin.core.statedir import metric_files
from mlflow_deploy_plugin.core.statedir.metric_files import (
    OF_VARIANT,
    Metric,
    MetricSeries,
    MmapCounters,
)
from mlflow_deploy_plugin.core.statedir.models import KeyEntry
from mlflow_deploy_plugin.serve.observability.gauges import workers_page
from mlflow_deploy_plugin.serve.runtime.agreement import Agreement
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.variants import ServedTable, ServedVariant

MAX_PREDICTIONS = 100
"""The maximum number of `prediction` values per version and worker; additional values
are counted as "other".
"""
_OTHER = "other"
_LABEL_LENGTH = 100

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
_SECONDS_BOUNDS = tuple(map(str, SECONDS))
_ROWS_BOUNDS = tuple(map(str, _ROWS))

_REQUESTS = Metric(metric_files.REQUESTS, "Requests answered.")
_REQUEST_DURATION = Metric(
    metric_files.REQUEST_DURATION,
    "Time from the body's arrival to the complete response.",
    _SECONDS_BOUNDS,
)
_PREDICTION_LATENCY = Metric(
    "ml_prediction_latency_seconds",
    "Latency of successful predictions, by version only.",
    _SECONDS_BOUNDS,
)
_LAST_REQUEST = Metric(
    "onnxserve_last_request_timestamp_seconds", "Time of the last reply, since 1970.", kind="gauge"
)
_REFUSED_REQUESTS = Metric(
    "onnxserve_refused_requests", "Requests and connections rejected by a limit or without a key."
)
_WORKER_RESTARTS = Metric(
    "onnxserve_worker_restarts", "Workers that were started to replace dead workers."
)
_REDIS_FAILURES = Metric(
    "onnxserve_redis_failures", "Failed requests to Redis, and failed pings after one."
)
_KEY_REQUESTS = Metric("onnxserve_key_requests", "Requests by the name of their API key.")
_PREDICTIONS = Metric("ml_predictions", "Rows by version and predicted label.")
_BATCH_ROWS = Metric("onnxserve_batch_rows", "Rows per run of a graph.", _ROWS_BOUNDS)
_QUEUE_SECONDS = Metric(
    "onnxserve_queue_seconds", "Time that the oldest request of a run waited.", _SECONDS_BOUNDS
)
_COMPUTE_SECONDS = Metric("onnxserve_compute_seconds", "Time per run of a graph.", _SECONDS_BOUNDS)
_OF_BATCH = (_BATCH_ROWS, _QUEUE_SECONDS, _COMPUTE_SECONDS)
_STREAM_PARTS = Metric(
    "onnxserve_stream_parts", "Parts per streamed response, by outcome.", _ROWS_BOUNDS
)
_FIRST_PART = Metric(
    "onnxserve_stream_first_part_seconds",
    "Time to a streamed response's first part.",
    _SECONDS_BOUNDS,
)
_CAPTURE_REQUESTS = Metric(
    "onnxserve_capture_requests",
    "Requests that were captured in the spool, or dropped because it could not be written.",
)
_CAPTURE_ROWS = Metric(
    metric_files.CAPTURE_ROWS,
    "Rows that were answered, captured in the spool, or dropped because it could not be written.",
)
_FEEDBACK_LABELS = Metric(
    metric_files.FEEDBACK_LABELS,
    "Accepted labels of earlier predictions, and requests whose labels were refused.",
)
_GUARD_ROWS = Metric("onnxserve_guard_rows", "Answered rows outside of the training rows.")
_SERVED_VERSION = Metric(
    "onnxserve_served_version", "Workers that serve this version.", kind="gauge"
)
_MODEL_LOADS = Metric("onnxserve_model_loads", "Loads of registered models, also failed loads.")
_MODEL_LOAD_SECONDS = Metric(
    "onnxserve_model_load_seconds", "Time of the loads of registered models, with downloads."
)
_MODEL_LOAD_FAILURES = Metric("onnxserve_model_load_failures", "Failed loads of registered models.")
_MODELS_LEFT = Metric(
    "onnxserve_models_left", "Registered models that left the memory, because others needed room."
)
_MODELS = Metric("onnxserve_models_in_memory", "Registered models in memory.", kind="gauge")
_MODEL_BYTES = Metric(
    "onnxserve_model_memory_bytes", "Estimated memory of the registered models.", kind="gauge"
)
_MODEL_LIMIT = Metric(
    "onnxserve_model_memory_limit_bytes", "Limit of server.model_memory.", kind="gauge"
)

ShadowOutcome = Literal["compared", "failed", "dropped"]

_DIFFERENCES = (0.0, *(base * 10.0**power for power, base in product(range(-6, 7), (1.0, 3.0))))
"""The bounds of the histogram of differences, for small outputs (probabilities) as well
as large outputs (prices).
"""
_SHADOW_REQUESTS = Metric(
    "onnxserve_shadow_requests",
    (
        "Copies of requests to a shadow: compared with the response, failed, or dropped because "
        "the queue was full."
    ),
)
_SHADOW_ROWS = Metric(
    "onnxserve_shadow_rows", "Rows for which the shadow and the answering variant agree or differ."
)
_SHADOW_DIFFERENCE = Metric(
    "onnxserve_shadow_difference",
    (
        "The largest absolute difference per row between the numbers of the shadow and of the "
        "response."
    ),
    tuple(f"{bound:g}" for bound in _DIFFERENCES),
)
_SHADOW_DURATION = Metric(
    "onnxserve_shadow_duration_seconds",
    "Time per run of a shadow.",
    tuple(f"{bound:g}" for bound in SECONDS),
)

Label = str | int | float | bool
VariantLabels = tuple[str, str, str, str]
"""The values of the labels `OF_VARIANT`: endpoint, variant, model, version."""
RequestLabels = tuple[str, str, str, str, str, str]
"""The values of the variant's labels (empty if no variant was selected), the protocol,
and the HTTP status.
"""

_RequestSlots = tuple[int, int, tuple[int, ...]]
"""The slots of the request count, of the time of the last request, and of the duration
histogram's cells.
"""

_Slots = tuple[int, ...]
"""The slots of the histograms of a batch (`_OF_BATCH`), or of the rows that were
answered, captured and dropped.
"""


CapturedRows = tuple[int, int, bool | None]
"""The number of rows, the number to capture, and True if these were captured (None:
capture skips the request).
"""

PredictionCounter = Callable[[CapturedRows, float, float, Mapping[str, Array]], None]
"""A function that counts a success, given the captured rows, the run's and the
request's seconds, and the outputs.
"""


@dataclass(slots=True)
class Statistics:
    """The statistics of a version for an endpoint, summed over all workers since the
    server started.

    Attributes:
        queue_seconds: the total wait of all requests in the batcher.
        compute_seconds: the total time of all runs; a batch counts once.
        last_request: the time in seconds since 1970; 0 before the first request.
    """

    requests: int = 0
    failures: int = 0
    request_seconds: float = 0.0
    rows: int = 0
    batches: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    last_request: float = 0.0


class Metrics:
    """The metrics of this worker, and the page with the sum over all workers. All
    methods are thread-safe.

    The folder with the files of all workers is created if it is missing; a link is
    resolved in the constructor.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder.resolve()
        # Files of dead workers are reused, so that there are never more files than
        # workers.
        self.number = 0
        while True:
            with suppress(BlockingIOError):
                self._values = MmapCounters(self.folder / f"counts_{self.number}.db")
                break
            self.number += 1
        # gunicorn_conf.py deletes the file by this name.
        gauges = self.folder / f"gauges_{os.getpid()}.db"
        gauges.unlink(missing_ok=True)  # An earlier process may have had the same process id.
        self._gauges = MmapCounters(gauges)
        self._lock = threading.Lock()
        self._predictions: dict[str, dict[object, int]] = {}
        self._slots: dict[tuple[str, ...], int] = {}
        self._served: set[tuple[str, str, str, str]] = set()
        # The slots of a label set are cached, because each request needs the slots of
        # its labels.
        self._request_slots = cache(self._find_request_slots)
        slot = self._values.slot
        self._batch_slots = cache(
            lambda labels: tuple(slot(metric, _without_variant(labels)) for metric in _OF_BATCH)
        )
        self._row_slots = cache(
            lambda endpoint: tuple(
                slot(_CAPTURE_ROWS, {"endpoint": endpoint, "outcome": outcome})
                for outcome in ("answered", "captured", "dropped")
            )
        )
        self._shadow_slots = cache(self._find_shadow_slots)
        self._captures = {
            is_written: self._values.slot(_CAPTURE_REQUESTS, {"outcome": outcome})
            for is_written, outcome in ((True, "captured"), (False, "dropped"))
        }

    def count_request(self, labels: RequestLabels, seconds: float) -> None:
        """Count one request that took `seconds` from the arrival of its body to the
        complete response.
        """
        with self._lock:
            requests, last, histograms = self._request_slots(labels)
            cells = self._values.cells
            bucket = 1 + bisect_left(SECONDS, seconds)
            for slot in histograms:
                cells[slot] += seconds
                cells[slot + bucket] += 1
            cells[last] = time.time()
            cells[requests] += 1

    def count_response(
        self,
        variant: ServedVariant | None,
        protocol: str,
        status: str,
        seconds: float,
        outputs: Mapping[str, Array],
    ) -> None:
        """Count one request of any transport, and the labels that it predicted;
        `outputs` may be empty.

        Without a variant the metric's labels are empty, because the client chooses the
        text of the endpoint.
        """
        if variant is None:
            self.count_request(("", "", "", "", protocol, status), seconds)
            return
        self.count_request((*variant.labels, protocol, status), seconds)
        for label, rows in predicted_labels(variant.loaded.predictor.artifact, outputs):
            self.count_prediction(variant.labels[3], label, rows)

    def count_batch(
        self, labels: VariantLabels, rows: int, queue_seconds: float, compute_seconds: float
    ) -> None:
        """Count one run of a graph over `rows` rows; the oldest request waited for
        `queue_seconds`.
        """
        with self._lock:
            of_rows, of_queue, of_compute = self._batch_slots(labels)
            self._observe(of_rows, rows, _ROWS)
            self._observe(of_queue, queue_seconds)
            self._observe(of_compute, compute_seconds)

    def prediction_counter(self, variant: ServedVariant, protocol: str) -> PredictionCounter:
        """Return `count_batch`, `count_response` and `count_capture` of a success as
        one function with one lock.
        """
        artifact = variant.loaded.predictor.artifact
        version = variant.labels[3]
        label_output = next(
            (output.name for output in artifact.outputs if output.role == "label"), ""
        )
        values = self._values
        lock = self._lock
        now = time.time
        captures = self._captures
        version_slots = self._predictions.setdefault(version, {})
        slots: tuple[_Slots, _RequestSlots, _Slots] | None = None

        def count(
            captured: CapturedRows,
            compute_seconds: float,
            seconds: float,
            outputs: Mapping[str, Array],
        ) -> None:
            """Count a success in one piece, because this runs once per request."""
            nonlocal slots
            label = outputs.get(label_output)
            if label is not None and label.size == 1:
                predicted = [(label.item(), 1)]
            else:
                predicted = predicted_labels(artifact, outputs)
            with lock:
                if slots is None:
                    slots = (
                        self._batch_slots(variant.labels),
                        self._request_slots((*variant.labels, protocol, "200")),
                        self._row_slots(variant.labels[0]),
                    )
                # The same as `count_batch`, `count_request` and `count_capture`, whose
                # calls took 3.1 instead of 2.4 µs.
                (of_rows, of_queue, of_compute), (requests, last, durations), of_capture = slots
                rows, captured_rows, is_written = captured
                cells = values.cells
                cells[of_rows] += rows
                cells[of_rows + (1 if rows == 1 else 1 + bisect_left(_ROWS, rows))] += 1
                cells[of_queue + 1] += 1
                cells[of_compute] += compute_seconds
                cells[of_compute + 1 + bisect_left(SECONDS, compute_seconds)] += 1
                bucket = 1 + bisect_left(SECONDS, seconds)
                for slot in durations:
                    cells[slot] += seconds
                    cells[slot + bucket] += 1
                cells[last] = now()
                cells[requests] += 1
                cells[of_capture[0]] += rows
                if is_written is not None:
                    cells[of_capture[1 if is_written else 2]] += captured_rows
                    cells[captures[is_written]] += 1
                for value, number in predicted:
                    slot = version_slots.get((type(value), value)) or self._prediction_slot(
                        version_slots, version, value
                    )
                    # `cells` is read again, because the file may have grown.
                    values.cells[slot] += number

        return count

    def count_refused(self, reason: str) -> None:
        """Count one request or connection that a limit or the authentication rejected.
        The endpoint is empty, because limits are checked before routing.
        """
        self._add(1, _REFUSED_REQUESTS, endpoint="", reason=reason)

    def count_worker_restarts(self, number: int) -> None:
        self._add(number, _WORKER_RESTARTS)

    def count_redis_failure(self) -> None:
        self._add(1, _REDIS_FAILURES)

    def count_load(self, seconds: float, failed: str) -> None:
        """Count one load of a registered model; `failed` is the label of a failure, and
        empty if the model was loaded.
        """
        self._add(1, _MODEL_LOADS)
        self._add(seconds, _MODEL_LOAD_SECONDS)
        if failed:
            self._add(1, _MODEL_LOAD_FAILURES, model=failed)

    def count_models_left(self, number: int) -> None:
        self._add(number, _MODELS_LEFT)

    def set_models(self, number: int, used_bytes: int, limit: float) -> None:
        """Set the gauges of this worker's registered models."""
        values = {_MODELS: number, _MODEL_BYTES: used_bytes, _MODEL_LIMIT: limit}
        with self._lock:
            for metric, value in values.items():
                slot = self._gauges.slot(metric, {})
                self._gauges.cells[slot] = value

    def count_key(self, key: KeyEntry) -> None:
        self._add(1, _KEY_REQUESTS, key=key.counted_as or key.name)

    def count_prediction(self, version: str, label: Label, rows: int = 1) -> None:
        with self._lock:
            slot = self._prediction_slot(self._predictions.setdefault(version, {}), version, label)
            self._values.cells[slot] += rows

    def count_stream(
        self, labels: VariantLabels, outcome: str, parts: int, first_seconds: float
    ) -> None:
        """Count one streamed response: complete, failed, or abandoned by its caller."""
        version_labels = _without_variant(labels)
        with self._lock:
            self._observe(
                self._values.slot(_STREAM_PARTS, {**version_labels, "outcome": outcome}),
                parts,
                _ROWS,
            )
            self._observe(self._values.slot(_FIRST_PART, version_labels), first_seconds)

    def count_capture(self, endpoint: str, captured: CapturedRows) -> None:
        """Count the answered rows, and those captured or dropped unless capture skips
        the request.
        """
        rows, captured_rows, is_written = captured
        with self._lock:
            of_answered, of_captured, of_dropped = self._row_slots(endpoint)
            cells = self._values.cells
            cells[of_answered] += rows
            if is_written is not None:
                slot = of_captured if is_written else of_dropped
                cells[slot] += captured_rows
                cells[self._captures[is_written]] += 1

    def count_guard(self, labels: VariantLabels, rows: int) -> None:
        """Count answered rows that are outside of the training rows."""
        self._add(rows, _GUARD_ROWS, **dict(zip(OF_VARIANT, labels, strict=True)))

    def count_shadow_capture(self, is_written: bool) -> None:
        """Count one captured shadow result. Shadow results are never sent to the
        client.
        """
        with self._lock:
            self._values.cells[self._captures[is_written]] += 1

    def count_shadow(self, labels: VariantLabels, outcome: ShadowOutcome) -> None:
        with self._lock:  # Find the slot before reading `cells`, because the file may have to grow.
            slot = self._shadow_slots(labels)[outcome]
            self._values.cells[slot] += 1

    def count_shadow_comparison(
        self, labels: VariantLabels, agreement: Agreement, seconds: float
    ) -> None:
        """Count a request whose results were compared after a run of the shadow, which
        took `seconds`.

        `agreement` is the agreement of each row of the request.
        """
        numbers = agreement.differences[np.isfinite(agreement.differences) & agreement.are_numbers]
        # the index of the first bound ≥ the number
        buckets = Counter(np.searchsorted(_DIFFERENCES, numbers).tolist())
        different = agreement.differing_rows
        with self._lock:
            slots = self._shadow_slots(labels)
            cells = self._values.cells
            cells[slots["same"]] += len(agreement.excess) - different
            cells[slots["different"]] += different
            cells[slots["difference"]] += float(numbers.sum())
            for bucket, rows in buckets.items():
                cells[slots["difference"] + 1 + bucket] += rows
            self._observe(slots["seconds"], seconds)
            # A scrape that sees the request also sees its rows.
            cells[slots["compared"]] += 1

    def count_feedback(self, outcome: str, labels: int) -> None:
        self._add(labels, _FEEDBACK_LABELS, outcome=outcome)

    def set_served_versions(self, table: ServedTable) -> None:
        """Set the gauges of the versions that this worker serves now."""
        served: set[VariantLabels] = set()
        for endpoint in table.values():
            served.update(variant.labels for variant in endpoint.variants.values())
        with self._lock:
            self._served |= served
            for labels in self._served:
                slot = self._gauges.slot(
                    _SERVED_VERSION, dict(zip(OF_VARIANT, labels, strict=True))
                )
                self._gauges.cells[slot] = float(labels in served)

    def page(self) -> bytes:
        """Return the values of all workers in Prometheus' text format."""
        return workers_page(self.folder)

    def statistics(self) -> dict[tuple[str, str, str], Statistics]:
        """Return the statistics of each (endpoint, model, version), summed over all
        workers.
        """
        summed: dict[tuple[str, str, str], Statistics] = defaultdict(Statistics)
        counted = metric_files.read_series(self.folder)

        def series_of(metric: Metric) -> Iterator[tuple[Statistics, MetricSeries]]:
            """Yield each series of the metric with the statistics of its version."""
            for series in counted[metric.name]:
                labels = series.labels
                yield summed[labels["endpoint"], labels["model"], labels["version"]], series

        for totals, requests in series_of(_REQUESTS):
            totals.requests += int(requests.value)
            if requests.labels["status"] != "200":
                totals.failures += int(requests.value)
        for totals, durations in series_of(_REQUEST_DURATION):
            totals.request_seconds += durations.value
        for totals, last in series_of(_LAST_REQUEST):
            totals.last_request = last.value
        for totals, rows in series_of(_BATCH_ROWS):
            totals.rows = int(rows.value)
            totals.batches = int(rows.count)
        for totals, waited in series_of(_QUEUE_SECONDS):
            totals.queue_seconds = waited.value
        for totals, computed in series_of(_COMPUTE_SECONDS):
            totals.compute_seconds = computed.value
        return dict(summed)

    def _add(self, number: float, metric: Metric, **labels: str) -> None:
        key = metric.name, *labels.values()
        with self._lock:
            slot = self._slots.get(key)
            if slot is None:
                slot = self._values.slot(metric, labels)
                self._slots[key] = slot
            self._values.cells[slot] += number

    def _observe(self, histogram: int, value: float, bounds: tuple[float, ...] = SECONDS) -> None:
        """Add the value to a histogram: its sum, and the bucket of the first bound that
        is not smaller. The caller holds the lock.
        """
        cells = self._values.cells
        cells[histogram] += value
        cells[histogram + 1 + bisect_left(bounds, value)] += 1

    def _find_request_slots(self, labels: RequestLabels) -> _RequestSlots:
        """Return the slots of a request. A success also counts in the latency by
        version only.
        """
        *of_variant, protocol, status = labels
        all_labels = {**dict(zip(OF_VARIANT, of_variant, strict=True)), "protocol": protocol}
        requests = self._values.slot(_REQUESTS, {**all_labels, "status": status})
        last = self._values.slot(_LAST_REQUEST, _without_variant(of_variant))
        histograms = [self._values.slot(_REQUEST_DURATION, all_labels)]
        if status == "200":
            histograms.append(
                self._values.slot(_PREDICTION_LATENCY, {"model_version": all_labels["version"]})
            )
        return requests, last, tuple(histograms)

    def _find_shadow_slots(self, labels: VariantLabels) -> Mapping[str, int]:
        """Return the slots of a shadow: one per outcome, and `same`, `different`,
        `difference`, `seconds`.
        """
        slot = self._values.slot
        variant_labels = dict(zip(OF_VARIANT, labels, strict=True))
        slots = {
            "difference": slot(_SHADOW_DIFFERENCE, variant_labels),
            "seconds": slot(_SHADOW_DURATION, variant_labels),
        }
        for name in get_args(ShadowOutcome):
            slots[name] = slot(_SHADOW_REQUESTS, {**variant_labels, "outcome": name})
        for name in ("same", "different"):
            slots[name] = slot(_SHADOW_ROWS, {**variant_labels, "agreement": name})
        return slots

    def _prediction_slot(self, slots: dict[object, int], version: str, label: Label) -> int:
        """Return the slot of a predicted label. A new label is added to the version's
        `slots`; above `MAX_PREDICTIONS`, it has the slot of the other labels.
        """
        # The type is needed, because 1 == True in Python. Every label is hashable.
        key = (type(label), label)
        slot = slots.get(key)
        if slot is not None:
            return slot
        if len(slots) > MAX_PREDICTIONS:
            return slots[_OTHER]
        if not slots:
            slots[_OTHER] = self._values.slot(
                _PREDICTIONS, {"model_version": version, "prediction": _OTHER}
            )
        prediction_labels = {"model_version": version, "prediction": str(label)[:_LABEL_LENGTH]}
        slots[key] = self._values.slot(_PREDICTIONS, prediction_labels)
        return slots[key]


def _without_variant(labels: Sequence[str]) -> dict[str, str]:
    endpoint, _, model, version = labels
    return {"endpoint": endpoint, "model": model, "version": version}


def predicted_labels(artifact: Artifact, outputs: Mapping[str, Array]) -> list[tuple[Label, int]]:
    """Return each predicted label with its number of rows; empty for a model without
    labels.

    A label is a value of the label output, or without a label output the class with the
    highest probability.
    """
    for output in artifact.outputs:
        array = outputs.get(output.name)
        if array is None or not array.size:
            continue
        if output.role == "label":
            return _count_values(array)
        if (
            output.role == "probabilities"
            and array.shape[1:] == (len(artifact.classes),)
            and not any(output.role == "label" for output in artifact.outputs)
        ):
            return [
                (artifact.classes[index], rows)  # type: ignore[index]
                for index, rows in _count_values(array.argmax(axis=1))
            ]
    return []


def _count_values(array: Array) -> list[tuple[Label, int]]:
    """Return each distinct value with its number of occurrences."""
    if array.size == 1:
        return [(array.item(), 1)]
    if array.dtype.kind == "O":
        return list(Counter(array.ravel().tolist()).items())
    values, rows = np.unique(array, return_counts=True)
    return list(zip(values.tolist(), rows.tolist(), strict=True))
