"""Shadows: variants that compute a copy of what was answered, to be compared with the answer, and never answer.

The request path only puts a copy into a queue. One thread a worker, with a low priority and after a pause in which the
answer leaves, takes the copies out again: requests of the same kind are computed in one run where the shadow's rows do
not depend on each other. What finds no room is dropped and counted; what fails is counted and told in the log once a
minute. A shadow that is slow, or does not come back at all, costs copies and no answer.
"""

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from mlflow_deploy_plugin.errors import InferenceError, OnnxserveError
from mlflow_deploy_plugin.runtime import (
    COLUMN_TYPES,
    Array,
    Feeds,
    OpaqueBody,
    OpaqueBodyPredictor,
    RemotePredictor,
    Schema,
    concatenate_feeds,
    sent_arrays,
    slice_feeds,
    unbatchable_reason,
)
from mlflow_deploy_plugin.server.capture.codec import RequestRecord, as_one_row
from mlflow_deploy_plugin.server.capture.writer import CaptureWriter
from mlflow_deploy_plugin.server.inference.shadow_compare import compare_outputs
from mlflow_deploy_plugin.server.models.variants import LoadedVersion, ServedVariant
from mlflow_deploy_plugin.server.observability.shadow_metrics import ShadowMetrics

logger = logging.getLogger(__name__)

MAX_COPIES = 4096
MAX_BYTES = 64 * 1024 * 1024
_JOINED_ROWS, _JOINED_COPIES = 1024, 32
_NICE = 10
_PAUSE_SECONDS = 0.05
"""Between two looks: an answer leaves undisturbed, and what has gathered is computed together."""
_HANDOVER_SECONDS, _WRITES_AT_ONCE = 1e-4, 8
"""A thread that computes keeps the interpreter for 5 ms each time that another wants it (`sys.getswitchinterval`); one
that sleeps hands it over at once."""
_REST, _LONGEST_REST_SECONDS = 9.0, 0.25
"""Times as long as the thread has held the interpreter (while a graph runs it does not), it leaves it to the others."""
_LOG_SECONDS = 60.0


_TEXT_BYTES = 64  # an object of str, without its characters

Kinds = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""The dtype and a row's shape of each array."""


@dataclass(slots=True)
class MirroredRequest:
    """One request for one shadow.

    Attributes:
        record: of the answer; the shadow's captured rows have the same ids and times.
        is_captured: whether the answer is captured, and so the shadow's.
        feeds / outputs: of the variant that has answered.
        body: what a pyfunc reads itself.
        size: bytes that it holds.
    """

    shadow: ServedVariant
    answered_by: LoadedVersion
    record: RequestRecord
    is_captured: bool
    feeds: Feeds
    outputs: Mapping[str, Array]
    body: OpaqueBody | None
    size: int

    @property
    def rows(self) -> int:
        return self.answered_by.predictor.schema.count_rows(self.feeds)

    def can_batch_with(self, first: "MirroredRequest", kinds: Kinds) -> bool:
        """Whether one run may compute both; `kinds` are those of the feeds of `first`."""
        return (
            self.shadow.loaded is first.shadow.loaded
            and (self.shadow.endpoint, self.shadow.name) == (first.shadow.endpoint, first.shadow.name)
            and self.answered_by is first.answered_by
            and self.answered_by.predictor.schema.has_rows
            and self.body is None
            and self.outputs.keys() == first.outputs.keys()
            and array_kinds(self.feeds) == kinds
        )


def array_kinds(feeds: Feeds) -> Kinds:
    """What has to be the same for two requests to be computed in one run."""
    return {name: (array.dtype, array.shape[1:]) for name, array in {**feeds, **sent_arrays(feeds)}.items()}


def concatenate_outputs(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The rows of all of them, array by array."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def detach(array: Array) -> Array:
    """An array of a batch's is a view that would keep the whole batch in memory."""
    base = array.base
    return array.copy() if isinstance(base, np.ndarray) and base.nbytes > array.nbytes else array


def array_bytes(arrays: Mapping[str, Array]) -> int:
    """What the arrays hold in memory, about."""
    held = 0
    for array in arrays.values():
        held += array.nbytes
        if array.dtype.char == "O":
            held += sum(_TEXT_BYTES + (len(value) if isinstance(value, str) else 0) for value in array.flat)
    return held


def translate_feeds(feeds: Feeds, given: Schema, wanted: Schema) -> Feeds:
    """Feeds made by the schema `given`, for the graph behind `wanted`.

    What `given` has not read is not there: a column that it does not know, or what a narrower type has cut off.

    Raises:
        SchemaMismatch: `wanted` needs a column that is not there, or of another type.
    """
    if given == wanted:
        return feeds
    return wanted.from_columns(feeds_to_columns(feeds, given))


def feeds_to_columns(feeds: Feeds, schema: Schema) -> dict[str, Array]:
    """Arrays of [N] by signature column, in the signature's types (of [N, …] by tensor name)."""
    columns = schema.to_columns(feeds)
    for column in schema.columns:
        array = columns.get(column.name)
        if array is None or array.dtype.kind == "O":
            continue
        dtype = np.dtype(COLUMN_TYPES[column.type])
        if array.dtype != dtype and (dtype.kind == "f" or np.isfinite(array).all()):
            columns[column.name] = array.astype(dtype)  # an integer that was stacked among floats is one again
    for entry in schema.inputs:
        if entry.missing is not None:
            for name in entry.columns:
                columns[name] = _with_none(columns[name], entry.missing)
    return columns


def _with_none(texts: Array, missing: str) -> Array:
    restored = texts.copy()
    restored[restored == missing] = None
    return restored


class Shadows:
    """The copies of one worker, and the thread that computes them; it begins with the first copy.

    Args:
        capture: where the shadows' rows go, a writer of its own: nobody who answers waits for it.
        clock: monotonic seconds, for the log's one line a minute.
    """

    def __init__(
        self,
        capture: CaptureWriter,
        metrics: ShadowMetrics,
        max_copies: int = MAX_COPIES,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capture = capture
        self._metrics = metrics
        self._max_copies, self._max_bytes = max_copies, max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._copies: deque[MirroredRequest] = deque()
        self._offered = self._offered_bytes = 0
        self._done = self._done_bytes = 0  # only the thread writes these, and never holds a lock that others wait for
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread: threading.Thread | None = None
        self._is_joinable: WeakKeyDictionary[LoadedVersion, bool] = WeakKeyDictionary()
        self._silent_until = float("-inf")
        self._run_seconds = 0.0

    @property
    def waiting(self) -> int:
        """Copies that are in the queue or being computed."""
        return self._offered - self._done

    def mirror(
        self,
        variant: ServedVariant,
        record: RequestRecord,
        is_captured: bool,
        feeds: Feeds,
        outputs: Mapping[str, Array],
        body: OpaqueBody | None = None,
    ) -> None:
        """A copy of what `variant` has answered, for each of its shadows. Never fails and never waits.

        Args:
            record: of the answer; with `is_captured` the rows of the shadow are captured under its ids.
            body: of a request that the answering version has read itself.
        """
        try:
            for array in outputs.values():
                if array.base is not None:
                    outputs = {name: detach(array) for name, array in outputs.items()}
                    break
            held = feeds if sent_arrays(feeds) is feeds else {**feeds, **sent_arrays(feeds)}
            size = array_bytes(held) + array_bytes(outputs) + (len(body.content) if body else 0)
            for shadow in variant.shadows:
                copy = MirroredRequest(shadow, variant.loaded, record, is_captured, feeds, outputs, body, size)
                if not self._put(copy):
                    self._metrics.count(shadow, "dropped")
        except Exception:
            logger.exception("a copy for the shadows of %s could not be made", variant.endpoint)

    def close(self, seconds: float = 1.0) -> None:
        """Ends the thread after what it is computing, or leaves it alone after `seconds`; what waits is forgotten."""
        self._is_stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)
        self._capture.close()

    def _put(self, copy: MirroredRequest) -> bool:
        with self._lock:
            held = self._offered_bytes - self._done_bytes
            if self._offered - self._done >= self._max_copies or held + copy.size > self._max_bytes:
                return False
            was_empty = not self._copies
            self._offered += 1
            self._offered_bytes += copy.size
            self._copies.append(copy)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="onnxserve-shadow", daemon=True)
                self._thread.start()
        if was_empty:
            self._wake.set()
        return True

    def _work(self) -> None:
        _lower_priority()
        while not self._is_stopping:
            self._wake.wait()
            self._wake.clear()
            time.sleep(_PAUSE_SECONDS)
            while self._copies and not self._is_stopping:
                began, ran = time.perf_counter(), self._run_seconds
                taken = self._take()
                try:
                    self._deal(taken)
                finally:
                    self._done += len(taken)
                    self._done_bytes += sum(copy.size for copy in taken)
                    del taken  # a version that was swapped out is not held until the next request
                held = time.perf_counter() - began - (self._run_seconds - ran)
                time.sleep(max(_HANDOVER_SECONDS, min(_REST * held, _LONGEST_REST_SECONDS)))

    def _take(self) -> list[MirroredRequest]:
        """The next copy, and those behind it that go with it."""
        taken = [self._copies.popleft()]
        first, rows, kinds = taken[0], taken[0].rows, array_kinds(taken[0].feeds)
        while len(taken) < _JOINED_COPIES and self._copies and self._copies[0].can_batch_with(first, kinds):
            rows += self._copies[0].rows
            if rows > _JOINED_ROWS or not self._joins(first):
                break
            taken.append(self._copies.popleft())
        return taken

    def _joins(self, copy: MirroredRequest) -> bool:
        """Whether rows of several requests may be computed together; found out once a version."""
        loaded = copy.shadow.loaded
        if (known := self._is_joinable.get(loaded)) is None:
            try:
                feeds = translate_feeds(copy.feeds, copy.answered_by.predictor.schema, loaded.predictor.schema)
                known = not isinstance(loaded.predictor, RemotePredictor) and not unbatchable_reason(
                    loaded.predictor, feeds
                )
            except Exception:  # noqa: BLE001 - whatever it is: computing them one by one tells it
                return False
            self._is_joinable[loaded] = known
        return known

    def _deal(self, copies: list[MirroredRequest]) -> None:
        """Computes and compares; if several fail together, each by itself."""
        shadow = copies[0].shadow
        try:
            self._compare(copies)
        except Exception as error:  # noqa: BLE001 - the boundary: logged and counted, the answer has left long ago
            if len(copies) > 1:
                for copy in copies:
                    time.sleep(_HANDOVER_SECONDS)
                    self._deal([copy])
                return
            self._complain(shadow, error)
            self._metrics.count(shadow, "failed")

    def _compare(self, copies: list[MirroredRequest]) -> None:
        first = copies[0]
        shadow, predictor = first.shadow, first.shadow.loaded.predictor
        began = time.perf_counter()
        if first.body is not None and isinstance(predictor, OpaqueBodyPredictor):
            answer = predictor.answer(first.body)
            feeds, computed = answer.feeds, answer.outputs
        elif first.feeds:
            given = concatenate_feeds([copy.feeds for copy in copies])
            feeds = translate_feeds(given, first.answered_by.predictor.schema, predictor.schema)
            computed = predictor.run(feeds)
        else:
            raise InferenceError("the request has no form as named arrays, which the shadow takes")
        seconds = time.perf_counter() - began
        self._run_seconds += seconds
        outputs = concatenate_outputs([copy.outputs for copy in copies])
        answered_by = first.answered_by.predictor
        if predictor.schema.has_rows and answered_by.schema.has_rows:
            compared = compare_outputs(answered_by.artifact, outputs, predictor.artifact, computed)
        else:
            compared = compare_outputs(
                answered_by.artifact, as_one_row(outputs), predictor.artifact, as_one_row(computed)
            )
        self._write(copies, feeds, computed, int(seconds * 1e6))
        self._metrics.observe(shadow, compared, len(copies), seconds)

    def _write(self, copies: list[MirroredRequest], feeds: Feeds, computed: Mapping[str, Array], latency: int) -> None:
        """The rows of the shadow, request by request, into the spool; `latency` in microseconds is that of its run."""
        start = 0
        for number, copy in enumerate(copies, 1):
            if number % _WRITES_AT_ONCE == 0:
                time.sleep(_HANDOVER_SECONDS)
            rows = slice(start, start + copy.rows) if len(copies) > 1 else slice(None)
            start += copy.rows
            if copy.is_captured and feeds:
                self._capture.write(
                    copy.record._replace(variant=copy.shadow.name, latency=latency, is_shadow=True),
                    copy.shadow.captured,
                    slice_feeds(feeds, rows) if len(copies) > 1 else feeds,
                    {name: array[rows] for name, array in computed.items()} if len(copies) > 1 else computed,
                    copy.shadow.capture.max_rows_per_request,
                )

    def _complain(self, shadow: ServedVariant, error: Exception) -> None:
        if (now := self._clock()) < self._silent_until:
            return
        self._silent_until = now + _LOG_SECONDS
        is_ours = isinstance(error, OnnxserveError)
        place = f"{shadow.endpoint}/{shadow.name}"
        logger.warning("the shadow %s fails: %s", place, error, exc_info=None if is_ours else error)


def _lower_priority() -> None:
    """Of this thread alone. Those of a session with several have the priority of whoever loaded it."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
