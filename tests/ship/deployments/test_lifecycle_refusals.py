"""Tests of requests that are refused before anything changes, with and without a
running server.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.statedir.files import locked
from mlflow_deploy_plugin.ship.deployments.backends.served_state import lock_path
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments, open_deployments
from tests.support.refusals import refused
from tests.support.waiting import wait_until


@pytest.fixture
def deployments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployments]:
    """Return deployments with the endpoint `flights`,
    whose server was never started.
    """
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    with open_deployments(print) as opened:
        opened.store.add_endpoint("onnxserve", new_endpoint("flights", "models:/X/1"))
        yield opened


@pytest.mark.parametrize("name", ["../../stolen", "/../stolen", "a/b", "w" * 3000])
def test_a_name_that_no_endpoint_has_touches_no_file(
    deployments: Deployments,
    tmp_path: Path,
    name: str,
) -> None:
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
def test_empty_model_or_traffic_is_refused(
    deployments: Deployments,
    config: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(InvalidConfig, match=said):
        deployments.update_endpoint("flights", config)


def test_the_traffic_under_a_rollout_is_the_rollouts(deployments: Deployments) -> None:
    deployments.store.add_rollout("flights", {}, "stepping")

    for change in (
        lambda: deployments.set_traffic("flights", {"flights": 100}),
        lambda: deployments.update_endpoint("flights", {"traffic.flights": 100}),
        lambda: deployments.update("flights", None, {"variants.flights.weight": "100"}),
    ):
        with refused(InvalidConfig, "rollout", "`onnxserve rollout abort flights"):
            change()


def _waits_for_a_lock() -> bool:
    """Return True if a thread of this process waits for a file lock (proc(5))."""
    waiting = (
        line.split() for line in Path("/proc/locks").read_text().splitlines() if " -> " in line
    )
    return any(str(os.getpid()) in words for words in waiting)


def test_a_change_of_traffic_that_waits_while_a_rollout_begins_is_refused(
    deployments: Deployments,
) -> None:
    with ThreadPoolExecutor() as pool:
        with locked(lock_path("flights", deployments.settings)):
            waiting = pool.submit(deployments.set_traffic, "flights", {"flights": 50})
            wait_until(_waits_for_a_lock)
            deployments.store.add_rollout("flights", {}, "stepping")

        with refused(InvalidConfig, "rollout", "`onnxserve rollout abort flights"):
            waiting.result()
    assert [event.action for event in deployments.store.events()] == ["create"]


@pytest.mark.parametrize(
    "command",
    [("stop", "\udcff"), ("stop", "flights", "--why", "\udcff")],
)
def test_invalid_utf8_is_refused_before_any_change(
    deployments: Deployments,
    command: tuple[str, ...],
) -> None:
    result = CliRunner().invoke(main, command)

    assert result.exit_code == 1
    assert result.output == "Error: '\\udcff' is not valid UTF-8\n"
    assert [event.action for event in deployments.store.events()] == ["create"]
