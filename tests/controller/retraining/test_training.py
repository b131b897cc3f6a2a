"""What comes of rows and versions that are not as they should be: a clear end, and the next one is not blocked."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput

from mlflow_deploy_plugin.controller.retraining.trigger import request_retraining, retrain_on_alarm
from mlflow_deploy_plugin.registry import GATE_POLICY_TAG
from mlflow_deploy_plugin.store.retrainings import Retraining
from tests.support.classifiers import labelled
from tests.support.inference_log import ENDPOINT, MODEL
from tests.support.retraining import RetrainingWorld


@pytest.fixture(autouse=True)
def quick_gate(world: RetrainingWorld) -> None:
    MlflowClient().set_registered_model_tag(MODEL, GATE_POLICY_TAG, "skip: [robustness, budget]")  # which take seconds


@pytest.fixture(autouse=True)
def next_one_is_not_blocked(world: RetrainingWorld) -> Any:
    yield
    world.monitor()
    assert request_retraining(world.deployments, ENDPOINT, why="the next").state == "waiting"


def held_out(world: RetrainingWorld, **columns: Any) -> Path:
    file = world.folder / "held_out.parquet"
    pq.write_table(pa.table({**labelled(400, seed=3), **columns}), file)
    return file


def trained(world: RetrainingWorld, model: str, rows: Path) -> Retraining:
    """The end of a retraining whose project has registered this."""
    running = world.at("running", dataset=str(rows), target="label")
    world.register(running.run_id, model)
    MlflowClient().set_terminated(running.run_id)
    return world.until("proposed", "left", "failed")


def history(world: RetrainingWorld) -> tuple[str, str]:
    """What the last event says has come of it, and why."""
    last = world.deployments.store.events(ENDPOINT)[-1]
    assert last.action == "retrain.end"
    return last.after, last.why


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_no_or_few_labelled_rows(world: RetrainingWorld, share: float) -> None:
    world.capture(share_labelled=share)
    assert retrain_on_alarm(world.deployments, world.result(), world.run(), world.spec()) is not None
    failed = world.take()
    assert history(world) == ("failed", failed.reason)
    assert (
        f"has {share * 600:g} labelled rows, and at least 100 are wanted: send what really happened by" in failed.reason
    )
    assert not failed.has_trained


@pytest.mark.long
def test_half_of_the_labels_missing_leaves_the_others_to_learn(world: RetrainingWorld) -> None:
    world.capture(share_labelled=0.5)
    assert retrain_on_alarm(world.deployments, world.result(), world.run(), world.spec(parameters={"does": "nothing"}))
    running = world.take()
    assert (running.state, running.figures["rows"]) == ("running", 300)
    failed = world.until("failed")
    assert failed.reason == f"the run has registered no version of {MODEL}, and has logged no model"


def test_labels_of_one_class_teach_nothing(world: RetrainingWorld) -> None:
    world.capture(change=lambda rows: {**rows, "label": np.ones_like(rows["label"])})
    assert retrain_on_alarm(world.deployments, world.result(), world.run(), world.spec()) is not None
    failed = world.take()
    assert history(world) == ("failed", failed.reason)
    assert failed.reason == "all 600 labels up to 2026-06-02 are '1': that teaches nothing"


def test_what_could_not_be_compared_is_proposed_and_not_rolled_out(world: RetrainingWorld) -> None:
    running = world.at("running", then="rollout")
    world.register(running.run_id)
    MlflowClient().set_terminated(running.run_id)
    proposed = world.until("proposed", "rolling_out", "failed", "left")
    assert history(world) == ("proposed", proposed.reason)
    assert "too few labelled rows, or of one answer alone, to compare it with what is served" in proposed.reason


def test_a_model_that_was_logged_and_not_registered(world: RetrainingWorld) -> None:
    running = world.at("running")
    client = MlflowClient()
    model = client.create_logged_model(client.get_run(running.run_id).info.experiment_id)
    client.log_outputs(running.run_id, [LoggedModelOutput(model.model_id, 0)])
    client.set_terminated(running.run_id)
    failed = world.take()
    assert history(world) == ("failed", failed.reason)
    assert failed.reason.endswith(
        "it has logged a model, which its project has to register under the name in `registered_model`"
    )


def test_a_version_of_another_signature(world: RetrainingWorld) -> None:
    left = trained(world, "other columns", held_out(world, c=np.zeros(400)))
    assert history(world) == ("left", left.reason)
    assert left.reason.startswith("it has not passed its gate: signature: ")
