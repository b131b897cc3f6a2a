"""A retraining from the alarm to its end, with a real `mlflow run`, a real registry and
the real gate.
"""

from functools import partial

import psutil
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.watch.retraining import process
from tests.support.inference_log import ENDPOINT, MODEL
from tests.support.refusals import mentions
from tests.support.waiting import wait_until


def begin(world, does="better", **fields):
    world.capture()
    spec = world.spec(parameters={"does": does}, **fields)
    assert world.retrain_on_result(spec) is not None


@pytest.mark.long
def test_alarm_leads_to_a_proposed_version(world):
    begin(world)
    proposed = world.until("proposed", "failed", "left")
    assert proposed.state == "proposed", proposed.reason
    assert proposed.version == "2"
    tags = MlflowClient().get_model_version(MODEL, "2").tags
    assert tags["onnxserve.cause"].startswith("monitor accuracy, 2026-06-01")
    assert {
        "onnxserve.candidate": "proposed",
        "onnxserve.parent": f"models:/{MODEL}/1",
        "onnxserve.gate": "passed",
        "onnxserve.training.data": proposed.figures.data_digest,
    }.items() <= tags.items()
    run = MlflowClient().get_run(proposed.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["onnxserve.cause.run_id"] == "run-of-the-report"
    assert run.data.params["base_model"] == f"models:/{MODEL}/1"
    actions = [event.action for event in world.deployments.store.events(ENDPOINT)]
    assert actions[-4:] == ["retrain.start", "retrain.run", "retrain.version", "retrain.end"]
    assert [*world.deployments.store.events(None, MODEL, actions=["gate"])]
    assert [file.name for file in world.context.folder(proposed).iterdir()] == ["log.txt"]
    (alert,) = Alerts(world.deployments.store).recent()
    assert mentions(alert.detail["lines"][0], ENDPOINT, MODEL, "version 2 is proposed")
    accuracy = proposed.figures.evaluation
    assert accuracy["accuracy_candidate"] > accuracy["accuracy_current"]


@pytest.mark.long
def test_worse_version_is_left(world):
    begin(world, "worse")
    left = world.until("proposed", "failed", "left")
    assert left.state == "left"
    assert mentions(left.reason, "gate", "evaluation")
    assert MlflowClient().get_model_version(MODEL, "2").tags["onnxserve.candidate"] == "left"


@pytest.mark.long
def test_failed_run_is_not_repeated(world):
    begin(world, "fail")
    failed = world.until("failed")
    assert mentions(failed.reason, "failed", "the data make no sense")
    assert len(MlflowClient().search_runs([run_experiment(failed.run_id)])) == 1


@pytest.mark.long
def test_run_without_a_version_has_failed(world):
    begin(world, "nothing")
    assert mentions(world.until("failed").reason, "no version", MODEL, "`mlflow.start_run()`")


def _is_gone(run_id):
    return not process.is_alive(run_id)


@pytest.mark.long
def test_killed_run_is_repeated_once(world):
    begin(world, "hang")
    killed = []
    for _ in range(2):
        run_id = world.until("running").run_id
        wait_until(lambda: said(world), 90, "the project runs")
        family = [psutil.Process(pid) for pid in process._processes(run_id)]
        for member in sorted(
            family, key=psutil.Process.create_time
        ):  # Parents first: they would report a failure.
            member.kill()
        wait_until(partial(_is_gone, run_id), 30, "it is gone")
        killed.append(run_id)
        world.take()
    failed = world.latest()
    assert failed.state == "failed"
    assert failed.reason.startswith("the run was killed 2 times")
    assert len(set(killed)) == 2
    assert [MlflowClient().get_run(run_id).info.status for run_id in killed] == ["KILLED", "KILLED"]


@pytest.mark.long
def test_timed_out_run_ends_with_its_processes(world):
    begin(world, "hang", timeout="8s")
    run_id = world.until("running").run_id
    wait_until(lambda: said(world), 90, "the project runs")
    family = [psutil.Process(pid) for pid in process._processes(run_id)]
    assert len(family) >= 2
    failed = world.until("failed")
    assert mentions(failed.reason, "8 s")
    assert not any(process.is_running() and process.status() != "zombie" for process in family)
    assert MlflowClient().get_run(run_id).info.status == "KILLED"


def said(world):
    log = world.context.folder(world.latest()) / process.LOG
    return log.is_file() and mentions(log.read_text(), "data.parquet", "full")


def run_experiment(run_id):
    return str(MlflowClient().get_run(run_id).info.experiment_id)
