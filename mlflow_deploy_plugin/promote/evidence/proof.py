"""The proof of a dossier: its audit events with the proofs that they are in the tree of
a checkpoint, and the digest of its statements, signed by MLflow's server. Only public
keys are needed to check it.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import chain
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.registry.audit_trail import AUDIT_TRAIL, StoredEvent
from mlflow_deploy_plugin.core.registry.connection import app_document
from mlflow_deploy_plugin.core.store.audit import AuditEvent, canonical_json
from mlflow_deploy_plugin.core.store.audit_keys import Keys, parse_keys
from mlflow_deploy_plugin.core.store.audit_tree import stored_leaf
from mlflow_deploy_plugin.core.store.checkpoints import (
    Checkpoint,
    NoteSigner,
    decoded,
    encoded,
    parse_checkpoint,
)
from mlflow_deploy_plugin.core.store.merkle import is_included
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.core.text_files import read_text
from mlflow_deploy_plugin.promote.evidence.dossier import (
    FORMAT,
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
_SENT = ("versions", "requests", "signatures", "trail_state")
"""The sections with statements that only the caller knows."""
_STATEMENTS = TypeAdapter(dict[str, list[Statement]])
_UNREADABLE = (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError)
"""The errors of the fields of a file that is something else."""


class ProvenEvent(BaseModel):
    """An event.

    Attributes:
        is_in_period: True if the event must have a statement in the dossier.
        inclusion: the inclusion proof for the checkpoint, as hashes in Base64.
    """

    event: StoredEvent
    is_in_period: bool
    inclusion: list[str] = []

    def statement(self, is_signed: bool) -> str:
        return event_statement(self.event.without_place(), "", is_signed).text

    def is_included(self, checkpoint: Checkpoint) -> bool:
        if self.event.place is None:
            return False
        leaf = stored_leaf(self.event)
        hashes = [*map(decoded, self.inclusion)]
        return is_included(leaf, self.event.place, checkpoint.size, hashes, checkpoint.root)


class Proof(BaseModel):
    """The signed facts.

    Attributes:
        subject: the endpoint and the period.
        document: the SHA-256 of the statements, which `made_by` has sent.
        computed: the texts of the sections that the server has computed itself.
        events: all events of the endpoint and its models until the end of the period,
            oldest first.
        keys: the public keys of the server in PEM.
        checkpoint: the checkpoint of the tree with the cosignatures of witnesses; empty
            if there is no server that signs.
        signed_by: the id of the key; empty if there is no server that signs.
    """

    subject: str
    document: str
    made_by: str
    computed: list[str]
    events: tuple[ProvenEvent, ...]
    keys: str
    checkpoint: str
    signed_by: str
    signature: str = ""

    def included(self, keys: Keys) -> list[ProvenEvent]:
        """Return the events in the tree of the checkpoint; none unless one of the keys
        has signed it.
        """
        if not self.checkpoint:
            return []
        checkpoint = parse_checkpoint(self.checkpoint)
        included = [entry for entry in self.events if entry.is_included(checkpoint)]
        return included if keys.signer_of(checkpoint) else []

    def statement_faults(
        self, signed: set[AuditEvent], sections: Mapping[str, Sequence[Statement]]
    ) -> Iterator[str]:
        """Yield the statements that are missing, and those that can be compared and
        have no event.
        """
        required = Counter(self.computed)
        proven = Counter(self.computed)
        for entry in self.events:
            text = entry.statement(entry.event.without_place() in signed)
            proven[text] += 1
            required[text] += entry.is_in_period
        stated = Counter(made.text for made in chain.from_iterable(sections.values()))
        for name in _SENT:
            proven.update(made.text for made in sections.get(name, ()))
        yield from (f"there is no statement: {text}" for text in required - stated)
        yield from (f"the server has not stated: {text}" for text in stated - proven)


def make_proof(
    store: Store,
    endpoint: str,
    period: Window,
    document: str,
    actor: str,
    checkpoint: Checkpoint | None = None,
) -> Json:
    """Return the proof, which is signed if this process has the key of the server.

    Args:
        checkpoint: a checkpoint of the tree, with its cosignatures; default: the newest
            one that this server has recorded. An event that is newer has no proof.

    Raises StoreUnavailable, and the errors of `read_trail`.
    """
    trail = read_trail(store, endpoint, period)
    keys = store.keys or Keys({})
    newest = store.trail_record.newest() if store.trail_record else None
    checkpoint = checkpoint or (newest.checkpoint if newest else None)
    size = checkpoint.size if checkpoint else 0
    with store.reading() as session:
        tree = store.trail_view.read(session, keys).tree
    proven = []
    for stored in trail.stored:
        inclusion = []
        if stored.place is not None and stored.place < size <= tree.size:
            inclusion = [*map(encoded, tree.inclusion_proof(stored.place, size))]
        proven.append(
            ProvenEvent(
                event=stored,
                is_in_period=stored.at >= period.start,
                inclusion=inclusion,
            )
        )
    proof = Proof(
        subject=f"{endpoint} {_span(period)}",
        document=document,
        made_by=actor,
        computed=computed_statements(store, endpoint, period),
        events=tuple(proven),
        keys=keys.public_pem() if store.keys else "",
        checkpoint=checkpoint.text if checkpoint else "",
        signed_by=keys.key_id,
    )
    # The JSON is signed, so that later fields of these classes change no signature.
    content = proof.model_dump(mode="json", exclude={"signature"})
    return {**content, "signature": keys.sign(canonical_json(content))}


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


def included_statements(file: Path, keys: Keys) -> dict[int | None, str]:
    """Return the statements of the events of a dossier.json that are in the tree of a
    checkpoint which one of the keys has signed, by their places. Raises InvalidConfig
    for another file.
    """
    try:
        proof = Proof.model_validate(json.loads(read_text(file, "the dossier"))["proof"])
        return {
            entry.event.place: entry.statement(entry.event.signed_by in keys.public)
            for entry in proof.included(keys)
        }
    except _UNREADABLE:
        raise _unreadable(file) from None


def _unreadable(file: Path) -> InvalidConfig:
    """Return the error about a file that this version cannot read."""
    with suppress(*_UNREADABLE):
        document = json.loads(read_text(file, "the dossier"))
        if "proof" in document and document.get("format") != FORMAT:
            return InvalidConfig(
                f"{file} was made by an earlier version of onnxserve, or a later one: read it with "
                "that version"
            )
    return InvalidConfig(f"{file} is not the dossier.json of a dossier")


def check_dossier(
    file: Path, keys_file: Path | None = None, witnesses: Sequence[NoteSigner] = ()
) -> tuple[list[str], str]:
    """Return a line per fault of a dossier.json, and a summary.

    Args:
        keys_file: the public keys of the servers; None for the keys in the dossier.
        witnesses: the keys that must have cosigned the checkpoint.

    Raises InvalidConfig if a file is something else, and NotInstalled.
    """
    sections: dict[str, list[Statement]] = {}
    try:
        document = json.loads(read_text(file, "the dossier"))
        content = document.pop("proof")
        proof = Proof.model_validate(content)
        checkpoint = parse_checkpoint(proof.checkpoint) if proof.checkpoint else None
        del content["signature"]
        written = f"{document['endpoint']} {document['start']}/{document['end']}", _digest(document)
        for group in document.values():
            if isinstance(group, dict):
                if sections.keys() & group.keys():  # A section of this name would be left out.
                    raise ValueError(group)
                sections |= _STATEMENTS.validate_python(group)
        Dossier(**document)  # It has no other entries.
        text = read_text(keys_file, "the file of --keys") if keys_file else proof.keys
        keys = parse_keys(text, str(keys_file or file)) if text else Keys({})
        included = proof.included(keys)
        counted = [entry for entry in included if entry.event.signed_by in keys.public]
        signed = {entry.event.without_place() for entry in counted}
        faults = [*proof.statement_faults(signed, sections)] if proof.signed_by else []
    except _UNREADABLE:
        raise _unreadable(file) from None
    if checkpoint and not keys.signer_of(checkpoint):
        faults.insert(0, f"the checkpoint of {checkpoint.origin} has no valid signature")
    if written != (proof.subject, proof.document):
        faults.insert(0, "the statements are not those that were signed")
    if not proof.signed_by:
        faults.insert(0, "MLflow's server has not signed this dossier")
    elif not keys.is_signed(canonical_json(content), proof.signed_by, proof.signature):
        faults.insert(0, f"the dossier has no valid signature of the key {proof.signed_by}")
    seen = []
    for witness in witnesses:
        time = checkpoint and witness.signed_at(checkpoint)
        if time and witness.kind == NoteSigner.WITNESS:
            seen.append(f"{witness.name} on {time:%Y-%m-%d %H:%M}Z")
        else:
            faults.append(f"the witness {witness.name} has not signed the checkpoint")
    origin = keys_file or "in the dossier, whose maker can exchange them (--keys FILE)"
    size = f"{checkpoint.size:,} events" if checkpoint else "none"
    return faults, (
        f"{len(proof.events)} events, {len(signed)} of them signed; keys: {origin}; checkpoint: "
        f"{size}; witnesses: {join_names(seen) or 'none (--witness KEY)'}; statements by "
        f"{proof.made_by}, not compared: {join_names([*_SENT, 'links'])}"
    )
