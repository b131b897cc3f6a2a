"""The hash chains of a store of before the tree, which are read once: at the first
start of a server, their events become the first leaves (`audit_tree.py`).

There was one chain per model. Each event had the hash of the event before it, and those
of the server a signature.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from datetime import UTC
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.audit_keys import Keys
from mlflow_deploy_plugin.core.store.tables import AuditChainRow, AuditRow

_PURPOSE = "audit event"
_EVENT = tuple(field.name for field in fields(AuditEvent))


def chain_signers(session: Session, keys: Keys, key_id: str) -> dict[int, str]:
    """Return the key of each event that counts, by the id of the event: the key that
    has signed it, or `key_id` for an unsigned event before the first signed one of its
    chain. No event before a fault of its chain counts. In a store without chains, all
    events count.
    """
    has_chains = session.scalar(select(AuditChainRow.id).limit(1)) is not None
    chained = [getattr(AuditRow, name) for name in ("id", "signed_by", *_EVENT)]
    links = [AuditChainRow.previous, AuditChainRow.digest, AuditChainRow.signature]
    query = select(*chained, *links).outerjoin(AuditChainRow, AuditChainRow.id == AuditRow.id)
    signers: dict[int, str] = {}
    chain: dict[int, str] = {}
    model, head, is_sealed = None, "", False
    for row in session.execute(query.order_by(AuditRow.model, AuditRow.id)):
        if row.model != model:
            signers |= chain
            model, head, is_sealed, chain = row.model, "", False, {}
        if row.digest is None:
            if not has_chains:
                chain[row.id] = key_id
            continue
        if row.previous != head or row.digest != _digest(row):
            chain = {}
        head = row.digest
        if keys.is_signed(_PURPOSE, _digest(row), row.signed_by, row.signature):
            is_sealed = True
            chain[row.id] = row.signed_by
        elif not is_sealed and row.digest == _digest(row):
            chain[row.id] = key_id
    return signers | chain


def _digest(row: Any) -> str:
    document = {name: getattr(row, name) for name in (*_EVENT, "id", "signed_by", "previous")}
    document["at"] = row.at.astimezone(UTC).isoformat(timespec="microseconds")
    text = json.dumps(json.loads(json.dumps(document)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def lost_chain_ends(session: Session, folder: Path) -> Iterator[int]:
    """Yield the ids of the last events of chains that the server has recorded in the
    folder beside its key, and that the store lacks.
    """
    for file in sorted(folder.glob("heads/*.json")):
        with suppress(KeyError, TypeError, ValueError):
            head = json.loads(file.read_bytes())
            stored = session.get(AuditChainRow, head["event"])
            if stored is None or stored.digest != head["digest"]:
                yield head["event"]
