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
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.store.audit import LOCK, AuditEvent, current_actor, write_event
from mlflow_deploy_plugin.core.store.audit_keys import Keys, parse_keys
from mlflow_deploy_plugin.core.store.audit_record import Head, Seal, TrailRecord, chain_id
from mlflow_deploy_plugin.core.store.tables import AuditRow

if TYPE_CHECKING:
    from mlflow_deploy_plugin.core.store.checkpoints import Checkpoint
    from mlflow_deploy_plugin.core.store.store import Store

ADOPT = "adopt"
GAP = "gap"
SEAL = "seal"
BROKEN = "broken"
"""The action of the event that `counted_events` returns in the place of a fault. It is
never stored.
"""
_PURPOSE = "audit event"
_PUBLIC_KEYS = "public_keys"
_STREAMED = {"yield_per": 1000}
"""The option of queries whose rows are not held in memory at once."""
_EVENT = tuple(field.name for field in fields(AuditEvent))
_CHAIN = ("id", "previous", "digest", "signed_by", "signature")


@dataclass(frozen=True)
class Fault:
    """A sign that the trail was changed.

    Attributes:
        model: the model of the chain; empty for the events without a model.
        event: the id of the event at which the fault was found.
        text: the fault as one line.
    """

    model: str
    event: int
    text: str


@dataclass(frozen=True)
class TrailState:
    """The state of the audit trail, or of one chain.

    Attributes:
        state: `changed` with a fault; `unsigned` if no event is signed; else `intact`.
        events: the number of events.
        signed: the number of events with a valid signature.
        keys: the ids of the keys with which signatures were checked.
        unused_keys: the ids of the keys that have signed no event of the whole trail.
    """

    state: Literal["intact", "changed", "unsigned"]
    events: int
    faults: tuple[Fault, ...]
    signed: int = 0
    keys: tuple[str, ...] = ()
    unused_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Checked:
    """An event of a chain. `faults` has a line for each fault of the event itself or of
    its place in the chain.
    """

    row: Row[Any]
    is_signed: bool
    faults: tuple[str, ...]


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
        row.id = _lock_chain(session, row.model)
        recorded = record.head(row.model) if record else None
        if recorded:  # SQLite would use the ids of removed events again.
            row.id = max(row.id, recorded.event + 1)
        row.previous = _head(session, row.model, recorded)
        row.signed_by = keys.key_id if keys else ""
        row.digest = event_digest(row, row.previous)
        row.signature = keys.sign(_PURPOSE, row.digest) if keys else ""
        session.add(row)
        session.flush()
        heads.append(Head(model=row.model, event=row.id, digest=row.digest))
    return heads


def _lock_chain(session: Session, model: str) -> int:
    """Lock the chain until the end of the transaction. Return the id of its next
    event.
    """
    if session.get_bind().dialect.name != "postgresql":  # The transaction has the write lock.
        return (session.scalar(select(func.max(AuditRow.id))) or 0) + 1
    sequence = func.pg_get_serial_sequence(AuditRow.__tablename__, "id")
    lock_in_postgresql(session, f"audit trail of {model}")
    return int(session.scalars(select(func.nextval(sequence))).one())


def lock_in_postgresql(session: Session, name: str) -> None:
    """Take the lock of this name until the end of the transaction. Wait at most for the
    time in `Session.info`.
    """
    timeout = f"{session.info[LOCK]}s"
    # PostgreSQL sets the timeout before it takes the lock.
    session.execute(
        select(
            func.set_config("lock_timeout", timeout, True),
            func.pg_advisory_xact_lock(func.hashtextextended(name, 0)),
        )
    )


def _is_present(session: Session, head: Head) -> bool:
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


def _head(session: Session, model: str, recorded: Head | None) -> str:
    """Return the hash of the last event of a chain, or of the recorded one if that was
    removed.
    """
    newest = _chain(model).order_by(None).order_by(AuditRow.id.desc()).limit(1)
    row = session.execute(newest).one_or_none()
    is_recorded = recorded is None or (row is not None and _is_head(row, recorded))
    if recorded and not is_recorded and not _is_present(session, recorded):
        return recorded.digest
    return "" if row is None else row.digest


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
    for checked in _check(_read_chain(session, model), keys):
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
    if head and not _is_present(session, head):
        counted.append(AuditEvent(datetime.now(UTC), "", BROKEN, model=model))
    return counted


def newest_counted_events(session: Session, model: str, keys: Keys) -> Iterator[AuditEvent]:
    """Yield the events of a model that are signed, newest first, and those before the
    seal, to which the hash of the seal leads.

    Unlike `counted_events`, this does not read the whole chain to find removed events.
    """
    expected = None
    newest_first = _chain(model).order_by(None).order_by(AuditRow.id.desc())
    for row in session.execute(newest_first, execution_options=_STREAMED):
        digest = event_digest(row, row.previous)
        is_signed = is_signed_row(row, digest, keys)
        is_linked = row.digest == digest == expected
        if is_signed or is_linked:
            yield _event_of(row)
        if is_linked or (is_signed and row.action == SEAL):
            expected = row.previous


def seal(store: "Store") -> None:
    """Check that this is the trail that the server has sealed at its first start, or
    seal it at the first start. Publish the keys of this server in a signed event.

    At the first start, all chains are sealed if the store has no event that is signed
    by a trusted key yet.

    Raises InvalidConfig if recorded events are missing, or if there are signatures of
    an unknown key.
    """
    keys = store.keys
    record = store.trail_record
    assert keys is not None
    assert record is not None
    sealed = record.seal()
    faults = record_faults(store)
    if faults:
        raise InvalidConfig(
            f"this is not the audit trail that this server has sealed: {faults[0].text}; an "
            "administrator can accept it with `onnxserve audit adopt --why REASON` on this machine"
        )
    public_keys = keys.public_pem()
    with store.transaction(alone_with="audit seal") as session:
        signed = select(AuditRow.id).limit(1)
        if not session.scalar(signed.where(AuditRow.signed_by == keys.key_id)):
            models = {""}
            if not (sealed or session.scalar(signed.where(AuditRow.signed_by.in_(keys.public)))):
                models.update(session.scalars(select(AuditRow.model).distinct()))
            for model in models:
                event = AuditEvent(
                    store.now(),
                    current_actor(),
                    SEAL,
                    model=model,
                    after=keys.key_id,
                    detail={_PUBLIC_KEYS: public_keys},
                )
                write_event(session, event)
    if sealed is None:
        with store.transaction(is_read_only=True) as session:
            record.replace(Seal(key_id=keys.key_id, at=store.now()), chain_heads(session))


def store_spooled(store: "Store") -> int:
    """Store the events that were kept while the store was away, after an event of the
    gap in each chain. Return the number of events.

    Raises StoreUnavailable.
    """
    record = store.trail_record
    assert record is not None
    with record.unspooled() as events, store.transaction() as session:
        for model in {event.model for event in events}:
            of_model = [event for event in events if event.model == model]
            gap = AuditEvent(
                store.now(),
                current_actor(),
                GAP,
                model=model,
                why="the store did not answer, and the server kept the events that follow",
                detail={"events": len(of_model), "since": of_model[0].at.isoformat()},
            )
            for event in (gap, *of_model):
                write_event(session, event)
    return len(events)


def record_faults(store: "Store") -> list[Fault]:
    """Return the recorded events that are missing, and the keys that this server does
    not know.
    """
    keys = store.keys
    record = store.trail_record
    assert keys is not None
    assert record is not None
    sealed = record.seal()
    adopted = sealed.adopted if sealed else ()
    heads = record.heads()
    with store.transaction(is_read_only=True) as session:
        faults = _lost_ends(session, heads)
        for key_id in sorted(_unknown_signers(session, keys).difference(adopted)):
            text = (
                f"the key {key_id}, whose public key is not in the key file, has signed events "
                "(servers with one store share ONNXSERVE_AUDIT_KEY_FILE)"
            )
            faults.append(Fault("", 0, text))
    return faults


def _lost_ends(session: Session, heads: Iterable[Head]) -> list[Fault]:
    """Return a fault for each of these ends of chains that the store lacks."""
    faults = []
    for head in heads:
        if not _is_present(session, head):
            place = f"the chain of {head.model}" if head.model else "its chain"
            text = f"event {head.event} was removed or changed: the end of {place} is missing"
            faults.append(Fault(head.model, head.event, text))
    return faults


def _unknown_signers(session: Session, keys: Keys) -> set[str]:
    """Return the ids of the keys that have signed events, without the keys `keys`."""
    signers = session.scalars(select(AuditRow.signed_by).distinct())
    return set(signers) - {"", *keys.public}


def adopt_trail(store: "Store", why: str) -> list[Fault]:
    """Accept the trail in the store as it is, with an event of this process's user in
    each chain that has lost events. Return what was accepted.

    Events without a signature do not count afterwards. Raises InvalidConfig if the
    record cannot be read or written.
    """
    keys = store.keys
    record = store.trail_record
    assert keys is not None
    assert record is not None
    faults = record_faults(store)
    if not faults:
        return []
    with store.transaction(is_read_only=True) as session:
        unknown = _unknown_signers(session, keys)
        heads = chain_heads(session)
    sealed = Seal(key_id=keys.key_id, at=store.now(), adopted=tuple(sorted(unknown)))
    record.replace(sealed, heads)
    accepted = [fault.text for fault in faults]
    for model in sorted({"", *(fault.model for fault in faults)}):
        store.record(ADOPT, model=model, why=why, detail={"accepted": accepted})
    return faults


def published_keys(store: "Store") -> Keys:
    """Return the public keys in the store. Everybody who may write to the store can add
    a key.
    """
    events = store.events(actions=(SEAL,))
    pems = {str(event.detail[_PUBLIC_KEYS]) for event in events}
    if not pems:
        return Keys({})
    return parse_keys("".join(sorted(pems)), "the keys in the audit trail")


def verify_trail(
    store: "Store",
    model: str | None = None,
    keys: Keys | None = None,
    checkpoint: "Checkpoint | None" = None,
) -> TrailState:
    """Check the hashes and the signatures of the trail, or only of a model's chain.

    Args:
        keys: the keys of the servers; None for the keys of the store's process or else
            the keys that the store publishes.
        checkpoint: an earlier state of the trail, whose events must still exist.

    Raises StoreUnavailable, and NotInstalled without the package cryptography.
    """
    keys = keys or store.keys or published_keys(store)
    faults: list[Fault] = []
    events = 0
    signed = 0
    used = set()
    with store.transaction(is_read_only=True) as session:
        if model is None:
            models = sorted(session.scalars(select(AuditRow.model).distinct()))
        else:
            models = [model]
        for name in models:
            for checked in _check(_read_chain(session, name), keys):
                events += 1
                signed += checked.is_signed
                used.add(checked.row.signed_by)
                lines = [*checked.faults, *_signature_faults(checked, keys)]
                faults += [Fault(name, checked.row.id, line) for line in lines]
        ends = store.trail_record.heads() if store.trail_record else []
        if checkpoint is not None:
            ends += _heads_of(checkpoint, models)
        faults += _lost_ends(session, (head for head in ends if model in (None, head.model)))
    state: Literal["intact", "changed", "unsigned"] = "intact" if signed else "unsigned"
    if faults:
        state = "changed"
    unused = () if model else tuple(sorted(keys.public.keys() - used))
    return TrailState(state, events, tuple(faults), signed, tuple(keys.public), unused)


def _heads_of(checkpoint: "Checkpoint", models: Iterable[str]) -> Iterator[Head]:
    """Yield the heads of a checkpoint, whose chains have no names of models. A chain
    that is not of one of the `models` keeps its name.
    """
    names = {chain_id(model): model for model in models}
    for chain, (event, digest) in checkpoint.heads.items():
        yield Head(model=names.get(chain, chain), event=event, digest=digest)


def _read_chain(session: Session, model: str) -> Iterable[Row[Any]]:
    return session.execute(_chain(model), execution_options=_STREAMED)


def _chain(model: str) -> Select[Any]:
    """Return the query of a chain."""
    columns = [getattr(AuditRow, name) for name in (*_CHAIN, *_EVENT)]
    return select(*columns).where(AuditRow.model == model).order_by(AuditRow.id)


def _check(rows: Iterable[Row[Any]], keys: Keys) -> Iterator[_Checked]:
    """Check each event and its link to the event before it."""
    head = ""
    for row in rows:
        name = _name(row)
        faults = []
        digest = event_digest(row, row.previous)
        if row.digest != digest:
            faults.append(f"{name} was changed or moved")
        if row.previous != head:
            faults.append(f"before {name}, an event was removed, inserted, changed or moved")
        head = row.digest
        yield _Checked(row, is_signed_row(row, digest, keys), tuple(faults))


def is_signed_row(row: Any, digest: str, keys: Keys) -> bool:
    """Return True if the hash of the row is `digest`, and has a valid signature."""
    return row.digest == digest and keys.is_signed(
        _PURPOSE,
        digest,
        row.signed_by,
        row.signature,
    )


def _signature_faults(checked: _Checked, keys: Keys) -> Iterator[str]:
    row = checked.row
    if row.signed_by and not checked.is_signed and not checked.faults:
        known = "" if row.signed_by in keys.public else "unknown "
        yield f"{_name(row)} has no valid signature of the {known}key {row.signed_by}"


def _name(row: Row[Any]) -> str:
    subject = row.model or row.endpoint
    return f"event {row.id} ({row.action} of {subject} by {row.actor})"
