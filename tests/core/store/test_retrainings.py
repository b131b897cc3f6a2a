"""Retrainings in the store."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import delete

from mlflow_deploy_plugin.core.errors import AlreadyExists
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.retrainings import Retrainings
from mlflow_deploy_plugin.core.store.tables import RetrainingFigures, RetrainingRow
from tests.support.refusals import refused

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
CAUSE = {"why": "it is worse"}


@pytest.fixture
def store(store_url):
    opened = open_store(store_url, lambda: NOON)
    with opened.transaction() as session:
        session.execute(delete(RetrainingRow))
    yield opened
    opened.close()


@pytest.fixture
def retrainings(store):
    return Retrainings(store)


def add(retrainings, model="X", endpoint="flights"):
    return retrainings.add(endpoint, "accuracy", model, CAUSE, {"mode": "full"})


def test_added_retraining_is_found(retrainings):
    added = add(retrainings)
    assert retrainings.find("flights", "X") == [retrainings.get(added.id)] == [added]
    assert (added.cause, added.spec, added.created_at) == (CAUSE, {"mode": "full"}, NOON)
    assert retrainings.find("elsewhere") == []


def test_figures_round_trip(retrainings):
    figures = RetrainingFigures(
        attempt=1, started_at=NOON, evaluation={"difference": 0.5}, compared=False
    )
    document = {
        "attempt": 1,
        "started_at": NOON.isoformat(),
        "evaluation.difference": 0.5,
        "compared": False,
    }

    written = retrainings.update(replace(add(retrainings), figures=figures))

    assert retrainings.find() == [written]
    assert written.figures == figures
    assert written.figures.as_json() == document
    assert RetrainingFigures.from_json({**document, "of a newer release": 1}) == figures


def test_concurrent_alarms_start_one_retraining(retrainings):
    barrier = threading.Barrier(4)

    def try_to_add(endpoint):
        barrier.wait()
        try:
            return add(retrainings, endpoint=endpoint).is_live
        except AlreadyExists:
            return False

    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(try_to_add, ["a", "b", "c", "d"])) == 1
        (live,) = retrainings.find(live=True)
        retrainings.update(replace(live, state="failed", ended_at=NOON))


def test_model_has_one_live_retraining(retrainings):
    first = add(retrainings)
    with refused(AlreadyExists, "model X", f"retraining {first.id}", "waiting"):
        add(retrainings, endpoint="another")
    other = add(retrainings, model="Y")
    retrainings.update(replace(first, state="failed", ended_at=NOON))
    second = add(retrainings)
    assert [retraining.id for retraining in retrainings.find(live=True)] == [other.id, second.id]


def test_stale_update_is_refused(store, retrainings):
    added = add(retrainings)
    event = AuditEvent(NOON, "controller", "retrain.run", "flights", "X")
    running = retrainings.update(replace(added, state="running", run_id="r1"), event)
    assert running is not None
    assert retrainings.update(replace(added, state="failed"), event) is None
    assert retrainings.get(added.id) == running
    # The PostgreSQL server is shared by tests.
    actions = [entry.action for entry in store.events("flights")]
    assert [action for action in actions if action.startswith("retrain.")] == ["retrain.run"]


def test_ended_retraining_is_never_updated(retrainings):
    ended = retrainings.update(replace(add(retrainings), state="left", ended_at=NOON))
    assert not ended.is_live
    assert retrainings.update(replace(ended, state="running", ended_at=None)) is None
