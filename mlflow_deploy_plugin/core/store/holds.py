"""Legal holds and the retention floor, which keep the rows, windows and alerts of an
endpoint from being deleted.

A hold is an event in the audit trail, and lasts until the event of its release.
"""

from datetime import timedelta

from sqlalchemy import func, select

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.store import HOLD, RELEASE, Store
from mlflow_deploy_plugin.core.store.tables import MonitorWindowRow


def held_endpoints(store: Store) -> dict[str, AuditEvent]:
    """Return the event of each hold by the name of its endpoint."""
    newest = {event.endpoint: event for event in store.events(actions=(HOLD, RELEASE))}
    return {name: event for name, event in newest.items() if event.action == HOLD}


def hold(store: Store, endpoint: str, why: str, is_released: bool = False) -> None:
    """Put the data of an endpoint on hold, or release it.

    Raises NotFound if there is no endpoint to hold, and InvalidConfig without a reason,
    or without a hold to release.
    """
    if not why.strip():
        raise InvalidConfig("a hold and its release require a reason (--why)")
    if is_released and endpoint not in held_endpoints(store):
        raise InvalidConfig(f"endpoint {endpoint!r} is not on hold")
    if not is_released:
        store.require_endpoint(endpoint)
    store.record(RELEASE if is_released else HOLD, endpoint=endpoint, why=why)


def retention_floor() -> timedelta:
    """Return the age below which nothing is deleted."""
    return timedelta(days=load_settings().retention_floor_days or 0)


def require_deletable(store: Store, endpoint: str, keep: timedelta) -> None:
    """Raise InvalidConfig if data of the endpoint that is older than `keep` may not be
    deleted.
    """
    require_above_floor(keep)
    store.require_not_held(endpoint)


def require_above_floor(keep: timedelta) -> None:
    """Raise InvalidConfig if data that is older than `keep` may not be deleted."""
    floor = retention_floor()
    if keep < floor:
        raise InvalidConfig(
            f"data that is younger than {floor.days} days may not be deleted "
            "(ONNXSERVE_RETENTION_FLOOR_DAYS)"
        )


def require_removable(store: Store, endpoint: str) -> None:
    """Raise InvalidConfig if the endpoint is on hold, or has a window below the
    retention floor, because the windows are deleted with the endpoint.
    """
    store.require_not_held(endpoint)
    floor = retention_floor()
    newest = select(func.max(MonitorWindowRow.updated_at)).filter_by(endpoint=endpoint)
    with store.reading() as session:
        changed_at = session.scalar(newest)
    if changed_at is not None and store.now() - changed_at < floor:
        raise InvalidConfig(
            f"endpoint {endpoint!r} has windows that are younger than {floor.days} days "
            "(ONNXSERVE_RETENTION_FLOOR_DAYS), so it cannot be deleted; `onnxserve stop NAME` "
            "stops a deployment and keeps the windows"
        )
