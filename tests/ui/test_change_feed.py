"""The change feed of MLflow's server: who may follow what, and that every change
arrives through any worker.
"""

import http.client
import os
import signal
import time
from contextlib import ExitStack, closing, contextmanager
from urllib.parse import urlencode

import pytest
import requests
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.registry.change_feed import CHANGES, read_changes
from mlflow_deploy_plugin.promote.gate.recording import PATH as VERDICTS
from tests.support.services.basic_auth import basic_auth_server, password
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import tracking_at

pytestmark = pytest.mark.long

CHAMPION = "models:/X@champion"
PRODUCTION = "models:/X/Production"
TAGGED = "models:/X/tag:region=eu"
SECONDS = 20.0


@contextmanager
def running(folder, *options):
    """Run a server with the models `X` and `other`."""
    server = MlflowServer(folder, app="onnxserve", options=options)
    server.variables = {"ONNXSERVE_HOME": str(folder / "home"), "MLFLOW_TRACKING_URI": ""}
    with server.running(), tracking_at(server.url):
        register(server.url, "X")
        register(server.url, "other")
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("feed"), "--workers", "2") as server:
        yield server


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    with running(tmp_path_factory.mktemp("one_worker")) as server:
        yield server


def register(url, name):
    client = MlflowClient(url)
    client.create_registered_model(name)
    run = client.create_run(client.create_experiment(name))
    for _ in range(2):
        client.create_model_version(name, f"runs:/{run.info.run_id}/model", run.info.run_id)
    client.set_registered_model_alias(name, "champion", "1")


def next_event(events):
    """Return the versions of the next event that is not a comment."""
    until = time.monotonic() + SECONDS
    for selected in events:
        if selected:
            return {uri: resolved.version if resolved else "" for uri, resolved in selected.items()}
        assert time.monotonic() < until, "no event"
    raise AssertionError("the feed has ended")


def first_events(events, count):
    """Return the versions of the first `count` URIs. The worker may send them in
    several events.
    """
    arrived = next_event(events)
    while len(arrived) < count:
        arrived |= next_event(events)
    return arrived


def test_every_change_arrives_in_every_worker(server):
    client = MlflowClient(server.url)
    first = {CHAMPION: "1", PRODUCTION: "", TAGGED: ""}
    # With six connections, each of the two workers has some.
    streams = [read_changes([*first]) for _ in range(6)]
    for events in streams:
        assert first_events(events, 3) == first

    client.set_registered_model_alias("other", "champion", "2")
    client.set_registered_model_alias("X", "champion", "2")
    assert [next_event(events) for events in streams] == [{CHAMPION: "2"}] * 6

    client.transition_model_version_stage("X", "1", "Production")
    assert [next_event(events) for events in streams] == [{PRODUCTION: "1"}] * 6

    client.set_model_version_tag("X", "2", "region", "eu")
    assert [next_event(events) for events in streams] == [{TAGGED: "2"}] * 6

    client.set_registered_model_alias("X", "champion", "1")
    client.delete_model_version_tag("X", "2", "region")
    client.transition_model_version_stage("X", "1", "None")
    for events in streams:
        arrived = {}
        while arrived != first:
            arrived |= next_event(events)
        events.close()


def test_pattern_reports_each_change_of_its_models(server):
    client = MlflowClient(server.url)
    pattern = "models:/X*@champion"
    with closing(read_changes([pattern])) as events:
        assert next_event(events) == {pattern: ""}
        client.set_registered_model_alias("other", "champion", "1")
        for version in ("2", "1"):
            client.set_registered_model_alias("X", "champion", version)
            assert next_event(events) == {pattern: ""}


def test_changed_verdict_arrives(server):
    """Endpoints with `require: gate=passed` wait for it."""
    verdict = {"model": "X", "version": "1", "state": "failed", "reason": "bad", "files": "ab12"}
    with closing(read_changes([CHAMPION])) as events:
        next_event(events)
        assert requests.post(f"{server.url}{VERDICTS}", json=verdict, timeout=60).ok
        (resolved,) = next(selected for selected in events if selected).values()
    assert resolved is not None
    assert resolved.version == "1"
    assert resolved.gate_status.state == "failed"


def test_changes_without_the_app_arrive(server):
    uris = [f"models:/X@alias{number}" for number in range(60)]
    database = f"sqlite:///{server.folder}/mlflow.db"
    client = MlflowClient(registry_uri=database, tracking_uri=database)
    with closing(read_changes(uris)) as events:
        first_events(events, 60)
        for number in range(60):
            client.set_registered_model_alias("X", f"alias{number}", "2")
        assert first_events(events, 60) == dict.fromkeys(uris, "2")


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["models:/X/1"],
        ["/etc"],
        ["runs:/1/model"],
        [f"models:/X{number}@champion" for number in range(1001)],
    ],
)
def test_invalid_uris_are_refused(server, uris):
    answer = requests.get(f"{server.url}{CHANGES}", {"uri": uris}, timeout=60)
    assert answer.status_code == 400
    assert "change feed" in answer.text or "URI" in answer.text


def tag_uris(begin):
    return [f"models:/X/tag:key{number}=1" for number in range(begin, begin + 1000)]


def test_reader_of_many_tags_delays_no_other(one_worker):
    uris = tag_uris(0)
    with (
        closing(read_changes([CHAMPION])) as small,
        closing(read_changes(uris)) as large,
        closing(read_changes([PRODUCTION])) as later,
    ):
        assert next_event(small) == {CHAMPION: "1"}
        arrived = next_event(large)
        assert 0 < len(arrived) < 1000

        MlflowClient(one_worker.url).set_registered_model_alias("X", "champion", "2")
        assert next_event(small) == {CHAMPION: "2"}
        assert next_event(later) == {PRODUCTION: ""}
        while len(arrived) < 1000:
            arrived |= next_event(large)
        assert arrived == dict.fromkeys(uris, "")


def test_caller_with_too_many_uris_is_refused(one_worker):
    def status(uris, address="127.0.0.1"):
        connection = http.client.HTTPConnection(one_worker.host, one_worker.port, 60, (address, 0))
        opened.callback(connection.close)
        connection.request("GET", f"{CHANGES}?{urlencode({'uri': uris}, doseq=True)}")
        answer = connection.getresponse()
        opened.callback(answer.close)
        return answer.status

    with ExitStack() as opened:
        assert [status(tag_uris(1000 * number)) for number in range(6)] == [200] * 5 + [429]
        assert status(tag_uris(0)) == 200  # The caller already follows the same URIs.
        assert status(tag_uris(5000), "127.0.0.2") == 200


def test_caller_follows_only_readable_models(tmp_path, monkeypatch):
    with basic_auth_server(tmp_path, "ann", "bob") as server, tracking_at(server.url):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password("ann"))
        register(server.url, "X")
        with closing(read_changes([CHAMPION])) as events:
            assert next_event(events) == {CHAMPION: "1"}

        url = f"{server.url}{CHANGES}"
        for account, status in (
            (("bob", password("bob")), 403),
            (("ann", "wrong"), 401),
            (None, 401),
        ):
            answer = requests.get(url, {"uri": CHAMPION}, auth=account, timeout=60)
            assert answer.status_code == status


def test_open_streams_do_not_delay_the_end(tmp_path):
    with running(tmp_path) as server:
        events = read_changes([CHAMPION])
        next_event(events)
        os.killpg(server.process.pid, signal.SIGTERM)
        assert [selected for selected in events if selected] == []
        server.process.wait(timeout=30)
        server.process = None
