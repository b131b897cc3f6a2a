"""Runs of the gate as events in the audit trail, for approvals."""

REPORT = "r" * 64
"""The digest of a report."""
RUN = "f" * 32
"""The run of a report."""


def record_gate(store, subject, report=REPORT, state="passed"):
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
