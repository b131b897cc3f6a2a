"""The hash chains of the audit trail: each event has the hash of the event before it,
so that a changed, removed, inserted or moved event is found.

There is one chain per model, and one for the events without a model, so that writers
wait only for writers of the same model. MLflow's server signs its events
(`audit_keys.py`). Its first signed event is a seal in each chain: the events before the
seal count as they did before, and later events count only with a signature.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.store.audit import LOCK, AuditEvent
from mlflow_deploy_plugin.core.store.audit_keys import Keys
from mlflow_deploy_plugin.core.store.audit_record import Head, TrailRecord
from mlflow_deploy_plugin.core.store.tables import AuditRow

SEAL = "seal"
BROKEN = "broken"
"""The action of the event that `counted_events` returns in the place of a fault. It is
never stored.
"""
_PURPOSE = "audit event"
_STREAMED = {"yield_per": 1000}
"""The option of queries whose rows are not held in memory at once."""
_EVENT = tuple(field.name for field in fields(AuditEvent))
_CHAIN = ("id", "previous", "digest", "signed_by", "signature")


@dataclass(frozen=True)
class CheckedEvent:
    """An event of a chain.

    Attributes:
        faults: a line for each fault of the event itself or of its place in the chain.
        signature_fault: the fault of the signature of an event without other faults, or
            empty. The event then counts like one without a signature.
    """

    row: Row[Any]
    is_signed: bool
    faults: tuple[str, ...]
    signature_fault: str


def _event_of(row: Row[Any]) -> AuditEvent:
    return AuditEvent(*(getattr(row, name) for name in _EVENT))


def canonical_json(document: object) -> str:
    """Return the text that is hashed or signed, which is the same before and after a
    database has stored the document as JSON.
    """
    stored = json.loads(json.dumps(document))
    return json.dumps(stored, sort_keys=True, separators=(",", ":"))


def event_digest(row: Any, previous: str) -> str:
    """Return the SHA-256 of a stored event with its id, its key and `previous`, the
    hash of the event before it. The format never changes.
    """
    document = {name: getattr(row, name) for name in (*_EVENT, "id", "signed_by")}
    document["previous"] = previous
    document["at"] = row.at.astimezone(UTC).isoformat(timespec="microseconds")
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()


def append_events(
    session: Session,
    rows: Iterable[AuditRow],
    keys: Keys | None,
    record: TrailRecord | None = None,
) -> list[Head]:
    """Write the events at the ends of their chains, at the end of a transaction. Return
    the new ends.

    An event follows the recorded end of its chain even if that event was removed, so
    that the gap remains visible.

    The locks of the chains are the last locks that a transaction takes, and are taken
    in the order of the models, so that transactions do not deadlock.
    """
    heads = []
    for row in sorted(rows, key=attrgetter("model")):
        if session.get_bind().dialect.name == "postgresql":
            lock_in_postgresql(session, f"audit trail of {row.model}")
            next_id = func.nextval(func.pg_get_serial_sequence(AuditRow.__tablename__, "id"))
            row.id = int(session.scalars(select(next_id)).one())
        else:  # The transaction has the write lock.
            row.id = (session.scalar(select(func.max(AuditRow.id))) or 0) + 1
        recorded = record.head(row.model) if record else None
        if recorded:  # SQLite would use the ids of removed events again.
            row.id = max(row.id, recorded.event + 1)
        newest = session.execute(_newest_first(row.model).limit(1)).one_or_none()
        row.previous = newest.digest if newest else ""
        is_newest = newest and recorded and _is_head(newest, recorded)
        if recorded and not is_newest and not is_present(session, recorded):
            row.previous = recorded.digest
        row.signed_by = keys.key_id if keys else ""
        row.digest = event_digest(row, row.previous)
        row.signature = keys.sign(_PURPOSE, row.digest) if keys else ""
        session.add(row)
        session.flush()
        heads.append(Head(model=row.model, event=row.id, digest=row.digest))
    return heads


def lock_in_postgresql(session: Session, name: str) -> None:
    """Take the lock of this name until the end of the transaction. Wait at most for the
    time in `Session.info`.
    """
    # PostgreSQL sets the timeout before it takes the lock.
    session.execute(
        select(
            func.set_config("lock_timeout", f"{session.info[LOCK]}s", True),
            func.pg_advisory_xact_lock(func.hashtextextended(name, 0)),
        )
    )


def is_present(session: Session, head: Head) -> bool:
    """Return True if the chain contains the event with this hash."""
    row = session.execute(_chain(head.model).where(AuditRow.id == head.event)).one_or_none()
    return row is not None and _is_head(row, head)


def _is_head(row: Row[Any], head: Head) -> bool:
    """Return True if the event has this id and this hash."""
    if (row.id, row.digest) != (head.event, head.digest):
        return False
    return bool(event_digest(row, row.previous) == row.digest)


def chain_heads(session: Session) -> list[Head]:
    """Return the last event of each chain."""
    last = select(func.max(AuditRow.id)).group_by(AuditRow.model)
    columns = select(AuditRow.model, AuditRow.id, AuditRow.digest)
    rows = session.execute(columns.where(AuditRow.id.in_(last)))
    return [Head(model=row.model, event=row.id, digest=row.digest) for row in rows]


def counted_events(
    session: Session,
    model: str,
    keys: Keys,
    head: Head | None = None,
) -> list[AuditEvent]:
    """Return the events of a model that may decide something, oldest first: the events
    that are signed by one of the keys, and the events before the seal.

    In the place of a fault, the list has an event with the action `BROKEN`, and at its
    end if the recorded `head` is missing. The events before the seal are not returned
    if one of them was changed.
    """
    counted: list[AuditEvent] = []
    unsigned: list[AuditEvent] = []
    is_sealed = False
    for checked in check_chain(session, model, keys):
        event = _event_of(checked.row)
        if checked.faults:
            unsigned = []
            counted.append(AuditEvent(event.at, "", BROKEN, model=model))
        if checked.is_signed:
            if event.action == SEAL and not is_sealed:
                counted += unsigned
            is_sealed = True
            counted.append(event)
        elif not is_sealed and not checked.faults:
            unsigned.append(event)
    if head and not is_present(session, head):
        counted.append(AuditEvent(datetime.now(UTC), "", BROKEN, model=model))
    return counted


def newest_counted_events(session: Session, model: str, keys: Keys) -> Iterator[AuditEvent]:
    """Yield the events of a model that are signed, newest first, and those before the
    seal, to which the hash of the seal leads.

    Unlike `counted_events`, this does not read the whole chain to find removed events.
    """
    expected = None
    for row in session.execute(_newest_first(model), execution_options=_STREAMED):
        digest = event_digest(row, row.previous)
        is_signed = is_signed_row(row, digest, keys)
        is_linked = row.digest == digest == expected
        if is_signed or is_linked:
            yield _event_of(row)
        if is_linked or (is_signed and row.action == SEAL):
            expected = row.previous


def _chain(model: str) -> Select[Any]:
    """Return the query of a chain."""
    columns = [getattr(AuditRow, name) for name in (*_CHAIN, *_EVENT)]
    return select(*columns).where(AuditRow.model == model).order_by(AuditRow.id)


def _newest_first(model: str) -> Select[Any]:
    return _chain(model).order_by(None).order_by(AuditRow.id.desc())


def check_chain(session: Session, model: str, keys: Keys) -> Iterator[CheckedEvent]:
    """Check each event of a chain and its link to the event before it."""
    head = ""
    for row in session.execute(_chain(model), execution_options=_STREAMED):
        name = f"event {row.id} ({row.action} of {row.model or row.endpoint} by {row.actor})"
        faults = []
        digest = event_digest(row, row.previous)
        if row.digest != digest:
            faults.append(f"{name} was changed or moved")
        if row.previous != head:
            faults.append(f"before {name}, an event was removed, inserted, changed or moved")
        head = row.digest
        is_signed = is_signed_row(row, digest, keys)
        signature_fault = ""
        if row.signed_by and not is_signed and not faults:
            known = "" if row.signed_by in keys.public else "unknown "
            signature_fault = f"{name} has no valid signature of the {known}key {row.signed_by}"
        yield CheckedEvent(row, is_signed, tuple(faults), signature_fault)


def is_signed_row(row: Any, digest: str, keys: Keys) -> bool:
    """Return True if the hash of the row is `digest`, and has a valid signature."""
    return row.digest == digest and keys.is_signed(
        _PURPOSE,
        digest,
        row.signed_by,
        row.signature,
    )
