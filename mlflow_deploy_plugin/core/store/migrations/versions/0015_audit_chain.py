"""The hash chains of the audit trail. The first new event covers the existing events,
which get no hash.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
_TABLE = "onnxserve_audit_events"
_ADDED = {"previous": 64, "digest": 64, "signed_by": 63, "signature": 255}


def upgrade() -> None:
    for name, length in _ADDED.items():
        column = sa.Column(name, sa.String(length), nullable=False, server_default="")
        op.add_column(_TABLE, column)
    op.create_index("ix_onnxserve_audit_events_chain", _TABLE, ["model", "id"])
    op.drop_index("ix_onnxserve_audit_events_model", _TABLE)
