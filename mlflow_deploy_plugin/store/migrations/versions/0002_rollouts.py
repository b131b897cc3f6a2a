"""Rollouts and leases, and audit events that say from what to what and why."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TEXTS: dict[str, sa.types.TypeEngine[str]] = {
    "model": sa.String(512),
    "version": sa.String(255),
    "before": sa.Text(),
    "after": sa.Text(),
    "why": sa.Text(),
}


def upgrade() -> None:
    for name, kind in _TEXTS.items():
        op.add_column("onnxserve_audit_events", sa.Column(name, kind, nullable=False, server_default=""))
    op.create_index("ix_onnxserve_audit_events_model", "onnxserve_audit_events", ["model"])
    op.create_table(
        "onnxserve_rollouts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("endpoint", sa.String(63), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("state", sa.String(31), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("step_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("figures", sa.JSON, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
    )
    op.create_index("ix_onnxserve_rollouts_endpoint", "onnxserve_rollouts", ["endpoint"])
    op.create_index(
        "ux_onnxserve_rollouts_live",
        "onnxserve_rollouts",
        ["endpoint"],
        unique=True,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "onnxserve_leases",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("holder", sa.String(255), nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("renewals", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    )
