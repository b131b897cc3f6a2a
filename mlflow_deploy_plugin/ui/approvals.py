"""Requests for promotions on MLflow's server: the list of requests, and the decisions
of the server's callers.
"""

import logging
import threading
from collections.abc import Collection
from functools import partial

from flask import g

from mlflow_deploy_plugin.core.errors import GateRefused, InvalidConfig
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.registry.policy import GatePolicy, policy_from_tags
from mlflow_deploy_plugin.core.registry.transitions import parse_stage_or_alias
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.promote.gate import approvals
from mlflow_deploy_plugin.promote.gate.approval_client import ListedRequest
from mlflow_deploy_plugin.promote.gate.approvals import Person, PromotionRequest, Subject
from mlflow_deploy_plugin.ui import access
from mlflow_deploy_plugin.ui.actions import DECISIONS, parse_form, refusal_of
from mlflow_deploy_plugin.ui.guard import mlflow_stores, moves
from mlflow_deploy_plugin.watch.alerts.record import announce_request
from mlflow_deploy_plugin.watch.alerts.send import send_until_accepted

_log = logging.getLogger(__name__)


class RequestRow(ListedRequest):
    """A request for the caller.

    Attributes:
        no_approval: the reason why the caller may not approve it, or empty.
        no_decline: the reason why the caller may not decline it, or empty.
    """

    no_approval: str = ""
    no_decline: str = ""


def request_rows(
    store: Store,
    models: Collection[str] | None = None,
) -> list[RequestRow]:
    """Return the open requests that the caller may read, newest first.

    `models` restricts the list. The files of the versions are not read here, because
    the artifact store may be slow or down. Decisions and promotions read the files.
    """
    requested = {event.model for event in store.events(actions=("request",))}
    entries: list[PromotionRequest] = []
    for name in sorted(requested):
        if (models is None or name in models) and access.may_read(name):
            entries += approvals.promotion_requests(store, name)
    entries.sort(key=lambda entry: entry.at, reverse=True)
    return [_request_row(store, entry) for entry in entries]


def _request_row(store: Store, entry: PromotionRequest) -> RequestRow:
    """Return the request with its approvals, and what the caller may do. If the model
    or its policy cannot be read, the row has the reason.
    """
    from mlflow.exceptions import MlflowException

    place = parse_stage_or_alias(entry.to)
    fields: Json = {}
    if entry.report_run:
        fields["report"] = moves.console_page("/report", model=entry.model, run=entry.report_run)
    try:
        registered = mlflow_stores.registry().get_registered_model(entry.model)
        policy = policy_from_tags(entry.model, registered.tags) or GatePolicy()
        required = policy.required_approvals(entry.model, place)
        who = _person(entry.model)
        fields["no_decline"] = refusal_of(
            partial(approvals.require_may_decline, required, entry, who)
        )
        version = mlflow_stores.registry().get_model_version(entry.model, entry.version)
        now = approvals.subject_of(version, place, entry.subject.files, policy)
        status = approvals.approval_status(required, entry, now, store.now())
        fields |= {"approved_by": status.approved_by, "missing": status.missing}
        fields["reason"] = "" if status.is_complete else status.reason
        fields["no_approval"] = refusal_of(
            partial(approvals.require_may_approve, required, entry, now, who)
        )
    except (MlflowException, InvalidConfig) as error:
        reason = one_line(error)
        fields = {"no_decline": reason, **fields, "reason": reason, "no_approval": reason}
    return RequestRow.model_validate(entry.model_dump() | fields)


def _person(model: str) -> Person:
    """Return the caller with the permission for a model."""
    # A page has several requests, and a login queries its database for the groups.
    if "onnxserve_groups" not in g:
        g.onnxserve_groups = access.login().groups()
    may_edit = access.may_act_on([model])
    return Person(access.caller().user, g.onnxserve_groups, may_edit)


def parse_decision(store: Store) -> Json:
    """Return the decision in the JSON body of the current request.

    Other sites cannot send JSON, because browsers first ask for the permission of this
    server.
    """
    form = access.read_own_json()
    if not isinstance(form, dict) or not all(isinstance(text, str) for text in form.values()):
        raise InvalidConfig(
            "a JSON object with the texts action, model, version, to, why and report is expected"
        )
    if form.get("action") not in ("request", *DECISIONS):
        raise InvalidConfig(
            f"there is no action {form.get('action')!r}; the actions are request, approve, decline"
        )
    arguments, _, _ = parse_form(form, store)
    return arguments


def decide(store: Store, arguments: Json) -> RequestRow:
    """Request, approve or decline a promotion as the caller, and return the request.
    See `parse_form`.

    Raises NotFound without an open request, if MLflow does not have the version, or if
    the caller may not read the model,
    Unauthenticated or ScopeMissing if the caller may not decide, InvalidConfig if no
    approvals are required, and GateRefused if the request has lapsed, or if MLflow
    shows another report than the gate has logged.
    """
    action = arguments["action"]
    model = arguments["model"]
    why = arguments["why"]
    access.require_readable(model)
    version = arguments["version"]
    place = parse_stage_or_alias(arguments["to"])
    with mlflow_stores.known_to_mlflow():
        if action != "decline":
            policy, subject = moves.promotion_now(model, version, place)
        else:
            # A decline does not depend on the files, which may be missing.
            tags = mlflow_stores.registry().get_registered_model(model).tags
            policy = policy_from_tags(model, tags) or GatePolicy()
            subject = Subject(
                model=model,
                version=str(int(version)),
                place=str(place),
                created=0,
                files="",
                policy=policy.digest,
            )
    who = _person(model)
    if action == "decline":
        entry = approvals.decline(store, policy, subject, who, why)
        return RequestRow.model_validate(entry.model_dump())
    if action == "approve":
        pending = approvals.open_request(store, subject)
        if (
            pending
            and pending.report_run
            and mlflow_stores.report_digest(pending.report_run) != pending.report_digest
        ):
            raise GateRefused(
                f"the gate report {pending.report} was changed after the run of the gate; run the "
                "gate again"
            )
        entry = approvals.approve(store, policy, subject, who, arguments["report"], why)[0]
        return _request_row(store, entry)
    entry, is_new = approvals.request_promotion(store, policy, subject, who, why)
    if is_new:
        _announce(store, entry, policy.required_approvals(model, place).count)
    return _request_row(store, entry)


def _announce(store: Store, entry: PromotionRequest, count: int) -> None:
    """Send the request through the alert channels. A failure is logged, because the
    request is already recorded.

    This server sends the message in the background, and repeats failed attempts for a
    few minutes. A controller repeats them afterwards. The message is dropped if the
    request ends, or has `count` approvals, before it was sent.
    """
    settings = load_settings()
    link = ""
    if settings.mlflow_url or access.is_host_allowed():
        link = moves.console_page(model=entry.model)
    text = f"{entry.requested_by} requests {entry}"
    if entry.why:
        text += f": {entry.why}"
    step = (
        f"next: onnxserve request approve models:/{entry.model}/{entry.version} --to {entry.to}, "
        "or onnxserve request decline with a reason"
    )
    identity = {**approvals.request_identity(entry), "count": count}
    try:
        announce_request(store, entry.model, text, link, step, identity)
    except Exception:  # noqa: BLE001 - The alert channels must not prevent a request.
        _log.exception("not announced: the request for %s", entry)
        return

    def send() -> None:
        """Send the recorded message until a channel accepts it. A failure is logged."""
        try:
            send_until_accepted(
                store, settings, entry.model, partial(approvals.request_is_over, store)
            )
        except ModuleNotFoundError as missing:
            command = "pip install 'mlflow-onnxserve[monitoring]'"
            _log.error(
                "not sent by this server: the request for %s, because it needs %s: %s",
                entry,
                missing.name,
                command,
            )
        except Exception:  # noqa: BLE001 - No caller waits for this thread.
            _log.exception("not sent by this server: the request for %s", entry)

    if settings.alert_config is not None:
        threading.Thread(target=send, name="onnxserve-request", daemon=True).start()
