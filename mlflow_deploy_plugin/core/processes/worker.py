"""Worker processes that call functions, so that a call that hangs, crashes or leaks
memory is isolated. Unlike multiprocessing, a worker does not import the main module, so
`if __name__ == "__main__"` is optional.
"""

import contextlib
import logging
import pickle
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from queue import Empty, LifoQueue
from typing import TypeVar

from mlflow_deploy_plugin.core.errors import DeadlineExceeded, OnnxserveError, pass_exit
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.processes.child import (
    KILL,
    Child,
    Output,
    exit_reason,
    requests_of_parent,
)

if sys.platform == "win32":
    from multiprocessing.connection import PipeConnection as Connection
else:
    from multiprocessing.connection import Connection

Result = TypeVar("Result")
_log = logging.getLogger(__name__)

_OWN_END_SECONDS = 0.2
_KILL_SECONDS = 5.0


class ProcessEnded(OnnxserveError):
    """A worker was ended with `Worker.end`."""


class ProcessCrashed(OnnxserveError):
    """A worker's process ended during a call or could not be started."""


@dataclass(eq=False)
class Worker:
    """Calls functions in a separate process, which is started at the first call. Only
    one thread may call at a time.

    Args:
        prepare: a module-level function that is called first in the new process.
        max_calls: the number of calls after which the process is replaced, to free
            leaked memory.
        kept_errors: the error classes that are raised unchanged in the caller; other
            errors become OnnxserveError.
        stderr: the error output of the process, which also receives its standard
            output.
    """

    prepare: Callable[[], object] | None = None
    max_calls: int | None = None
    kept_errors: Sequence[type[OnnxserveError]] = ()
    stderr: Output = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._connection: Connection | None = None
        self._calls = 0
        self._used_at = time.monotonic()
        self._is_ended = False

    def call(
        self,
        function: Callable[..., Result],
        *arguments: object,
        seconds: float,
    ) -> Result:
        """Return the result of `function`, a module-level function. The arguments and
        the result are pickled.

        Raises:
            OnnxserveError: the function raised an error that is not in `kept_errors`.
            DeadlineExceeded: the call took longer than `seconds`, and the process was
                killed.
            ProcessCrashed: the process exited, was killed for its memory use, or cannot
                be started.
            ProcessEnded: `end` was called.
        """
        with self._lock:
            if self._is_ended:
                raise ProcessEnded("the worker process was stopped")
            if self._child is None or self._connection is None or self._child.wait(0) is not None:
                self._connection, theirs = Pipe()
                # Libraries may print; keep our output clean.
                output = 2 if self.stderr is None else self.stderr
                command = [sys.executable, "-P", "-m", __name__, str(theirs.fileno())]
                try:
                    with theirs:
                        self._child = Child(
                            command,
                            descriptors=[theirs.fileno()],
                            stdout=output,
                            stderr=self.stderr,
                        )
                except OSError as failure:
                    raise ProcessCrashed(
                        f"the worker process cannot be started: {failure.strerror}",
                    ) from None
                # The child must find functions in the same modules.
                self._connection.send(sys.path)
                self._connection.send(self.prepare)
                self._calls = 0
            connection = self._connection
        try:
            connection.send((function, arguments))
            if not connection.poll(seconds):
                self._kill()
                raise DeadlineExceeded(f"the call took longer than {seconds:g} s and was stopped")
            error, answer = connection.recv()
        except (EOFError, OSError):
            status = self._kill()
            if self._is_ended:
                raise ProcessEnded("the worker process was stopped") from None
            reason = "ended" if status is None else exit_reason(status)
            hint = ", possibly because memory ran out" if status == -KILL else ""
            raise ProcessCrashed(f"the worker process {reason}{hint}") from None
        self._calls += 1
        self._used_at = time.monotonic()
        if self.max_calls is not None and self._calls >= self.max_calls:
            self._kill()
        if error is not None:
            if not issubclass(error, tuple(self.kept_errors)):
                error = OnnxserveError
            raise error(answer)
        result: Result = answer
        return result

    def end_if_idle(self, seconds: float) -> None:
        """End the process if it has been idle for this time. Call this only from a
        thread that may use `call`.
        """
        if self._child is not None and time.monotonic() - self._used_at > seconds:
            self._kill()

    def end(self) -> None:
        """End the worker permanently. A thread that waits for a result receives
        `ProcessEnded`.
        """
        self._is_ended = True
        self._kill()

    def _kill(self) -> int | None:
        """Kill the process if it does not exit within a short time, and return its exit
        status.
        """
        with self._lock:
            child = self._child
            self._child = None
            if child is None:
                return None
            child.kill_after(_OWN_END_SECONDS)
            # Do not wait longer: a process may hang in the kernel.
            return child.wait(_KILL_SECONDS)


class WorkerPool:
    """Calls functions in several workers. Several threads may call at the same time."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        # Prefer the last used worker, whose process runs.
        self._free: LifoQueue[Worker] = LifoQueue()
        for worker in workers:
            self._free.put(worker)

    def call(
        self,
        function: Callable[..., Result],
        *arguments: object,
        seconds: float,
    ) -> Result:
        """Wait for a free worker, and return the result of `function` as `Worker.call`
        does.
        """
        worker = self._free.get()
        try:
            return worker.call(function, *arguments, seconds=seconds)
        finally:
            self._free.put(worker)

    def end_idle(self, seconds: float) -> None:
        """End the processes that have been idle for this time."""
        free = []
        with contextlib.suppress(Empty):
            while True:
                free.append(self._free.get_nowait())
        for worker in reversed(free):
            worker.end_if_idle(seconds)
            self._free.put(worker)

    def end(self) -> None:
        for worker in self._workers:
            worker.end()


def serve(descriptor: int) -> None:
    """Call the functions that the parent sends. The parent first sends its `sys.path`
    and the `prepare` function.
    """
    connection = Connection(descriptor)
    requests = requests_of_parent(connection.recv_bytes)
    sys.path[:] = pickle.loads(next(requests))
    if (prepare := pickle.loads(next(requests))) is not None:
        prepare()
    for request in requests:
        # The answer is None and the result, or the class and message of an error.
        try:
            function, arguments = pickle.loads(request)
            answer = pickle.dumps((None, function(*arguments)))
        except OnnxserveError as error:
            answer = pickle.dumps((type(error), error.message))
        except BaseException as error:  # noqa: BLE001 - the log has the traceback, the parent gets one line
            pass_exit(error)
            _log.exception("a call of the parent failed")
            text = one_line(str(error), 500) or "no message"  # A MemoryError has no text.
            answer = pickle.dumps((OnnxserveError, f"{type(error).__name__}: {text}"))
        # After the parent's end, this process is killed.
        with contextlib.suppress(ConnectionError):
            connection.send_bytes(answer)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
