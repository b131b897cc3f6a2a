"""Events of changes in the registry while the store is locked or away."""

import sqlite3
from contextlib import closing, contextmanager

import pytest
from sqlalchemy import create_engine, func, select

from mlflow_deploy_plugin.core.store.audit_seal import verify_trail
from mlflow_deploy_plugin.core.store.store import Store
from tests.support.console import API, POLICY, move, point
from tests.support.refusals import mentions
from tests.support.services.postgresql import postgresql_server
from tests.support.waiting import wait_until

PASSED = ("passed", "all 5 checks passed")


@contextmanager
def locked_file(path):
    """Lock an SQLite file like another process that writes to it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def locked_chain(url, model):
    """Lock the chain of a model like another process that writes an event of it."""
    name = func.hashtextextended(f"audit trail of {model}", 0)
    with create_engine(url).begin() as connection:
        connection.execute(select(func.pg_advisory_xact_lock(name)))
        yield


@pytest.fixture
def store(mlflow_app, tmp_path, monkeypatch):
    """A new store of the app's server, in `tmp_path / "store.db"`."""
    monkeypatch.setenv("ONNXSERVE_STORE_URI", f"sqlite:///{tmp_path / 'store.db'}")
    with mlflow_app.app.app_context():
        opened: Store = mlflow_app.app.extensions["onnxserve"].store()
    return opened


def actions(store, model):
    return [event.action for event in store.events(model=model)]


def judged_model(mlflow_app):
    model: str = mlflow_app.model()
    mlflow_app.stands(model, "1", *PASSED)
    return model


def test_an_intention_is_stored_before_a_move_to_a_gated_place(mlflow_app, store):
    model = judged_model(mlflow_app)
    assert move(mlflow_app, model, "1", "Production").status_code == 200
    intention, moved = store.events(model=model)
    assert (intention.action, moved.action) == ("intend", "transition")
    assert intention.detail["intention"] == moved.detail["intention"]
    assert intention.detail["intended"] == "transition"
    assert intention.detail["moved"] == moved.detail["moved"]


def test_a_move_is_refused_if_its_intention_cannot_be_stored(mlflow_app, store, tmp_path):
    model = judged_model(mlflow_app)
    with locked_file(tmp_path / "store.db"):
        answer = move(mlflow_app, model, "1", "Production")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json["error_code"] == "TEMPORARILY_UNAVAILABLE"
    assert mlflow_app.stage(model, "1") == "None"
    # The intention may have been stored too late.
    assert actions(store, model) in ([], ["intend"], ["intend", "failed"])


def test_a_refusal_of_the_gate_is_answered_only_if_it_is_stored(mlflow_app, store, tmp_path):
    model = mlflow_app.model()
    with locked_file(tmp_path / "store.db"):
        assert move(mlflow_app, model, "1", "Production").status_code == 503
    assert move(mlflow_app, model, "1", "Production").status_code == 403
    assert actions(store, model)[-1] == "refused"


def test_an_intended_move_that_mlflow_refuses_is_recorded_as_failed(mlflow_app, store):
    model = mlflow_app.model("gated_aliases: [latest]")  # MLflow reserves this alias.
    mlflow_app.stands(model, "1", *PASSED)
    assert point(mlflow_app, model, "latest", "1").status_code == 400
    intention, failed = store.events(model=model)
    assert (intention.action, failed.action) == ("intend", "failed")
    assert failed.why == "MLflow's server answered 400"
    assert store.counted_events(model, ("alias",)) == []


def test_other_changes_are_kept_while_the_store_is_away_and_stored_afterwards(
    mlflow_app, store, tmp_path
):
    model = mlflow_app.model(policy=None)
    with locked_file(tmp_path / "store.db"):
        assert move(mlflow_app, model, "1", "Staging").status_code == 200
        assert move(mlflow_app, model, "1", "Production").status_code == 200
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


@pytest.mark.postgresql
def test_a_locked_chain_stops_no_other_model(mlflow_app, monkeypatch):
    locked = judged_model(mlflow_app)
    other = judged_model(mlflow_app)
    with postgresql_server() as url:
        monkeypatch.setenv("ONNXSERVE_STORE_URI", url)
        with mlflow_app.app.app_context():
            store = mlflow_app.app.extensions["onnxserve"].store()
        with closing(store), locked_chain(url, locked):
            assert move(mlflow_app, locked, "1", "Production").status_code == 503
            assert move(mlflow_app, other, "1", "Production").status_code == 200
            assert actions(store, other) == ["intend", "transition"]
    assert mlflow_app.stage(locked, "1") == "None"


def test_approvals_need_a_server_with_a_key(mlflow_app, tmp_path, monkeypatch):
    model = judged_model(mlflow_app)
    policy = f"{POLICY}\napprovals: {{count: 1}}"
    approved = mlflow_app.model(policy)
    mlflow_app.stands(approved, "1", *PASSED)
    monkeypatch.setenv("ONNXSERVE_HOME", "/proc/nobody")
    monkeypatch.setenv("ONNXSERVE_STORE_URI", f"sqlite:///{tmp_path / 'unsigned.db'}")
    tag = {"name": model, "key": "onnxserve.gate.policy", "value": policy}
    answers = [
        mlflow_app.client.post(f"{API}/registered-models/set-tag", json=tag),
        move(mlflow_app, approved, "1", "Production"),
    ]
    for answer in answers:
        assert answer.status_code == 403
        assert mentions(answer.json["message"], "openssl genpkey", "ONNXSERVE_AUDIT_KEY_FILE")
    assert move(mlflow_app, model, "1", "Production").status_code == 200
