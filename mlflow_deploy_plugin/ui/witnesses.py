"""Sends the newest checkpoint of the audit trail to the witnesses, which cosign it
(https://c2sp.org/tlog-witness), and once per hour to ONNXSERVE_AUDIT_CHECKPOINTS.

A witness refuses a tree that does not contain the tree that it has cosigned, also from
somebody with the store and the key. What each receiver got last is in a file next to
the key, which the workers of this machine share.

The store of these functions is that of a server that signs its events.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path

import requests

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError, StoreUnavailable
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.registry.answers import bounded_answers
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.core.statedir.files import locked, read_state, write_state
from mlflow_deploy_plugin.core.statedir.models import State
from mlflow_deploy_plugin.core.store.audit_record import TrailRecord
from mlflow_deploy_plugin.core.store.audit_verify import CheckedTree
from mlflow_deploy_plugin.core.store.checkpoints import (
    Checkpoint,
    NoteSigner,
    encoded,
    parse_checkpoint,
    parse_signature,
    parse_signer,
    parse_size,
)
from mlflow_deploy_plugin.core.store.key_types import public_bytes
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log, write_file
from mlflow_deploy_plugin.ui.audit_trail import NO_KEY

_log = logging.getLogger(__name__)

_WITNESSES = "ONNXSERVE_AUDIT_WITNESSES"
_CHECKPOINTS = "ONNXSERVE_AUDIT_CHECKPOINTS"
_URL = re.compile(r"https?://[^/?@]+(/[^?@]*)?")
_LOOK_SECONDS = 0.2
_WAIT_SECONDS = 5.0
"""The maximum time that a change waits for cosignatures."""
_ANSWER_SECONDS = 5.0
_ANSWER_BYTES = 65_536
_SECOND = timedelta(seconds=1)
_MINUTE = timedelta(minutes=1)
_HOUR = timedelta(hours=1)
_UNKNOWN = "does not know this log: its owner configures `log` of GET /onnxserve/audit-trail"
_FORKED = "has cosigned other events of this log: events were removed or changed"
_REFUSALS = {403: _UNKNOWN, 404: _UNKNOWN, 409: _FORKED, 422: _FORKED}


class _NotDelivered(Exception):
    """A receiver does not have the checkpoint. The text follows the receiver's name.

    Attributes:
        is_refusal: True if the receiver does not accept the checkpoint, or cannot get
            it because the store is not that of the record.
    """

    def __init__(self, fault: str, is_refusal: bool = True) -> None:
        super().__init__(fault)
        self.is_refusal = is_refusal


class _Delivery(State):
    """The state of a receiver after the last attempt.

    Attributes:
        note: the newest checkpoint that the receiver has, with its cosignature.
        fault: why the last attempt has failed; empty after a success.
        is_refusal: as in `_NotDelivered`.
        failing_since: the first failure after the last success.
    """

    note: str = ""
    tried_at: datetime = EPOCH
    fault: str = ""
    is_refusal: bool = False
    failing_since: datetime = EPOCH

    def checkpoint(self, origin: str) -> Checkpoint | None:
        """Return the checkpoint of the note, if it is of this log."""
        if not self.note.startswith(f"{origin}\n"):
            return None
        return parse_checkpoint(self.note)


@dataclass(frozen=True)
class _Receiver:
    """A witness or a folder that receives checkpoints.

    Attributes:
        name: the name in messages.
        identity: the key of the witness or the folder.
        pause: the pause between two checkpoints.
        deliver: sends the newest checkpoint of a store, given the recorded one and the
            one that the receiver has, and returns what it then has.
    """

    name: str
    identity: str
    pause: timedelta
    deliver: Callable[[Store, Checkpoint, Checkpoint | None], Checkpoint]

    def _file(self, store: Store) -> Path:
        name = sha256(self.identity.encode()).hexdigest()[:16]
        return _record(store).folder / "witnesses" / f"{name}.json"

    def delivery(self, store: Store) -> _Delivery:
        return read_state(self._file(store), _Delivery) or _Delivery()

    def serve(self, store: Store, ended: threading.Event) -> None:
        """Deliver newer checkpoints until `ended` is set. One worker at a time does."""
        while not ended.wait(_LOOK_SECONDS):
            try:
                if self._is_due(store):
                    file = self._file(store)
                    with locked(file.with_suffix(".lock"), 0):
                        if self._is_due(store):
                            write_state(file, self._attempt(store))
            except BlockingIOError:  # Another worker delivers.
                pass
            except Exception:  # noqa: BLE001 - The next attempt may succeed.
                _log.exception("%s gets no checkpoint of the audit trail", self.name)
                ended.wait(_MINUTE.total_seconds())

    def _is_due(self, store: Store) -> bool:
        delivery = self.delivery(store)
        pause = self.pause
        if delivery.fault:
            pause = min(max(delivery.tried_at - delivery.failing_since, _SECOND), _MINUTE)
        else:
            newest = _newest(store)
            if _contains(store, delivery.checkpoint(newest.origin), newest):
                return False
        # The clock of the machine may have been set back.
        return not timedelta() <= store.now() - delivery.tried_at < pause

    def _attempt(self, store: Store) -> _Delivery:
        """Return the delivery after an attempt."""
        before = self.delivery(store)
        now = store.now()
        newest = _newest(store)
        try:
            delivered = self.deliver(store, newest, before.checkpoint(newest.origin))
            return _Delivery(note=delivered.text, tried_at=now)
        except _NotDelivered as error:
            failure = error
        except (OnnxserveError, OSError, ValueError) as error:  # also the errors of requests
            failure = _NotDelivered(f"cannot be reached ({type(error).__name__})", is_refusal=False)
        if str(failure) != before.fault:
            _log.warning("%s %s", self.name, failure)
        return _Delivery(
            note=before.note,
            tried_at=now,
            fault=str(failure),
            is_refusal=failure.is_refusal,
            failing_since=before.failing_since if before.fault else now,
        )

    def reported_fault(self, store: Store) -> str:
        """Return the fault of a receiver that refuses, or is missing for an hour."""
        delivery = self.delivery(store)
        since = delivery.failing_since
        is_old = store.now() - since >= _HOUR
        if not delivery.fault or not (delivery.is_refusal or is_old):
            return ""
        return f"{self.name} {delivery.fault}, since {since:%Y-%m-%d %H:%M}Z"


@dataclass(frozen=True)
class KnownWitness:
    """A witness: the URL before `/add-checkpoint`, and its public key."""

    url: str
    signer: NoteSigner

    @property
    def receiver(self) -> _Receiver:
        name = f"the witness {self.signer.name}"
        return _Receiver(name, self.signer.text, _SECOND, self._cosign)

    def cosigned(self, store: Store) -> Checkpoint | None:
        """Return the newest checkpoint of the log that this witness has cosigned."""
        checkpoint = self.receiver.delivery(store).checkpoint(_newest(store).origin)
        return checkpoint if checkpoint and self.signer.signed_at(checkpoint) else None

    def _cosign(self, store: Store, recorded: Checkpoint, known: Checkpoint | None) -> Checkpoint:
        """Let the witness cosign the recorded checkpoint, or a newer one that another
        machine has signed with the same key, and return it. If the witness has cosigned
        another one than is known here, it is asked once more.
        """
        old = known.size if known else 0
        for _ in range(2):
            trail = _checked_tree(store)
            if trail.head is None or not trail.begins_with(recorded):
                fault = trail.fault or "the store does not have the recorded events"
                raise _NotDelivered(f"gets no checkpoint: {fault}")
            checkpoint = trail.head.checkpoint
            if checkpoint.origin != recorded.origin:  # by a server with another key
                checkpoint = recorded
            if old > checkpoint.size:
                raise _NotDelivered(
                    "has cosigned more events of this log than the store has: events were removed"
                )
            proof = trail.tree.consistency_proof(old, checkpoint.size)
            lines = [f"old {old}", *map(encoded, proof), "", checkpoint.text]
            with bounded_answers(_ANSWER_BYTES, _ANSWER_SECONDS):
                answer = requests.post(
                    f"{self.url}/add-checkpoint",
                    "\n".join(lines).encode(),
                    timeout=_ANSWER_SECONDS,
                    allow_redirects=False,
                )
            status = answer.status_code
            text = answer.content.decode()
            if status != 409:
                break
            old = parse_size(text.removesuffix("\n"))
        if status in _REFUSALS:
            raise _NotDelivered(f"{_REFUSALS[status]} ({status})")
        if status != 200:
            raise _NotDelivered(f"answers {status}", is_refusal=False)
        for line in text.splitlines():
            cosigned = checkpoint.with_signatures(parse_signature(line))
            if self.signer.signed_at(cosigned):
                return cosigned
        raise _NotDelivered(f"answers without a cosignature of the key in {_WITNESSES}")


def _checked_tree(store: Store) -> CheckedTree:
    assert store.keys is not None
    with store.reading() as session:
        return store.trail_view.read(session, store.keys)


def _copy(place: str, store: Store, newest: Checkpoint, _: Checkpoint | None) -> Checkpoint:
    name = f"{store.now():%Y-%m-%dT%H%M%S.%f}.txt"
    write_file(locate_log(place, _CHECKPOINTS), name, newest.text.encode(), is_new=True)
    return newest


def _record(store: Store) -> TrailRecord:
    assert store.trail_record is not None
    return store.trail_record


def _newest(store: Store) -> Checkpoint:
    """Return the recorded checkpoint, or that of the store after the record was lost.
    Raises StoreUnavailable without one.
    """
    head = _record(store).newest() or _checked_tree(store).head
    if head is None:
        raise StoreUnavailable("the audit trail has no checkpoint")
    return head.checkpoint


def _contains(store: Store, known: Checkpoint | None, newest: Checkpoint) -> bool:
    """Return True if a known checkpoint is the newest one, or a later one of this tree.
    A larger tree is another one if somebody has written the trail again.
    """
    if known is None or known.size < newest.size:
        return False
    return known.body == newest.body or _checked_tree(store).begins_with(known)


def configured_witnesses() -> dict[str, KnownWitness]:
    """Return the witnesses of the setting by their names. Raises InvalidConfig unless
    each is URL#VKEY with its own name and key.
    """
    witnesses: dict[str, KnownWitness] = {}
    keys = set()
    for entry in load_settings().audit_witnesses.split():
        url, _, key = entry.partition("#")
        signer = parse_signer(key, f"{_WITNESSES}, after URL#")
        if not _URL.fullmatch(url) or signer.kind != NoteSigner.WITNESS:
            raise InvalidConfig(
                f"{_WITNESSES}: {signer.name} needs an http:// or https:// URL and the key of a "
                "witness, as URL#NAME+ID+KEY"
            )
        raw_key = public_bytes(signer.key)
        if signer.name in witnesses or raw_key in keys:
            raise InvalidConfig(f"{_WITNESSES}: {signer.name} has the name or key of another one")
        keys.add(raw_key)
        witnesses[signer.name] = KnownWitness(url.rstrip("/"), signer)
    return witnesses


def _receivers() -> list[_Receiver]:
    receivers = [witness.receiver for witness in configured_witnesses().values()]
    place = load_settings().audit_checkpoints
    if place:
        receivers.append(_Receiver(_CHECKPOINTS, place, _HOUR, partial(_copy, place)))
    return receivers


def send_checkpoints(store: Store) -> threading.Event:
    """Send the checkpoints of a store in the background, if this server signs its
    events, until the returned event is set.
    """
    ended = threading.Event()
    if store.trail_record is None:
        return ended
    for receiver in _receivers():
        threading.Thread(
            target=receiver.serve,
            args=(store, ended),
            name="onnxserve-checkpoints",
            daemon=True,
        ).start()
    return ended


def cosigned_checkpoint(store: Store, seconds: float = 0.0) -> Checkpoint:
    """Return the checkpoint with the most cosignatures, and of these the newest, out of
    the newest one and those of the witnesses whose last answer was a cosignature.

    Wait at most `seconds` until these witnesses have cosigned the newest one.
    """
    newest = _newest(store)
    witnesses = configured_witnesses().values()
    working = [witness for witness in witnesses if not witness.receiver.delivery(store).fault]
    _await_cosignatures(store, working, len(working), seconds)
    merged = {newest.body: newest}
    for witness in working:
        entry = witness.cosigned(store)
        if entry is not None:
            known = merged.get(entry.body, entry)
            merged[entry.body] = known.with_signatures(*entry.signatures)
    return max(merged.values(), key=lambda entry: (len(entry.signatures), entry.size))


def _await_cosignatures(
    store: Store, witnesses: Collection[KnownWitness], required: int, seconds: float
) -> list[str]:
    """Wait until `required` witnesses have cosigned all events that are recorded now,
    or for `seconds`. Return the names of the missing witnesses.
    """
    newest = _newest(store)
    deadline = time.monotonic() + seconds
    while True:
        missing = [
            witness.signer.name
            for witness in witnesses
            if not _contains(store, witness.cosigned(store), newest)
        ]
        if len(witnesses) - len(missing) >= required or time.monotonic() >= deadline:
            return missing
        time.sleep(_LOOK_SECONDS)


def require_cosignatures(store: Store, required: int) -> None:
    """Wait until as many witnesses have cosigned all recorded events. Raises
    StoreUnavailable after 5 s.
    """
    witnesses = configured_witnesses().values()
    missing = _await_cosignatures(store, witnesses, required, _WAIT_SECONDS)
    if len(witnesses) - len(missing) < required:
        raise StoreUnavailable(
            f"the gate policy requires {required} witnesses, and {join_names(missing)} did not "
            f"cosign within {_WAIT_SECONDS:.0f} s; GET /onnxserve/audit-trail has the reason; an "
            "administrator can lower `witnessed` in the policy"
        )


def too_few_witnesses(store: Store, required: int) -> str:
    """Return why no event can have as many cosignatures; empty if it can. The store may
    be that of a server without a key.
    """
    if required and store.trail_record is None:
        return f"witnesses need a signed audit trail, and {NO_KEY}"
    configured = len(configured_witnesses())
    if required <= configured:
        return ""
    return (
        f"the gate policy requires {required} witnesses, and this server has {configured}: set "
        f"{_WITNESSES}, or lower `witnessed` in the policy"
    )


def witness_states(store: Store) -> Json:
    """Return the size of the last tree that each witness has cosigned, the time, and
    the fault of the last attempt, by the names of the witnesses.
    """
    states: Json = {}
    for name, witness in configured_witnesses().items():
        states[name] = {"size": 0, "at": "", "fault": witness.receiver.delivery(store).fault}
        cosigned = witness.cosigned(store)
        if cosigned and (at := witness.signer.signed_at(cosigned)):
            states[name] |= {"size": cosigned.size, "at": at.isoformat()}
    return states


def trail_faults(store: Store) -> list[str]:
    """Return the faults of the receivers of checkpoints and of the record."""
    faults = [receiver.reported_fault(store) for receiver in _receivers()]
    return [*filter(None, [*faults, _record(store).fault()])]
