"""An error keeps its class from the agent to the worker, and commands wait in the order
of their names.
"""

import pytest

from mlflow_deploy_plugin.core.errors import InvalidArtifact, ModelError, NotFound, OnnxserveError
from mlflow_deploy_plugin.core.statedir.commands import command_answer, command_error, command_files
from mlflow_deploy_plugin.core.statedir.files import COMMANDS
from mlflow_deploy_plugin.core.statedir.models import WorkerState


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (None, type(None)),
        (NotFound("no such model"), NotFound),
        (InvalidArtifact("no graph"), ModelError),
        (OnnxserveError("something"), OnnxserveError),
    ],
)
def test_error_keeps_its_class(error, kind):
    read = command_error(command_answer(error))
    assert type(read) is kind
    assert str(read) == str(error)


def test_complete_commands_are_sorted_by_name(tmp_path):
    folder = tmp_path / COMMANDS
    folder.mkdir()
    for name in ("2.json", "1.json", ".3.json"):
        (folder / name).touch()
    assert [path.name for path in command_files(tmp_path)] == ["1.json", "2.json"]


def test_unknown_fields_are_ignored():
    state = WorkerState.model_validate_json('{"pid": 7, "generation": 3, "mood": "fine"}')
    assert state == WorkerState(pid=7, generation=3)
