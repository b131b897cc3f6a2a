"""Alerts: messages to people when a monitor's window raises an alarm, when it is over, and when a monitor fails.

`record.py` writes into the store what has to be sent, and `send.py` sends it over the channels of the configuration.
Their functions raise StoreUnavailable if the store cannot be used.
"""

from mlflow_deploy_plugin.monitoring.alerts.record import announce, record_failure, record_result, resolve_orphaned
from mlflow_deploy_plugin.monitoring.alerts.send import GROUPING_DELAY, send_due

__all__ = ["GROUPING_DELAY", "announce", "record_failure", "record_result", "resolve_orphaned", "send_due"]
