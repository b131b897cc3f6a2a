"""Checkpoints of the audit trail on MLflow's server, and approvals that a command wrote
directly into the store.
"""

import inspect
import json
import os
import time
from contextlib import closing
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests
from mlflow.entities import RunStatus, ViewType
from mlflow.exceptions import MlflowException
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
from tests.support.services.mlflow_server import MlflowServer
from tests.support.waiting import wait_until

POLICY = "gated_stages: [Production]\napprovals: {count: 2, groups: [risk]}"
READS = ("_", "get", "list", "search", "find")
TRAIL = "/onnxserve/audit-trail"


def log_one(store):
    copy_context().run(log_checkpoint, store)


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
        log_one(mlflow_app.store)
        log_one(mlflow_app.store)
        text, _ = newest_checkpoint(mlflow_app.store.keys)

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
        log_one(mlflow_app.store)
        tracking = handlers._get_tracking_store()
        create, finish = type(tracking).create_run, type(tracking).update_run_info
        number = tracking.get_experiment_by_name(EXPERIMENT).experiment_id
        for start in (datetime(2100, 1, 1, tzinfo=UTC), datetime.now(UTC)):
            run = create(tracking, number, "eve", int(start.timestamp() * 1000), [], "forged")
            finish(tracking, run.info.run_id, RunStatus.FINISHED, 0, None)
        log_one(mlflow_app.store)
        text, _ = newest_checkpoint(mlflow_app.store.keys)
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


@pytest.fixture
def logged(mlflow_app):
    """The run of a checkpoint."""
    with mlflow_app.app.test_request_context():
        log_one(mlflow_app.store)
    return runs()[0]


def runs():
    """Return the runs of all checkpoints, newest first."""
    tracking = handlers._get_tracking_store()
    number = tracking.get_experiment_by_name(EXPERIMENT).experiment_id
    signed = f"tags.{checkpoints._TAG} LIKE '%'"
    return tracking.search_runs([number], signed, ViewType.ALL, order_by=["start_time DESC"])


def checkpoint_file(run):
    return Path(run.info.artifact_uri, "checkpoint.json")


def state_of(run):
    """Return what callers may not change: the experiment, the run and the files."""
    tracking = handlers._get_tracking_store()
    experiment = tracking.get_experiment(run.info.experiment_id)
    files = {file: file.read_bytes() for file in Path(experiment.artifact_location).rglob("*.*")}
    return dict(experiment), tracking.get_run(run.info.run_id).to_dictionary(), files


@pytest.fixture(scope="module")
def send(mlflow_app):
    """Return a function that sends a request to `mlflow server` on this database."""
    place = {"backend-store-uri": os.environ["_MLFLOW_SERVER_FILE_STORE"]}
    place["artifacts-destination"] = os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"]
    options = tuple(f"--{name}={value}" for name, value in place.items())
    server = MlflowServer(mlflow_app.artifacts.parent, app="onnxserve", options=options)
    server.start()
    yield lambda method, path, **more: requests.request(method, server.url + path, **more)
    server.kill()


def test_no_method_changes_a_checkpoint_file(mlflow_app, logged):
    tracking = handlers._get_tracking_store()
    ids = {"run_id": logged.info.run_id, "experiment_id": logged.info.experiment_id}
    tried = 0
    for name, method in inspect.getmembers(type(tracking), inspect.isfunction):
        fields = [*inspect.signature(method).parameters][1:]
        if ids.keys() & fields and not name.startswith(READS):
            with pytest.raises(MlflowException, match="only this server"):
                getattr(tracking, name)(**{field: ids.get(field) for field in fields})
            tried += 1
    assert tried > 25


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "-artifacts/artifacts/FOLDER/checkpoint.json", "{}"),
        ("PUT", "-artifacts/artifacts//FOLDER//other.json", "{}"),
        ("PUT", "-artifacts/artifacts/ENCODED/checkpoint.json", "{}"),
        ("PUT", "-artifacts/artifacts/link/FOLDER/checkpoint.json", "{}"),
        ("DELETE", "-artifacts/artifacts/FOLDER", "{}"),
        ("DELETE", "-artifacts/artifacts/NUMBER", "{}"),
        ("DELETE", "-artifacts/artifacts/%2e", "{}"),
        ("POST", "/runs/create", '{"experiment_id": "NUMBER"}'),
        ("POST", "/runs/delete", '{"run_id": "RUN"}'),
        ("POST", "/experiments/delete", '{"experimentId": "NUMBER"}'),
        ("POST", "/experiments/update", f'{{"experiment_id": "0", "new_name": "{EXPERIMENT}"}}'),
        ("POST", "/experiments/create", f'{{"name": "{EXPERIMENT}"}}'),
    ],
)
@pytest.mark.parametrize("prefix", ["api", "ajax-api"])
def test_checkpoint_file_has_no_other_way(mlflow_app, send, logged, method, path, body, prefix):
    root = Path(os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"])
    (root / "link").unlink(missing_ok=True)
    (root / "link").symlink_to(root)
    number = logged.info.experiment_id
    folder = f"{number}/{logged.info.run_id}/artifacts"
    values = {"FOLDER": folder, "ENCODED": "".join(f"%{ord(letter):02x}" for letter in folder)}
    for name, value in {**values, "NUMBER": number, "RUN": logged.info.run_id}.items():
        path = path.replace(name, value)
        body = body.replace(name, value)
    before = state_of(logged)
    for url in (path, path.replace("%", "%25")):
        answer = send(method, f"/{prefix}/2.0/mlflow{url}", json=json.loads(body))
        assert answer.status_code in (400, 403, 404)
        assert state_of(logged) == before


def test_other_experiments_may_be_changed(send, logged):
    created = send("POST", "/api/2.0/mlflow/runs/create", json={"experiment_id": "0"})
    file = f"0/{created.json()['run']['info']['run_id']}/artifacts/checkpoint.json"
    url = f"/api/2.0/mlflow-artifacts/artifacts/{file}"
    assert send("PUT", url, data=b"x").status_code == 200
    assert send("GET", url).content == b"x"
    assert send("DELETE", url).status_code == 200


def replace_file(run):
    checkpoint_file(run).write_text("{}")


def replay_file(run):
    """Replace a checkpoint by an earlier one."""
    checkpoint_file(run).write_bytes(checkpoint_file(runs()[1]).read_bytes())


@pytest.mark.parametrize(
    "change", [replace_file, replay_file, lambda run: checkpoint_file(run).unlink()]
)
def test_changed_checkpoint_file_is_named(mlflow_app, logged, change):
    earlier = checkpoint_file(logged).read_text()
    with mlflow_app.app.test_request_context():
        log_one(mlflow_app.store)
    newest = runs()[0]
    change(newest)
    published = mlflow_app.client.get(TRAIL).json
    assert published["keys"] == mlflow_app.store.keys.public_pem()
    assert published["checkpoint"] == earlier
    (fault,) = published["faults"]
    assert newest.info.run_id in fault


def test_keys_do_not_need_a_checkpoint_file(mlflow_app, logged, monkeypatch):
    monkeypatch.setattr(handlers, "_tracking_store", None)
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", "sqlite:////proc/no/mlflow.db")
    published = mlflow_app.client.get(TRAIL).json
    assert published["keys"] == mlflow_app.store.keys.public_pem()
    assert (published["checkpoint"], len(published["faults"])) == ("", 1)


def test_checkpoint_is_written_to_a_bucket(mlflow_app, bucket, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_AUDIT_CHECKPOINTS", "s3://worm/trail")
    with mlflow_app.app.test_request_context():
        log_one(mlflow_app.store)
        text, _ = newest_checkpoint(mlflow_app.store.keys)

    ((name, content),) = bucket.objects.items()
    assert name.startswith("worm/trail/20")
    assert content.decode() == text
    (headers,) = bucket.headers_of("PUT", name)
    assert headers["if-none-match"] == "*"  # An older checkpoint is never replaced.
    assert chain_id("") in load_checkpoint(text, mlflow_app.store.keys, name).heads
