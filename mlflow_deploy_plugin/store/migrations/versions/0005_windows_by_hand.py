"""Whether a person has asked for a window, and an index that counts the schedule's apart."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_TABLE = "onnxserve_monitor_windows"
_COUNTED = f"ix_{_TABLE}_counted"
_COLUMNS = ["endpoint", "monitor", "state", "verdict", "attempts", "updated_at"]


def upgrade() -> None:
    op.add_column(_TABLE, sa.Column("by_hand", sa.Boolean, nullable=False, server_default=sa.false()))
    op.drop_index(_COUNTED, _TABLE)
    op.create_index(_COUNTED, _TABLE, ["by_hand", *_COLUMNS])
