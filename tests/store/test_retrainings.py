"""Retrainings in the store."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mlflow_deploy_plugin.errors import AlreadyExists
from mlflow_deploy_plugin.store import AuditEvent, Store, open_store
from mlflow_deploy_plugin.store.retrainings import Retraining, Retrainings

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path / 'store.db'}")
    yield opened
    opened.close()


@pytest.fixture
def retrainings(store: Store) -> Retrainings:
    return Retrainings(store, lambda: NOON)


def add(retrainings: Retrainings, model: str = "X", endpoint: str = "flights") -> Retraining:
    return retrainings.add(endpoint, "accuracy", model, {"why": "it is worse"}, {"mode": "full"}, "waiting")


def test_what_is_written_down_is_found_again(retrainings: Retrainings) -> None:
    added = add(retrainings)
    assert retrainings.find("flights", "X") == [added]
    assert retrainings.get(added.id) == added
    assert (added.cause, added.spec, added.created_at) == ({"why": "it is worse"}, {"mode": "full"}, NOON)
    assert retrainings.find("elsewhere") == []
    assert retrainings.get(77) is None


def test_a_model_has_one_live_retraining_and_a_new_one_after_its_end(retrainings: Retrainings) -> None:
    first = add(retrainings)
    with pytest.raises(AlreadyExists, match="model X is being trained already: retraining 1 is waiting"):
        add(retrainings, endpoint="another")
    add(retrainings, model="Y")
    retrainings.update(replace(first, state="failed", ended_at=NOON))
    assert add(retrainings).id == 3
    assert [one.id for one in retrainings.find(live=True)] == [2, 3]


def test_of_two_that_change_it_at_the_same_time_one_does(store: Store, retrainings: Retrainings) -> None:
    added = add(retrainings)
    event = AuditEvent(NOON, "controller", "retrain.run", "flights", "X")
    running = retrainings.update(replace(added, state="running", run_id="r1"), event)
    assert running is not None
    assert retrainings.update(replace(added, state="failed"), event) is None
    assert retrainings.get(added.id) == running
    assert [one.action for one in store.events("flights")] == ["retrain.run"]


def test_what_has_ended_stays_as_it_is(retrainings: Retrainings) -> None:
    ended = retrainings.update(replace(add(retrainings), state="left", ended_at=NOON))
    assert ended is not None
    assert not ended.is_live
    assert retrainings.update(replace(ended, state="running", ended_at=None)) is None
