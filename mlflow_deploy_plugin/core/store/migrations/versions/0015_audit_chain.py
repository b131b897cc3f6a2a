"""The hash chains of the audit trail. Existing events get hashes, but no signatures."""

import sqlalchemy as sa
from alembic import op

from mlflow_deploy_plugin.core.store.audit_chain import event_digest
from mlflow_deploy_plugin.core.store.tables import UtcDateTime

revision = "0015"
down_revision = "0014"
_TABLE = "onnxserve_audit_events"
_ADDED = {"previous": 64, "digest": 64, "signed_by": 63, "signature": 255}
_TEXTS = ("actor", "action", "endpoint", "model", "version", "before", "after", "why")
_AT_ONCE = 1000


def upgrade() -> None:
    for name, length in _ADDED.items():
        column = sa.Column(name, sa.String(length), nullable=False, server_default="")
        op.add_column(_TABLE, column)
    op.create_index("ix_onnxserve_audit_events_chain", _TABLE, ["model", "id"])
    op.drop_index("ix_onnxserve_audit_events_model", _TABLE)
    _chain_existing()


def _chain_existing() -> None:
    """Set the hashes of the existing events, in the order of their ids."""
    texts = [sa.column(name, sa.Text()) for name in (*_TEXTS, *_ADDED)]
    events = sa.table(
        _TABLE,
        sa.column("id", sa.BigInteger()),
        sa.column("at", UtcDateTime()),
        sa.column("detail", sa.JSON()),
        *texts,
    )
    heads: dict[str, str] = {}
    last = 0
    while True:
        page = sa.select(events).where(events.c.id > last).order_by(events.c.id).limit(_AT_ONCE)
        rows = op.get_bind().execute(page).all()
        for row in rows:
            previous = heads.get(row.model, "")
            digest = event_digest(row, previous)
            values = {"previous": previous, "digest": digest}
            op.get_bind().execute(sa.update(events).where(events.c.id == row.id).values(values))
            heads[row.model] = digest
            last = row.id
        if len(rows) < _AT_ONCE:
            return
