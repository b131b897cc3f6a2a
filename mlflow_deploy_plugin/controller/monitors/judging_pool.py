"""Processes that judge windows, so that a judgement that hangs or crashes harms nothing else.

Evidently takes seconds to import and half a gigabyte. So a process is kept for the next window, and ended when it has
been idle for a while or has judged so many windows that its leaked memory matters. It ends itself when the controller
is gone, however that ended: a window is never logged by two processes at a time.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any

from mlflow_deploy_plugin.controller.monitors.evaluation import (
    EvaluatedWindow,
    count_labels,
    count_rows,
    judge_and_log,
)
from mlflow_deploy_plugin.controller.work import TRANSIENT_ERRORS
from mlflow_deploy_plugin.errors import DeadlineExceeded, OnnxserveError
from mlflow_deploy_plugin.monitoring.request import WindowRequest

_log = logging.getLogger(__name__)

_MAX_CALLS = 50
_IDLE_SECONDS = 300.0
_NICE = 10
_OOM_SCORE = "500"
"""The kernel adds it to the process's score when memory is short: it is killed before servers and the controller."""
_JOIN_SECONDS = 5.0


class ProcessEnded(OnnxserveError):
    """The process was ended from here, on purpose."""


class ProcessCrashed(OnnxserveError):
    """The process ended in the middle of its work."""


class JudgingProcess:
    """Calls functions in a child process. One thread may call at a time; any thread may `end` it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._calls = 0
        self._used_at = time.monotonic()
        self._is_ended = False

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        """Return the function's result. The function is one of a module; arguments and result are pickled.

        Raises:
            OnnxserveError: the function's error; transient errors keep their class.
            DeadlineExceeded: it took longer than `seconds`; its process is ended.
            ProcessCrashed: its process has ended, as one does that the system kills for its memory.
            ProcessEnded: by `end`.
        """
        connection = self._started()
        try:
            connection.send((function, arguments))
            if not connection.poll(seconds):
                self._kill()
                raise DeadlineExceeded(f"it took longer than {seconds:g} s and was ended")
            is_done, answer = connection.recv()
        except (EOFError, OSError):
            code = self._kill()
            if self._is_ended:
                raise ProcessEnded("it was ended with the controller") from None
            raise ProcessCrashed(f"its process ended {_how(code)}") from None
        self._calls += 1
        self._used_at = time.monotonic()
        if self._calls >= _MAX_CALLS:
            self._kill()
        if not is_done:
            raise answer
        return answer

    def rest(self) -> None:
        """End the process if it has been idle for a while. Only the thread that may call may use this."""
        if self._process is not None and time.monotonic() - self._used_at > _IDLE_SECONDS:
            self._kill()

    def end(self) -> None:
        """End the process for good; a caller that waits gets `ProcessEnded`."""
        self._is_ended = True
        self._kill()

    def _started(self) -> Connection:
        with self._lock:
            if self._is_ended:
                raise ProcessEnded("it was ended with the controller")
            if self._process is None or not self._process.is_alive() or self._connection is None:
                context = multiprocessing.get_context("spawn")
                self._connection, theirs = context.Pipe()
                self._process = context.Process(target=_work, args=(theirs,), name="monitor", daemon=True)
                self._process.start()
                theirs.close()
                self._calls = 0
            return self._connection

    def _kill(self) -> int | None:
        """Kill the process and return its exit code, as multiprocessing gives it: -9 if it was killed."""
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return None
            process.join(0.2)  # one that has ended by itself says how
            if process.is_alive():
                process.kill()
                process.join(_JOIN_SECONDS)
            return process.exitcode


class JudgingPool:
    """A few processes that judge; a controller makes a new pool each time it gets the lease."""

    def __init__(self, processes: int, seconds: float) -> None:
        self._seconds = seconds
        self._all = [JudgingProcess() for _ in range(processes)]
        self._free: LifoQueue[JudgingProcess] = LifoQueue()  # the last one is still warm
        for process in self._all:
            self._free.put(process)

    def judge(self, request: WindowRequest) -> EvaluatedWindow:
        """Call `judge_and_log` in a process. Raises as `JudgingProcess.call`, like the following."""
        result: EvaluatedWindow = self._call(judge_and_log, request)
        return result

    def count(self, request: WindowRequest) -> int:
        """Call `count_rows` in a process."""
        return int(self._call(count_rows, request))

    def count_labels(self, requests: Sequence[WindowRequest]) -> list[int]:
        """Call `count_labels` in a process."""
        counts: list[int] = self._call(count_labels, requests)
        return counts

    def rest(self) -> None:
        """End processes that have been idle for a while."""
        free = []
        try:
            while True:
                free.append(self._free.get_nowait())
        except Empty:
            pass
        for process in reversed(free):
            process.rest()
            self._free.put(process)

    def end(self) -> None:
        """End all processes, also those at work."""
        for process in self._all:
            process.end()

    def _call(self, function: Callable[..., object], request: WindowRequest | Sequence[WindowRequest]) -> Any:
        process = self._free.get()
        try:
            return process.call(function, request, seconds=self._seconds)
        finally:
            self._free.put(process)


def _work(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the controller says when it is over
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_the_controller, daemon=True).start()
    os.nice(_NICE)  # servers on this machine go first
    with contextlib.suppress(OSError):  # not on every system
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    warnings.simplefilter("ignore")  # libraries' advice to their callers
    os.dup2(2, 1)  # libraries' prints are not the controller's output
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    from mlflow_deploy_plugin.registry import set_service_timeouts  # not in the process that starts this one

    set_service_timeouts()
    while True:
        try:
            function, arguments = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(_answer(function, arguments))


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return True, function(*arguments)
    except TRANSIENT_ERRORS as error:
        return False, type(error)(error.message)
    except OnnxserveError as error:
        return False, OnnxserveError(error.message)
    except Exception as error:  # noqa: BLE001 — one window's failure, whatever it is, is a line in the store
        _log.exception("a window could not be judged")
        text = " ".join(str(error).split())[:500] or "without a word"  # as a MemoryError
        return False, OnnxserveError(f"{type(error).__name__}: {text}")


def _end_with_the_controller() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        with contextlib.suppress(OSError):
            wait([parent.sentinel])
        os._exit(1)


def _how(code: int | None) -> str:
    if code is None:
        return "without a word"
    if code >= 0:
        return f"with status {code}"
    hint = ", as where memory is short" if code == -signal.SIGKILL else ""
    return f"by signal {signal.Signals(-code).name}{hint}"
