"""The agent executes commands, which change the served endpoints. control.json stores
the changes.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.errors import ModelError, OnnxserveError
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.statedir.commands import MAX_COMMAND_AGE_SECONDS, command_files
from mlflow_deploy_plugin.core.statedir.files import (
    ANSWERS,
    COMMANDS,
    CONTROL,
    read_state,
    write_state,
)
from mlflow_deploy_plugin.core.statedir.models import Command, CommandAnswer, Control
from mlflow_deploy_plugin.serve.agent import control as module
from mlflow_deploy_plugin.serve.agent.control import EndpointControl, Pending
from tests.support.disk import files_of_at_most
from tests.support.waiting import wait_until

NOW = 1000.0
_numbers = itertools.count(1)


def allowing(*names):
    return [
        apply_config(new_endpoint(name, "m"), {"server.model_control_mode": "explicit"})
        for name in names
    ]


class Case:
    """The agent's side of a server that serves the endpoints a and b."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.control = self.started()

    def started(self) -> EndpointControl:
        return EndpointControl(self.state_dir, lambda: NOW, specs=allowing("a", "b"))

    def ask(
        self, action: str, endpoint: str, added: EndpointSpec | None = None, created_at: float = NOW
    ) -> str:
        name = f"{next(_numbers):020d}.json"
        command = Command(action=action, endpoint=endpoint, added=added, created_at=created_at)  # type: ignore[arg-type]
        write_state(self.state_dir / COMMANDS / name, command)
        return name

    def answer(self, name: str) -> CommandAnswer | None:
        return read_state(self.state_dir / ANSWERS / name, CommandAnswer)

    def settle(
        self, outcome: Callable[[str], OnnxserveError | None] = lambda endpoint: None
    ) -> None:
        self.control.settle(outcome)

    def do(
        self, action: str, endpoint: str, added: EndpointSpec | None = None
    ) -> CommandAnswer | None:
        name = self.ask(action, endpoint, added)
        self.control.take()
        self.settle()
        return self.answer(name)

    @property
    def served(self) -> list[str]:
        return [spec.name for spec in self.control.endpoints]


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


def test_without_commands_the_spec_is_served(case):
    assert case.control.take() is None
    assert not case.control.is_busy
    assert case.served == ["a", "b"]
    assert case.control.unloaded == ()


def test_an_unload_holds_at_once_and_is_answered_when_every_worker_knows(case):
    name = case.ask("unload", "a")
    assert case.control.take() == []
    assert case.served == ["b"]
    assert case.control.unloaded == ("a",)

    def pending(endpoint):
        raise Pending

    case.settle(pending)
    assert case.answer(name) is None
    assert case.control.is_busy
    case.settle()
    assert case.answer(name) == CommandAnswer()
    assert not case.control.is_busy


def test_who_asked_is_recorded_with_the_outcome(case):
    recorded: list[tuple[str, str, str]] = []
    case.control.record = lambda command, error: recorded.append(
        (command.actor, command.action, error)
    )
    command = Command(action="load", endpoint="a", actor="ops", created_at=NOW)
    write_state(case.state_dir / COMMANDS / "1.json", command)
    case.control.take()
    case.settle(lambda endpoint: ModelError("it is broken"))
    assert recorded == [("ops", "load", "it is broken")]


def test_a_command_goes_on_though_the_audit_trail_cannot_be_written(case, tmp_path, caplog):
    case.control.record = module.audit_recorder(f"sqlite:///{tmp_path}/no/folder/store.db", "key")
    (tmp_path / "no").write_text("")
    assert case.do("load", "a") == CommandAnswer()
    wait_until(lambda: "the command of key" in caplog.text, what="the line")


def test_a_control_json_that_is_lost_is_written_again(case):
    case.do("unload", "a")
    (case.state_dir / CONTROL).unlink()
    case.settle()
    assert read_state(case.state_dir / CONTROL, Control) == Control(unloaded=("a",))


def test_control_json_is_saved_once_the_disk_has_room_and_the_error_is_logged_once(case, caplog):
    case.ask("unload", "a")
    with files_of_at_most(0):
        case.control.take()
        case.settle()
    assert [record.args for record in caplog.records if "cannot be saved" in record.message] == [
        ("File too large",)
    ]
    assert not (case.state_dir / CONTROL).exists()
    case.settle()
    assert read_state(case.state_dir / CONTROL, Control) == Control(unloaded=("a",))


def test_a_load_is_kept_once_it_went_well_and_found_again_by_the_next_agent(case):
    added = new_endpoint("c", "x")
    name = case.ask("load", "c", added)
    assert case.control.take() == [added]
    assert case.served == ["a", "b", "c"]
    assert not (case.state_dir / CONTROL).exists()
    case.settle()
    assert case.answer(name) == CommandAnswer()
    assert case.do("unload", "a") == CommandAnswer()

    case.control = case.started()
    assert case.served == ["b", "c"]
    assert case.control.unloaded == ("a",)
    assert case.do("load", "a") == CommandAnswer()
    assert case.served == ["a", "b", "c"]


def test_a_failed_load_restores_the_previous_endpoint(case):
    old = new_endpoint("c", "old")
    new = new_endpoint("c", "new")
    case.do("load", "c", old)
    name = case.ask("load", "c", new)
    case.control.take()
    assert new in case.control.endpoints
    case.settle(lambda endpoint: ModelError("broken"))
    assert case.answer(name) == CommandAnswer(error="broken", kind="ModelError")
    assert old in case.control.endpoints
    assert read_state(case.state_dir / CONTROL, Control) == Control(added={"c": old})


def test_a_second_command_to_an_endpoint_waits_for_the_first(case):
    first = case.ask("load", "a")
    second = case.ask("unload", "a")
    case.control.take()
    assert case.control.take() is None
    case.settle()
    assert case.answer(first) == CommandAnswer()
    assert case.answer(second) is None
    assert case.control.take() == []
    assert case.served == ["b"]


@pytest.mark.parametrize(
    ("action", "endpoint", "added", "kind", "words"),
    [
        ("load", "c", None, "NotFound", "there is no endpoint 'c'"),
        ("unload", "c", None, "NotFound", "there is no endpoint 'c'"),
        ("load", "a", new_endpoint("a", "x"), "InvalidConfig", "'a' is in the server's spec"),
    ],
)
def test_a_command_that_cannot_be_is_answered_at_once(case, action, endpoint, added, kind, words):
    name = case.ask(action, endpoint, added)
    assert case.control.take() is None
    answer = case.answer(name)
    assert answer is not None
    assert answer.kind == kind
    assert words in answer.error


def test_the_spec_takes_back_a_name_and_the_permission(case):
    case.do("load", "c", new_endpoint("c", "x"))
    case.do("unload", "a")
    case.control.specs = specs = allowing("a", "c")
    assert case.control.endpoints == [specs[1]]
    case.control.specs = forbidding = [new_endpoint("a", "m")]
    assert case.control.endpoints == forbidding
    assert case.control.unloaded == ()
    name = case.ask("load", "a")
    case.control.take()
    answer = case.answer(name)
    assert answer is not None
    assert "not explicit" in answer.error


def test_stale_and_unreadable_commands_and_orphaned_answers_are_removed(case):
    case.ask("unload", "a", created_at=NOW - MAX_COMMAND_AGE_SECONDS)
    case.ask("unload", "b", created_at=NOW + 1)  # The command is from before the machine's restart.
    (case.state_dir / COMMANDS / "broken.json").write_text("{")
    write_state(case.state_dir / ANSWERS / "orphan.json", CommandAnswer())
    assert case.control.take() is None
    assert case.served == ["a", "b"]
    assert not command_files(case.state_dir)
    assert not list((case.state_dir / ANSWERS).iterdir())


def test_a_command_that_was_answered_is_not_taken_again(case):
    case.do("unload", "a")
    case.do("load", "a")
    assert case.control.take() is None
    assert not case.control.is_busy


def test_added_endpoints_are_bounded_and_the_oldest_unloaded_one_makes_room(case, monkeypatch):
    monkeypatch.setattr(module, "MOST_ADDED", 2)
    for name in ("c", "d"):
        case.do("load", name, new_endpoint(name, "x"))
    refused = case.do("load", "e", new_endpoint("e", "x"))
    assert refused is not None
    assert "unload one" in refused.error
    case.do("unload", "c")
    assert case.do("load", "e", new_endpoint("e", "x")) == CommandAnswer()
    assert case.served == ["a", "b", "d", "e"]
    assert case.control.unloaded == ()
