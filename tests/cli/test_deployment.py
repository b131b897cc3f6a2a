"""`onnxserve list` as it is typed."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner, Result
from mlflow.deployments import BaseDeploymentClient

from mlflow_deploy_plugin.cli import main
from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.store import open_store
from mlflow_deploy_plugin.store.monitors import Monitors
from tests.support.deployments import Models


def listed(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["list", *arguments])
    assert result.exit_code == 0, result.output
    return result


def judged(endpoint: str, monitor: str, verdict: str) -> None:
    """Write a window of the monitor into the store, as a controller does."""
    store = open_store(load_settings().store_url)
    window = Monitors(store).add(endpoint, monitor, datetime(2013, 7, 1, tzinfo=UTC), datetime(2013, 7, 2, tzinfo=UTC))
    assert Monitors(store).update(replace(window, state="judged", verdict=verdict)) is not None
    store.close()


def test_one_table_shows_each_deployment_with_its_model_its_server_and_its_monitors(
    home: BaseDeploymentClient, models: Models, free_port: int
) -> None:
    none = listed().stdout
    assert none.startswith("there are no deployments: `mlflow deployments create -t onnxserve --name NAME -m ")
    assert listed("-o", "json").stdout == "[]\n"
    home.create_deployment("sum", models.once, config={"server.port": free_port, "monitors.daily.kind": "data_quality"})
    home.create_endpoint("spare")
    home.create_deployment("champion", models.twice, endpoint="pair")
    assert CliRunner().invoke(main, ["stop", "pair"]).exit_code == 0
    assert CliRunner().invoke(main, ["monitor", "add", "pair", "idle", "--kind", "data_quality"]).exit_code == 0
    assert CliRunner().invoke(main, ["monitor", "pause", "pair", "idle"]).exit_code == 0
    judged("sum", "daily", "unhealthy")

    lines = listed().stdout.splitlines()

    columns = ["NAME", "MODEL", "VERSION", "TRAFFIC", "STATE", "WORKERS", "RESTARTS", "URL", "MONITORS"]
    assert lines[0].split() == columns
    pair, spare, served = (line.split(maxsplit=8) for line in lines[1:4])
    url = f"http://127.0.0.1:{free_port}"
    assert served[:2] + served[3:] == ["sum", models.once, "100", "running", "1", "0", url, "daily: unhealthy"]
    assert pair[0:2] + pair[3:] == [
        "pair/champion",
        models.twice,
        "100",
        "stopped",
        "-",
        "-",
        "-",
        "idle: not judged yet (paused)",
    ]
    assert spare == ["spare", "-", "-", "-", "empty", "-", "-", "-", "-"]
    assert lines[4].startswith("pair/champion: ")
    assert lines[4].endswith("`onnxserve start pair` starts it")
    assert lines[5].startswith("spare: no deployment yet; ")
    assert len(lines) == 6

    told = {one["name"]: one for one in json.loads(listed("-o", "json").stdout)}

    assert list(told) == ["pair", "spare", "sum"]
    assert (told["sum"]["state"], told["sum"]["url"], told["sum"]["restarts"]) == ("running", url, 0)
    assert told["sum"]["deployments"]["sum"]["version"] == served[2]
    (daily,) = told["sum"]["monitors"]
    assert (daily["monitor"], daily["last"]["verdict"]) == ("daily", "unhealthy")


@pytest.mark.parametrize("command", [["list"], ["endpoint", "list"], ["monitor", "list"]])
def test_a_list_of_nothing_says_how_something_is_made(
    command: list[str], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))

    said = CliRunner().invoke(main, command)

    assert (said.exit_code, said.stderr) == (0, "")
    assert said.stdout.startswith("there are no ")
    assert said.stdout.endswith(" makes one\n")
