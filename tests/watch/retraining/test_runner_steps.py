"""A retraining from the alarm to its end, with a real `mlflow run`, a real registry and
the real gate.
"""

from functools import partial
from itertools import chain

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


def story(world):
    events = [
        *world.deployments.store.events(ENDPOINT),
        *world.deployments.store.events(None, MODEL),
    ]
    actions = {
        id: event.action for id, event in enumerate(sorted(events, key=lambda event: event.at))
    }
    return list(
        dict.fromkeys(
            action for action in actions.values() if action.startswith(("retrain", "gate"))
        )
    )


@pytest.mark.long
def test_an_alarm_becomes_a_version_that_is_proposed_and_every_link_is_written_down(world):
    begin(world)
    proposed = world.until("proposed", "failed", "left")
    assert proposed.state == "proposed", proposed.reason
    assert proposed.version == "2"
    tags = MlflowClient().get_model_version(MODEL, "2").tags
    assert tags["onnxserve.candidate"] == "proposed"
    assert tags["onnxserve.parent"] == f"models:/{MODEL}/1"
    assert tags["onnxserve.cause"].startswith("monitor accuracy, 2026-06-01")
    assert tags["onnxserve.gate"] == "passed"
    run = MlflowClient().get_run(proposed.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["onnxserve.cause.run_id"] == "run-of-the-report"
    assert run.data.params["base_model"] == f"models:/{MODEL}/1"
    assert story(world) == [
        "retrain.start",
        "retrain.run",
        "retrain.version",
        "gate",
        "retrain.end",
    ]
    assert [file.name for file in world.context.folder(proposed).iterdir()] == ["log.txt"]
    lines = list(
        chain.from_iterable(
            alert.detail["lines"] for alert in Alerts(world.deployments.store).recent()
        )
    )
    assert any(line.startswith(f"{ENDPOINT}: {MODEL} version 2 is proposed") for line in lines)
    assert (
        proposed.figures.evaluation["accuracy_candidate"]
        > proposed.figures.evaluation["accuracy_current"]
    )


@pytest.mark.long
def test_a_version_that_is_worse_on_the_newest_rows_is_left(world):
    begin(world, "worse")
    left = world.until("proposed", "failed", "left")
    assert left.state == "left"
    assert mentions(left.reason, "gate", "evaluation")
    assert MlflowClient().get_model_version(MODEL, "2").tags["onnxserve.candidate"] == "left"


@pytest.mark.long
def test_a_run_that_fails_is_not_begun_again_and_its_last_line_is_the_reason(world):
    begin(world, "fail")
    failed = world.until("failed")
    assert mentions(failed.reason, "failed", "the data make no sense")
    assert len(MlflowClient().search_runs([run_experiment(failed.run_id)])) == 1


@pytest.mark.long
def test_a_run_that_registers_nothing_has_failed(world):
    begin(world, "nothing")
    assert mentions(world.until("failed").reason, "no version", MODEL, "`mlflow.start_run()`")


def _is_gone(run_id):
    return not process.is_alive(run_id)


@pytest.mark.long
def test_a_run_that_is_killed_is_begun_once_more(world):
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
def test_a_run_that_takes_too_long_is_ended_with_all_its_processes(world):
    begin(world, "hang", timeout="8s")
    run_id = world.until("running").run_id
    wait_until(lambda: said(world), 90, "the project runs")
    family = [psutil.Process(pid) for pid in process._processes(run_id)]
    assert len(family) >= 2
    failed = world.until("failed")
    assert mentions(failed.reason, "8 s")
    assert not any(process.is_running() and process.status() != "zombie" for process in family)
    assert MlflowClient().get_run(run_id).info.status == "KILLED"


@pytest.mark.long
def test_a_training_ends_by_itself_where_its_run_is_ended_from_another_machine(world):
    begin(world, "hang")
    run_id = world.until("running").run_id
    wait_until(
        lambda: said(world) and process.get_run(run_id).alive_at,
        90,
        "the project runs, and says so",
    )
    MlflowClient().set_terminated(run_id, "KILLED")
    wait_until(lambda: not process.is_alive(run_id), 60, "it has ended")


def said(world):
    log = world.context.folder(world.latest()) / process.LOG
    return log.is_file() and mentions(log.read_text(), "data.parquet", "full")


def run_experiment(run_id):
    return str(MlflowClient().get_run(run_id).info.experiment_id)
