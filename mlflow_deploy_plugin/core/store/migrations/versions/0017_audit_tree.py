"""The Merkle tree over the audit events. A server reads the hash chains of before once,
at its next start (`core/store/audit_chains.py`).

A revision that changes one of the new tables must first write its form of 0017 here.
"""

import sqlalchemy as sa
from alembic import op

from mlflow_deploy_plugin.core.store.tables import Base

revision = "0017"
down_revision = "0016"

_EVENTS = "onnxserve_audit_events"


def upgrade() -> None:
    for name in ("onnxserve_audit_leaves", "onnxserve_audit_tree", "onnxserve_audit_chains"):
        Base.metadata.tables[name].create(op.get_bind())
    op.execute(
        "INSERT INTO onnxserve_audit_chains "
        f"SELECT id, previous, digest, signature FROM {_EVENTS} WHERE digest <> ''"
    )
    op.drop_index("ix_onnxserve_audit_events_chain", _EVENTS)
    op.create_index("ix_onnxserve_audit_events_model", _EVENTS, ["model", "id"])
    for name in ("previous", "digest", "signature"):
        op.drop_column(_EVENTS, name)
    op.add_column(_EVENTS, sa.Column("place", sa.BigInteger()))
    op.create_index("ix_onnxserve_audit_events_place", _EVENTS, ["place"])
