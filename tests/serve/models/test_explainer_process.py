"""The worker's side of explanations, with a scripted function instead of the
explainer.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from mlflow_deploy_plugin.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    TooManyRequests,
)
from mlflow_deploy_plugin.serve.models import explainer_process
from mlflow_deploy_plugin.serve.models.explainer_process import ExplainerClient
from tests.support.refusals import refused
from tests.support.waiting import wait_until

HANGS = 1
EXITS = 2
REFUSES = 3


def answer(folder, feeds, max_evals, seed, seconds):
    """Return the arguments and the id of the process."""
    if seed == HANGS:
        time.sleep(3600)
    if seed == EXITS:
        os._exit(7)
    if seed == REFUSES:
        raise InvalidRequest("no such model")
    return os.getpid(), folder, max_evals


def start_slowly():
    time.sleep(2)


def fail():
    raise ImportError("it is broken")


@pytest.fixture
def explainer(monkeypatch):
    monkeypatch.setattr(explainer_process, "_explain", answer)
    monkeypatch.setattr(explainer_process, "_GRACE_SECONDS", 1.0)
    made = []

    def make(prepare=None, timeout_seconds=60.0, max_waiting=4, idle_seconds=300.0):
        monkeypatch.setattr(explainer_process, "_prepare", prepare)
        made.append(ExplainerClient(timeout_seconds, max_waiting, idle_seconds))
        return made[-1]

    yield make
    for client in made:
        client.close()


def ask(client, seed=0):
    return client.explain(Path("/model"), {}, 70, seed)


def test_process_starts_on_demand_and_is_shared(explainer):
    children = psutil.Process().children()
    client = explainer()
    assert psutil.Process().children() == children
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(client), range(4)))
    assert set(answers) == {(answers[0][0], Path("/model"), 70)}
    with refused(InvalidRequest, "no such model"):
        ask(client, REFUSES)


def test_idle_explainer_restarts_on_demand(explainer):
    client = explainer(idle_seconds=0.2)
    first = ask(client)[0]
    wait_until(lambda: not psutil.pid_exists(first), 60, "its end")
    assert ask(client)[0] != first


def test_surplus_questions_are_refused(explainer):
    client = explainer(max_waiting=2)
    ask(client)
    with ThreadPoolExecutor(2) as pool:
        hanging = [pool.submit(ask, client, HANGS) for _ in range(2)]
        wait_until(lambda: client._active == 2, 60, "two that wait")
        with pytest.raises(TooManyRequests) as caught:
            ask(client)
        assert caught.value.retry_after == 1
        client.close()
        assert {type(future.exception(60)) for future in hanging} == {NotReady}


def test_slow_process_answers_later(explainer):
    client = explainer(start_slowly, timeout_seconds=1.0)
    with refused(NotReady, "still starting"):
        ask(client)

    def answers():
        try:
            return bool(ask(client))
        except (NotReady, DeadlineExceeded):
            return False

    wait_until(answers, 60, "the started process")


@pytest.mark.parametrize("seed", [0, EXITS])
def test_crashed_explainer_is_not_ready(explainer, seed):
    client = explainer(None if seed else fail)
    for _ in range(2):
        with refused(NotReady, "cannot be explained"):
            ask(client, seed)


def test_waiting_for_a_busy_explainer_is_limited(explainer):
    client = explainer()
    first = ask(client)[0]
    client._timeout_seconds = 1.0
    with ThreadPoolExecutor(2) as pool:
        hanging = pool.submit(ask, client, HANGS)
        wait_until(lambda: client._active, 60, "the first question")
        with refused(DeadlineExceeded, "explainer was free"):
            ask(client)
        assert isinstance(hanging.exception(60), DeadlineExceeded)
    client._timeout_seconds = 60.0
    assert ask(client)[0] != first
