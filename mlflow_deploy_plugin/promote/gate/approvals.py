"""Approvals of a promotion: requests, approvals and refusals by people, as events in
the audit trail of the store.

The events are the only record. Tags are not read, because everybody who may edit a
model may set its tags. On MLflow's server, only its signed events count, because
everybody with the store's password may write events. A request ends with the promotion,
a refusal, a newer request, the renaming or deletion of the model, or a fault in the
trail. Its approvals end with it, so that each promotion needs new approvals.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from mlflow_deploy_plugin.core.errors import (
    GateRefused,
    InvalidConfig,
    NotFound,
    ScopeMissing,
    Unauthenticated,
)
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.registry.policy import ApprovalPolicy, GatePolicy
from mlflow_deploy_plugin.core.registry.tags import PASSED_STATES, PASSED_WITHOUT_EVALUATION
from mlflow_deploy_plugin.core.registry.transitions import StageOrAlias
from mlflow_deploy_plugin.core.spec.types import length_of
from mlflow_deploy_plugin.core.store.alerts import Alert
from mlflow_deploy_plugin.core.store.audit import (
    AWAITED,
    FAILED,
    INTEND,
    INTENTION,
    AuditEvent,
    settle,
)
from mlflow_deploy_plugin.core.store.audit_verify import BROKEN
from mlflow_deploy_plugin.core.store.people import name_key, name_refusal, person_key
from mlflow_deploy_plugin.core.store.served_files import MOVES, stay_of
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.promote.gate.approval_client import ListedRequest

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_MOVES = ("promote", "transition", "alias")
_ACTIONS = ("gate", "request", "approve", "decline", "rename", "delete", *_MOVES)
COMPLETE = "complete"
"""The key of the subject in the detail of the last missing approval."""
_CREATION_MILLISECONDS = 600_000
"""The longest time between the intention to register a version and its creation."""
_CHANGES = {
    "created": "the version was replaced",
    "files": "the files of the version changed",
    "policy": "the policy of the model changed",
}

_Key = tuple[str, str, str]
"""A model, a version and a place; or a version, its files and a policy."""


@dataclass(frozen=True)
class Subject:
    """The promotion that a person approves.

    Attributes:
        place: the stage or @alias.
        created: MLflow's creation time of the version in milliseconds. A version or a
            model that was deleted and created again has another time.
        files: the digest of all files of the version (`core.mlmodel.combine_hashes`).
        policy: the digest of the model's gate policy.
    """

    model: str
    version: str
    place: str
    created: int
    files: str
    policy: str

    @property
    def key(self) -> _Key:
        """The model, the version, and the `name_key` of the place."""
        return self.model, self.version, name_key(self.place)

    def change_since(self, earlier: "Subject") -> str:
        """Return why a request for `earlier` has lapsed; empty if it has not."""
        for name, change in _CHANGES.items():
            if getattr(self, name) != getattr(earlier, name):
                return change
        return ""

    @property
    def request_command(self) -> str:
        uri = f"models:/{self.model}/{self.version}"
        return f"`onnxserve promote {uri} --to {self.place} --request`"

    def __str__(self) -> str:
        return f"the promotion of {self.model} version {self.version} to {self.place}"


def subject_of(
    version: "ModelVersion", place: StageOrAlias, files: str, policy: GatePolicy
) -> Subject:
    """Return the promotion of a version of MLflow's registry. `files` is the digest of
    the version's files.
    """
    return Subject(
        model=version.name,
        version=str(version.version),
        place=str(place),
        created=int(version.creation_timestamp),
        files=files,
        policy=policy.digest,
    )


class Person(NamedTuple):
    """The caller of MLflow's server. `user` is the name of the account, and empty for
    an anonymous caller.
    """

    user: str
    groups: frozenset[str]
    may_edit: bool
    """True if the person may edit the model."""


class PromotionRequest(ListedRequest):
    """An open request for a promotion with its approvals.

    Attributes:
        authors: the people who registered the version, as known at the time of the
            request.
        report_run: the MLflow run of the gate report. The report is by the policy and
            on the files of the request.
        approvals: the last approval of each person, oldest first, including approvals
            that no longer count. The detail has the SHA-256 of the gate report that the
            person saw (`report`), and its state (`verdict`).
    """

    subject: Subject = Field(exclude=True)
    authors: tuple[str, ...] = Field(exclude=True)
    report_run: str = Field(default="", exclude=True)
    approvals: tuple[AuditEvent, ...] = Field(default=(), exclude=True)

    def is_by_author(self, user: str) -> bool:
        return any(_is_same_person(user, name) for name in (self.requested_by, *self.authors))

    def with_report(self, gate: AuditEvent) -> "PromotionRequest":
        """Return the request with the gate report of an event. The command that ran the
        gate names its machine. MLflow's server adds the address of the command.
        """
        detail = gate.detail
        is_author = any(_is_same_person(gate.actor, author) for author in self.authors)
        role = "author of the version" if is_author else ""
        judged_by = (gate.actor, role, detail.get("machine"), detail.get("address"))
        report = {
            "report": detail["report"],
            "report_run": detail["run_id"],
            "report_digest": detail["report_digest"],
            "verdict": gate.after,
            "judged_by": ", ".join(filter(None, judged_by)),
        }
        return self.model_copy(update=report)


@dataclass(frozen=True)
class ApprovalStatus:
    """The approvals of a promotion at a moment.

    Attributes:
        approved_by: the people whose approvals count.
        discounted: a line for each reason why an approval or the request does not
            count.
    """

    required: ApprovalPolicy
    approved_by: tuple[str, ...] = ()
    discounted: tuple[str, ...] = ()

    @property
    def missing(self) -> int:
        """The number of approvals that are missing."""
        return max(0, self.required.count - len(self.approved_by))

    @property
    def is_complete(self) -> bool:
        return self.missing == 0

    @property
    def reason(self) -> str:
        """One line that names the missing approvals, and the reasons for approvals that
        do not count.
        """
        text = f"{self.missing} of {self.required.count} approvals"
        if self.required.groups:
            text += f" from group {' or '.join(self.required.groups)}"
        text += " is missing" if self.missing == 1 else " are missing"
        if self.approved_by:
            text += f", approved by {join_names(self.approved_by)}"
        return "; ".join([text, *self.discounted])


def promotion_requests(store: Store, model: str) -> list[PromotionRequest]:
    """Return the open requests for the model, newest first. A request may have
    lapsed.
    """
    return _open_requests(store.counted_events(model, _ACTIONS))[::-1]


def open_request(store: Store, subject: Subject) -> PromotionRequest | None:
    """Return the open request for this model, version and stage or alias. The request
    may have lapsed.
    """
    return _find_request(promotion_requests(store, subject.model), subject)


def request_is_over(store: Store, alert: Alert) -> bool:
    """Return True for a message about a request that has ended, or that has as many
    approvals as it needed.
    """
    if (request := alert.detail.get("request")) is None:
        return False
    for entry in promotion_requests(store, request["model"]):
        if request.items() >= request_identity(entry).items():
            return len(entry.approvals) >= int(request["count"])
    return True


def request_identity(entry: PromotionRequest) -> Json:
    """Return the values that distinguish the request from all other requests, for the
    detail of its message.
    """
    return {
        "model": entry.model,
        "version": entry.version,
        "to": entry.to,
        "at": entry.at.isoformat(),
    }


def missing_approvals(store: Store, policy: GatePolicy, subject: Subject, page: str = "") -> str:
    """Return why a promotion lacks approvals; empty if it needs none, or has all.
    `page` is the URL of its requests.
    """
    if (required := policy.approvals_for(subject.place)) is None:
        return ""
    status = approval_status(required, open_request(store, subject), subject, store.now())
    if status.is_complete:
        return ""
    shown = f", and {page} shows them" if page else ""
    return f"{subject} is refused: {status.reason}. {subject.request_command} requests them{shown}"


def approval_status(
    policy: ApprovalPolicy, request: PromotionRequest | None, subject: Subject, now: datetime
) -> ApprovalStatus:
    """Return which approvals of the request count for `subject`. `request` is None if
    there is no open request.
    """
    if request is None:
        return ApprovalStatus(policy, (), ("there is no open request",))
    if change := subject.change_since(request.subject):
        return ApprovalStatus(policy, (), (f"the request has lapsed: {change}",))
    if request.is_moving:  # Its approvals count for one move.
        return ApprovalStatus(policy, (), ("the version is being moved, unless it is declined",))
    approved = []
    discounted = []
    # If the last gate run failed, an approval counts only if the approver saw the
    # report of this run. The promotion is then forced, or somebody has changed the
    # tags of the verdict.
    has_failed = request.verdict not in ("", *PASSED_STATES)
    for approval in request.approvals:
        if approval.at + length_of(policy.valid_for) <= now:
            reason = f"the approval of {approval.actor} has expired after {policy.valid_for}"
        elif policy.not_author and request.is_by_author(approval.actor):
            reason = f"{approval.actor} is an author"
        elif has_failed and approval.detail["report"] != request.report_digest:
            reason = f"{approval.actor} approved before the gate failed"
        else:
            approved.append(approval.actor)
            continue
        discounted.append(reason)
    return ApprovalStatus(policy, tuple(approved), tuple(discounted))


def request_promotion(
    store: Store, policy: GatePolicy, subject: Subject, person: Person, why: str = ""
) -> tuple[PromotionRequest, bool]:
    """Request a promotion. Return the open request, and True if it is new.

    A request for the same subject is kept with its approvals. A request that has lapsed
    is replaced.

    Raises InvalidConfig if the promotion needs no approvals, GateRefused if the gate
    passed without an evaluation that the policy requires, Unauthenticated for an
    anonymous caller, and ScopeMissing if the person may not edit the model.
    """
    required = policy.required_approvals(subject.model, subject.place)
    _require_login(person)
    if not person.may_edit:
        raise ScopeMissing(
            f"{person.user} may not request {subject}, because {person.user} may not edit the model"
        )
    gates = _gate_events(store.counted_events(subject.model, ("gate",)))
    gate = gates.get((subject.version, subject.files, subject.policy))
    _require_evaluation(required, subject, gate.after if gate else "")
    authors = version_authors(store, subject.model, subject.version, subject.created)

    def decide(pending: PromotionRequest | None) -> Json | None:
        """Return the detail of a new request; None if the pending request is kept."""
        if pending and not pending.is_moving and not subject.change_since(pending.subject):
            return None
        return {"subject": asdict(subject), "authors": list(authors)}

    is_new = _record(store, "request", subject, person, why, decide)
    return _require_open(open_request(store, subject), subject), is_new


def approve(
    store: Store, policy: GatePolicy, subject: Subject, person: Person, report: str, why: str = ""
) -> tuple[PromotionRequest, bool]:
    """Approve the open request. Return it, and True if the approval is new: a person
    has at most one approval.

    Args:
        subject: the promotion as it is now.
        report: the SHA-256 of the gate report that the person saw.

    Raises:
        GateRefused: the request has lapsed, there is no report, or the person saw
            another report.
        InvalidConfig: no approvals are required.
        NotFound: there is no open request.
        ScopeMissing / Unauthenticated: the person may not approve.
    """
    required = policy.required_approvals(subject.model, subject.place)

    def decide(request: PromotionRequest | None) -> Json | None:
        """Return the detail of the approval; None if the person has approved
        already.
        """
        pending = _require_open(request, subject)
        require_may_approve(required, pending, subject, person)
        if report != pending.report_digest:
            raise GateRefused(
                f"the gate report has changed since {person.user} opened it; read {pending.report} "
                "again"
            )
        status = approval_status(required, pending, subject, store.now())
        if any(_is_same_person(person.user, name) for name in status.approved_by):
            return None
        detail: Json = {"report": report, "verdict": pending.verdict}
        if status.missing <= 1:
            detail[COMPLETE] = asdict(subject)
        return detail

    is_new = _record(store, "approve", subject, person, why, decide)
    return _require_open(open_request(store, subject), subject), is_new


def decline(
    store: Store, policy: GatePolicy, subject: Subject, person: Person, why: str
) -> PromotionRequest:
    """End the open request without a promotion, and return it. Approvers and the
    requester may do this, with a reason. A move that waits for witnesses fails.

    Only the model, the version and the stage or alias of `subject` matter.

    Raises InvalidConfig without a reason or if no approvals are required, NotFound
    without an open request, and ScopeMissing or Unauthenticated if the person may not
    decline it.
    """
    required = policy.required_approvals(subject.model, subject.place)
    if not why.strip():
        raise InvalidConfig(f"a reason is required to decline {subject}")
    declined = _require_open(open_request(store, subject), subject)

    def decide(request: PromotionRequest | None) -> Json:
        require_may_decline(required, _require_open(request, subject), person)
        return {}

    _record(store, "decline", subject, person, why, decide)
    return declined


def begin_move(store: Store, intention: AuditEvent) -> None:
    """Repeat the intention of a move, which its witnesses have cosigned, unless the
    promotion was declined meanwhile. It cannot be declined afterwards.

    Raises GateRefused if it was declined, and StoreUnavailable.
    """
    place = intention.detail.get("moved", {}).get("place", "")

    def next_event(events: Sequence[AuditEvent]) -> AuditEvent:
        for event in reversed(events):
            if event.detail.get(INTENTION) == intention.detail[INTENTION]:
                break
            if event.action == "decline" and _key(event, event.after) == _key(intention, place):
                raise GateRefused(
                    f"{event.actor} declined the promotion of {event.model} version "
                    f"{event.version} to {place} before the move: {event.why}"
                )
        return intention

    store.record_next(intention.model, _ACTIONS, next_event)


def require_may_approve(
    required: ApprovalPolicy, request: PromotionRequest, subject: Subject, person: Person
) -> None:
    """Check that the person may approve the request now.

    Raises Unauthenticated for an anonymous caller, ScopeMissing for an author or a
    person who is not an approver, and GateRefused if the request has lapsed or has no
    report with the evaluation that the policy requires.
    """
    _require_approver(required, subject, person)
    if change := subject.change_since(request.subject):
        raise GateRefused(
            f"the request for {subject} has lapsed: {change}; request the promotion again"
        )
    user = person.user
    if required.not_author and request.is_by_author(user):
        if _is_same_person(user, request.requested_by):
            part = "requested this promotion"
        else:
            part = "registered this version"
        raise ScopeMissing(
            f"{user} may not approve {subject}, because {user} {part}; another person must approve"
        )
    if not request.report_digest:
        command = f"onnxserve gate models:/{subject.model}/{subject.version}"
        raise GateRefused(
            f"{subject} cannot be approved without a report of the gate; run `{command}` first"
        )
    _require_evaluation(required, subject, request.verdict)


def require_may_decline(
    required: ApprovalPolicy, request: PromotionRequest, person: Person
) -> None:
    """Raise ScopeMissing or Unauthenticated if the person may not decline the
    request.
    """
    _require_login(person)
    if not _is_same_person(person.user, request.requested_by):
        _require_approver(required, request.subject, person)


def version_authors(store: Store, model: str, version: str, created: int) -> tuple[str, ...]:
    """Return the people who registered the version that was created at this time, under
    any name of its model.

    If a server stopped before it recorded the registration, its intention names neither
    the version nor the time. The authors of the model's intentions at about this time
    count.
    """
    authors: dict[str, None] = {}
    for event in settle([*store.events(actions=("register", INTEND, FAILED))]):
        if event.version:
            is_author = (event.version, event.detail.get("created")) == (version, created)
        else:
            delay = abs(event.at.timestamp() * 1000 - created)
            is_author = event.model == model and delay < _CREATION_MILLISECONDS
        if is_author and event.action == "register":
            authors |= dict.fromkeys(event.detail["authors"])
    return tuple(authors)


def ensure_registered(store: Store, version: "ModelVersion", actor: str) -> None:
    """Record the registration of a version that was created without MLflow's server, or
    while it stopped. Only the authors that other events name are known.
    """
    number = str(version.version)
    created = int(version.creation_timestamp)
    for event in store.counted_events(version.name, ("register",)):
        if (event.version, event.detail.get("created")) == (number, created):
            return
    authors = version_authors(store, version.name, number, created)
    detail = {"created": created, "authors": authors}
    store.record("register", model=version.name, version=number, detail=detail, actor=actor)


def _open_requests(events: Sequence[AuditEvent]) -> list[PromotionRequest]:
    """Return the open requests after these events of a model, both oldest first."""
    live: dict[_Key, PromotionRequest] = {}
    for event in events:
        key = _key(event, event.after)
        moved = event.detail.get("moved")
        if event.action == "request":
            live.pop(key, None)  # The newest request is the last one.
            recorded: Json = {**event.detail, "model": event.model, "version": event.version}
            recorded |= {"to": event.after, "requested_by": event.actor, "at": event.at}
            live[key] = PromotionRequest.model_validate(recorded | {"why": event.why})
        elif event.action == "approve" and key in live:
            # The approval replaces the person's earlier approval.
            earlier = [
                approval
                for approval in live[key].approvals
                if not _is_same_person(approval.actor, event.actor)
            ]
            live[key] = live[key].model_copy(update={"approvals": (*earlier, event)})
        elif event.action == "decline":
            live.pop(key, None)
        elif event.action in _MOVES and moved:
            key = _key(event, moved["place"])
            request = live.pop(key, None)
            if request and event.detail.get(AWAITED):
                live[key] = request.model_copy(update={"is_moving": True})
        elif event.action in ("rename", "delete", BROKEN):
            live.clear()
    gates = _gate_events(events)
    for key, request in live.items():
        gate = gates.get((request.version, request.subject.files, request.subject.policy))
        if gate:
            live[key] = request.with_report(gate)
    return list(live.values())


def _key(event: AuditEvent, place: str) -> _Key:
    return event.model, event.version, name_key(place)


def _gate_events(events: Iterable[AuditEvent]) -> dict[_Key, AuditEvent]:
    """Return the last run of the gate with a report, by the version, its files and the
    policy of the report.
    """
    gates: dict[_Key, AuditEvent] = {}
    for event in events:
        detail = event.detail
        if event.action == "gate" and detail.get("tagged") and detail.get("report_digest"):
            gates[event.version, detail["files"], detail["policy_digest"]] = event
    return gates


def _find_request(
    requests: Iterable[PromotionRequest], subject: Subject
) -> PromotionRequest | None:
    return next((entry for entry in requests if entry.subject.key == subject.key), None)


def _require_open(request: PromotionRequest | None, subject: Subject) -> PromotionRequest:
    if request is None:
        raise NotFound(
            f"there is no open request for {subject}; {subject.request_command} requests the "
            "promotion"
        )
    return request


def _record(
    store: Store,
    action: str,
    subject: Subject,
    person: Person,
    why: str,
    decide: Callable[[PromotionRequest | None], Json | None],
) -> bool:
    """Record the person's action, unless `decide` returns None for the open request.
    Return True if it is recorded.

    `decide` returns the detail of the event. The request is read and the event is
    written in one transaction, so that racing calls cannot both count.
    """

    def next_event(events: Sequence[AuditEvent]) -> AuditEvent | None:
        detail = decide(_find_request(_open_requests(events), subject))
        if detail is None:
            return None
        return AuditEvent(
            store.now(),
            person.user,
            action,
            model=subject.model,
            version=subject.version,
            after=subject.place,
            why=why,
            detail=detail,
        )

    return store.record_next(subject.model, _ACTIONS, next_event)


def _require_evaluation(required: ApprovalPolicy, subject: Subject, verdict: str) -> None:
    """Raise GateRefused if the approvers would see no figure of the version's quality,
    unless the policy allows it.
    """
    if required.evaluation == "required" and verdict == PASSED_WITHOUT_EVALUATION:
        raise GateRefused(
            f"{subject} cannot be requested or approved: its gate {verdict}, so the report has no "
            "figure of its quality. Set evaluation.dataset and evaluation.target in the policy of "
            f"{subject.model}, and run `onnxserve gate models:/{subject.model}/{subject.version}`; "
            "or set approvals.evaluation: optional in the policy"
        )


def _require_login(person: Person) -> None:
    """Raise Unauthenticated for an anonymous caller, and ScopeMissing for an account
    whose name cannot stand for one person.
    """
    if not person.user:
        raise Unauthenticated(
            "a login is required: an anonymous caller may not request, approve or decline "
            "promotions"
        )
    if refusal := name_refusal(person.user):
        raise ScopeMissing(
            f"{refusal}; a person with this name may not request, approve or decline promotions"
        )


def _require_approver(required: ApprovalPolicy, subject: Subject, person: Person) -> None:
    """Raise ScopeMissing unless the person is in a group of approvers or, if the policy
    names no group, may edit the model. Raise Unauthenticated for an anonymous caller.
    """
    _require_login(person)
    is_approver = person.may_edit
    rule = "be allowed to edit the model"
    if required.groups:
        is_approver = not person.groups.isdisjoint(required.groups)
        rule = f"be in group {' or '.join(required.groups)}"
    if not is_approver:
        raise ScopeMissing(f"{person.user} may not decide about {subject}: approvers must {rule}")


def _is_same_person(user: str, other: str) -> bool:
    """Return True for two spellings of one name, because a login may accept an account
    under several spellings.
    """
    return person_key(user) == person_key(other)


def approved_files(
    store: Store,
    policy: GatePolicy,
    version: "ModelVersion",
) -> tuple[str, ...]:
    """Return the digests of the files of the version that may be served, if the policy
    requires approvals.

    These are the files of promotions with all approvals, also before the version is
    moved, and the files with which the version moved to a gated place. The former come
    first, because they are newer. Raises StoreUnavailable.
    """
    requests = promotion_requests(store, version.name)
    events = store.counted_events(version.name, MOVES)
    approved: list[str] = []
    served: list[str] = []
    for place in policy.gated_places:
        required = policy.approvals_for(place)
        for request in requests:
            subject = subject_of(version, place, request.subject.files, policy)
            if required is None or request.subject.key != subject.key:
                continue
            if approval_status(required, request, subject, store.now()).is_complete:
                approved.append(subject.files)
        served.append(stay_of(events, str(version.version), place).files)
    return tuple(dict.fromkeys(filter(None, [*approved, *served])))


def earlier_files(store: Store, version: "ModelVersion") -> tuple[str, ...]:
    """Return the digests of the files of the version that once had all approvals,
    newest first.

    The request may have lapsed, or may have been declined or replaced since. Raises
    StoreUnavailable.
    """
    sought = (str(version.version), int(version.creation_timestamp))
    digests: dict[str, None] = {}
    for event in reversed(store.counted_events(version.name, ("approve",))):
        subject = event.detail.get(COMPLETE)
        if subject and (subject["version"], subject["created"]) == sought:
            digests.setdefault(subject["files"])
    return tuple(digests)
