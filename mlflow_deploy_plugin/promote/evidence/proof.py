"""The proof of a dossier: its audit events with their hashes and signatures, and the
digest of its statements, signed by MLflow's server. Only public keys are needed to
check it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from itertools import chain
from pathlib import Path

from pydantic import BaseModel, TypeAdapter
from sqlalchemy import and_, or_, select

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.audit_trail import AUDIT_TRAIL
from mlflow_deploy_plugin.core.registry.connection import app_document
from mlflow_deploy_plugin.core.settings import read_text
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.audit_chain import (
    canonical_json,
    event_digest,
    is_signed_row,
)
from mlflow_deploy_plugin.core.store.audit_keys import Keys, parse_keys
from mlflow_deploy_plugin.core.store.audit_record import chain_id
from mlflow_deploy_plugin.core.store.checkpoints import Checkpoint, load_checkpoint, make_checkpoint
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import AuditRow, Json, from_row
from mlflow_deploy_plugin.promote.evidence.dossier import Dossier, read_trail
from mlflow_deploy_plugin.promote.evidence.statements import (
    Statement,
    document_content,
    event_statement,
)
from mlflow_deploy_plugin.serve.inference_log.windows import Window

_SECONDS = 60
_PURPOSE = "audit dossier"
_FACTS = ("versions", "requests", "signatures", "verdicts", "alarms", "trail_state")
"""The sections with statements that are not about single audit events."""
_STATEMENTS = TypeAdapter(dict[str, list[Statement]])


class ProvenEvent(BaseModel):
    """The columns of an audit event (`AuditRow`), and its statement. An event that is
    not counted decides nothing, because no server has signed it.
    """

    id: int
    at: datetime
    actor: str
    action: str
    endpoint: str
    model: str
    version: str
    before: str
    after: str
    why: str
    detail: Json
    previous: str
    digest: str
    signed_by: str
    signature: str
    statement: str
    is_counted: bool


class Proof(BaseModel):
    """The signed facts.

    Attributes:
        document: the SHA-256 of the statements, which `made_by` has sent.
        events: all events of the endpoint and its models until `end`, oldest first.
        keys: the public keys of the server in PEM.
        checkpoint: the ends of all chains at the time of the signature.
        signed_by: the id of the key; empty if there is no server that signs.
    """

    endpoint: str
    start: datetime
    end: datetime
    document: str
    made_by: str
    events: tuple[ProvenEvent, ...]
    keys: str
    checkpoint: Checkpoint
    signed_by: str
    signature: str = ""

    @property
    def subject(self) -> Json:
        """The fields that the dossier also has."""
        return {
            "endpoint": self.endpoint,
            "start": self.start.isoformat(),
            "end": self.end.isoformat(),
        }

    @property
    def summary(self) -> str:
        signed = sum(event.signature != "" for event in self.events)
        return f"{len(self.events)} events, {signed} of them signed; statements by {self.made_by}"


def make_proof(store: Store, endpoint: str, period: Window, document: str, actor: str) -> Json:
    """Return the proof, which is signed if this process has the key of the server.
    Raises StoreUnavailable, and the errors of `read_trail`.
    """
    trail = read_trail(store, endpoint, period)
    of_models = and_(AuditRow.endpoint == "", AuditRow.model.in_(trail.names))
    query = select(*AuditRow.__table__.columns).order_by(AuditRow.id)
    query = query.where(or_(AuditRow.endpoint == endpoint, of_models))
    with store.transaction(is_read_only=True) as session:
        rows = [*session.execute(query).mappings()]
    known = {*trail.earlier, *trail.events}
    proven = []
    for row in rows:
        event = from_row(AuditRow(**row), AuditEvent)
        is_counted = event not in trail.unsigned
        text = event_statement(event, "", is_counted).text
        if event in known:
            proven.append(ProvenEvent(**row, statement=text, is_counted=is_counted))
    keys = store.keys or Keys({})
    proof = Proof(
        endpoint=endpoint,
        start=period.start,
        end=period.end,
        document=document,
        made_by=actor,
        events=tuple(proven),
        keys=keys.public_pem() if store.keys else "",
        checkpoint=make_checkpoint(store, keys),
        signed_by=keys.key_id,
    )
    # The JSON is signed, so that later fields of these classes change no signature.
    content = proof.model_dump(mode="json", exclude={"signature"})
    return {**content, "signature": keys.sign(_PURPOSE, canonical_json(content))}


def obtain_proof(store: Store, dossier: Dossier) -> Json:
    """Return the proof from MLflow's server or, if it does not sign, an unsigned proof.
    Raises the errors of `app_document` and `make_proof`.
    """
    period = Window(dossier.start, dossier.end)
    document = _digest(document_content(dossier))
    span = f"{period.start.isoformat()}/{period.end.isoformat()}"
    query = {"endpoint": dossier.endpoint, "period": span, "document": document}
    answer = app_document("the proof", AUDIT_TRAIL, "GET", query, _SECONDS, is_optional=True)
    signed = answer and answer.get("proof")
    return signed or make_proof(store, dossier.endpoint, period, document, store.user)


def _digest(document: Json) -> str:
    return sha256(canonical_json(document).encode()).hexdigest()


def check_dossier(
    file: Path,
    keys_file: Path | None = None,
    checkpoint_file: Path | None = None,
) -> tuple[list[str], str]:
    """Return a line per fault of a dossier.json, and a summary.

    Args:
        keys_file: the public keys of the servers; None for the keys in the dossier.
        checkpoint_file: another checkpoint, of before or after the dossier.

    Raises InvalidConfig if a file is something else, and NotInstalled.
    """
    sections: dict[str, list[Statement]] = {}
    try:
        document = json.loads(read_text(file, "the dossier"))
        content = document.pop("proof")
        proof = Proof.model_validate(content)
        del content["signature"]
        for group in document.values():
            if isinstance(group, dict):
                sections |= _STATEMENTS.validate_python(group)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InvalidConfig(f"{file} is not the dossier.json of a dossier") from None
    pem = read_text(keys_file, "the file of --keys") if keys_file else proof.keys
    keys = parse_keys(pem, str(keys_file or file)) if pem else Keys({})
    faults = []
    if not proof.signed_by:
        faults.append("MLflow's server has not signed this dossier")
    elif not keys.is_signed(_PURPOSE, canonical_json(content), proof.signed_by, proof.signature):
        faults.append(f"the dossier has no valid signature of the key {proof.signed_by}")
    if _digest(document) != proof.document or not proof.subject.items() <= document.items():
        faults.append("the statements are not those that were signed")
    faults += _event_faults(proof, sections, keys)
    compared = "none"
    if checkpoint_file:
        text = read_text(checkpoint_file, "the file of --checkpoint")
        checkpoint = load_checkpoint(text, keys, str(checkpoint_file))
        compared = f"of {checkpoint.at:%Y-%m-%d %H:%M}Z"
        faults += _checkpoint_faults(proof, checkpoint)
    origin = keys_file or "in the dossier, whose maker can exchange them (--keys FILE)"
    return faults, f"{proof.summary}; keys: {origin}; checkpoint: {compared}"


def _event_faults(
    proof: Proof,
    sections: Mapping[str, Sequence[Statement]],
    keys: Keys,
) -> Iterator[str]:
    """Yield the faults of the events and of the statements about events."""
    stated = {entry.text for entry in chain.from_iterable(sections.values())}
    for event in proof.events:
        name = f"event {event.id} ({event.action} by {event.actor})"
        if event.digest and event.digest != event_digest(event, event.previous):
            yield f"{name} was changed"
        elif event.signed_by and not is_signed_row(event, event.digest, keys):
            yield f"{name} has no valid signature of the key {event.signed_by}"
        if proof.start <= event.at < proof.end and event.statement not in stated:
            yield f"{name} has no statement"
    proven = {event.statement for event in proof.events}
    for name in sections.keys() - _FACTS:
        for entry in sections[name]:
            if entry.text not in proven:
                yield f"no event has this statement: {entry.text}"


def _checkpoint_faults(proof: Proof, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield the ends of chains in the checkpoint that the dossier contradicts."""
    digests = {(chain_id(event.model), event.id): event.digest for event in proof.events}
    ends = proof.checkpoint.heads
    digests |= {(name, event): digest for name, (event, digest) in ends.items()}
    is_older = checkpoint.at <= proof.checkpoint.at
    for name, (event, digest) in checkpoint.heads.items():
        is_lost = is_older and (name not in ends or ends[name][0] < event)
        if is_lost or digests.get((name, event), digest) != digest:
            yield f"event {event} was removed or changed after {checkpoint.at:%Y-%m-%d %H:%M} UTC"
