"""The contents of state files are immutable,
and readers accept files of newer writers.
"""

import pytest
from pydantic import ValidationError

from mlflow_deploy_plugin.core.statedir.models import Wanted, WorkerState


def test_fields_of_a_newer_writer_are_ignored():
    state = WorkerState.model_validate_json('{"pid": 7, "generation": 3, "mood": "fine"}')
    assert state == WorkerState(pid=7, generation=3)


def test_a_state_is_not_changed_in_place():
    with pytest.raises(ValidationError, match="frozen"):
        Wanted().generation = 1  # type: ignore[misc]
