"""What of the audit trail the caller may see: all that is of models which they may read."""

from collections.abc import Iterable, Sequence

from mlflow_deploy_plugin.registry.history import models_served_by
from mlflow_deploy_plugin.store import AuditEvent, Store
from mlflow_deploy_plugin.ui.caller import is_administrator, may_read


def hidden_endpoints(store: Store, names: Iterable[str]) -> frozenset[str]:
    """Those that serve, or served before they were deleted, a model which the caller may not read; and those of which
    nobody can tell what they serve.
    """
    if is_administrator():
        return frozenset()
    unreadable = {one.name for one in store.unreadable()}
    return frozenset(
        name for name in set(names) if name in unreadable or not _may_read_all(models_served_by(store, name))
    )


def _may_read_all(models: Sequence[str] | None) -> bool:
    return models is not None and all(may_read(model) for model in models)


def visible_events(store: Store, events: Sequence[AuditEvent]) -> list[AuditEvent]:
    hidden = hidden_endpoints(store, (event.endpoint for event in events if event.endpoint))
    return [event for event in events if event.endpoint not in hidden and (not event.model or may_read(event.model))]
