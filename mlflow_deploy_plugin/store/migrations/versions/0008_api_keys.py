"""API keys."""

import sqlalchemy as sa
from alembic import op

from mlflow_deploy_plugin.store.tables import UtcDateTime

revision = "0008"
down_revision = "0007"

_TABLE = "onnxserve_api_keys"


def upgrade() -> None:
    op.create_table(
        _TABLE,
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("endpoints", sa.JSON, nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("expires_at", UtcDateTime),
        sa.Column("revoked_at", UtcDateTime),
    )
