"""A process beside the worker that runs the code of one pyfunc version, or explains, so that the worker has neither
mlflow nor pandas nor shap in memory, and outlives whatever that code does.

A keeper thread starts the process, waits for its end, and starts it anew, with a pause that grows while it does not
last. A question that finds no process is refused at once; one that takes longer than it may ends the process. The
process ends with its worker, however that ends: its connection is closed (which it watches), and the kernel kills it
when the keeper, that is its parent thread, has gone. It leads a process group, which is killed with it.
"""

import contextlib
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Final

from mlflow_deploy_plugin.errors import (
    DeadlineExceeded,
    InferenceError,
    InvalidArtifact,
    InvalidRequest,
    NotReady,
    OnnxserveError,
    SchemaMismatch,
    TooManyRequests,
    UnsupportedMediaType,
)
from mlflow_deploy_plugin.processes import Child, exit_reason
from mlflow_deploy_plugin.server.models.side_messages import MalformedMessage, SideMessage, receive, send

logger = logging.getLogger(__name__)

READY, FAILED = "ready", "failed"
_LOAD_SECONDS: Final = 600.0
_LONGEST_PAUSE_SECONDS: Final = 30.0
_STABLE_SECONDS: Final = 60.0
_END_SECONDS: Final = 5.0
_GRACE_SECONDS: Final = 1.0
_FOR_METRICS = "PROMETHEUS_MULTIPROC_DIR"  # the model's own counters have no place among the worker's


class _Running:
    """One process and the connection to it."""

    def __init__(self, command: Sequence[str]) -> None:
        self.connection, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if name != _FOR_METRICS}
        with theirs:
            self.child = Child(
                [*command, str(theirs.fileno())],
                descriptors=[theirs.fileno()],
                stdout=2,  # what the model prints goes where the log goes
                environment=environment,
            )

    def kill_soon(self) -> None:
        """Kill a process that has closed its connection and is about to end, so that its own exit status is seen."""
        self.child.kill_later(_GRACE_SECONDS)

    def wait(self) -> None:
        """Return when the process has ended and nothing of its group is left.

        The connection is shut down here, and closed by whoever knows that nobody reads from it: a number that is free
        would be given to the connection of the next process while a thread still waits on it.
        """
        self.child.wait()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def exit_reason(self) -> str:
        """Return in words how it ended."""
        status = self.child.wait(_END_SECONDS)
        return "has closed its connection" if status is None else exit_reason(status)


class SideProcess:
    """Keeps one process of `command` running until `close`, and asks it one question at a time.

    Args:
        command: is given the descriptor of its socket as its last argument; says `ready` or `failed` first.
        answer_seconds: what one answer may take; then the process is killed.
        what: what it is called where it is told why it does not answer.
    """

    def __init__(self, command: Sequence[str], answer_seconds: float, what: str = "model") -> None:
        self._command = command
        self._what = what
        self._answer_seconds = answer_seconds
        self._asking = threading.Lock()
        self._asked = threading.local()
        self._running: _Running | None = None
        self._starting: _Running | None = None
        self._closed = threading.Event()
        self._first: SideMessage | None = None
        self._looked = threading.Event()
        self._why = "is being started"
        self._keeper = threading.Thread(target=self._keep, name="onnxserve-side-process", daemon=True)

    def start(self, patience: float | None = None) -> SideMessage:
        """Starts the process, and gives what it says when it is ready.

        Raises:
            InvalidArtifact: it cannot be; the message says why.
            NotReady: it is not after `patience` seconds (None: as long as it takes); it is being started all the same.
        """
        self._keeper.start()
        if not self._looked.wait(patience):
            raise NotReady(self._told(), 1)
        first = self._first
        if first is None or first.kind != READY:
            self.close()
            raise InvalidArtifact(
                str(first.fields["message"]) if first else f"the process of this {self._what} {self._why}"
            )
        return first

    def request(self, question: SideMessage, deadline: float = math.inf) -> SideMessage:
        """The answer of the process; by `deadline`, in `time.perf_counter()`, its turn has to have come.

        Raises:
            NotReady: it is being started, or has ended over this question.
            DeadlineExceeded: its turn did not come in time; or it did not answer in time, and is killed.
            TooManyRequests: others have been asking all that time.
        """
        patience = max(0.0, min(self._answer_seconds, deadline - time.perf_counter()))
        began = time.perf_counter()
        if not self._asking.acquire(timeout=patience):
            if patience < self._answer_seconds:
                raise DeadlineExceeded(
                    f"the request's time was up before the {self._what} was free; nothing was computed"
                )
            raise TooManyRequests(f"the {self._what} was busy with other requests for {self._answer_seconds:.0f} s", 1)
        self._asked.queue_seconds = time.perf_counter() - began
        try:
            running = self._running
            if running is None:
                raise NotReady(self._told(), 1)
            return self._exchange(running, question)
        finally:
            self._asking.release()

    def close(self) -> None:
        """Ends the process for good; nothing waits."""
        self._closed.set()
        for running in (self._starting, self._running):
            if running is not None:
                running.child.kill()

    @property
    def queue_seconds(self) -> float:
        """The seconds that this thread's last question waited for its turn."""
        return getattr(self._asked, "queue_seconds", 0.0)

    @property
    def unavailable_reason(self) -> str:
        """Why there is no process to ask; empty: there is one."""
        return "" if self._running else self._told()

    @property
    def pid(self) -> int | None:
        """The process that answers now; None: there is none."""
        running = self._running
        return running.child.pid if running else None

    def _told(self) -> str:
        return f"the process of this {self._what} {self._why}; ask again in a moment"

    def _exchange(self, running: _Running, question: SideMessage) -> SideMessage:
        deadline = time.monotonic() + self._answer_seconds
        try:
            send(running.connection, question, deadline)
            answer = receive(running.connection, deadline)
        except TimeoutError:
            self._running = None
            running.child.kill()
            message = (
                f"the {self._what} did not answer within {self._answer_seconds:.0f} s; its process is started anew"
            )
            raise DeadlineExceeded(message) from None
        except (OSError, MalformedMessage) as error:
            logger.debug("asking process %d failed: %s", running.child.pid, error)
            answer = None
        if answer is None:
            self._running = None
            running.kill_soon()
            told = f"the process of this {self._what} {running.exit_reason()} over this request; it is started anew"
            raise NotReady(told, 1)
        return answer

    def _keep(self) -> None:
        """Starts the process again and again, until `close`."""
        crashes = 0
        while not self._closed.is_set():
            try:
                running = _Running(self._command)
            except OSError as error:
                self._why = f"cannot be started: {error.strerror}"
                logger.error("the process of this %s %s", self._what, self._why)
            else:
                self._live_through(running)
                crashes = 0 if time.monotonic() - running.child.started_at > _STABLE_SECONDS else crashes + 1
            self._looked.set()
            if self._first is None or self._first.kind != READY:
                return  # it never was ready: whoever wanted it is told
            pause = min(2.0 ** (crashes - 1), _LONGEST_PAUSE_SECONDS) if crashes > 1 else 0.0
            self._closed.wait(pause)

    def _live_through(self, running: _Running) -> None:
        """From the start of a process to its end."""
        self._starting = running
        if self._closed.is_set():
            running.child.kill()
        said = self._hear(running)
        if self._first is None:
            self._first = said
        if said is not None and said.kind == READY:
            self._running = running
            self._looked.set()
        elif said is None:
            running.kill_soon()
        else:
            running.child.kill()
        self._starting = None
        running.wait()
        self._running = None
        with self._asking:
            running.connection.close()
        if said is None:
            self._why = f"{running.exit_reason()} before it was ready"
        elif said.kind == FAILED:
            self._why = f"cannot be started: {said.fields['message']}"
        else:
            self._why = f"{running.exit_reason()} and is started anew"
        if not self._closed.is_set() and self._looked.is_set():  # else it is told to whoever has started it
            logger.error("the process %d of this %s %s", running.child.pid, self._what, self._why)

    def _hear(self, running: _Running) -> SideMessage | None:
        """What it says when it is ready, or why it cannot be; None: it said nothing."""
        try:
            return receive(running.connection, running.child.started_at + _LOAD_SECONDS)
        except TimeoutError:
            return SideMessage(FAILED, {"message": f"the {self._what} was not loaded within {_LOAD_SECONDS:.0f} s"})
        except (OSError, MalformedMessage):
            return None


_REFUSALS: dict[str, type[OnnxserveError]] = {
    "request": InvalidRequest,
    "schema": SchemaMismatch,
    "media type": UnsupportedMediaType,
    "model": InferenceError,
    "time": DeadlineExceeded,
}


def unless_refused(answer: SideMessage) -> SideMessage:
    """The answer of a side process.

    Raises:
        InvalidRequest, SchemaMismatch, UnsupportedMediaType, InferenceError, DeadlineExceeded: it is a refusal.
    """
    if answer.kind == "refused":
        raise _REFUSALS[answer.fields["what"]](answer.fields["message"])
    return answer
