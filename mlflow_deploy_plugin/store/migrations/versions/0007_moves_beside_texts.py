"""Where a version was moved in the registry, and which one was there, beside the texts that say so for people.

They were read from the texts so far; the texts stay as they are.
"""

import re
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_MOVES = ("transition", "alias", "promote", "rollout.end", "rollback")
_VERSION_BEFORE = re.compile(r"^version (\d+)\b")

_columns = ("id", "action", "version", "before", "after", "detail")
_events = sa.table(
    "onnxserve_audit_events", *(sa.column(name, sa.JSON if name == "detail" else None) for name in _columns)
)


def upgrade() -> None:
    connection = op.get_bind()
    moves = sa.select(_events).where(_events.c.action.in_(_MOVES), _events.c.version != "")
    for row in connection.execute(moves).all():
        if (moved := _moved(row)) is not None:
            changed = sa.update(_events).where(_events.c.id == row.id)
            connection.execute(changed.values(detail={**row.detail, "moved": moved}))


def _moved(row: Any) -> dict[str, str] | None:
    place = row.after.rpartition(" in ")[2]
    if row.action == "alias":
        place = f"@{place.removeprefix('@')}"
    if row.action in ("rollout.end", "rollback"):
        place = ""
        if (row.action == "rollout.end" and row.detail.get("state") != "promoted") or not row.version.isdigit():
            return None
    elif not row.after:  # an alias was deleted
        return None
    before = _VERSION_BEFORE.match(row.before)
    return {"place": place, "before": str(row.detail.get("stood_there") or (before.group(1) if before else ""))}
