"""Stores with hash chains, as the versions before the tree have written them, are taken
over at the first start of a server.
"""

import hashlib
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.store.audit_keys import Keys, read_key_file
from mlflow_deploy_plugin.core.store.audit_seal import adopt_trail, seal, verify_trail
from mlflow_deploy_plugin.core.store.audit_verify import counted_events
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.tables import VERSION_TABLE
from tests.support.refusals import mentions, refused

RELEASE = Path(__file__).parents[2] / "stored" / "0.1.0" / "store.sql"
AT = datetime(2026, 11, 20, 8, tzinfo=UTC)
EVENTS = "onnxserve_audit_events"
BEFORE_0017 = f"""
DROP TABLE onnxserve_audit_leaves;
DROP TABLE onnxserve_audit_tree;
DROP TABLE onnxserve_audit_chains;
DROP INDEX ix_{EVENTS}_model;
DROP INDEX ix_{EVENTS}_place;
ALTER TABLE {EVENTS} DROP COLUMN place;
ALTER TABLE {EVENTS} ADD previous VARCHAR(64) DEFAULT '' NOT NULL;
ALTER TABLE {EVENTS} ADD digest VARCHAR(64) DEFAULT '' NOT NULL;
ALTER TABLE {EVENTS} ADD signature VARCHAR(255) DEFAULT '' NOT NULL;
CREATE INDEX ix_{EVENTS}_chain ON {EVENTS} (model, id);
UPDATE {VERSION_TABLE} SET version_num = '0016'
"""


def chained(written, keys):
    """Return the rows of events with their chains, and the recorded ends of the chains.

    Args:
        written: the model, action, actor and True for an event of the server.
    """
    rows: list[dict[str, Any]] = []
    ends: dict[str, str] = {}
    signers = {True: keys, False: Keys({})}
    for number, (model, action, actor, is_signed) in enumerate(written, 1):
        row: dict[str, Any] = dict.fromkeys(("endpoint", "version", "before", "after", "why"), "")
        row |= {"actor": actor, "action": action, "model": model, "detail": {"a": 0.1, "é": [1]}}
        row |= {"id": number, "signed_by": signers[is_signed].key_id}
        row["previous"] = ends.get(model, "")
        content = {**row, "at": AT.isoformat(timespec="microseconds")}
        encoded = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        row["digest"] = ends[model] = hashlib.sha256(encoded).hexdigest()
        row["signature"] = signers[is_signed].sign("audit event", row["digest"])
        rows.append(row)
    return rows, [
        {"model": row["model"], "event": row["id"], "digest": row["digest"]} for row in rows
    ]


WRITTEN = (
    ("m", "approve", "earlier", False),
    ("", "seal", "server", True),
    ("m", "seal", "server", True),
    ("m", "approve", "ada", True),
    ("m", "approve", "forged", False),
    ("new", "approve", "forged", False),
    ("new", "approve", "eva", True),
    ("other", "approve", "forged", False),
    ("m", "decline", "eva", True),
)


@pytest.fixture
def keys(tmp_path):
    return read_key_file(tmp_path / "server" / "audit.pem")


@pytest.fixture
def old(store_url, keys, empty_trail):
    """Make a store of before the tree. `write` writes its events, and `start` starts
    the server.
    """

    def run(*statements):
        with create_engine(store_url).begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def write(written=WRITTEN, *, is_recorded=True):
        run(*BEFORE_0017.split(";"))
        rows, heads = chained(written, keys)
        names = [*rows[0], "at"]
        columns = ", ".join(f'"{name}"' for name in names)
        values = ", ".join(f":{name}" for name in names)
        with create_engine(store_url).begin() as connection:
            for row in rows:
                stored = {**row, "detail": json.dumps(row["detail"]), "at": AT.isoformat(" ")}
                if store_url.startswith("sqlite"):
                    stored["at"] = f"{AT:%Y-%m-%d %H:%M:%S.%f}"
                connection.execute(
                    text(f"INSERT INTO {EVENTS} ({columns}) VALUES ({values})"), stored
                )
        if store_url.startswith("postgresql"):
            run(f"SELECT setval(pg_get_serial_sequence('{EVENTS}', 'id'), {len(rows)})")
        if is_recorded:
            with closing(open_store(store_url, keys=keys)) as store:
                assert store.trail_record
                folder = store.trail_record.folder / "heads"
            folder.mkdir(parents=True)
            for head in {head["model"]: head for head in heads}.values():
                (folder / f"{head['event']}.json").write_text(json.dumps(head))

    stores = []

    def start():
        stores.append(open_store(store_url, keys=keys))
        seal(stores[-1])
        return stores[-1]

    yield SimpleNamespace(write=write, run=run, start=start, url=store_url, keys=keys)
    for store in stores:
        store.close()
    open_store(store_url).close()


def actions(store, model):
    """Return the events of a model that count, without those of the server's starts."""
    counted = store.counted_events(model, ("approve", "decline"))
    return [f"{event.action} {event.actor}".strip() for event in counted]


M = ["approve earlier", "approve ada", "decline eva"]


def test_chains_become_first_leaves_of_tree(old):
    old.write()

    for store in (old.start(), old.start()):
        assert [actions(store, model) for model in ("m", "new", "other")] == [
            M,
            ["approve eva"],
            [],
        ]
        state = verify_trail(store)
        assert (state.state, state.faults) == ("intact", ())
        assert (state.events, state.signed) == (10, 7)
        *_, last = store.events(model="", actions=("seal",))
        assert mentions(last.why, "9 earlier events", "9 migrated")
    store.record("approve", model="m", actor="bob")
    assert actions(store, "m") == [*M, "approve bob"]


def test_unsealed_chains_become_first_leaves_of_tree(old):
    old.write([event for event in WRITTEN if not event[3]], is_recorded=False)

    assert actions(old.start(), "m") == ["approve earlier", "approve forged"]


def test_store_whose_signed_events_were_changed_is_still_sealed(old):
    old.write(is_recorded=False)
    old.run(f"UPDATE {EVENTS} SET actor = 'bob' WHERE id IN (2, 7, 9)")

    store = old.start()

    assert [actions(store, model) for model in ("m", "new", "other")] == [[], [], []]


def test_released_store_becomes_first_leaves_of_tree(tmp_path, keys):
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        connection.executescript(RELEASE.read_text())
    with closing(open_store(f"sqlite:///{tmp_path}/store.db", keys=keys)) as store:
        seal(store)
        with store.reading() as session:
            counted = counted_events(store.trail_view, session, "flight-delay", keys)
        assert counted == [*store.events(model="flight-delay")]
        assert verify_trail(store).state == "intact"


TAMPERS = {
    f"UPDATE {EVENTS} SET actor = 'bob' WHERE id = 4": ["decline eva"],
    f"UPDATE {EVENTS} SET signed_by = '' WHERE id = 4": ["decline eva"],
    f"DELETE FROM {EVENTS} WHERE id = 4": ["decline eva"],
    f"DELETE FROM {EVENTS} WHERE id = 1": ["approve ada", "decline eva"],
    f"UPDATE {EVENTS} SET actor = 'bob' WHERE id = 1": ["approve ada", "decline eva"],
}


@pytest.mark.parametrize("is_migrated", [True, False])
@pytest.mark.parametrize("change", TAMPERS)
def test_events_before_fault_of_chain_do_not_count(old, change, is_migrated):
    old.write()
    if is_migrated:
        open_store(old.url).close()
    old.run(change)
    assert actions(old.start(), "m") == TAMPERS[change]


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM {events} WHERE id = 9",
        "DELETE FROM onnxserve_audit_chains WHERE id = 9",
        "DELETE FROM onnxserve_audit_chains",
        "UPDATE {events} SET action = 'comment' WHERE id = 9",
        "UPDATE {events} SET model = 'new' WHERE id = 9",
    ],
)
def test_lost_end_of_chain_is_refused_until_adopted(old, change):
    old.write()
    open_store(old.url).close()
    old.run(change.format(events=EVENTS))

    for _ in range(2):
        with refused(InvalidConfig, "9", "onnxserve audit adopt"):
            old.start()
    with closing(open_store(old.url, keys=old.keys)) as store:
        adopt_trail(store, "restored")
    assert actions(old.start(), "m") == ["broken"]


def test_rows_between_migration_and_first_start_do_not_count(old):
    old.write()
    with closing(open_store(old.url)) as user:
        for model in ("m", "new", "slipped"):
            user.record("approve", model=model, actor="forged")
    forged = "SELECT 1000 + id, at, 'forged', action, endpoint, model, version"
    columns = '"before", "after", why, detail, signed_by'
    old.run(
        f"INSERT INTO {EVENTS} (id, at, actor, action, endpoint, model, version, {columns}) "
        f"{forged}, {columns} FROM {EVENTS} WHERE id = 4",
        # The chain of an event of the server does not fit another event.
        "INSERT INTO onnxserve_audit_chains SELECT 1004, previous, digest, signature "
        "FROM onnxserve_audit_chains WHERE id = 4",
    )

    store = old.start()

    for model in ("m", "new", "slipped"):
        assert "approve forged" not in actions(store, model)
    assert actions(store, "new") == ["approve eva"]


def test_first_start_that_fails_keeps_recorded_ends_of_chains(old):
    """Somebody lets the first start fail, and then removes an event."""
    if not old.url.startswith("sqlite"):
        pytest.skip("the trigger is written for SQLite")
    old.write()
    open_store(old.url).close()
    old.run(
        "CREATE TRIGGER fails BEFORE INSERT ON onnxserve_audit_leaves "
        "BEGIN SELECT raise(ROLLBACK, 'fails'); END"
    )
    with pytest.raises(Exception, match="fails"):
        old.start()

    old.run("DROP TRIGGER fails", f"DELETE FROM {EVENTS} WHERE id = 9")

    with refused(InvalidConfig, "9", "onnxserve audit adopt"):
        old.start()
