"""Tests of the search for changed files on MLflow's server: its callers cannot keep the
artifact store busy.
"""

import threading

import pytest

from mlflow_deploy_plugin.ui import access
from mlflow_deploy_plugin.ui.approved_files import ChangedFilesSearch
from mlflow_deploy_plugin.ui.audit_trail import AuditTrail
from mlflow_deploy_plugin.ui.guard import mlflow_stores
from tests.support.console import POLICY


@pytest.fixture
def changed_model(mlflow_app):
    """A model with a version in a gated stage whose files were replaced."""
    model = mlflow_app.model(policy=POLICY)
    model.passed("1")
    assert model.enter("1") == 200
    (model.files("1") / "MLmodel").write_text("model_id: replaced")
    return model


def find(mlflow_app, search):
    with mlflow_app.app.test_request_context():
        return search.find()


def test_only_readable_models_are_searched(mlflow_app, changed_model, monkeypatch, caplog):
    search = ChangedFilesSearch(AuditTrail())
    (changed_model.files("1") / "MLmodel").unlink()  # Reading it is logged.
    with monkeypatch.context() as forbidden:
        forbidden.setattr(access, "may_read", lambda model: model != changed_model)
        find(mlflow_app, search)
    assert not any(changed_model in record.getMessage() for record in caplog.records)
    assert [entry.now for entry in find(mlflow_app, search) if entry.model == changed_model] == [""]


def test_concurrent_search_does_not_wait(mlflow_app, changed_model, monkeypatch):
    search = ChangedFilesSearch(AuditTrail())
    is_reading = threading.Event()
    may_go_on = threading.Event()
    searched_digest = mlflow_stores.searched_digest

    def slow_digest(*arguments):
        is_reading.set()
        may_go_on.wait(60)
        return searched_digest(*arguments)

    monkeypatch.setattr(mlflow_stores, "searched_digest", slow_digest)
    first = threading.Thread(target=find, args=(mlflow_app, search))
    first.start()
    assert is_reading.wait(60)
    assert find(mlflow_app, search) == []
    may_go_on.set()
    first.join(60)
    assert changed_model in {entry.model for entry in find(mlflow_app, search)}
