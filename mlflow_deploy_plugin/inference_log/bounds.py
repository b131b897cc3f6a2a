"""What a statement may take: time in which nothing comes of it, and memory that DuckDB does not count.

DuckDB's `memory_limit` is about what it keeps; what 2,048 rows of a giant `repeat()` take comes on top.
"""

import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LOOKS = 10
"""At the clock, in the time that is waited."""


class Patience:
    """Interrupts a statement that has neither read a row nor given one for so long.

    What the log takes to give rows does not count, nor what is done with those that were given.

    Attributes:
        is_over: it was interrupted.
    """

    def __init__(
        self, interrupt: Callable[[], None], seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interrupt = interrupt
        self._seconds = seconds
        self._clock = clock
        self._is_working = self._is_reading = False
        self._last = clock()
        self._ended = threading.Event()
        self.is_over = False

    def __enter__(self) -> "Patience":
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within it the statement is run."""
        self._last, self._is_working = self._clock(), True
        try:
            yield
        finally:
            self._is_working = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within it the log is read for the statement."""
        self._is_reading = True
        try:
            yield
        finally:
            self._last, self._is_reading = self._clock(), False

    def look(self) -> None:
        """Interrupts where it is time to."""
        if self._is_working and not self._is_reading and self._clock() - self._last > self._seconds:
            self.is_over = True
            self._interrupt()

    def _watch(self) -> None:
        while not self._ended.wait(self._seconds / _LOOKS):
            self.look()


@contextmanager
def memory_of_at_most(size: int) -> Iterator[None]:
    """Within it this process gets `size` bytes more than it has, on Linux; beyond it allocations fail.

    It is about all threads of the process: for a command, not for a library.
    """
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_bytes() + size
    if before[0] != resource.RLIM_INFINITY:
        limit = min(limit, before[0])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _data_bytes() -> int:
    """What `RLIMIT_DATA` is about (getrlimit(2), proc_pid_status(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
