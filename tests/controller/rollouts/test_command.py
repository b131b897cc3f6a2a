"""What a person is told of a rollout, and what is asked for before one begins."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mlflow_deploy_plugin.controller.loop import LEASE
from mlflow_deploy_plugin.controller.rollouts.command import describe, expect_controller
from mlflow_deploy_plugin.errors import NotReady
from mlflow_deploy_plugin.store import Store, open_store
from support.rollouts import PLAN


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path}/onnxserve.db")
    yield opened
    opened.close()


def test_nothing_begins_without_a_controller_that_is_alive(store: Store) -> None:
    with pytest.raises(NotReady, match="nothing was begun: start `onnxserve controller` first, or say --wait"):
        expect_controller(store, patience=0)

    killed = store.acquire_lease(LEASE, "killed", seconds=0)
    assert killed is not None
    with pytest.raises(NotReady, match="no controller runs"):
        expect_controller(store, patience=0)

    store.release_lease(killed)
    store.acquire_lease(LEASE, "alive", seconds=60)
    expect_controller(store, patience=0)


def test_no_more_than_all_the_evidence_is_shown(store: Store) -> None:
    judged = {"figures": "many requests failed", "log_evidence": 500.0, "log_evidence_needed": 4.9}
    begun = store.add_rollout("flights", PLAN.to_json(), "stepping")

    told = describe(replace(begun, figures={"criteria": {"error_rate>1%": judged}}))

    assert "many requests failed; 100% of the evidence that would end it" in told
