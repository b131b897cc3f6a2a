"""A process next to the worker that runs the code of a pyfunc version.

The process keeps mlflow and pandas out of the worker's memory, and the worker
survives a crash of their code. A keeper thread starts the process, and restarts it
after growing pauses.

Each request has a connection, and the process has a thread per connection. The worker
passes the process's end of a new connection over the first connection, and keeps
connections for later requests.

A request that takes too long is abandoned, because a thread cannot be stopped without
its process. The process is killed if it has not answered any request since the
abandoned request was sent, or if the number of abandoned requests that still run
reaches the concurrency.

The process leads a process group, which is killed with it. It exits with its worker: it
watches its first connection, and the kernel kills it when its parent thread, the
keeper, has exited. `serve/protocols/side_messages.py` has the messages.
"""

import contextlib
import logging
import math
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Final

from mlflow_deploy_plugin.core import errors
from mlflow_deploy_plugin.core.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    NotReady,
    OnnxserveError,
    TooManyRequests,
)
from mlflow_deploy_plugin.core.processes.child import Child, Crashes, exit_reason
from mlflow_deploy_plugin.serve.protocols import side_messages
from mlflow_deploy_plugin.serve.protocols.side_messages import (
    SideMessage,
    receive_message,
    send_message,
)

logger = logging.getLogger(__name__)

_LOAD_SECONDS: Final = 600.0
_END_SECONDS: Final = 5.0
_GRACE_SECONDS: Final = 1.0
"""The time for a process that has closed its connection to exit with its own status,
before it is killed.
"""
# The process must not count in the worker's metrics.
_METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_REPORTED: list[type[OnnxserveError]] = [
    errors.InvalidRequest,
    DeadlineExceeded,
    TooManyRequests,
    NotReady,
]
_REMOTE_ERRORS = {
    error.__name__: error for error in (*_REPORTED, *errors.InvalidRequest.__subclasses__())
}
"""The errors that a side process reports (`serve/pyfunc/`), by class name; other errors
become InferenceError.
"""


class _ProcessRun:
    """A run of the process, and the connections to it.

    `control` is the first connection, which passes the ends of other connections.
    `answered_at` is a monotonic time.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.control, theirs = socket.socketpair()
        environment = {
            name: value for name, value in os.environ.items() if name != _METRICS_VARIABLE
        }
        with theirs:
            self.child = Child(
                [*command, str(theirs.fileno())],
                descriptors=[theirs.fileno()],
                stdout=2,  # The model's output goes to the log.
                environment=environment,
            )
        self.is_ending = False
        self.answered_at = 0.0
        self._lock = threading.Lock()
        self._free: list[socket.socket] = []
        # The value is True while more of a response may arrive.
        self._used: dict[socket.socket, bool] = {}
        self._given_up: list[socket.socket] = []

    def take_connection(self) -> socket.socket:
        """Return a connection for a request. Raises OSError if the process has exited
        or too many files are open.
        """
        with self._lock:
            if self._free:
                connection = self._free.pop()
            else:
                connection, theirs = socket.socketpair()
                try:
                    with theirs:
                        socket.send_fds(self.control, [b"c"], [theirs.fileno()])
                except OSError:
                    connection.close()
                    raise
            self._used[connection] = False
        return connection

    def expect(self, connection: socket.socket, is_expected: bool = True) -> None:
        self._used[connection] = is_expected

    def put_back(self, connection: socket.socket, seconds: float) -> bool:
        """Keep the connection of a request that has ended, unless the request was
        abandoned.

        If more of a response may arrive, wait up to `seconds` until the process has
        noticed the end of the request; return False if it has not.
        """
        is_unwanted = self._used.get(connection, False) and not self.is_ending
        if is_unwanted:
            # The process then fails to send, and closes its end.
            connection.shutdown(socket.SHUT_RD)
            if not _has_ended(connection, seconds):
                return False
        with self._lock:
            if self._used.pop(connection, None) is None:
                return True
            if is_unwanted or self.is_ending:
                connection.close()
            else:
                self._free.append(connection)
        return True

    def give_up(self, connection: socket.socket) -> int:
        """Abandon a request, and return the number of abandoned requests that still
        run.
        """
        with self._lock:
            del self._used[connection]
            for ended in filter(_has_ended, tuple(self._given_up)):
                self._given_up.remove(ended)
                ended.close()
            connection.shutdown(socket.SHUT_RD)
            self._given_up.append(connection)
            return len(self._given_up)

    def wait(self) -> None:
        """Wait until the process and its group have exited.

        The thread of a request must close its own connection, because a new connection
        could get the same descriptor.
        """
        self.child.wait()
        with self._lock:
            self.is_ending = True
            for connection in self._used:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for connection in (self.control, *self._free, *self._given_up):
                connection.close()
            self._free.clear()
            self._given_up.clear()

    def end(self) -> None:
        """Let the process exit by itself, and kill it after a time limit."""
        with contextlib.suppress(OSError):  # The process has already exited.
            self.control.shutdown(socket.SHUT_WR)
        self.child.kill_after(_END_SECONDS)

    def exit_reason(self) -> str:
        """Return how the process has ended, as the predicate of a sentence."""
        status = self.child.wait(_END_SECONDS)
        if status is None:
            return "has closed its connection"
        return exit_reason(status)


def _has_ended(connection: socket.socket, seconds: float = 0.0) -> bool:
    """Return True once the process has closed its end of the connection. Wait up to
    `seconds`.
    """
    poll = select.poll()
    poll.register(connection, 0)  # With the event mask 0, poll reports only the end.
    return bool(poll.poll(1000 * seconds))


class SideProcess:
    """A process of `command` that is kept running until `close`, and that answers
    requests.

    Args:
        command: the program, whose last argument is its socket's descriptor; its first
            message is `ready` or `failed`.
        timeout_seconds: the time limit of a request; after it, the request is abandoned
            and the process may be killed.
        concurrency: the maximum number of concurrent requests; additional requests wait
            for their turn.
    """

    def __init__(
        self, command: Sequence[str], timeout_seconds: float, concurrency: int = 1
    ) -> None:
        self._command = command
        self._timeout_seconds = timeout_seconds
        self._concurrency = concurrency
        self._turn = threading.Semaphore(concurrency)
        self._local = threading.local()
        self._running: _ProcessRun | None = None
        self._starting: _ProcessRun | None = None
        self._closed = threading.Event()
        self._first: SideMessage | None = None
        self._looked = threading.Event()
        self._state = "is being started"
        self._keeper = threading.Thread(
            target=self._keep_running, name="onnxserve-side-process", daemon=True
        )

    def start(self) -> SideMessage:
        """Start the process and return its first message. Raises InvalidArtifact if the
        process cannot start.
        """
        self._keeper.start()
        threading.Thread(target=self._end_when_closed, daemon=True).start()
        self._looked.wait()
        first = self._first
        if first is not None and not self._has_failed:
            return first
        self.close()
        if first:
            raise errors.InvalidArtifact(str(first.fields["message"]))
        raise errors.InvalidArtifact(f"the process of this model {self._state}")

    def request(self, message: SideMessage, deadline: float = math.inf) -> SideMessage:
        """Send a message and return the response. The turn must begin by `deadline`, in
        `time.perf_counter()`.

        Raises:
            NotReady: the process is starting, or exited during this request.
            DeadlineExceeded: the turn did not begin, or the process did not answer, in
                time.
            TooManyRequests: other requests kept the process busy for the complete wait.
            BodyTooLarge: the message is too large and was not sent, or the response is
                too large.
            InvalidRequest, SchemaMismatch, UnsupportedMediaType, InferenceError: the
                process reports the error.
        """
        with self._exchange(deadline) as ask:
            return ask(message)

    def stream(
        self, message: SideMessage, deadline: float = math.inf
    ) -> Generator[SideMessage, None, None]:
        """Send a message and yield the parts of its response, each in time. Raises the
        errors of `request`.

        The turn ends when the process has sent the last part, or has noticed that the
        generator was closed.
        """
        with self._exchange(deadline) as ask:
            part = ask(message)
            while part.kind == side_messages.PART_MESSAGE:
                yield part
                part = ask(None)

    def close(self) -> None:
        """Let the process exit, without waiting. Requests are refused from now on."""
        if (running := self._running) is not None:
            running.is_ending = True
        _ENDING.add(self)
        self._closed.set()

    @staticmethod
    def wait_for_ends() -> None:
        """Wait a few seconds until the processes of closed objects have exited."""
        deadline = time.monotonic() + _END_SECONDS
        keepers = [process._keeper for process in _ENDING]
        for keeper in keepers:
            if keeper.is_alive():
                keeper.join(max(0.0, deadline - time.monotonic()))

    @property
    def _has_failed(self) -> bool:
        """True if the process was never ready; then it is not restarted."""
        return self._looked.is_set() and (
            self._first is None or self._first.kind != side_messages.READY_MESSAGE
        )

    @property
    def queue_seconds(self) -> float:
        """The seconds that the last request of this thread waited for its turn."""
        return getattr(self._local, "queue_seconds", 0.0)

    @property
    def unavailable_reason(self) -> str:
        return "" if self._answering else self._unavailable()

    @property
    def pid(self) -> int | None:
        running = self._answering
        return running.child.pid if running else None

    @property
    def _answering(self) -> _ProcessRun | None:
        """The run that can answer requests; None while it starts or ends."""
        running = self._running
        if running is None or running.is_ending:
            return None
        return running

    def _unavailable(self) -> str:
        return f"the process of this model {self._state}; retry in a moment"

    @contextlib.contextmanager
    def _exchange(self, deadline: float) -> Iterator[Callable[[SideMessage | None], SideMessage]]:
        """Take a turn and a connection until the block ends. Yield a function that
        sends a message, if any, and returns the response. A response that the block has
        not read to its end is awaited, or abandoned after the time limit.
        """
        wait_seconds = max(0.0, min(self._timeout_seconds, deadline - time.perf_counter()))
        began = time.perf_counter()
        if not self._turn.acquire(timeout=wait_seconds):
            if wait_seconds < self._timeout_seconds:
                raise DeadlineExceeded("the request's deadline passed before the model was free")
            raise TooManyRequests(
                f"the model was busy with other requests for {self._timeout_seconds:.0f} s",
                1,
            )
        self._local.queue_seconds = time.perf_counter() - began
        try:
            if (running := self._answering) is None:
                raise NotReady(self._unavailable(), 1)
            try:
                connection = running.take_connection()
            except OSError as error:
                text = (
                    f"the process of this model cannot receive requests: {error.strerror}; "
                    "retry in a moment"
                )
                raise NotReady(text, 1) from None
            try:
                yield partial(self._ask, running, connection)
            finally:
                began = time.monotonic()
                if not running.put_back(connection, self._timeout_seconds):
                    self._give_up(running, connection, began)
        finally:
            self._turn.release()

    def _ask(
        self, running: _ProcessRun, connection: socket.socket, message: SideMessage | None
    ) -> SideMessage:
        """Send a message, if any, and return the next part of the response. Raises the
        errors of `request` that the process causes; without an answer, it is restarted.
        """
        began = time.monotonic()
        answer = None
        running.expect(connection)
        try:
            if message is not None:
                send_message(connection, message, began + self._timeout_seconds)
            answer = receive_message(connection, began + self._timeout_seconds)
        except TimeoutError:
            raise self._give_up(running, connection, began) from None
        except ValueError as error:
            running.expect(connection, False)
            raise BodyTooLarge(
                f"the request is too large for the process of this model: {error}"
            ) from None
        except (OSError, side_messages.MalformedMessage) as error:
            logger.debug("asking process %d failed: %s", running.child.pid, error)
        if answer is None:
            running.is_ending = True
            running.child.kill_after(_GRACE_SECONDS)
            text = (
                f"the process of this model {running.exit_reason()} during this request; "
                "it is restarted"
            )
            raise NotReady(text, 1)
        running.answered_at = time.monotonic()
        if answer.kind != side_messages.PART_MESSAGE:
            running.expect(connection, False)
        if answer.kind == "refused":
            error_class = _REMOTE_ERRORS.get(answer.fields["error"], errors.InferenceError)
            refusal = error_class(answer.fields["message"])
            refusal.column = answer.fields["column"]
            raise refusal
        return answer

    def _give_up(
        self, running: _ProcessRun, connection: socket.socket, began: float
    ) -> DeadlineExceeded:
        """Abandon a request that began at `began`, and kill a process that hangs;
        return the error to raise.
        """
        text = f"the model did not answer within {self._timeout_seconds:.0f} s"
        if running.give_up(connection) < self._concurrency and running.answered_at > began:
            return DeadlineExceeded(text)
        running.is_ending = True
        running.child.kill()
        return DeadlineExceeded(f"{text}; its process is restarted")

    def _keep_running(self) -> None:
        """Start the process, and restart it after pauses, until `close` is called or it
        fails before it was ever ready. Runs in the keeper thread.
        """
        crashes = Crashes()
        while not self._closed.is_set():
            started_at = None
            try:
                running = _ProcessRun(self._command)
            except OSError as error:
                self._state = f"cannot be started: {error.strerror}"
                logger.error("the process of this model %s", self._state)
            else:
                started_at = running.child.started_at
                # Let the process answer requests as soon as it is ready, and wait until
                # it has exited.
                self._starting = running
                if self._closed.is_set():
                    running.child.kill()
                try:
                    first = receive_message(running.control, started_at + _LOAD_SECONDS)
                except TimeoutError:
                    text = f"the model was not loaded within {_LOAD_SECONDS:.0f} s"
                    first = SideMessage(side_messages.FAILED_MESSAGE, {"message": text})
                except (OSError, side_messages.MalformedMessage):
                    first = None  # The process has exited.
                self._first = self._first or first
                if first is not None and first.kind == side_messages.READY_MESSAGE:
                    running.control.settimeout(None)
                    self._running = running
                    self._looked.set()
                elif first is None:
                    running.child.kill_after(_GRACE_SECONDS)
                else:
                    running.child.kill()
                self._starting = None
                running.wait()
                self._running = None
                if first is None:
                    self._state = f"{running.exit_reason()} before it was ready"
                elif first.kind == side_messages.FAILED_MESSAGE:
                    self._state = f"cannot be started: {first.fields['message']}"
                else:
                    self._state = f"{running.exit_reason()} and is restarted"
                # Otherwise `start` raises the error.
                if not self._closed.is_set() and self._looked.is_set():
                    logger.error("the process %d of this model %s", running.child.pid, self._state)
            self._looked.set()
            if self._has_failed:
                self._closed.set()  # `start` raises the error.
            pause = crashes.add(started_at)
            if crashes.in_a_row <= 1:
                pause = 0.0
            self._closed.wait(pause)

    def _end_when_closed(self) -> None:
        """End the process in a separate thread, because a garbage collection may call
        `close` and must not wait.
        """
        self._closed.wait()
        if (starting := self._starting) is not None:
            starting.child.kill()
        if (running := self._running) is not None:
            running.end()


_ENDING: Final[weakref.WeakSet[SideProcess]] = weakref.WeakSet()
"""The closed `SideProcess` objects whose processes may still run."""
