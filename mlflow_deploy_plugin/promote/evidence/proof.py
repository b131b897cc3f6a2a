"""The proof of a dossier: its audit events with their hashes and signatures, and the
digest of its statements, signed by MLflow's server. Only public keys are needed to
check it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import chain
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.registry.audit_trail import AUDIT_TRAIL, StoredEvent
from mlflow_deploy_plugin.core.registry.connection import app_document
from mlflow_deploy_plugin.core.store.audit_chain import canonical_json
from mlflow_deploy_plugin.core.store.audit_keys import Keys, parse_keys
from mlflow_deploy_plugin.core.store.audit_record import chain_id
from mlflow_deploy_plugin.core.store.checkpoints import (
    Checkpoint,
    changed_ends,
    load_checkpoint,
    make_checkpoint,
)
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.core.text_files import read_text
from mlflow_deploy_plugin.promote.evidence.dossier import (
    Dossier,
    computed_statements,
    read_trail,
)
from mlflow_deploy_plugin.promote.evidence.statements import (
    Statement,
    document_content,
    event_statement,
)
from mlflow_deploy_plugin.serve.inference_log.windows import Window

_SECONDS = 60
_PURPOSE = "audit dossier"
_SENT = ("versions", "requests", "signatures", "trail_state")
"""The sections with statements that only the caller knows."""
_STATEMENTS = TypeAdapter(dict[str, list[Statement]])


class ProvenEvent(BaseModel):
    """An event and its statement.

    Attributes:
        is_in_period: True if the event must have a statement in the dossier.
    """

    event: StoredEvent
    statement: str
    is_in_period: bool


class Proof(BaseModel):
    """The signed facts.

    Attributes:
        subject: the endpoint and the period.
        document: the SHA-256 of the statements, which `made_by` has sent.
        computed: the texts of the sections that the server has computed itself.
        events: all events of the endpoint and its models until the end of the period,
            oldest first.
        keys: the public keys of the server in PEM.
        checkpoint: the ends of all chains at the time of the signature.
        signed_by: the id of the key; empty if there is no server that signs.
    """

    subject: str
    document: str
    made_by: str
    computed: list[str]
    events: tuple[ProvenEvent, ...]
    keys: str
    checkpoint: Checkpoint
    signed_by: str
    signature: str = ""

    @property
    def counted(self) -> str:
        signed = [entry for entry in self.events if entry.event.signature]
        return f"{len(self.events)} events, {len(signed)} of them signed"

    def event_faults(
        self, keys: Keys, sections: Mapping[str, Sequence[Statement]]
    ) -> Iterator[str]:
        """Yield the faults of the events and of the statements that can be compared."""
        stated = {entry.text for entry in chain.from_iterable(sections.values())}
        for entry in self.events:
            yield from entry.event.faults(keys)
            if entry.is_in_period and entry.statement not in stated:
                yield f"{entry.event.name} has no statement"
        yield from (f"the server states: {text}" for text in self.computed if text not in stated)
        proven = {*self.computed, *(entry.statement for entry in self.events)}
        for name in sections.keys() - _SENT:
            for made in sections[name]:
                if made.text not in proven:
                    yield f"the server has not stated: {made.text}"

    def changes_since(self, checkpoint: Checkpoint) -> Iterator[str]:
        """Yield the faults after a checkpoint, which may be newer than the dossier."""
        events = [entry.event for entry in self.events]
        digests = {(chain_id(event.model), event.id): event.digest for event in events}
        for number in changed_ends(checkpoint, self.checkpoint, digests):
            yield f"event {number} was removed or changed after the checkpoint"


def make_proof(store: Store, endpoint: str, period: Window, document: str, actor: str) -> Json:
    """Return the proof, which is signed if this process has the key of the server.
    Raises StoreUnavailable, and the errors of `read_trail`.
    """
    trail = read_trail(store, endpoint, period)
    proven = []
    for stored in trail.stored:
        event = stored.without_place()
        text = event_statement(event, "", event not in trail.unsigned).text
        is_in_period = event.at >= period.start
        proven.append(ProvenEvent(event=stored, statement=text, is_in_period=is_in_period))
    keys = store.keys or Keys({})
    proof = Proof(
        subject=f"{endpoint} {_span(period)}",
        document=document,
        made_by=actor,
        computed=computed_statements(store, endpoint, period),
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
    query = {"endpoint": dossier.endpoint, "period": _span(period), "document": document}
    answer = app_document("the proof", AUDIT_TRAIL, "GET", query, _SECONDS, is_optional=True)
    signed = answer and answer.get("proof")
    return signed or make_proof(store, dossier.endpoint, period, document, store.user)


def _span(period: Window) -> str:
    return f"{period.start.isoformat()}/{period.end.isoformat()}"


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
        written = f"{document['endpoint']} {document['start']}/{document['end']}", _digest(document)
        for group in document.values():
            if isinstance(group, dict):
                if sections.keys() & group.keys():  # A section of this name would be left out.
                    raise ValueError(group)
                sections |= _STATEMENTS.validate_python(group)
        Dossier(**document)  # It has no other entries.
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InvalidConfig(f"{file} is not the dossier.json of a dossier") from None
    text = read_text(keys_file, "the file of --keys") if keys_file else proof.keys
    keys = parse_keys(text, str(keys_file or file)) if text else Keys({})
    faults = []
    if not proof.signed_by:
        faults.append("MLflow's server has not signed this dossier")
    elif not keys.is_signed(_PURPOSE, canonical_json(content), proof.signed_by, proof.signature):
        faults.append(f"the dossier has no valid signature of the key {proof.signed_by}")
    if written != (proof.subject, proof.document):
        faults.append("the statements are not those that were signed")
    faults += proof.event_faults(keys, sections)
    compared = "none"
    if checkpoint_file:
        text = read_text(checkpoint_file, "the file of --checkpoint")
        checkpoint = load_checkpoint(text, keys, str(checkpoint_file))
        compared = f"of {checkpoint.at:%Y-%m-%d %H:%M}Z"
        faults += proof.changes_since(checkpoint)
    origin = keys_file or "in the dossier, whose maker can exchange them (--keys FILE)"
    return faults, (
        f"{proof.counted}; keys: {origin}; checkpoint: {compared}; statements by {proof.made_by}, "
        f"not compared: {join_names([*_SENT, 'links'])}"
    )
