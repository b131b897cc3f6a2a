"""The audit trail of a server that signs its events: its seal, the events that it could
not store yet, its verification, and the adoption of a trail with faults.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.store.audit import AuditEvent, current_actor, write_event
from mlflow_deploy_plugin.core.store.audit_chain import SEAL, chain_heads, check_chain, is_present
from mlflow_deploy_plugin.core.store.audit_keys import Keys, parse_keys
from mlflow_deploy_plugin.core.store.audit_record import Head, Seal, TrailRecord
from mlflow_deploy_plugin.core.store.checkpoints import Checkpoint
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import AuditRow

ADOPT = "adopt"
_GAP = "gap"
_PUBLIC_KEYS = "public_keys"


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


def seal(store: Store) -> None:
    """Check that this is the trail that the server has sealed at its first start, or
    seal it at the first start. Publish the keys of this server in a signed event.

    At the first start, all chains are sealed if the store has no event that is signed
    by a trusted key yet.

    Raises InvalidConfig if recorded events are missing, or if there are signatures of
    an unknown key.
    """
    keys, record = _signing(store)
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
        with store.reading() as session:
            record.replace(Seal(key_id=keys.key_id, at=store.now()), chain_heads(session))
        _signing(store)


def store_spooled(store: Store) -> int:
    """Store the events that were kept while the store was away, after an event of the
    gap in each chain. Return the number of events.

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
    """Return the keys and the record of the store of a server that signs its events.
    The id of the store is the hash of the first seal, which is the first signed event
    of the chain without a model.
    """
    assert store.keys is not None
    assert store.trail_record is not None
    with store.reading() as session:
        for checked in check_chain(session, "", store.keys):
            if checked.is_signed:
                store.trail_record.join(checked.row.digest[:16])
                break
    return store.keys, store.trail_record


def record_faults(store: Store) -> list[Fault]:
    """Return the recorded events that are missing, and the keys that this server does
    not know.
    """
    keys, record = _signing(store)
    sealed = record.seal()
    adopted = sealed.adopted if sealed else ()
    heads = record.heads()
    with store.reading() as session:
        faults = _lost_ends(session, heads)
        for key_id in sorted(_unknown_signers(session, keys).difference(adopted)):
            text = (
                f"the key {key_id}, whose public key is not in the key file, has signed events "
                "(servers with one store share ONNXSERVE_AUDIT_KEY_FILE)"
            )
            faults.append(Fault("", 0, text))
    return faults


def _lost_ends(session: Session, heads: Iterable[Head], model: str | None = None) -> list[Fault]:
    """Return a fault for each of these ends of chains, or of the model's chain, that
    the store lacks.
    """
    faults = []
    for head in heads:
        if model in (None, head.model) and not is_present(session, head):
            place = f"the chain of {head.model}" if head.model else "its chain"
            text = f"event {head.event} was removed or changed: the end of {place} is missing"
            faults.append(Fault(head.model, head.event, text))
    return faults


def _unknown_signers(session: Session, keys: Keys) -> set[str]:
    """Return the ids of the keys that have signed events, without the keys `keys`."""
    signers = session.scalars(select(AuditRow.signed_by).distinct())
    return set(signers) - {"", *keys.public}


def adopt_trail(store: Store, why: str) -> list[Fault]:
    """Accept the trail in the store as it is, with an event of this process's user in
    each chain that has lost events. Return what was accepted.

    Events without a signature do not count afterwards. Raises InvalidConfig if the
    record cannot be read or written.
    """
    keys, record = _signing(store)
    faults = record_faults(store)
    if not faults:
        return []
    with store.reading() as session:
        unknown = _unknown_signers(session, keys)
        heads = chain_heads(session)
    sealed = Seal(key_id=keys.key_id, at=store.now(), adopted=tuple(sorted(unknown)))
    record.replace(sealed, heads)
    accepted = [fault.text for fault in faults]
    for model in sorted({"", *(fault.model for fault in faults)}):
        store.record(ADOPT, model=model, why=why, detail={"accepted": accepted})
    return faults


def published_keys(store: Store) -> Keys:
    """Return the public keys in the store. Everybody who may write to the store can add
    a key.
    """
    events = store.events(actions=(SEAL,))
    pems = {str(event.detail[_PUBLIC_KEYS]) for event in events}
    if not pems:
        return Keys({})
    return parse_keys("".join(sorted(pems)), "the keys in the audit trail")


def verify_trail(
    store: Store,
    model: str | None = None,
    keys: Keys | None = None,
    checkpoint: Checkpoint | None = None,
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
    signers: Counter[str] = Counter()
    signed = 0
    with store.reading() as session:
        models = [model or ""]
        if model is None:
            models = sorted(session.scalars(select(AuditRow.model).distinct()))
        for name in models:
            for checked in check_chain(session, name, keys):
                signers[checked.row.signed_by] += 1
                signed += checked.is_signed
                for line in filter(None, (*checked.faults, checked.signature_fault)):
                    faults.append(Fault(name, checked.row.id, line))
        heads = store.trail_record.heads() if store.trail_record else []
        if checkpoint is not None:
            heads += checkpoint.heads_of(models)
        faults += _lost_ends(session, heads, model)
    state: Literal["intact", "changed", "unsigned"] = "intact" if signed else "unsigned"
    if faults:
        state = "changed"
    unused = () if model else tuple(sorted(keys.public.keys() - signers.keys()))
    return TrailState(state, signers.total(), tuple(faults), signed, tuple(keys.public), unused)
