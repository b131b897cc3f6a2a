"""A side process reports that it is ready, answers requests in order, and ends with its
worker.
"""

import socket
import subprocess
import sys
from importlib.metadata import version

import pytest

from mlflow_deploy_plugin.core.processes.child import Child
from mlflow_deploy_plugin.serve.protocols.side_messages import (
    SideMessage,
    receive_message,
    send_message,
)
from mlflow_deploy_plugin.serve.pyfunc.process import (
    clean_message,
    error_summary,
    version_differences,
)
from tests.support.ecs import read_line
from tests.support.refusals import mentions

CHILD = """
import atexit, sys, threading, time
from mlflow_deploy_plugin.serve.pyfunc import process
from mlflow_deploy_plugin.core.errors import InvalidArtifact, SchemaMismatch
from mlflow_deploy_plugin.serve.pyfunc.process import answer_all
from mlflow_deploy_plugin.serve.protocols import side_messages
from mlflow_deploy_plugin.serve.protocols.side_messages import SideMessage

side_messages.MAX_BYTES = 1000
if sys.argv[1] == "hangs at its end":
    process._END_SECONDS = 0.1

def start():
    if "end" in sys.argv[1]:
        atexit.register(print, "sends what waits", flush=True, file=sys.stderr)
    if sys.argv[1] == "hangs at its end":
        atexit.register(time.sleep, 3600)
    if sys.argv[1] == "has few threads":
        begin, left = threading.Thread.start, iter([1, 0, 0, 1])

        def start_or_not(thread):
            if not next(left):
                raise RuntimeError("can't start new thread")
            begin(thread)

        threading.Thread.start = start_or_not
    if sys.argv[1] == "fails":
        raise InvalidArtifact("the package 'x' is missing")
    return SideMessage("ready"), answer

def answer(request):
    if request.kind == "refuse":
        raise SchemaMismatch("column 'x' is missing", column="x")
    if request.kind == "raise":
        raise KeyError("/usr/lib/python3/thing.py")
    if request.kind == "fill":
        return SideMessage("answer", body=bytes(2000))
    return SideMessage("answer", {"n": request.fields["n"]})

answer_all(int(sys.argv[2]), "test", start)
"""


@pytest.fixture
def connections():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def start(connections, how, log=subprocess.DEVNULL):
    theirs = connections[1]
    command = [sys.executable, "-c", CHILD, how, str(theirs.fileno())]
    child = Child(command, descriptors=[theirs.fileno()], stderr=log)
    theirs.close()
    return child


def connect(control):
    """Return a connection for requests, whose other end was passed to the process."""
    ours, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(control, [b"c"], [theirs.fileno()])
    return ours


def ask(connection, kind, **fields):
    send_message(connection, SideMessage(kind, fields))
    answer = receive_message(connection)
    assert answer is not None
    return answer


def test_requests_are_answered_until_closed(connections):
    child = start(connections, "works")
    control = connections[0]
    ready = receive_message(control)
    assert ready is not None
    assert ready.kind == "ready"
    ours = connect(control)
    assert [ask(ours, "add", n=n).fields["n"] for n in (1, 2)] == [1, 2]
    assert ask(ours, "refuse").fields == {
        "error": "SchemaMismatch",
        "message": "column 'x' is missing",
        "column": "x",
    }
    refusal = ask(ours, "raise").fields
    assert refusal == {
        "error": "InferenceError",
        "message": "the model cannot answer: KeyError: '…'",
        "column": "",
    }
    refusal = ask(ours, "fill").fields
    assert refusal == {
        "error": "BodyTooLarge",
        "message": "the answer is too large: 2,000 bytes; at most 1,000 are allowed",
        "column": "",
    }
    assert ask(ours, "add", n=3).fields["n"] == 3
    ours.close()
    control.close()
    assert child.wait(60) == 0


def test_missing_thread_is_awaited(connections):
    child = start(connections, "has few threads")
    control = connections[0]
    assert receive_message(control) == SideMessage("ready")
    for n in (1, 2):
        with connect(control) as ours:
            assert ask(ours, "add", n=n).fields["n"] == n
    control.close()
    assert child.wait(60) == 0


@pytest.mark.parametrize(
    ("how", "said", "status"),
    [("has an end", "sends what waits\n", 0), ("hangs at its end", "", -9)],
)
def test_exit_handlers_have_limited_time(connections, tmp_path, how, said, status):
    with (tmp_path / "log").open("wb") as log:
        child = start(connections, how, log)
    receive_message(connections[0])
    connections[0].close()
    assert child.wait(60) == status
    assert (tmp_path / "log").read_text() == said


def test_log_uses_the_server_format(connections, tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_LOG_FORMAT", "ecs")
    with (tmp_path / "log").open("wb") as log:
        child = start(connections, "works", log)
    receive_message(connections[0])
    with connect(connections[0]) as ours:
        ask(ours, "raise")
    connections[0].close()
    assert child.wait(60) == 0
    (line,) = map(read_line, (tmp_path / "log").read_text().splitlines())
    assert line["service.node.role"] == "test"
    assert line["error.type"] == "KeyError"


def test_closed_connection_is_ignored(connections, tmp_path):
    with (tmp_path / "log").open("wb") as log:
        child = start(connections, "works", log)
    receive_message(connections[0])
    with connect(connections[0]) as gone, connect(connections[0]) as other:
        gone.shutdown(socket.SHUT_RD)
        send_message(gone, SideMessage("add", {"n": 1}))
        assert ask(other, "add", n=2).fields["n"] == 2
    connections[0].close()
    assert child.wait(60) == 0
    assert (tmp_path / "log").read_text() == ""


def test_start_failure_is_reported(connections):
    child = start(connections, "fails")
    failed = receive_message(connections[0])
    assert failed is not None
    assert failed.kind == "failed"
    assert failed.fields["message"] == "the package 'x' is missing"
    assert child.wait(60) == 0


def test_exception_is_one_line_without_paths():
    assert mentions(
        error_summary(KeyError("no such\nthing in /usr/lib/python3/thing.py")),
        "KeyError",
        "such\\nthing in …",
    )
    assert error_summary(MemoryError()) == "MemoryError"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("column missing\nInput: 1,2,3", "column missing"),
        ("x" * 10_000, "x" * 499 + "…"),
        ("schema of 'a\ud800'", "schema of 'a\\ud800'"),
    ],
    ids=["with data", "long", "half a surrogate"],
)
def test_message_is_short_and_printable(text, expected):
    assert clean_message(text) == expected


def test_different_versions_are_listed(tmp_path):
    (tmp_path / "requirements.txt").write_bytes(
        b"# \xff\n-r more.txt\nmlflow==2.9\nnumpy<0.3,>=0.1\nno-such-thing\n"
        b"other==1; python_version < '3'\n"
    )
    assert version_differences(tmp_path) == {
        "numpy": f"numpy <0.3,>=0.1 ({version('numpy')} is installed)",
        "no-such-thing": "no-such-thing (not installed)",
    }
