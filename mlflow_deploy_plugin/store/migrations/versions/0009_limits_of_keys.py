"""Rate limits and quotas of API keys."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_TABLE, _COLUMN = "onnxserve_api_keys", "limits"


def upgrade() -> None:
    op.add_column(_TABLE, sa.Column(_COLUMN, sa.JSON, nullable=False, server_default="[]"))
