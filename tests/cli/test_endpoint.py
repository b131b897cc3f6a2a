"""Tests of `onnxserve endpoint …`, `list`, `start`, `stop`, `delete` and `logs`."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.core.store.tables import EndpointRow
from tests.support.commands import done, onnxserve, said, told
from tests.support.refusals import mentions
from tests.support.stores import own_store
from tests.support.tracking import tracking_at


def add_endpoint(name, model, config=None, **more):
    with own_store() as store:
        store.add_endpoint("onnxserve", new_endpoint(name, model, config, **more))


@pytest.mark.long
def test_endpoint_from_creation_to_deletion(home, models, free_port):
    created = onnxserve(f"endpoint create flights -C server.port={free_port} --why summer")
    assert created.stdout.splitlines()[0] == "flights: empty"
    home.create_deployment("champion", models.once, endpoint="flights")
    home.create_deployment("challenger", models.twice, endpoint="flights")

    moved = onnxserve("endpoint traffic flights champion=95 challenger=5 --why 'a canary'")
    lines = [line.split() for line in moved.stdout.splitlines()]
    assert lines[0] == ["flights:", "running", "at", f"http://127.0.0.1:{free_port}"]
    assert [(line[0], line[1], line[-1]) for line in lines[1:3]] == [
        ("champion", "95", "running"),
        ("challenger", "5", "running"),
    ]
    updated = told("endpoint update flights -C traffic.challenger=6 -C sticky.header=X-User-Id")
    assert updated["traffic"] == {"champion": 95, "challenger": 6}
    assert mentions(onnxserve("endpoint get flights").stdout, "sticky", "x-user-id")
    assert onnxserve("delete challenger --dry-run").output == (
        "challenger would be deleted; the endpoint flights keeps champion\n"
    )
    head, row = onnxserve("endpoint list").stdout.splitlines()
    assert head.split() == ["NAME", "STATE", "TRAFFIC", "URL"]
    assert "champion=94.06 challenger=5.94" in row  # The weights are divided by their sum.
    _, _, served = (line.split() for line in onnxserve("list").stdout.splitlines())
    url = f"http://127.0.0.1:{free_port}"
    assert served[:2] == ["flights/challenger", models.twice]
    assert served[3:] == ["5.94", "running", "1", "0", url, "-"]
    (entry,) = told("list")
    assert (entry["url"], entry["restarts"]) == (url, 0)
    assert entry["deployments"]["challenger"]["version"] == served[2]

    assert onnxserve("endpoint delete flights").output == "flights is deleted\n"
    assert mentions(said(onnxserve("endpoint delete flights")), "no endpoint 'flights'")
    assert told("endpoint list") == []


def test_unreadable_spec_is_listed_and_deleted(home):
    for name in ("flights", "taxis"):
        onnxserve(f"endpoint create {name}")
    with own_store() as store, store.transaction() as session:
        row = session.get(EndpointRow, "flights")
        assert row is not None
        row.spec += "sampling: often\n"
    reason = "the spec of endpoint 'flights' in the store cannot be read: unknown field 'sampling'"

    listed = onnxserve("endpoint list")

    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [
        ["flights", "unreadable"],
        ["taxis", "empty"],
    ]
    assert listed.exit_code == 0
    assert reason in listed.stderr
    assert reason in said(onnxserve("endpoint get flights"))
    assert reason in onnxserve("monitor list").stderr
    done("audit history flights")
    with pytest.raises(MlflowException, match="cannot be read"):
        home.delete_deployment("flights")
    done("endpoint delete flights")
    assert [entry["name"] for entry in told("endpoint list")] == ["taxis"]
    onnxserve("endpoint delete taxis")


@pytest.fixture
def registry(tmp_path, new_database):
    with tracking_at(new_database(tmp_path)):
        yield MlflowClient()


def test_follow_dry_run_shows_the_version(home, models, registry):
    registry.create_registered_model("sums")
    for folder in (models.once, models.twice):
        registry.create_model_version("sums", folder)
    registry.transition_model_version_stage("sums", "2", "Production")
    stage = "models:/sums/Production"
    alias = "models:/sums@champion"
    add_endpoint("staged", stage)

    (follower,) = told("endpoint follow staged --alias @champion --dry-run")
    shown = done("endpoint follow staged --alias champion --dry-run")

    assert mentions(shown, "staged", alias, "version 2")
    assert follower["alias_uri"] == alias
    assert follower["version"] == "2"
    assert registry.get_registered_model("sums").aliases == {}
    assert told("endpoint get staged")["deployments"]["staged"]["model_uri"] == stage
    onnxserve("endpoint delete staged")


def test_list_has_a_row_per_deployment(store):
    onnxserve("endpoint create spare")
    config = {
        "server.port": 8080,
        "variants.champion.weight": 60,
        "monitors.daily.kind": "drift",
    }
    add_endpoint("pair", "/models/twice", config, variant="champion")
    load_settings().state_dir("pair").mkdir(parents=True)
    for command in ("stop pair", "monitor add pair idle", "monitor pause pair idle"):
        done(command)
    day = datetime(2013, 7, 1, tzinfo=UTC)
    window = Monitors(store).add("pair", "daily", day, day.replace(day=2))
    Monitors(store).update(replace(window, state="judged", verdict="unhealthy"))

    lines = onnxserve("list").stdout.splitlines()

    head = "NAME MODEL VERSION TRAFFIC STATE WORKERS RESTARTS URL MONITORS"
    assert lines[0].split() == head.split()
    pair, spare = (line.split(maxsplit=8) for line in lines[1:3])
    stopped, empty = lines[3:]
    assert pair[:2] == ["pair/champion", "/models/twice"]
    monitors = "daily: unhealthy, idle: not judged yet (paused)"
    assert pair[3:] == ["100", "stopped", *"---", monitors]
    assert spare == ["spare", *"---", "empty", *"----"]
    assert mentions(stopped, "pair/champion", "`onnxserve start pair`")
    assert mentions(empty, "spare", "no deployment")

    first, _ = told("list")
    assert first["name"] == "pair"
    assert first["monitors"][0]["last"]["verdict"] == "unhealthy"


@pytest.mark.parametrize("command", ["list", "endpoint list", "monitor list", "keys list"])
def test_empty_list_names_the_next_command(command, store):
    result = onnxserve(command)

    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout.startswith("there are no ")
    assert ": run `" in result.stdout


def test_stop_is_recorded(store):
    add_endpoint("idle", "m", {"server.port": 8080})

    result = onnxserve("stop idle")

    assert result.output == "idle is stopped; `onnxserve start idle` starts it again\n"
    assert [event.action for event in store.events("idle")] == ["create", "stop"]


def test_delete_removes_the_endpoint_too(store):
    add_endpoint("idle", "models:/m/1")

    dry_run = onnxserve("delete idle --dry-run")
    assert dry_run.output == "idle would be deleted, with its endpoint and server\n"
    assert told("endpoint get idle")["name"] == "idle"
    assert onnxserve("delete idle").output == "idle is deleted, with its endpoint and server\n"
    assert mentions(said(onnxserve("delete idle")), "no deployment 'idle'")


def test_failed_endpoint_is_listed_with_the_reason(store):
    add_endpoint("lost", "m", {"server.port": 8080})

    _, row, reason = onnxserve("endpoint list").stdout.splitlines()

    assert row.split() == ["lost", "failed", "lost=100"]
    assert mentions(reason, "lost", "`onnxserve start lost`")


@pytest.mark.long
def test_failed_start_reports_the_reason(store, tmp_path, free_port):
    add_endpoint("lost", "/nowhere", {"server.port": free_port})

    result = onnxserve("start lost")

    assert result.exit_code == 1
    assert mentions(result.stderr.splitlines()[-1], "folder /nowhere")
    assert not (tmp_path / "deployments" / "lost" / "server.json").exists()


def test_taken_port_names_the_setting(store, taken_port):
    add_endpoint("moved", "m", {"server.port": taken_port})

    result = onnxserve("start moved")

    assert result.exit_code == 1
    assert mentions(
        result.stderr,
        f"port {taken_port}",
        "in use",
        "`onnxserve endpoint update NAME -C server.port=…`",
    )


def test_logs_shows_the_last_lines(store, tmp_path):
    onnxserve("endpoint create idle")
    log = tmp_path / "deployments" / "idle" / "server.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\ntwo\nthree\n")

    assert onnxserve("logs idle --lines 2 --follow").output == "two\nthree\n"
