"""The hash chains of the audit trail find tampered events, on SQLite and PostgreSQL."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Connection, create_engine, delete, insert, select, update

from mlflow_deploy_plugin.core.store.audit_chain import (
    TrailState,
    event_digest,
    seal,
    verify_trail,
)
from mlflow_deploy_plugin.core.store.audit_keys import Keys, read_key_file
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import AuditRow

EVENTS = AuditRow.__table__


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return read_key_file(tmp_path / "server" / "audit.pem")


@pytest.fixture
def server(store_url: str, keys: Keys) -> Iterator[Store]:
    """The store of MLflow's server, whose trail is empty and sealed."""
    store = open_store(store_url, keys=keys)
    with create_engine(store_url).begin() as connection:
        connection.execute(delete(EVENTS))
    seal(store)
    yield store
    store.close()


@pytest.fixture
def user(store_url: str) -> Iterator[Store]:
    """The store of a command."""
    store = open_store(store_url)
    yield store
    store.close()


@pytest.fixture
def model(server: Store) -> str:
    """A model with six signed events."""
    name = f"model-{uuid4().hex}"
    for number in range(6):
        server.record("approve", model=name, version=str(number), actor="ada")
    return name


Tamper = Callable[[Connection, list[int]], None]


def set_values(connection: Connection, event: int, **values: object) -> None:
    connection.execute(update(EVENTS).where(EVENTS.c.id == event).values(values))


def remove(connection: Connection, event: int) -> None:
    connection.execute(delete(EVENTS).where(EVENTS.c.id == event))


def insert_copy(connection: Connection, event: int, **values: object) -> None:
    row = connection.execute(select(EVENTS).where(EVENTS.c.id == event)).one()
    connection.execute(insert(EVENTS).values(row._asdict() | values))


def change_actor(connection: Connection, ids: list[int]) -> None:
    set_values(connection, ids[2], actor="eva")


def change_detail(connection: Connection, ids: list[int]) -> None:
    set_values(connection, ids[2], detail={"a": 1})


def change_signer(connection: Connection, ids: list[int]) -> None:
    set_values(connection, ids[2], signed_by="", signature="")


def strip_signature(connection: Connection, ids: list[int]) -> None:
    set_values(connection, ids[2], signature="")


def remove_event(connection: Connection, ids: list[int]) -> None:
    remove(connection, ids[2])


def remove_first_event(connection: Connection, ids: list[int]) -> None:
    remove(connection, ids[0])


def reorder_events(connection: Connection, ids: list[int]) -> None:
    for before, after in ((ids[1], 0), (ids[2], ids[1]), (0, ids[2])):
        set_values(connection, before, id=after)


def insert_copied_event(connection: Connection, ids: list[int]) -> None:
    insert_copy(connection, ids[2], id=ids[-1] + 1)


def insert_event_without_hash(connection: Connection, ids: list[int]) -> None:
    insert_copy(connection, ids[2], id=ids[-1] + 1, previous="", digest="", signed_by="")


TAMPERS: list[Tamper] = [
    change_actor,
    change_detail,
    change_signer,
    strip_signature,
    remove_event,
    remove_first_event,
    reorder_events,
    insert_copied_event,
    insert_event_without_hash,
]


def tamper(store_url: str, model: str, *changes: Tamper) -> list[int]:
    """Change the trail with SQL. Return the ids of the model's events before."""
    query = select(EVENTS.c.id).where(EVENTS.c.model == model).order_by(EVENTS.c.id)
    with create_engine(store_url).begin() as connection:
        ids = list(connection.scalars(query))
        for change in changes:
            change(connection, ids)
    return ids


def faults(state: TrailState) -> list[str]:
    return [fault.text for fault in state.faults]


def test_a_trail_without_tampering_is_intact(server: Store, user: Store, model: str) -> None:
    user.record(
        "promote", model=model, detail={"figures": {"a": 0.1, 2: [1, None]}, "x": "\0é\udcff"}
    )
    server.record("update", endpoint="flights", why="ü\0")

    state = verify_trail(user)

    assert state.state == "intact"
    assert faults(state) == []
    assert (state.events, state.signed) == (9, 8)
    assert verify_trail(user, model).events == 7


@pytest.mark.parametrize("change", TAMPERS)
def test_a_tampered_event_is_found(
    server: Store,
    user: Store,
    model: str,
    store_url: str,
    change: Tamper,
) -> None:
    tamper(store_url, model, change)

    state = verify_trail(user)

    assert state.state == "changed"
    assert {fault.model for fault in state.faults} == {model}
    assert verify_trail(user, "").state == "intact"


def test_rewritten_hashes_do_not_hide_a_tampered_event(
    server: Store,
    user: Store,
    model: str,
    store_url: str,
) -> None:
    """Somebody who computes the hashes again lacks the key of the signatures."""

    def rewrite(connection: Connection, ids: list[int]) -> None:
        change_actor(connection, ids)
        previous = ""
        for event in ids:
            row = connection.execute(select(EVENTS).where(EVENTS.c.id == event)).one()
            digest = event_digest(row, previous)
            set_values(connection, event, previous=previous, digest=digest)
            previous = digest

    tamper(store_url, model, rewrite)

    assert "no valid signature" in faults(verify_trail(user, model))[0]
