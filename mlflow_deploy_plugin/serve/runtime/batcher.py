"""Dynamic batching: requests that wait at the same time are computed in a single run of
the model.

Names and rules follow Triton's dynamic batcher
(https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/batcher.html).
A batch is computed as soon as the batch is full, has a preferred size, or its first
request has waited for the delay. If preferred sizes are set, the largest preferred size
is the maximum batch size.

The oldest request is the leader. Its thread computes a batch with this request, makes
the next request in the queue the leader, and wakes the requests of the batch. The next
batch gathers meanwhile, because ONNX Runtime releases the GIL.

A single `run` without a delay costs 6 µs and no thread switch. Under concurrency, each
request is put to sleep and woken under the GIL (40 µs). `submit` is for an event loop:
a thread of the batcher delivers the answers of a batch. Threads wait on a lock, which
wakes them 5 µs earlier than threading.Event. A version is batched only if its rows are
independent (`unbatchable_reason`).
"""

import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from math import ceil
from queue import SimpleQueue

import numpy as np

from mlflow_deploy_plugin.core.errors import (
    DeadlineExceeded,
    DeviceMemoryFull,
    InferenceError,
    TooManyRequests,
    pass_exit,
)
from mlflow_deploy_plugin.serve.runtime.agreement import EXACT, Tolerance, compare
from mlflow_deploy_plugin.serve.runtime.feeds import (
    Array,
    Feeds,
    concatenate_feeds,
    join_arrays,
    no_batch_dimension_reason,
    repeat_row,
    slice_feeds,
)
from mlflow_deploy_plugin.serve.runtime.model import Predictor

_DELIVERING_THREADS = 2
"""The threads for submitted requests: while one thread delivers answers, the second
thread computes.
"""
_MOST_RETRY_SECONDS = 60
_ROUNDING = Tolerance(absolute=1e-6, relative=1e-2, of_row=1e-2)
"""The tolerance for half precision, TF32 and another order of sums. A graph that mixes
rows differs by more.
"""
_PADDING = Tolerance(absolute=1e-6, relative=1e-5, of_row=1e-5)
"""The tolerance for texts with other paddings, which change the order of sums."""


@dataclass(frozen=True)
class BatchPolicy:
    """The limits of a batcher, as fields of `core.spec.parts.ServerSpec`.

    If `pads` is True, copies of a row fill a batch up to the next of `sizes`, as in
    TensorFlow Serving (`allowed_batch_sizes`). On a GPU, a new shape means a cuDNN
    search or a new TensorRT engine, and no CUDA graph.
    """

    max_batch_size: int
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    max_queue_size: int = 1024
    pads: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        powers = {2**power for power in range(self.max_batch_size.bit_length())}
        return tuple(sorted(powers | {self.max_batch_size, *self.preferred_batch_size}))


ResultCallback = Callable[["dict[str, Array] | BaseException"], None]
"""A callback that receives the outputs of one request, or the error. The callback must
not raise.
"""
BatchCallback = Callable[[int, float, float], None]
"""A callback for each batch: its rows, the seconds that its first request waited, and
the seconds of computation.
"""
Compute = Callable[[Feeds], dict[str, Array]]


class RequestState(Enum):
    WAITING = auto()
    LEADER = auto()  # The thread of this request computes the next batch.
    COMPUTING = auto()
    DONE = auto()
    # The batch failed, so the thread of each request computes only its own request.
    RETRY_ALONE = auto()
    EXPIRED = auto()


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """One request in the queue. The thread of the request waits on `wake`. For
    `submit`, `done` is called instead.

    Only requests with the same `key` are batched together.
    """

    feeds: Feeds
    rows: int
    queued: float
    deadline: float
    count: BatchCallback
    done: ResultCallback | None = None
    key: Hashable = None
    state: RequestState = RequestState.WAITING
    result: dict[str, Array] | BaseException = field(default_factory=dict)
    wake: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.key = tuple((name, array.dtype, array.shape[1:]) for name, array in self.feeds.items())
        self.wake.acquire()

    def set_state(self, state: RequestState) -> None:
        """Change the state and wake the request's thread. For a submitted request, the
        leader calls `done`.
        """
        leads = self.state is RequestState.LEADER
        self.state = state
        if not leads and self.done is None:
            self.wake.release()


class Batcher:
    """Batches the requests to one version. `compute` maps feeds to outputs; axis 0 of
    all arrays is the rows.
    """

    def __init__(self, compute: Compute, policy: BatchPolicy) -> None:
        self.policy = policy
        self._compute = compute
        self._preferred = frozenset(policy.preferred_batch_size)
        self._padded_sizes = policy.sizes if policy.pads else ()
        self._limit = max(policy.preferred_batch_size, default=policy.max_batch_size)
        self._delay = policy.max_queue_delay_microseconds / 1e6
        self._lock = threading.Lock()
        self._queue: list[QueuedRequest] = []  # A leader that gathers a batch is the first entry.
        self._is_led = False
        self._gatherer: QueuedRequest | None = None
        self._gathered_rows = 0
        self._batch_seconds = 0.0
        # Only the batcher's threads read it.
        self._leaders: SimpleQueue[QueuedRequest | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def run(
        self,
        feeds: Feeds,
        deadline: float = float("inf"),
        count: BatchCallback = lambda rows, queue_seconds, compute_seconds: None,
    ) -> dict[str, Array]:
        """Compute one request, batched with concurrent requests. The calling thread
        blocks.

        Args:
            deadline: in `time.perf_counter()`; a request that is not in a batch by the
                deadline is not computed.
            count: called in the thread that computes the batch.

        Raises:
            TooManyRequests, DeadlineExceeded: the queue is full, or the deadline has
                passed.
            InferenceError: the model refuses the input of this request.
        """
        rows = _row_counts(feeds)
        if len(rows) != 1:
            # The graph decides if it accepts inputs of different lengths.
            return self._compute(feeds)
        entry = QueuedRequest(feeds, rows.pop(), time.perf_counter(), deadline, count)
        self._enqueue(entry)
        if entry.state is not RequestState.LEADER:
            seconds = min(max(0.0, deadline - time.perf_counter()), threading.TIMEOUT_MAX)
            if deadline == float("inf"):
                entry.wake.acquire()
            elif not entry.wake.acquire(timeout=seconds):
                with self._lock:
                    if entry.state is RequestState.WAITING:
                        entry.state = RequestState.EXPIRED
                        self._queue.remove(entry)
                if entry.state is RequestState.COMPUTING:
                    entry.wake.acquire()
        if entry.state is RequestState.LEADER:
            self._lead(entry)
        return self._result(entry)

    def submit(
        self, feeds: Feeds, deadline: float, count: BatchCallback, done: ResultCallback
    ) -> None:
        """Do the same as `run` without blocking. `done` is called in another thread, or
        here if the queue is full.

        If the deadline passes while a batch is computed, the request is answered when
        the batch is done.
        """
        row_counts = _row_counts(feeds)
        size = max(row_counts) if len(row_counts) == 1 else self._limit
        entry = QueuedRequest(feeds, size, time.perf_counter(), deadline, count, done)
        if len(row_counts) > 1:
            # The graph decides if it accepts inputs of different lengths. Such a
            # request is never batched with another.
            entry.key = object()
        if len(self._threads) < _DELIVERING_THREADS:
            with self._lock:
                while len(self._threads) < _DELIVERING_THREADS:
                    name = f"onnxserve-batcher-{len(self._threads)}"
                    self._threads.append(
                        threading.Thread(target=self._serve, name=name, daemon=True)
                    )
                    self._threads[-1].start()
        try:
            self._enqueue(entry)
        except TooManyRequests as error:
            done(error)

    def close(self) -> None:
        """End the threads of the batcher. The queue is empty, because no caller uses
        the version any more.
        """
        for _ in self._threads:
            self._leaders.put(None)

    def _serve(self) -> None:
        """Compute the batches of submitted leaders, until `close` is called."""
        while (leader := self._leaders.get()) is not None:
            try:
                self._lead(leader)
            except BaseException as error:  # noqa: BLE001 - this is the boundary: the callback receives the error
                leader.state = RequestState.DONE
                leader.result = error
            self._finish(leader)
            del leader  # A reference to the leader would keep the version in memory.

    def _finish(self, entry: QueuedRequest) -> None:
        """Call the callback of a submitted request; for `run`, do nothing."""
        if entry.done is None:
            return
        try:
            result: dict[str, Array] | BaseException = self._result(entry)
        except BaseException as error:  # noqa: BLE001 - see _serve
            result = error
        entry.done(result)
        # The error's traceback references this frame and thereby the version, which
        # must be freed now.
        del result
        entry.result = {}

    def _result(self, entry: QueuedRequest) -> dict[str, Array]:
        """Return the outputs of a request that has ended, after computing it alone if
        its batch failed. Raises the errors of `run`.
        """
        if entry.state is RequestState.EXPIRED:
            raise DeadlineExceeded(
                "the request's deadline passed while it waited for the model; it was not computed"
            )
        if entry.state is RequestState.RETRY_ALONE:
            return self._compute(entry.feeds)
        if isinstance(entry.result, BaseException):
            raise entry.result
        return entry.result

    def _enqueue(self, entry: QueuedRequest) -> None:
        """Add a request to the queue. It becomes the leader if there is none, or wakes
        the leader if it completes the leader's batch. Raises TooManyRequests if the
        queue is full.
        """
        with self._lock:
            if len(self._queue) >= self.policy.max_queue_size:
                batches = sum(queued.rows for queued in self._queue) / self._limit
                queue_seconds = ceil(batches * self._batch_seconds)
                raise TooManyRequests(
                    f"{len(self._queue)} requests are already waiting for this model; retry later",
                    min(max(1, queue_seconds), _MOST_RETRY_SECONDS),
                )
            self._queue.append(entry)
            if not self._is_led:
                self._is_led = True
                self._promote(entry)
            elif self._gatherer is not None and self._gatherer.key == entry.key:
                self._gathered_rows += entry.rows
                if self._gathered_rows in self._preferred or self._gathered_rows >= self._limit:
                    self._gatherer.wake.release()
                    self._gatherer = None

    def _promote(self, entry: QueuedRequest) -> None:
        """Make a request the leader, in its own thread or in a thread of the
        batcher.
        """
        if entry.done is None:
            entry.set_state(RequestState.LEADER)
        else:
            entry.state = RequestState.LEADER
            self._leaders.put(entry)

    def _lead(self, leader: QueuedRequest) -> None:
        """Compute one batch, make the next request in the queue the leader, and
        distribute the outputs. After an error, each request of the batch is computed
        alone. Raises the error of a batch of one request.
        """
        batch = []
        results = []
        try:
            batch = self._gather_batch(leader)
            if batch:
                began = time.perf_counter()
                results = self._compute_batch(batch)
                self._batch_seconds = time.perf_counter() - began
                leader.count(
                    sum(entry.rows for entry in batch), began - leader.queued, self._batch_seconds
                )
        except BaseException as error:
            pass_exit(error)
            if len(batch) == 1:
                raise
        finally:
            with self._lock:
                self._gatherer = None
                # The leader may have failed before it took its own request.
                if self._queue and self._queue[0] is leader:
                    self._queue.pop(0)
                if self._queue:
                    self._promote(self._queue[0])
                else:
                    self._is_led = False
            state = RequestState.DONE if results else RequestState.RETRY_ALONE
            for position, entry in enumerate(batch):
                if results:
                    entry.result = results[position]
                entry.set_state(state)
                if entry is not leader:
                    self._finish(entry)

    def _gather_batch(self, leader: QueuedRequest) -> list[QueuedRequest]:
        """Remove the batch from the queue when it should be computed. Return an empty
        list if the leader expired.
        """
        until = leader.queued + self._delay
        while True:
            with self._lock:
                now = time.perf_counter()
                self._gatherer = None
                late = [entry for entry in self._queue if entry.deadline <= now]
                for entry in late:
                    self._queue.remove(entry)
                    entry.set_state(RequestState.EXPIRED)
            for entry in late:
                if entry is not leader:
                    self._finish(entry)
            with self._lock:
                if leader.state is RequestState.EXPIRED:
                    return []
                batch, rows, is_complete = self._select(leader)
                if is_complete or now >= until:
                    for entry in batch[1:]:
                        entry.state = RequestState.COMPUTING
                    self._queue = [
                        entry for entry in self._queue if entry.state is RequestState.WAITING
                    ]
                    return batch
                # Take the lock if it is free, as after a timeout.
                leader.wake.acquire(blocking=False)
                self._gatherer = leader
                self._gathered_rows = rows
            leader.wake.acquire(timeout=min(until, leader.deadline) - now)

    def _select(self, leader: QueuedRequest) -> tuple[list[QueuedRequest], int, bool]:
        """Return the leader's batch, its number of rows, and True if the batch need not
        wait for more requests.
        """
        batch: list[QueuedRequest] = []
        rows = 0
        preferred = 0
        for entry in self._queue:
            if entry.key != leader.key:
                continue
            if batch and rows + entry.rows > self._limit:
                return batch[:preferred] or batch, rows, True
            batch.append(entry)
            rows += entry.rows
            if rows in self._preferred:
                preferred = len(batch)
            if rows >= self._limit:
                break
        return batch[:preferred] or batch, rows, bool(preferred) or rows >= self._limit

    def _compute_batch(self, batch: list[QueuedRequest]) -> list[dict[str, Array]]:
        """Return each request's outputs as views of the batch's outputs; empty if they
        cannot be split.
        """
        rows = sum(entry.rows for entry in batch)
        size = next((size for size in self._padded_sizes if size >= rows > 0), rows)
        parts = [entry.feeds for entry in batch]
        if size > rows:
            last = next(entry for entry in reversed(batch) if entry.rows)
            parts.append(repeat_row(last.feeds, last.rows - 1, size - rows))
        if len(parts) == 1:
            return [self._compute_rows(parts[0], rows)]
        outputs = self._compute_rows(join_arrays(parts), size)
        if any(array.shape[:1] != (size,) for array in outputs.values()):
            return []  # An output without one entry per row cannot be split.
        results = []
        start = 0
        for entry in batch:
            results.append(slice_feeds(outputs, slice(start, start + entry.rows)))
            start += entry.rows
        return results

    def _compute_rows(self, feeds: Feeds, rows: int) -> dict[str, Array]:
        """Compute a batch, in halves if the device lacks memory for it. Raises
        DeviceMemoryFull if the device lacks memory for one row.
        """
        try:
            return self._compute(feeds)
        except DeviceMemoryFull:
            if rows < 2:
                raise
        half = rows // 2
        first = self._compute_rows(slice_feeds(feeds, slice(half)), half)
        second = self._compute_rows(slice_feeds(feeds, slice(half, rows)), rows - half)
        return join_arrays([first, second])


def _row_counts(feeds: Feeds) -> set[int]:
    """Return the distinct row counts of the inputs: a single count if the inputs form
    one table.
    """
    return {(array.shape or (0,))[0] for array in feeds.values()}


@dataclass(frozen=True)
class _Pairs:
    """The outputs for one row, and for pairs of rows that contain this row.

    Attributes:
        single: the outputs for the row.
        twins: the outputs for the row and its copy.
        again: the outputs for the same pair, computed a second time.
        before: the outputs for pairs in which the row precedes another row.
        behind: the outputs for pairs in which the row follows another row.
    """

    single: dict[str, Array]
    twins: dict[str, Array]
    again: dict[str, Array]
    before: Sequence[dict[str, Array]]
    behind: Sequence[dict[str, Array]]

    def has_rows(self, name: str) -> bool:
        """Return True if this output has one entry per row."""
        pairs = [self.twins, self.again, *self.before, *self.behind]
        has_one = self.single[name].shape[:1] == (1,)
        return has_one and all(outputs[name].shape[:1] == (2,) for outputs in pairs)

    def is_independent(self, name: str, tolerance: Tolerance) -> bool:
        """Return True if this output for the row does not depend on the other row. The
        tolerance is for two batches of the same size.
        """
        single = self.single[name]
        both = self.twins[name]
        if not compare(both, self.again[name]).is_same:  # A GPU may sum in any order.
            tolerance = _ROUNDING
        return (
            is_close(both[:1], single, _ROUNDING)
            and is_close(both[1:], single, _ROUNDING)
            and all(is_close(outputs[name][:1], both[:1], tolerance) for outputs in self.before)
            and all(is_close(outputs[name][1:], both[1:], tolerance) for outputs in self.behind)
        )


def unbatchable_reason(predictor: Predictor, feeds: Feeds) -> str:
    """Return the reason why rows of several requests cannot be computed together; empty
    if there is no reason.

    Every input needs a free first dimension, and every output one entry per row. The
    answer for a row must not depend on the other rows, as it does with dynamic
    quantization. Two batches of the same size use the same operations, so both answers
    for a row must be bitwise equal. `feeds` contain at least one row that the model can
    compute.
    """
    if reason := no_batch_dimension_reason(predictor.artifact):
        return f"it has no batch dimension: {reason}"
    if len({len(array) for array in feeds.values()}) != 1:
        return "its inputs do not have the same number of rows"
    if not all(map(len, feeds.values())):
        return "its example has no rows"

    def compute(*rows: Feeds) -> dict[str, Array]:
        return predictor.run(concatenate_feeds(rows))

    try:
        # The second row, or a row that differs from the only row, with other rows.
        first = repeat_row(feeds, 0)
        neighbours = [first, *_different_rows(predictor, first)]
        row = neighbours[1]
        if len(next(iter(feeds.values()))) > 1:
            row = repeat_row(feeds, 1)
        pairs = _Pairs(
            single=compute(row),
            twins=compute(row, row),
            again=compute(row, row),
            before=[compute(row, other) for other in neighbours],
            behind=[compute(other, row) for other in neighbours],
        )
    except (InferenceError, DeviceMemoryFull) as error:
        return f"it cannot compute two rows together: {error.message}"
    tolerance = EXACT if predictor.artifact.tokenizer is None else _PADDING
    for name in pairs.single:
        if not pairs.has_rows(name):
            return f"its output {name!r} does not have one entry per row"
        if not pairs.is_independent(name, tolerance):
            return f"its output {name!r} depends on the other rows of the batch"
    return ""


def _different_rows(predictor: Predictor, first: Feeds) -> list[Feeds]:
    """Return a similar row and rows of large numbers of either sign. Equal rows would
    not reveal a mean over rows.
    """
    rows = []
    for factor in (1, 1000, -1000):
        row = first
        for name, array in first.items():
            if array.dtype.kind == "f":
                with np.errstate(over="ignore"):  # Infinity is a valid test value.
                    row = {**row, name: ((array + 1) * factor).astype(array.dtype)}
            elif array.dtype.kind in "iub":
                row = {**row, name: (array == 0).astype(array.dtype)}
        try:
            predictor.run(row)
        except InferenceError:  # The changed row has an invalid category or index.
            row = first
        rows.append(row)
    return rows


def is_close(batched: Array, single: Array, tolerance: Tolerance) -> bool:
    """Return True if the outputs for a batch are within the tolerance of the outputs
    for single rows.

    Mappings from class to probability are only compared exactly, because the labels of
    different rows differ anyway.
    """
    is_mapping = batched.dtype.kind == "O" and any(
        isinstance(value, Mapping) for value in single.flat
    )
    if is_mapping and tolerance is not EXACT:
        return batched.shape == single.shape
    return compare(single, batched, tolerance).is_same
