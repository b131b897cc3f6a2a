"""Tests of requests that are refused before anything changes, with and without a
running server.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.statedir.files import locked
from mlflow_deploy_plugin.core.store.holds import hold
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.ship.deployments.backends.served_state import lock_path
from mlflow_deploy_plugin.ship.deployments.lifecycle import open_deployments
from tests.support.refusals import refused
from tests.support.stores import own_store
from tests.support.waiting import wait_until


@pytest.fixture
def deployments(new_home):
    """Return deployments with the endpoint `flights`,
    whose server was never started.
    """
    with open_deployments(print) as opened:
        opened.store.add_endpoint("onnxserve", new_endpoint("flights", "models:/X/1"))
        yield opened


@pytest.mark.parametrize("name", ["../../stolen", "/../stolen", "a/b", "w" * 3000])
def test_unknown_name_touches_no_file(deployments, tmp_path, name):
    (tmp_path / "stolen.lock").touch()

    changes = (
        lambda: deployments.delete_endpoint(name),
        lambda: deployments.update_endpoint(name, {}),
        lambda: deployments.remove(name, "x"),
    )
    for change in changes:
        with refused(NotFound, "no endpoint"):
            change()

    assert (tmp_path / "stolen.lock").exists()
    assert not (tmp_path / "home" / "deployments").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"variants.flights.model": ""}, "the model is empty; it is a registered model"),
        (
            {"traffic": {"flights": ""}},
            "traffic of 'flights': an integer from 0 to 100 is expected",
        ),
        ({"traffic.flights": ""}, "traffic of 'flights': an integer from 0 to 100 is expected"),
    ],
)
def test_empty_model_or_traffic_is_refused(deployments, config, said):
    with pytest.raises(InvalidConfig, match=said):
        deployments.update_endpoint("flights", config)


def put_on_hold(deployments, _):
    hold(deployments.store, "flights", "case 7")


def set_floor(_, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_RETENTION_FLOOR_DAYS", "7")


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (put_on_hold, ["case 7", "--release"]),
        (set_floor, ["7 days", "ONNXSERVE_RETENTION_FLOOR_DAYS", "onnxserve stop"]),
    ],
)
def test_endpoint_on_hold_is_not_deleted(deployments, monkeypatch, keep, reason):
    monitors = Monitors(deployments.store)
    start = deployments.store.now()
    monitors.add("flights", "daily", start - timedelta(days=1), start)
    keep(deployments, monkeypatch)

    for delete in (deployments.delete, deployments.delete_endpoint):
        with refused(InvalidConfig, "flights", *reason):
            delete("flights")

    assert deployments.store.names() == ["flights"]
    assert len(monitors.windows("flights")) == 1


def test_old_windows_do_not_prevent_deletion(deployments, monkeypatch):
    set_floor(deployments, monkeypatch)
    start = deployments.store.now() - timedelta(days=9)
    with own_store(lambda: start) as earlier:
        Monitors(earlier).add("flights", "daily", start - timedelta(days=1), start)

    deployments.delete_endpoint("flights")

    assert deployments.store.names() == []


def test_traffic_change_during_a_rollout_is_refused(deployments):
    deployments.store.add_rollout("flights", {}, "stepping")

    for change in (
        lambda: deployments.set_traffic("flights", {"flights": 100}),
        lambda: deployments.update_endpoint("flights", {"traffic.flights": 100}),
        lambda: deployments.update("flights", None, {"variants.flights.weight": "100"}),
    ):
        with refused(InvalidConfig, "rollout", "`onnxserve rollout abort flights"):
            change()


def _waits_for_a_lock():
    """Return True if a thread of this process waits for a file lock (proc(5))."""
    waiting = (
        line.split() for line in Path("/proc/locks").read_text().splitlines() if " -> " in line
    )
    return any(str(os.getpid()) in words for words in waiting)


def test_waiting_traffic_change_is_refused_after_rollout_start(deployments):
    with ThreadPoolExecutor() as pool:
        with locked(lock_path("flights", deployments.settings)):
            waiting = pool.submit(deployments.set_traffic, "flights", {"flights": 50})
            wait_until(_waits_for_a_lock)
            deployments.store.add_rollout("flights", {}, "stepping")

        with refused(InvalidConfig, "rollout", "`onnxserve rollout abort flights"):
            waiting.result()
    assert [event.action for event in deployments.store.events()] == ["create"]


@pytest.mark.parametrize("command", [("stop", "\udcff"), ("stop", "flights", "--why", "\udcff")])
def test_invalid_utf8_is_refused(deployments, command):
    result = CliRunner().invoke(main, command)

    assert result.exit_code == 1
    assert result.output == "Error: '\\udcff' is not valid UTF-8\n"
    assert [event.action for event in deployments.store.events()] == ["create"]
