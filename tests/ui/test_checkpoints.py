"""Checkpoints of the audit trail on MLflow's server, and approvals that a command wrote
directly into the store.
"""

import json
import time
from contextlib import closing
from datetime import UTC, datetime

import pytest
from mlflow.entities import RunStatus, ViewType
from mlflow.server import handlers

from mlflow_deploy_plugin.core.store.audit_record import chain_id
from mlflow_deploy_plugin.core.store.audit_seal import verify_trail
from mlflow_deploy_plugin.core.store.checkpoints import load_checkpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.ui import checkpoints
from mlflow_deploy_plugin.ui.checkpoints import (
    EXPERIMENT,
    log_checkpoint,
    log_checkpoints,
    newest_checkpoint,
)
from tests.support.approvals import approve_all
from tests.support.services.s3 import s3_server
from tests.support.waiting import wait_until

POLICY = "gated_stages: [Production]\napprovals: {count: 2, groups: [risk]}"
TRAIL = "/onnxserve/audit-trail"


@pytest.fixture
def command(mlflow_app):
    """The store as a command opens it."""
    with closing(open_store(str(mlflow_app.store._engine.url))) as store:
        yield store


@pytest.fixture
def model(mlflow_app):
    name = mlflow_app.model(policy=POLICY)
    name.passed("1")
    return name


def test_forged_approvals_do_not_count(command, model):
    """A script that opens the store forges approvals of other people."""
    approve_all(command, model.promotion())

    assert model.enter("1") == 403
    assert model.stage("1") == "None"
    approve_all(model.mlflow.store, model.promotion())
    assert model.enter("1") == 200


@pytest.fixture
def worm(tmp_path, monkeypatch):
    """The folder of the checkpoints."""
    monkeypatch.setenv("ONNXSERVE_AUDIT_CHECKPOINTS", str(tmp_path / "worm"))
    return tmp_path / "worm"


def test_checkpoint_is_in_mlflow_and_folder(mlflow_app, command, worm):
    assert mlflow_app.client.get(TRAIL).json["checkpoint"] == ""
    with mlflow_app.app.test_request_context():
        log_checkpoint(mlflow_app.store)
        log_checkpoint(mlflow_app.store)
        text = newest_checkpoint(mlflow_app.store.keys)

    published = mlflow_app.client.get(TRAIL).json
    assert published["checkpoint"] == text
    assert published["keys"] == mlflow_app.store.keys.public_pem()
    assert "PRIVATE" not in json.dumps(published)
    checkpoint = load_checkpoint(text, mlflow_app.store.keys, "mlflow")
    assert verify_trail(command, "", checkpoint=checkpoint).state == "intact"
    assert text in [file.read_text() for file in worm.iterdir()]
    assert len(list(worm.iterdir())) == 2


def test_checkpoints_continue_after_a_future_run(mlflow_app, worm):
    with mlflow_app.app.test_request_context():
        log_checkpoint(mlflow_app.store)
        tracking = handlers._get_tracking_store()
        number = tracking.get_experiment_by_name(EXPERIMENT).experiment_id
        for start in (datetime(2100, 1, 1, tzinfo=UTC), datetime.now(UTC)):
            run = tracking.create_run(number, "eve", int(start.timestamp() * 1000), [], "forged")
            tracking.update_run_info(run.info.run_id, RunStatus.FINISHED, 0, None)
        log_checkpoint(mlflow_app.store)
        text = newest_checkpoint(mlflow_app.store.keys)
    assert text == max(worm.iterdir()).read_text()


def test_only_one_worker_logs_checkpoints(mlflow_app, worm, monkeypatch):
    monkeypatch.setattr(checkpoints, "_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(checkpoints, "_PAUSE_SECONDS", 0.5)
    monkeypatch.setattr(checkpoints, "_EVERY_SECONDS", 1.4)
    begun = time.monotonic()
    workers = [log_checkpoints(mlflow_app.store) for _ in range(2)]
    wait_until(lambda: worm.exists() and len(list(worm.iterdir())) == 3)
    for ended in workers:
        ended.set()
    assert time.monotonic() - begun > 2.8


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("runs/create", "experiment_id"),
        ("runs/set-tag", "runId"),
        ("runs/log-batch", "run_uuid"),
        ("runs/delete", "run_id"),
        ("experiments/delete", "experimentId"),
    ],
)
def test_callers_may_not_change_the_runs(mlflow_app, path, field):
    with mlflow_app.app.test_request_context():
        log_checkpoint(mlflow_app.store)
        number = handlers._get_tracking_store().get_experiment_by_name(EXPERIMENT).experiment_id
        (run, *_) = handlers._get_tracking_store().search_runs([number], "", ViewType.ALL)
    document = {field: run.info.run_id if "run" in field else number, "key": "k", "value": "v"}
    own = mlflow_app.client.post(f"/api/2.0/mlflow/{path}", json=json.dumps(document))
    other = mlflow_app.client.post("/api/2.0/mlflow/runs/create", json={"experiment_id": "0"})
    assert (own.status_code, other.status_code) == (403, 200)


def test_checkpoint_is_written_to_a_bucket(mlflow_app, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_AUDIT_CHECKPOINTS", "s3://worm/trail")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with s3_server() as bucket, mlflow_app.app.test_request_context():
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
        log_checkpoint(mlflow_app.store)
        text = newest_checkpoint(mlflow_app.store.keys)

    ((name, content),) = bucket.objects.items()
    assert name.startswith("worm/trail/20")
    assert content.decode() == text
    (headers,) = bucket.headers_of("PUT", name)
    assert headers["if-none-match"] == "*"  # An older checkpoint is never replaced.
    assert chain_id("") in load_checkpoint(text, mlflow_app.store.keys, name).heads
