"""The contents of state files are immutable,
and readers accept files of newer writers.
"""

from mlflow_deploy_plugin.core.statedir.models import WorkerState


def test_unknown_fields_are_ignored():
    state = WorkerState.model_validate_json('{"pid": 7, "generation": 3, "mood": "fine"}')
    assert state == WorkerState(pid=7, generation=3)
