"""Runs of the gate as events in the audit trail, for approvals."""

from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.promote.gate.approvals import Subject

REPORT = "r" * 64
"""The digest of a report."""
RUN = "f" * 32
"""The run of a report."""


def record_gate(
    store: Store, subject: Subject, report: str = REPORT, state: str = "passed"
) -> None:
    detail = {
        "report": "https://mlflow/report",
        "run_id": RUN,
        "tagged": True,
        "report_digest": report,
    }
    detail |= {"files": subject.files, "policy_digest": subject.policy}
    store.record(
        "gate", actor="ci", model=subject.model, version=subject.version, after=state, detail=detail
    )
