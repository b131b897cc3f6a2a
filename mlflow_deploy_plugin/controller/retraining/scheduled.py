"""Retrainings at fixed times, whatever the monitor finds: `retrain.schedule` of its spec, as crontab says it."""

import logging
from datetime import datetime

from mlflow_deploy_plugin.controller.monitors.schedule import crontab_trigger
from mlflow_deploy_plugin.controller.retraining.trigger import record_refusal, request_retraining
from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.errors import AlreadyExists, InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.monitoring.alerts import announce
from mlflow_deploy_plugin.spec import MonitorSpec
from mlflow_deploy_plugin.store import AuditEvent, Endpoint
from mlflow_deploy_plugin.store.database import utc_now
from mlflow_deploy_plugin.store.retrainings import Retrainings

_log = logging.getLogger(__name__)

_KIND = "schedule"
_told: dict[tuple[str, str, str], str] = {}
"""By store, endpoint and monitor, what was said last."""


def request_scheduled(deployments: Deployments, actor: str, now: datetime | None = None) -> None:
    """Writes down the retrainings whose time has come; of several times that have passed, one.

    Where the model is being trained already it waits for the end of that. What is wrong is logged, once.
    """
    now = now or utc_now()
    for endpoint in deployments.store.endpoints():
        for monitor, spec in endpoint.spec.monitors.items():
            if spec.retrain is None or spec.retrain.schedule is None:
                continue
            key = (deployments.settings.store_url, endpoint.name, monitor)
            try:
                if _is_due(deployments, endpoint, monitor, spec, spec.retrain.schedule, now):
                    why = f"schedule {spec.retrain.schedule} of monitor {monitor}"
                    request_retraining(deployments, endpoint.name, monitor, why=why, actor=actor, kind=_KIND)
                _told.pop(key, None)
            except AlreadyExists:
                continue
            except OnnxserveError as error:
                if _told.get(key) == error.message:
                    continue
                if isinstance(error, InvalidConfig):  # which stays so until somebody changes it
                    _keep(deployments, endpoint, monitor, spec.retrain.schedule, error.message, actor, now)
                _log.warning("%s, monitor %s: no retraining: %s", endpoint.name, monitor, error.message)
                _told[key] = error.message


def _keep(
    deployments: Deployments, endpoint: Endpoint, monitor: str, schedule: str, reason: str, actor: str, now: datetime
) -> None:
    """People are told, and it stands in the history; both once for the same."""
    announce(deployments.store, endpoint.name, monitor, f"{endpoint.name}: no retraining: {reason}")
    detail = {"monitor": monitor, "schedule": schedule}
    record_refusal(
        deployments.store, AuditEvent(now, actor, "retrain.refused", endpoint.name, "", "", why=reason, detail=detail)
    )


def _is_due(
    deployments: Deployments, endpoint: Endpoint, monitor: str, spec: MonitorSpec, schedule: str, now: datetime
) -> bool:
    earlier = [
        one.created_at
        for one in Retrainings(deployments.store).find(endpoint.name)
        if one.monitor == monitor and one.cause.get("kind") == _KIND
    ]
    since = max([endpoint.created_at, *earlier])
    fires = crontab_trigger(schedule, spec.time_zone).get_next_fire_time(None, since)
    return fires is not None and fires <= now
