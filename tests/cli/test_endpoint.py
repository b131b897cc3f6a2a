"""`onnxserve endpoint …` as it is typed."""

import json
from contextlib import closing
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mlflow.deployments import BaseDeploymentClient
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.cli import main
from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.store import open_store
from mlflow_deploy_plugin.store.tables import EndpointRow
from tests.support.deployments import Models


def endpoint(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["endpoint", *arguments])


def told(*arguments: str) -> Any:
    """What the command answers as JSON."""
    result = endpoint(*arguments, "-o", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_an_endpoint_is_created_filled_shared_out_and_deleted(
    home: BaseDeploymentClient, models: Models, free_port: int
) -> None:
    created = endpoint("create", "flights", "-C", f"server.port={free_port}", "--why", "for the summer")
    assert created.stdout.splitlines()[0] == "flights: empty"
    home.create_deployment("champion", models.once, endpoint="flights")
    home.create_deployment("challenger", models.twice, endpoint="flights")

    moved = endpoint("traffic", "flights", "champion=95", "challenger=5", "--why", "a canary")
    lines = [line.split() for line in moved.stdout.splitlines()]
    assert lines[0] == ["flights:", "running", "at", f"http://127.0.0.1:{free_port}"]
    assert [(line[0], line[1], line[-1]) for line in lines[1:3]] == [
        ("champion", "95", "running"),
        ("challenger", "5", "running"),
    ]
    assert "ready at" in moved.stderr
    assert told("get", "flights")["traffic"] == {"champion": 95, "challenger": 5}
    assert told("update", "flights", "-C", "traffic.challenger=6", "-C", "sticky.header=X-User-Id")["traffic"] == {
        "champion": 95,
        "challenger": 6,
    }
    assert "sticky by header: x-user-id" in endpoint("get", "flights").stdout

    assert endpoint("get", "flihgts").stderr == "Error: there is no endpoint 'flihgts'; did you mean 'flights'?\n"
    assert [one["name"] for one in told("list")] == ["flights"]
    head, row = endpoint("list").stdout.splitlines()
    assert head.split() == ["NAME", "STATE", "TRAFFIC", "URL"]
    assert "champion=95 challenger=6" in row

    assert endpoint("delete", "flights").output == "flights is deleted\n"
    again = endpoint("delete", "flights")
    assert (again.exit_code, again.stdout) == (0, "")
    assert again.stderr == "nothing was deleted: there is no endpoint 'flights'\n"
    assert told("list") == []


def test_an_endpoint_whose_spec_cannot_be_read_is_listed_with_the_reason_and_can_be_deleted(
    home: BaseDeploymentClient,
) -> None:
    for name in ("flights", "taxis"):
        endpoint("create", name)
    with closing(open_store(load_settings().store_url)) as store, store.transaction() as session:
        row = session.get(EndpointRow, "flights")
        assert row is not None
        row.spec += "sampling: often\n"
    reason = "the spec of endpoint 'flights' in the store cannot be read: unknown field 'sampling'"

    listed, shown = endpoint("list"), endpoint("get", "flights")
    monitors = CliRunner().invoke(main, ["monitor", "list"])
    history = CliRunner().invoke(main, ["history", "flights"])

    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [
        ["flights", "unreadable"],
        ["taxis", "empty"],
    ]
    assert {one["name"]: one["reason"] for one in home.list_endpoints()}["flights"].startswith(reason)
    assert all(reason in said.stderr for said in (listed, shown, monitors))
    assert [said.exit_code for said in (listed, shown, monitors, history)] == [0, 1, 0, 0]
    with pytest.raises(MlflowException, match="cannot be read"):
        home.delete_deployment("flights")
    assert endpoint("delete", "flights").exit_code == 0
    assert [one["name"] for one in told("list")] == ["taxis"]
    endpoint("delete", "taxis")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["get", "nobody"], "there is no endpoint 'nobody'"),
        (["traffic", "nobody", "a=1"], "there is no endpoint 'nobody'"),
        (["traffic", "nobody", "a"], "traffic 'a' is not KEY=VALUE"),
        (["traffic", "nobody", "a=1", "a=2"], "traffic 'a' is said twice"),
        (["create", "x", "-C", "server.prot=1"], "unknown config key 'server.prot'; did you mean 'server.port'?"),
        (["create", "x", "-C", "traffic.a=1"], "the endpoint 'x' has no deployment 'a'; it has none yet"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_1(home: BaseDeploymentClient, arguments: list[str], said: str) -> None:
    result = endpoint(*arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"Error: {said}\n")
