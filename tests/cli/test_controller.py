"""Tests of `onnxserve rollback`, `retrain` and `controller` with valid and invalid
options.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.retrainings import Retrainings
from mlflow_deploy_plugin.core.store.store import Store
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
def test_it_asks_the_registry_without_pandas_and_its_like(
    tmp_path: Path,
    new_database: Callable[[Path], str],
) -> None:
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
    said = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )

    assert said.stdout == "[]\n"
    assert said.returncode == 1
    assert said.stderr.startswith("Error: model flight-delay version 1 does not exist: ")


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["rollout", "status", "flights"], "flights: version 6 → 7: promoted"),
        (["list"], "there are no deployments"),
    ],
)
def test_what_the_store_knows_is_said_without_mlflow_and_arrow(
    store: Store,
    tmp_path: Path,
    command: list[str],
    answer: str,
) -> None:
    store.add_rollout("flights", ROLLOUT.to_json(), "promoted")
    environment = {**os.environ, "ONNXSERVE_HOME": str(tmp_path)}
    typed = [sys.executable, "-c", CODE, "mlflow,limits,kubernetes,pyarrow", *command]
    said = subprocess.run(
        typed,
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=120,
    )

    assert answer in said.stdout
    assert said.stdout.endswith("[]\n")


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


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["retrain", *arguments])


def listed(*arguments: str) -> str:
    return CliRunner().invoke(main, ["retrainings", *arguments]).output


def test_without_an_endpoint_it_says_what_it_wants(store: Store) -> None:
    asked = ask()
    assert asked.exit_code == 2
    assert mentions(asked.output.splitlines()[-1], "NAME")


def test_an_endpoint_that_is_not_there_is_said(store: Store) -> None:
    asked = ask("flights")
    assert asked.exit_code == 1
    assert mentions(asked.output, "no endpoint", "'flights'")
    assert mentions(listed("flights"), "no retrainings", "'flights'")


def test_what_has_begun_is_followed_by_the_list_of_retrainings(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = Retrainings(store).add(
        "flights",
        "accuracy",
        "X",
        {"kind": "asked", "why": "new"},
        PLAN,
    )
    monkeypatch.setattr(TRIGGER, lambda *_, **__: begun)
    store.acquire_lease(STORE_LEASE, "controller@here", 15.0)
    assert mentions(ask("flights").output, "controller@here", "`onnxserve retrainings`")


def test_the_list_says_why_and_what_became_of_it(store: Store) -> None:
    cause = {"kind": "asked", "why": "asked by ada: new carrier"}
    Retrainings(store).add("flights", "accuracy", "X", cause, PLAN)
    text = listed()
    assert mentions(text, "flights", "retraining 1", "X", "full", "waiting")
    assert cause["why"] in text
    assert json.loads(listed("-o", "json"))[0]["state"] == "waiting"


def test_wait_shows_how_a_retraining_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cause = {"kind": "asked", "why": "asked by ada"}
    begun = Retrainings(store).add("flights", "accuracy", "X", cause, PLAN)
    monkeypatch.setattr(TRIGGER, lambda *_, **__: begun)

    asked = ask("flights", "--wait")

    assert asked.exit_code == 1
    assert asked.stdout.splitlines() == [
        "flights: retraining 1 of X, full: waiting",
        (
            "flights: retraining 1 of X, full: failed; endpoint 'flights' was deleted during the "
            "retraining"
        ),
    ]
    assert store.lease("controller") is None


@pytest.mark.long
def test_a_controller_leaves_on_sigterm_while_a_cluster_hangs(store: Store, tmp_path: Path) -> None:
    store.add_endpoint("onnxserve:/kubernetes/ml", new_endpoint("flights", "models:/X/Production"))
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "controller"]

    def answer_without_end(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while True:
                connection.send(b"x")  # Each byte restarts the timeout of the client.
                time.sleep(1)

    with silent_api(tmp_path) as (config, listener):
        environment = {**os.environ, "ONNXSERVE_HOME": str(tmp_path), "KUBECONFIG": str(config)}
        with subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as running:
            threading.Thread(target=answer_without_end, args=(listener.accept()[0],)).start()
            running.terminate()
            complaint = running.communicate(timeout=120)[1]

    assert running.returncode == 1
    assert mentions(complaint, "controller", "8 s")


def test_migrate_makes_the_store_and_says_why_it_cannot(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
    assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
    assert "s3cret" not in failed.stderr
