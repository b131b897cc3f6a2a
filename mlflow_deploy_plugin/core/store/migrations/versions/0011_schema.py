"""The schema of the first release. Stores with the revisions 0001 to 0010 of earlier
builds are rejected.
"""

from functools import partial

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = None

_column = partial(sa.Column, nullable=False)
_ID = partial(
    _column,
    type_=sa.BigInteger().with_variant(sa.Integer, "sqlite"),
    primary_key=True,
)
_KEY63 = partial(_column, type_=sa.String(63), primary_key=True)
_KEY255 = partial(_column, type_=sa.String(255), primary_key=True)
_TEXT31 = partial(_column, type_=sa.String(31))
_TEXT63 = partial(_column, type_=sa.String(63))
_TEXT64 = partial(_column, type_=sa.String(64))
_TEXT255 = partial(_column, type_=sa.String(255))
_TEXT512 = partial(_column, type_=sa.String(512))
_TEXT = partial(_column, type_=sa.Text)
_INTEGER = partial(_column, type_=sa.Integer)
_LONG = partial(_column, type_=sa.BigInteger)
_FLOAT = partial(_column, type_=sa.Float)
_BOOLEAN = partial(_column, type_=sa.Boolean)
_JSON = partial(_column, type_=sa.JSON)
_TIME = partial(_column, type_=sa.DateTime(timezone=True))
_OPTIONAL_TIME = partial(_TIME, nullable=True)

_AUDIT_EVENTS = "onnxserve_audit_events"
_ROLLOUTS = "onnxserve_rollouts"
_WINDOWS = "onnxserve_monitor_windows"
_TABLES = {
    "onnxserve_endpoints": {
        "name": _KEY63,
        "target": _TEXT255,
        "spec": _TEXT,
        "created_at": _TIME,
        "updated_at": _TIME,
    },
    _AUDIT_EVENTS: {
        "id": _ID,
        "at": _TIME,
        "actor": _TEXT255,
        "action": _TEXT63,
        "endpoint": _TEXT63,
        "model": partial(_TEXT512, server_default=""),
        "version": partial(_TEXT255, server_default=""),
        "before": partial(_TEXT, server_default=""),
        "after": partial(_TEXT, server_default=""),
        "why": partial(_TEXT, server_default=""),
        "detail": _JSON,
    },
    _ROLLOUTS: {
        "id": _ID,
        "endpoint": _TEXT63,
        "spec": _JSON,
        "state": _TEXT31,
        "step": _INTEGER,
        "step_at": _TIME,
        "figures": _JSON,
        "reason": _TEXT,
        "revision": _INTEGER,
        "created_at": _TIME,
        "updated_at": _TIME,
        "ended_at": _OPTIONAL_TIME,
    },
    "onnxserve_leases": {
        "name": _KEY255,
        "holder": _TEXT255,
        "token": _LONG,
        "renewals": _LONG,
        "seconds": _FLOAT,
        "expires_at": _TIME,
    },
    _WINDOWS: {
        "id": _ID,
        "endpoint": _TEXT63,
        "monitor": _TEXT255,
        "window_start": _TIME,
        "window_end": _TIME,
        "revision": _INTEGER,
        "by_hand": partial(_BOOLEAN, server_default=sa.false()),
        "state": _TEXT31,
        "verdict": _TEXT31,
        "reason": _TEXT,
        "rows": _LONG,
        "log_rows": _LONG,
        "log_digest": _TEXT64,
        "attempts": _INTEGER,
        "not_before": _OPTIONAL_TIME,
        "run_id": _TEXT63,
        "run_url": _TEXT,
        "figures": _JSON,
        "created_at": _TIME,
        "updated_at": _TIME,
    },
    "onnxserve_monitors": {
        "endpoint": _KEY63,
        "monitor": _KEY255,
        "paused": _BOOLEAN,
        "paused_by": _TEXT255,
        "made_up_to": _OPTIONAL_TIME,
        "consecutive": _INTEGER,
        "note": _TEXT,
        "note_kind": partial(_TEXT31, server_default=""),
        "expired": partial(_JSON, server_default="{}"),
        "expired_failures": partial(_INTEGER, server_default="0"),
    },
    "onnxserve_alerts": {
        "id": _ID,
        "fingerprint": _TEXT255,
        "endpoint": _TEXT63,
        "monitor": _TEXT255,
        "state": _TEXT31,
        "first_at": _TIME,
        "last_at": _TIME,
        "told_at": _OPTIONAL_TIME,
        "count": _INTEGER,
        "detail": _JSON,
    },
    "onnxserve_silences": {
        "id": _ID,
        "endpoint": _TEXT63,
        "monitor": _TEXT255,
        "until": _TIME,
        "why": _TEXT,
        "actor": _TEXT255,
        "created_at": _TIME,
    },
    "onnxserve_api_keys": {
        "name": _KEY63,
        "digest": partial(_TEXT64, unique=True),
        "scopes": _JSON,
        "endpoints": _JSON,
        "actor": _TEXT255,
        "created_at": _TIME,
        "expires_at": _OPTIONAL_TIME,
        "revoked_at": _OPTIONAL_TIME,
        "limits": partial(_JSON, server_default="[]"),
    },
    "onnxserve_retrainings": {
        "id": _ID,
        "endpoint": _TEXT63,
        "monitor": _TEXT255,
        "model": _TEXT512,
        "cause": _JSON,
        "spec": _JSON,
        "state": _TEXT31,
        "run_id": _TEXT63,
        "version": _TEXT255,
        "rollout_id": partial(_LONG, nullable=True),
        "waits_for": partial(_TEXT31, server_default=""),
        "reason": _TEXT,
        "figures": _JSON,
        "created_at": _TIME,
        "updated_at": _TIME,
        "ended_at": _OPTIONAL_TIME,
    },
}
_CONSTRAINTS = {
    _WINDOWS: [
        sa.UniqueConstraint(
            "endpoint",
            "monitor",
            "window_start",
            "revision",
            name="ux_onnxserve_monitor_windows",
        )
    ]
}
_IS_DELETED = sa.text("action = 'delete'")
_IS_LIVE = sa.text("ended_at IS NULL")
_INDEXED = (
    (_AUDIT_EVENTS, "endpoint"),
    (_AUDIT_EVENTS, "model"),
    (_ROLLOUTS, "endpoint"),
    (_WINDOWS, "state"),
    ("onnxserve_alerts", "fingerprint"),
    ("onnxserve_alerts", "endpoint"),
    ("onnxserve_silences", "endpoint"),
    ("onnxserve_retrainings", "endpoint"),
    ("onnxserve_retrainings", "model"),
)


def upgrade() -> None:
    for table, columns in _TABLES.items():
        made = [make(name) for name, make in columns.items()]
        op.create_table(table, *made, *_CONSTRAINTS.get(table, ()))
    for table, column in _INDEXED:
        op.create_index(f"ix_{table}_{column}", table, [column])
    counted = ["by_hand", "endpoint", "monitor", "state", "verdict", "attempts", "updated_at"]
    op.create_index(f"ix_{_WINDOWS}_counted", _WINDOWS, counted)
    op.create_index(
        "ix_onnxserve_audit_events_deleted",
        _AUDIT_EVENTS,
        ["endpoint"],
        sqlite_where=_IS_DELETED,
        postgresql_where=_IS_DELETED,
    )
    op.create_index(
        "ux_onnxserve_rollouts_live",
        _ROLLOUTS,
        ["endpoint"],
        unique=True,
        sqlite_where=_IS_LIVE,
        postgresql_where=_IS_LIVE,
    )
