"""Keys in the store are valid from their creation until they expire or are revoked."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete

from mlflow_deploy_plugin.core.errors import AlreadyExists
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.keys import ApiKeys
from mlflow_deploy_plugin.core.store.tables import ApiKeyRow, AuditRow
from mlflow_deploy_plugin.serve.messages import without_keys
from tests.support.clocks import Clock


@pytest.fixture
def clock():
    return Clock(datetime(2026, 11, 20, 12, tzinfo=UTC))


@pytest.fixture
def store(store_url, clock):
    opened = open_store(store_url, clock)
    with opened.transaction() as session:
        session.execute(delete(ApiKeyRow))
        session.execute(delete(AuditRow))
    yield opened
    opened.close()


def test_key_is_valid_until_expired_or_revoked(store, clock):
    keys = ApiKeys(store)
    lifetimes = {"a": None, "b": timedelta(hours=1), "c": timedelta(days=1)}
    made = [keys.create(name, ["infer"], (), length)[0] for name, length in lifetimes.items()]
    assert [keys.valid(digest=key.digest) for key in made] == [[key] for key in made]
    assert [key.name for key in keys.valid()] == ["a", "b", "c"]
    clock.now += timedelta(hours=2)
    keys.revoke("c")
    assert [key.name for key in keys.valid()] == ["a"]
    assert [keys.valid(digest=key.digest) for key in made] == [[made[0]], [], []]
    assert [key.name for key in keys.created()] == ["a", "b", "c"]
    assert keys.revoke("c") is None
    with pytest.raises(AlreadyExists):
        keys.create("c", ["read"])


def test_key_ends_with_its_endpoints(store):
    keys = ApiKeys(store)
    for name, endpoints in (
        ("everywhere", []),
        ("both", ["flights", "prices"]),
        ("one", ["flights"]),
    ):
        keys.create(name, ["infer"], endpoints)
    assert keys.withdraw("flights") == ["one"]
    assert {key.name: list(key.endpoints) for key in keys.valid()} == {
        "both": ["prices"],
        "everywhere": [],
    }
    assert keys.withdraw("flights") == []
    assert keys.withdraw("prices") == ["both"]
    assert [
        (event.before, event.why) for event in store.events() if event.action == "key.revoke"
    ] == [
        ("key one", "its endpoint flights was deleted"),
        ("key both", "its endpoint prices was deleted"),
    ]


def test_key_text_is_unique_and_never_stored(store):
    keys = ApiKeys(store)
    (key, first), (other, second) = (
        keys.create("a", ["infer"], actor="ada"),
        keys.create("b", ["infer"]),
    )
    assert not any(text in without_keys(f"/{text}/") for text in (first, second))
    assert first != second
    assert len(first) > 40
    assert first not in repr([key, other, *store.events()])
    assert [(event.action, event.actor, event.after) for event in store.events()][:1] == [
        ("key.create", "ada", "key a")
    ]
    assert next(store.events()).detail == {"scopes": ["infer"], "endpoints": [], "limits": []}
