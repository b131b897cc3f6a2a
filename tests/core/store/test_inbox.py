"""The inbox of pushed events: once, all or none, in pairs, and bounded."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, event

from mlflow_deploy_plugin.core.errors import TooManyRequests
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store import inbox
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.inbox import PushedEvent, PushedExchange
from tests.support.clocks import Clock
from tests.support.refusals import refused

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
REQUEST = PushedEvent("a", "request", NOW - timedelta(seconds=2), b"[1]")
RESPONSE = PushedEvent("a", "response", NOW - timedelta(seconds=1), b"[0.5]")
EXCHANGE = PushedExchange("a", REQUEST.time, b"[1]", b"[0.5]", 0)


@pytest.fixture
def clock():
    return Clock(NOW)


@pytest.fixture
def store(store_url, clock, name):
    """Return a store with an observed endpoint."""
    opened = open_store(store_url, clock)
    opened.add_endpoint("onnxserve:/observed", new_endpoint(name, "models:/m/1"))
    yield opened
    opened.remove_endpoint(name)
    opened.close()


@pytest.mark.parametrize("events", [(REQUEST, RESPONSE), (RESPONSE, REQUEST)])
def test_observed_events_are_paired_once_in_any_order(store, name, events):
    for _ in range(2):
        for each in events:
            inbox.add_events(store, name, [each])
    assert inbox.exchanges(store, name) == [EXCHANGE]

    inbox.add_events(store, name, [replace(RESPONSE, body=b"other")])
    assert inbox.exchanges(store, name) == [replace(EXCHANGE, conflicts=1)]

    inbox.remove(store, f"{name}x", ["a"])
    store.remove_endpoint(name)
    assert inbox.exchanges(store, name) == []


def test_observed_exchanges_are_read_in_order_of_arrival(store, name):
    for identity in "cab":
        both = [replace(each, id=identity) for each in (REQUEST, RESPONSE)]
        inbox.add_events(store, name, both)

    assert [exchange.id for exchange in inbox.exchanges(store, name)] == ["c", "a", "b"]
    inbox.remove(store, name, ["c", "a"])
    assert [exchange.id for exchange in inbox.exchanges(store, name)] == ["b"]


def test_unanswered_observed_requests_are_dropped(store, name, clock):
    inbox.add_events(store, name, [REQUEST, replace(RESPONSE, id="lost")])
    clock.now += timedelta(hours=1)
    inbox.add_events(store, name, [replace(REQUEST, id="new")])

    before = NOW + timedelta(minutes=1)
    assert sorted(inbox.take_unanswered(store, name, before)) == ["a", "lost"]

    assert inbox.take_unanswered(store, name, before) == []
    assert inbox.take_unanswered(store, name, clock.now + timedelta(minutes=1)) == ["new"]


def test_observed_batch_reads_a_stored_exchange_once(store, name):
    """Large bodies that are read for each event would lock the store for seconds."""
    inbox.add_events(store, name, [REQUEST])
    statements = []

    def note(connection, cursor, statement, *others):
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        inbox.add_events(store, name, [RESPONSE] * 50)
    finally:
        event.remove(Engine, "before_cursor_execute", note)

    assert len(statements) < 10
    assert inbox.exchanges(store, name) == [EXCHANGE]


def test_full_observed_inbox_stores_none_of_a_batch(store, name, monkeypatch):
    monkeypatch.setattr(inbox, "MOST_BYTES", 2000)
    inbox.add_events(store, name, [REQUEST])

    with refused(TooManyRequests, name):
        inbox.add_events(store, name, [RESPONSE, replace(REQUEST, id="b")])
    assert inbox.exchanges(store, name) == []
    inbox.add_events(store, name, [REQUEST, RESPONSE])
