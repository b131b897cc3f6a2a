"""The children of a supervisor: a process with one thread that waits for signals and reaps everything itself.

The kernel tells a child when the supervisor dies (PR_SET_PDEATHSIG), so that not even SIGKILL leaves one running. The
workers of a gunicorn that was killed fall to the supervisor, in a container or not (PR_SET_CHILD_SUBREAPER), and are
known by their process group. All reaping is done in one place, `SupervisedChildren.reap`; a `Child` reaps itself, and
cannot be used beside it.
"""

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mlflow_deploy_plugin.processes.child import die_with_parent, exit_reason, signal_group

_PR_SET_CHILD_SUBREAPER = 36


def watched_signals() -> set[signal.Signals]:
    """Return the signals that a supervisor waits for. It blocks them, so that they arrive only where it waits.

    SIGHUP is left alone if it is ignored (nohup): a blocked signal would come through.
    """
    ends = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    return {signal.SIGCHLD} | {number for number in ends if signal.getsignal(number) != signal.SIG_IGN}


def adopt_orphans() -> None:
    """Make this process the parent of whatever its children leave behind."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


@dataclass
class SupervisedChild:
    """One process. `exit_status` is as in `subprocess`: negative for a signal, None while it runs."""

    pid: int
    exit_status: int | None = None

    @property
    def exit_reason(self) -> str:
        """The way it ended, in words."""
        return exit_reason(self.exit_status or 0)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone; gunicorn's master tells its workers itself."""
        if self.exit_status is None:
            os.kill(self.pid, number)

    def signal_group(self, number: int) -> bool:
        """Send a signal to the process and all that it has started, also after its own end; 0 is sent to nobody.

        Return False if none of them is left.
        """
        return signal_group(self.pid, number)


@dataclass
class SupervisedChildren:
    """All children that were started here."""

    _running: dict[int, SupervisedChild] = field(default_factory=dict)

    def start(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, descriptors: Sequence[int] = ()
    ) -> SupervisedChild:
        """Start `command`, which inherits the descriptors. It gets SIGTERM when this process dies."""
        supervisor = os.getpid()

        def prepare() -> None:
            die_with_parent(signal.SIGTERM, supervisor)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())

        process = subprocess.Popen(
            command,
            env=None if environment is None else dict(environment),
            pass_fds=descriptors,
            process_group=0,  # Ctrl-C reaches the supervisor alone, which ends its children in order
            preexec_fn=prepare,  # noqa: PLW1509 - the supervisor has one thread, so that forking is safe
            stdin=subprocess.DEVNULL,
        )
        process.returncode = 0  # reaped by `reap`, not by Popen
        child = SupervisedChild(process.pid)
        self._running[child.pid] = child
        return child

    def reap(self) -> None:
        """Record everything that has ended, without waiting."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if child := self._running.pop(pid, None):
                child.exit_status = os.waitstatus_to_exitcode(status)
