"""Tests that a child process ends together with its descendants, and together with its
parent.
"""

import os
import signal
import subprocess
import sys
import threading

import pytest

from mlflow_deploy_plugin.core.errors import CommandFailed
from mlflow_deploy_plugin.core.processes.child import (
    Child,
    backoff_seconds,
    exit_reason,
    read_log_tail,
    run_to_end,
    signal_group,
    signal_process,
)
from tests.support.macos import MACOS
from tests.support.waiting import is_gone, wait_until

SLEEP = "import time; time.sleep(600)"
WITH_GRANDCHILD = f"""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", {SLEEP!r}]).pid, flush=True)
if len(sys.argv) > 1: sys.exit(int(sys.argv[1]))
time.sleep(600)
"""
PARENT = """
import socket, subprocess, sys, threading, time
from mlflow_deploy_plugin.core.processes.child import Child
ours, theirs = socket.socketpair()
child = Child([sys.executable, "-c", sys.argv[1], str(theirs.fileno())], \
descriptors=[theirs.fileno()])
theirs.close()
print(ours.recv(100).decode(), flush=True)
time.sleep(600)
"""
READS = """
import os, socket, subprocess, sys, time
from mlflow_deploy_plugin.core.processes.child import requests_of_parent
connection = socket.socket(fileno=int(sys.argv[1]))
connection.set_inheritable(False)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
requests = requests_of_parent(lambda: connection.recv(100) or None)
connection.sendall(f"{os.getpid()} {grandchild.pid}".encode())
time.sleep(600)  # as one that computes
"""
ASKS_THE_KERNEL = """
import os, socket, sys, time
from mlflow_deploy_plugin.core.processes.child import die_with_parent
die_with_parent()
connection = socket.socket(fileno=int(sys.argv[1]))
connection.sendall(f"{os.getpid()}".encode())
time.sleep(600)
"""
WAITS_FOR_THE_END = """
import os, threading
from mlflow_deploy_plugin.core.processes.child import end_on_signals
ended = threading.Event()
end_on_signals(ended)
print("ready", flush=True)
while not ended.wait(0.0001): pass
os._exit(7)  # the interpreter's own end takes the handlers away
"""


@pytest.fixture(params=["linux", "macos"])
def system(request, monkeypatch):
    """Return the operating system that the processes of a test detect."""
    if request.param == "macos":
        monkeypatch.setenv("PYTHONPATH", str(MACOS))
    return str(request.param)


@pytest.fixture
def new_child():
    made = []

    def make(code, *arguments, **options):
        made.append(
            Child(
                [sys.executable, "-c", code, *arguments],
                **options,  # type: ignore[arg-type]
            )
        )
        return made[-1]

    yield make
    for child in made:
        child.kill()
        child.wait(60)


def grandchild_of(child, output):
    return int(
        wait_until(lambda: output.read_text().strip(), what=f"what process {child.pid} has started")
    )


def test_child_leads_its_group_or_session(new_child):
    child = new_child(SLEEP)
    session = new_child(SLEEP, own_session=True)
    assert os.getpgid(child.pid) == child.pid
    assert os.getsid(child.pid) == os.getsid(0)
    assert os.getsid(session.pid) == session.pid


def test_killing_child_kills_grandchildren(new_child, tmp_path):
    output = tmp_path / "output"
    with output.open("wb") as file:
        child = new_child(WITH_GRANDCHILD, stdout=file)
    grandchild = grandchild_of(child, output)
    child.kill()
    assert child.wait(60) == -signal.SIGKILL
    wait_until(lambda: is_gone(grandchild), what="the end of what it has started")
    child.kill()  # The child has already ended.


@pytest.mark.parametrize("kills_group", [True, False])
def test_kills_group_ends_grandchildren_of_ended_child(new_child, tmp_path, kills_group):
    output = tmp_path / "output"
    with output.open("wb") as file:
        child = new_child(WITH_GRANDCHILD, "3", stdout=file, kills_group=kills_group)
    assert child.wait(60) == 3
    grandchild = grandchild_of(child, output)
    if kills_group:
        wait_until(lambda: is_gone(grandchild), what="the end of what it left behind")
    else:
        assert not is_gone(grandchild)
        assert signal_group(child.pid, signal.SIGKILL)


def test_threads_wait_for_killed_child(new_child):
    child = new_child(SLEEP)
    statuses = []
    threads = [
        threading.Thread(
            target=lambda seconds: statuses.append(child.wait(seconds)), args=(seconds,)
        )
        for seconds in (None, 60.0, None)
    ]
    for thread in threads:
        thread.start()
    child.kill_after(0.05)
    for thread in threads:
        thread.join(60)
    assert statuses == [-signal.SIGKILL] * 3 == [child.exit_status] * 3


@pytest.mark.parametrize(
    ("system", "code", "number"),
    [
        ("linux", READS, signal.SIGTERM),
        ("linux", ASKS_THE_KERNEL, signal.SIGKILL),
        ("macos", READS, signal.SIGKILL),
        ("macos", ASKS_THE_KERNEL, signal.SIGTERM),
    ],
    indirect=["system"],
)
def test_child_ends_with_its_parent(system, code, number):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, code], stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert pids
        assert not any(map(is_gone, pids))
    finally:
        parent.send_signal(number)
        parent.wait(60)
    wait_until(
        lambda: all(map(is_gone, pids)), 60, "the end of the child and of what it has started"
    )


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (0, "ended with status 0"),
        (3, "ended with status 3"),
        (-9, "was killed by SIGKILL"),
        (-40, "was killed by signal 40"),
    ],
)
def test_exit_reason_names_status_or_signal(status, said):
    assert exit_reason(status) == said


def test_detached_child_keeps_running(new_child):
    child = new_child(SLEEP, own_session=True)
    pid = child.detach()
    del child
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    signal_process(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    signal_process(pid, signal.SIGKILL)  # The process has ended, and its id is not reused yet.


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([sys.executable, "-c", "print('first'); print('last'); raise SystemExit(3)"], "last"),
        (
            [sys.executable, "-c", "import sys; print('no'); sys.exit('ERROR: no index')"],
            "no index",
        ),
        ([sys.executable, "-c", "raise SystemExit(3)"], "it ended with status 3"),
        (
            [sys.executable, "-c", "import os; os.write(2, b'bad \\xff'); os._exit(1)"],
            "bad \N{REPLACEMENT CHARACTER}",
        ),
        (
            [sys.executable, "-c", "import os; print('no'); os.kill(os.getpid(), 9)"],
            "it was killed by SIGKILL",
        ),
        ([sys.executable, "-c", SLEEP], "it did not end within 1 s"),
        (["/nowhere/python"], "it cannot be started: No such file or directory"),
    ],
)
def test_command_error_is_its_last_line(command, said):
    with pytest.raises(CommandFailed) as failure:
        run_to_end(command, 1 if SLEEP in command else 60)
    assert failure.value.message == said


def test_log_tail_is_read(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"first\n\n" + b"x" * 100 + b"\n  second \xff\0\n\n")
    assert read_log_tail(log, 30) == ["x" * 16, "second \N{REPLACEMENT CHARACTER}"]
    assert read_log_tail(log)[0] == "first"
    assert read_log_tail(tmp_path / "none") == []


PRELUDE = """
import os, signal, sys, time
from mlflow_deploy_plugin.core.processes.child import SupervisedChildren, awaiting_signals, \
signal_group
signals = awaiting_signals()
wait_for_signal = signals.__enter__()
children = SupervisedChildren()

def wait(child):
    while child.exit_status is None:
        wait_for_signal(1)
        children.reap()
    return child.exit_status
"""


BLOCKED = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
"""


def run(script, status=0, before=""):
    command = [sys.executable, "-c", before + PRELUDE + script]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == status
    return done.stdout.split()


def test_supervised_child_has_exit_status(system):
    assert run("""
print(wait(children.start([sys.executable, "-c", "raise SystemExit(3)"])))
child = children.start(["sleep", "60"])
child.signal(signal.SIGTERM)
print(wait(child))
child.signal(signal.SIGTERM)
print(signal_group(child.pid, signal.SIGKILL))
""") == ["3", "-15", "False"]


@pytest.mark.parametrize(
    ("system", "before"), [("linux", ""), ("macos", BLOCKED)], indirect=["system"]
)
def test_child_does_not_inherit_blocked_signals(system, before):
    script = """
code = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []) == set())"
wait(children.start([sys.executable, "-c", code]))
"""
    assert run(script, before=before) == ["True"]


def test_early_signal_ends_only_the_child():
    assert run("""
from mlflow_deploy_plugin.core.processes import child
child.die_with_parent = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  \
# as the kernel where the parent ends now
print(wait(children.start(["sleep", "600"])), wait_for_signal(0))
""") == ["-15", "None"]


def test_sigterm_survives_full_signal_queue():
    assert run("""
for number in [signal.SIGCHLD] * 1000 + [signal.SIGTERM]:
    os.kill(os.getpid(), number)
print(*(int(wait_for_signal(0)) for _ in range(2)), wait_for_signal(0), wait_for_signal(0))
""") == ["15", "17", "None", "None"]


def test_sigterm_ends_process_started_with_blocked_signals():
    command = [sys.executable, "-c", BLOCKED + WAITS_FOR_SIGNALS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "nobody\n"
        waiting.send_signal(signal.SIGTERM)
        try:
            assert waiting.communicate(timeout=20)[0].splitlines()[-1] == "15"
        finally:
            waiting.kill()


def test_supervised_children_end_with_parent(system):
    pids = run(
        """
for _ in range(2):
    print(children.start(["sleep", "600"]).pid)
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
""",
        status=-signal.SIGKILL,
    )
    wait_until(lambda: all(is_gone(int(pid)) for pid in pids), what="the end of the children")
    assert len(pids) == 2


def test_killing_unreaped_child_does_nothing(system):
    assert run("""
from mlflow_deploy_plugin.core.processes.child import Child
child = Child(["true"])
os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT) if hasattr(os, "waitid") else time.sleep(1)
child.kill()
print(child.wait())
""") == ["0"]


def test_adopted_orphan_is_reaped():
    assert run("""
from mlflow_deploy_plugin.core.processes.child import adopt_orphans
adopt_orphans()
child = children.start(["sh", "-c", "sleep 0.2 & exit 0"])
print(wait(child))
orphans = lambda: open(f"/proc/self/task/{os.getpid()}/children").read().split()
deadline = time.monotonic() + 20
while orphans() and time.monotonic() < deadline:
    wait_for_signal(1)
    children.reap()
print(len(orphans()))
""") == ["0", "0"]


WAITS_FOR_SIGNALS = """
from mlflow_deploy_plugin.core.processes.child import awaiting_signals
with awaiting_signals() as wait:
    while (number := wait(0.2)) is None:
        print("nobody", flush=True)
print(number)
"""


def test_file_limit_error_blocks_no_signals():
    assert run("""
import resource
while (descriptor := os.open("/dev/null", os.O_RDONLY)) < 200:
    pass
resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor + 1, descriptor + 1))
signals.__exit__(None, None, None)
os.open("/dev/null", os.O_RDONLY)
try:
    awaiting_signals().__enter__()
except OSError as error:
    print(error.strerror.replace(" ", "_"), signal.pthread_sigmask(signal.SIG_BLOCK, []))
""") == ["Too_many_open_files", "set()"]


def test_backoff_doubles_to_its_limit():
    assert [backoff_seconds(failures, 30) for failures in (1, 2, 3, 6, 1025, 100_000)] == [
        1,
        2,
        4,
        30,
        30,
        30,
    ]


def test_signal_burst_ends_process_once(new_child):
    reader, writer = os.pipe()
    child = new_child(WAITS_FOR_THE_END, stdout=writer)
    assert os.read(reader, 5) == b"ready"
    while child.wait(0) is None:
        signal_process(child.pid, signal.SIGTERM)
        signal_process(child.pid, signal.SIGINT)
    assert child.wait(20) == 7
    os.close(reader)
    os.close(writer)
