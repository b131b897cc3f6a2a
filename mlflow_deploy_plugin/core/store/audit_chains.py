"""The hash chains of a store of before the tree, which are read once: at the first
start of a server, their events become the first leaves (`audit_tree.py`).

There was one chain per model. Each event had the hash of the event before it, and those
of the server a signature.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.store.audit import EVENT_FIELDS, event_json
from mlflow_deploy_plugin.core.store.audit_keys import Keys
from mlflow_deploy_plugin.core.store.tables import AuditChainRow, AuditRow

_PURPOSE = "audit event"
_SEAL = "seal"
_CHAINED = select(
    *(getattr(AuditRow, name) for name in ("id", "signed_by", *EVENT_FIELDS)),
    AuditChainRow.previous,
    AuditChainRow.digest,
    AuditChainRow.signature,
).join(AuditChainRow, AuditChainRow.id == AuditRow.id)


def chain_signers(session: Session, keys: Keys, key_id: str) -> dict[int, str]:
    """Return the key of each event that counts, by the id of the event: the key that
    has signed it, or `key_id` for an event before the seal of its chain, which is the
    first signed event. No event before a fault of its chain counts.

    All events count in a store without chains, and all without a fault in a store
    without a signed event.
    """
    if session.scalar(select(AuditChainRow.id).limit(1)) is None:
        return dict.fromkeys(session.scalars(select(AuditRow.id)), key_id)
    signers: dict[int, str] = {}
    unsealed: dict[int, str] = {}
    has_seals = False
    rows = session.execute(_CHAINED.order_by(AuditRow.model, AuditRow.id))
    for _, chain in groupby(rows, key=attrgetter("model")):
        signed: dict[int, str] = {}
        earlier: dict[int, str] = {}
        head = ""
        is_sealed = False
        for row in chain:
            digest = _digest(row)
            if row.previous != head or row.digest != digest:
                signed.clear()
                earlier.clear()
            head = row.digest
            if keys.is_signed(_PURPOSE, digest, row.signed_by, row.signature):
                if row.action == _SEAL and not is_sealed:
                    signed |= earlier
                is_sealed = True
                signed[row.id] = row.signed_by
            elif not is_sealed and row.digest == digest:
                earlier[row.id] = key_id
        signers |= signed
        has_seals = has_seals or is_sealed
        if not is_sealed:
            unsealed |= earlier
    return signers if has_seals else unsealed


def _digest(row: Any) -> str:
    text = event_json(row, ("id", "signed_by", "previous"))
    return hashlib.sha256(text.encode()).hexdigest()


def lost_chain_ends(session: Session, folder: Path) -> Iterator[int]:
    """Yield the ids of the last events of chains that the server has recorded in the
    folder beside its key, and that the store lacks or that were changed.
    """
    for file in sorted(folder.glob("heads/*.json")):
        with suppress(KeyError, TypeError, ValueError):
            head = json.loads(file.read_bytes())
            row = session.execute(_CHAINED.where(AuditRow.id == head["event"])).one_or_none()
            if row is None or _digest(row) != head["digest"]:
                yield head["event"]
