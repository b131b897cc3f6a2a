"""The report of a judged window: its files, and its run in MLflow."""

from mlflow_deploy_plugin.monitoring.reports.history import add_history as add_history
from mlflow_deploy_plugin.monitoring.reports.log import build_report as build_report
from mlflow_deploy_plugin.monitoring.reports.log import log_result as log_result
from mlflow_deploy_plugin.monitoring.reports.log import past_windows as past_windows
