"""Tests of the files that may be served,
as derived from the events of the audit trail.
"""

from dataclasses import replace
from types import SimpleNamespace

from mlflow_deploy_plugin.core.registry.policy import ApprovalPolicy, GatePolicy
from mlflow_deploy_plugin.core.store.audit import move_detail
from mlflow_deploy_plugin.promote.gate.approvals import (
    Person,
    Subject,
    approve,
    approved_files,
    decline,
    earlier_files,
    request_promotion,
)
from tests.support.approvals import REPORT, record_gate

POLICY = GatePolicy(gated_aliases=("champion",), approvals=ApprovalPolicy())
OLD = "a" * 64
NEW = "b" * 64


def moved(store, version, files, place="@champion", action="alias"):
    store.record(action, model="credit", version=version, detail=move_detail(place, "", files))


VERSION = SimpleNamespace(name="credit", version="4", creation_timestamp=2000)
REPLACED = SimpleNamespace(name="credit", version="4", creation_timestamp=3000)
EVA, ADA, BOB = (Person(name, frozenset(), may_edit=True) for name in ("eva", "ada", "bob"))


def requested(store, place, files, policy=POLICY):
    """Request a promotion of a version with a report, and return its subject."""
    subject = Subject("credit", "4", place, 2000, files, policy.digest)
    record_gate(store, subject)
    request_promotion(store, policy, subject, EVA)
    return subject


def test_files_are_approved_by_moves_and_by_people(store):
    assert approved_files(store, POLICY, VERSION) == ()
    moved(store, "4", OLD, "Production", "transition")
    subject = requested(store, "@champion", NEW)
    assert approved_files(store, POLICY, VERSION) == (OLD,)
    approve(store, POLICY, subject, ADA, REPORT)
    assert approved_files(store, POLICY, VERSION) == (NEW, OLD)
    assert approved_files(store, POLICY, REPLACED) == (OLD,)


def test_requested_files_come_before_served_files(store):
    moved(store, "4", OLD)
    approve(store, POLICY, requested(store, "Production", NEW), ADA, REPORT)
    assert approved_files(store, POLICY, VERSION) == (NEW, OLD)


def test_fully_approved_files_are_known_after_their_request(store):
    policy = GatePolicy(gated_aliases=("champion",), approvals=ApprovalPolicy(count=2))
    subject = requested(store, "@champion", OLD, policy)
    approve(store, policy, subject, ADA, REPORT)
    assert earlier_files(store, VERSION) == ()
    approve(store, policy, subject, BOB, REPORT)
    replaced = replace(subject, files=NEW)
    request_promotion(store, policy, replaced, EVA)
    decline(store, policy, replaced, EVA, "other files")
    assert approved_files(store, policy, VERSION) == ()
    assert earlier_files(store, VERSION) == (OLD,)
    assert earlier_files(store, REPLACED) == ()
