"""Requests for promotions on MLflow's server: the list of requests, and the decisions of the server's callers."""

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from flask import request

from mlflow_deploy_plugin.errors import (
    CallerRefused,
    GateRefused,
    InvalidConfig,
    NotFound,
    OnnxserveError,
    UnsupportedMediaType,
)
from mlflow_deploy_plugin.gate.approval_client import ListedRequest
from mlflow_deploy_plugin.gate.approvals import (
    Person,
    PromotionRequest,
    Subject,
    approval_status,
    approve,
    decline,
    open_request,
    promotion_requests,
    request_promotion,
    require_may_approve,
    require_may_decline,
    subject_of,
)
from mlflow_deploy_plugin.gate.policy import GatePolicy, policy_from_tags
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.monitoring.alerts.record import announce_request
from mlflow_deploy_plugin.registry.transitions import parse_stage_or_alias
from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.store import Json, Store
from mlflow_deploy_plugin.ui import guard
from mlflow_deploy_plugin.ui.access import caller, caller_groups, is_from_another_site, may_act_on, may_list, may_read
from mlflow_deploy_plugin.ui.actions import DECISIONS, parse_form

if TYPE_CHECKING:
    from mlflow.store.model_registry.abstract_store import AbstractStore as Registry

_log = logging.getLogger(__name__)
_ENDED = 5
"""The number of ended requests in the list."""


@dataclass(frozen=True)
class RequestRow:
    """A request in the console. The last two are the reasons why the caller may not approve or decline it, or empty."""

    listed: ListedRequest
    no_approval: str = ""
    no_decline: str = ""


def request_rows(store: Store, registry: "Registry", models: Collection[str] | None = None) -> list[RequestRow]:
    """Return the open requests that the caller may read, and the last ended requests, newest first.

    `models` restricts the list. The files of the versions are not read here, because the artifact store may be slow or
    down. Decisions and promotions read the files.
    """
    requested = {event.model for event in store.events(actions=("request",))}
    names = [name for name in sorted(requested) if models is None or name in models]
    readable = [name for name in names if may_list(name) and may_read(name)]
    entries = [entry for name in readable for entry in promotion_requests(store, name)]
    entries.sort(key=lambda entry: entry.at, reverse=True)
    ended = [entry for entry in entries if entry.state != "open"][:_ENDED]
    return [
        *(_open_row(store, registry, entry) for entry in entries if entry.state == "open"),
        *(RequestRow(_listed(entry, [approval.actor for approval in entry.approvals])) for entry in ended),
    ]


def _open_row(store: Store, registry: "Registry", entry: PromotionRequest) -> RequestRow:
    from mlflow.exceptions import MlflowException

    model, number, _ = entry.subject.key
    place = parse_stage_or_alias(entry.subject.place)
    try:
        registered, version = registry.get_registered_model(model), registry.get_model_version(model, number)
        policy = policy_from_tags(model, registered.tags) or GatePolicy()
        required = policy.required_approvals(model, place)
    except (MlflowException, InvalidConfig) as error:
        reason = one_line(error)
        return RequestRow(_listed(entry, reason=reason), reason, reason)
    subject = subject_of(version, place, entry.subject.files, policy)
    status = approval_status(required, entry, subject, store.now())
    reason = "" if status.is_complete else status.reason
    who = Person(caller().user, caller_groups(), may_act_on([model]))
    return RequestRow(
        _listed(entry, status.approved_by, status.missing, reason),
        _refusal(partial(require_may_approve, required, entry, subject, who)),
        _refusal(partial(require_may_decline, required, entry, who)),
    )


def _refusal(check: Callable[[], object]) -> str:
    try:
        check()
    except OnnxserveError as error:
        return error.message
    return ""


def _listed(
    entry: PromotionRequest, approved_by: Iterable[str] = (), missing: int = 0, reason: str = ""
) -> ListedRequest:
    report, subject = entry.report, entry.subject
    return ListedRequest(
        model=subject.model,
        version=subject.version,
        to=subject.place,
        state=entry.state,
        requested_by=entry.requested_by,
        at=entry.at,
        why=entry.why,
        verdict=report.state if report else "",
        report=report.url if report else "",
        report_digest=report.digest if report else "",
        approved_by=tuple(approved_by),
        missing=missing,
        reason=reason,
        ended_by=entry.ended_by,
        ended_at=entry.ended_at,
        ended_why=entry.ended_why,
    )


def parse_decision(store: Store) -> Json:
    """Return the decision in the JSON body of the current request.

    Other sites cannot send JSON, because browsers first ask for the permission of this server.
    """
    if is_from_another_site():
        raise CallerRefused("the request was sent from another site")
    if request.mimetype != "application/json":
        raise UnsupportedMediaType(f"the content type {request.mimetype!r} is not application/json")
    form = request.get_json(silent=True)
    if not isinstance(form, dict) or not all(isinstance(text, str) for text in form.values()):
        raise InvalidConfig("a JSON object with the texts action, model, version, to, why and report is expected")
    if form.get("action") not in ("request", *DECISIONS):
        raise InvalidConfig(f"there is no action {form.get('action')!r}; the actions are request, approve, decline")
    return parse_form(form, store).arguments


def decide(trail: guard.AuditTrail, registry: "Registry", arguments: Json) -> ListedRequest:
    """Request, approve or decline a promotion as the caller, and return the request. See `parse_form`.

    Raises like the functions of `gate.approvals`, and NotFound if the caller may not read the model.
    """
    from mlflow.exceptions import MlflowException

    action, model, version, why = (arguments[name] for name in ("action", "model", "version", "why"))
    place, store = parse_stage_or_alias(arguments["to"]), trail.store()
    if not may_read(model):
        raise NotFound(f"there is no registered model {model!r}, or you may not read it")
    try:
        if action == "decline":  # The files do not matter, and may be missing.
            policy = policy_from_tags(model, registry.get_registered_model(model).tags) or GatePolicy()
            subject = Subject(model, str(int(version)), str(place), 0, "", policy.digest)
        else:
            policy, subject = guard.promotion_now(model, version, place)
    except MlflowException as error:
        raise NotFound(one_line(error)) from None
    who = Person(caller().user, caller_groups(), may_act_on([model]))
    if action == "request":
        entry, is_new = request_promotion(store, policy, subject, who, why)
        if is_new:
            _announce(store, entry)
    elif action == "approve":
        _require_unchanged_report(open_request(store, subject))
        entry, _ = approve(store, policy, subject, who, arguments["report"], why)
    else:
        entry = decline(store, policy, subject, who, why)
    return _open_row(store, registry, entry).listed if entry.state == "open" else _listed(entry)


def _require_unchanged_report(entry: PromotionRequest | None) -> None:
    """Raise GateRefused if MLflow shows another report than the gate has logged, and NotFound if it is not readable."""
    logged = entry.report if entry else None
    if logged is not None and guard.report_digest(logged.run_id) != logged.digest:
        raise GateRefused(f"the gate report {logged.url} was changed after the run of the gate; run the gate again")


def _announce(store: Store, entry: PromotionRequest) -> None:
    """Send the request through the alert channels. A failure is logged, because the request is already recorded.

    The message links to the console only if the operator allows the host, because a caller can send any Host header.
    """
    from mlflow.server.security_utils import get_allowed_hosts_from_env

    subject = entry.subject
    is_allowed = load_settings().mlflow_url or request.host in (get_allowed_hosts_from_env() or ())
    link = guard.model_page(subject.model) if is_allowed else ""
    try:
        announce_request(store, subject.model, subject.version, subject.place, entry.requested_by, entry.why, link)
    except Exception:  # noqa: BLE001 - The alert channels must not prevent a request.
        _log.exception("not announced: the request for %s", subject)
