"""Tests of the files that may be served,
as derived from the events of the audit trail.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

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


def test_files_are_approved_by_a_move_and_by_people(store):
    version: Any = SimpleNamespace(name="credit", version="4", creation_timestamp=2000)
    assert approved_files(store, POLICY, version) == ()
    moved(store, "4", OLD, "Production", "transition")
    subject = Subject("credit", "4", "@champion", 2000, NEW, POLICY.digest)
    record_gate(store, subject)
    request_promotion(store, POLICY, subject, Person("eva", frozenset(), may_edit=True))
    assert approved_files(store, POLICY, version) == (OLD,)
    approve(store, POLICY, subject, Person("ada", frozenset(), may_edit=True), REPORT)
    assert approved_files(store, POLICY, version) == (NEW, OLD)
    replaced: Any = SimpleNamespace(name="credit", version="4", creation_timestamp=3000)
    assert approved_files(store, POLICY, replaced) == (OLD,)


def test_files_of_a_request_come_before_files_that_were_served(store):
    version: Any = SimpleNamespace(name="credit", version="4", creation_timestamp=2000)
    moved(store, "4", OLD)
    subject = Subject("credit", "4", "Production", 2000, NEW, POLICY.digest)
    record_gate(store, subject)
    request_promotion(store, POLICY, subject, Person("eva", frozenset(), may_edit=True))
    approve(store, POLICY, subject, Person("ada", frozenset(), may_edit=True), REPORT)
    assert approved_files(store, POLICY, version) == (NEW, OLD)


def test_files_with_all_approvals_are_known_after_their_request_has_ended(store):
    version: Any = SimpleNamespace(name="credit", version="4", creation_timestamp=2000)
    policy = GatePolicy(gated_aliases=("champion",), approvals=ApprovalPolicy(count=2))
    subject = Subject("credit", "4", "@champion", 2000, OLD, policy.digest)
    eva, ada, bob = (Person(name, frozenset(), may_edit=True) for name in ("eva", "ada", "bob"))
    record_gate(store, subject)
    request_promotion(store, policy, subject, eva)
    approve(store, policy, subject, ada, REPORT)
    assert earlier_files(store, version) == ()
    approve(store, policy, subject, bob, REPORT)
    replaced = replace(subject, files=NEW)
    request_promotion(store, policy, replaced, eva)
    decline(store, policy, replaced, eva, "other files")
    assert approved_files(store, policy, version) == ()
    assert earlier_files(store, version) == (OLD,)
    again: Any = SimpleNamespace(name="credit", version="4", creation_timestamp=3000)
    assert earlier_files(store, again) == ()
