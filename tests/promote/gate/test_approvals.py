"""Tests of the rules of approvals, with a store, a clock that the test sets, and values
instead of a registry.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from mlflow_deploy_plugin.core.errors import (
    GateRefused,
    InvalidConfig,
    NotFound,
    ScopeMissing,
    Unauthenticated,
)
from mlflow_deploy_plugin.core.registry.policy import ApprovalPolicy, GatePolicy
from mlflow_deploy_plugin.core.store.audit import AuditEvent, move_detail
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.promote.gate.approvals import (
    ApprovalStatus,
    Person,
    Subject,
    approval_status,
    approve,
    begin_move,
    decline,
    open_request,
    promotion_requests,
    request_promotion,
    version_authors,
)
from tests.support.approvals import REPORT, record_gate
from tests.support.clocks import Clock
from tests.support.refusals import mentions, refused

NOW = datetime(2026, 11, 25, tzinfo=UTC)
POLICY = GatePolicy(
    gated_aliases=("champion",), approvals=ApprovalPolicy(count=2, groups=("risk",))
)
SUBJECT = Subject("flights", "3", "Production", 2000, "f" * 64, POLICY.digest)
RISK = frozenset({"risk", "staff"})


@pytest.fixture
def clock():
    return Clock(NOW)


@pytest.fixture
def store(tmp_path, clock):
    opened = open_store(f"sqlite:///{tmp_path}/store.db", clock)
    record_gate(opened, SUBJECT)
    yield opened
    opened.close()


def ask(store, user="eva", subject=SUBJECT, policy=POLICY, **more):
    person = Person(user, frozenset(), more.pop("may_edit", True))
    return request_promotion(store, policy, subject, person, **more)[1]


def vote(store, user, subject=SUBJECT, policy=POLICY, **more):
    person = Person(user, more.pop("groups", RISK), more.pop("may_edit", False))
    return approve(store, policy, subject, person, more.pop("report", REPORT), **more)[1]


def status(store, subject=SUBJECT, policy=POLICY):
    assert policy.approvals is not None
    return approval_status(policy.approvals, open_request(store, subject), subject, store.now())


def test_policy_sets_the_number_of_approvals(store):
    assert status(store).missing == 2
    assert status(store).approved_by == ()
    assert ask(store)
    assert vote(store, "ada")
    assert (status(store).missing, status(store).is_complete) == (1, False)
    assert mentions(status(store).reason, "1 of 2", "risk", "ada")
    assert vote(store, "bob", why="the report is fine")
    assert status(store) == ApprovalStatus(POLICY.approvals or ApprovalPolicy(), ("ada", "bob"))
    (request,) = promotion_requests(store, "flights")
    seen = {"report": REPORT, "verdict": "passed"}
    assert [entry.actor for entry in request.approvals] == ["ada", "bob"]
    assert all(entry.detail.items() >= seen.items() for entry in request.approvals)
    assert request.requested_by == "eva"
    assert request.at == NOW
    assert request.report == "https://mlflow/report"


SPELLINGS = [
    "ada ",
    " ada",
    "ada\u00a0",
    "\u3000ada",
    "ADA",
    "a\u00adda",
    "ad\u200ba",
    "ada\ufeff",
    "\uff41\uff44\uff41",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_person_counts_once_under_every_spelling(spelling, store):
    ask(store)
    assert vote(store, "ada")
    assert not vote(store, spelling)
    assert status(store).missing == 1


@pytest.mark.parametrize("spelling", ["ADA", "ad\u200ba"])
def test_author_cannot_approve_under_another_spelling(spelling, store):
    ask(store, user="ada")
    with refused(ScopeMissing, "requested"):
        vote(store, spelling)
    store.record(
        "register",
        actor="eva",
        model="flights",
        version="4",
        detail={"created": 2000, "authors": [spelling]},
    )
    other = replace(SUBJECT, version="4")
    record_gate(store, other)
    ask(store, user="eva", subject=other)
    with refused(ScopeMissing, "registered"):
        vote(store, "ada", other)
    assert status(store).approved_by == ()


def test_recorded_spellings_of_a_person_count_once(store):
    ask(store)
    vote(store, "ada")
    vote(store, "bob")
    subject = replace(SUBJECT, version="4")
    record_gate(store, subject)
    ask(store, subject=subject)
    for actor in ("ada", "ada\u00a0"):
        detail = {"report": REPORT, "verdict": "passed"}
        store.record(
            "approve", actor=actor, model="flights", version="4", after="Production", detail=detail
        )
    assert status(store, subject).missing == 1


@pytest.mark.parametrize("name", ["ada\t", "ad\x00a", "ada\x85", "anonymous@10.0.0.7", "a" * 256])
def test_deceptive_names_are_refused(name, store):
    with refused(ScopeMissing, "name"):
        ask(store, user=name)
    ask(store)
    with refused(ScopeMissing, "name"):
        vote(store, name)
    with refused(ScopeMissing, "name"):
        decline(store, POLICY, SUBJECT, Person(name, RISK, False), "no")


def test_second_request_keeps_the_approvals(store):
    assert ask(store)
    vote(store, "ada")
    assert not ask(store, user="zoe")
    assert not ask(store, subject=replace(SUBJECT, place="production"))
    assert status(store).approved_by == ("ada",)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"created": 2001}, ["version"]),
        ({"files": "0" * 64}, ["files"]),
        ({"policy": "0" * 16}, ["policy"]),
    ],
)
def test_approvals_lapse_with_version_files_or_policy(change, names, store):
    ask(store)
    vote(store, "ada")
    vote(store, "bob")
    changed = replace(SUBJECT, **change)
    assert status(store, changed).missing == 2
    assert mentions(status(store, changed).reason, *names)
    assert status(store).is_complete  # The approved state was restored.
    record_gate(store, changed)
    with refused(GateRefused, *names):
        vote(store, "joe", changed)
    assert ask(store, subject=changed)
    assert status(store, changed).approved_by == ()
    assert [request.subject for request in promotion_requests(store, "flights")] == [changed]


def test_approval_expires(store, clock):
    ask(store)
    vote(store, "ada")
    clock.now += timedelta(hours=1)
    vote(store, "bob")
    clock.now = NOW + timedelta(hours=72) - timedelta(seconds=1)
    assert status(store).is_complete
    clock.now += timedelta(seconds=1)
    assert status(store).approved_by == ("bob",)
    assert mentions(status(store).reason, "ada", "72h")
    assert vote(store, "ada")
    assert status(store).is_complete


def test_approval_is_for_one_version_and_place(store):
    ask(store)
    vote(store, "ada")
    for other in (replace(SUBJECT, place="@champion"), replace(SUBJECT, version="4")):
        record_gate(store, other)
        with refused(
            NotFound,
            f"onnxserve promote models:/flights/{other.version} --to {other.place} --request",
        ):
            vote(store, "ada", other)
        assert status(store, other).missing == 2


@pytest.mark.parametrize(
    ("user", "more", "error", "names"),
    [
        ("", {}, Unauthenticated, ["login"]),
        ("eva", {}, ScopeMissing, ["eva", "requested"]),
        ("EVA", {}, ScopeMissing, ["EVA", "requested"]),
        ("max", {}, ScopeMissing, ["max", "registered"]),
        ("joe", {"groups": frozenset({"staff"}), "may_edit": True}, ScopeMissing, ["joe", "risk"]),
        ("joe", {"report": "0" * 64}, GateRefused, ["report", "changed"]),
    ],
)
def test_invalid_approval_is_refused_and_not_recorded(user, more, error, names, store):
    store.record(
        "register",
        actor="max",
        model="flights",
        version="3",
        detail={"created": 2000, "authors": ["max", "lea"]},
    )
    ask(store)
    before = [*store.events()]
    with refused(error, *names):
        vote(store, user, **more)
    assert [*store.events()] == before


def test_editors_may_approve_without_groups(store):
    policy = GatePolicy(approvals=ApprovalPolicy(not_author=False))
    subject = replace(SUBJECT, policy=policy.digest)
    record_gate(store, subject)
    ask(store, subject=subject, policy=policy)
    with refused(ScopeMissing, "ada"):
        vote(store, "ada", subject, policy)
    # The requester may approve without `not_author`.
    assert vote(store, "eva", subject, policy, may_edit=True)
    assert status(store, subject, policy).is_complete


@pytest.mark.parametrize(
    ("user", "may_edit", "place", "error"),
    [
        ("", True, "Production", Unauthenticated),
        ("eva", False, "Production", ScopeMissing),
        ("eva", True, "Staging", InvalidConfig),
    ],
)
def test_request_without_right_or_gate_is_refused(user, may_edit, place, error, store):
    with pytest.raises(error):
        ask(store, user, replace(SUBJECT, place=place), may_edit=may_edit)
    assert promotion_requests(store, "flights") == []


def test_declined_request_takes_no_approval(store):
    ask(store)
    vote(store, "ada")
    bob = Person("bob", RISK, may_edit=False)
    with refused(InvalidConfig, "reason"):
        decline(store, POLICY, SUBJECT, bob, why=" ")
    with pytest.raises(ScopeMissing):
        decline(store, POLICY, SUBJECT, Person("joe", frozenset(), may_edit=True), why="no")
    with pytest.raises(Unauthenticated):
        decline(store, POLICY, SUBJECT, Person("", frozenset(), may_edit=True), why="no")
    assert decline(store, POLICY, SUBJECT, bob, why="too early").subject == SUBJECT
    assert promotion_requests(store, "flights") == []
    for late in (lambda: vote(store, "bob"), lambda: decline(store, POLICY, SUBJECT, bob, why="x")):
        with pytest.raises(NotFound):
            late()
    assert status(store).missing == 2
    ask(store)
    assert status(store).approved_by == ()


def test_requester_may_withdraw(store):
    ask(store)
    eva = Person("eva", frozenset(), may_edit=False)
    decline(store, POLICY, SUBJECT, eva, why="a mistake")
    assert promotion_requests(store, "flights") == []


@pytest.mark.parametrize(
    ("action", "place"), [("promote", "Production"), ("transition", "production")]
)
def test_promotion_uses_up_its_approvals(action, place, store):
    ask(store)
    vote(store, "ada")
    vote(store, "bob")
    store.record("transition", model="flights", version="4", detail=move_detail(place, ""))
    store.record("alias", model="flights", version="3", detail=move_detail("@champion", ""))
    assert status(store).is_complete
    store.record(action, model="flights", version="3", detail=move_detail(place, ""))
    assert status(store).missing == 2
    assert promotion_requests(store, "flights") == []


@pytest.mark.parametrize("action", ["rename", "delete"])
def test_requests_end_with_the_model_name(action, store):
    ask(store)
    vote(store, "ada")
    store.record(action, model="flights", before="flights", after="other")
    assert promotion_requests(store, "flights") == []
    assert open_request(store, SUBJECT) is None


def test_failed_verdict_needs_approvals_of_its_report(store):
    ask(store)
    vote(store, "ada")
    vote(store, "bob")
    record_gate(store, SUBJECT, "2" * 64)
    assert status(store).is_complete  # The gate was run again and passed again.
    record_gate(store, SUBJECT, "3" * 64, "failed")
    assert status(store).missing == 2
    assert vote(store, "ada", report="3" * 64)
    assert vote(store, "bob", report="3" * 64)
    assert status(store).is_complete
    assert [
        entry.detail["verdict"] for entry in promotion_requests(store, "flights")[0].approvals
    ] == ["failed", "failed"]


def test_verdict_without_evaluation_needs_policy_permission(
    store,
):
    record_gate(store, SUBJECT, state="passed without an evaluation")
    with refused(
        GateRefused, "without an evaluation", "evaluation.dataset", "approvals.evaluation: optional"
    ):
        ask(store)
    record_gate(store, SUBJECT)
    ask(store)
    record_gate(store, SUBJECT, "n" * 64, state="passed without an evaluation")
    with refused(GateRefused, "without an evaluation"):
        vote(store, "ada", report="n" * 64)

    approvals = ApprovalPolicy(count=1, groups=("risk",), evaluation="optional")
    policy = POLICY.model_copy(update={"approvals": approvals})
    subject = replace(SUBJECT, version="4", policy=policy.digest)
    record_gate(store, subject, state="passed without an evaluation")
    assert ask(store, subject=subject, policy=policy)
    assert vote(store, "ada", subject, policy)
    assert status(store, subject, policy).is_complete


def test_version_without_report_cannot_be_approved(store):
    changed = replace(SUBJECT, files="0" * 64)
    ask(store, subject=changed)
    with refused(GateRefused, "onnxserve gate models:/flights/3"):
        vote(store, "ada", changed)


def test_concurrent_approvals_of_a_person_count_once(store):
    ask(store)
    with ThreadPoolExecutor(4) as pool:
        results = [*pool.map(lambda _: vote(store, "ada"), range(8))]
    assert results.count(True) == 1
    assert [event.action for event in store.events()].count("approve") == 1


def test_author_is_known_under_every_model_name(store):
    for created, author in ((2000, "max"), (1500, "old")):
        detail = {"created": created, "authors": [author]}
        store.record("register", model="a former name", version="3", detail=detail)
    for version, created, authors in (("3", 2000, ("max",)), ("4", 2000, ()), ("3", 9999, ())):
        assert version_authors(store, "credit", version, created) == authors


def intend(store, number="1"):
    """Record a move that waits for a witness, after all approvals. Return a function
    that begins the move.
    """
    ask(store)
    for user in ("ada", "bob"):
        vote(store, user)
    waits = {"intention": number, "intended": "transition", "witnesses": 1}
    detail = waits | move_detail("Production", "")
    intention = AuditEvent(NOW, "eva", "intend", model="flights", version="3", detail=detail)
    store.record_event(intention)
    return partial(begin_move, store, replace(intention, detail=detail | {"witnesses": 0}))


def refuse(store):
    return decline(store, POLICY, SUBJECT, Person("ada", RISK, may_edit=False), "slower")


def test_being_moved_ends_by_a_decline(store):
    begin = intend(store)
    request = open_request(store, SUBJECT)
    assert request is not None
    assert request.is_moving
    assert not status(store).is_complete
    assert mentions(status(store).reason, "being moved")
    assert refuse(store) == request
    assert promotion_requests(store, "flights") == []
    with refused(GateRefused, "ada", "slower"):
        begin()


def test_being_moved_ends_by_the_move(store):
    intend(store)()
    with refused(NotFound, "no open request"):
        refuse(store)
    move = store.counted_events("flights", ("transition",))[-1]
    assert move.detail["witnesses"] == 0


def test_new_request_replaces_one_being_moved(store):
    begin = intend(store)
    assert ask(store)
    assert status(store).approved_by == ()
    begin()
    assert promotion_requests(store, "flights") == []


def test_being_moved_and_declined_has_one_winner(store):
    for number in map(str, range(10)):
        begin = intend(store, number)
        with ThreadPoolExecutor(2) as pool:
            attempts = [pool.submit(begin), pool.submit(refuse, store)]
        losers = [type(attempt.exception()) for attempt in attempts if attempt.exception()]
        assert losers in ([GateRefused], [NotFound])
