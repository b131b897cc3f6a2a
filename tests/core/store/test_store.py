"""The store keeps endpoints and their audit events,
both on SQLite and on PostgreSQL.
"""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, event, select

from mlflow_deploy_plugin.core.errors import AlreadyExists, InvalidConfig, NotFound
from mlflow_deploy_plugin.core.spec.document import (
    add_variant,
    apply_config,
    new_endpoint,
    remove_variant,
)
from mlflow_deploy_plugin.core.store.audit import AuditEvent, Login, current_actor
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.core.store.tables import EndpointRow
from tests.support.refusals import refused

START = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)


class Clock:
    """Return a time that advances by one second per call."""

    def __init__(self):
        self.now = START

    def __call__(self):
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def store(store_url):
    opened = open_store(store_url, Clock())
    yield opened
    for endpoint in opened.endpoints():
        opened.remove_endpoint(endpoint.name)
    opened.close()


def test_endpoint_round_trips(store):
    spec = new_endpoint(
        "flights", "models:/flight-delay/Production", {"server.port": 8123, "capture.fraction": 0.5}
    )

    added = store.add_endpoint("onnxserve", spec)

    assert store.endpoint("flights") == added
    assert added.name == "flights"
    assert added.target == "onnxserve"
    assert added.spec == spec
    assert START < added.created_at == added.updated_at
    assert added.created_at.tzinfo is UTC
    replaced = store.replace_spec(apply_config(spec, {"server.workers": 2}))
    assert replaced == store.endpoint("flights")
    assert replaced.spec.server.workers == 2
    assert replaced.created_at == added.created_at < replaced.updated_at


def test_event_texts_are_truncated_and_cleaned(store):
    store.record(
        "rollback",
        endpoint="texts",
        model="m" * 600,
        version="s3://" + "v" * 300,
        why="w" * 100_000 + "\0 'quoted' \u2028 \udcff",
        detail={"why": "\0 \udcff"},
        actor="a" * 300,
    )

    (event,) = store.events("texts")
    assert len(event.model) == 512
    assert len(event.version) == 255
    assert len(event.actor) == 255
    assert event.version.endswith("v…")
    assert event.why == "w" * 100_000 + "\ufffd 'quoted' \u2028 \ufffd"


def plans_on_sqlite(folder, ask):
    """Return the steps of SQLite's plans for the queries of `ask`."""
    file = folder / "store.db"
    store = open_store(f"sqlite:///{file}")
    statements: list[tuple[str, Any]] = []

    def note(connection, cursor, statement, parameters, *others):
        if connection.engine.url.database == str(file):
            statements.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        ask(store)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
        store.close()
    with closing(sqlite3.connect(file)) as database:
        plans = [
            database.execute(f"EXPLAIN QUERY PLAN {text}", values).fetchall()
            for text, values in statements
        ]
    return [step[3] for step in chain.from_iterable(plans)]


PENDING: dict[str, Any] = {"states": ("pending", "running", "failed"), "limit": 9}


@pytest.mark.parametrize(
    ("ask", "table", "index"),
    [
        (lambda store: (store.endpoints(), store.endpoint("x")), "audit_events", "deleted"),
        (lambda store: Monitors(store).windows(**PENDING), "monitor_windows", "state"),
        (
            lambda store: Monitors(store).windows(by_hand=False, **PENDING),
            "monitor_windows",
            "state",
        ),
        (
            lambda store: Monitors(store).windows("x", "hourly", **PENDING),
            "monitor_windows",
            "state",
        ),
    ],
)
def test_listing_uses_index(tmp_path, ask, table, index):
    reads = [step for step in plans_on_sqlite(tmp_path, ask) if f"onnxserve_{table}" in step]
    assert reads
    assert all(f"ix_onnxserve_{table}_{index}" in read for read in reads), reads


def test_long_read_does_not_block_a_writer(tmp_path):
    store, other = (open_store(f"sqlite:///{tmp_path}/store.db") for _ in range(2))

    with store.reading() as session:
        assert session.scalars(select(EndpointRow)).all() == []
        other.add_endpoint("onnxserve:/local", new_endpoint("flights", "models:/flights/1"))
        assert session.scalars(select(EndpointRow)).all() == [], (
            "a look sees the store as it was at its beginning"
        )

    assert store.names() == ["flights"]
    store.close()
    other.close()


def test_unreadable_spec_affects_only_its_endpoint(store):
    for name in ("good", "bad"):
        store.add_endpoint(
            "onnxserve",
            new_endpoint(name, "models:/m/1", {"monitors.daily.schedule": "15 6 * * *"}),
        )
    with store.transaction() as session:
        row = session.get(EndpointRow, "bad")
        row.spec = row.spec.replace("15 6 * * *", "at dawn")

    assert [endpoint.name for endpoint in store.endpoints()] == ["good"]
    (unreadable,) = store.unreadable()
    assert unreadable.name == "bad"
    assert unreadable.reason.startswith(
        "the spec of endpoint 'bad' in the store cannot be read: monitors.daily.schedule: five "
        "fields are expected"
    )
    with refused(InvalidConfig, "'bad'", "`onnxserve endpoint delete bad`"):
        store.require_endpoint("bad")
    with pytest.raises(AlreadyExists):
        store.add_endpoint("onnxserve", new_endpoint("bad", "m"))
    assert store.remove_endpoint("bad")
    assert store.names() == ["good"]


def test_missing_endpoint_cannot_be_replaced(store):
    with pytest.raises(NotFound, match="'flights'"):
        store.replace_spec(new_endpoint("flights", "one"))

    assert store.endpoint("flights") is None
    assert store.remove_endpoint("flights") is False


def test_update_event_lists_changed_fields(store):
    spec = add_variant(new_endpoint("told", "one", variant="a"), "b", "two")
    store.add_endpoint("onnxserve", spec)
    for config in (
        {"sticky.header": "X-User"},
        {"sticky.key": "id", "variants.b.weight": 5},
        {"server.workers": 2},
    ):
        spec = apply_config(spec, config)
        store.replace_spec(spec)
    store.replace_spec(spec := remove_variant(spec, "b"))
    for config in (
        {"monitors.daily.every": "1d"},
        {
            "monitors.fast.kind": "service_level",
            "monitors.fast.every": "1h",
            "monitors.fast.require": "p99<=1,p50<=1",
        },
        {"monitors.fast.alert": "ops,day"},
    ):
        spec = apply_config(spec, config)
        store.replace_spec(spec)

    assert [(event.before, event.after) for event in [*store.events("told")][1:]] == [
        ("sticky.header not set", "sticky.header x-user"),
        (
            "b 0, sticky.header x-user, sticky.key not set",
            "b 5, sticky.header not set, sticky.key id",
        ),
        ("server.workers not set", "server.workers 2"),
        ("b two 5", ""),
        ("", "monitor daily drift"),
        ("", "monitor fast service_level every 1h require p99<=1,p50<=1"),
        ("monitors.fast.alert not set", "monitors.fast.alert ops,day"),
    ]


def test_events_outlive_the_endpoint(store, request):
    name = "audited"
    store.add_endpoint("onnxserve", new_endpoint(name, "one"))
    store.record("stop", endpoint=name)
    store.replace_spec(new_endpoint(name, "two"))
    assert store.remove_endpoint(name) is True

    events = [*store.events(name)]

    assert [event.action for event in events] == ["create", "stop", "update", "delete"]
    assert events[2].before == "audited one 100"
    assert events[2].after == "audited two 100"
    assert "model: two" in events[2].detail["spec"]
    assert all("@" in event.actor for event in events)
    assert [event.at for event in events] == sorted(event.at for event in events)


def test_events_are_read_in_pages(store, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.core.store.store._EVENTS_AT_ONCE", 2)
    for why in "12345":
        store.record("start", endpoint="paged", why=why)
    store.record("start", endpoint="other")

    oldest = store.events("paged")
    newest = store.events("paged", newest_first=True)
    assert next(oldest).why == "1"
    assert next(newest).why == "5"
    store.record("start", endpoint="paged", why="6")

    assert [event.why for event in oldest] == ["2", "3", "4", "5", "6"]
    assert [event.why for event in newest] == ["4", "3", "2", "1"]


def test_dependent_event_is_written_once(store):
    model = f"racing-{uuid4()}"
    store.record("alias", model=model)
    seen: list[int] = []

    def decide(events):
        seen.append(len(events))
        if events:
            return None
        return AuditEvent(START, "ada", "approve", model=model)

    with ThreadPoolExecutor(4) as pool:
        results = [*pool.map(lambda _: store.record_next(model, ["approve"], decide), range(8))]
    assert results.count(True) == 1
    assert sorted(seen) == [0, *[1] * 7]
    assert [
        event.action for event in store.events(model=model, actions=("approve", "decline"))
    ] == ["approve"]
    assert [event.action for event in store.events(model=model)] == ["alias", "approve"]


def test_refused_event_is_not_written(store):
    def refuse(events):
        raise NotFound("there is no open request")

    with pytest.raises(NotFound):
        store.record_next("refusing", ["approve"], refuse)
    assert [*store.events(model="refusing")] == []


def test_login_and_machine_are_recorded(store_url):
    logins = [Login("eva", "staging"), Login("a name that is not asked for")]
    with closing(open_store(store_url, Clock(), find_login=lambda: logins.pop(0))) as store:
        store.record("gate", actor="ci", model="named")
        store.record("promote", model="named")
        store.record("promote", actor=store.user, model="named", detail={"to": "@champion"})
        events = store.events(model="named")
        machine = current_actor()
        assert [(event.actor, event.detail) for event in events] == [
            ("ci", {"registry": "staging"}),
            ("eva", {"machine": machine, "registry": "staging"}),
            ("eva", {"to": "@champion", "machine": machine, "registry": "staging"}),
        ]


def test_counted_events_exclude_other_registries(store_url):
    for registry in ("staging", "production", ""):
        with closing(open_store(store_url, find_login=partial(Login, "", registry))) as store:
            store.record("approve", actor=f"ada of {registry}", model="shared")
    with closing(open_store(store_url, find_login=partial(Login, "", "staging"))) as store:
        counted = store.counted_events("shared", ("approve",))
    assert [event.actor for event in counted] == ["ada of staging", "ada of "]
