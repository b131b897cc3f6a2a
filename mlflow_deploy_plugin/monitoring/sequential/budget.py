"""STUB until the core is merged."""

from mlflow_deploy_plugin.monitoring.drift.references.windows import DriftReference
from mlflow_deploy_plugin.spec import MonitorSpec


def check_budget(reference: DriftReference, spec: MonitorSpec, false_per_year: float) -> list[str]:
    return []
