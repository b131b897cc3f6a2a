"""Shadows: variants that run a copy of each request. Their outputs are compared with
the response, and never sent.

One thread per worker empties a queue of copies with a low priority. If the queue is
full, a copy is dropped and counted, so that responses are not delayed.
"""

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.core.errors import InferenceError, OnnxserveError
from mlflow_deploy_plugin.serve.models.pyfunc_model import PyfuncPredictor
from mlflow_deploy_plugin.serve.observability.metrics import Metrics
from mlflow_deploy_plugin.serve.runtime.feeds import (
    Array,
    Feeds,
    array_bytes,
    sent_arrays,
)
from mlflow_deploy_plugin.serve.runtime.log_columns import cast_columns
from mlflow_deploy_plugin.serve.runtime.model import OpaqueBody
from mlflow_deploy_plugin.serve.runtime.schemas.keyed_schema import add_keys
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.runtime.shadow_compare import compare_outputs
from mlflow_deploy_plugin.serve.spool.codec import RequestRecord, as_one_row
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter
from mlflow_deploy_plugin.serve.variants import LoadedVersion, ServedVariant

logger = logging.getLogger(__name__)

MAX_COPIES = 4096
MAX_BYTES = 64 * 1024 * 1024
_NICE = 10
_PAUSE_SECONDS = 0.05
"""The pause before the queue is emptied, so that the response is sent undisturbed."""
_HANDOVER_SECONDS = 1e-4
"""The thread sleeps briefly after each copy, because otherwise it releases the
interpreter only after 5 ms.
"""
_REST = 9.0
_MAX_REST_SECONDS = 0.25
"""The pause of the thread, as a multiple of the time in the interpreter. A running
graph is outside the interpreter.
"""


@dataclass(slots=True)
class MirroredRequest:
    """A request for a shadow.

    Attributes:
        record: the record of the response. The shadow's captured rows have the same ids
            and times.
        is_captured: True if the response, and therefore the shadow's outputs, are
            captured.
        feeds / outputs: the arrays of the answering variant.
        body: the body of a request that a pyfunc has parsed itself.
        size: the size of this request in bytes.
    """

    shadow: ServedVariant
    answered_by: LoadedVersion
    record: RequestRecord
    is_captured: bool
    feeds: Feeds
    outputs: Mapping[str, Array]
    body: OpaqueBody | None
    size: int


@dataclass(eq=False)
class Shadows:
    """The queue of a worker's copies, and the thread that runs them, which starts with
    the first copy.

    `capture` is a separate writer for the shadows' rows, so that no response waits for
    it.
    """

    capture: CaptureWriter
    metrics: Metrics
    max_copies: int = MAX_COPIES
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._copies: deque[MirroredRequest] = deque()
        self._queued = 0
        self._queued_bytes = 0
        # Only the thread writes these counts, so they need no lock.
        self._done = 0
        self._done_bytes = 0
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread: threading.Thread | None = None
        self._run_seconds = 0.0

    @property
    def waiting(self) -> int:
        return self._queued - self._done

    def mirror(
        self,
        variant: ServedVariant,
        record: RequestRecord,
        is_captured: bool,
        feeds: Feeds,
        outputs: Mapping[str, Array],
        body: OpaqueBody | None = None,
    ) -> None:
        """Queue a copy of a request to `variant` for each of its shadows. Never fails
        or waits.
        """
        try:
            outputs = {name: detach(array) for name, array in outputs.items()}
            size = array_bytes({**feeds, **sent_arrays(feeds)}) + array_bytes(outputs)
            if body:
                size += len(body.content)
            for shadow in variant.shadows:
                copy = MirroredRequest(
                    shadow,
                    variant.loaded,
                    record,
                    is_captured,
                    feeds,
                    outputs,
                    body,
                    size,
                )
                if not self._enqueue(copy):
                    self.metrics.count_shadow(shadow.labels, "dropped")
        except Exception:
            logger.exception("a copy for the shadows of %s could not be created", variant.endpoint)

    def close(self, seconds: float = 1.0) -> None:
        """Drop the queued copies, and wait for the thread's current run, for at most
        `seconds`.
        """
        self._is_stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)
        self.capture.close()

    def _enqueue(self, copy: MirroredRequest) -> bool:
        """Queue the copy, and start the thread with the first copy. Return False if the
        queue is full or no thread can be started.
        """
        with self._lock:
            queued_bytes = self._queued_bytes - self._done_bytes
            if self.waiting >= self.max_copies or queued_bytes + copy.size > self.max_bytes:
                return False
            if self._thread is None:
                thread = threading.Thread(
                    target=self._empty_queue,
                    name="onnxserve-shadow",
                    daemon=True,
                )
                try:
                    thread.start()
                except RuntimeError:  # Drop the copy at the machine's limit of threads.
                    return False
                self._thread = thread
            was_empty = not self._copies
            self._queued += 1
            self._queued_bytes += copy.size
            self._copies.append(copy)
        if was_empty:
            self._wake.set()
        return True

    def _empty_queue(self) -> None:
        """Process the copies until `close` is called, and rest after each copy in
        proportion to its time in the interpreter.
        """
        if sys.platform == "linux":
            with suppress(OSError):  # A sandbox may forbid the call.
                # On Linux, this affects only this thread, not the threads of ONNX
                # Runtime.
                os.nice(_NICE)
        while not self._is_stopping:
            self._wake.wait()
            self._wake.clear()
            time.sleep(_PAUSE_SECONDS)
            while self._copies and not self._is_stopping:
                began = time.perf_counter()
                run_seconds_before = self._run_seconds
                copy = self._copies.popleft()
                try:
                    self._process(copy)
                finally:
                    self._done += 1
                    self._done_bytes += copy.size
                    # Otherwise a replaced version would remain in memory until the next
                    # request.
                    del copy
                run_seconds = self._run_seconds - run_seconds_before
                held_seconds = time.perf_counter() - began - run_seconds
                time.sleep(max(_HANDOVER_SECONDS, min(_REST * held_seconds, _MAX_REST_SECONDS)))

    def _process(self, copy: MirroredRequest) -> None:
        """Run the copy on the shadow, compare its outputs with the response, and
        capture and count the result. Log and count a failure.
        """
        shadow = copy.shadow
        predictor = shadow.loaded.predictor
        answered_by = copy.answered_by.predictor
        try:
            began = time.perf_counter()
            if copy.body is not None and isinstance(predictor, PyfuncPredictor):
                response = predictor.answer(copy.body, prediction_id=copy.record.prediction_id)
                feeds = response.feeds
                computed = response.outputs
            else:
                if not copy.feeds:
                    raise InferenceError("the shadow needs named arrays, but the request has none")
                feeds = translate_feeds(copy.feeds, answered_by.schema, predictor.schema)
                computed = predictor.run(feeds)
                sent = sent_arrays(copy.feeds)
                # The shadow captures these keys.
                if keys := {name: sent[name] for name in shadow.captured.keys if name in sent}:
                    feeds = add_keys(feeds, keys)
            seconds = time.perf_counter() - began
            self._run_seconds += seconds
            has_rows = predictor.schema.has_rows and answered_by.schema.has_rows
            agreement = compare_outputs(
                answered_by.artifact,
                copy.outputs if has_rows else as_one_row(copy.outputs),
                predictor.artifact,
                computed if has_rows else as_one_row(computed),
            )
            if copy.is_captured and feeds:
                record = copy.record._replace(
                    variant=shadow.name, latency=int(seconds * 1e6), is_shadow=True
                )
                _, _, is_written = self.capture.write(
                    record, shadow.captured, feeds, computed, shadow.capture.max_rows_per_request
                )
                self.metrics.count_shadow_capture(is_written)
            self.metrics.count_shadow_comparison(shadow.labels, agreement, seconds)
        except BaseException as error:
            self.metrics.count_shadow(shadow.labels, "failed")
            logger.warning(
                "the shadow %s/%s fails: %s",
                shadow.endpoint,
                shadow.name,
                error,
                exc_info=None if isinstance(error, OnnxserveError) else error,
            )


def detach(array: Array) -> Array:
    """Return the array, or a copy if the array is a view that would keep the larger
    array of a batch in memory.
    """
    base = array.base
    if isinstance(base, np.ndarray) and base.nbytes > array.nbytes:
        return array.copy()
    return array


def translate_feeds(feeds: Feeds, source_schema: Schema, target_schema: Schema) -> Feeds:
    """Convert feeds of `source_schema` to feeds of `target_schema`.

    The result lacks columns that `source_schema` lacks, and digits that a narrower type
    has truncated. Raises SchemaMismatch if `target_schema` needs a column that is
    missing or has another type.
    """
    if source_schema == target_schema:
        return feeds
    # `cast_columns` restores integers that were stacked with floats.
    return target_schema.from_columns(
        cast_columns(source_schema.dtypes, source_schema.to_columns(feeds)),
    )
