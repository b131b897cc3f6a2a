"""The child processes of the supervisor: each in its own process group, reaped, and never left behind.

The kernel tells a child when the supervisor dies (PR_SET_PDEATHSIG), so that not even SIGKILL leaves one running. The
workers of a gunicorn that was killed fall to the supervisor, in a container or not (PR_SET_CHILD_SUBREAPER), and are
known by their process group. All reaping is done in one place, `Children.reap`.
"""

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


def watched_signals() -> set[signal.Signals]:
    """What the supervisor waits for; blocked in it, so that a signal is taken where it is waited for, nowhere else.

    SIGHUP is left alone where it is ignored (nohup): a blocked signal would come through.
    """
    ends = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    return {signal.SIGCHLD} | {number for number in ends if signal.getsignal(number) != signal.SIG_IGN}


@dataclass
class Child:
    """One process. `exit_status` is as in `subprocess`: negative for a signal, None while it runs."""

    pid: int
    exit_status: int | None = None

    @property
    def exit_reason(self) -> str:
        """How it has ended, in words."""
        status = self.exit_status or 0
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def signal(self, number: signal.Signals) -> None:
        """Sends to this process alone; gunicorn's master tells its workers itself."""
        if self.exit_status is None:
            os.kill(self.pid, number)

    def signal_group(self, number: int) -> bool:
        """Sends to it and to all that it has started, or only to those where it has ended; 0 is sent to nobody.

        Returns:
            False: none of them lives.
        """
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def adopt_orphans() -> None:
    """What the children of this process leave behind becomes its own children."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


@dataclass
class Children:
    """All children that were started here."""

    _running: dict[int, Child] = field(default_factory=dict)

    def start(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, descriptors: Sequence[int] = ()
    ) -> Child:
        """Starts `command`; `descriptors` are inherited. On the death of this process it gets SIGTERM."""
        supervisor = os.getpid()

        def prepare() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
            if os.getppid() != supervisor:  # it died before prctl
                os._exit(1)

        process = subprocess.Popen(
            command,
            env=None if environment is None else dict(environment),
            pass_fds=descriptors,
            process_group=0,  # Ctrl-C reaches the supervisor alone, which ends its children in order
            preexec_fn=prepare,  # noqa: PLW1509 - the supervisor has one thread, so that forking is safe
            stdin=subprocess.DEVNULL,
        )
        process.returncode = 0  # reaped by `reap`, not by Popen
        child = Child(process.pid)
        self._running[child.pid] = child
        return child

    def reap(self) -> None:
        """Takes note of everything that has ended; never waits."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if child := self._running.pop(pid, None):
                child.exit_status = os.waitstatus_to_exitcode(status)
