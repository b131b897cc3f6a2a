"""The audit trail of a server that signs its events: its first event, the events that
it could not store yet, its verification, and the adoption of a trail with faults.
"""

import logging

from sqlalchemy import select

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
    add_events,
    checked_head,
    extend,
    lock_tree,
    new_log,
    new_tree,
)
from mlflow_deploy_plugin.core.store.audit_verify import TrailState, check_trail
from mlflow_deploy_plugin.core.store.checkpoints import Checkpoint
from mlflow_deploy_plugin.core.store.merkle import Edge
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import AuditRow

_log = logging.getLogger(__name__)

_SEAL = "seal"
_GAP = "gap"
_PUBLIC_KEYS = "public_keys"


def seal(store: Store) -> None:
    """Check that this is the trail that the server has recorded beside its key. At the
    first start with a key, publish the keys of this server in an event.

    The first event of a server makes the tree: earlier events become its first leaves.

    Raises InvalidConfig if recorded events are missing, or if the newest checkpoint is
    not signed by a known key.
    """
    keys, record = _signing(store)
    with store.reading() as session:
        leaves_fault = store.trail_view.read(session, keys).fault
    with store.transaction(alone_with="audit seal") as session:
        lock_tree(session)
        head, fault = checked_head(session, keys, record)
        fault = fault or leaves_fault
        if fault:
            raise InvalidConfig(
                f"this is not the audit trail that this server has recorded: {fault}; an "
                "administrator can accept it with `onnxserve audit adopt --why REASON` on this "
                "machine"
            )
        if head is None and record.has_others:
            _log.warning(
                "this key has the record of another store; if this store has been in use before, "
                "its audit trail was removed"
            )
        written = select(AuditRow.id).where(AuditRow.signed_by == keys.key_id).limit(1)
        if session.scalar(written) is None or head is None:
            event = AuditEvent(
                store.now(),
                current_actor(),
                _SEAL,
                after=keys.key_id,
                detail={_PUBLIC_KEYS: keys.public_pem()},
            )
            write_event(session, event)


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


def adopt_trail(store: Store, why: str) -> str:
    """Accept the trail in the store as it is, with an event of this process's user.
    Return what was accepted; empty if there is no fault.

    The events of the recorded tree still count if the store has them all, otherwise
    those of a smaller tree that a known key has signed, under a new name of the log. If
    there is no such tree, no earlier event counts. Raises InvalidConfig or
    StoreUnavailable if the record cannot be read or written.
    """
    keys, record = _signing(store)
    with store.transaction() as session:
        lock_tree(session)
        head, fault = checked_head(session, keys, record)
        leaves_fault = store.trail_view.read(session, keys).fault
        fault = fault or leaves_fault
        if not fault:
            return ""
        recorded = record.newest()
        if recorded and extend(session, Edge(), recorded.edge.size) == recorded.edge:
            log, edge = recorded.log, recorded.edge
        elif head and not leaves_fault:
            log, edge = head.log, head.edge
            if recorded and recorded.log == log:
                log = new_log()  # Witnesses of this log refuse a smaller tree.
        else:
            log, edge = new_log(), new_tree(session, {})
        detail = {"accepted": [fault]}
        event = AuditEvent(store.now(), store.user, ADOPT, why=why, detail=detail)
        head = add_events(session, log, edge, [event_row(session, event)], keys)
    record.replace(head)
    return fault


def published_keys(store: Store) -> Keys:
    """Return the public keys in the store. Everybody who may write to the store can add
    a key.
    """
    published = select(AuditRow.detail[_PUBLIC_KEYS].as_string()).where(AuditRow.action == _SEAL)
    with store.reading() as session:
        pems = {*session.scalars(published)} - {None}
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
