"""A child process and the group that it leads, seen from its parent and from within.

A child leads a process group (or a session), so that a signal of the terminal reaches only the parent, and the child is
ended with everything that it has started. It notices the end of its parent in two ways. It reads from a socket that
only the parent holds (`requests_of_parent`); this needs the GIL in the child. Or the kernel sends it a signal
(`die_with_parent`). PR_SET_PDEATHSIG belongs to the *thread* that started the child, so use it only if that thread
lives as long as the child is needed. On macOS a small process watches the parent.

`SupervisedChildren` are the children of a process with one thread that reaps everything itself, including the workers
of a killed gunicorn (PR_SET_CHILD_SUBREAPER). A `Child` reaps itself, and cannot be used beside them.
"""

import contextlib
import ctypes
import os
import queue
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

from mlflow_deploy_plugin.errors import CommandFailed

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_WATCH_SECONDS = 1.0
_SIGNALS_AT_ONCE = 4096
_MOST_FILES = 65536
_STABLE_SECONDS = 60.0
"""A child that has run for longer does not count as one that crashes again and again."""
_LONGEST_RESTART_SECONDS = 30.0
_FORKING = {"OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}
"""Without it macOS kills the forks of a child (gunicorn's workers) as soon as a library in it uses Objective-C."""
_prctl: Callable[[int, int], int] | None = getattr(ctypes.CDLL(None), "prctl", None)  # Linux has it

Request = TypeVar("Request")
Output = int | IO[bytes] | None
"""A file or descriptor that a child writes to; None: the parent's own."""


class Child:
    """A process of `command` that leads a process group of its own. Any thread may call its methods.

    Its group gets no signal after the child is reaped: only until then is the group's id reserved (fork(2)).

    Args:
        environment: all of its variables; None: those of the parent.
        own_session: the child leads a session too, and so outlives the terminal of the parent.
        kills_group: when the child has ended by itself, everything that it has started is killed.

    Attributes:
        started_at: in `time.monotonic()`.
        exit_status: as in `subprocess`, negative for a signal; None until `wait` has seen the end.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
        stdout: Output = None,
        stderr: Output = None,
        folder: Path | None = None,
        own_session: bool = False,
        kills_group: bool = True,
    ) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=None if environment is None else dict(environment),
            pass_fds=descriptors,
            cwd=folder,
            start_new_session=own_session,
            process_group=None if own_session else 0,
        )
        self._kills_group = kills_group
        self._lock = threading.RLock()  # a garbage collection within may end in `kill`
        self.pid = self._process.pid
        self.started_at = time.monotonic()
        self.exit_status: int | None = None

    def kill(self) -> None:
        """Kill the child and everything it has started, unless it has ended."""
        with self._lock:
            if self.exit_status is None:
                signal_group(self.pid, signal.SIGKILL)

    def kill_after(self, seconds: float) -> None:
        """Kill the child unless it ends by itself within this time, which keeps its own exit status."""
        if self.wait(seconds) is None:
            self.kill()

    def wait(self, seconds: float | None = None) -> int | None:
        """Return the exit status, or None if the child still runs after so many seconds (None: wait for its end)."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        with self._lock:
            if self.exit_status is None and self._process.returncode is not None:
                if self._kills_group:
                    signal_group(self.pid, signal.SIGKILL)
                self.exit_status = self._process.returncode
            return self.exit_status

    def detach(self) -> int:
        """Return the id of the child, which outlives this object. The object must not be used any more."""
        self._process.returncode = 0  # without this, Popen warns of a child that still runs
        return self.pid


def signal_process(pid: int, number: int) -> None:
    """Send a signal to one process, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def signal_group(leader: int, number: int) -> bool:
    """Send a signal to a process group; return False if no process of it is left. Signal 0 only asks that."""
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):  # the latter is macOS's word for a group of zombies
        return False
    return True


def backoff_seconds(failures: int, longest: float, first: float = 1.0) -> float:
    """Return the pause after so many failures in a row, from 1: `first`, twice as long each time, at most `longest`."""
    return min(first * 2.0 ** min(failures - 1, 64), longest)


@dataclass
class Crashes:
    """The crashes in a row of a child that is started again each time."""

    in_a_row: int = 0

    def add(self, started_at: float | None) -> float:
        """Count a crash, and return the seconds to wait before the next start: 1, twice as long each time, at most 30.
        After a run of a minute since `started_at` (monotonic; None: it did not start), the count begins again."""
        is_stable = started_at is not None and time.monotonic() - started_at > _STABLE_SECONDS
        self.in_a_row = 1 if is_stable else self.in_a_row + 1
        return backoff_seconds(self.in_a_row, _LONGEST_RESTART_SECONDS)


def exit_reason(status: int) -> str:
    """Return in words how a process ended: "ended with status 3", "was killed by SIGKILL"."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # one of the real-time signals, which have no names
        name = f"signal {-status}"
    return f"was killed by {name}"


def read_log_tail(log: Path, size: int = 64 * 1024) -> list[str]:
    """Return the last lines of a child's log without blank ones; no lines if it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            text = file.read().decode(errors="replace").replace("\0", "")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def run_to_end(command: Sequence[str], seconds: float) -> None:
    """Run a command, which is killed with this process; raise CommandFailed with its last line, or how it ended."""
    ending = partial(die_with_parent, parent=os.getpid())
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, preexec_fn=ending)
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"it has not ended within {seconds:g} s") from None
    except OSError as error:
        raise CommandFailed(f"it cannot be started: {error.strerror}") from None
    if ran.returncode:
        said = (ran.stderr.strip() or ran.stdout.strip()).splitlines() if ran.returncode > 0 else []
        reason = said[-1].removeprefix("ERROR: ")[:500] if said else f"it {exit_reason(ran.returncode)}"
        raise CommandFailed(reason)


def die_with_parent(number: int = signal.SIGKILL, parent: int | None = None) -> None:
    """Have this process get a signal when the thread that started it ends; on macOS, when its parent does. If the
    process `parent` has ended already, this process exits at once."""
    if _prctl is None:
        _signal_after(os.getppid() if parent is None else parent, number)
    else:
        _prctl(_PR_SET_PDEATHSIG, number)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def _signal_after(parent: int, number: int) -> None:
    """Fork a process that sends this one a signal when the parent has ended. It ends with either. A thread is not
    possible: gunicorn's master must have none when it forks, and other commands do not run our code."""
    import psutil  # only where the kernel does not do it

    watched = os.getpid()
    if os.fork():
        return
    try:
        os.setpgid(0, 0)  # leaves the group that is waited for
        os.closerange(0, _MOST_FILES)  # keeps no pipe open
        # A parent that is not reaped yet still has its id, but no children.
        while psutil.Process(watched).ppid() == parent:
            time.sleep(_WATCH_SECONDS)
        if os.getppid() == watched:
            os.kill(watched, number)
    finally:
        os._exit(0)


def requests_of_parent(receive: Callable[[], Request | None], end_seconds: float = 0.0) -> Iterator[Request]:
    """Return an iterator over the requests of the parent, which a thread reads. When the parent has gone, the iterator
    ends. After `end_seconds` the thread ends this process and everything it has started, also during a request.
    `receive` blocks until the next request, and returns None or raises if the parent has gone."""
    requests: queue.Queue[Request | None] = queue.Queue(1)

    def read() -> None:
        with contextlib.suppress(Exception):  # After any error, the parent cannot be read any more.
            while (request := receive()) is not None:
                requests.put(request)
        if end_seconds:
            requests.put(None)
            time.sleep(end_seconds)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return iter(requests.get, None)


@contextlib.contextmanager
def awaiting_signals() -> Iterator[Callable[[float], int | None]]:
    """Keep the signals that a supervisor waits for, and yield a function that waits at most so many seconds for a
    signal and returns its number or None. Call this in the main thread. An ignored SIGHUP (nohup) stays ignored. Raises
    OSError if this process has too many files open."""
    numbers = {signal.SIGCHLD, *_ending_signals()}
    arrived: set[int] = set()
    receiver, sender = socket.socketpair()
    with receiver, sender:
        sender.setblocking(False)

        def wait(seconds: float) -> int | None:
            if not arrived and select.select([receiver], [], [], seconds)[0]:
                receiver.recv(_SIGNALS_AT_ONCE)  # The socket may be full: it shows only that signals have come.
            if not arrived:  # the handler may be called in a moment
                return None
            arrived.remove(number := min(arrived))  # the signals that end the supervisor come before SIGCHLD
            return number

        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, lambda number, _: arrived.add(number)) for number in numbers}
        mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())  # who started this process may have blocked some
        try:
            yield wait
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)


def _ending_signals() -> set[signal.Signals]:
    ends = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
    return {number for number in ends if signal.getsignal(number) != signal.SIG_IGN}


def end_on_signals(ended: threading.Event) -> None:
    """Set the event when the first SIGTERM or SIGINT comes, and ignore later ones. Call it in the main thread.

    The handler must not set the event itself: it would deadlock if the main thread holds the event's lock. Two signals
    in a row are usual, because each thread of a dying parent sends the signal of `die_with_parent`.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)

    def end(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=ended.set).start()

    for number in numbers:
        signal.signal(number, end)


def adopt_orphans() -> None:
    """Make this process the parent of the orphans of its children; on macOS process 1 is."""
    if _prctl is not None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


@dataclass
class SupervisedChild:
    """One process. `started_at` and `exit_status` are as in `Child`; the status is None while it runs."""

    pid: int
    started_at: float = field(default_factory=time.monotonic)
    exit_status: int | None = None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process only; gunicorn's master forwards it to its workers."""
        if self.exit_status is None:
            os.kill(self.pid, number)


class SupervisedChildren:
    def __init__(self) -> None:
        self._running: dict[int, SupervisedChild] = {}

    def start(self, command: Sequence[str], descriptors: Sequence[int] = ()) -> SupervisedChild:
        """Start `command`, which inherits the descriptors. It gets SIGTERM when this process dies, even by SIGKILL."""
        supervisor = os.getpid()

        def prepare() -> None:
            for number in _ending_signals():  # Our handlers must not take signals before the program runs.
                signal.signal(number, signal.SIG_DFL)
            die_with_parent(signal.SIGTERM, supervisor)

        process = subprocess.Popen(
            command,
            env={**_FORKING, **os.environ},
            pass_fds=descriptors,
            process_group=0,  # Ctrl-C reaches only the supervisor, which ends its children in order.
            preexec_fn=prepare,  # noqa: PLW1509 - the supervisor has one thread, so that forking is safe
            stdin=subprocess.DEVNULL,
        )
        process.returncode = 0  # reaped by `reap`, not by Popen
        child = SupervisedChild(process.pid)
        self._running[child.pid] = child
        return child

    def reap(self) -> None:
        """Record everything that has ended, without waiting."""
        with contextlib.suppress(ChildProcessError):  # there are no children any more
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                if child := self._running.pop(ended[0], None):
                    child.exit_status = os.waitstatus_to_exitcode(ended[1])
