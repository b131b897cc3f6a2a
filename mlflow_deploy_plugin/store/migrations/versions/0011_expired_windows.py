"""The numbers of the windows that have expired: counters for Prometheus go on from them."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_TABLE = "onnxserve_monitors"


def upgrade() -> None:
    op.add_column(_TABLE, sa.Column("expired", sa.JSON, nullable=False, server_default="{}"))
    op.add_column(_TABLE, sa.Column("expired_failures", sa.Integer, nullable=False, server_default="0"))
