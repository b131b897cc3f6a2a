"""Events of changes in the registry while the store is locked or away."""

import sqlite3
from contextlib import closing, contextmanager

import pytest
from sqlalchemy import create_engine, func, select

from mlflow_deploy_plugin.core.store.audit_seal import verify_trail
from mlflow_deploy_plugin.ui import audit_trail
from tests.support.console import FIXTURE, POLICY
from tests.support.disk import tiny_disk
from tests.support.refusals import mentions
from tests.support.services.postgresql import postgresql_server
from tests.support.waiting import wait_until


@contextmanager
def locked_file(path):
    """Lock an SQLite file like another process that writes to it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def locked_tree(url):
    """Lock the tree of a store like another process that writes an event."""
    name = func.hashtextextended("audit tree", 0)
    with create_engine(url).begin() as connection:
        connection.execute(select(func.pg_advisory_xact_lock(name)))
        yield


def opened_store(mlflow_app, monkeypatch, url):
    """Return a new store of the app's server."""
    monkeypatch.setenv("ONNXSERVE_STORE_URI", url)
    with mlflow_app.app.app_context():
        return mlflow_app.app.extensions["onnxserve"].store()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
def store(mlflow_app, file, monkeypatch):
    return opened_store(mlflow_app, monkeypatch, f"sqlite:///{file}")


def own_events(store, model):
    return [event for event in store.events(model=model) if event.actor != FIXTURE]


def actions(store, model):
    return [event.action for event in own_events(store, model)]


@pytest.fixture
def model(mlflow_app, store):
    """A model whose version 1 has passed the gate."""
    model = mlflow_app.model()
    model.passed("1")
    return model


def test_intention_precedes_a_gated_move(model, store):
    assert model.enter("1") == 200
    intention, moved = own_events(store, model)
    assert (intention.action, moved.action) == ("intend", "transition")
    assert intention.detail["intention"] == moved.detail["intention"]
    assert intention.detail["intended"] == "transition"
    assert intention.detail["moved"] == moved.detail["moved"]


@pytest.fixture
def impatient(monkeypatch):
    """The server waits for a locked store only shortly."""
    monkeypatch.setattr(audit_trail, "_NOW_SECONDS", 1.0)
    monkeypatch.setattr(audit_trail, "_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(audit_trail, "_RETRY_SECONDS", 0.2)


def test_move_is_refused_without_its_intention(model, store, file, impatient):
    with locked_file(file):
        answer = model.ask("1")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json["error_code"] == "TEMPORARILY_UNAVAILABLE"
    assert model.stage("1") == "None"
    # The intention may have been stored too late.
    assert actions(store, model) in ([], ["intend"], ["intend", "failed"])


def test_gate_refusal_must_be_stored(model, store, file, impatient):
    with locked_file(file):
        assert model.enter("2") == 503
    wait_until(lambda: model.enter("2") == 403, what="the refusal is stored")
    assert actions(store, model)[-1] == "refused"


def test_unrecorded_head_refuses_a_gated_move(mlflow_app, model, store):
    folder = store.trail_record.folder
    recorded = (folder / "checkpoint.json").read_bytes()
    with tiny_disk(folder):
        (folder / "checkpoint.json").write_bytes(recorded)  # fills the disk
        answer = model.ask("1")
        published = mlflow_app.client.get("/onnxserve/audit-trail").json
    assert (answer.status_code, model.stage("1"), actions(store, model)) == (503, "None", [])
    assert mentions(answer.json["message"], "No space left")
    assert mentions(published["faults"][-1], "No space left")
    assert model.enter("1") == 200


def test_refused_intention_is_recorded_as_failed(mlflow_app, store):
    model = mlflow_app.model("gated_aliases: [latest]")  # MLflow reserves this alias.
    model.passed("1")
    assert model.enter("1", "@latest") == 400
    intention, failed = own_events(store, model)
    assert (intention.action, failed.action) == ("intend", "failed")
    assert mentions(failed.why, "400")
    assert store.counted_events(model, ("alias",)) == []


def test_ungated_moves_survive_an_outage(mlflow_app, store, file, impatient):
    model = mlflow_app.model(policy=None)
    with locked_file(file):
        assert model.enter("1", "Staging") == 200
        assert model.enter("1") == 200
        wait_until(
            lambda: len(store.counted_events(model, ("transition",))) == 2,
            what="the kept events count already",
        )
        assert actions(store, model) == []
    wait_until(
        lambda: actions(store, model).count("transition") == 2, what="the kept events are stored"
    )
    recorded = [*store.events(model=model)]
    kept = [event for event in recorded if event.action == "transition"]
    gaps = [event.detail for event in recorded if event.action == "gap"]
    assert [event.after for event in kept] == ["Staging", "Production"]
    assert sum(gap["events"] for gap in gaps) == 2
    assert gaps[0]["since"] == kept[0].at.isoformat()
    assert verify_trail(store).state == "intact"


@pytest.mark.long
@pytest.mark.postgresql
def test_locked_tree_refuses_a_gated_move(mlflow_app, model, monkeypatch):
    with postgresql_server() as url:
        store = opened_store(mlflow_app, monkeypatch, url)
        model.passed("1")
        with closing(store):
            with locked_tree(url):
                assert model.enter("1") == 503
            assert model.stage("1") == "None"
            wait_until(lambda: model.enter("1") == 200)


def test_approvals_need_a_server_with_a_key(mlflow_app, model, file, monkeypatch):
    policy = f"{POLICY}\napprovals: {{count: 1}}"
    approved = mlflow_app.model(policy)
    monkeypatch.setenv("ONNXSERVE_HOME", "/proc/nobody")
    monkeypatch.setenv("ONNXSERVE_STORE_URI", f"sqlite:///{file}.unsigned")
    for judged in (approved, model):
        judged.passed("1")
    assert mentions(approved.refusal("1"), "openssl genpkey", "ONNXSERVE_AUDIT_KEY_FILE")
    assert model.set_policy(policy) == 403
    assert model.enter("1") == 200
