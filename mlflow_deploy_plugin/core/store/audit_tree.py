"""The Merkle tree over the audit events of a store, to which MLflow's server adds a
leaf for each event, and whose newest checkpoint it signs.

A leaf has the digest of its event, the digest of its model's name, and the id of the
key of the server that has written the event. Other processes write events without a
leaf. The server adds these when it writes its next event, with leaves that name no key.

An event counts if its row gives the leaf at its place in the tree of a checkpoint that
a known key has signed, and the leaf names a known key (`audit_verify.py`).
"""

import secrets
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, inspect, or_, select, text, update
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.errors import StoreUnavailable
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.store.audit import (
    EVENT_FIELDS,
    LOCK,
    canonical_json,
    event_json,
    row_values,
)
from mlflow_deploy_plugin.core.store.audit_keys import Keys
from mlflow_deploy_plugin.core.store.audit_record import TrailRecord
from mlflow_deploy_plugin.core.store.checkpoints import Checkpoint, TreeHead, parse_head
from mlflow_deploy_plugin.core.store.merkle import Edge, leaf_hash
from mlflow_deploy_plugin.core.store.tables import (
    LAST_MIGRATING_COMMIT,
    AuditLeafRow,
    AuditRow,
    AuditTreeRow,
)

ADOPT = "adopt"
"""The action of the event that an administrator has accepted a trail with faults. No
verdict or request of before counts after it. Also the subject of its leaf, because it
concerns all models.
"""
LOCK_NAME = "audit tree"
"""The lock of transactions that add events."""
REMEDY = (
    "an administrator can accept it with `onnxserve audit adopt --why REASON` on the machine of "
    "MLflow's server"
)
STREAMED = {"yield_per": 1000}
"""The option of queries whose rows are not held in memory at once."""
_CHAINS = "onnxserve_audit_chains"
"""The table of those builds whose hash chains their servers turn into a tree."""
_ROW = 1
_EVENTS: Any = AuditRow.__table__
_LEAVES: Any = AuditLeafRow.__table__
_TREE: Any = AuditTreeRow.__table__
_NEWEST = select(_TREE.c.checkpoint, _TREE.c.edge).where(_TREE.c.id == _ROW)
_UNPLACED = (
    select(*(_EVENTS.c[name] for name in ("id", *EVENT_FIELDS)))
    .where(
        or_(_EVENTS.c.place.is_(None), _EVENTS.c.place < 0, _EVENTS.c.place >= bindparam("size"))
    )
    .order_by(_EVENTS.c.id + 0)  # In the order of `id`, SQLite would read the whole table.
)


def subject_of(model: str) -> str:
    """Return the name of a model in leaves, which people may read who may not know the
    model.
    """
    return sha256(model.encode()).hexdigest()[:32]


def leaf_entry(event: Any, signed_by: str) -> str:
    """Return the entry of a stored event in the log. The format never changes."""
    subject = ADOPT if signed_by and event.action == ADOPT else subject_of(event.model)
    digest = sha256(event_json(event).encode()).hexdigest()
    return canonical_json({"event": digest, "model": subject, "signed_by": signed_by})


def stored_leaf(event: Any) -> bytes:
    """Return the hash of the leaf that the stored event and its `signed_by` give."""
    return leaf_hash(leaf_entry(event, event.signed_by).encode())


def newest_head(session: Session, keys: Keys) -> tuple[TreeHead | None, str]:
    """Return the head of the tree in the store, or why it cannot be used. It is None
    without a fault before the first start of a server.
    """
    row = session.execute(_NEWEST).one_or_none()
    if row is None:
        return None, ""
    try:
        head = parse_head(row.checkpoint, row.edge)
    except ValueError:
        return None, "the newest checkpoint of the audit trail was changed"
    if keys.signer_of(head.checkpoint):
        return head, ""
    return None, (
        "the newest checkpoint of the audit trail is not signed by a known key (servers with one "
        "store share ONNXSERVE_AUDIT_KEY_FILE)"
    )


def checked_head(session: Session, keys: Keys, record: TrailRecord) -> tuple[TreeHead | None, str]:
    """Return the head of the tree in the store, and why it is not the one that this
    server has recorded beside its key, or a later one; an empty text if it is.

    Call this with the lock of the tree, otherwise another server may record a newer
    head. Raises InvalidConfig if the record cannot be read.
    """
    head, fault = newest_head(session, keys)
    return head, fault or _record_fault(session, head, record)


def _record_fault(session: Session, head: TreeHead | None, record: TrailRecord) -> str:
    recorded = record.newest()
    if head is None:
        if recorded:
            return f"all {recorded.edge.size:,} events of the audit trail are missing"
        if inspect(session.connection()).has_table(_CHAINS) and session.scalar(
            text(f"SELECT id FROM {_CHAINS} LIMIT 1")
        ):
            return (
                "its hash chains were not verified, which MLflow's server does at a start with the "
                f"commit {LAST_MIGRATING_COMMIT} of onnxserve"
            )
        return ""
    if recorded is None:
        record.join(head.log)
        recorded = record.newest()
    if recorded in (None, head):
        return ""
    edge = recorded.edge
    missing = edge.size - head.edge.size
    if missing > 0:
        return f"the last {missing:,} of {edge.size:,} events of the audit trail are missing"
    if head.log != recorded.log:
        return "the store has another audit trail than the one that this server has recorded"
    if extend(session, edge, head.edge.size) != head.edge:
        return f"the first {edge.size:,} events of the audit trail were changed"
    return ""


def extend(session: Session, edge: Edge, size: int) -> Edge:
    """Return the edge with the stored leaves until this size. It stays smaller if there
    are fewer.
    """
    new = _LEAVES.c.place.between(edge.size, size - 1)
    query = select(_LEAVES).where(new).order_by(_LEAVES.c.place)
    for place, entry in session.execute(query, execution_options=STREAMED):
        if place != edge.size:
            break
        edge = edge.add(leaf_hash(entry.encode()))
    return edge


def append_events(
    session: Session,
    rows: Sequence[AuditRow],
    keys: Keys | None,
    record: TrailRecord | None,
) -> TreeHead | None:
    """Write the events at the end of a transaction, and add them to the tree if this is
    a server that signs, which has a record. Return the new head.

    The lock of the tree is the last lock that a transaction takes, so that transactions
    do not deadlock.

    Raises StoreUnavailable if the tree is not the recorded one or a later one.
    """
    if not rows or keys is None or record is None:
        session.add_all(rows)
        return None
    take_lock(session, LOCK_NAME)
    head, fault = checked_head(session, keys, record)
    if fault:
        raise StoreUnavailable(f"{fault}; {REMEDY}")
    if head is None:
        earlier = session.scalars(select(_EVENTS.c.id))
        head = new_log(new_tree(session, dict.fromkeys(earlier, keys.key_id)))
    return add_events(session, head, rows, keys)


def new_log(edge: Edge) -> TreeHead:
    """Return the head of a tree under a name that no other log has. It has no signature
    and names no key.
    """
    origin = f"onnxserve/{secrets.token_hex(8)}/"
    return TreeHead(Checkpoint(origin, edge.size, edge.root), edge)


def new_tree(session: Session, signers: Mapping[int, str]) -> Edge:
    """Replace the leaves by those of all events in the order of their ids. The leaves
    name the `signers`, by the ids of the events; the others name no key.
    """
    session.execute(update(_EVENTS).values(place=None, signed_by=""))
    return _add_unplaced(session, Edge(), signers)


def add_events(session: Session, head: TreeHead, rows: Sequence[AuditRow], keys: Keys) -> TreeHead:
    """Add the events of other processes, and then these, to the tree. Return the new
    head.
    """
    edge = _add_unplaced(session, head.edge, {})
    events = [
        {**row_values(row), "place": place, "signed_by": keys.key_id}
        for place, row in enumerate(rows, edge.size)
    ]
    session.execute(insert(_EVENTS), events)
    edge = _add_leaves(session, edge, [leaf_entry(row, keys.key_id) for row in rows])
    newest = TreeHead(keys.sign_checkpoint(head.log, edge), edge)
    session.execute(delete(_TREE))
    values = {"id": _ROW, "checkpoint": newest.checkpoint.text, "edge": newest.hashes}
    session.execute(insert(_TREE).values(values))
    return newest


def _add_unplaced(session: Session, edge: Edge, signers: Mapping[int, str]) -> Edge:
    """Add the events that are not in the tree. Somebody may have given them places, or
    stored leaves.
    """
    try:
        rows = session.execute(_UNPLACED, {"size": edge.size}).all()
    except ValueError as error:  # SQLite stores any text as a time.
        raise StoreUnavailable(f"an audit event cannot be read: {one_line(error)}") from None
    session.execute(delete(_LEAVES).where(_LEAVES.c.place >= edge.size))
    if not rows:
        return edge
    places = [
        {"row": row.id, "place": place, "signed_by": signers.get(row.id, "")}
        for place, row in enumerate(rows, edge.size)
    ]
    session.execute(update(_EVENTS).where(_EVENTS.c.id == bindparam("row")), places)
    return _add_leaves(session, edge, [leaf_entry(row, signers.get(row.id, "")) for row in rows])


def _add_leaves(session: Session, edge: Edge, entries: Sequence[str]) -> Edge:
    leaves = [{"place": place, "entry": entry} for place, entry in enumerate(entries, edge.size)]
    session.execute(insert(_LEAVES), leaves)
    for entry in entries:
        edge = edge.add(leaf_hash(entry.encode()))
    return edge


def take_lock(session: Session, name: str) -> None:
    """Take the lock of this name until the end of the transaction. Wait at most for the
    time in `Session.info`. On SQLite, the lock of all writing transactions is already
    taken.
    """
    if session.get_bind().dialect.name != "postgresql":
        return
    # PostgreSQL sets the timeout before it takes the lock.
    session.execute(
        select(
            func.set_config("lock_timeout", f"{session.info[LOCK]}s", True),
            func.pg_advisory_xact_lock(func.hashtextextended(name, 0)),
        )
    )
