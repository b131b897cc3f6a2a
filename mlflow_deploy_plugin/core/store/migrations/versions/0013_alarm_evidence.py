"""The signed figures of each window of a monitor, and the baselines that users have
accepted.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column(
        "onnxserve_monitor_windows",
        sa.Column("evidence", sa.JSON(), nullable=False, server_default="{}"),
    )
    op.add_column(
        "onnxserve_monitors",
        sa.Column("baseline", sa.JSON(), nullable=False, server_default="{}"),
    )
