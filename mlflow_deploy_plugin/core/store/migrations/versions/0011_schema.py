"""The schema of the first release. Stores with the revisions 0001 to 0010 of earlier
builds are rejected.
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = None

_WINDOWS = "onnxserve_monitor_windows"
_IS_DELETED = sa.text("action = 'delete'")
_IS_LIVE = sa.text("ended_at IS NULL")
_INDEXED = (
    ("onnxserve_audit_events", "endpoint"),
    ("onnxserve_audit_events", "model"),
    ("onnxserve_rollouts", "endpoint"),
    (_WINDOWS, "state"),
    ("onnxserve_alerts", "fingerprint"),
    ("onnxserve_alerts", "endpoint"),
    ("onnxserve_silences", "endpoint"),
    ("onnxserve_retrainings", "endpoint"),
    ("onnxserve_retrainings", "model"),
)


def upgrade() -> None:
    op.create_table(
        "onnxserve_endpoints",
        sa.Column("name", sa.String(63), primary_key=True),
        _text("target", 255),
        _text("spec"),
        _moment("created_at"),
        _moment("updated_at"),
    )
    op.create_table(
        "onnxserve_audit_events",
        _number(),
        _moment("at"),
        _text("actor", 255),
        _text("action", 63),
        _text("endpoint", 63),
        _text("model", 512, default=""),
        _text("version", 255, default=""),
        _text("before", default=""),
        _text("after", default=""),
        _text("why", default=""),
        _document("detail"),
    )
    op.create_table(
        "onnxserve_rollouts",
        _number(),
        _text("endpoint", 63),
        _document("spec"),
        _text("state", 31),
        _integer("step"),
        _moment("step_at"),
        _document("figures"),
        _text("reason"),
        _integer("revision"),
        _moment("created_at"),
        _moment("updated_at"),
        _moment("ended_at", nullable=True),
    )
    op.create_table(
        "onnxserve_leases",
        sa.Column("name", sa.String(255), primary_key=True),
        _text("holder", 255),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("renewals", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        _moment("expires_at"),
    )
    op.create_table(
        _WINDOWS,
        _number(),
        _text("endpoint", 63),
        _text("monitor", 255),
        _moment("window_start"),
        _moment("window_end"),
        _integer("revision"),
        sa.Column(
            "by_hand",
            sa.Boolean,
            nullable=False,
            server_default=sa.false(),
        ),
        _text("state", 31),
        _text("verdict", 31),
        _text("reason"),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("log_rows", sa.BigInteger, nullable=False),
        _text("log_digest", 64),
        _integer("attempts"),
        _moment("not_before", nullable=True),
        _text("run_id", 63),
        _text("run_url"),
        _document("figures"),
        _moment("created_at"),
        _moment("updated_at"),
        sa.UniqueConstraint(
            "endpoint",
            "monitor",
            "window_start",
            "revision",
            name="ux_onnxserve_monitor_windows",
        ),
    )
    op.create_table(
        "onnxserve_monitors",
        sa.Column("endpoint", sa.String(63), primary_key=True),
        sa.Column("monitor", sa.String(255), primary_key=True),
        sa.Column("paused", sa.Boolean, nullable=False),
        _text("paused_by", 255),
        _moment("made_up_to", nullable=True),
        _integer("consecutive"),
        _text("note"),
        _text("note_kind", 31, default=""),
        _document("expired", default="{}"),
        _integer("expired_failures", default="0"),
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
        _integer("count"),
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
        "onnxserve_api_keys",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        _document("scopes"),
        _document("endpoints"),
        _text("actor", 255),
        _moment("created_at"),
        _moment("expires_at", nullable=True),
        _moment("revoked_at", nullable=True),
        _document("limits", default="[]"),
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
        _text("waits_for", 31, default=""),
        _text("reason"),
        _document("figures"),
        _moment("created_at"),
        _moment("updated_at"),
        _moment("ended_at", nullable=True),
    )
    for table, column in _INDEXED:
        op.create_index(f"ix_{table}_{column}", table, [column])
    counted = ["by_hand", "endpoint", "monitor", "state", "verdict", "attempts", "updated_at"]
    op.create_index(f"ix_{_WINDOWS}_counted", _WINDOWS, counted)
    op.create_index(
        "ix_onnxserve_audit_events_deleted",
        "onnxserve_audit_events",
        ["endpoint"],
        sqlite_where=_IS_DELETED,
        postgresql_where=_IS_DELETED,
    )
    op.create_index(
        "ux_onnxserve_rollouts_live",
        "onnxserve_rollouts",
        ["endpoint"],
        unique=True,
        sqlite_where=_IS_LIVE,
        postgresql_where=_IS_LIVE,
    )


def _number() -> sa.Column[int]:
    return sa.Column(
        "id",
        sa.BigInteger().with_variant(sa.Integer, "sqlite"),
        primary_key=True,
    )


def _text(
    name: str,
    longest: int | None = None,
    default: str | None = None,
) -> sa.Column[str]:
    kind = sa.Text() if longest is None else sa.String(longest)
    return sa.Column(name, kind, nullable=False, server_default=default)


def _integer(
    name: str,
    default: str | None = None,
) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default=default)


def _moment(name: str, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _document(
    name: str,
    default: str | None = None,
) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON, nullable=False, server_default=default)
