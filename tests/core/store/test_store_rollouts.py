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
from tests.support.refusals import refused

NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)


class Machine:
    """A store from the view of one machine, with simulated clocks."""

    def __init__(self, url):
        self.wall = NOW
        self.monotonic = 1000.0
        self.store = open_store(url, lambda: self.wall, lambda: self.monotonic)


@pytest.fixture
def machines(store_url):
    both = (Machine(store_url), Machine(store_url))
    yield both
    for machine in both:
        machine.store.close()


@pytest.fixture
def store(machines):
    return machines[0].store


def test_rollout_round_trips(store, name):
    added = store.add_rollout(name, {"to": "models:/X/7"}, "starting")

    written = store.update_rollout(
        replace(added, state="stepping", step=2, figures={"n": 5}, reason="so"), None
    )

    assert store.rollouts(name) == [written]
    assert written.id == added.id
    assert written.state == "stepping"
    assert written.step == 2
    assert written.figures == {"n": 5}
    assert (written.spec, written.reason, written.is_live) == ({"to": "models:/X/7"}, "so", True)


def test_endpoint_has_one_live_rollout(machines, name):
    first, second = (machine.store for machine in machines)
    live = first.add_rollout(name, {}, "starting")

    with refused(AlreadyExists, f"'{name}'", "rollout"):
        second.add_rollout(name, {}, "starting")

    assert first.update_rollout(replace(live, state="promoted", ended_at=NOW), None)
    assert second.add_rollout(name, {}, "starting").is_live
    assert len(first.rollouts(name)) == 2
    assert len(first.rollouts(name, live=True)) == 1
    assert first.rollouts(name, limit=1) == first.rollouts(name)[1:]


def test_deleted_endpoint_ends_its_rollout(store, name):
    store.add_endpoint("onnxserve", new_endpoint(name, "models:/X/1"))
    begun = store.add_rollout(name, {}, "stepping")

    assert store.remove_endpoint(name)

    (ended,) = store.rollouts(name)
    assert ended.state == "abandoned"
    assert ended.reason == "the endpoint was deleted"
    assert not ended.is_live
    assert store.update_rollout(begun, None) is None
    assert [event.action for event in store.events(name)] == ["create", "rollout.end", "delete"]


def test_stale_or_ended_rollout_is_not_updated(store, name):
    read = store.add_rollout(name, {}, "starting")

    paused = store.update_rollout(replace(read, state="paused"), None)
    assert store.update_rollout(replace(read, state="stepping"), None) is None
    ended = store.update_rollout(replace(paused, ended_at=NOW), None)
    assert store.update_rollout(replace(ended, state="stepping"), None) is None


def test_rollout_change_and_event_are_atomic(store, name):
    begun = AuditEvent(
        NOW, "ada@laptop", "rollout.start", name, model="X", version="7", detail={"steps": [1, 100]}
    )
    step = replace(begun, action="rollout.step")
    added = store.add_rollout(name, {}, "starting", begun)

    assert store.update_rollout(replace(added, state="stepping"), None, step)
    assert store.update_rollout(added, None, replace(begun, action="rollout.end")) is None
    with pytest.raises(AlreadyExists):
        store.add_rollout(name, {}, "starting", begun)

    assert [*store.events(name)] == [begun, step]


def test_lease_has_one_holder_until_released(machines, name):
    first, second = (machine.store for machine in machines)
    lease = first.acquire_lease(name, "one", 10)

    assert second.acquire_lease(name, "two", 10) is None
    assert second.lease(name).holder == "one"
    first.release_lease(lease)
    assert second.lease(name) is None
    taken = second.acquire_lease(name, "two", 10)
    assert first.renew_lease(lease) is None
    assert second.renew_lease(taken)


def test_expired_lease_is_taken_over(machines, name):
    first, second = machines
    lost = first.store.acquire_lease(name, "one", 10)
    rollout = first.store.add_rollout(name, {}, "starting")

    assert second.store.acquire_lease(name, "two", 10) is None
    second.monotonic += 9.9
    assert second.store.acquire_lease(name, "two", 10) is None
    second.monotonic += 0.2
    taken = second.store.acquire_lease(name, "two", 10)

    assert taken.token != lost.token
    assert first.store.renew_lease(lost) is None
    assert first.store.update_rollout(replace(rollout, state="stepping"), lost) is None
    assert second.store.update_rollout(replace(rollout, state="stepping"), taken)
    first.store.release_lease(lost)
    assert second.store.renew_lease(taken)


def test_renewed_lease_is_kept(machines, name):
    first, second = machines
    lease = first.store.acquire_lease(name, "one", 10)

    for _ in range(3):
        assert second.store.acquire_lease(name, "two", 10) is None
        first.monotonic += 6
        second.monotonic += 6
        lease = first.store.renew_lease(lease)

    assert lease.until == first.monotonic + 10


def test_lease_waiter_learns_holder_and_is_next(machines, name):
    for machine in machines:
        machine.monotonic = time.monotonic()  # The keeper uses this clock.
    first, second = (machine.store for machine in machines)
    holders = []

    def wait_for(holder):
        holders.append(holder)
        held.close()

    with ExitStack() as held:
        held.enter_context(held_lease(first, name, wait_for))
        with held_lease(second, name, wait_for) as keeper:
            assert keeper.is_held

    assert holders == [f"{current_actor()} (process {os.getpid()})"]
    assert second.lease(name) is None


def test_wall_clock_jump_moves_no_lease(machines, name):
    first, second = machines
    assert first.store.acquire_lease(name, "one", 10)
    assert second.store.acquire_lease(name, "two", 10) is None

    second.wall = NOW.replace(year=2030)
    second.monotonic += 1

    assert second.store.acquire_lease(name, "two", 10) is None
    first.wall = NOW.replace(year=2020)
    second.monotonic += 10
    assert second.store.acquire_lease(name, "two", 10)


@pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgresql)], indirect=True
)
@pytest.mark.parametrize(("year", "seconds"), [(2020, 10), (2090, 0)])
def test_wall_clock_of_holder_is_ignored(machines, name, year, seconds):
    """Machines that share an SQLite file count as one machine."""
    first, second = machines
    first.wall = NOW.replace(year=year)

    lease = first.store.acquire_lease(name, "one", seconds)

    assert second.store.lease(name).is_current == (seconds > 0)
    first.store.release_lease(lease)
