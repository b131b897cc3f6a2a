"""The thread of the agent that follows the change feed, with a real server that is
killed, frozen and replaced.
"""

import itertools
import os
import signal
import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.registry import change_feed
from mlflow_deploy_plugin.serve.agent import feed as feeds
from mlflow_deploy_plugin.serve.agent.feed import FeedFollower
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.nginx import nginx_of_the_guide
from tests.support.services.proxy import proxy_to
from tests.support.tracking import tracking_at
from tests.support.waiting import wait_until

CHAMPION = "models:/X@champion"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("feed")
    server = MlflowServer(folder, app="onnxserve")
    server.variables = {
        "ONNXSERVE_HOME": str(folder / "home"),
        "MLFLOW_TRACKING_URI": "",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{server.host}:*",  # A balancer passes its own address.
    }
    try:
        server.start()
        client = MlflowClient(server.url)
        client.create_registered_model("X")
        run = client.create_run("0").info.run_id
        for _ in range(2):
            client.create_model_version("X", f"runs:/{run}/model", run)
        client.set_registered_model_alias("X", "champion", "1")
        with tracking_at(server.url):
            yield server
    finally:
        server.kill()


@pytest.fixture
def feed():
    stop = threading.Event()
    feed = FeedFollower(stop)
    feed.uris = frozenset({CHAMPION})
    feed.start()
    yield feed
    stop.set()


def move(server, version):
    MlflowClient(server.url).set_registered_model_alias("X", "champion", version)


def wait_for(feed, version, seconds=30):
    arrived = []

    def has_arrived():
        arrived.extend(
            resolved.version for resolved in feed.take().values() if resolved is not None
        )
        return arrived[-1:] == [version]

    wait_until(has_arrived, seconds, f"version {version} arrives")


@pytest.mark.long
def test_changes_arrive_after_a_server_restart(server, feed):
    move(server, "1")
    wait_for(feed, "1")
    assert feed.covered == {CHAMPION}

    server.kill()
    wait_until(lambda: not feed.covered, 10, "the cut is noticed")
    database = f"sqlite:///{server.folder}/mlflow.db"
    MlflowClient(tracking_uri=database, registry_uri=database).set_registered_model_alias(
        "X", "champion", "2"
    )
    server.start()

    wait_for(feed, "2", 60)
    assert feed.covered == {CHAMPION}


@pytest.mark.long
def test_silent_server_is_noticed(server, feed, monkeypatch):
    """A frozen process keeps its connections open, like a proxy that hangs."""
    monkeypatch.setattr(change_feed, "_SILENCE_SECONDS", 6.0)
    move(server, "1")
    wait_for(feed, "1")
    # The stream is opened again, with the short timeout.
    feed.uris = frozenset({CHAMPION, "models:/X/Production"})
    wait_until(lambda: len(feed.covered) == 2, 20, "the new URIs are covered")

    os.killpg(server.process.pid, signal.SIGSTOP)
    wait_until(lambda: not feed.covered, 20, "the silence is noticed")
    os.killpg(server.process.pid, signal.SIGCONT)
    move(server, "2")
    wait_for(feed, "2")


@contextmanager
def replicas(server, hanging):
    """Yield the address of a balancer that passes the first `hanging` connections to a
    replica that never answers.
    """
    with socket.create_server((server.host, 0)) as listener, ExitStack() as opened:

        def accept():
            for number in itertools.count():
                try:
                    client = opened.enter_context(listener.accept()[0])
                except OSError:
                    return
                if number >= hanging:
                    replica = opened.enter_context(
                        socket.create_connection((server.host, server.port))
                    )
                    for source, target in ((client, replica), (replica, client)):
                        threading.Thread(target=pass_on, args=(source, target), daemon=True).start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"http://{server.host}:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()


def pass_on(source, target):
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)


@pytest.mark.long
def test_replica_without_a_head_is_skipped(server, request, monkeypatch):
    monkeypatch.setattr(change_feed, "_HEAD_SECONDS", 1.0)
    move(server, "1")
    before = time.monotonic()
    with replicas(server, hanging=3) as address, tracking_at(address):
        feed = request.getfixturevalue("feed")
        wait_for(feed, "1")
        assert time.monotonic() - before < change_feed._SILENCE_SECONDS
        arrived = feed.messages
        wait_until(lambda: feed.messages > arrived, 30, "a comment arrives")
        # The pause between two comments is longer than the limit for the head.
        assert feed.covered == {CHAMPION}


@pytest.fixture
def nginx(server, tmp_path):
    """Debian's nginx with the lines of docs/operate.md: the first server hangs, and the
    second one is the server.
    """
    accepted = []
    with socket.create_server((server.host, 0)) as hanging:

        def accept():
            with suppress(OSError):
                while True:
                    accepted.append(hanging.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        addresses = [f"{server.host}:{port}" for port in (hanging.getsockname()[1], server.port)]
        try:
            with nginx_of_the_guide(tmp_path, "mlflow", addresses, "/health") as url:
                yield url, accepted
        finally:
            hanging.shutdown(socket.SHUT_RDWR)
            for connection in accepted:
                connection.close()


@pytest.mark.long
def test_nginx_of_the_guide_skips_a_hanging_replica(server, nginx):
    url, connections = nginx
    before = len(connections)
    move(server, "1")
    with tracking_at(url):
        # nginx takes the replicas in turn, so one of the requests is for the one that
        # hangs.
        for _ in range(2):
            with closing(change_feed.read_changes([CHAMPION])) as events:
                (resolved,) = next(selected for selected in events if selected).values()
                assert resolved is not None
                assert resolved.version == "1"
        assert len(connections) == before + 1


@pytest.mark.long
def test_server_without_a_feed_is_polled(server, monkeypatch, caplog):
    monkeypatch.setattr(feeds, "_WITHOUT_FEED_SECONDS", 1.0)
    with proxy_to(server.host, server.port) as proxy, tracking_at(proxy.url):
        stop = threading.Event()
        feed = FeedFollower(stop)
        feed.uris = frozenset({CHAMPION})
        for status, body in ((404, "no page"), (200, "<html>login</html>"), (502, "bad gateway")):
            proxy.turn(body, where="/onnxserve/changes", status=status)
            if not feed.is_alive():
                feed.start()
            proxy.asked.clear()
            wait_until(lambda: len(proxy.asked) >= 2, 20, f"the status {status} is tolerated")
            assert not feed.covered
        stop.set()
    assert "502" in caplog.text
