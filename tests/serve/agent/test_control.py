"""The agent executes commands, which change the served endpoints. control.json stores
the changes.
"""

import itertools
from unittest.mock import Mock

import pytest

from mlflow_deploy_plugin.core.errors import ModelError
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
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
from tests.support.refusals import mentions
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

    def __init__(self, state_dir):
        self.state_dir = state_dir
        self.control = self.started()

    def started(self):
        return EndpointControl(self.state_dir, lambda: NOW, specs=allowing("a", "b"))

    def ask(self, action, endpoint, added=None, created_at=NOW):
        name = f"{next(_numbers):020d}.json"
        command = Command(action=action, endpoint=endpoint, added=added, created_at=created_at)  # type: ignore[arg-type]
        write_state(self.state_dir / COMMANDS / name, command)
        return name

    def answer(self, name):
        return read_state(self.state_dir / ANSWERS / name, CommandAnswer)

    def settle(self, outcome=lambda endpoint: None):
        self.control.settle(outcome)

    def do(self, action, endpoint, added=None):
        name = self.ask(action, endpoint, added)
        self.control.take()
        self.settle()
        return self.answer(name)

    @property
    def served(self):
        return [spec.name for spec in self.control.endpoints]


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


def test_unload_is_answered_once_every_worker_follows(case):
    name = case.ask("unload", "a")
    assert case.control.take() == []
    assert (case.served, case.control.unloaded) == (["b"], ("a",))
    case.settle(Mock(side_effect=Pending))
    assert case.answer(name) is None
    assert case.control.is_busy
    case.settle()
    assert case.answer(name) == CommandAnswer()
    assert not case.control.is_busy


def test_actor_and_outcome_are_recorded(case):
    case.control.record = Mock()
    command = Command(action="load", endpoint="a", actor="ops", created_at=NOW)
    write_state(case.state_dir / COMMANDS / "1.json", command)
    case.control.take()
    case.settle(lambda endpoint: ModelError("it is broken"))
    case.control.record.assert_called_once_with(command, "it is broken")


def test_unwritable_audit_trail_blocks_no_command(case, tmp_path, caplog):
    case.control.record = module.audit_recorder(f"sqlite:///{tmp_path}/no/folder/store.db", "key")
    (tmp_path / "no").write_text("")
    assert case.do("load", "a") == CommandAnswer()
    wait_until(lambda: "the command of key" in caplog.text, what="the line")


def test_lost_control_file_is_written_again(case, caplog):
    case.ask("unload", "a")
    with files_of_at_most(0):
        case.control.take()
        case.settle()
    assert [record.args for record in caplog.records if "cannot be saved" in record.message] == [
        ("File too large",)
    ]
    assert not (case.state_dir / CONTROL).exists()
    for _ in range(2):
        case.settle()
        assert read_state(case.state_dir / CONTROL, Control) == Control(unloaded=("a",))
        (case.state_dir / CONTROL).unlink()


def test_successful_load_survives_a_restart(case):
    added = new_endpoint("c", "x")
    name = case.ask("load", "c", added)
    assert case.control.take() == [added]
    assert case.served == ["a", "b", "c"]
    assert not (case.state_dir / CONTROL).exists()
    case.settle()
    assert case.answer(name) == CommandAnswer()
    assert case.do("unload", "a") == CommandAnswer()

    case.control = case.started()
    assert (case.served, case.control.unloaded) == (["b", "c"], ("a",))
    assert case.do("load", "a") == CommandAnswer()
    assert case.served == ["a", "b", "c"]


def test_failed_load_restores_the_previous_endpoint(case):
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


def test_commands_to_one_endpoint_are_queued(case):
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
    ("action", "endpoint", "added", "kind"),
    [
        ("load", "c", None, "NotFound"),
        ("unload", "c", None, "NotFound"),
        ("load", "a", new_endpoint("a", "x"), "InvalidConfig"),
    ],
)
def test_impossible_command_is_refused_at_once(case, action, endpoint, added, kind):
    name = case.ask(action, endpoint, added)
    assert case.control.take() is None
    answer = case.answer(name)
    assert (answer.kind, mentions(answer.error, f"'{endpoint}'")) == (kind, True)


def test_new_spec_overrides_added_endpoints(case):
    case.do("load", "c", new_endpoint("c", "x"))
    case.do("unload", "a")
    case.control.specs = specs = allowing("a", "c")
    assert case.control.endpoints == [specs[1]]
    case.control.specs = forbidding = [new_endpoint("a", "m")]
    assert case.control.endpoints == forbidding
    assert case.control.unloaded == ()
    name = case.ask("load", "a")
    case.control.take()
    assert "not explicit" in case.answer(name).error


def test_stale_and_orphaned_files_are_removed(case):
    case.ask("unload", "a", created_at=NOW - MAX_COMMAND_AGE_SECONDS)
    case.ask("unload", "b", created_at=NOW + 1)  # The command is from before the machine's restart.
    (case.state_dir / COMMANDS / "broken.json").write_text("{")
    write_state(case.state_dir / ANSWERS / "orphan.json", CommandAnswer())
    assert case.control.take() is None
    assert case.served == ["a", "b"]
    assert not command_files(case.state_dir)
    assert not list((case.state_dir / ANSWERS).iterdir())


def test_oldest_unloaded_endpoint_makes_room(case, monkeypatch):
    monkeypatch.setattr(module, "MOST_ADDED", 2)
    for name in ("c", "d"):
        case.do("load", name, new_endpoint(name, "x"))
    assert "unload one" in case.do("load", "e", new_endpoint("e", "x")).error
    case.do("unload", "c")
    assert case.do("load", "e", new_endpoint("e", "x")) == CommandAnswer()
    assert (case.served, case.control.unloaded) == (["a", "b", "d", "e"], ())
