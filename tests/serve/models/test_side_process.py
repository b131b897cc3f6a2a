"""The keeper of a side process, with a scripted process that needs neither mlflow nor a
model.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    InvalidArtifact,
    NotReady,
    TooManyRequests,
)
from mlflow_deploy_plugin.serve.models.side_process import SideProcess
from mlflow_deploy_plugin.serve.protocols import side_messages
from mlflow_deploy_plugin.serve.protocols.side_messages import SideMessage
from tests.support.waiting import is_gone, wait_until

CHILD = """
import os, socket, subprocess, sys, threading, time
from mlflow_deploy_plugin.serve.protocols.side_messages import SideMessage, receive_message, \
send_message
from mlflow_deploy_plugin.serve.protocols.side_messages import receive_connection

how, control = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
control.set_inheritable(False)
if how == "silent":
    sys.exit(3)
if how == "failed":
    send_message(control, SideMessage("failed", {"message": "the package 'x' is missing"}))
    time.sleep(3600)
if how == "loading":
    open("loading", "w").write(str(os.getpid()))
    time.sleep(3600)
meeting = threading.Barrier(3)
making_parts = 0

def serve(connection):
    global making_parts
    while (question := receive_message(connection)) is not None:
        if question.kind == "hang":
            time.sleep(3600)
        if question.kind == "meet":
            meeting.wait()
        if question.kind == "exit":
            os._exit(7)
        if question.kind == "parts":
            making_parts += 1
            try:
                for number in range(question.fields["parts"]):
                    send_message(connection, SideMessage("part", {"number": number}))
                    time.sleep(question.fields.get("pause", 0))
            except BrokenPipeError:
                making_parts -= 1
                return connection.close()
            making_parts -= 1
        if question.kind == "nonsense":
            connection.sendall(b"this is no message of ours")
            continue
        if question.kind == "child":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
            send_message(connection, SideMessage("child", {"pid": child.pid}))
            continue
        has_metrics = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        echo = {"pid": os.getpid(), "metrics": has_metrics, "making_parts": making_parts}
        send_message(connection, SideMessage("echo", echo, question.arrays, question.body))

send_message(control, SideMessage("ready", {"pid": os.getpid()}))
while (connection := receive_connection(control)) is not None:
    threading.Thread(target=serve, args=[connection], daemon=True).start()
"""


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    file = tmp_path_factory.mktemp("side") / "child.py"
    file.write_text(CHILD)
    return file


@pytest.fixture(scope="module")
def process(child):
    """A process for tests that leave it running, or that end it and wait until it
    answers again.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere")
        process = SideProcess([sys.executable, str(child), "ready"], 30.0)
        process.start()
        yield process
        process.close()


@pytest.fixture
def new_process(child):
    made = []

    def make(how="ready", answer_seconds=30.0, python=Path(sys.executable), concurrency=1):
        made.append(
            SideProcess([str(python), str(child), how], answer_seconds, concurrency=concurrency)
        )
        return made[-1]

    yield make
    for process in made:
        process.close()


def pid_of(process):
    """Wait until the process answers, and return its id."""

    def ask():
        try:
            return int(process.request(SideMessage("echo")).fields["pid"])
        except (
            NotReady,
            DeadlineExceeded,
        ):  # The process is starting, or the machine was too slow.
            return 0

    return int(wait_until(ask, what="the side process answers"))


def test_process_has_its_own_group(process):
    answer = process.request(SideMessage("echo"))
    pid = answer.fields["pid"]
    assert answer.fields == {"pid": pid, "metrics": False, "making_parts": 0}
    assert process.pid == pid == os.getpgid(pid)


def test_answers_match_their_requests(process):
    def ask(number):
        return process.request(SideMessage("echo", body=str(number).encode() * 1000)).body

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(200)))
    assert answers == [str(number).encode() * 1000 for number in range(200)]


def test_requests_run_up_to_the_concurrency(new_process):
    process = new_process(concurrency=3)
    process.start()
    with ThreadPoolExecutor(3) as pool:  # Each is answered only after all three are computed.
        answers = list(pool.map(process.request, [SideMessage("meet")] * 3))
    assert len(answers) == 3


def test_hanging_request_is_abandoned(new_process):
    process = new_process(answer_seconds=1.0, concurrency=2)
    first = process.start().fields["pid"]
    with ThreadPoolExecutor() as pool:
        hanging = pool.submit(process.request, SideMessage("hang"))
        while not hanging.done():
            assert process.request(SideMessage("echo")).fields["pid"] == first
            wait([hanging], 0.1)
        with pytest.raises(DeadlineExceeded, match=r"within 1 s$"):
            hanging.result()
    assert pid_of(process) == first


def test_an_answer_may_come_in_parts(process):
    for _ in range(2):
        parts = process.stream(SideMessage("parts", {"parts": 3}))
        assert [part.fields["number"] for part in parts] == [0, 1, 2]


def test_abandoned_stream_ends_before_the_next_request(process):
    first = pid_of(process)
    parts = process.stream(SideMessage("parts", {"parts": 1000, "pause": 0.3}))
    next(parts)
    parts.close()
    answer = process.request(SideMessage("echo"))
    assert (answer.kind, answer.fields["making_parts"]) == ("echo", 0)
    assert process.pid == first


def test_abandoned_stream_that_hangs_ends_the_process(new_process):
    process = new_process(answer_seconds=0.5)
    first = process.start().fields["pid"]
    parts = process.stream(SideMessage("parts", {"parts": 2, "pause": 3600}))
    next(parts)
    parts.close()
    assert pid_of(process) != first


def test_close_ends_process_and_children(new_process):
    process = new_process()
    pid = process.start().fields["pid"]
    grandchild = process.request(SideMessage("child")).fields["pid"]
    process.close()
    wait_until(lambda: is_gone(pid) and is_gone(grandchild), what="the end of both")
    with pytest.raises(NotReady):
        process.request(SideMessage("echo"))


def test_close_ends_a_loading_process(new_process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = new_process("loading")
    loading = tmp_path / "loading"
    starting = threading.Thread(
        target=pytest.raises, args=(InvalidArtifact, process.start), daemon=True
    )
    starting.start()
    pid = int(wait_until(lambda: loading.exists() and loading.read_text(), what="it loads"))
    process.close()
    wait_until(lambda: is_gone(pid), 10, "its end")
    starting.join()


@pytest.mark.parametrize(
    ("how", "said"), [("failed", "the package 'x' is missing"), ("silent", "ended with status 3")]
)
def test_start_failure_gives_the_reason(new_process, how, said):
    with pytest.raises(InvalidArtifact, match=said):
        new_process(how).start()


def test_missing_program_cannot_be_started():
    with pytest.raises(InvalidArtifact, match="cannot be started"):
        SideProcess(["/nowhere/python"], 1.0).start()


@pytest.mark.parametrize(
    ("question", "how"), [("exit", "ended with status 7"), ("nonsense", "was killed by SIGKILL")]
)
def test_process_ending_during_a_request_is_restarted(process, question, how):
    first = pid_of(process)
    with pytest.raises(NotReady, match=f"model {how}"):
        process.request(SideMessage(question))
    assert pid_of(process) != first


def test_failed_restarts_are_retried_with_pauses(new_process, tmp_path, caplog):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o700)
    process = new_process(python=python)
    first = process.start().fields["pid"]
    away = python.rename(tmp_path / "away")
    os.kill(first, signal.SIGKILL)

    def failures():
        return [record.created for record in caplog.records if "be started" in record.getMessage()]

    wait_until(lambda: len(failures()) > 1, what="the second attempt")
    assert failures()[1] - failures()[0] >= 1
    away.rename(python)
    assert pid_of(process) != first


@pytest.mark.parametrize("concurrency", [1, 3])
def test_hanging_process_is_killed_and_restarted(new_process, concurrency):
    process = new_process(answer_seconds=0.5, concurrency=concurrency)
    first = process.start().fields["pid"]
    with ThreadPoolExecutor(concurrency) as pool:
        hanging = [pool.submit(process.request, SideMessage("hang")) for _ in range(concurrency)]
    assert {type(future.exception()) for future in hanging} <= {DeadlineExceeded, NotReady}
    assert is_gone(first) or wait_until(lambda: is_gone(first))
    assert pid_of(process) != first


def test_request_without_a_turn_is_refused(new_process):
    process = new_process(answer_seconds=20.0)
    process.start()
    with ThreadPoolExecutor() as pool:
        hanging = pool.submit(process.request, SideMessage("hang"))
        wait_until(lambda: process._turn._value == 0, what="the first question")
        with pytest.raises(DeadlineExceeded, match="deadline passed before"):
            process.request(SideMessage("echo"), time.perf_counter() + 0.05)
        process._timeout_seconds = 0.05
        with pytest.raises(TooManyRequests):
            process.request(SideMessage("echo"))
        process.close()
        assert isinstance(hanging.exception(30), NotReady)


def test_process_ends_with_its_keeper(tmp_path, child):
    keeper = tmp_path / "keeper.py"
    keeper.write_text(
        "import sys, time\n"
        "from mlflow_deploy_plugin.serve.models.side_process import SideProcess\n"
        f"process = SideProcess([sys.executable, {str(child)!r}, 'ready'], 5.0)\n"
        "print(process.start().fields['pid'], flush=True)\n"
        "time.sleep(3600)\n"
    )
    running = subprocess.Popen([sys.executable, str(keeper)], stdout=subprocess.PIPE)
    assert running.stdout is not None
    pid = int(running.stdout.readline())
    running.kill()
    running.wait()
    running.stdout.close()
    wait_until(lambda: is_gone(pid), what="the side process is gone")


def test_oversized_request_is_refused(process, monkeypatch):
    pid = pid_of(process)
    monkeypatch.setattr(side_messages, "MAX_BYTES", 1000)
    with pytest.raises(BodyTooLarge, match="2,000 bytes"):
        process.request(SideMessage("echo", body=bytes(2000)))
    assert process.request(SideMessage("echo")).fields["pid"] == pid
