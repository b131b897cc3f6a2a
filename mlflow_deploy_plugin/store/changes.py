"""Counters of the changes of registered models. The workers of MLflow's servers notify each other with the counters."""

from datetime import timedelta

from sqlalchemy import select

from mlflow_deploy_plugin.store.store import Store
from mlflow_deploy_plugin.store.tables import RegistryChangeRow

_RECENT = timedelta(minutes=1)
"""The age up to which changes are read again. A transaction may be committed long after its `changed_at`."""


def count_change(store: Store, model: str) -> None:
    """Count a change of a model or of its versions, aliases, stages or tags."""
    with store.transaction(alone_with=f"changes of {model}") as session:
        row = session.get(RegistryChangeRow, model, with_for_update=True) or RegistryChangeRow(model=model, count=0)
        row.count, row.changed_at = row.count + 1, store.shared_now()
        session.add(row)


def recent_changes(store: Store) -> dict[str, int]:
    """Return the counters of all models that have changed within the last minute."""
    query = select(RegistryChangeRow.model, RegistryChangeRow.count)
    with store.transaction(is_read_only=True) as session:
        recent = query.where(RegistryChangeRow.changed_at > store.shared_now() - _RECENT)
        return dict(session.execute(recent).all())
