"""The counters of the changes in MLflow's registry."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "onnxserve_registry_changes",
        sa.Column("model", sa.String(512), primary_key=True),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column(
            "changed_at",
            sa.DateTime(timezone=True),
            nullable=False,
            index=True,
        ),
    )
