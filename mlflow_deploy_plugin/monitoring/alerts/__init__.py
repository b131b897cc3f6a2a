"""Alerts: who is told when a monitor's window raises an alarm, when it is over, and when a monitor fails.

What is to be told is written into the store by `alert`, `alert_failure` and `announce`; `tell` sends it.
"""

import hashlib
import logging
from datetime import timedelta
from functools import partial

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.monitoring.alerts.lifecycle import AlertContent, announcement, fire, resolve
from mlflow_deploy_plugin.monitoring.alerts.message import result_content
from mlflow_deploy_plugin.monitoring.alerts.send import GROUPING_DELAY as GROUPING_DELAY
from mlflow_deploy_plugin.monitoring.alerts.send import send_due as send_due
from mlflow_deploy_plugin.monitoring.result import MonitorResult
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import MonitorSpec
from mlflow_deploy_plugin.store import Store
from mlflow_deploy_plugin.store.alerts import Alerts

_log = logging.getLogger(__name__)


def record_result(store: Store, settings: Settings, result: MonitorResult, run_url: str, spec: MonitorSpec) -> None:
    """Takes a judged window for what is to be told: an alarm begins, goes on, grows worse or is over.

    A window that is undecided changes nothing; that it could be looked at ends an alert of the monitor's failing.

    Raises:
        StoreUnavailable: the store cannot be used.
    """
    alerts, now = Alerts(store), store.now()
    seen = result_content(result, run_url, spec.alert)
    if result.is_alarm:
        repeat = timedelta(seconds=settings.alert_repeat_seconds)
        alerts.change(seen.fingerprint, lambda before: fire(before, seen, now, repeat))
    elif not result.is_undecided:
        alerts.change(seen.fingerprint, lambda before: resolve(before, seen, now))
    works = AlertContent(_failing(result.endpoint, result.monitor), result.endpoint, result.monitor)
    again = AlertContent(
        works.fingerprint, works.endpoint, works.monitor, lines=("the monitor works again",), link=seen.link
    )
    alerts.change(again.fingerprint, lambda before: resolve(before, again, now))


def record_failure(store: Store, settings: Settings, endpoint: str, monitor: str, reason: str) -> None:
    """Takes for what is to be told that a monitor could not be run; the next window that is judged ends it.

    Raises:
        StoreUnavailable: the store cannot be used.
    """
    _log.warning("%s, monitor %s failed: %s", endpoint, monitor, reason)
    now = store.now()
    seen = AlertContent(
        _failing(endpoint, monitor),
        endpoint,
        monitor,
        lines=(f"{endpoint}: the monitor fails: {reason}",),
        tags=_tags(store, endpoint, monitor),
    )
    repeat = timedelta(seconds=settings.alert_repeat_seconds)
    Alerts(store).change(seen.fingerprint, lambda before: fire(before, seen, now, repeat, "failing"))


def resolve_orphaned(store: Store) -> None:
    """Takes for what is to be told that an alert is over whose monitor, or endpoint, is not there any more.

    Raises:
        StoreUnavailable: the store cannot be used.
    """
    alerts, now = Alerts(store), store.now()
    firing = alerts.firing()
    known = {(one.name, name) for one in store.endpoints() for name in one.spec.monitors} if firing else set()
    unreadable = {one.name for one in store.unreadable()} if firing else set()
    for found in firing:
        if (found.endpoint, found.monitor) not in known and found.endpoint not in unreadable:
            order, lines = found.detail.get("order", ""), ("the monitor was taken away",)
            seen = AlertContent(found.fingerprint, found.endpoint, found.monitor, order, lines=lines)
            alerts.change(found.fingerprint, partial(resolve, seen=seen, now=now))


def announce(store: Store, endpoint: str, monitor: str, text: str, link: str = "") -> None:
    """Takes something for what is to be told, once, that has no end, such as a version that waits for a person.

    Raises:
        StoreUnavailable: the store cannot be used.
    """
    now, digest = store.now(), hashlib.sha256(text.encode()).hexdigest()[:12]
    fingerprint = f"{endpoint}/{monitor}/said/{digest}"
    seen = AlertContent(fingerprint, endpoint, monitor, lines=(text,), link=link, tags=_tags(store, endpoint, monitor))
    Alerts(store).add_once(announcement(seen, now))


def _failing(endpoint: str, monitor: str) -> str:
    return f"{endpoint}/{monitor}/failing"


def _tags(store: Store, endpoint: str, monitor: str) -> tuple[str, ...]:
    """Whom the endpoint's spec names for the monitor; nobody where it cannot be read."""
    try:
        found = store.endpoint(endpoint)
    except InvalidConfig:
        return ()
    spec = found.spec.monitors.get(monitor) if found is not None else None
    return spec.alert if spec is not None else ()
