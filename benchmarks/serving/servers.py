"""Start a server on one core, in a separate session, and end all its processes."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

SERVER_CORE = 0
CLIENT_CORE = 1
START_SECONDS = 180.0


class NotStarted(Exception):
    """A server that did not answer in time; the message contains the end of its log."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        start_seconds: from its command to its first response.
    """

    name: str
    port: int
    pid: int
    log: Path
    start_seconds: float

    def processes(self) -> list[psutil.Process]:
        """Return the server and all its descendants."""
        parent = psutil.Process(self.pid)
        return [parent, *parent.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        """Return the processes of gunicorn, without our agent and supervisor; all
        processes of a server without gunicorn.
        """
        processes = self.processes()
        return [each for each in processes if each.name() == "gunicorn"] or processes

    def pause(self) -> None:
        """Take the server off its core while another server is measured, because idle
        servers poll.
        """
        os.killpg(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cores_given() -> bool:
    """Return True if the server and the client each have a core."""
    return {SERVER_CORE, CLIENT_CORE} <= os.sched_getaffinity(0)


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    port: int,
    log: Path,
    environment: Mapping[str, str],
    question: urllib.request.Request,
    core: int | None = SERVER_CORE,
) -> Iterator[Server]:
    """Start a server that is pinned to `core` (None: to no core), and yield it when it
    answers `question` with 200.

    Raises:
        NotStarted: the server ended, or did not answer.
    """
    begun = time.monotonic()
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*pinned, *command],
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        while not answers(question):
            if process.poll() is not None or time.monotonic() > begun + START_SECONDS:
                raise NotStarted(f"{name} did not answer: {log.read_text(errors='replace')[-600:]}")
            time.sleep(0.01)
        yield Server(name, port, process.pid, log, time.monotonic() - begun)
    finally:
        _end(process)


def answers(question: urllib.request.Request) -> bool:
    try:
        with urllib.request.urlopen(question, timeout=30) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the server, and SIGKILL to the remaining processes of its
    session.
    """
    members = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for number in (signal.SIGCONT, signal.SIGTERM):
        _signal_group(process.pid, number)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
    for member in members:
        if member.is_running():
            member.kill()


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return
