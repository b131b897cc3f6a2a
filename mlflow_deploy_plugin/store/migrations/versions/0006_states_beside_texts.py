"""States that were read from texts for people so far, in columns of their own; the texts stay as they are.

A monitor's note gets its kind, a retraining what it waits for, and the event of a change that was undone says so.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_NOTES = {"cannot be run%": "cannot_run", "cannot look for what came late%": "late_data_failed"}
_ELSEWHERE = (
    "waits for the endpoint: its server stands on another machine, and no controller there has begun the rollout"
)

_monitors = sa.table("onnxserve_monitors", sa.column("note", sa.Text), sa.column("note_kind", sa.String))
_retrainings = sa.table(
    "onnxserve_retrainings",
    sa.column("state", sa.String),
    sa.column("reason", sa.Text),
    sa.column("waits_for", sa.String),
    sa.column("ended_at", sa.DateTime),
)
_events = sa.table(
    "onnxserve_audit_events", sa.column("id", sa.BigInteger), sa.column("why", sa.Text), sa.column("detail", sa.JSON)
)


def upgrade() -> None:
    op.add_column("onnxserve_monitors", sa.Column("note_kind", sa.String(31), nullable=False, server_default=""))
    op.execute(sa.update(_monitors).where(_monitors.c.note != "").values(note_kind="left_out"))
    for text, kind in _NOTES.items():
        op.execute(sa.update(_monitors).where(_monitors.c.note.like(text)).values(note_kind=kind))
    op.add_column("onnxserve_retrainings", sa.Column("waits_for", sa.String(31), nullable=False, server_default=""))
    is_elsewhere = (
        _retrainings.c.state == "gated",
        _retrainings.c.reason == _ELSEWHERE,
        _retrainings.c.ended_at.is_(None),
    )
    op.execute(sa.update(_retrainings).where(*is_elsewhere).values(waits_for="local_controller"))
    connection = op.get_bind()
    undone = sa.select(_events.c.id, _events.c.detail).where(_events.c.why.like("undone: %"))
    for number, detail in connection.execute(undone).all():
        changed = sa.update(_events).where(_events.c.id == number).values(detail={**detail, "undone": True})
        connection.execute(changed)
