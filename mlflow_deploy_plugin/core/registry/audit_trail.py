"""The public keys and the newest checkpoint of the audit trail, which MLflow's server
with onnxserve publishes, and the events that the server has not signed.

- `GET /onnxserve/audit-trail`: `keys` in PEM and the `checkpoint`, a signed note with
  the cosignatures of witnesses, or empty texts, and the `faults` of the server's record
  and of the witnesses; with the parameters `endpoint`, `period` (START/END) and
  `document` (a digest), also the `proof` of a dossier (`promote/evidence/proof.py`)
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import and_, or_, select

from mlflow_deploy_plugin.core.errors import InvalidConfig, ScopeMissing
from mlflow_deploy_plugin.core.registry.connection import CALLER, app_document
from mlflow_deploy_plugin.core.store.audit import AuditEvent, event_of
from mlflow_deploy_plugin.core.store.audit_keys import Keys, parse_keys
from mlflow_deploy_plugin.core.store.audit_seal import published_keys
from mlflow_deploy_plugin.core.store.audit_verify import BROKEN, counted_events
from mlflow_deploy_plugin.core.store.checkpoints import Checkpoint, parse_checkpoint
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import AuditRow

AUDIT_TRAIL = "/onnxserve/audit-trail"
_SECONDS = 30
_SERVER = "MLflow's server"


class TrustedKeys(NamedTuple):
    """The keys whose signatures count.

    Attributes:
        origin: where the keys come from, in words.
        checkpoint: the newest checkpoint of MLflow's server that one of them has
            signed, if it is known.
        faults: the faults that the server reports.
    """

    keys: Keys
    origin: str
    checkpoint: Checkpoint | None = None
    faults: tuple[str, ...] = ()


def published_trail() -> TrustedKeys | None:
    """Return what MLflow's server publishes; None if it does not run the app or does
    not sign events.

    Raises RegistryUnavailable, and NotInstalled without the package cryptography.
    """
    what = "the keys of the audit trail"
    document = app_document(what, AUDIT_TRAIL, "GET", {}, _SECONDS, is_optional=True)
    if not document or not document["keys"]:
        return None
    keys = parse_keys(document["keys"], f"{what} of MLflow's server")
    checkpoint = None
    with suppress(InvalidConfig):
        checkpoint = load_checkpoint(document["checkpoint"], keys, "of MLflow's server")
    return TrustedKeys(keys, _SERVER, checkpoint, tuple(document.get("faults", ())))


def load_checkpoint(text: str, keys: Keys, origin: str) -> Checkpoint:
    """Return the checkpoint in a text. `origin` names it in messages. Raises
    InvalidConfig if it is not a checkpoint that one of the keys has signed.
    """
    try:
        checkpoint = parse_checkpoint(text)
    except ValueError:
        raise InvalidConfig(f"{origin} is not a checkpoint of the audit trail") from None
    if not keys.signer_of(checkpoint):
        raise InvalidConfig(
            f"the checkpoint {origin} has no valid signature of a key that is trusted here: it "
            "was changed, or its key is missing"
        )
    return checkpoint


def require_administrator(store: Store, what: str, holder: str = "") -> None:
    """Raise ScopeMissing unless MLflow's server, whose key signs the events of this
    store, knows the caller as an administrator or as the `holder`. Without signed
    events, there is no such server. The message is `only an administrator` with `what`.

    Raises the errors of `published_trail` too.
    """
    signing = published_keys(store).public.keys()
    if not signing:
        return
    trail = published_trail()
    if trail is not None and signing & trail.keys.public.keys():
        caller = app_document("the name of the caller", CALLER, "GET", {}, _SECONDS)
        if caller["is_administrator"] or (holder and caller["user"] == holder):
            return
    raise ScopeMissing(
        f"only an administrator {what}; set MLFLOW_TRACKING_URI to MLflow's server that signs the "
        "audit trail, with such a login"
    )


def trusted_keys(store: Store) -> TrustedKeys | None:
    """Return the keys of the servers that sign the events of this store; None if no
    event is signed.

    They are the keys of this process, of MLflow's server or, if it publishes none, of
    the store itself. Raises the errors of `published_trail`, and StoreUnavailable.
    """
    if store.keys is None:
        trusted = published_trail() or stored_keys(store)
    else:
        trusted = TrustedKeys(store.keys, _SERVER)
    signed = select(AuditRow.id).where(AuditRow.signed_by.in_(trusted.keys.public)).limit(1)
    with store.reading() as session:
        return trusted if session.scalar(signed) else None


def stored_keys(store: Store) -> TrustedKeys:
    return TrustedKeys(published_keys(store), "the store itself, which its users can change")


def newest_events(store: Store, model: str) -> Iterator[AuditEvent]:
    """Yield the events of a model that count, newest first, without the marks of faults
    (`audit_verify.counted_events`); all if no event of the store is signed.

    Raises the errors of `trusted_keys`.
    """
    trusted = trusted_keys(store)
    if trusted is None:
        yield from store.events(model=model, newest_first=True)
        return
    with store.reading() as session:
        events = counted_events(store.trail_view, session, model, trusted.keys)
    yield from (event for event in reversed(events) if event.action != BROKEN)


def unsigned_events(store: Store, events: Iterable[AuditEvent]) -> frozenset[AuditEvent]:
    """Return those of the store's events that do not count, because no server has
    signed them. Raises the errors of `trusted_keys`.
    """
    unsigned = set(events)
    trusted = trusted_keys(store) if unsigned else None
    if trusted is None:
        return frozenset()
    with store.reading() as session:
        for model in {event.model for event in unsigned}:
            counted = counted_events(store.trail_view, session, model, trusted.keys)
            unsigned.difference_update(counted)
    return frozenset(unsigned)


@dataclass(frozen=True)
class StoredEvent(AuditEvent):
    """An event with its place in the tree (`AuditRow`)."""

    place: int | None = None
    signed_by: str = ""

    def without_place(self) -> AuditEvent:
        return event_of(self)


def stored_events(store: Store, endpoint: str, models: Collection[str]) -> list[StoredEvent]:
    """Return the events of the endpoint, and those of the models that are not about
    another endpoint, oldest first.
    """
    of_models = and_(AuditRow.endpoint == "", AuditRow.model.in_(models))
    query = select(AuditRow).where(or_(AuditRow.endpoint == endpoint, of_models))
    return store.read(query.order_by(AuditRow.id), StoredEvent)
