"""The inbox of pushed events: once, all or none, in pairs, and bounded."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from mlflow_deploy_plugin.core.errors import TooManyRequests
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store import inbox
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.inbox import PushedEvent, PushedExchange
from tests.support.clocks import Clock
from tests.support.refusals import refused

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
REQUEST = PushedEvent("a", "request", NOW - timedelta(seconds=2), "application/json", b"[1]")
RESPONSE = PushedEvent("a", "response", NOW - timedelta(seconds=1), "", b"[0.5]")
EXCHANGE = PushedExchange("a", REQUEST.time, b"[1]", b"[0.5]", "application/json", "", 0)


@pytest.fixture
def clock():
    return Clock(NOW)


@pytest.fixture
def store(store_url, clock):
    opened = open_store(store_url, clock)
    yield opened
    opened.close()


@pytest.mark.parametrize("events", [(REQUEST, RESPONSE), (RESPONSE, REQUEST)])
@pytest.mark.parametrize("at_once", [True, False])
def test_observed_exchange_is_paired_in_any_order(store, name, events, at_once):
    for batch in [events] if at_once else [[event] for event in events]:
        inbox.add_events(store, name, batch)
    inbox.add_events(store, f"{name}x", [REQUEST])

    assert inbox.exchanges(store, name, 10) == [EXCHANGE]
    inbox.remove(store, name, ["a"])
    assert inbox.exchanges(store, name, 10) == []
    assert inbox.unanswered(store, f"{name}x", NOW + timedelta(1)) == (1, "a")
    inbox.drop_unanswered(store, f"{name}x", NOW + timedelta(1))


def test_observed_exchanges_are_limited_in_order_of_arrival(store, name):
    for identity in "cab":
        both = [replace(event, id=identity) for event in (REQUEST, RESPONSE)]
        inbox.add_events(store, name, both)

    assert [exchange.id for exchange in inbox.exchanges(store, name, 2)] == ["c", "a"]


def test_repeated_observed_event_is_kept_once(store, name):
    for _ in range(2):
        inbox.add_events(store, name, [REQUEST, RESPONSE])
    assert inbox.exchanges(store, name, 10) == [EXCHANGE]

    inbox.add_events(store, name, [replace(RESPONSE, body=b"other")])

    assert inbox.exchanges(store, name, 10) == [replace(EXCHANGE, conflicts=1)]


def test_old_unanswered_observed_requests_are_dropped(store, name, clock):
    inbox.add_events(store, name, [REQUEST, replace(RESPONSE, id="lost")])
    clock.now += timedelta(hours=1)
    inbox.add_events(store, name, [replace(REQUEST, id="new")])

    before = NOW + timedelta(minutes=1)
    assert inbox.unanswered(store, name, before) == (1, "a")
    inbox.drop_unanswered(store, name, before)

    assert inbox.unanswered(store, name, before) == (0, "")
    answers = [replace(RESPONSE, id=identity) for identity in ("a", "new")]
    inbox.add_events(store, name, [*answers, replace(REQUEST, id="lost")])
    assert [exchange.id for exchange in inbox.exchanges(store, name, 10)] == ["new"]


@pytest.mark.parametrize(("limit", "value"), [("MOST_EXCHANGES", 1), ("MOST_BYTES", 8)])
def test_full_observed_inbox_stores_none_of_a_batch(store, name, monkeypatch, limit, value):
    monkeypatch.setattr(inbox, limit, value)
    inbox.add_events(store, name, [REQUEST, RESPONSE])

    with refused(TooManyRequests, name, "onnxserve controller") as caught:
        inbox.add_events(store, name, [replace(REQUEST, id="b")])
    assert caught.value.retry_after
    inbox.add_events(store, name, [REQUEST])  # A repeated event takes no room.

    inbox.remove(store, name, ["a"])
    assert inbox.unanswered(store, name, NOW + timedelta(1)) == (0, "")
    inbox.add_events(store, name, [])


def test_observed_inbox_is_deleted_with_its_endpoint(store, name):
    store.add_endpoint("onnxserve:/observed", new_endpoint(name, "models:/m/1"))
    inbox.add_events(store, name, [REQUEST, RESPONSE])
    store.remove_endpoint(name)
    assert inbox.exchanges(store, name, 10) == []
