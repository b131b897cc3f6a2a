"""Children in a process of their own: `reap` waits for every child there is, and pytest has others."""

import subprocess
import sys

PRELUDE = """
import os, signal, sys, time
from mlflow_deploy_plugin.processes import SupervisedChildren, watched_signals
signal.pthread_sigmask(signal.SIG_BLOCK, watched_signals())
children = SupervisedChildren()

def wait(child):
    while child.exit_status is None:
        signal.sigtimedwait(watched_signals(), 1)
        children.reap()
    return child.exit_status
"""


def run(script: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.split()


def test_how_a_child_ended_is_known() -> None:
    assert run("""
print(wait(children.start([sys.executable, "-c", "raise SystemExit(3)"])))
child = children.start(["sleep", "60"])
child.signal(signal.SIGTERM)
print(wait(child))
child.signal(signal.SIGTERM)
print(child.signal_group(signal.SIGKILL))
""") == ["3", "-15", "False"]


def test_a_child_takes_signals_although_its_parent_waits_for_them() -> None:
    assert run("""
code = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []) == set())"
wait(children.start([sys.executable, "-c", code]))
""") == ["True"]


def test_an_orphan_that_falls_to_the_supervisor_is_reaped() -> None:
    assert run("""
from mlflow_deploy_plugin.processes import adopt_orphans
adopt_orphans()
child = children.start(["sh", "-c", "sleep 0.2 & exit 0"])
print(wait(child))
orphans = lambda: open(f"/proc/self/task/{os.getpid()}/children").read().split()
deadline = time.monotonic() + 20
while orphans() and time.monotonic() < deadline:
    signal.sigtimedwait(watched_signals(), 1)
    children.reap()
print(len(orphans()))
""") == ["0", "0"]
