"""Retrainings under a real controller that is killed repeatedly."""

import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import chain

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.core.store.database import utc_now
from mlflow_deploy_plugin.core.store.tables import EndpointRow, RetrainingFigures, RetrainingRow
from mlflow_deploy_plugin.watch.retraining import process
from mlflow_deploy_plugin.watch.retraining.plan import RetrainingContext
from mlflow_deploy_plugin.watch.retraining.runner import (
    MAX_DEFECTS,
    RetrainingRunner,
    start_rollouts_at,
)
from mlflow_deploy_plugin.watch.retraining.trigger import request_retraining
from tests.support.inference_log import ENDPOINT, MODEL
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at
from tests.support.waiting import free_port, wait_until

PATIENCE = 120.0


def start_controller(world):
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "controller"]
    with (world.folder / "controller.log").open("ab") as log:
        return subprocess.Popen([*command, "--lease-seconds", "1"], stdout=log, stderr=log)


def _has_come_to(world, state):
    return world.latest().state == state or not world.latest().is_live


@pytest.mark.long
def test_retraining_survives_killed_controllers(world):
    world.capture()
    spec = world.spec(parameters={"does": "wait"})
    assert world.retrain_on_result(spec)
    for state in ("running", "registered", "gated"):
        controller = start_controller(world)
        try:
            log = (world.folder / "controller.log").read_text()[-2000:]
            what = f"the retraining is {state}; {log}"
            wait_until(partial(_has_come_to, world, state), PATIENCE, what)
            if state == "running":
                wait_until(
                    lambda: process.is_alive(world.latest().run_id), PATIENCE, "the project runs"
                )
        finally:
            controller.send_signal(signal.SIGKILL)
            controller.wait()
        (world.project / "go").touch()  # The training continues without a controller.
    controller = start_controller(world)
    try:
        wait_until(lambda: not world.latest().is_live, PATIENCE, "the retraining ends")
    finally:
        controller.terminate()
        controller.wait()
    ended = world.latest()
    assert (ended.state, ended.version) == ("proposed", "2"), ended.reason
    assert [
        str(model_version.version)
        for model_version in MlflowClient().search_model_versions(f"name = '{MODEL}'")
    ] == ["2", "1"]
    events = Counter(event.action for event in world.deployments.store.events(ENDPOINT))
    links = ("retrain.start", "retrain.run", "retrain.version", "retrain.end")
    assert {action: events[action] for action in links} == dict.fromkeys(links, 1)


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_unreadable_plan_fails_the_retraining(world, state):
    started = world.at(state)
    with world.deployments.store.transaction() as session:
        row = session.get(RetrainingRow, started.id)
        others = {name: value for name, value in row.spec.items() if name != "project"}
        row.spec = others | {"sampling": "often"}

    ended = world.take()

    assert ended.state == "failed"
    assert mentions(ended.reason, "project", "sampling", f"`onnxserve retrain run {ENDPOINT}`")
    assert mentions(world.said[-1], ENDPOINT, MODEL, "failed", ended.reason)
    assert next(world.deployments.store.events(ENDPOINT, newest_first=True)).action == "retrain.end"
    assert state == "waiting" or process.get_run(ended.run_id).status == "KILLED"


def test_rollout_of_an_unreadable_plan_is_followed(world):
    started = world.at("rolling_out", version="2")
    world.divide_traffic()
    (rollout,) = world.deployments.store.rollouts(ENDPOINT)
    with world.deployments.store.transaction() as session:
        row = session.get(RetrainingRow, started.id)
        row.spec = {}
        row.rollout_id = rollout.id
    world.deployments.store.update_rollout(
        replace(rollout, state="promoted", ended_at=world.deployments.store.now()), None
    )

    assert world.take().state == "promoted"


def gated(world, then, **figures):
    version = world.register()
    verdict = {"gate": "passed", "gate_reason": "all good", "against": "1", "gated_at": utc_now()}
    return world.at("gated", version, then, **verdict | figures)


def told(world):
    return list(
        chain.from_iterable(
            alert.detail["lines"] for alert in Alerts(world.deployments.store).recent()
        )
    )


def spoil(world):
    """Store a spec with fields of a newer version of onnxserve, which this version
    cannot read.
    """
    with world.deployments.store.transaction() as session:
        row = session.get(EndpointRow, ENDPOINT)
        row.spec += "sampling: often\n"


def test_version_waits_then_is_proposed(world):
    gated(world, "rollout", gate="passed without an evaluation")
    (world.deployments.settings.deployments_path / ENDPOINT).mkdir(parents=True)
    waiting = world.take()
    assert waiting.state == "gated"
    assert mentions(waiting.reason, "waiting", ENDPOINT, "the server is gone")
    world.ahead = timedelta(hours=2)
    proposed = world.take()
    assert proposed.state == "proposed"
    assert mentions(proposed.reason, "without an evaluation", "all good")
    assert mentions(proposed.reason, f"`onnxserve rollout start {ENDPOINT} --to 2`")
    assert any(mentions(line, "version 2", "proposed") for line in told(world))


def test_rollout_needs_the_controller_of_the_server(world):
    gated(world, "rollout")
    assert mentions(world.take().reason, "waiting", "cannot reach")
    start_rollouts_at(RetrainingContext(world.deployments, "controller@away"), "elsewhere")
    assert "cannot reach" in world.latest().reason

    (world.deployments.settings.deployments_path / ENDPOINT).mkdir(parents=True)
    start_rollouts_at(RetrainingContext(world.deployments, "controller@away"), "elsewhere")
    assert "cannot reach" in world.latest().reason
    start_rollouts_at(
        RetrainingContext(world.deployments, "controller@beside"), world.deployments.place(ENDPOINT)
    )

    assert mentions(world.latest().reason, "waiting", ENDPOINT, "the server is gone")


def test_version_without_a_controller_is_proposed(world):
    gated(world, "rollout")
    proposed = later(world, hours=2)
    assert proposed.state == "proposed"
    assert mentions(proposed.reason, "cannot reach", "no controller")


def test_served_version_is_promoted(world):
    gated(world, "rollout")
    MlflowClient().set_registered_model_alias(MODEL, "champion", "2")
    promoted = world.take()
    assert promoted.state == "promoted"
    assert mentions(promoted.reason, "already")


@pytest.mark.parametrize("then", ["rollout", "propose"])
def test_version_is_judged_again_after_promotion(world, then):
    gated(world, then)
    world.register()
    MlflowClient().set_registered_model_alias(MODEL, "champion", "3")
    again = world.take()
    assert again.state == "registered"
    assert mentions(again.reason, "version 3", "compared with 1")


def test_endpoint_with_another_model_is_left(world):
    gated(world, "rollout")
    world.serve_model("other")
    left = world.take()
    assert left.state == "left"
    assert mentions(left.reason, f"'{ENDPOINT}'", "other", MODEL)


def test_version_waits_for_another_rollout(world):
    gated(world, "rollout")
    world.divide_traffic()
    waiting = world.take()
    assert waiting.state == "gated"
    assert mentions(waiting.reason, "waiting", "rollout 1")


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_retraining_of_a_deleted_endpoint_fails(world, state):
    begun = world.at(state)
    world.deployments.store.remove_endpoint(ENDPOINT)
    failed = world.take()
    assert failed.state == "failed"
    assert mentions(failed.reason, f"'{ENDPOINT}'", "deleted")
    if begun.run_id:
        assert MlflowClient().get_run(begun.run_id).info.status == "KILLED"


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_retraining_waits_for_a_readable_spec(world, state):
    world.at(state)
    spoil(world)
    waiting = world.take()
    assert waiting.state == state
    assert mentions(waiting.reason, f"'{ENDPOINT}'", "the store", "cannot be read")


def test_timeout_applies_with_unreadable_spec(world):
    long_ago = utc_now() - timedelta(days=1)
    world.at("running", started_at=long_ago)
    spoil(world)
    failed = world.until("failed", seconds=5)
    assert mentions(failed.reason, "21600 s")
    assert any(mentions(line, failed.reason) for line in told(world))


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_retraining_waits_while_mlflow_is_down(world, monkeypatch, state):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    world.at(state)
    with tracking_at(f"http://127.0.0.1:{free_port()}"):
        waiting = world.take()
    assert waiting.state == state
    assert mentions(waiting.reason, "connection refused")


ELSEWHERE = {"host": "another 1a2b3c4d"}


def later(world, **time):
    world.ahead = timedelta(**time)
    taken = world.take()
    world.ahead = timedelta()
    return taken


def test_training_elsewhere_is_awaited_with_heartbeats(world):
    running = world.at("running", **ELSEWHERE)
    process.write_heartbeat(running.run_id, utc_now() + timedelta(minutes=30))
    waiting = later(world, minutes=31)
    assert waiting.state == "running"
    assert waiting.reason == "the training runs on another 1a2b3c4d"
    world.register(running.run_id)
    MlflowClient().set_terminated(running.run_id)
    assert world.take().state == "registered"
    assert world.latest().version == "2"


@pytest.mark.parametrize("says", ["it runs", "nothing ever"])
def test_training_without_heartbeats_is_restarted(world, says):
    running = world.at("running", **ELSEWHERE)
    if says == "it runs":
        process.write_heartbeat(running.run_id, utc_now())
    silent = later(world, minutes=3)
    assert silent.state == "running"
    assert mentions(silent.reason, "another 1a2b3c4d")
    assert later(world, minutes=3, seconds=20).state == "running"  # MLflow may have been down.
    again = later(world, minutes=3, seconds=40)
    assert again.state == "waiting"
    assert again.figures == RetrainingFigures(attempt=2)
    assert MlflowClient().get_run(running.run_id).info.status == "KILLED"


def test_newest_of_two_versions_is_the_candidate(world):
    running = world.at("running")
    for _ in range(2):
        world.register(running.run_id)
    MlflowClient().set_terminated(running.run_id)
    assert world.take().state == "registered"
    assert world.latest().version == "3"


def test_version_of_a_nested_run_is_found(world):
    running = world.at("running")
    experiment = MlflowClient().get_run(running.run_id).info.experiment_id
    nested = MlflowClient().create_run(experiment, tags={"mlflow.parentRunId": running.run_id})
    world.register(nested.info.run_id)
    MlflowClient().set_terminated(running.run_id)
    assert world.take().state == "registered"
    assert world.latest().version == "2"


def test_last_log_line_is_found_without_secrets(tmp_path):
    line = "Error: git clone https://{}git.example/x.git has failed"
    with (tmp_path / process.LOG).open("wb") as log:
        log.write(b"chatter\n" * 1000)
        log.truncate(5 * 2**30)  # The file is sparse.
        log.seek(0, 2)
        log.write(f"\n{line.format('ada:secret@')}\n".encode())
    assert process.last_line(tmp_path) == line.format("")


def test_missing_project_is_reported_before_training(world):
    world.monitor()
    world.at("waiting")
    (world.project / "MLproject").rename(world.project / "MLproject.yaml")
    with pytest.raises(InvalidConfig, match="has no MLproject"):
        request_retraining(world.deployments, ENDPOINT)
    failed = world.take()
    assert failed.state == "failed"
    assert "has no MLproject" in failed.reason
    assert any("has no MLproject" in line for line in told(world))


def test_repeated_unexpected_errors_fail_the_retraining(world):
    broken = replace(world.at("running"), state="of a newer version")
    runner = RetrainingRunner(world.context, retry_seconds=0)
    for attempt in range(MAX_DEFECTS):
        assert world.latest().is_live, attempt
        runner.start(broken)
        wait_until(lambda: runner.work.is_free(broken.id), 30, "the attempt has failed")
    assert world.latest().state == "failed"
    assert world.latest().reason.startswith("KeyError: ")
