"""The rows that are learned, and those that are held out."""

from datetime import timedelta

import numpy as np
import pytest

from mlflow_deploy_plugin.controller.retraining.plan import RetrainPlan, plan_for
from mlflow_deploy_plugin.controller.retraining.training_data import collect_training_data
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.inference_log import InferenceLog, open_log
from tests.support.inference_log import ENDPOINT, MODEL
from tests.support.retraining import DAY, RetrainingWorld, written


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


def test_too_few_labels_are_said(world: RetrainingWorld) -> None:
    world.capture(rows=48)
    with pytest.raises(InvalidConfig, match="has 48 labelled rows, and at least 100 are wanted"):
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
