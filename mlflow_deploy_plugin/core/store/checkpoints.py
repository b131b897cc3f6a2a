"""Checkpoints of the audit trail: the last event of each chain, signed by MLflow's
server and stored outside of the store. With a checkpoint, it is found that the last
events of a chain were removed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.store.audit_chain import canonical_json, chain_id
from mlflow_deploy_plugin.core.store.audit_keys import Keys
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import AuditRow

_PURPOSE = "audit checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """The state of the trail at a time.

    Attributes:
        heads: the `chain_id` of each model → the id and the hash of its last event.
    """

    at: datetime
    heads: Mapping[str, tuple[int, str]]


def make_checkpoint(store: Store) -> Checkpoint:
    last = select(func.max(AuditRow.id)).group_by(AuditRow.model)
    columns = select(AuditRow.model, AuditRow.id, AuditRow.digest)
    with store.transaction(is_read_only=True) as session:
        rows = session.execute(columns.where(AuditRow.id.in_(last))).all()
    return Checkpoint(store.now(), {chain_id(row.model): (row.id, row.digest) for row in rows})


def dump_checkpoint(checkpoint: Checkpoint, keys: Keys) -> str:
    """Return the signed checkpoint as JSON."""
    content = {"at": checkpoint.at.isoformat(), "heads": checkpoint.heads}
    signature = keys.sign(_PURPOSE, canonical_json(content))
    return json.dumps({**content, "key": keys.key_id, "signature": signature}, indent=1)


def load_checkpoint(text: str, keys: Keys, origin: str) -> Checkpoint:
    """Return the checkpoint of a JSON text. `origin` names it in messages.

    Raises InvalidConfig if it is not a checkpoint that is signed by one of the keys.
    """
    try:
        document = json.loads(text)
        signature = str(document.pop("signature"))
        key_id = str(document.pop("key"))
        heads = {model: (int(head[0]), str(head[1])) for model, head in document["heads"].items()}
        checkpoint = Checkpoint(datetime.fromisoformat(document["at"]), heads)
    except (AttributeError, LookupError, TypeError, ValueError):
        raise InvalidConfig(f"{origin} is not a checkpoint of the audit trail") from None
    if not keys.is_signed(_PURPOSE, canonical_json(document), key_id, signature):
        raise InvalidConfig(
            f"the checkpoint {origin} has no valid signature of a key that is trusted here: it "
            "was changed, or its key is missing"
        )
    return checkpoint
