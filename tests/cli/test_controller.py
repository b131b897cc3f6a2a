"""Tests of `onnxserve rollout`, `rollback`, `retrain` and `controller`."""

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.retrainings import Retrainings
from mlflow_deploy_plugin.promote.rollouts.leadership import STORE_LEASE
from tests.support.clusters import silent_api
from tests.support.commands import onnxserve, said, told
from tests.support.refusals import mentions
from tests.support.rollouts import PLAN as ROLLOUT

CODE = """
import sys
from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.promote.rollouts.leadership import STORE_LEASE
try:
    main(sys.argv[2:])
finally:
    print(sorted(set(sys.argv[1].split(",")) & set(sys.modules)))
"""


@pytest.mark.long
def test_rollback_imports_no_pandas(tmp_path, new_database):
    environment = {
        **os.environ,
        "ONNXSERVE_HOME": str(tmp_path),
        "MLFLOW_TRACKING_URI": new_database(tmp_path),
    }
    store = open_store(f"sqlite:///{tmp_path}/onnxserve.db")
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/flight-delay/Production"))
    store.close()

    modules = "pandas,scipy,sklearn,shap,onnxruntime"
    command = [sys.executable, "-c", CODE, modules, "rollback", "flights", "--to", "1"]
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=120
    )

    assert result.stdout == "[]\n"
    assert result.returncode == 1
    assert result.stderr.startswith("Error: model flight-delay version 1 does not exist: ")


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["rollout", "status", "flights"], "flights: version 6 → 7: promoted"),
        (["list"], "there are no deployments"),
    ],
)
def test_status_and_list_import_no_mlflow(store, tmp_path, command, answer):
    store.add_rollout("flights", ROLLOUT.to_json(), "promoted")
    environment = {**os.environ, "ONNXSERVE_HOME": str(tmp_path)}
    typed = [sys.executable, "-c", CODE, "mlflow,limits,kubernetes,pyarrow", *command]
    result = subprocess.run(
        typed, capture_output=True, text=True, env=environment, check=True, timeout=120
    )

    assert answer in result.stdout
    assert result.stdout.endswith("[]\n")


TRIGGER = "mlflow_deploy_plugin.watch.retraining.trigger.request_retraining"
PLAN = {
    "endpoint": "flights",
    "model": "X",
    "base_version": "1",
    "project": ".",
    "entry_point": "train",
    "mode": "full",
    "env_manager": "local",
    "timeout": 60.0,
    "then": "propose",
    "steps": "100",
    "step_every": "1s",
    "every": "1d",
}


@pytest.fixture
def retraining(store, monkeypatch):
    """A retraining of `flights` by the command, which does not start it."""
    cause = {"kind": "asked", "why": "asked by ada: new carrier"}
    begun = Retrainings(store).add("flights", "accuracy", "X", cause, PLAN)
    monkeypatch.setattr(TRIGGER, lambda *_, **__: begun)


def test_started_retraining_names_the_controller(store, retraining):
    store.acquire_lease(STORE_LEASE, "controller@here", 15.0)
    shown = onnxserve("retrain run flights").output
    assert mentions(shown, "controller@here", "`onnxserve retrain list`")


def test_retrain_list_shows_cause_and_state(retraining):
    text = onnxserve("retrain list").output
    assert mentions(text, "flights", "retraining 1", "X", "full", "waiting")
    assert "asked by ada: new carrier" in text
    assert told("retrain list")[0]["state"] == "waiting"
    assert mentions(onnxserve("retrain list other").output, "no retrainings", "'other'")


def test_retrain_wait_shows_the_end(store, retraining):
    result = onnxserve("retrain run flights --wait")

    assert result.exit_code == 1
    waiting, failed = result.stdout.splitlines()
    assert waiting == "flights: retraining 1 of X, full: waiting"
    assert mentions(failed, "retraining 1 of X", "failed", "endpoint 'flights' was deleted")
    assert store.lease("controller") is None


@pytest.mark.long
def test_rollout_wait_follows_another_controller(store, tmp_path):
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/X/Production"))
    begun = store.add_rollout("flights", ROLLOUT.to_json(), "stepping")
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "rollout", "wait", "flights"]
    environment = {**os.environ, "ONNXSERVE_HOME": str(tmp_path)}

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as shown:
        assert shown.stdout is not None
        first = shown.stdout.readline()
        store.update_rollout(replace(begun, state="promoted", ended_at=store.now()), None)
        rest, complaint = shown.communicate(timeout=120)

    assert first.startswith("flights: ")
    assert "promoted" in rest
    assert shown.returncode == 0
    assert mentions(complaint, "another controller", "'flights'")


@pytest.mark.long
def test_controller_ends_while_a_cluster_hangs(store, tmp_path):
    store.add_endpoint("onnxserve:/kubernetes/ml", new_endpoint("flights", "models:/X/Production"))
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "controller"]

    def answer_without_end(connection):
        with connection, suppress(OSError):
            while True:
                connection.send(b"x")  # Each byte restarts the timeout of the client.
                time.sleep(1)

    with silent_api(tmp_path) as (config, listener):
        environment = {**os.environ, "ONNXSERVE_HOME": str(tmp_path), "KUBECONFIG": str(config)}
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment
        ) as running:
            threading.Thread(target=answer_without_end, args=(listener.accept()[0],)).start()
            running.terminate()
            complaint = running.communicate(timeout=120)[1]

    assert running.returncode == 1
    assert mentions(complaint, "controller", "8 s")


def test_migrate_creates_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_STORE_URI", f"sqlite:///{tmp_path}/new/store.db")
    for _ in range(2):
        assert onnxserve("migrate").stdout.startswith("the store is up to date with onnxserve ")
    assert (tmp_path / "new" / "store.db").exists()
    monkeypatch.setenv("ONNXSERVE_STORE_URI", "postgresql+psycopg://onnx:s3cret@127.0.0.1:1/db")
    assert "s3cret" not in said(onnxserve("migrate"))
