"""The controller of a store works under a lease, which it renews while it works and
releases at its end.
"""

import socket
import threading
from collections.abc import Callable

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
from tests.support.waiting import wait_until

SECONDS = 30.0
Start = Callable[[str], threading.Event]


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


def test_one_works_for_as_long_as_it_lives_and_another_goes_on(tmp_path, start, worked):
    store = open_store(f"sqlite:///{tmp_path}/store.db")
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
    store.close()


def test_one_that_has_lost_its_lease_says_that_it_leads_when_it_has_it_again(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/store.db")
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
    store.close()


def test_leadership_metric_shows_whether_this_process_leads(start, worked):
    ended = start("the test")
    wait_until(lambda: worked, SECONDS, "it works")
    wait_until(lambda: leads() == 1, SECONDS, "it leads")
    ended.set()
    wait_until(lambda: leads() == 0, SECONDS, "it leads no more")


def leads():
    (metric,) = LEADS.collect()
    return metric.samples[0].value


def test_a_task_that_fails_is_begun_again(tmp_path, monkeypatch):
    monkeypatch.setattr(leadership, "_FAILURE_SECONDS", 0.01)
    store = open_store(Settings(home=tmp_path).store_url)
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
    store.close()


def test_processes_that_see_the_same_state_folders_are_at_the_same_place_and_others_at_another(
    tmp_path,
):
    store = open_store(f"sqlite:///{tmp_path}/store.db")
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
    messages: list[str] = []
    assert list(reached_places(beside, messages.append)) == [(place, "the servers here")]
    assert not list(reached_places(nowhere, messages.append))
    assert not messages
    store.close()


def test_unreachable_cluster_is_reported_and_other_places_are_still_found(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    store = open_store(f"sqlite:///{tmp_path}/store.db")
    store.add_endpoint("onnxserve:/kubernetes/ml", new_endpoint("churn", "models:/churn/1"))
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/flight-delay/1"))
    here = Deployments(store, Settings(home=tmp_path), print)
    (here.settings.deployments_path / "flights").mkdir(parents=True)

    failures: list[str] = []
    places = dict(reached_places(here, failures.append))

    assert places.keys() == {here.place("flights")}
    (line,) = failures
    assert line.startswith(
        "rollouts of onnxserve:/kubernetes/ml are left to other controllers: no Kubernetes "
        "cluster is"
    )
    store.close()


def test_rollouts_of_this_machine_do_not_wait_for_a_cluster_that_does_not_answer(
    tmp_path, monkeypatch
):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        config = kubeconfig(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("KUBECONFIG", str(config))
        store = open_store(f"sqlite:///{tmp_path}/store.db")
        store.add_endpoint("onnxserve:/kubernetes/ml", new_endpoint("churn", "models:/churn/1"))
        store.add_endpoint("onnxserve", new_endpoint("flights", "models:/flight-delay/1"))
        here = Deployments(store, Settings(home=tmp_path), print)
        (here.settings.deployments_path / "flights").mkdir(parents=True)

        assert next(reached_places(here, print)) == (here.place("flights"), "the servers here")
        with pytest.raises(BlockingIOError):
            silent.accept()
        store.close()
