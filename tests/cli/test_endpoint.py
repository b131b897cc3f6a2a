"""Tests of `onnxserve endpoint …`, `list`, `start` and `stop`."""

import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.core.store.tables import EndpointRow
from tests.support.commands import said
from tests.support.refusals import mentions


def endpoint(*arguments):
    return CliRunner().invoke(main, ["endpoint", *arguments])


def told(*arguments):
    """Return the JSON output of the command."""
    result = endpoint(*arguments, "-o", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.long
def test_an_endpoint_is_created_filled_shared_out_and_deleted(home, models, free_port):
    created = endpoint(
        "create", "flights", "-C", f"server.port={free_port}", "--why", "for the summer"
    )
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
    assert told("update", "flights", "-C", "traffic.challenger=6", "-C", "sticky.header=X-User-Id")[
        "traffic"
    ] == {"champion": 95, "challenger": 6}
    assert mentions(endpoint("get", "flights").stdout, "sticky", "x-user-id")

    def deleted(*arguments):
        return CliRunner().invoke(main, ["delete", *arguments]).output

    assert deleted("challenger", "--dry-run") == (
        "challenger would be deleted; the endpoint flights keeps champion\n"
    )
    assert deleted("champion", "--dry-run") == (
        "champion would be deleted; the endpoint flights keeps challenger\n"
    )
    assert set(told("get", "flights")["deployments"]) == {"champion", "challenger"}
    assert mentions(endpoint("get", "flihgts").stderr, "'flihgts'", "'flights'")
    assert [entry["name"] for entry in told("list")] == ["flights"]
    head, row = endpoint("list").stdout.splitlines()
    assert head.split() == ["NAME", "STATE", "TRAFFIC", "URL"]
    assert "champion=94.06 challenger=5.94" in row  # The weights are divided by their sum.

    assert endpoint("delete", "flights").output == "flights is deleted\n"
    again = endpoint("delete", "flights")
    assert again.exit_code == 1
    assert again.stdout == ""
    assert mentions(again.stderr, "no endpoint 'flights'")
    assert told("list") == []


def test_an_endpoint_whose_spec_cannot_be_read_is_listed_with_the_reason_and_can_be_deleted(home):
    for name in ("flights", "taxis"):
        endpoint("create", name)
    with closing(open_store(load_settings().store_url)) as store, store.transaction() as session:
        row = session.get(EndpointRow, "flights")
        assert row is not None
        row.spec += "sampling: often\n"
    reason = "the spec of endpoint 'flights' in the store cannot be read: unknown field 'sampling'"

    listed = endpoint("list")
    shown = endpoint("get", "flights")
    monitors = CliRunner().invoke(main, ["monitor", "list"])
    history = CliRunner().invoke(main, ["audit", "history", "flights"])

    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [
        ["flights", "unreadable"],
        ["taxis", "empty"],
    ]
    assert {entry["name"]: entry["reason"] for entry in home.list_endpoints()}[
        "flights"
    ].startswith(reason)
    assert all(reason in result.stderr for result in (listed, shown, monitors))
    assert [result.exit_code for result in (listed, shown, monitors, history)] == [0, 1, 0, 0]
    with pytest.raises(MlflowException, match="cannot be read"):
        home.delete_deployment("flights")
    assert endpoint("delete", "flights").exit_code == 0
    assert [entry["name"] for entry in told("list")] == ["taxis"]
    endpoint("delete", "taxis")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["get", "nobody"], ["no endpoint", "'nobody'"]),
        (["traffic", "nobody", "a=1"], ["no endpoint", "'nobody'"]),
        (["follow", "nobody", "--alias", "champion"], ["no endpoint", "'nobody'"]),
        (["create", "x", "-C", "server.prot=1"], ["'server.prot'", "'server.port'"]),
        (["create", "x", "-C", "traffic.a=1"], ["endpoint 'x'", "deployment 'a'"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_1(home, arguments, names):
    assert mentions(said(endpoint(*arguments)), *names)


def test_a_dry_run_shows_which_version_would_get_the_alias(home, register):
    model = register("+1", "+2")
    model.promote(2)
    stage = f"models:/{model.name}/Production"
    alias = f"models:/{model.name}@champion"
    with closing(open_store(load_settings().store_url)) as store:
        store.add_endpoint("onnxserve", new_endpoint("staged", stage))

    (follower,) = told("follow", "staged", "--alias", "@champion", "--dry-run")
    shown = endpoint("follow", "staged", "--alias", "champion", "--dry-run").stdout

    assert mentions(shown, "staged", alias, "version 2")
    assert follower["stage_uri"] == stage
    assert follower["alias_uri"] == alias
    assert follower["version"] == "2"
    assert told("get", "staged")["deployments"]["staged"]["model_uri"] == stage
    endpoint("delete", "staged")


def listed(*arguments):
    result = CliRunner().invoke(main, ["list", *arguments])
    assert result.exit_code == 0, result.output
    return result


def judged(endpoint, monitor, verdict):
    """Write a window of the monitor into the store, as a controller does."""
    store = open_store(load_settings().store_url)
    window = Monitors(store).add(
        endpoint, monitor, datetime(2013, 7, 1, tzinfo=UTC), datetime(2013, 7, 2, tzinfo=UTC)
    )
    assert Monitors(store).update(replace(window, state="judged", verdict=verdict)) is not None
    store.close()


def test_one_table_shows_each_deployment_with_its_model_its_server_and_its_monitors(
    home, models, free_port
):
    none = listed().stdout
    assert none.startswith(
        "there are no deployments: run `mlflow deployments create -t onnxserve --name NAME -m "
    )
    assert listed("-o", "json").stdout == "[]\n"
    home.create_deployment(
        "sum", models.once, config={"server.port": free_port, "monitors.daily.kind": "drift"}
    )
    home.create_endpoint("spare")
    with closing(open_store(load_settings().store_url)) as store:
        of_60 = {"server.port": 8080, "variants.champion.weight": 60}
        store.add_endpoint(
            "onnxserve", new_endpoint("pair", models.twice, of_60, variant="champion")
        )
    load_settings().state_dir("pair").mkdir(parents=True)
    assert CliRunner().invoke(main, ["stop", "pair"]).exit_code == 0
    assert CliRunner().invoke(main, ["monitor", "add", "pair", "idle"]).exit_code == 0
    assert CliRunner().invoke(main, ["monitor", "pause", "pair", "idle"]).exit_code == 0
    judged("sum", "daily", "unhealthy")

    lines = listed().stdout.splitlines()

    columns = [
        "NAME",
        "MODEL",
        "VERSION",
        "TRAFFIC",
        "STATE",
        "WORKERS",
        "RESTARTS",
        "URL",
        "MONITORS",
    ]
    assert lines[0].split() == columns
    pair, spare, served = (line.split(maxsplit=8) for line in lines[1:4])
    url = f"http://127.0.0.1:{free_port}"
    assert served[:2] + served[3:] == [
        "sum",
        models.once,
        "100",
        "running",
        "1",
        "0",
        url,
        "daily: unhealthy",
    ]
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
    assert lines[5].startswith("spare: it has no deployment; ")
    assert len(lines) == 6

    endpoints = {entry["name"]: entry for entry in json.loads(listed("-o", "json").stdout)}

    assert list(endpoints) == ["pair", "spare", "sum"]
    assert endpoints["sum"]["state"] == "running"
    assert endpoints["sum"]["url"] == url
    assert endpoints["sum"]["restarts"] == 0
    assert endpoints["sum"]["deployments"]["sum"]["version"] == served[2]
    (daily,) = endpoints["sum"]["monitors"]
    assert daily["monitor"] == "daily"
    assert daily["last"]["verdict"] == "unhealthy"


@pytest.mark.parametrize("command", [["list"], ["endpoint", "list"], ["monitor", "list"]])
def test_a_list_of_nothing_says_how_something_is_made(command, tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))

    result = CliRunner().invoke(main, command)

    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout.startswith("there are no ")
    assert ": run `" in result.stdout


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("command", ["start", "stop"])
def test_an_unknown_name_is_one_line_and_exit_status_1(own_folder, command):
    result = CliRunner().invoke(main, [command, "nobody"])

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "Error: there is no deployment 'nobody'; there are no deployments yet\n"


def test_stop_says_how_to_bring_it_back_and_writes_it_down(own_folder):
    store = open_store(f"sqlite:///{own_folder}/onnxserve.db")
    store.add_endpoint("onnxserve", new_endpoint("idle", "m", {"server.port": 8080}))

    result = CliRunner().invoke(main, ["stop", "idle"])

    assert result.exit_code == 0
    assert result.output == "idle is stopped; `onnxserve start idle` starts it again\n"
    assert [event.action for event in store.events("idle")] == ["create", "stop"]
    store.close()


def test_delete_takes_the_endpoint_of_the_same_name(own_folder):
    store = open_store(load_settings().store_url)
    store.add_endpoint("onnxserve", new_endpoint("idle", "models:/m/1"))
    store.close()

    trial = CliRunner().invoke(main, ["delete", "idle", "--dry-run"])
    shown = told("get", "idle")
    done = CliRunner().invoke(main, ["delete", "idle"])
    again = CliRunner().invoke(main, ["delete", "idle"])

    assert trial.output == "idle would be deleted, with its endpoint and server\n"
    assert shown["name"] == "idle"
    assert done.output == "idle is deleted, with its endpoint and server\n"
    assert again.exit_code == 1
    assert mentions(again.output, "no deployment 'idle'")


def test_a_server_that_is_gone_is_listed_with_the_reason(own_folder):
    store = open_store(f"sqlite:///{own_folder}/onnxserve.db")
    store.add_endpoint("onnxserve", new_endpoint("lost", "m", {"server.port": 8080}))
    store.close()

    _, row, reason = endpoint("list").stdout.splitlines()

    assert row.split() == ["lost", "failed", "lost=100"]
    assert mentions(reason, "lost", "`onnxserve start lost`")


@pytest.mark.long
def test_start_that_fails_says_why(own_folder, free_port):
    store = open_store(f"sqlite:///{own_folder}/onnxserve.db")
    store.add_endpoint("onnxserve", new_endpoint("lost", "/nowhere", {"server.port": free_port}))
    store.close()

    result = CliRunner().invoke(main, ["start", "lost"])

    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].endswith("the folder /nowhere does not exist")
    assert not (own_folder / "deployments" / "lost" / "server.json").exists()


def test_start_at_a_port_that_another_program_took_says_how_to_give_it_another(
    own_folder, taken_port
):
    store = open_store(f"sqlite:///{own_folder}/onnxserve.db")
    store.add_endpoint("onnxserve", new_endpoint("moved", "m", {"server.port": taken_port}))
    store.close()

    result = CliRunner().invoke(main, ["start", "moved"])

    assert result.exit_code == 1
    assert mentions(
        result.stderr,
        f"port {taken_port}",
        "in use",
        "`onnxserve endpoint update NAME -C server.port=…`",
    )


def test_logs_shows_the_last_lines_of_a_server(monkeypatch, tmp_path):
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))
    CliRunner().invoke(main, ["endpoint", "create", "idle"])
    (tmp_path / "deployments" / "idle").mkdir(parents=True)
    (tmp_path / "deployments" / "idle" / "server.log").write_text("one\ntwo\nthree\n")

    assert (
        CliRunner().invoke(main, ["logs", "idle", "--lines", "2", "--follow"]).output
        == "two\nthree\n"
    )
