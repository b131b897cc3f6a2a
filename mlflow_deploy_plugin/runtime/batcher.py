"""Dynamic batching: requests that wait at the same time are joined into one run of the model.

Names and rules are those of Triton's dynamic batcher
(https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/batcher.html): a batch is computed as soon
as it has a preferred size or is full, or when its first request has waited for the delay; with a preferred size, no
batch is larger than the largest of them.

There is no thread of its own: the thread of the request that has waited longest leads. It computes one batch, which
its own request is part of, hands the lead to the next request that waits, and wakes those that it has computed. An idle
batcher without a delay therefore costs a request no change of threads (13 µs and more each, measured), and a
version that is swapped out answers what it has been asked, since its last request holds it, and leaves nothing behind.
While a batch is computed, and ONNX Runtime has let go of the GIL, the next one gathers by itself.

A thread waits on a bare lock: 13 µs from release to wake-up; threading.Event and a Future take 18 µs (medians of the
best runs on this project's machine).
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from math import ceil

import numpy as np

from mlflow_deploy_plugin.errors import DeadlineExceeded, TooManyRequests
from mlflow_deploy_plugin.runtime.schema import Array, Feeds

Compute = Callable[[Feeds, Sequence[str] | None], dict[str, Array]]
Count = Callable[[int, float, float], None]
"""Is told of a batch: its rows, seconds that its first request waited, seconds that it was computed."""


@dataclass(frozen=True)
class BatchPolicy:
    """What is joined, and how long it waits; the fields of `spec.ServerSpec`."""

    max_batch_size: int
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    max_queue_size: int = 1024

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that are warmed: powers of two, the largest, and those that are preferred."""
        powers = {2**power for power in range(self.max_batch_size.bit_length())}
        return tuple(sorted(powers | {self.max_batch_size, *self.preferred_batch_size}))


class _State(Enum):
    WAITING = auto()
    LEADS = auto()  # its thread computes the next batch
    TAKEN = auto()  # it is being computed
    DONE = auto()
    ALONE = auto()  # the batch failed: its thread computes it by itself
    EXPIRED = auto()


class _Entry:
    """One request in the queue; its thread waits on `wake`."""

    __slots__ = ("deadline", "feeds", "key", "outputs", "queued", "result", "rows", "state", "wake")

    def __init__(self, feeds: Feeds, outputs: Sequence[str] | None, rows: int, queued: float, deadline: float) -> None:
        self.feeds = feeds
        self.outputs = outputs
        self.rows = rows
        self.queued = queued
        self.deadline = deadline
        self.key = (
            None if outputs is None else tuple(outputs),
            tuple((name, array.dtype, array.shape[1:]) for name, array in feeds.items()),
        )
        self.state = _State.WAITING
        self.result: dict[str, Array] = {}
        self.wake = threading.Lock()
        self.wake.acquire()

    def tell(self, state: _State) -> None:
        """Wakes the thread of an entry that waits; the leader's own thread runs already."""
        leads, self.state = self.state is _State.LEADS, state
        if not leads:
            self.wake.release()


class Batcher:
    """Joins the requests of one version.

    Args:
        compute: runs the model on feeds whose first axis is the rows, each output with one entry a row.
        clock: seconds, monotonic.
    """

    def __init__(self, compute: Compute, policy: BatchPolicy, clock: Callable[[], float] = time.perf_counter) -> None:
        self.policy = policy
        self._compute = compute
        self._clock = clock
        self._preferred = frozenset(policy.preferred_batch_size)
        self._limit = max(policy.preferred_batch_size, default=policy.max_batch_size)
        self._delay = policy.max_queue_delay_microseconds / 1e6
        self._lock = threading.Lock()
        self._queue: list[_Entry] = []  # the leader, while it gathers, is the first
        self._is_led = False
        self._gatherer: _Entry | None = None
        self._gathered_rows = 0
        self._batch_seconds = 0.0

    def run(
        self,
        feeds: Feeds,
        outputs: Sequence[str] | None = None,
        deadline: float = float("inf"),
        count: Count = lambda rows, queue_seconds, compute_seconds: None,
    ) -> dict[str, Array]:
        """Computes one request, joined with others; blocks the caller's thread.

        Args:
            deadline: of `clock`; a request that has not been taken for a batch by then is not computed.
            count: is called in the thread that computes the batch.

        Raises:
            TooManyRequests: the queue is full.
            DeadlineExceeded: the deadline passed.
            InferenceError: the model refuses this request's input.
        """
        rows = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
        if len(rows) != 1:
            return self._compute(feeds, outputs)  # which input has how many rows is for the graph to judge
        entry = _Entry(feeds, outputs, rows.pop(), self._clock(), deadline)
        self._enter(entry)
        if entry.state is not _State.LEADS:
            self._wait(entry)
        if entry.state is _State.LEADS:
            self._lead(entry, count)
        if entry.state is _State.EXPIRED:
            raise DeadlineExceeded("the request's time was up before the model was free; nothing was computed")
        if entry.state is _State.ALONE:
            return self._compute(feeds, outputs)
        return entry.result

    def _enter(self, entry: _Entry) -> None:
        with self._lock:
            if len(self._queue) >= self.policy.max_queue_size:
                raise TooManyRequests(
                    f"{len(self._queue)} requests wait for this model already; ask again later", self._retry_after()
                )
            self._queue.append(entry)
            if not self._is_led:
                self._is_led = True
                entry.state = _State.LEADS
            elif self._gatherer is not None and self._gatherer.key == entry.key:
                self._gathered_rows += entry.rows
                if self._gathered_rows in self._preferred or self._gathered_rows >= self._limit:
                    self._gatherer.wake.release()
                    self._gatherer = None

    def _retry_after(self) -> int:
        """Seconds in which the queue, as it is, will have been computed; at least one."""
        batches = sum(entry.rows for entry in self._queue) / self._limit
        return min(max(1, ceil(batches * self._batch_seconds)), 60)

    def _wait(self, entry: _Entry) -> None:
        """Until the entry is done, alone, expired or leads."""
        if entry.deadline == float("inf"):
            entry.wake.acquire()
            return
        if entry.wake.acquire(timeout=min(max(0.0, entry.deadline - self._clock()), threading.TIMEOUT_MAX)):
            return
        with self._lock:
            if entry.state is _State.WAITING:
                entry.state = _State.EXPIRED
                self._queue.remove(entry)
        if entry.state is _State.TAKEN:
            entry.wake.acquire()

    def _lead(self, leader: _Entry, count: Count) -> None:
        """Computes one batch and answers it; whatever happens, the lead is handed on and nobody is left waiting."""
        batch: list[_Entry] = []
        results: list[dict[str, Array]] = []
        try:
            batch = self._gather(leader)
            if batch:
                began = self._clock()
                results = self._computed(batch)
                self._batch_seconds = self._clock() - began
                count(sum(entry.rows for entry in batch), began - leader.queued, self._batch_seconds)
        except Exception:
            if len(batch) == 1:
                raise
        finally:
            self._hand_on(leader)
            self._answer(batch, results)

    def _answer(self, batch: list[_Entry], results: list[dict[str, Array]]) -> None:
        """Gives each entry its part, or lets it be computed alone where there is none."""
        for position, entry in enumerate(batch):
            if results:
                entry.result = results[position]
            entry.tell(_State.DONE if results else _State.ALONE)

    def _gather(self, leader: _Entry) -> list[_Entry]:
        """Takes the batch out of the queue once it is worth computing; empty: the leader's own time is up."""
        until = leader.queued + self._delay
        while True:
            with self._lock:
                now = self._clock()
                self._gatherer = None
                self._expire(now)
                if leader.state is _State.EXPIRED:
                    return []
                batch, rows, is_complete = self._chosen(leader)
                if is_complete or now >= until:
                    for entry in batch[1:]:
                        entry.state = _State.TAKEN
                    self._queue = [entry for entry in self._queue if entry.state is _State.WAITING]
                    return batch
                leader.wake.acquire(blocking=False)  # what woke it up to here may have been a timeout
                self._gatherer, self._gathered_rows = leader, rows
            leader.wake.acquire(timeout=min(until, leader.deadline) - now)

    def _expire(self, now: float) -> None:
        late = [entry for entry in self._queue if entry.deadline <= now]
        for entry in late:
            self._queue.remove(entry)
            entry.tell(_State.EXPIRED)

    def _chosen(self, leader: _Entry) -> tuple[list[_Entry], int, bool]:
        """The leader and those in the queue that fit behind it, their rows, and whether that is to be computed at once.

        A request of more rows than the limit is complete by itself.
        """
        chosen: list[_Entry] = []
        rows = preferred = 0
        for entry in self._queue:
            if entry.key != leader.key:
                continue
            if chosen and rows + entry.rows > self._limit:
                return chosen[:preferred] or chosen, rows, True
            chosen.append(entry)
            rows += entry.rows
            if rows in self._preferred:
                preferred = len(chosen)
            if rows >= self._limit:
                break
        return chosen[:preferred] or chosen, rows, bool(preferred) or rows >= self._limit

    def _computed(self, batch: list[_Entry]) -> list[dict[str, Array]]:
        """The outputs of each entry: views of the batch's."""
        first = batch[0]
        if len(batch) == 1:
            return [self._compute(first.feeds, first.outputs)]
        joined = {name: np.concatenate([entry.feeds[name] for entry in batch]) for name in first.feeds}
        outputs = self._compute(joined, first.outputs)
        ends = np.cumsum([entry.rows for entry in batch]).tolist()
        if any(array.shape[:1] != (ends[-1],) for array in outputs.values()):
            return []  # not one entry a row after all: nobody can tell whose is whose
        return [
            {name: array[end - entry.rows : end] for name, array in outputs.items()}
            for entry, end in zip(batch, ends, strict=True)
        ]

    def _hand_on(self, leader: _Entry) -> None:
        with self._lock:
            self._gatherer = None
            if self._queue and self._queue[0] is leader:  # it failed before it took itself
                self._queue.pop(0)
            if self._queue:
                self._queue[0].tell(_State.LEADS)
            else:
                self._is_led = False
