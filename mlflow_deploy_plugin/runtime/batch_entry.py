"""One request in the queue of a batcher (`runtime/batcher.py`)."""

import threading
from collections.abc import Callable, Hashable, Sequence
from enum import Enum, auto

from mlflow_deploy_plugin.runtime.schema import Array, Feeds

Done = Callable[["dict[str, Array] | Exception"], None]
"""Is given the outputs of one request, or why there are none; it must not raise."""
Count = Callable[[int, float, float], None]
"""Is told of a batch: its rows, seconds that its first request waited, seconds that it was computed."""


class State(Enum):
    WAITING = auto()
    LEADS = auto()  # its thread computes the next batch
    TAKEN = auto()  # it is being computed
    DONE = auto()
    ALONE = auto()  # the batch failed: its thread computes it by itself
    EXPIRED = auto()


class Entry:
    """One request in the queue; its thread waits on `wake`, or `done` is called."""

    __slots__ = ("count", "deadline", "done", "feeds", "key", "outputs", "queued", "result", "rows", "state", "wake")

    def __init__(
        self,
        feeds: Feeds,
        outputs: Sequence[str] | None,
        rows: int,
        queued: float,
        deadline: float,
        count: Count,
        done: Done | None = None,
    ) -> None:
        self.count = count
        self.done = done
        self.feeds = feeds
        self.outputs = outputs
        self.rows = rows
        self.queued = queued
        self.deadline = deadline
        self.key: Hashable = (
            None if outputs is None else tuple(outputs),
            tuple((name, array.dtype, array.shape[1:]) for name, array in feeds.items()),
        )
        self.state = State.WAITING
        self.result: dict[str, Array] | Exception = {}
        self.wake = threading.Lock()
        self.wake.acquire()

    def tell(self, state: State) -> None:
        """Wakes the thread of an entry that waits; the leader's own runs already, and `done` is called by who leads."""
        leads, self.state = self.state is State.LEADS, state
        if not leads and self.done is None:
            self.wake.release()
