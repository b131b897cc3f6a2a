"""A child process and the process group that it leads, from the parent's and the
child's point of view.

A child leads a process group (or a session). A signal of the terminal therefore reaches
only the parent, and the child can be stopped with all its descendants. A child detects
the end of its parent in one of two ways. The first way is to read from a socket that
only the parent has open (`requests_of_parent`), which needs the GIL in the child. The
second way is a signal from the kernel (`die_with_parent`): PR_SET_PDEATHSIG is bound to
the *thread* that started the child, so this thread must live as long as the child is
needed. On macOS, a small process watches the parent instead.

`SupervisedChildren` are the children of a process with a single thread, which reaps all
child processes, including the workers of a killed gunicorn (PR_SET_CHILD_SUBREAPER). A
`Child` reaps itself, so a process cannot use both classes.
"""

import contextlib
import ctypes
import os
import queue
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, TypeVar

from mlflow_deploy_plugin.core.errors import CommandFailed

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_WATCH_SECONDS = 1.0
_SIGNALS_AT_ONCE = 4096
_MOST_FILES = 65536
_STABLE_SECONDS = 60.0
"""A crash after a run of this length is counted as the first crash."""
_LONGEST_RESTART_SECONDS = 30.0
_FORKING = {"OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}
"""The variable without which macOS kills a child's forks (gunicorn's workers) when a
library uses Objective-C.
"""
_prctl: Callable[..., int] | None = None
if sys.platform == "win32":  # It has neither process groups nor SIGKILL: only the child is killed.
    KILL = signal.SIGTERM
else:
    KILL = signal.SIGKILL
    _prctl = getattr(ctypes.CDLL(None), "prctl", None)  # only on Linux

Request = TypeVar("Request")
Output = int | IO[bytes] | None
"""A file or descriptor to which a child writes its output; None for the parent's
output.
"""


class Child:
    """A process that runs `command` and leads its own process group. Any thread may
    call its methods.

    After the child is reaped, its group receives no signal, because another group may
    reuse the id (fork(2)).

    Args:
        environment: all environment variables of the child; None for the parent's
            variables.
        own_session: True if the child leads a session and therefore outlives the
            parent's terminal.
        kills_group: True if the child's remaining descendants are killed when the child
            exits.

    Attributes:
        started_at: the start time by `time.monotonic()`.
        exit_status: as in `subprocess`, negative for a signal; None until `wait` has
            observed the exit.
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
        inherited: dict[str, Any] = {"pass_fds": descriptors}
        if sys.platform == "win32":  # The descriptors are handles there.
            for handle in descriptors:
                os.set_handle_inheritable(handle, True)
            handles = {"handle_list": list(descriptors)}
            inherited = {"startupinfo": subprocess.STARTUPINFO(lpAttributeList=handles)}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=None if environment is None else dict(environment),
            **inherited,
            cwd=folder,
            start_new_session=own_session,
            process_group=None if own_session else 0,
        )
        self._kills_group = kills_group
        # Garbage collection may call `kill` while this thread has the lock.
        self._lock = threading.RLock()
        self.pid = self._process.pid
        self.started_at = time.monotonic()
        self.exit_status: int | None = None

    def kill(self) -> None:
        """Kill the child and all its descendants if the child has not exited."""
        with self._lock:
            if self.exit_status is None:
                signal_group(self.pid, KILL)

    def kill_after(self, seconds: float) -> None:
        """Kill the child if it does not exit within this time. A child that exits in
        time keeps its exit status.
        """
        if self.wait(seconds) is None:
            self.kill()

    def wait(self, seconds: float | None = None) -> int | None:
        """Return the exit status; None if the child still runs after `seconds`. By
        default, wait without a limit.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        with self._lock:
            if self.exit_status is None and self._process.returncode is not None:
                if self._kills_group:
                    signal_group(self.pid, KILL)
                self.exit_status = self._process.returncode
            return self.exit_status

    def detach(self) -> int:
        """Return the id of the child, which outlives this object. This object must not
        be used afterwards.
        """
        self._process.returncode = 0  # Prevent Popen's warning about a running child.
        return self.pid


def signal_process(pid: int, number: int) -> None:
    """Send a signal to a process. If the process has ended, do nothing."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def signal_group(leader: int, number: int) -> bool:
    """Send a signal to a process group. Return False if the group has no process.
    Signal 0 only checks the group.
    """
    try:
        if sys.platform == "win32":
            os.kill(leader, number)
        else:
            os.killpg(leader, number)
    except OSError:
        # macOS raises PermissionError for a group of zombies.
        return False
    return True


def backoff_seconds(failures: int, longest: float, first: float = 1.0) -> float:
    """Return the pause after consecutive failures (from 1): `first`, doubled each time,
    at most `longest`.
    """
    return min(first * 2.0 ** min(failures - 1, 64), longest)


@dataclass
class Crashes:
    """The consecutive crashes of a child that is restarted after each crash."""

    in_a_row: int = 0

    def add(self, started_at: float | None) -> float:
        """Count a crash, and return the seconds until the next start: 1, doubled each
        time, at most 30. The count restarts if the child ran for a minute since
        `started_at` (monotonic; None if it did not start).
        """
        is_stable = started_at is not None and time.monotonic() - started_at > _STABLE_SECONDS
        self.in_a_row = 1 if is_stable else self.in_a_row + 1
        return backoff_seconds(self.in_a_row, _LONGEST_RESTART_SECONDS)


def exit_reason(status: int) -> str:
    """Return a description of a process's end: "ended with status 3", "was killed by
    SIGKILL".
    """
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # Real-time signals have no names.
        name = f"signal {-status}"
    return f"was killed by {name}"


def read_log_tail(log: Path, size: int = 64 * 1024) -> list[str]:
    """Return the last non-empty lines of a child's log; an empty list if the log cannot
    be read.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            text = file.read().decode(errors="replace").replace("\0", "")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def run_to_end(
    command: Sequence[str],
    seconds: float,
    reason_of: Callable[[str], str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a command, which is killed with this process. Raise CommandFailed with its
    last line or its exit reason.

    Args:
        reason_of: returns the reason of a failure from the command's output; None for
            the last line.
        environment: the environment variables; None for those of this process.
    """
    ending = None
    if sys.platform != "win32":
        ending = partial(die_with_parent, parent=os.getpid())
    try:
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",  # Libraries print the texts of damaged files.
            check=False,
            timeout=seconds,
            preexec_fn=ending,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"it did not end within {seconds:g} s") from None
    except OSError as error:
        raise CommandFailed(f"it cannot be started: {error.strerror}") from None
    if ran.returncode:
        output = ran.stderr.strip() or ran.stdout.strip()
        if ran.returncode < 0 or not output:  # A signal has ended it, so no line has the reason.
            raise CommandFailed(f"it {exit_reason(ran.returncode)}")
        if reason_of:
            reason = reason_of(output)
        else:
            reason = output.rpartition("\n")[2].removeprefix("ERROR: ")
        failure = CommandFailed(reason[:500])
        failure.exit_status = ran.returncode
        raise failure


def die_with_parent(number: int = KILL, parent: int | None = None) -> None:
    """Let this process receive a signal when the thread that started it ends; on macOS,
    when its parent ends. If the process `parent` has already ended, this process exits
    immediately.
    """
    if sys.platform == "win32":
        return  # A child reads the end of its pipe.
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, number)
    else:
        import psutil  # This import is only needed on systems without PR_SET_PDEATHSIG.

        watched = os.getppid() if parent is None else parent
        own = os.getpid()
        # A thread cannot watch: gunicorn's master must fork single-threaded, and other
        # commands do not run our code. So a forked process sends the signal, and ends
        # with this process.
        if not os.fork():
            try:
                os.setpgid(0, 0)  # Leave the group, so that its end does not wait for this process.
                os.closerange(0, _MOST_FILES)  # Readers of inherited pipes see their end.
                # A parent that has ended still has its id until it is reaped, but no
                # longer has children.
                while psutil.Process(own).ppid() == watched:
                    time.sleep(_WATCH_SECONDS)
                if os.getppid() == own:
                    os.kill(own, number)
            finally:
                os._exit(0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def requests_of_parent(
    receive: Callable[[], Request | None],
    end_seconds: float = 0.0,
) -> Iterator[Request]:
    """Return an iterator over the parent's requests, which a thread reads. The iterator
    ends when the parent has ended. Then, after `end_seconds`, the thread kills this
    process and its descendants, even during a request. `receive` blocks until the next
    request; it returns None or raises an error if the parent has ended.
    """
    requests: queue.Queue[Request | None] = queue.Queue(1)

    def read() -> None:
        with contextlib.suppress(Exception):  # After an error, no more requests can be read.
            while (request := receive()) is not None:
                requests.put(request)
        if end_seconds:
            requests.put(None)
            time.sleep(end_seconds)
        if sys.platform != "win32" and os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), KILL)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return iter(requests.get, None)


@contextlib.contextmanager
def awaiting_signals() -> Iterator[Callable[[float], int | None]]:
    """Catch the signals that a supervisor waits for, and yield a function that waits at
    most the given seconds for a signal and returns the signal's number or None. Call
    this in the main thread. An ignored SIGHUP (nohup) remains ignored. Raises OSError
    if this process has too many open files.
    """
    if sys.platform == "win32":
        raise NotImplementedError
    numbers = {signal.SIGCHLD, *_ending_signals()}
    arrived: set[int] = set()
    receiver, sender = socket.socketpair()
    with receiver, sender:
        sender.setblocking(False)

        def wait(seconds: float) -> int | None:
            """Return the number of a signal; None if the caller must wait again."""
            if not arrived:
                readable, _, _ = select.select([receiver], [], [], seconds)
                if readable:
                    # The bytes only wake up `select`; the signals are in `arrived`.
                    receiver.recv(_SIGNALS_AT_ONCE)
            if not arrived:  # The time is over, or the handler has not run yet.
                return None
            number = min(arrived)  # Ending signals have smaller numbers, so they come first.
            arrived.remove(number)
            return number

        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        handlers = {}
        for number in numbers:
            handlers[number] = signal.signal(
                number,
                lambda number, _: arrived.add(number),
            )
        # The parent may have blocked signals.
        mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            yield wait
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)


def _ending_signals() -> set[signal.Signals]:
    """Return the signals that end a supervisor, without those that this process
    ignores.
    """
    if sys.platform == "win32":
        raise NotImplementedError
    ends = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
    return {number for number in ends if signal.getsignal(number) != signal.SIG_IGN}


def end_on_signals(ended: threading.Event) -> None:
    """Set the event at the first SIGTERM or SIGINT, and ignore later signals. Call this
    in the main thread.

    A thread sets the event, because the handler would deadlock if the main thread has
    the event's lock. Repeated signals are common, because each thread of a dying parent
    sends the signal of `die_with_parent`.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)

    def end(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=ended.set).start()

    for number in numbers:
        signal.signal(number, end)


def adopt_orphans() -> None:
    """Make this process the parent of its orphaned descendants. On macOS, process 1
    becomes their parent.
    """
    if _prctl is not None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


@dataclass
class SupervisedChild:
    """A supervised process. `started_at` and `exit_status` are as in `Child`; a running
    process has no status.
    """

    pid: int
    started_at: float = field(default_factory=time.monotonic)
    exit_status: int | None = None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process only; gunicorn's master forwards it to its
        workers.
        """
        if self.exit_status is None:
            os.kill(self.pid, number)


def _run_module(
    arguments: Sequence[str],
    descriptors: Sequence[int],
    prepare: Callable[[], None],
) -> None:
    """Run a module in this fork like `python -m`, and exit. The fork keeps only the
    standard output and the descriptors open. Its own forks exit here, too.
    """
    status = 1
    try:
        if sys.platform != "win32":
            os.setpgid(0, 0)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)  # It is the supervisor's.
        prepare()
        for kept, next_kept in pairwise([2, *sorted(descriptors), _MOST_FILES]):
            os.closerange(kept + 1, next_kept)
        module = arguments[0]
        if _prctl is not None:
            _prctl(_PR_SET_NAME, module.rpartition(".")[2].encode())
        sys.argv = [*arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:  # noqa: BLE001 - the interpreter prints any error at the end
        traceback.print_exc()
    finally:
        # Finish like the interpreter, without the `finally` blocks of the supervisor.
        ctypes.pythonapi.Py_Exit(status)


class SupervisedChildren:
    def __init__(self) -> None:
        self._running: dict[int, SupervisedChild] = {}

    def start(
        self,
        command: Sequence[str],
        descriptors: Sequence[int] = (),
    ) -> SupervisedChild:
        """Start a child, which inherits the descriptors and receives SIGTERM if this
        process ends or is killed.

        On Linux, a command `python -m MODULE` is a fork of this process, which has
        already imported half of the modules of a server. The module names the fork.
        """
        supervisor = os.getpid()

        def prepare() -> None:
            # The child must not run our handlers before it executes the program.
            for number in _ending_signals():
                signal.signal(number, signal.SIG_DFL)
            die_with_parent(signal.SIGTERM, supervisor)

        # Ctrl-C must reach only the supervisor, which stops its children in order, so
        # each child leads a process group. Forking is safe, because the supervisor has
        # one thread.
        if sys.platform != "win32" and _prctl is not None and "-m" in command[1:2]:
            # Like Popen, this raises an OSError at the limit of files.
            with Path(os.devnull).open() as nothing:
                pid = os.fork()
                if pid == 0:
                    os.dup2(nothing.fileno(), 0)
                    _run_module(command[2:], descriptors, prepare)
        else:
            process = subprocess.Popen(
                command,
                env={**_FORKING, **os.environ},
                pass_fds=descriptors,
                process_group=0,
                preexec_fn=prepare,  # noqa: PLW1509 - see above
                stdin=subprocess.DEVNULL,
            )
            process.returncode = 0  # Let only `reap` reap the process, not Popen.
            pid = process.pid
        child = SupervisedChild(pid)
        self._running[pid] = child
        return child

    def reap(self) -> None:
        """Record the exit status of all children that have ended, without waiting."""
        if sys.platform == "win32":
            raise NotImplementedError
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                if child := self._running.pop(ended[0], None):
                    child.exit_status = os.waitstatus_to_exitcode(ended[1])
