"""Tests of `onnxserve rollback`, `retrain` and `controller` with valid and invalid
options.
"""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.retrainings import Retrainings
from mlflow_deploy_plugin.promote.rollouts.leadership import STORE_LEASE
from tests.support.clusters import silent_api
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
def test_it_asks_the_registry_without_pandas_and_its_like(tmp_path, new_database):
    environment = {
        **os.environ,
        "ONNXSERVE_HOME": str(tmp_path),
        "MLFLOW_TRACKING_URI": new_database(tmp_path),
    }
    store = open_store(f"sqlite:///{tmp_path}/onnxserve.db")
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/flight-delay/Production"))
    store.close()

    command = [
        sys.executable,
        "-c",
        CODE,
        "pandas,scipy,sklearn,shap,onnxruntime",
        "rollback",
        "flights",
        "--to",
        "1",
    ]
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
def test_rollout_status_and_list_read_the_store_without_importing_mlflow_or_arrow(
    store, tmp_path, command, answer
):
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


def ask(*arguments):
    return CliRunner().invoke(main, ["retrain", "run", *arguments])


def listed(*arguments):
    return CliRunner().invoke(main, ["retrain", "list", *arguments]).output


def test_retrain_without_an_endpoint_asks_for_its_name(store):
    result = ask()
    assert result.exit_code == 2
    assert mentions(result.output.splitlines()[-1], "NAME")


def test_unknown_endpoint_is_an_error_for_retrain_and_lists_no_retrainings(store):
    result = ask("flights")
    assert result.exit_code == 1
    assert mentions(result.output, "no endpoint", "'flights'")
    assert mentions(listed("flights"), "no retrainings", "'flights'")


def test_started_retraining_points_to_the_retrainings_command(store, monkeypatch):
    begun = Retrainings(store).add(
        "flights", "accuracy", "X", {"kind": "asked", "why": "new"}, PLAN
    )
    monkeypatch.setattr(TRIGGER, lambda *_, **__: begun)
    store.acquire_lease(STORE_LEASE, "controller@here", 15.0)
    assert mentions(ask("flights").output, "controller@here", "`onnxserve retrain list`")


def test_list_shows_the_cause_and_state_of_a_retraining(store):
    cause = {"kind": "asked", "why": "asked by ada: new carrier"}
    Retrainings(store).add("flights", "accuracy", "X", cause, PLAN)
    text = listed()
    assert mentions(text, "flights", "retraining 1", "X", "full", "waiting")
    assert cause["why"] in text
    assert json.loads(listed("-o", "json"))[0]["state"] == "waiting"


def test_wait_shows_how_a_retraining_ends(store, monkeypatch):
    cause = {"kind": "asked", "why": "asked by ada"}
    begun = Retrainings(store).add("flights", "accuracy", "X", cause, PLAN)
    monkeypatch.setattr(TRIGGER, lambda *_, **__: begun)

    result = ask("flights", "--wait")

    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "flights: retraining 1 of X, full: waiting",
        (
            "flights: retraining 1 of X, full: failed; endpoint 'flights' was deleted during the "
            "retraining"
        ),
    ]
    assert store.lease("controller") is None


@pytest.mark.long
def test_a_controller_leaves_on_sigterm_while_a_cluster_hangs(store, tmp_path):
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


def test_migrate_makes_the_store_and_says_why_it_cannot(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_STORE_URI", f"sqlite:///{tmp_path}/new/store.db")
    for _ in range(2):
        assert (
            CliRunner()
            .invoke(main, ["migrate"])
            .stdout.startswith("the store is up to date with onnxserve ")
        )
    assert (tmp_path / "new" / "store.db").exists()
    monkeypatch.setenv("ONNXSERVE_STORE_URI", "postgresql+psycopg://onnx:s3cret@127.0.0.1:1/db")
    failed = CliRunner().invoke(main, ["migrate"])
    assert failed.exit_code == 1
    assert failed.stderr.count("\n") == 1
    assert "s3cret" not in failed.stderr
