"""The worker's side of explanations, with a scripted process instead of the explaining
process.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from mlflow_deploy_plugin.core.errors import (
    DeadlineExceeded,
    NotReady,
    TooManyRequests,
)
from mlflow_deploy_plugin.serve.models import side_process
from mlflow_deploy_plugin.serve.models.explainer_process import ExplainerClient
from tests.support.waiting import wait_until

CHILD = """
import os, socket, sys, time
from mlflow_deploy_plugin.serve.protocols.side_messages import SideMessage, receive_message, \
send_message
from mlflow_deploy_plugin.serve.protocols.side_messages import receive_connection

how, connection = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
connection.set_inheritable(False)
if how == "failed":
    send_message(connection, SideMessage("failed", \
{"message": "it is broken"}))
    sys.exit(1)
if how == "never":
    time.sleep(3600)
if how == "late" and not os.path.exists(sys.argv[0] + ".late"):
    open(sys.argv[0] + ".late", "x").close()
    time.sleep(2)
    sys.exit(1)
send_message(connection, SideMessage("ready"))
connection = receive_connection(connection)
while (question := receive_message(connection)) is not None:
    if question.fields["seed"] == 1:
        time.sleep(3600)
    send_message(connection, SideMessage("explained", {"pid": os.getpid(), **question.fields}))
"""
FEEDS = {"x": np.zeros((1, 1), dtype=np.float32)}
HANGS = 1


@pytest.fixture
def explainer(tmp_path, monkeypatch):
    monkeypatch.setattr(side_process, "_END_SECONDS", 0.1)  # The child does not exit by itself.
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    made = []

    def make(how="ready", answer_seconds=60.0, most_waiting=4, idle_seconds=300.0):
        made.append(
            ExplainerClient(
                answer_seconds, most_waiting, idle_seconds, [sys.executable, str(child), how]
            )
        )
        return made[-1]

    yield make
    for client in made:
        client.close()


def ask(explainer, seed=0):
    return dict(explainer.explain(Path("/model"), FEEDS, 70, seed).fields)


def test_process_starts_on_demand_and_is_shared(explainer):
    client = explainer()
    assert client.pid is None
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(client), range(4)))
    assert {answer["pid"] for answer in answers} == {client.pid}
    assert answers[0]["folder"] == "/model"
    assert answers[0]["max_evals"] == 70


def test_idle_explainer_restarts_on_demand(explainer):
    client = explainer(idle_seconds=0.2)
    first = ask(client)["pid"]
    assert isinstance(first, int)
    wait_until(lambda: client.pid is None and not psutil.pid_exists(first), 60, "its end")
    assert ask(client)["pid"] != first


def test_surplus_questions_are_refused(explainer):
    client = explainer(most_waiting=2)
    ask(client)
    with ThreadPoolExecutor(2) as pool:
        hanging = [pool.submit(ask, client, HANGS) for _ in range(2)]
        wait_until(lambda: client._active == 2, 60, "two that wait")
        with pytest.raises(TooManyRequests) as caught:
            ask(client)
        assert caught.value.retry_after == 1
        client.close()
        assert {type(future.exception(60)) for future in hanging} == {NotReady}


def test_late_process_is_restarted(explainer):
    client = explainer("late", answer_seconds=1.0)

    def answers():
        try:
            return bool(ask(client))
        except (NotReady, DeadlineExceeded):
            return False

    assert not answers()
    wait_until(answers, 60, "the next process")


def test_explainer_without_a_process_is_not_ready(explainer):
    with pytest.raises(NotReady, match="is being started"):
        ask(explainer("never", answer_seconds=0.3))
    broken = explainer("failed")
    for _ in range(2):
        with pytest.raises(NotReady, match="it is broken"):
            ask(broken)


def test_waiting_for_a_busy_explainer_is_limited(explainer):
    client = explainer(answer_seconds=20.0)
    ask(client)
    client._timeout_seconds = 0.2  # The process runs, so that only the wait is short.
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(ask, client, HANGS)
        wait_until(
            lambda: client._process is not None and not client._process._turn._value,
            60,
            "the first question",
        )
        with pytest.raises(DeadlineExceeded, match="explainer was free"):
            ask(client)
        client.close()
        assert isinstance(hanging.exception(60), NotReady)
