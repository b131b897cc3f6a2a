"""Alerts: who is told when a monitor's window raises an alarm, when it is over, and when a monitor fails."""

import logging

from mlflow_deploy_plugin.monitoring.judgement import Judgement
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import MonitorSpec
from mlflow_deploy_plugin.store import Store

_log = logging.getLogger(__name__)


def alert(store: Store, settings: Settings, judgement: Judgement, run_url: str, spec: MonitorSpec) -> None:
    """Tells of a judged window whoever is to be told; a channel that fails is logged and tried again later."""
    if judgement.is_alarm:
        _log.warning("%s, monitor %s, %s: %s", judgement.endpoint, judgement.monitor, judgement.window, judgement.state)


def alert_failure(store: Store, settings: Settings, endpoint: str, monitor: str, reason: str) -> None:
    """Tells that a monitor could not be run."""
    _log.warning("%s, monitor %s failed: %s", endpoint, monitor, reason)
