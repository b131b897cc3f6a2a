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
from tests.support.waiting import wait_until

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


def test_it_answers_refuses_and_ends_when_the_connection_is_closed(connections):
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
    wait_until(lambda: child.wait(0) is not None, 60, "the end of the side process")


def test_it_waits_for_a_thread_if_the_machine_allows_no_more(connections):
    child = start(connections, "has few threads")
    control = connections[0]
    assert receive_message(control) == SideMessage("ready")
    for n in (1, 2):
        with connect(control) as ours:
            assert ask(ours, "add", n=n).fields["n"] == n
    control.close()
    wait_until(lambda: child.wait(0) is not None, 60, "the end of the side process")


@pytest.mark.parametrize(
    ("how", "said", "status"),
    [("has an end", "sends what waits\n", 0), ("hangs at its end", "", -9)],
)
def test_it_has_a_moment_to_end_when_the_worker_has_gone(connections, tmp_path, how, said, status):
    with (tmp_path / "log").open("wb") as log:
        child = start(connections, how, log)
    receive_message(connections[0])
    connections[0].close()
    assert child.wait(60) == status
    assert (tmp_path / "log").read_text() == said


def test_its_log_is_in_the_form_of_the_server_s(connections, tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_LOG_FORMAT", "ecs")
    with (tmp_path / "log").open("wb") as log:
        child = start(connections, "works", log)
    receive_message(connections[0])
    with connect(connections[0]) as ours:
        ask(ours, "raise")
    connections[0].close()
    wait_until(lambda: child.wait(0) is not None, 60, "the end of the side process")
    (line,) = map(read_line, (tmp_path / "log").read_text().splitlines())
    assert line["service.node.role"] == "test"
    assert line["error.type"] == "KeyError"


def test_a_closed_connection_does_not_end_or_log_in_the_side_process(connections, tmp_path):
    with (tmp_path / "log").open("wb") as log:
        child = start(connections, "works", log)
    receive_message(connections[0])
    with connect(connections[0]) as gone, connect(connections[0]) as other:
        gone.shutdown(socket.SHUT_RD)
        send_message(gone, SideMessage("add", {"n": 1}))
        assert ask(other, "add", n=2).fields["n"] == 2
    connections[0].close()
    wait_until(lambda: child.wait(0) is not None, 60, "the end of the side process")
    assert (tmp_path / "log").read_text() == ""


def test_one_that_cannot_start_says_why_and_ends(connections):
    child = start(connections, "fails")
    failed = receive_message(connections[0])
    assert failed is not None
    assert failed.kind == "failed"
    assert failed.fields["message"] == "the package 'x' is missing"
    assert child.wait(60) == 0


def test_an_exception_is_named_in_one_line_without_paths():
    assert mentions(
        error_summary(KeyError("no such\nthing in /usr/lib/python3/thing.py")),
        "KeyError",
        "such\\nthing in …",
    )
    assert error_summary(MemoryError()) == "MemoryError"


def test_the_text_that_mlflow_appends_is_removed():
    text = "Failed to predict data '[1]'. \nError: column missing\nInput: 1,2,3"
    assert clean_message(text) == "column missing"


def test_a_long_message_is_cut():
    assert clean_message("x" * 10_000) == "x" * 499 + "…"


def test_half_a_surrogate_pair_that_a_message_quotes_is_spelled():
    assert clean_message("schema of 'a\ud800'") == "schema of 'a\\ud800'"


def test_versions_are_compared_with_those_of_this_platform_as_pip_reads_them(tmp_path):
    (tmp_path / "requirements.txt").write_bytes(
        b"# \xff\n-r more.txt\nmlflow==2.9\nnumpy<0.3,>=0.1\nno-such-thing\n"
        b"other==1; python_version < '3'\n"
    )
    assert version_differences(tmp_path) == {
        "numpy": f"numpy <0.3,>=0.1 ({version('numpy')} is installed)",
        "no-such-thing": "no-such-thing (not installed)",
    }
