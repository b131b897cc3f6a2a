"""Sends the newest checkpoint of the audit trail to the witnesses, which cosign it
(https://c2sp.org/tlog-witness), and once per hour to ONNXSERVE_AUDIT_CHECKPOINTS.

A witness refuses a tree that does not contain the tree that it has cosigned, also from
somebody with the store and the key. A file per receiver next to the key, which the
workers of this machine share, has what the receiver got last.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

import requests

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError, StoreUnavailable
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.registry.answers import bounded_answers
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.core.statedir.files import locked, read_state, write_state
from mlflow_deploy_plugin.core.statedir.models import State
from mlflow_deploy_plugin.core.store.audit_record import TrailRecord
from mlflow_deploy_plugin.core.store.audit_tree import newest_head
from mlflow_deploy_plugin.core.store.checkpoints import (
    Checkpoint,
    Signer,
    encoded,
    parse_checkpoint,
    parse_signature,
    parse_signer,
    parse_size,
)
from mlflow_deploy_plugin.core.store.merkle import Tree
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log, write_file
from mlflow_deploy_plugin.ui.audit_trail import NO_KEY

_log = logging.getLogger(__name__)

_WITNESSES = "ONNXSERVE_AUDIT_WITNESSES"
_CHECKPOINTS = "ONNXSERVE_AUDIT_CHECKPOINTS"
_LOOK_SECONDS = 0.1
_WAIT_SECONDS = 5.0
"""The maximum time that a request waits for cosignatures."""
_ANSWER_SECONDS = 5.0
_ANSWER_BYTES = 65_536
_SECOND = timedelta(seconds=1)
_HOUR = timedelta(hours=1)
_LONGEST_PAUSE = timedelta(minutes=1)
"""The longest pause after an attempt that has failed."""
_CONFIGURE = "does not know this log: its owner configures `log` of GET /onnxserve/audit-trail"
_REFUSALS = {
    403: _CONFIGURE,
    404: _CONFIGURE,
    409: "has cosigned another tree of this log: events were removed or changed",
    422: "has cosigned other events of this log: events were removed or changed",
}
"""The meanings of the statuses with which a witness does not cosign."""


class _NotDelivered(Exception):
    """A receiver does not have the checkpoint. The text follows the receiver's name.

    Attributes:
        is_refusal: True if the receiver has answered that it does not accept it.
    """

    def __init__(self, fault: str, is_refusal: bool = False) -> None:
        super().__init__(fault)
        self.is_refusal = is_refusal


class _Delivery(State):
    """What a receiver has, and the last attempt.

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
        checkpoint = parse_checkpoint(self.note) if self.note else None
        return checkpoint if checkpoint and checkpoint.origin == origin else None


def _contains(store: Store, known: Checkpoint | None, newest: Checkpoint) -> bool:
    """Return True if a known checkpoint is the newest one, or a later one of this tree.
    A larger tree is another one if somebody has written the trail again.
    """
    if known is None or known.size < newest.size:
        return False
    view = store.trail_view
    if known.body != newest.body and not view.begins_with(known):
        assert store.keys is not None
        with store.reading() as session:
            view.read(session, store.keys)
    return known.body == newest.body or view.begins_with(known)


@dataclass(frozen=True)
class _Receiver:
    """A witness or a folder that receives checkpoints.

    Attributes:
        name: the name in messages.
        file: the name of its `_Delivery`.
        pause: the pause between two checkpoints.
        deliver: sends the newest checkpoint of a store, given the checkpoint that the
            receiver has, and returns what it then has.
    """

    name: str
    file: str
    pause: timedelta
    deliver: Callable[[Store, Checkpoint, Checkpoint | None], Checkpoint]

    def path(self, record: TrailRecord) -> Path:
        return record.folder / "witnesses" / f"{self.file}.json"

    def delivery(self, record: TrailRecord) -> _Delivery:
        return read_state(self.path(record), _Delivery) or _Delivery()

    def serve(self, store: Store, record: TrailRecord, ended: threading.Event) -> None:
        """Deliver each newer checkpoint until `ended` is set. The workers take turns,
        and a worker that waits for an answer stops the others.
        """
        while not ended.wait(_LOOK_SECONDS):
            try:
                if self._is_due(store, record):
                    path = self.path(record)
                    with locked(path.with_suffix(".lock"), 0):
                        if self._is_due(store, record):
                            write_state(path, self._attempt(store, record))
            except BlockingIOError:  # Another worker delivers.
                pass
            except Exception:  # noqa: BLE001 - The next attempt may succeed.
                _log.exception("the audit trail is not sent to %s", self.name)
                ended.wait(_LONGEST_PAUSE.total_seconds())

    def _is_due(self, store: Store, record: TrailRecord) -> bool:
        head = record.newest()
        delivery = self.delivery(record)
        if head is None:
            return False
        pause = self.pause
        if delivery.fault:
            pause = min(delivery.tried_at - delivery.failing_since, _LONGEST_PAUSE)
            pause = max(pause, _SECOND)
        elif _contains(store, delivery.checkpoint(head.checkpoint.origin), head.checkpoint):
            return False
        # The clock of the machine may have been set back.
        return not timedelta() <= store.now() - delivery.tried_at < pause

    def _attempt(self, store: Store, record: TrailRecord) -> _Delivery:
        """Return the delivery after an attempt."""
        before = self.delivery(record)
        now = store.now()
        head = record.newest()
        assert head is not None
        is_refusal = False
        try:
            known = before.checkpoint(head.checkpoint.origin)
            delivered = self.deliver(store, head.checkpoint, known)
            return _Delivery(note=delivered.text, tried_at=now)
        except _NotDelivered as error:
            fault = str(error)
            is_refusal = error.is_refusal
        except OnnxserveError as error:
            fault = "gets no checkpoint (see the log of MLflow's server)"
            _log.warning("%s gets no checkpoint: %s", self.name, error.message)
        except OSError as error:  # This includes the errors of requests.
            fault = f"cannot be reached ({type(error).__name__})"
        if fault != before.fault:
            _log.warning("%s %s", self.name, fault)
        return before.model_copy(
            update={
                "tried_at": now,
                "fault": fault,
                "is_refusal": is_refusal,
                "failing_since": before.failing_since if before.fault else now,
            }
        )

    def reported_fault(self, store: Store, record: TrailRecord) -> str:
        """Return the fault of a receiver that refuses, or is missing for an hour."""
        delivery = self.delivery(record)
        since = delivery.failing_since
        if not delivery.fault or delivery.is_refusal:
            return delivery.fault and f"{self.name} {delivery.fault}"
        if store.now() - since < _HOUR:
            return ""
        return f"{self.name} {delivery.fault}, since {since:%Y-%m-%d %H:%M}Z"


@dataclass(frozen=True)
class Witness:
    """A witness: the URL before `/add-checkpoint`, and its public key."""

    url: str
    signer: Signer

    @property
    def receiver(self) -> _Receiver:
        file = sha256(self.signer.text.encode()).hexdigest()[:16]
        return _Receiver(f"the witness {self.signer.name}", file, _SECOND, self._cosign)

    def cosigned(self, record: TrailRecord, origin: str) -> Checkpoint | None:
        """Return the newest checkpoint of a log that this witness has cosigned."""
        checkpoint = self.receiver.delivery(record).checkpoint(origin)
        return checkpoint if checkpoint and self.signer.signed_at(checkpoint) else None

    def _cosign(self, store: Store, recorded: Checkpoint, known: Checkpoint | None) -> Checkpoint:
        """Let the witness cosign the newest checkpoint, and return it. If the witness
        has cosigned another one than is known here, it is asked once more.
        """
        old = known.size if known else 0
        for _ in range(2):
            checkpoint, tree = _newest(store, recorded)
            if old > checkpoint.size:
                raise _NotDelivered(
                    "has cosigned more events of this log than the store has: events were removed",
                    is_refusal=True,
                )
            answer = self._post(old, checkpoint, tree)
            if answer.status_code != 409:
                break
            try:
                old = parse_size(answer.content.decode().removesuffix("\n"))
            except ValueError:
                break
        status = answer.status_code
        if status in _REFUSALS:
            raise _NotDelivered(f"{_REFUSALS[status]} ({status})", is_refusal=True)
        if status != 200:
            raise _NotDelivered(f"answers {status}")
        for line in answer.content.decode(errors="replace").split("\n"):
            with suppress(ValueError):
                cosigned = checkpoint.with_signatures(parse_signature(line))
                if self.signer.signed_at(cosigned):
                    return cosigned
        raise _NotDelivered(
            f"answers without a cosignature of the key in {_WITNESSES}", is_refusal=True
        )

    def _post(self, old: int, checkpoint: Checkpoint, tree: Tree) -> requests.Response:
        proof = tree.consistency_proof(old, checkpoint.size)
        lines = [f"old {old}", *map(encoded, proof), "", checkpoint.text]
        with bounded_answers(_ANSWER_BYTES, _ANSWER_SECONDS):
            return requests.post(
                f"{self.url}/add-checkpoint",
                "\n".join(lines).encode(),
                timeout=_ANSWER_SECONDS,
                allow_redirects=False,
            )


def _newest(store: Store, recorded: Checkpoint) -> tuple[Checkpoint, Tree]:
    """Return the recorded checkpoint, or a newer one of the store that this key has
    signed on another machine, and the tree.
    """
    assert store.keys is not None
    view = store.trail_view
    with store.reading() as session:
        head = newest_head(session)
        fault = view.read(session, store.keys)
    tree = view.tree
    if fault or not view.begins_with(recorded):
        fault = fault or "the store does not contain the recorded checkpoint"
        raise _NotDelivered(f"gets no checkpoint: {fault}", is_refusal=True)
    is_newer = head and head.checkpoint.origin == recorded.origin
    checkpoint = head.checkpoint if head and is_newer else recorded
    return checkpoint, tree


def _copy(place: str, store: Store, checkpoint: Checkpoint, _: Checkpoint | None) -> Checkpoint:
    name = f"{store.now():%Y-%m-%dT%H%M%S.%f}.txt"
    write_file(locate_log(place, _CHECKPOINTS), name, checkpoint.text.encode(), is_new=True)
    return checkpoint


def configured_witnesses() -> Mapping[str, Witness]:
    """Return the witnesses of the setting by their names. Raises InvalidConfig unless
    each is URL#VKEY with its own name and key.
    """
    return _parse_witnesses(load_settings().audit_witnesses)


@lru_cache(maxsize=1)
def _parse_witnesses(text: str) -> Mapping[str, Witness]:
    witnesses: dict[str, Witness] = {}
    keys = set()
    for entry in text.split():
        url, _, key = entry.partition("#")
        signer = parse_signer(key, f"{_WITNESSES}, after URL#")
        is_witness = signer.kind == Signer.WITNESS and "?" not in url
        try:
            requests.Request("POST", url).prepare()
        except requests.RequestException:
            is_witness = False
        if not is_witness or not url.startswith(("http://", "https://")):
            raise InvalidConfig(
                f"{_WITNESSES}: {signer.name} needs an http:// or https:// URL and the key of a "
                "witness, as URL#NAME+ID+KEY"
            )
        raw_key = signer.key.public_bytes_raw()
        if signer.name in witnesses or raw_key in keys:
            raise InvalidConfig(f"{_WITNESSES}: {signer.name} has the name or key of another one")
        keys.add(raw_key)
        witnesses[signer.name] = Witness(url.rstrip("/"), signer)
    return MappingProxyType(witnesses)


def _receivers() -> list[_Receiver]:
    receivers = [witness.receiver for witness in configured_witnesses().values()]
    place = load_settings().audit_checkpoints
    if place:
        receivers.append(_Receiver(_CHECKPOINTS, "copies", _HOUR, partial(_copy, place)))
    return receivers


def send_checkpoints(store: Store) -> threading.Event:
    """Send the checkpoints of a store in the background, if this server signs its
    events, until the returned event is set.
    """
    ended = threading.Event()
    record = store.trail_record
    for receiver in _receivers() if record else ():
        threading.Thread(
            target=receiver.serve,
            args=(store, record, ended),
            name="onnxserve-checkpoints",
            daemon=True,
        ).start()
    return ended


def cosigned_checkpoint(store: Store, seconds: float = 0.0) -> Checkpoint | None:
    """Return the checkpoint with the most cosignatures, and of these the newest, out of
    the newest one and those of the witnesses whose last answer was a cosignature.

    Wait at most `seconds` until these witnesses have cosigned the newest one.
    """
    record = store.trail_record
    head = record.newest() if record else None
    if record is None or head is None:
        return None
    newest = head.checkpoint
    working = {
        name: witness
        for name, witness in configured_witnesses().items()
        if not witness.receiver.delivery(record).fault
    }
    _await_cosignatures(store, newest, working, len(working), seconds)
    merged = {newest.body: newest}
    for witness in working.values():
        entry = witness.cosigned(record, newest.origin)
        if entry is not None:
            known = merged.get(entry.body, entry)
            merged[entry.body] = known.with_signatures(*entry.signatures)
    return max(merged.values(), key=lambda entry: (len(entry.signatures), entry.size))


def _await_cosignatures(
    store: Store,
    newest: Checkpoint,
    witnesses: Mapping[str, Witness],
    required: int,
    seconds: float,
) -> list[str]:
    """Wait until `required` witnesses have cosigned the newest recorded checkpoint or a
    later one, or for `seconds`. Return the names of the missing witnesses.
    """
    record = store.trail_record
    assert record is not None
    deadline = time.monotonic() + seconds
    while True:
        missing = [
            name
            for name, witness in witnesses.items()
            if not _contains(store, witness.cosigned(record, newest.origin), newest)
        ]
        if len(witnesses) - len(missing) >= required or time.monotonic() >= deadline:
            return missing
        time.sleep(_LOOK_SECONDS)


def require_cosignatures(store: Store, required: int) -> None:
    """Wait until as many witnesses have cosigned all recorded events. Raises
    StoreUnavailable after 5 s.
    """
    head = store.trail_record.newest() if store.trail_record else None
    assert head is not None
    witnesses = configured_witnesses()
    missing = _await_cosignatures(store, head.checkpoint, witnesses, required, _WAIT_SECONDS)
    if len(witnesses) - len(missing) < required:
        raise StoreUnavailable(
            f"the gate policy requires {required} witnesses, and {join_names(missing)} did not "
            f"cosign within {_WAIT_SECONDS:.0f} s; GET /onnxserve/audit-trail has the reason; an "
            "administrator can lower `witnessed` in the policy"
        )


def too_few_witnesses(store: Store, required: int) -> str:
    """Return why no event can have as many cosignatures; empty if it can."""
    configured = len(configured_witnesses())
    if required and store.keys is None:
        return f"witnesses need a signed audit trail, and {NO_KEY}"
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
    record = store.trail_record
    head = record.newest() if record else None
    states: Json = {}
    if record is None or head is None:
        return states
    for name, witness in configured_witnesses().items():
        cosigned = witness.cosigned(record, head.checkpoint.origin)
        at = witness.signer.signed_at(cosigned) if cosigned else None
        states[name] = {
            "size": cosigned.size if cosigned else 0,
            "at": at.isoformat() if at else "",
            "fault": witness.receiver.delivery(record).fault,
        }
    return states


def trail_faults(store: Store) -> list[str]:
    """Return the faults of the receivers of checkpoints and of the record."""
    record = store.trail_record
    if record is None:
        return []
    faults = [receiver.reported_fault(store, record) for receiver in _receivers()]
    return [*filter(None, [*faults, record.fault()])]
