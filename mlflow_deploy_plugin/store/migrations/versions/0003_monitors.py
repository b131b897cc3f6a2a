"""Monitors and their windows, alerts and silences, retrainings."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "onnxserve_monitor_windows",
        _number(),
        _text("endpoint", 63),
        _text("monitor", 255),
        _moment("window_start"),
        _moment("window_end"),
        sa.Column("revision", sa.Integer, nullable=False),
        _text("state", 31),
        _text("verdict", 31),
        _text("reason"),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("log_rows", sa.BigInteger, nullable=False),
        _text("log_digest", 64),
        sa.Column("attempts", sa.Integer, nullable=False),
        _moment("not_before", nullable=True),
        _text("run_id", 63),
        _text("run_url"),
        _document("figures"),
        _moment("created_at"),
        _moment("updated_at"),
        sa.UniqueConstraint("endpoint", "monitor", "window_start", "revision", name="ux_onnxserve_monitor_windows"),
    )
    op.create_table(
        "onnxserve_monitors",
        sa.Column("endpoint", sa.String(63), primary_key=True),
        sa.Column("monitor", sa.String(255), primary_key=True),
        sa.Column("paused", sa.Boolean, nullable=False),
        _text("paused_by", 255),
        _moment("made_up_to", nullable=True),
        sa.Column("consecutive", sa.Integer, nullable=False),
        _text("note"),
    )
    op.create_table(
        "onnxserve_alerts",
        _number(),
        _text("fingerprint", 255),
        _text("endpoint", 63),
        _text("monitor", 255),
        _text("state", 31),
        _moment("first_at"),
        _moment("last_at"),
        _moment("told_at", nullable=True),
        sa.Column("count", sa.Integer, nullable=False),
        _document("detail"),
    )
    op.create_table(
        "onnxserve_silences",
        _number(),
        _text("endpoint", 63),
        _text("monitor", 255),
        _moment("until"),
        _text("why"),
        _text("actor", 255),
        _moment("created_at"),
    )
    op.create_table(
        "onnxserve_retrainings",
        _number(),
        _text("endpoint", 63),
        _text("monitor", 255),
        _text("model", 512),
        _document("cause"),
        _document("spec"),
        _text("state", 31),
        _text("run_id", 63),
        _text("version", 255),
        sa.Column("rollout_id", sa.BigInteger, nullable=True),
        _text("reason"),
        _document("figures"),
        _moment("created_at"),
        _moment("updated_at"),
        _moment("ended_at", nullable=True),
    )
    for table, column in _INDEXED:
        op.create_index(f"ix_{table}_{column}", table, [column])


_INDEXED = (
    ("onnxserve_monitor_windows", "state"),
    ("onnxserve_alerts", "fingerprint"),
    ("onnxserve_alerts", "endpoint"),
    ("onnxserve_silences", "endpoint"),
    ("onnxserve_retrainings", "endpoint"),
    ("onnxserve_retrainings", "model"),
)


def _number() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True)


def _text(name: str, longest: int | None = None) -> sa.Column[str]:
    return sa.Column(name, sa.Text() if longest is None else sa.String(longest), nullable=False)


def _moment(name: str, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _document(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON, nullable=False)
