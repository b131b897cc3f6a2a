"""What one controller of a store does: under a lease that it keeps while it works, and gives back."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlflow_deploy_plugin.controller.leadership import STORE_LEASE, is_local, lead_store, repeat, rollouts_lease_name
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.store import open_store
from tests.support.waiting import wait_until

SECONDS = 30.0
Start = Callable[[str], threading.Event]


@pytest.fixture
def worked() -> list[str]:
    """Who has worked, in its order."""
    return []


@pytest.fixture
def start(tmp_path: Path, worked: list[str]) -> Iterator[Start]:
    """Runs a controller of this name beside the test; the event that is given ends it, and so does the test's end."""
    running = []

    def begin(name: str) -> threading.Event:
        ended, store = threading.Event(), open_store(f"sqlite:///{tmp_path}/store.db")
        works = [repeat(lambda: worked.append(name), seconds=0.01)]
        arguments = (store, works, name, 0.4, lambda line: None, ended)
        thread = threading.Thread(target=lead_store, args=arguments)
        thread.start()
        running.append((thread, ended, store))
        return ended

    yield begin
    for thread, ended, store in running:
        ended.set()
        thread.join()
        store.close()


def test_one_works_for_as_long_as_it_lives_and_another_goes_on(tmp_path: Path, start: Start, worked: list[str]) -> None:
    store = open_store(f"sqlite:///{tmp_path}/store.db")
    first = start("first")
    wait_until(lambda: worked, SECONDS, "the first works")
    begun = store.lease(STORE_LEASE)
    assert begun is not None
    start("second")

    def is_renewed() -> bool:
        view = store.lease(STORE_LEASE)
        return view is not None and view.expires_at > begun.expires_at

    wait_until(is_renewed, SECONDS, "the lease is renewed")
    assert {*worked} == {"first"}

    first.set()
    wait_until(lambda: worked[-1] == "second", SECONDS, "the other works")
    store.close()


def test_controllers_that_see_the_same_state_folders_want_the_same_lease_and_others_another(tmp_path: Path) -> None:
    here, there, nowhere = (Settings(home=tmp_path / name) for name in ("here", "there", "nowhere"))
    for settings in (here, there):
        (settings.deployments_path / "flights").mkdir(parents=True)

    assert rollouts_lease_name(here) == rollouts_lease_name(here)
    assert rollouts_lease_name(here) != rollouts_lease_name(there)
    assert rollouts_lease_name(nowhere) == ""
    assert [is_local("flights", settings) for settings in (here, there, nowhere)] == [True, True, False]
