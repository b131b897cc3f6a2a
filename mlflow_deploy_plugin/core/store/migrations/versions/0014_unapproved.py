"""The versions without approvals that answer requests of an endpoint."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.add_column(
        "onnxserve_endpoints",
        sa.Column("unapproved", sa.JSON(), nullable=False, server_default="[]"),
    )
