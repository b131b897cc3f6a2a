"""The report of a judged window: its files, and its run in MLflow."""

from mlflow_deploy_plugin.monitoring.reports.build import build_report as build_report
from mlflow_deploy_plugin.monitoring.reports.change import with_change as with_change
from mlflow_deploy_plugin.monitoring.reports.log import log_judgement as log_judgement
from mlflow_deploy_plugin.monitoring.reports.log import past_windows as past_windows
