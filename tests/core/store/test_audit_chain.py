"""The hash chains of the audit trail find tampered events, on SQLite and PostgreSQL."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import Connection, create_engine, delete, insert, select, update

from mlflow_deploy_plugin.core.errors import InvalidConfig, StoreUnavailable
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.audit_chain import BROKEN, event_digest, newest_counted_events
from mlflow_deploy_plugin.core.store.audit_keys import Keys, read_key_file
from mlflow_deploy_plugin.core.store.audit_seal import adopt_trail, seal, verify_trail
from mlflow_deploy_plugin.core.store.checkpoints import load_checkpoint, make_checkpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.tables import AuditRow
from tests.support.disk import tiny_disk
from tests.support.refusals import mentions, refused

EVENTS: Any = AuditRow.__table__
START = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
ELLIPTIC = (
    ec.generate_private_key(ec.SECP256R1())
    .private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    .decode()
)


@pytest.fixture
def keys(tmp_path):
    return read_key_file(tmp_path / "server" / "audit.pem")


@pytest.fixture
def server(store_url, keys):
    """The store of MLflow's server, whose trail is empty and sealed."""
    store = open_store(store_url, keys=keys)
    with store.transaction() as session:
        session.execute(delete(EVENTS))
    seal(store)
    yield store
    store.close()


@pytest.fixture
def user(store_url):
    """The store of a command."""
    store = open_store(store_url)
    yield store
    store.close()


def new_model(server):
    """Return the name of a model with six signed events."""
    name = f"model-{uuid4().hex}"
    for number in range(6):
        server.record("approve", model=name, version=str(number), actor="ada")
    return name


@pytest.fixture
def model(server):
    return new_model(server)


Tamper = Callable[[Connection, list[int]], None]


def set_values(connection, event, **values):
    connection.execute(update(EVENTS).where(EVENTS.c.id == event).values(values))


def remove(connection, event):
    connection.execute(delete(EVENTS).where(EVENTS.c.id == event))


def insert_copy(connection, event, **values):
    row = connection.execute(select(EVENTS).where(EVENTS.c.id == event)).one()
    connection.execute(insert(EVENTS).values(row._asdict() | values))


def change_actor(connection, ids):
    set_values(connection, ids[2], actor="eva")


def change_detail(connection, ids):
    set_values(connection, ids[2], detail={"a": 1})


def change_signer(connection, ids):
    set_values(connection, ids[2], signed_by="", signature="")


def strip_signature(connection, ids):
    set_values(connection, ids[2], signature="")


def remove_event(connection, ids):
    remove(connection, ids[2])


def remove_first_event(connection, ids):
    remove(connection, ids[0])


def reorder_events(connection, ids):
    for before, after in ((ids[1], 0), (ids[2], ids[1]), (0, ids[2])):
        set_values(connection, before, id=after)


def insert_copied_event(connection, ids):
    insert_copy(connection, ids[2], id=-ids[2])


def insert_event_without_hash(connection, ids):
    insert_copy(connection, ids[2], id=-ids[2], previous="", digest="", signed_by="")


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


def tamper(store_url, model, *changes):
    """Change the trail with SQL. Return the ids of the model's events before."""
    query = select(EVENTS.c.id).where(EVENTS.c.model == model).order_by(EVENTS.c.id)
    with create_engine(store_url).begin() as connection:
        ids = list(connection.scalars(query))
        for change in changes:
            change(connection, ids)
    return ids


def faults(state):
    return [fault.text for fault in state.faults]


def test_untampered_trail_is_intact(server, user, model):
    user.record(
        "promote", model=model, detail={"figures": {"a": 0.1, 2: [1, None]}, "x": "\0é\udcff"}
    )
    server.record("update", endpoint="flights", why="ü\0")

    state = verify_trail(user)

    assert state.state == "intact"
    assert faults(state) == []
    assert (state.events, state.signed) == (9, 8)
    assert verify_trail(user, model).events == 7


def test_tampered_events_are_found(server, user, store_url):
    changes = {new_model(server): change.__name__ for change in TAMPERS}
    for model, change in zip(changes, TAMPERS, strict=True):
        tamper(store_url, model, change)

    state = verify_trail(user)

    assert state.state == "changed"
    found = {fault.model for fault in state.faults}
    assert {changes[model] for model in found} == set(changes.values())
    assert verify_trail(user, "").state == "intact"


def test_rewritten_hashes_do_not_hide_tampering(server, user, model, store_url):
    """Somebody who computes the hashes again lacks the key of the signatures."""

    def rewrite(connection, ids):
        change_actor(connection, ids)
        previous = ""
        for event in ids:
            row = connection.execute(select(EVENTS).where(EVENTS.c.id == event)).one()
            digest = event_digest(row, previous)
            set_values(connection, event, previous=previous, digest=digest)
            previous = digest

    tamper(store_url, model, rewrite)

    assert "no valid signature" in faults(verify_trail(user, model))[0]


def remove_last_events(connection, ids):
    for event in ids[-2:]:
        remove(connection, event)


def remove_chain(connection, ids):
    for event in ids:
        remove(connection, event)


@pytest.mark.parametrize("change", [remove_last_events, remove_chain])
def test_checkpoint_finds_truncated_chain(server, user, keys, model, store_url, change):
    text = make_checkpoint(server, keys).model_dump_json()
    checkpoint = load_checkpoint(text, Keys(keys.public), "checkpoint.json")
    assert model not in text
    assert verify_trail(user, checkpoint=checkpoint).state == "intact"

    last = tamper(store_url, model, change)[-1]

    assert verify_trail(user).state == "intact"
    (fault,) = verify_trail(user, checkpoint=checkpoint).faults
    assert fault.event == last
    # The server has the end of the chain in its record.
    assert fault.event in {fault.event for fault in verify_trail(server).faults}
    assert make_checkpoint(server, keys).heads == checkpoint.heads


def test_tampered_checkpoint_is_refused(server, keys):
    text = make_checkpoint(server, keys).model_dump_json()
    for before, after in (('"at":"20', '"at":"19'), ('"signature"', '"s"'), ("{", "[")):
        with refused(InvalidConfig, "latest.json"):
            load_checkpoint(text.replace(before, after), keys, "latest.json")


def actors(store, model):
    return [event.actor for event in store.counted_events(model, ("approve",))]


def test_only_signed_events_count_on_a_server(server, user, model):
    user.record("approve", model=model, actor="bob")

    assert actors(server, model) == ["ada"] * 6
    assert actors(user, model) == ["ada"] * 6 + ["bob"]
    assert verify_trail(user, model).state == "intact"


def test_events_linked_to_seal_count(store_url, keys, user):
    with user.transaction() as session:
        session.execute(delete(EVENTS))
    name = f"model-{uuid4().hex}"
    for actor in ("ada", "eva", "bob"):
        user.record("approve", model=name, actor=actor)
    with closing(open_store(store_url, keys=keys)) as server:
        seal(server)
    user.record("approve", model=name, actor="forged")

    def newest():
        with user.reading() as session:
            events = newest_counted_events(session, name, Keys(keys.public))
            return [event.actor for event in events if event.action == "approve"]

    assert newest() == ["bob", "eva", "ada"]

    def forge(connection, ids):
        """Replace an event with a forged event that has a valid hash."""
        set_values(connection, ids[1], actor="forged")
        row = connection.execute(select(EVENTS).where(EVENTS.c.id == ids[1])).one()
        set_values(connection, ids[1], digest=event_digest(row, row.previous))

    tamper(store_url, name, forge)
    assert newest() == ["bob"]


def test_unrecorded_head_refuses_its_event(server, model, store_url):
    heads = server.trail_record.folder / "heads"
    recorded = server.trail_record.head(model)
    with tiny_disk(heads):
        (heads / "full").write_bytes(bytes(4096))
        assert mentions(server.trail_record.fault(), str(heads.parent), "No space left")
        with refused(StoreUnavailable, str(heads.parent), "No space left"):
            server.record("decline", model=model, actor="eva")
        server.count_change(model, AuditEvent(START, "eva", "transition", model=model))
    assert (server.trail_record.fault(), server.trail_record.head(model)) == ("", recorded)
    assert [event.action for event in server.events(model=model)][5:] == ["approve", "transition"]

    server.record("decline", model=model, actor="eva")
    tamper(store_url, model, lambda connection, ids: remove(connection, ids[-1]))
    assert verify_trail(server, model).state == "changed"
    assert {file.suffix for file in heads.iterdir()} == {"", ".json"}


@pytest.mark.parametrize("is_named", [True, False])
def test_unrecorded_head_is_found_at_another_url(server, keys, store_url, model, is_named):
    if not store_url.startswith("sqlite"):
        pytest.skip("only a file has several URLs here")
    record = server.trail_record
    if not is_named:  # The server stopped before it had joined.
        record._name_file.unlink()
    other = store_url.replace("/store.db", "/./store.db")
    with closing(open_store(other, keys=keys)) as restarted:
        restarted.record("approve", model=model, actor="bob")
        again = restarted.trail_record
        assert again
        assert again.spool(AuditEvent(START, "eva", "alias", model=model))
        for store in (server, restarted):
            seal(store)
        assert again.folder == record.folder
        assert not record.is_spool_empty()
        tamper(store_url, model, lambda connection, ids: remove(connection, ids[-1]))
        for store in (server, restarted):
            with refused(InvalidConfig, "was removed or changed"):
                seal(store)


def test_tampering_ends_earlier_requests(server, model, store_url):
    tamper(store_url, model, remove_event)

    actions = [event.action for event in server.counted_events(model, ("approve",))]

    assert actions == ["approve", "approve", BROKEN, "approve", "approve", "approve"]


@pytest.mark.parametrize("change", [remove_last_events, remove_chain])
def test_recorded_heads_find_truncated_chain(server, model, store_url, change):
    tamper(store_url, model, change)

    assert BROKEN in {event.action for event in server.counted_events(model, ())}
    with refused(InvalidConfig, "was removed or changed", "onnxserve audit adopt"):
        seal(server)
    server.record("approve", model=model, actor="eva")

    assert actors(server, model)[-2:] == ["", "eva"]  # The gap stays.


def forge_trail(connection, ids):
    """Replace all events by one without a signature, as if no server had started."""
    connection.execute(delete(EVENTS).where(EVENTS.c.id != ids[-1]))
    set_values(connection, ids[-1], actor="forged", signed_by="", signature="", previous="")
    row = connection.execute(select(EVENTS)).one()
    set_values(connection, row.id, digest=event_digest(row, ""))


def test_forged_trail_is_refused_and_never_counts(server, keys, model, store_url):
    last = tamper(store_url, model, forge_trail)[-1]

    with closing(open_store(store_url, keys=keys)) as restarted:
        with refused(InvalidConfig, "was removed or changed", "onnxserve audit adopt"):
            seal(restarted)
        accepted = adopt_trail(restarted, "restored from a backup")
        seal(restarted)

        assert last in {fault.event for fault in accepted}
        assert actors(restarted, model) == []
        (event,) = restarted.counted_events(model, ("adopt",))
        assert (event.actor, event.why) == (restarted.user, "restored from a backup")
    assert accepted[0].text in event.detail["accepted"]


def test_unknown_key_is_refused_until_adopted(server, user, tmp_path):
    unknown = read_key_file(tmp_path / "unknown.pem")
    user.keys = unknown
    user.record("approve", model="m", actor="eva")

    with refused(InvalidConfig, unknown.key_id, "onnxserve audit adopt"):
        seal(server)
    adopt_trail(server, "a server that is gone")

    seal(server)
    assert actors(server, "m") == []


def test_damaged_seal_record_is_refused(server, keys):
    file = server.trail_record.folder / "seal.json"
    file.write_text("{")

    with refused(InvalidConfig, str(file)):
        seal(server)


def test_seal_adopts_unsigned_events(store_url, user, keys):
    with user.transaction() as session:
        session.execute(delete(EVENTS))
    for _ in range(3):
        user.record("approve", model="old", actor="ada")
    assert verify_trail(user).state == "unsigned"

    with closing(open_store(store_url, keys=keys)) as server:
        seal(server)
        seal(server)
        server.record("approve", model="old", actor="bob")
        assert actors(server, "old") == ["ada", "ada", "ada", "bob"]
        assert verify_trail(server).signed == 3  # The seals of two chains, and an approval.

        tamper(store_url, "old", change_detail)

        assert verify_trail(server).state == "changed"
        assert actors(server, "old") == ["", "bob"]  # The first is the mark of the fault.


def test_two_servers_record_concurrently(server, keys, store_url, tmp_path):
    other_keys = read_key_file(tmp_path / "other" / "audit.pem")
    both = keys.public_pem() + other_keys.public_pem()
    for folder, own in (("server", keys), ("other", other_keys)):
        file = tmp_path / folder / "audit.pem"
        file.write_text(file.read_text() + both)
        assert read_key_file(file).key_id == own.key_id
    other = open_store(store_url, keys=read_key_file(tmp_path / "other" / "audit.pem"))
    seal(other)
    model = f"model-{uuid4().hex}"

    def record(number):
        store = (server, other)[number % 2]
        store.record("approve", model=model, actor=f"person-{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(record, range(20)))

    state = verify_trail(other)
    assert (state.state, faults(state)) == ("intact", [])
    assert len(actors(other, model)) == 20
    assert len(actors(server, model)) == 10  # This process still trusts only its own key.
    other.close()


def test_backward_clock_leaves_trail_intact(store_url, server, keys):
    times = (START - timedelta(days=days) for days in count())
    store = open_store(store_url, lambda: next(times), keys=keys)
    for _ in range(3):
        store.record("approve", model="m", actor="ada")

    assert verify_trail(store).state == "intact"
    assert actors(store, "m") == ["ada"] * 3
    store.close()


def test_pinned_keys_exclude_published_keys(server, user, keys, store_url, tmp_path):
    server.record("approve", model="m")
    file = tmp_path / "forger.pem"
    read_key_file(file)
    file.write_text(file.read_text() + keys.public_pem())
    forger = read_key_file(file)
    with closing(open_store(store_url, keys=forger)) as forging:
        seal(forging)
        forging.record("approve", model="m")

    assert verify_trail(user).state == "intact"  # The forger has published his key.
    pinned = verify_trail(user, keys=Keys(keys.public))

    assert pinned.state == "changed"
    assert {forger.key_id in fault.text for fault in pinned.faults} == {True}
    assert len(actors(server, "m")) == 1


@pytest.mark.parametrize(
    "content", ["", "text", ELLIPTIC, "-----BEGIN PRIVATE KEY-----\nA\n-----END PRIVATE KEY-----"]
)
def test_unusable_key_file_is_refused(tmp_path, content):
    file = tmp_path / "audit.pem"
    file.write_text(content)
    with refused(InvalidConfig, str(file), "Ed25519"):
        read_key_file(file)


def test_key_file_is_private(tmp_path):
    keys = read_key_file(tmp_path / "audit.pem")
    assert (tmp_path / "audit.pem").stat().st_mode & 0o777 == 0o600
    assert "private" not in repr(keys)
    with refused(InvalidConfig, "private key"):
        (tmp_path / "audit.pem").write_text(keys.public_pem())
        read_key_file(tmp_path / "audit.pem")
