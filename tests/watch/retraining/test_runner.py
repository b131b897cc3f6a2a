"""Retrainings under a real controller that is killed repeatedly."""

import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.store.tables import RetrainingRow
from mlflow_deploy_plugin.watch.retraining import process
from tests.support.inference_log import ENDPOINT, MODEL
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

PATIENCE = 120.0


def start_controller(world):
    command = [
        sys.executable,
        "-m",
        "mlflow_deploy_plugin.cli",
        "controller",
        "--lease-seconds",
        "1",
    ]
    with (world.folder / "controller.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ.copy())


def _has_come_to(world, state):
    return world.latest().state == state or not world.latest().is_live


@pytest.mark.long
def test_a_controller_that_is_killed_in_any_state_leaves_nothing_undone_and_nothing_doubled(world):
    world.capture()
    spec = world.spec(parameters={"does": "wait"})
    assert world.retrain_on_result(spec) is not None
    for state in ("running", "registered", "gated"):
        controller = start_controller(world)
        try:
            wait_until(
                partial(_has_come_to, world, state),
                PATIENCE,
                (
                    f"the retraining is {state}; "
                    f"{(world.folder / 'controller.log').read_text()[-2000:]}"
                ),
            )
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


@pytest.mark.parametrize("state", ["waiting", "running", "registered", "gated"])
def test_a_retraining_whose_plan_cannot_be_read_ends_with_one_clear_line(world, state):
    started = world.at(state)
    with world.deployments.store.transaction() as session:
        row = session.get(RetrainingRow, started.id)
        assert row is not None
        row.spec = {name: value for name, value in row.spec.items() if name != "project"} | {
            "sampling": "often"
        }

    ended = world.take()

    reason = (
        "its plan in the store cannot be read (project: Field required; sampling: Unexpected "
        "keyword argument)"
    )
    assert ended.state == "failed"
    assert ended.reason == f"{reason}: `onnxserve retrain run {ENDPOINT}` starts a new retraining"
    assert mentions(
        world.said[-1], ENDPOINT, f"retraining {ended.id}", MODEL, "failed", ended.reason
    )
    assert next(world.deployments.store.events(ENDPOINT, newest_first=True)).action == "retrain.end"
    assert state == "waiting" or process.get_run(ended.run_id).status == "KILLED"


def test_a_rollout_of_a_retraining_whose_plan_cannot_be_read_is_followed_to_its_end(world):
    started = world.at("rolling_out", version="2")
    world.divide_traffic()
    (rollout,) = world.deployments.store.rollouts(ENDPOINT)
    with world.deployments.store.transaction() as session:
        row = session.get(RetrainingRow, started.id)
        assert row is not None
        row.spec = {}
        row.rollout_id = rollout.id
    world.deployments.store.update_rollout(
        replace(rollout, state="promoted", ended_at=world.deployments.store.now()), None
    )

    assert world.take().state == "promoted"
