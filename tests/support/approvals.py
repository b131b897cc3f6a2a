"""Runs of the gate as events in the audit trail, for approvals."""

from mlflow_deploy_plugin.promote.gate.approvals import Person, approve, request_promotion

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


def approve_all(store, promotion):
    """Request a promotion, which is a policy and a subject, and approve it by two
    people.
    """
    policy, subject = promotion
    record_gate(store, subject)
    request_promotion(store, policy, subject, Person("eva", frozenset(), may_edit=True))
    for user in ("ada", "bob"):
        person = Person(user, frozenset({"risk"}), may_edit=False)
        approve(store, policy, subject, person, REPORT)
