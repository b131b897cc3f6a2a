"""A worker's commands while the agent answers, is slow, or is down."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from mlflow_deploy_plugin.core.errors import (
    DeadlineExceeded,
    InvalidConfig,
    NotFound,
    NotReady,
    TooManyRequests,
)
from mlflow_deploy_plugin.core.spec.parts import CaptureSpec, EndpointSpec, VariantSpec
from mlflow_deploy_plugin.core.statedir.commands import MAX_WAITING, command_answer, command_files
from mlflow_deploy_plugin.core.statedir.files import (
    AGENT,
    ANSWERS,
    COMMANDS,
    read_state,
    write_state,
)
from mlflow_deploy_plugin.core.statedir.models import AgentState, Command
from mlflow_deploy_plugin.serve.models.model_control import ModelControl
from tests.support.waiting import wait_until


def commands(state_dir, most_waiting=2, patience=30.0):
    return ModelControl(
        state_dir, "explicit", most_waiting, timeout_seconds=patience, agent_seconds=0.3
    )


def agent_lives(state_dir):
    write_state(state_dir / AGENT, AgentState(pid=os.getpid()))


@contextmanager
def answering(state_dir, error):
    """Run an agent that answers each command immediately and once."""
    agent_lives(state_dir)
    stop = threading.Event()
    answered = set()

    def work():
        while not stop.wait(0.01):
            for file in command_files(state_dir):
                command = read_state(file, Command)
                if command is not None and file.name not in answered:
                    answered.add(file.name)
                    write_state(state_dir / ANSWERS / file.name, command_answer(error(command)))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work)
        try:
            yield
        finally:
            stop.set()


def left_over(state_dir):
    return [*command_files(state_dir), *(state_dir / ANSWERS).glob("*")]


def test_answered_command_leaves_no_files(tmp_path):
    taken = []
    with answering(tmp_path, lambda command: taken.append((command.action, command.endpoint))):
        commands(tmp_path).load("e")
        commands(tmp_path).unload("e")
    assert set(taken) == {("load", "e"), ("unload", "e")}
    wait_until(lambda: not left_over(tmp_path), what="no file is left")


def test_error_of_the_agent_is_raised(tmp_path):
    with (
        answering(tmp_path, lambda command: NotFound("no such model")),
        pytest.raises(NotFound, match="no such model"),
    ):
        commands(tmp_path).load("e")


def test_missing_agent_fails_quickly(tmp_path):
    with pytest.raises(NotReady, match=r"agent .*not running"):
        commands(tmp_path).load("e")
    assert not left_over(tmp_path)


def test_slow_agent_exceeds_the_deadline(tmp_path):
    agent_lives(tmp_path)
    with pytest.raises(DeadlineExceeded, match=r"'e' .*0 s"):
        commands(tmp_path, patience=0.2).unload("e")
    assert not left_over(tmp_path)


def test_commands_need_explicit_control(tmp_path):
    with pytest.raises(InvalidConfig, match=r"-C server\.model_control_mode=explicit"):
        ModelControl(tmp_path, "none", 1).load("e")
    assert not (tmp_path / COMMANDS).exists()


def test_oversized_endpoint_is_refused(tmp_path):
    agent_lives(tmp_path)
    variants = {"main": VariantSpec(model="models:/m/1")}
    large = EndpointSpec(
        name="e", variants=variants, capture=CaptureSpec(drop=("column" * 10_000,) * 10)
    )
    with pytest.raises(InvalidConfig, match=r"60\d{4} bytes .*262144"):
        commands(tmp_path).load("e", large)
    assert not left_over(tmp_path)


def test_waiting_commands_per_worker_are_limited(tmp_path):
    agent_lives(tmp_path)
    some = commands(tmp_path, most_waiting=1)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(some.load, "e")
        (first,) = wait_until(lambda: command_files(tmp_path), what="the first command")
        with pytest.raises(TooManyRequests) as caught:
            some.load("f")
        assert caught.value.retry_after == 1
        write_state(tmp_path / ANSWERS / first.name, command_answer(None))
        waiting.result(30)


def test_waiting_commands_in_total_are_limited(tmp_path):
    agent_lives(tmp_path)
    for number in range(MAX_WAITING):
        write_state(
            tmp_path / COMMANDS / f"{number}.json",
            Command(action="load", endpoint="e", created_at=0),
        )
    with pytest.raises(TooManyRequests, match="64 endpoints wait"):
        commands(tmp_path).load("e")


def test_unwritable_command_is_not_ready(tmp_path):
    (tmp_path / COMMANDS).write_text("a file where the folder should be")
    with pytest.raises(NotReady, match="cannot be written"):
        commands(tmp_path).load("e")
