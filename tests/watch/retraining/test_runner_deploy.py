"""Retrainings during changes and failures of their environment. The tests run no
project.
"""

from dataclasses import replace
from datetime import timedelta
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.tags import GATE_POLICY_TAG
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.core.store.database import utc_now
from mlflow_deploy_plugin.core.store.tables import EndpointRow, RetrainingFigures
from mlflow_deploy_plugin.watch.retraining import process
from mlflow_deploy_plugin.watch.retraining.plan import RetrainingContext
from mlflow_deploy_plugin.watch.retraining.runner import (
    MAX_DEFECTS,
    RetrainingRunner,
    start_rollouts_at,
)
from mlflow_deploy_plugin.watch.retraining.trigger import request_retraining
from tests.support.classifiers import labelled
from tests.support.inference_log import ENDPOINT, MODEL
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at
from tests.support.waiting import free_port, wait_until


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
        assert row is not None
        row.spec += "sampling: often\n"


@pytest.mark.long
def test_a_version_is_judged_on_the_rows_held_out_and_proposed(world):
    MlflowClient().set_registered_model_tag(MODEL, GATE_POLICY_TAG, "skip: [robustness, budget]")
    rows = world.folder / "held_out.parquet"
    pq.write_table(pa.table(labelled(400, seed=3)), rows)
    running = world.at("running", dataset=str(rows), target="label", data_digest="5f2a")
    world.register(running.run_id)
    MlflowClient().set_terminated(running.run_id)
    proposed = world.until("proposed", "failed", "left")
    assert proposed.state == "proposed", proposed.reason
    assert (
        proposed.figures.evaluation["accuracy_candidate"]
        > proposed.figures.evaluation["accuracy_current"]
    )
    tags = MlflowClient().get_model_version(MODEL, "2").tags
    assert tags["onnxserve.gate"] == "passed"
    assert tags["onnxserve.candidate"] == "proposed"
    assert tags["onnxserve.parent"] == f"models:/{MODEL}/1"
    assert tags["onnxserve.training.data"] == "5f2a"
    assert tags["onnxserve.cause"].startswith("monitor accuracy, 2026-06-01")
    events = [event.action for event in world.deployments.store.events(ENDPOINT)]
    assert events[-3:] == ["retrain.start", "retrain.version", "retrain.end"]


def test_a_version_waits_for_a_server_that_is_down_and_is_proposed_in_the_end(world):
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


def test_a_version_is_brought_by_the_controller_that_reaches_the_server(world):
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


def test_where_no_controller_reaches_the_server_the_version_is_proposed(world):
    gated(world, "rollout")
    proposed = later(world, hours=2)
    assert proposed.state == "proposed"
    assert mentions(proposed.reason, "cannot reach", "no controller")


def test_a_version_that_somebody_has_brought_already_is_done(world):
    gated(world, "rollout")
    MlflowClient().set_registered_model_alias(MODEL, "champion", "2")
    promoted = world.take()
    assert promoted.state == "promoted"
    assert mentions(promoted.reason, "already")


@pytest.mark.parametrize("then", ["rollout", "propose"])
def test_a_version_is_judged_again_where_another_has_come_into_service_meanwhile(world, then):
    gated(world, then)
    world.register()
    MlflowClient().set_registered_model_alias(MODEL, "champion", "3")
    again = world.take()
    assert again.state == "registered"
    assert mentions(again.reason, "version 3", "compared with 1")


def test_an_endpoint_that_serves_another_model_by_now_is_left_alone(world):
    gated(world, "rollout")
    world.serve_model("other")
    left = world.take()
    assert left.state == "left"
    assert mentions(left.reason, f"'{ENDPOINT}'", "other", MODEL)


def test_another_rollout_is_waited_for_also_while_it_divides_the_traffic(world):
    gated(world, "rollout")
    world.divide_traffic()
    waiting = world.take()
    assert waiting.state == "gated"
    assert mentions(waiting.reason, "waiting", "rollout 1")


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_the_endpoint_is_deleted_meanwhile(world, state):
    begun = world.at(state)
    world.deployments.store.remove_endpoint(ENDPOINT)
    failed = world.take()
    assert failed.state == "failed"
    assert mentions(failed.reason, f"'{ENDPOINT}'", "deleted")
    if begun.run_id:
        assert MlflowClient().get_run(begun.run_id).info.status == "KILLED"


@pytest.mark.parametrize("state", ["waiting", "running", "registered", "gated"])
def test_where_the_spec_of_the_endpoint_cannot_be_read_it_waits_and_says_so(world, state):
    world.at(state, "1" if state in ("registered", "gated") else "")
    spoil(world)
    waiting = world.take()
    assert waiting.state == state
    assert mentions(waiting.reason, f"'{ENDPOINT}'", "the store", "cannot be read")


def test_a_training_of_an_endpoint_whose_spec_cannot_be_read_is_watched(world):
    long_ago = utc_now() - timedelta(days=1)
    world.at("running", started_at=long_ago)
    spoil(world)
    failed = world.until("failed", seconds=5)
    assert mentions(failed.reason, "21600 s")
    assert any(mentions(line, failed.reason) for line in told(world))


@pytest.mark.parametrize("state", ["waiting", "running", "registered"])
def test_while_mlflow_is_down_it_waits_and_says_so(world, monkeypatch, state):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    world.at(state, "1" if state == "registered" else "")
    with tracking_at(f"http://127.0.0.1:{free_port()}"):
        waiting = world.take()
    assert waiting.state == state
    assert mentions(waiting.reason, "connection refused")


def test_a_run_beyond_its_time_is_not_begun_again_where_mlflow_did_not_hear_of_its_end(world):
    long_ago = utc_now() - timedelta(days=1)
    world.at("running", started_at=long_ago)
    failed = world.take()
    assert failed.state == "failed"
    assert failed.reason == "the run exceeded its timeout of 21600 s and was stopped"


ELSEWHERE = {"host": "another 1a2b3c4d"}


def later(world, **time):
    world.ahead = timedelta(**time)
    taken = world.take()
    world.ahead = timedelta()
    return taken


def test_a_training_on_another_machine_is_waited_for_while_it_says_that_it_runs(world):
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
def test_a_training_whose_machine_has_gone_is_begun_again_at_once(world, says):
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


def test_training_failed_on_another_machine_names_the_place_of_its_log(world):
    running = world.at("running", **ELSEWHERE)
    MlflowClient().set_terminated(running.run_id, "FAILED")
    assert mentions(world.take().reason, "failed", "another 1a2b3c4d")


def test_of_two_versions_the_newest_is_the_candidate(world):
    running = world.at("running")
    for _ in range(2):
        world.register(running.run_id)
    MlflowClient().set_terminated(running.run_id)
    assert world.take().state == "registered"
    assert world.latest().version == "3"


def test_a_version_that_a_nested_run_has_registered_is_found(world):
    running = world.at("running")
    experiment = MlflowClient().get_run(running.run_id).info.experiment_id
    nested = MlflowClient().create_run(experiment, tags={"mlflow.parentRunId": running.run_id})
    world.register(nested.info.run_id)
    MlflowClient().set_terminated(running.run_id)
    assert world.take().state == "registered"
    assert world.latest().version == "2"


def test_the_last_line_of_a_log_of_any_length_is_found_and_secrets_are_left_out(tmp_path):
    line = "Error: git clone https://{}git.example/x.git has failed"
    with (tmp_path / process.LOG).open("wb") as log:
        log.write(b"chatter\n" * 1000)
        log.truncate(5 * 2**30)  # The file is sparse.
        log.seek(0, 2)
        log.write(f"\n{line.format('ada:secret@')}\n".encode())
    assert process.last_line(tmp_path) == line.format("")


def test_missing_project_is_reported_before_any_training(world):
    world.monitor()
    world.at("waiting")
    (world.project / "MLproject").rename(world.project / "MLproject.yaml")
    with pytest.raises(InvalidConfig, match="has no MLproject"):
        request_retraining(world.deployments, ENDPOINT)
    failed = world.take()
    assert failed.state == "failed"
    assert "has no MLproject" in failed.reason
    assert any("has no MLproject" in line for line in told(world))


def test_a_step_that_fails_unexpectedly_again_and_again_ends_it(world):
    broken = replace(world.at("running"), state="of a newer version")
    runner = RetrainingRunner(world.context, retry_seconds=0)
    for attempt in range(MAX_DEFECTS):
        assert world.latest().is_live, attempt
        runner.start(broken)
        wait_until(lambda: runner.work.is_free(broken.id), 30, "the attempt has failed")
    assert world.latest().state == "failed"
    assert world.latest().reason.startswith("KeyError: ")
