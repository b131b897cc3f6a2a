"""Retrainings with unsuitable rows or versions end with a clear reason and do not block
the next retraining.
"""

import hashlib
import os
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.tags import GATE_POLICY_TAG
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import SampleSpec
from mlflow_deploy_plugin.core.store.tables import RetrainingFigures
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.ship.deployments.config import configure
from mlflow_deploy_plugin.watch.retraining import training
from mlflow_deploy_plugin.watch.retraining.plan import plan_for, plan_of
from mlflow_deploy_plugin.watch.retraining.process import MARK
from mlflow_deploy_plugin.watch.retraining.training import (
    collect_training_data,
    end_training,
    select_rows,
)
from mlflow_deploy_plugin.watch.retraining.trigger import request_retraining
from tests.support.inference_log import ENDPOINT, MODEL
from tests.support.refusals import mentions, refused
from tests.support.retraining import DAY, RetrainingWorld, written


@pytest.fixture
def world(world):
    """A world with a quick gate, in which no retraining blocks the next one."""
    MlflowClient().set_registered_model_tag(MODEL, GATE_POLICY_TAG, "skip: [robustness, budget]")
    yield world
    world.monitor()
    assert request_retraining(world.deployments, ENDPOINT, why="the next").state == "waiting"


def world_of_a_log(folder):
    """Return a world that has only an inference log."""
    deployments: Any = SimpleNamespace(settings=Settings(home=folder))
    return RetrainingWorld(folder, deployments, [])


@pytest.fixture
def logged(tmp_path):
    return world_of_a_log(tmp_path)


def history(world):
    """Return the outcome in the last event, and its reason."""
    last = next(world.deployments.store.events(ENDPOINT, newest_first=True))
    assert last.action == "retrain.end"
    return last.after, last.why


def test_few_labelled_rows_are_refused(world):
    world.capture(share_labelled=0.1)
    assert world.retrain_on_result()
    failed = world.take()
    assert history(world) == ("failed", failed.reason)
    assert mentions(failed.reason, "60 labelled rows", "100")
    assert not failed.has_trained


def test_labels_of_one_class_are_refused(world):
    world.capture(change=lambda rows: {**rows, "label": np.ones_like(rows["label"])})
    assert world.retrain_on_result()
    failed = world.take()
    assert history(world) == ("failed", failed.reason)
    assert mentions(failed.reason, "600 labels", "2026-06-02", "'1'")


@pytest.mark.long
def test_incomparable_version_is_only_proposed(world):
    running = world.at("running", then="rollout")
    world.register(running.run_id)
    MlflowClient().set_terminated(running.run_id)
    proposed = world.until("proposed", "rolling_out", "failed", "left")
    assert history(world) == ("proposed", proposed.reason)
    assert mentions(proposed.reason, "lack a column")


def test_remaining_process_of_a_project_is_ignored(world):
    running = world.at("running")
    left_behind = subprocess.Popen(["sleep", "600"], env=os.environ | {MARK: running.run_id})
    try:
        version = world.register(running.run_id)
        MlflowClient().set_terminated(running.run_id)
        registered = world.take()
    finally:
        left_behind.kill()
        left_behind.wait()
    assert registered.state == "registered"
    assert registered.version == version
    world.context.fail(registered, "the test ends here")


def test_unregistered_model_is_named(world):
    running = world.at("running")
    client = MlflowClient()
    model = client.create_logged_model(client.get_run(running.run_id).info.experiment_id)
    client.log_outputs(running.run_id, [LoggedModelOutput(model.model_id, 0)])
    client.set_terminated(running.run_id)
    failed = world.take()
    assert history(world) == ("failed", failed.reason)
    assert mentions(failed.reason, "logged a model", "registered_model")


def log(world):
    return open_log(world.deployments.settings.inference_log)


def collected_rows(world, mode="incremental", types=None, withheld=()):
    """Return the data of a training for the window `DAY`."""
    retrain = world.spec(mode=mode).retrain
    plan = plan_for(retrain, ENDPOINT, MODEL, "1", "1d", DAY, "ada")
    return collect_training_data(log(world), plan, world.folder / "window", types or {}, withheld)


def test_incremental_training_holds_out_newest_rows(logged):
    logged.capture()
    logged.capture(start=DAY.start - timedelta(days=1), seed=2)
    collected = collected_rows(logged)
    assert collected.held_out
    learned = written(collected.data)
    held_out = written(collected.held_out)
    assert learned.column_names == ["a", "b", "_event_time", "_label", "_label_number"]
    assert collected.rows == len(learned)
    assert collected.held_out_rows == len(held_out)
    assert collected.digest == hashlib.sha256(collected.data.read_bytes()).hexdigest()
    assert collected.rows + collected.held_out_rows == 600
    assert 0.15 < collected.held_out_rows / 600 < 0.25
    assert max(learned.column("_event_time").to_pylist()) < min(
        held_out.column("_event_time").to_pylist()
    )
    assert set(held_out.column(collected.target).to_pylist()) == {0.0, 1.0}


def test_full_training_has_all_earlier_rows(logged):
    for start in (DAY.start - timedelta(days=1), DAY.start, DAY.end):
        logged.capture(rows=120, start=start)
    collected = collected_rows(logged, mode="full")
    times = written(collected.data).column("_event_time").to_pylist()
    assert collected.rows + collected.held_out_rows == 240
    assert min(times) == DAY.start - timedelta(days=1)
    assert max(times) < DAY.end


def test_masked_column_prevents_a_hold_out(logged):
    logged.capture()
    collected = collected_rows(logged, types={"a": "double", "b": "double"}, withheld=["b"])
    assert written(collected.data).column_names == ["a", "_event_time", "_label", "_label_number"]
    assert collected.held_out is None
    assert collected.rows == 600


def test_optional_column_may_be_missing(logged):
    """The column is optional in a pyfunc, so the log may lack it."""
    logged.capture()

    collected = collected_rows(logged, types={"a": "double", "b": "double", "c": "double"})

    assert collected.held_out is not None


@pytest.mark.parametrize("field", [pytest.param("mask", marks=pytest.mark.long), "keys"])
def test_withheld_columns_are_not_learned(world, field):
    store = world.deployments.store
    # No server is started.
    spec = configure(store.require_endpoint(ENDPOINT).spec, {f"capture.{field}": "b"})
    store.replace_spec(spec)
    world.capture()
    assert world.retrain_on_result(world.spec(parameters={"does": "nothing"}))

    running = world.take()

    end_training(running)
    world.context.fail(running, "nothing more is to be seen")
    (data,) = world.context.folder(running).rglob("data.parquet")
    assert "b" not in written(data).column_names
    (begun,) = (event for event in store.events(ENDPOINT) if event.action == "retrain.run")
    assert mentions(begun.why, "without b", "capture.mask")


def test_training_rows_have_signature_types(logged):
    logged.capture(change=lambda rows: {**rows, "a": np.round(rows["a"]).astype(np.float32)})
    types = {"a": "long", "b": "double"}
    collected = collected_rows(logged, types=types)
    schema = written(collected.data).schema
    assert {name: str(schema.field(name).type) for name in types} == {"a": "int64", "b": "double"}


def test_newest_rows_of_one_class_are_learned(logged):
    def newest_alike(rows):
        return {**rows, "label": np.where(np.arange(600) < 400, rows["label"], 1)}

    logged.capture(change=newest_alike)
    collected = collected_rows(logged)
    assert collected.held_out is None
    assert collected.rows == 600


def test_rows_of_a_failed_training_are_kept(world):
    outcomes = [
        ("failed", {"1-1", "1-2"}),
        ("failed", {"2-1", "2-2"}),
        ("left", set()),
    ]
    for state, remaining in outcomes:
        retraining = world.retrainings.add(ENDPOINT, "accuracy", MODEL, {"why": "a test"}, {})
        for attempt in (1, 2):  # The first attempt was killed.
            last = replace(retraining, figures=RetrainingFigures(attempt=attempt))
            folder = world.context.folder(last)
            folder.mkdir(parents=True)
            for name in ("data.parquet", "held_out.parquet", "log.txt"):
                (folder / name).touch()
        world.context.end(last, state, "it was no better")
        home = folder.parent
        assert {path.parent.name for path in home.rglob("*.parquet")} == remaining
        assert len(list(home.rglob("log.txt"))) == 2 * retraining.id


def sampled(world, folder="material", **sample):
    """Return the data of an incremental training with this sample of the rows before
    the window.
    """
    retrain = world.spec(mode="incremental", sample={"recent": "3d", **sample}).retrain
    plan = plan_for(retrain, ENDPOINT, MODEL, "1", "1d", DAY, "ada")
    return collect_training_data(log(world), plan, world.folder / folder, {})


def times_of(data):
    return [
        time for time in written(data.data).column("_event_time").to_pylist() if time < DAY.start
    ]


@pytest.fixture(scope="module")
def log_of_four_days(tmp_path_factory):
    """600 labelled rows on the day of the window and on each of the three days before
    it; `b` is an integer.
    """
    logged = world_of_a_log(tmp_path_factory.mktemp("four_days"))
    for days in range(4):
        logged.capture(
            start=DAY.start - timedelta(days=days),
            seed=days + 1,
            change=lambda rows: {**rows, "b": np.abs(np.round(2 * rows["b"]))},
        )
    return logged.deployments.settings.inference_log


@pytest.fixture
def four_days(logged, log_of_four_days):
    shutil.copytree(log_of_four_days, logged.deployments.settings.inference_log)
    return logged


@pytest.fixture
def busy_world(world, log_of_four_days):
    shutil.copytree(log_of_four_days, world.deployments.settings.inference_log)
    return world


def test_sample_adds_recent_rows_to_the_window(four_days):
    plain = collected_rows(four_days)

    data = sampled(four_days, fraction=0.2)

    older = times_of(data)
    # The last 3 days before the end of the window.
    assert data.sample == {"rows": 1200, "selected": len(older)}
    assert 0.15 < len(older) / 1200 < 0.25
    assert min(older) >= DAY.end - timedelta(days=3)
    assert data.rows == plain.rows + len(older)
    assert plain.held_out
    assert data.held_out
    assert written(data.held_out) == written(plain.held_out)


def test_sample_is_stable_with_late_rows(four_days):
    first = sampled(four_days, "first", fraction=0.2, weight="1d")
    four_days.capture(rows=60, start=DAY.start - timedelta(hours=30), seed=9)

    later = sampled(four_days, "later", fraction=0.2, weight="1d")
    assert later.sample["rows"] == first.sample["rows"] + 60
    assert set(written(first.data).column("a").to_pylist()) <= set(
        written(later.data).column("a").to_pylist()
    )


def test_fraction_is_of_the_limited_rows(four_days, monkeypatch):
    monkeypatch.setattr(training, "MAX_ROWS", 400)

    data = sampled(four_days, fraction=0.2)

    assert data.sample["rows"] == 400
    assert 0.1 < data.sample["selected"] / 400 < 0.3


def test_long_window_has_no_sample(four_days):
    retrain = four_days.spec(mode="incremental", sample={"recent": "2d"}).retrain
    week = Window(DAY.end - timedelta(days=7), DAY.end)
    plan = plan_for(retrain, ENDPOINT, MODEL, "1", "1d", week, "ada")

    data = collect_training_data(log(four_days), plan, four_days.folder / "material", {})

    assert data.sample == {"rows": 0, "selected": 0}
    assert data.rows + data.held_out_rows == 2400


def test_rows_masked_before_the_window_are_refused(logged):
    logged.capture()
    hashes = np.array([f"{number:016x}" for number in range(600)])
    logged.capture(start=DAY.start - timedelta(days=1), change=lambda rows: {**rows, "b": hashes})
    with refused(
        InvalidConfig, "Field b", "string", "double", "2026-06-01", "retrain.sample.recent"
    ):
        sampled(logged)


def rows_before(until, hours, **columns):
    """Return a row of the log for each age in hours."""
    times = pa.array([until - timedelta(hours=age) for age in hours], pa.timestamp("us", tz="UTC"))
    identity = {
        "_segment": ["s"] * len(hours),
        "_offset": list(range(len(hours))),
        "_row": [0] * len(hours),
    }
    return pa.table({**identity, "_event_time": times, **columns})


@pytest.mark.parametrize(
    ("values", "column", "names"),
    [
        ([[1.0, 2.0]], "image", ["list"]),
        ([b"\xff\xfe"], "image", ["binary"]),
        (list(range(201)), "image", ["201 values", "200"]),
        ([1], "_labl", ["missing", "or _label"]),
    ],
    ids=["a list", "bytes that are not a text", "many values", "no column"],
)
def test_unsuitable_stratum_is_refused(values, column, names):
    rows = rows_before(DAY.end, [1] * len(values), image=values)
    with refused(InvalidConfig, "retrain.sample.stratify", repr(column), *names):
        select_rows(rows, SampleSpec(recent="3d", stratify=column), DAY.end)


@pytest.mark.parametrize(("fraction", "age"), [(0.1, 0), (0.5, 24), (1.0, 48)])
def test_fraction_halves_per_half_life(fraction, age):
    count = 20_000
    probability = fraction / 2 ** (age / 24)
    rows = rows_before(DAY.end, [age] * count, value=["x"] * count)

    plain, strata = (
        select_rows(rows, SampleSpec(recent="3d", weight="1d", fraction=fraction, **more), DAY.end)
        for more in ({}, {"stratify": "value"})
    )

    expected = count * probability
    assert len(plain) == pytest.approx(expected, abs=4 * (expected * (1 - probability)) ** 0.5)
    assert len(strata) == expected


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=60),
    st.floats(0.01, 1),
    st.randoms(),
)
def test_selection_is_independent_of_row_order(values, fraction, random):
    rows = rows_before(DAY.end, [1] * len(values), value=pa.array(values, pa.string()))
    order = random.sample(range(len(values)), len(values))
    sample = SampleSpec(recent="3d", fraction=fraction, stratify="value")

    selected = select_rows(rows, sample, DAY.end)
    reordered = select_rows(rows.take(order), sample, DAY.end)

    assert sorted(selected.column("_offset").to_pylist()) == sorted(
        reordered.column("_offset").to_pylist()
    )
    counts = Counter(selected.column("value").to_pylist())
    for value, count in Counter(values).items():
        assert counts[value] >= 1
        # The share is rounded up.
        assert counts[value] - count * fraction == pytest.approx(0.5, abs=0.5 + 1e-9)


def test_sample_is_recorded(busy_world):
    fields = {"recent": "3d", "fraction": 0.2, "stratify": "_label"}
    sample = {f"sample.{name}": value for name, value in fields.items()}
    busy_world.monitor(**{"mode": "incremental", "parameters.does": "nothing", **sample})
    request_retraining(busy_world.deployments, ENDPOINT, window=DAY)

    running = busy_world.take()

    end_training(running)
    busy_world.context.fail(busy_world.latest(), "the test ends here")
    record = mlflow.artifacts.load_dict(f"runs:/{running.run_id}/retraining/sample.json")
    assert record["sample"] == fields | {"weight": None}
    assert (record["window"], record["rows"]) == (str(DAY), 1200)
    assert record["data_digest"] == running.figures.data_digest
    events = busy_world.deployments.store.events(ENDPOINT)
    (event,) = (event for event in events if event.action == "retrain.run")
    assert event.detail["sample"] == record["sample"]
    assert mentions(event.why, f"{record['selected']:,} of 1,200")


def test_manual_full_training_ignores_the_sample(world):
    world.monitor(**{"mode": "incremental", "sample.recent": "3d"})

    requested = request_retraining(world.deployments, ENDPOINT, mode="full", window=DAY)

    assert (plan_of(requested).mode, plan_of(requested).sample) == ("full", None)
    world.context.fail(requested, "the test ends here")
