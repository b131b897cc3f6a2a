"""Rollouts and leases in the store: one live rollout per endpoint, one holder per
lease, no write without a lease.
"""

import os
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from mlflow_deploy_plugin.core.errors import AlreadyExists
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.audit import AuditEvent, current_actor
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.leases import held_lease
from mlflow_deploy_plugin.core.store.store import Store
from tests.support.refusals import refused

NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)


class Machine:
    """A store from the view of one machine, with simulated clocks."""

    def __init__(self, url: str) -> None:
        self.wall = NOW
        self.monotonic = 1000.0
        self.store: Store = open_store(url, lambda: self.wall, lambda: self.monotonic)


@pytest.fixture
def machines(store_url):
    both = (Machine(store_url), Machine(store_url))
    yield both
    for machine in both:
        machine.store.close()


@pytest.fixture
def name(request):
    """Return a name that no other test uses,
    because the PostgreSQL database is shared.
    """
    return f"e{abs(hash(request.node.name)) % 10**12}"


def test_a_rollout_comes_back_as_it_was_written(machines, name):
    store = machines[0].store
    added = store.add_rollout(name, {"to": "models:/X/7"}, "starting")

    written = store.update_rollout(
        replace(added, state="stepping", step=2, figures={"n": 5}, reason="so"), None
    )

    assert written is not None
    assert store.rollouts(name) == [written]
    assert written.id == added.id
    assert written.state == "stepping"
    assert written.step == 2
    assert written.figures == {"n": 5}
    assert (written.spec, written.reason, written.is_live) == ({"to": "models:/X/7"}, "so", True)


def test_an_endpoint_has_one_live_rollout(machines, name):
    first, second = (machine.store for machine in machines)
    live = first.add_rollout(name, {}, "starting")

    with refused(AlreadyExists, f"'{name}'", "rollout"):
        second.add_rollout(name, {}, "starting")

    assert first.update_rollout(replace(live, state="promoted", ended_at=NOW), None)
    assert second.add_rollout(name, {}, "starting").is_live
    assert len(first.rollouts(name)) == 2
    assert len(first.rollouts(name, live=True)) == 1
    assert first.rollouts(name, limit=1) == first.rollouts(name)[1:]


def test_a_rollout_ends_with_its_endpoint(machines, name):
    store = machines[0].store
    store.add_endpoint("onnxserve", new_endpoint(name, "models:/X/1"))
    begun = store.add_rollout(name, {}, "stepping")

    assert store.remove_endpoint(name)

    (ended,) = store.rollouts(name)
    assert (ended.state, ended.reason, ended.is_live) == (
        "abandoned",
        "the endpoint was deleted",
        False,
    )
    assert store.update_rollout(begun, None) is None
    assert [event.action for event in store.events(name)] == ["create", "rollout.end", "delete"]


def test_of_two_that_change_the_same_rollout_the_second_is_refused(machines, name):
    first, second = (machine.store for machine in machines)
    read = first.add_rollout(name, {}, "starting")

    assert first.update_rollout(replace(read, state="paused"), None)
    assert second.update_rollout(replace(read, state="stepping"), None) is None


def test_ended_rollout_is_never_updated(machines, name):
    store = machines[0].store
    ended = store.update_rollout(
        replace(store.add_rollout(name, {}, "starting"), ended_at=NOW), None
    )

    assert ended is not None
    assert store.update_rollout(replace(ended, state="stepping"), None) is None


def test_a_change_is_written_together_with_its_event(machines, name):
    store = machines[0].store
    begun = AuditEvent(
        NOW, "ada@laptop", "rollout.start", name, model="X", version="7", detail={"steps": [1, 100]}
    )
    added = store.add_rollout(name, {}, "starting", begun)

    assert store.update_rollout(
        replace(added, state="stepping"), None, replace(begun, action="rollout.step")
    )
    assert store.update_rollout(added, None, replace(begun, action="rollout.end")) is None
    with pytest.raises(AlreadyExists):
        store.add_rollout(name, {}, "starting", begun)

    assert [*store.events(name)] == [begun, replace(begun, action="rollout.step")]


def test_a_lease_has_one_holder_until_it_is_given_back(machines, name):
    first, second = (machine.store for machine in machines)
    lease = first.acquire_lease(name, "one", 10)

    assert lease is not None
    assert second.acquire_lease(name, "two", 10) is None
    assert (seen := second.lease(name)) is not None
    assert seen.holder == "one"
    first.release_lease(lease)
    assert second.lease(name) is None
    taken = second.acquire_lease(name, "two", 10)
    assert taken is not None
    assert first.renew_lease(lease) is None
    assert second.renew_lease(taken)


def test_a_lease_that_is_not_renewed_is_taken_over_after_its_length(machines, name):
    first, second = machines
    lost = first.store.acquire_lease(name, "one", 10)
    assert lost is not None
    rollout = first.store.add_rollout(name, {}, "starting")

    assert second.store.acquire_lease(name, "two", 10) is None
    second.monotonic += 9.9
    assert second.store.acquire_lease(name, "two", 10) is None
    second.monotonic += 0.2
    taken = second.store.acquire_lease(name, "two", 10)

    assert taken is not None
    assert taken.token != lost.token
    assert first.store.renew_lease(lost) is None
    assert first.store.update_rollout(replace(rollout, state="stepping"), lost) is None
    assert second.store.update_rollout(replace(rollout, state="stepping"), taken)
    first.store.release_lease(lost)
    assert second.store.renew_lease(taken)


def test_who_waits_for_a_lease_hears_who_has_it_and_gets_it_next(machines, name):
    for machine in machines:
        machine.monotonic = time.monotonic()  # The keeper uses this clock.
    first, second = (machine.store for machine in machines)
    holders: list[str] = []

    def wait_for(holder):
        holders.append(holder)
        held.close()

    with ExitStack() as held:
        held.enter_context(held_lease(first, name, wait_for))
        with held_lease(second, name, wait_for) as keeper:
            assert keeper.is_held

    assert holders == [f"{current_actor()} (process {os.getpid()})"]
    assert second.lease(name) is None


def test_a_renewed_lease_is_kept_however_long(machines, name):
    first, second = machines
    lease = first.store.acquire_lease(name, "one", 10)

    for _ in range(5):
        assert lease is not None
        assert second.store.acquire_lease(name, "two", 10) is None
        first.monotonic += 6
        second.monotonic += 6
        lease = first.store.renew_lease(lease)

    assert lease is not None
    assert lease.until == first.monotonic + 10


def test_a_jump_of_a_wall_clock_moves_no_lease(machines, name):
    first, second = machines
    assert first.store.acquire_lease(name, "one", 10)
    assert second.store.acquire_lease(name, "two", 10) is None

    second.wall = NOW.replace(year=2030)
    second.monotonic += 1

    assert second.store.acquire_lease(name, "two", 10) is None
    first.wall = NOW.replace(year=2020)
    second.monotonic += 10
    assert second.store.acquire_lease(name, "two", 10)


@pytest.mark.postgresql
def test_a_holder_lives_for_others_whatever_its_wall_clock_shows(postgresql_url, name):
    """Machines that share an SQLite file count as one machine."""
    first = Machine(postgresql_url)
    second = Machine(postgresql_url)

    def is_current(year, seconds):
        first.wall = NOW.replace(year=year)
        lease = first.store.acquire_lease(name, "one", seconds)
        seen = second.store.lease(name)
        assert lease is not None
        assert seen is not None
        first.store.release_lease(lease)
        return seen.is_current

    assert is_current(2020, 10)
    assert not is_current(2090, 0)
    first.store.close()
    second.store.close()


def test_a_reason_that_no_database_takes_is_kept_as_far_as_it_does(machines, name):
    store = machines[0].store
    written = store.update_rollout(
        replace(store.add_rollout(name, {}, "starting"), reason="Error: \0 \ud800"), None
    )

    assert written is not None
    assert written.reason == "Error: \ufffd \ufffd"
