"""The controller of a store works under a lease, which it renews while it works and
releases at its end.
"""

import socket
import threading
from contextlib import closing

import pytest

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.promote.rollouts import leadership
from mlflow_deploy_plugin.promote.rollouts.leadership import (
    LEADS,
    STORE_LEASE,
    lead_store,
    reached_places,
    reaches,
    repeat,
)
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from tests.support.clusters import kubeconfig
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

SECONDS = 30.0


@pytest.fixture
def worked():
    """Return the names of the holders that have worked, in order."""
    return []


@pytest.fixture
def start(tmp_path, worked):
    """Run a controller of this name during the test. The returned event ends it, and so
    does the end of the test.
    """
    running = []

    def begin(name):
        ended = threading.Event()
        store = open_store(f"sqlite:///{tmp_path}/store.db")
        works = [repeat(lambda: worked.append(name), seconds=0.01)]
        arguments = (store, works, name, 4, lambda line: None, ended)
        thread = threading.Thread(target=lead_store, args=arguments)
        thread.start()
        running.append((thread, ended, store))
        return ended

    yield begin
    for thread, ended, store in running:
        ended.set()
        thread.join()
        store.close()


def test_second_controller_works_after_the_first(store, start, worked):
    first = start("first")
    wait_until(lambda: worked, SECONDS, "the first works")
    begun = store.lease(STORE_LEASE)
    assert begun is not None
    start("second")

    def is_renewed():
        view = store.lease(STORE_LEASE)
        return view is not None and view.expires_at > begun.expires_at

    wait_until(is_renewed, SECONDS, "the lease is renewed")
    assert {*worked} == {"first"}

    first.set()
    wait_until(lambda: worked[-1] == "second", SECONDS, "the other works")


def test_regained_lease_is_reported(store):
    ended = threading.Event()
    messages = []
    # The lease is not renewed, as if the store rejected writes.
    assert store.acquire_lease(STORE_LEASE, "this", 1)
    lost = store.lease(STORE_LEASE)

    def work(keeper, over):
        ended.set()

    lead_store(
        store,
        [work],
        "this",
        4,
        lambda line: messages.append((line, store.lease(STORE_LEASE) == lost)),
        ended,
    )
    assert messages == [("this is the controller", False)]


def test_metric_shows_leadership(start, worked):
    ended = start("the test")
    wait_until(lambda: worked, SECONDS, "it works")
    wait_until(lambda: leads() == 1, SECONDS, "it leads")
    ended.set()
    wait_until(lambda: leads() == 0, SECONDS, "it leads no more")


def leads():
    (metric,) = LEADS.collect()
    return metric.samples[0].value


def test_failed_task_is_restarted(store, monkeypatch):
    monkeypatch.setattr(leadership, "_FAILURE_SECONDS", 0.01)
    begun = []
    ended = threading.Event()

    def task(keeper, over):
        begun.append(keeper.lease.token)
        if len(begun) == 1:
            raise RuntimeError("can't start new thread")
        ended.set()
        over.wait()

    lead_store(store, [task], "the test", 15, lambda line: None, ended)

    assert begun == begun[:1] * 2


def test_place_is_the_visible_state_folder(store, tmp_path):
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/flight-delay/1"))
    here, beside, there, nowhere = (
        Deployments(store, Settings(home=tmp_path / name), print)
        for name in ("here", "here", "there", "nowhere")
    )
    for deployments in (here, there):
        (deployments.settings.deployments_path / "flights").mkdir(parents=True)

    place = here.place("flights")
    assert place == beside.place("flights") != there.place("flights")
    assert [reaches(deployments, "flights") for deployments in (here, there, nowhere)] == [
        True,
        True,
        False,
    ]
    assert [reaches(deployments, "flights", place) for deployments in (here, there, nowhere)] == [
        True,
        False,
        False,
    ]
    messages = []
    assert list(reached_places(beside, messages.append)) == [(place, "the servers here")]
    assert not list(reached_places(nowhere, messages.append))
    assert not messages


@pytest.fixture
def with_cluster(tmp_path):
    """Deployments with an endpoint here and an endpoint in a cluster."""
    with closing(open_store(f"sqlite:///{tmp_path}/store.db")) as store:
        store.add_endpoint("onnxserve:/kubernetes/ml", new_endpoint("churn", "models:/churn/1"))
        store.add_endpoint("onnxserve", new_endpoint("flights", "models:/flight-delay/1"))
        here = Deployments(store, Settings(home=tmp_path), print)
        (here.settings.deployments_path / "flights").mkdir(parents=True)
        yield here


def test_unreachable_cluster_does_not_hide_other_places(with_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    failures = []
    places = dict(reached_places(with_cluster, failures.append))
    assert places.keys() == {with_cluster.place("flights")}
    (line,) = failures
    assert mentions(line, "onnxserve:/kubernetes/ml", "no Kubernetes cluster")


def test_local_rollouts_do_not_wait_for_a_hanging_cluster(with_cluster, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        config = kubeconfig(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("KUBECONFIG", str(config))
        place = with_cluster.place("flights")
        assert next(reached_places(with_cluster, print)) == (place, "the servers here")
        with pytest.raises(BlockingIOError):
            silent.accept()
