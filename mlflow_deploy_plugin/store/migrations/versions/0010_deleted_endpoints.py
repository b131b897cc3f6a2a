"""An index of the deleted endpoints: without it each look at the endpoints reads the audit trail."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_TABLE, _DELETED = "onnxserve_audit_events", sa.text("action = 'delete'")
_NAME = f"ix_{_TABLE}_deleted"


def upgrade() -> None:
    op.create_index(_NAME, _TABLE, ["endpoint"], sqlite_where=_DELETED, postgresql_where=_DELETED)
