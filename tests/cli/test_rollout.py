"""Tests of `onnxserve rollout` while another process or machine has the servers."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from mlflow_deploy_plugin.core.spec.document import add_variant, new_endpoint
from mlflow_deploy_plugin.ship.deployments.config import configure
from tests.support.refusals import mentions
from tests.support.rollouts import PLAN as ROLLOUT


@pytest.mark.long
def test_wait_shows_a_rollout_that_is_run_where_its_server_is_reached(store, tmp_path):
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/X/Production"))
    begun = store.add_rollout("flights", ROLLOUT.to_json(), "stepping")
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "rollout", "wait", "flights"]
    environment = {**os.environ, "ONNXSERVE_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"}

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


def test_abort_says_for_whose_change_of_a_clusters_endpoint_it_waits(store, tmp_path):
    champion = new_endpoint("flights", "models:/X/Production", variant="champion")
    candidate = "models:/X/7"
    stepping = configure(
        add_variant(champion, "candidate", candidate),
        {"traffic": {"champion": 90, "candidate": 10}},
    )
    store.add_endpoint("onnxserve:/kubernetes/ml", stepping)
    store.add_rollout("flights", ROLLOUT.to_json(), "stepping")
    store.acquire_lease("endpoint/flights", "controller@pod", 60)
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "rollout", "abort", "flights"]
    environment = {**os.environ, "ONNXSERVE_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"}

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as shown:
        assert shown.stderr is not None
        watchdog = threading.Timer(120, shown.kill)
        watchdog.start()
        line = shown.stderr.readline()
        shown.kill()
        watchdog.cancel()

    assert mentions(line, "flights", "controller@pod")
