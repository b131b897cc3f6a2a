"""The audit trail of a server that signs its events: its first event, the events that
it could not store yet, its verification, and the adoption of a trail with faults.
"""

import logging
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.store.audit import (
    AuditEvent,
    current_actor,
    event_row,
    write_event,
)
from mlflow_deploy_plugin.core.store.audit_keys import Keys, parse_keys
from mlflow_deploy_plugin.core.store.audit_record import TrailRecord
from mlflow_deploy_plugin.core.store.audit_tree import (
    ADOPT,
    LOCK_NAME,
    REMEDY,
    add_events,
    checked_head,
    extend,
    new_log,
    new_tree,
)
from mlflow_deploy_plugin.core.store.audit_verify import (
    TrailState,
    check_trail,
    counted_events,
)
from mlflow_deploy_plugin.core.store.checkpoints import Checkpoint, NoteSigner
from mlflow_deploy_plugin.core.store.merkle import Edge
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import AuditRow

_log = logging.getLogger(__name__)

SEAL = "seal"
"""The action of the first event of a server with its key."""
_GAP = "gap"
_PUBLIC_KEYS = "public_keys"
_MISSING = "missing"
"""The key of the number of removed events in the detail of an adoption."""


def seal(store: Store) -> None:
    """Check that this is the trail that the server has recorded beside its key. At the
    first start with a key, publish the keys of this server in an event.

    The first event of a server makes the tree: earlier events become its first leaves.

    Raises InvalidConfig if recorded events are missing, or if the newest checkpoint is
    not signed by a known key.
    """
    keys, record = _signing(store)
    with store.reading() as session:
        rows_fault = _rows_fault(session, store)
    with store.transaction(alone_with=LOCK_NAME) as session:
        head, fault = checked_head(session, keys, record)
        fault = fault or rows_fault
        if fault:
            raise InvalidConfig(f"this audit trail is not known to this server: {fault}; {REMEDY}")
        if head is None and record.has_others:
            _log.warning(
                "this key has the record of another store; if this store has been in use before, "
                "its audit trail was removed"
            )
        written = select(AuditRow.id).where(AuditRow.signed_by == keys.key_id).limit(1)
        if session.scalar(written) is None or head is None:
            why = ""
            if head is None and (earlier := session.scalar(select(func.count(AuditRow.id)))):
                why = f"{earlier:,} earlier events became the first leaves of the tree"
            event = AuditEvent(
                store.now(),
                current_actor(),
                SEAL,
                after=keys.key_id,
                why=why,
                detail={_PUBLIC_KEYS: keys.public_pem()},
            )
            write_event(session, event)


def _rows_fault(session: Session, store: Store) -> str:
    """Return how many events of the tree were removed since the last adoption; empty if
    there are none.
    """
    keys, _ = _signing(store)
    tree = store.trail_view.read(session, keys)
    removed = tree.size - _count_rows(session, tree.size)
    if removed:
        known = 0
        for event in counted_events(store.trail_view, session, "", keys):
            if event.action == ADOPT:
                known = event.detail.get(_MISSING, 0)
        if removed > known:
            return f"events of the audit trail were removed ({removed - known:,})"
    return tree.fault


def _count_rows(session: Session, size: int) -> int:
    """Return the number of places of a tree of this size that have an event."""
    is_placed = AuditRow.place.between(0, size - 1)
    return session.scalar(select(func.count(AuditRow.place.distinct())).where(is_placed)) or 0


def store_spooled(store: Store) -> int:
    """Store the events that were kept while the store was away, after an event of the
    gap for each model. Return the number of events.

    Raises StoreUnavailable.
    """
    _, record = _signing(store)
    with record.unspooled() as events, store.transaction() as session:
        for model in {event.model for event in events}:
            of_model = [event for event in events if event.model == model]
            gap = AuditEvent(
                store.now(),
                current_actor(),
                _GAP,
                model=model,
                why="the store did not answer, and the server kept the events that follow",
                detail={"events": len(of_model), "since": of_model[0].at.isoformat()},
            )
            for event in (gap, *of_model):
                write_event(session, event)
    return len(events)


def _signing(store: Store) -> tuple[Keys, TrailRecord]:
    """Return the keys and the record of the store of a server that signs its events."""
    assert store.keys is not None
    assert store.trail_record is not None
    return store.keys, store.trail_record


@dataclass(frozen=True)
class Adoption:
    """The result of accepting a trail.

    Attributes:
        fault: the difference between the store and the record; empty if there is none.
        missing: the places of the recorded events that the store lacks.
        waiting: the number of events beside the key that are stored next.
        log: the key of the log for witnesses, whose name may be new.
    """

    fault: str = ""
    missing: range = range(0)
    waiting: int = 0
    log: NoteSigner | None = None


def adopt_trail(store: Store, why: str) -> Adoption:
    """Accept the trail in the store as it is, with an event of this process's user.

    The events of the recorded tree still count if the store has them all, otherwise
    those of a smaller tree that a known key has signed, under a new name of the log. If
    there is no such tree, no earlier event counts. Raises InvalidConfig or
    StoreUnavailable if the record cannot be read or written.
    """
    keys, record = _signing(store)
    with store.transaction(alone_with=LOCK_NAME) as session:
        _, head_fault = checked_head(session, keys, record)
        fault = head_fault or _rows_fault(session, store)
        if not fault:
            return Adoption()
        recorded = record.newest()
        size = recorded.edge.size if recorded else 0
        head = store.trail_view.read(session, keys).head
        if head and not head_fault:
            accepted = head
        elif recorded and extend(session, Edge(), size) == recorded.edge:
            accepted = recorded
        elif head:  # Witnesses of its log may have cosigned a larger tree.
            accepted = new_log(head.edge)
        else:
            accepted = new_log(new_tree(session, {}))
        kept = accepted.edge.size
        detail = {"accepted": [fault], _MISSING: kept - _count_rows(session, kept)}
        event = AuditEvent(store.now(), store.user, ADOPT, why=why, detail=detail)
        head = add_events(session, accepted, [event_row(session, event)], keys)
    record.replace(head)
    log = keys.signer_of(head.checkpoint)
    return Adoption(fault, range(kept, size), record.count_spooled(), log)


def published_keys(store: Store) -> Keys:
    """Return the public keys in the store. Everybody who may write to the store can add
    a key.
    """
    published = select(AuditRow.detail[_PUBLIC_KEYS].as_string()).where(AuditRow.action == SEAL)
    with store.reading() as session:
        pems = {pem for pem in session.scalars(published) if pem}
    if not pems:
        return Keys({})
    return parse_keys("".join(sorted(pems)), "the keys in the audit trail")


def verify_trail(
    store: Store, keys: Keys | None = None, checkpoint: Checkpoint | None = None
) -> TrailState:
    """Check the whole trail.

    Args:
        keys: the keys of the servers; None for the keys of the store's process or else
            the keys that the store publishes.
        checkpoint: an earlier state of the trail, which the trail must contain.

    Raises StoreUnavailable, and NotInstalled without the package cryptography.
    """
    recorded = store.trail_record.newest() if store.trail_record else None
    earlier = [recorded.checkpoint] if recorded else []
    if checkpoint:
        earlier.append(checkpoint)
    with store.reading() as session:
        return check_trail(session, keys or store.keys or published_keys(store), earlier)
