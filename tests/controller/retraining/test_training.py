"""Retrainings with unsuitable rows or versions end with a clear reason and do not block the next retraining."""

import hashlib
import os
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput

from mlflow_deploy_plugin.controller.retraining.plan import RetrainingState, RetrainPlan, plan_for
from mlflow_deploy_plugin.controller.retraining.process import MARK
from mlflow_deploy_plugin.controller.retraining.training import collect_training_data, end_training
from mlflow_deploy_plugin.controller.retraining.trigger import request_retraining, retrain_on_alarm
from mlflow_deploy_plugin.deployments.config import configure
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.inference_log import InferenceLog, open_log
from mlflow_deploy_plugin.registry.tags import GATE_POLICY_TAG
from mlflow_deploy_plugin.store.retrainings import Retraining
from mlflow_deploy_plugin.store.tables import RetrainingFigures
from tests.support.classifiers import labelled
from tests.support.inference_log import ENDPOINT, MODEL
from tests.support.refusals import mentions, refused
from tests.support.retraining import DAY, RetrainingWorld, written


@pytest.fixture(autouse=True)
def quick_gate(world: RetrainingWorld) -> None:
    MlflowClient().set_registered_model_tag(MODEL, GATE_POLICY_TAG, "skip: [robustness, budget]")


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
    """Return the end of a retraining whose project has registered this model."""
    running = world.at("running", dataset=str(rows), target="label")
    world.register(running.run_id, model)
    MlflowClient().set_terminated(running.run_id)
    return world.until("proposed", "left", "failed")


def history(world: RetrainingWorld) -> tuple[str, str]:
    """Return the outcome in the last event, and its reason."""
    last = next(world.deployments.store.events(ENDPOINT, newest_first=True))
    assert last.action == "retrain.end"
    return last.after, last.why


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_no_or_few_labelled_rows(world: RetrainingWorld, share: float) -> None:
    world.capture(share_labelled=share)
    assert retrain_on_alarm(world.deployments, world.result(), world.run(), world.spec()) is not None
    failed = world.take()
    assert history(world) == ("failed", failed.reason)
    assert mentions(failed.reason, f"{share * 600:g} labelled rows", "100")
    assert not failed.has_trained


@pytest.mark.long
def test_half_of_the_labels_missing_leaves_the_others_to_learn(world: RetrainingWorld) -> None:
    world.capture(share_labelled=0.5)
    assert retrain_on_alarm(world.deployments, world.result(), world.run(), world.spec(parameters={"does": "nothing"}))
    running = world.take()
    assert (running.state, running.figures.rows) == ("running", 300)
    failed = world.until("failed")
    assert mentions(failed.reason, "no version", MODEL, "`mlflow.start_run()`")


def test_labels_of_one_class_teach_nothing(world: RetrainingWorld) -> None:
    world.capture(change=lambda rows: {**rows, "label": np.ones_like(rows["label"])})
    assert retrain_on_alarm(world.deployments, world.result(), world.run(), world.spec()) is not None
    failed = world.take()
    assert history(world) == ("failed", failed.reason)
    assert mentions(failed.reason, "600 labels", "2026-06-02", "'1'")


def test_what_could_not_be_compared_is_proposed_and_not_rolled_out(world: RetrainingWorld) -> None:
    running = world.at("running", then="rollout")
    world.register(running.run_id)
    MlflowClient().set_terminated(running.run_id)
    proposed = world.until("proposed", "rolling_out", "failed", "left")
    assert history(world) == ("proposed", proposed.reason)
    assert mentions(proposed.reason, "lack a column")


def test_a_process_that_the_project_has_left_behind_holds_nothing_up(world: RetrainingWorld) -> None:
    running = world.at("running")
    left_behind = subprocess.Popen(["sleep", "600"], env=os.environ | {MARK: running.run_id})
    try:
        version = world.register(running.run_id)
        MlflowClient().set_terminated(running.run_id)
        registered = world.take()
    finally:
        left_behind.kill()
        left_behind.wait()
    assert (registered.state, registered.version) == ("registered", version)
    world.until("proposed")


def test_a_model_that_was_logged_and_not_registered(world: RetrainingWorld) -> None:
    running = world.at("running")
    client = MlflowClient()
    model = client.create_logged_model(client.get_run(running.run_id).info.experiment_id)
    client.log_outputs(running.run_id, [LoggedModelOutput(model.model_id, 0)])
    client.set_terminated(running.run_id)
    failed = world.take()
    assert history(world) == ("failed", failed.reason)
    assert failed.reason.endswith(
        "it logged a model, but its project must register the model under the name in `registered_model`"
    )


@pytest.mark.long
def test_a_version_of_another_signature(world: RetrainingWorld) -> None:
    left = trained(world, "other columns", held_out(world, c=np.zeros(400)))
    assert history(world) == ("left", left.reason)
    assert mentions(left.reason, "gate", "signature", "c (double) added")


def plan(world: RetrainingWorld, mode: str) -> RetrainPlan:
    retrain = world.spec(mode=mode).retrain
    assert retrain is not None
    return plan_for(retrain, ENDPOINT, MODEL, "1", "1d", DAY, "ada")


def log(world: RetrainingWorld) -> InferenceLog:
    return open_log(world.deployments.settings.inference_log)


def test_incremental_learns_the_window_and_holds_its_newest_rows_out(world: RetrainingWorld) -> None:
    world.capture()
    world.capture(start=DAY.start - timedelta(days=1), seed=2)
    found = collect_training_data(log(world), plan(world, "incremental"), world.folder / "material", {})
    assert found.held_out is not None
    learned, held_out = written(found.data), written(found.held_out)
    assert learned.column_names == ["a", "b", "_event_time", "_label", "_label_number"]
    assert (found.rows, found.held_out_rows) == (len(learned), len(held_out))
    assert found.digest == hashlib.sha256(found.data.read_bytes()).hexdigest()
    assert found.rows + found.held_out_rows == 600
    assert 0.15 < found.held_out_rows / 600 < 0.25
    assert max(learned.column("_event_time").to_pylist()) < min(held_out.column("_event_time").to_pylist())
    assert set(held_out.column(found.target).to_pylist()) == {0.0, 1.0}


def test_full_learns_everything_before_the_window_too(world: RetrainingWorld) -> None:
    world.capture()
    world.capture(start=DAY.start - timedelta(days=1), seed=2)
    world.capture(start=DAY.end, seed=3)
    found = collect_training_data(log(world), plan(world, "full"), world.folder / "material", {})
    times = written(found.data).column("_event_time").to_pylist()
    assert found.rows + found.held_out_rows == 1200
    assert min(times) == DAY.start - timedelta(days=1)
    assert max(times) < DAY.end


def test_rows_without_a_label_are_left_out(world: RetrainingWorld) -> None:
    world.capture(share_labelled=0.5)
    found = collect_training_data(log(world), plan(world, "incremental"), world.folder / "material", {})
    assert found.rows + found.held_out_rows == 300


def test_a_masked_column_is_not_learned_and_rows_without_it_judge_no_version(world: RetrainingWorld) -> None:
    world.capture()
    found = collect_training_data(
        log(world), plan(world, "incremental"), world.folder / "material", {"a": "double", "b": "double"}, ["b"]
    )
    assert written(found.data).column_names == ["a", "_event_time", "_label", "_label_number"]
    assert (found.held_out, found.rows) == (None, 600)


def test_rows_without_a_column_that_nobody_sent_judge_a_version(world: RetrainingWorld) -> None:
    """The column is optional in a pyfunc, so the log may lack it."""
    world.capture()

    found = collect_training_data(
        log(world), plan(world, "incremental"), world.folder / "material", {"a": "double", "b": "double", "c": "double"}
    )

    assert found.held_out is not None


def test_what_capture_keeps_from_a_training_is_said(world: RetrainingWorld) -> None:
    store = world.deployments.store
    store.replace_spec(configure(store.require_endpoint(ENDPOINT).spec, {"capture.mask": "b"}))  # No server is started.
    world.capture()
    assert retrain_on_alarm(world.deployments, world.result(), world.run(), world.spec(parameters={"does": "nothing"}))
    running = world.take()
    end_training(running)
    world.context.fail(running, "nothing more is to be seen")
    (last,) = (event for event in world.deployments.store.events(ENDPOINT) if event.action == "retrain.run")
    assert last.why.endswith(", without b: capture.drop or capture.mask removes the values from the log")


def test_a_key_is_not_learned(world: RetrainingWorld) -> None:
    store = world.deployments.store
    store.replace_spec(configure(store.require_endpoint(ENDPOINT).spec, {"capture.keys": "b"}))
    world.capture()
    assert retrain_on_alarm(world.deployments, world.result(), world.run(), world.spec(parameters={"does": "nothing"}))
    running = world.take()
    end_training(running)
    world.context.fail(running, "nothing more is to be seen")
    (data,) = world.context.folder(running).rglob("data.parquet")
    assert "b" not in written(data).column_names


def test_too_few_labels_are_said(world: RetrainingWorld) -> None:
    world.capture(rows=48)
    with refused(InvalidConfig, "48 labelled rows", "100"):
        collect_training_data(log(world), plan(world, "incremental"), world.folder / "material", {})


def test_the_project_is_given_the_signatures_types(world: RetrainingWorld) -> None:
    world.capture(change=lambda rows: {**rows, "a": np.round(rows["a"]).astype(np.float32)})
    types = {"a": "long", "b": "double"}
    found = collect_training_data(log(world), plan(world, "incremental"), world.folder / "material", types)
    schema = written(found.data).schema
    assert {name: str(schema.field(name).type) for name in types} == {"a": "int64", "b": "double"}


def test_newest_rows_with_one_answer_alone_are_no_judges(world: RetrainingWorld) -> None:
    def newest_alike(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**rows, "label": np.where(np.arange(600) < 400, rows["label"], 1)}

    world.capture(change=newest_alike)
    found = collect_training_data(log(world), plan(world, "incremental"), world.folder / "material", {})
    assert (found.held_out, found.rows) == (None, 600)


def test_the_rows_of_a_failed_training_stay_until_the_next_has_ended(world: RetrainingWorld) -> None:
    outcomes: list[tuple[RetrainingState, set[str]]] = [
        ("failed", {"1-1", "1-2"}),
        ("failed", {"2-1", "2-2"}),
        ("left", set()),
    ]
    for state, kept in outcomes:
        one = world.retrainings.add(ENDPOINT, "accuracy", MODEL, {"why": "a test"}, {}, "running")
        # The first attempt was killed.
        attempts = [replace(one, figures=RetrainingFigures(attempt=number)) for number in (1, 2)]
        folders = [world.context.folder(attempt) for attempt in attempts]
        for folder in folders:
            folder.mkdir(parents=True)
            for name in ("data.parquet", "held_out.parquet", "log.txt"):
                (folder / name).touch()
        world.context.end(attempts[-1], state, "it was no better")
        home = folders[0].parent
        assert {path.parent.name for path in home.rglob("*.parquet")} == kept
        assert len(list(home.rglob("log.txt"))) == 2 * one.id
