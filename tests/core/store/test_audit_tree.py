"""The tree of the audit trail finds tampered events, on SQLite and PostgreSQL."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import (
    Connection,
    create_engine,
    delete,
    event,
    insert,
    select,
    text,
    update,
)

from mlflow_deploy_plugin.core.errors import InvalidConfig, StoreUnavailable
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.audit_keys import Keys, read_key_file
from mlflow_deploy_plugin.core.store.audit_seal import adopt_trail, seal, verify_trail
from mlflow_deploy_plugin.core.store.audit_tree import leaf_entry
from mlflow_deploy_plugin.core.store.audit_verify import BROKEN, counted_events
from mlflow_deploy_plugin.core.store.checkpoints import Checkpoint, encoded, parse_checkpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.merkle import Edge, leaf_hash
from mlflow_deploy_plugin.core.store.tables import (
    LAST_MIGRATING_COMMIT,
    AuditLeafRow,
    AuditRow,
    AuditTreeRow,
)
from tests.support.disk import tiny_disk
from tests.support.refusals import mentions, refused

EVENTS: Any = AuditRow.__table__
LEAVES: Any = AuditLeafRow.__table__
TREE: Any = AuditTreeRow.__table__
START = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
ELLIPTIC = (
    ec.generate_private_key(ec.SECP384R1())
    .private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    .decode()
)
Tamper = Callable[[Connection], object]


@pytest.fixture
def keys(tmp_path):
    return read_key_file(tmp_path / "server" / "audit.pem")


@pytest.fixture
def start(store_url, keys, empty_trail):
    """Return a function that starts MLflow's server with this store, and returns its
    store.
    """
    stores = []

    def start(keys=keys, url=store_url, **options):
        store = open_store(url, keys=keys, **options)
        stores.append(store)
        seal(store)
        return store

    yield start
    for store in stores:
        store.close()


@pytest.fixture
def server(start):
    """The store of MLflow's server, with the events 1 to 6 of the model m."""
    server = start()
    for number in range(6):
        server.record("approve", model="m", version=str(number), actor="ada")
    return server


@pytest.fixture
def user(store_url, empty_trail):
    """The store of a command."""
    with closing(open_store(store_url)) as store:
        yield store


@pytest.fixture
def tamper(store_url):
    """Return a function that changes the trail with SQL."""

    def tamper(*changes):
        with create_engine(store_url).begin() as connection:
            for change in changes:
                change(connection)

    return tamper


def set_event(place, /, **values):
    return lambda connection: connection.execute(
        update(EVENTS).where(EVENTS.c.place == place).values(values)
    )


def copy_event(place, /, **values):
    def copy(connection):
        row = connection.execute(select(EVENTS).where(EVENTS.c.place == place)).one()._asdict()
        connection.execute(insert(EVENTS).values({**row, "id": -place - 1, **values}))

    return copy


def remove_events(*places):
    return lambda connection: connection.execute(delete(EVENTS).where(EVENTS.c.place.in_(places)))


def set_leaf(place, entry):
    return lambda connection: connection.execute(
        update(LEAVES).where(LEAVES.c.place == place).values(entry=entry)
    )


def set_head(**values):
    return lambda connection: connection.execute(update(TREE).values(values))


def remove_head(connection):
    connection.execute(delete(TREE))


def swap_events(connection):
    for before, after in ((2, -1), (3, 2), (-1, 3)):
        set_event(before, place=after)(connection)


def rewrite_event(connection):
    """Change an event, its leaf and the root, without the key of the signature."""
    set_event(3, actor="eva")(connection)
    row = connection.execute(select(EVENTS).where(EVENTS.c.place == 3)).one()
    set_leaf(3, leaf_entry(row, row.signed_by))(connection)
    edge = Edge()
    for entry in connection.scalars(select(LEAVES.c.entry).order_by(LEAVES.c.place)):
        edge = edge.add(leaf_hash(entry.encode()))
    known = parse_checkpoint(connection.scalar(select(TREE.c.checkpoint)))
    forged = Checkpoint(known.origin, edge.size, edge.root, (), known.signatures)
    hashes = " ".join(map(encoded, edge.hashes))
    set_head(checkpoint=forged.text, edge=hashes)(connection)


def actors(store, model="m"):
    return [event.actor for event in store.counted_events(model, ("approve",))]


ADA = ["ada"] * 6


def test_untampered_tree_is_intact(server, user):
    detail = {"figures": {"a": 0.1, 2: [1, None]}, "x": "\0é\udcff"}
    user.record("promote", model="m", detail=detail)
    server.record("update", endpoint="flights", why="ü\0", detail=detail)

    for store in (server, user):
        state = verify_trail(store)
        assert (state.state, state.faults) == ("intact", ())
        assert (state.events, state.signed) == (9, 8)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_event(3, actor="eva"), "event 3"),
        (set_event(3, detail={"a": 1}), "event 3"),
        (set_event(3, model="other"), "event 3"),
        (set_event(3, signed_by=""), "event 3"),
        (set_event(3, place=-4), "event 3"),
        (remove_events(3), "event 3"),
        (remove_events(1), "event 1"),
        (swap_events, "event 3"),
        (copy_event(3), "event 3"),
        (copy_event(3, place=-4), "event -4"),
    ],
)
def test_tampered_event_is_found(server, user, tamper, change, expected):
    tamper(change)

    state = verify_trail(user)

    assert state.state == "changed"
    assert any(mentions(fault, expected) for fault in state.faults), state.faults
    with user.reading() as session:
        events = counted_events(user.trail_view, session, "m", Keys(server.keys.public))
    versions = [event.version for event in events if event.action != BROKEN]
    assert versions == sorted(versions)


@pytest.mark.parametrize(
    "change",
    [
        set_leaf(3, "{"),
        set_leaf(3, '{"model": []}'),
        lambda connection: connection.execute(delete(LEAVES).where(LEAVES.c.place == 3)),
        set_head(checkpoint="forged"),
        set_head(edge=""),
        remove_head,
        rewrite_event,
    ],
)
def test_tampered_tree_refuses_all_until_adopted(server, user, start, tamper, change):
    tamper(change)

    if change is not remove_head:
        assert verify_trail(user).state == "changed"
    assert verify_trail(server).state == "changed"
    with refused(InvalidConfig, "onnxserve audit adopt"):
        start()
    adopt_trail(server, "somebody has changed the leaves")
    seal(server)
    server.record("approve", model="m", actor="bob")
    assert actors(server)[-1] == "bob"
    assert actors(start()) == actors(server)


def test_only_events_of_server_count(server, user, start, keys):
    user.record("approve", model="m", actor="bob")
    user.record("approve", model="new", actor="bob")

    assert (actors(server), actors(server, "new")) == (ADA, [])
    server.record("approve", model="m", actor="eva")  # The tree now has all of them.
    assert (actors(server), actors(server, "new")) == ([*ADA, "eva"], [])
    assert actors(start()) == [*ADA, "eva"]
    assert actors(user) == [*ADA, "bob", "eva"]
    assert verify_trail(user).state == "intact"


def test_forged_places_and_keys_do_not_count(server, user, tamper, keys):
    user.record("approve", model="m", actor="forged")

    def squat(connection):
        forged = connection.execute(select(EVENTS).where(EVENTS.c.place.is_(None))).one()._asdict()
        for place in (-1, 3, 7, 8, 9, 2**62):
            values = {**forged, "id": -100 - place % 100, "place": place}
            values["signed_by"] = keys.key_id
            connection.execute(insert(EVENTS).values(values))
            if place >= 7:
                row = connection.execute(select(EVENTS).where(EVENTS.c.id == values["id"])).one()
                entry = leaf_entry(row, keys.key_id)
                connection.execute(insert(LEAVES).values(place=place, entry=entry))

    tamper(squat)
    for _ in range(2):
        server.record("approve", model="m", actor="eva")

    assert "forged" not in actors(server)
    assert actors(server)[-2:] == ["eva", "eva"]
    # The other forged events have leaves that name no key.
    assert all(mentions(fault, "event 3") for fault in verify_trail(server).faults)


def run(statement):
    return lambda connection: connection.execute(text(statement))


def test_unreadable_event_is_changed_or_one_line(server, tamper, user, store_url):
    server.record("approve", model="m", actor="eva", detail={"a": 1})
    deep = "[" * 5000 + "]" * 5000
    is_sqlite = store_url.startswith("sqlite")
    details = {True: ["{", "", deep], False: [f"[{'1' * 5000}]"]}
    for detail in details[is_sqlite]:
        user.record("approve", model="m", actor="bob")
        for place in ("= 7", "IS NULL"):
            tamper(run(f"UPDATE {EVENTS} SET detail = '{detail}' WHERE place {place}"))
        assert actors(server)[6] == ""
        server.record("approve", model="m", actor="eva")
        assert verify_trail(user).state == "changed"
    if is_sqlite:
        user.record("approve", model="m", actor="bob")
        tamper(run(f"UPDATE {EVENTS} SET at = 'yesterday' WHERE place IS NULL"))
        with refused(StoreUnavailable, "event", "yesterday"):
            server.record("approve", model="m", actor="eva")


def test_sqlite_finds_new_events_by_an_index(server, store_url):
    if not store_url.startswith("sqlite"):
        pytest.skip("PostgreSQL scans a table as small as this one")
    reads = []

    def keep(_connection, _cursor, statement, parameters, *_):
        if statement.startswith("SELECT") and "place IS NULL" in statement:
            reads.append((f"EXPLAIN QUERY PLAN {statement}", parameters))

    event.listen(server._engine, "before_cursor_execute", keep)
    server.record("approve", model="m")
    event.remove(server._engine, "before_cursor_execute", keep)
    with server._engine.connect() as connection:
        (plan,) = [[*connection.exec_driver_sql(*read)] for read in reads]
    assert not [step for *_, step in plan if step.startswith("SCAN")]


def test_violated_constraint_is_one_line(server, tamper):
    tamper(run(f"CREATE UNIQUE INDEX taken ON {EVENTS} (action) WHERE version = '5'"))
    with refused(StoreUnavailable, "cannot be used"):
        server.record("approve", model="m", version="5")
    tamper(run("DROP INDEX taken"))
    assert actors(server) == ADA


def test_first_start_takes_earlier_events_over(user, start, tamper):
    for actor in ("ada", "eva", "bob"):
        user.record("approve", model="m", actor=actor)
    assert verify_trail(user).state == "unsigned"

    server = start()
    start()
    user.record("approve", model="m", actor="forged")

    assert actors(server) == ["ada", "eva", "bob"]
    assert (verify_trail(server).events, verify_trail(server).signed) == (4, 4)
    tamper(set_event(1, actor="forged"))
    assert actors(server) == ["ada", "", "bob"]  # The second is the mark of the fault.


def test_unverified_hash_chains_are_refused(user, start, tamper):
    """A build before the tree has written them. A store without chains may have their
    empty table.
    """
    user.record("approve", model="m", actor="earlier")
    table = "onnxserve_audit_chains"
    tamper(lambda old: old.execute(text(f"CREATE TABLE {table} (id BIGINT)")))
    tamper(lambda old: old.execute(text(f"INSERT INTO {table} VALUES (1)")))
    try:
        with refused(InvalidConfig, LAST_MIGRATING_COMMIT, "onnxserve audit adopt"):
            start()
        tamper(lambda old: old.execute(text(f"DELETE FROM {table}")))
        assert [event.actor for event in start().counted_events("m", ("approve",))] == ["earlier"]
    finally:
        tamper(lambda old: old.execute(text(f"DROP TABLE {table}")))


def test_tampering_ends_earlier_requests(server, tamper):
    tamper(remove_events(3), set_event(5, actor="eva"))

    actions = [event.action for event in server.counted_events("m", ("approve",))]

    assert actions == ["approve", "approve", BROKEN, "approve", BROKEN, "approve"]


@contextmanager
def older_state(store_url):
    """Restore the trail of the begin of the block at its end."""
    with create_engine(store_url).begin() as connection:
        tables = {
            table: connection.execute(select(table)).all() for table in (EVENTS, LEAVES, TREE)
        }
    yield
    with create_engine(store_url).begin() as connection:
        for table, rows in tables.items():
            connection.execute(delete(table))
            connection.execute(insert(table), [row._asdict() for row in rows])


@pytest.mark.parametrize(("expected", "counted"), [("unsigned", []), ("intact", ADA)])
def test_older_trail_is_refused_until_adopted(server, user, start, store_url, expected, counted):
    with older_state(store_url):
        server.record("decline", model="m", actor="eva")
        checkpoint = server.trail_record.newest().checkpoint
        assert verify_trail(user, checkpoint=checkpoint).state == "intact"
    if not counted:  # Not even the tree of the first start is left.
        with create_engine(store_url).begin() as connection:
            for table in (LEAVES, TREE):
                connection.execute(delete(table))
            connection.execute(update(EVENTS).values(place=None, signed_by=""))

    assert verify_trail(user).state == expected
    for state in (verify_trail(server), verify_trail(user, checkpoint=checkpoint)):
        assert (state.state, len(state.faults)) == ("changed", 1)
    assert actors(server) == [""]
    with refused(StoreUnavailable, "events"):
        server.record("approve", model="m", actor="eva")
    with refused(InvalidConfig, "events", "onnxserve audit adopt"):
        start()

    adopt_trail(server, "restored from a backup")

    restarted = start()
    restarted.record("approve", model="m", actor="bob")
    newest = restarted.trail_record.newest()
    assert newest.log != checkpoint.origin.rpartition("/")[0]
    assert actors(restarted) == [*counted, "", "bob"]
    (adoption,) = restarted.counted_events("", ("adopt",))
    assert (adoption.actor, adoption.why) == (restarted.user, "restored from a backup")


def test_adoption_keeps_recorded_tree(server, user, start, tamper):
    """The store has all recorded leaves, but another newest checkpoint."""
    log = server.trail_record.newest().log
    tamper(set_head(checkpoint="restored", edge="wrongly"))
    user.record("approve", model="m", actor="bob")

    assert "checkpoint" in adopt_trail(server, "restored").fault

    restarted = start()
    assert server.trail_record.newest().log == log
    assert actors(restarted) == [*ADA, ""]  # The adoption ends earlier requests.
    assert not adopt_trail(restarted, "again").fault
    assert verify_trail(restarted).state == "intact"


def test_adoption_keeps_tree_that_is_newer_than_record(server, start, tamper):
    """Another machine with the key has added events since this one has recorded."""
    file = server.trail_record.folder / "checkpoint.json"
    recorded = file.read_bytes()
    server.record("approve", model="new", actor="bob")
    file.write_bytes(recorded)
    tamper(remove_events(2))

    assert "removed (1)" in adopt_trail(server, "restored").fault

    assert actors(start(), "new") == ["bob", ""]


def test_interrupted_adoption_is_repeated(server, start, store_url):
    with older_state(store_url):
        server.record("decline", model="m", actor="eva")
    record = server.trail_record
    file = record.folder / "checkpoint.json"
    recorded = file.read_bytes()
    adopt_trail(server, "restored")
    (record._name_file).write_text(file.parent.name)  # As if the server had been killed.
    file.write_bytes(recorded)

    with refused(InvalidConfig, "another audit trail"):
        start()
    adopt_trail(server, "restored again")

    assert verify_trail(start()).state == "intact"
    whys = [event.why for event in server.counted_events("", ("adopt",))]
    assert whys == ["restored", "restored again"]


def test_trail_of_another_log_is_refused(server, start, store_url, tmp_path, keys):
    """The key has signed another log, with more events."""
    url = f"sqlite:///{tmp_path}/other.db"
    other = start(url=url)
    for _ in range(10):
        other.record("approve", model="m", actor="eva")
    with create_engine(url).begin() as source, create_engine(store_url).begin() as target:
        for table in (EVENTS, LEAVES, TREE):
            target.execute(delete(table))
            rows = [row._asdict() for row in source.execute(select(table))]
            target.execute(insert(table), rows)

    with refused(InvalidConfig, "another audit trail"):
        start()
    assert actors(server) == [""]


def test_forged_checkpoint_chooses_no_folder(start, user, tamper, keys):
    """Only the name of a log that the key has signed is the name of a folder."""
    edge = Edge().add(leaf_hash(b"forged"))
    forged = Checkpoint(f"onnxserve/../{keys.key_id}", 1, edge.root, (), ("forged AAAAAAAA",))
    values = {"id": 1, "checkpoint": forged.text, "edge": encoded(edge.root)}
    tamper(lambda connection: connection.execute(insert(TREE).values(values)))

    with refused(InvalidConfig, "not signed"):
        start()

    tamper(remove_head)
    assert [file.suffix for file in keys.file.parent.glob("audit.record/*.name")] == []
    start()


def test_unknown_key_is_refused_until_adopted(server, start, keys, store_url):
    keys.file.unlink()
    new = read_key_file(keys.file)

    with refused(InvalidConfig, "ONNXSERVE_AUDIT_KEY_FILE", "onnxserve audit adopt"):
        start(new)
    assert verify_trail(server, keys=new).state == "changed"
    with closing(open_store(store_url, keys=new)) as store:
        with refused(StoreUnavailable, "not signed by a known key"):
            store.record("approve", model="m", actor="eva")
        adopt_trail(store, "a new key")
    assert actors(start(new)) == [""]


def test_full_disk_refuses_event_before_it_is_stored(server, tamper):
    record = server.trail_record
    folder = record.folder
    recorded = record.newest()
    with tiny_disk(folder):
        (folder / "full").write_bytes(bytes(4096))
        assert mentions(record.fault(), str(folder), "No space left")
        with refused(StoreUnavailable, str(folder), "No space left"):
            server.record("decline", model="m", actor="eva")
        server.count_change("m", AuditEvent(START, "eva", "transition", model="m"))
    assert (record.fault(), record.newest()) == ("", recorded)
    actions = [event.action for event in server.events(model="m")]
    assert actions == ["approve"] * 6 + ["transition"]

    server.record("decline", model="m", actor="eva")
    assert record.newest().edge.size == recorded.edge.size + 2
    assert {file.name for file in folder.iterdir()} == {"checkpoint.json", "probe", "spool"}


def test_damaged_record_is_refused(server, start):
    file = server.trail_record.folder / "checkpoint.json"
    for content in ("{", json.dumps({"checkpoint": "a", "edge": ""})):
        file.write_text(content)
        with refused(InvalidConfig, str(file)):
            start()


def test_record_is_found_at_another_url(server, start, store_url, tamper):
    if not store_url.startswith("sqlite"):
        pytest.skip("only a file has several URLs here")
    other = start(url=store_url.replace("/store.db", "/./store.db"))
    other.record("approve", model="m", actor="bob")
    assert other.trail_record.spool(AuditEvent(START, "eva", "alias", model="m"))

    assert other.trail_record.folder == server.trail_record.folder
    assert server.trail_record.count_spooled() == 1
    tamper(remove_head)
    with refused(InvalidConfig, "missing"):
        start()
    start(url=store_url.replace("/store.db", "/../deep/store.db"))


def stop_at_commit(url, file, moment):
    """Record an event, and kill this process just before or after its commit."""
    store = open_store(url, keys=read_key_file(file))
    seal(store)

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "before":
        event.listen(store._engine, "commit", kill)
    else:
        event.listen(store._engine, "checkin", kill)
    store.record("decline", model="m", actor="eva")


@pytest.mark.long
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(("moment", "declines"), [("before", []), ("after", ["decline"])])
def test_killed_server_starts_again(start, user, store_url, keys, moment, declines, is_first):
    user.record("approve", model="m", actor="ada")
    if not is_first:
        start()
    arguments = (store_url, keys.file, moment)
    process = multiprocessing.get_context("spawn").Process(target=stop_at_commit, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL

    server = start()

    server.record("approve", model="m", actor="bob")
    events = server.counted_events("m", ("approve", "decline"))
    assert [event.action for event in events] == ["approve", *declines, "approve"]
    assert verify_trail(server).state == "intact"


def test_workers_and_servers_record_concurrently(start, keys, tmp_path, user):
    other_keys = read_key_file(tmp_path / "other" / "audit.pem")
    both = keys.public_pem() + other_keys.public_pem()
    pair = []
    for own in (keys, other_keys):
        assert own.file is not None
        own.file.write_text(own.file.read_text() + both)
        pair.append(read_key_file(own.file))
        assert pair[-1].key_id == own.key_id

    def work(number):
        """Start a worker, which writes and reads."""
        store = start(pair[number % 2])
        for _ in range(5):
            store.record("approve", model="m", actor=f"person-{number}")
            user.record("approve", model="m", actor="command")
            assert "" not in actors(store)
        return store

    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(work, range(4)))

    for store in stores:
        state = verify_trail(store)
        assert (state.state, state.faults, state.unused_keys) == ("intact", (), ())
        assert len(actors(store)) == 20
        assert actors(start(store.keys)) == actors(store)


def test_older_transaction_sees_its_tree(server):
    with server.reading() as session:
        session.execute(select(TREE))
        server.record("approve", model="m", actor="eva")
        assert actors(server) == [*ADA, "eva"]
        tree = server.trail_view.read(session, server.keys)
        assert len(tree.places("m")) == tree.size - 1
        newest = server.trail_record.newest().checkpoint
        assert tree.begins_with(newest) is (tree.size == newest.size)


def test_backward_clock_leaves_tree_intact(start):
    times = (START - timedelta(days=days) for days in count())
    store = start(clock=lambda: next(times))
    for _ in range(3):
        store.record("approve", model="m", actor="ada")

    assert verify_trail(store).state == "intact"
    assert actors(store) == ["ada"] * 3


def test_pinned_keys_exclude_published_keys(server, user, keys, start, tmp_path):
    file = tmp_path / "forger.pem"
    read_key_file(file)
    file.write_text(file.read_text() + keys.public_pem())
    forger = start(read_key_file(file))
    forger.record("approve", model="m")

    assert verify_trail(user).state == "intact"  # The forger has published his key.
    assert verify_trail(user, keys=Keys(keys.public)).state == "changed"
    with refused(StoreUnavailable, "not signed by a known key"):
        server.record("approve", model="m")


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
