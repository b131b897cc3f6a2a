"""Tests of the search for changed files on MLflow's server: its callers cannot keep the
artifact store busy.
"""

import threading

import pytest

from mlflow_deploy_plugin.ui import access, approved_files
from mlflow_deploy_plugin.ui.approved_files import ChangedFilesSearch, version_approval
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
    files_digest = mlflow_stores.files_digest

    def slow_digest(*arguments):
        is_reading.set()
        may_go_on.wait(60)
        return files_digest(*arguments)

    monkeypatch.setattr(mlflow_stores, "files_digest", slow_digest)
    first = threading.Thread(target=find, args=(mlflow_app, search))
    first.start()
    assert is_reading.wait(60)
    assert find(mlflow_app, search) == []
    may_go_on.set()
    first.join(60)
    assert changed_model in {entry.model for entry in find(mlflow_app, search)}


@pytest.mark.parametrize("was_changed", [True, False])
def test_search_keeps_its_result_for_slow_files(mlflow_app, monkeypatch, was_changed):
    monkeypatch.setattr(approved_files, "_PAUSE_SECONDS", 0)
    model = mlflow_app.model(policy=POLICY)
    model.passed("1")
    assert model.enter("1") == 200
    if was_changed:
        (model.files("1") / "MLmodel").write_text("model_id: replaced")
    search = ChangedFilesSearch(AuditTrail())

    def found():
        return [entry for entry in find(mlflow_app, search) if entry.model == model]

    first = found()
    assert len(first) == was_changed
    slow = model.files("1") / "weights.bin"
    with slow.open("wb") as sparse:
        sparse.truncate(2**40)
    monkeypatch.setattr(mlflow_stores, "_READING_SECONDS", 0.2)
    assert found() == first
    slow.unlink()


def test_earlier_verdict_without_files_judges_none(mlflow_app):
    model = mlflow_app.model(policy=POLICY)
    trail = AuditTrail()
    with mlflow_app.app.test_request_context():
        detail = {"tagged": True}
        trail.store().record("gate", model=model, version="1", after="passed", detail=detail)
        assert version_approval(trail, model, "1").judged == ""
