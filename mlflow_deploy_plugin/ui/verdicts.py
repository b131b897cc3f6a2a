"""Verdicts of the gate on MLflow's server, which records them and refuses other changes
of their tags.

Everybody who may edit a model may record a verdict, under the own name, unless the
policy names judges. The server makes the address of the report. It compares the record
with the files of the version, the policy of the model and, if people must approve, the
report, but does not repeat the checks.
"""

import hashlib
from itertools import starmap

from pydantic import ValidationError

from mlflow_deploy_plugin.core.errors import GateRefused, InvalidConfig, NotFound, ScopeMissing
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.registry import tags
from mlflow_deploy_plugin.core.registry.policy import GatePolicy, policy_from_tags
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.promote.gate.approvals import ensure_registered
from mlflow_deploy_plugin.promote.gate.recording import VerdictRecord
from mlflow_deploy_plugin.ui import access
from mlflow_deploy_plugin.ui.audit_trail import AuditTrail
from mlflow_deploy_plugin.ui.guard import mlflow_stores, moves


def record_verdict(trail: AuditTrail) -> None:
    """Record the verdict in the JSON body of the current request as the caller.

    Raises InvalidConfig if it is not a verdict, NotFound if the caller may not read the
    model, ScopeMissing if the caller may not edit it or is not a judge of its policy,
    GateRefused if the verdict does not match the version, and StoreUnavailable.
    """
    from mlflow.entities.model_registry import ModelVersionTag

    try:
        record = VerdictRecord.model_validate(access.read_own_json())
    except ValidationError as error:
        raise InvalidConfig(f"the body is not a verdict of the gate: {one_line(error)}") from None
    access.require_readable(record.model)
    if not access.may_act_on([record.model]):
        raise ScopeMissing(
            f"you may not record a verdict on {record.model}: this needs the permission to edit it"
        )
    with mlflow_stores.known_to_mlflow():
        registered, entry = mlflow_stores.model_and_version(record.model, record.version)
    who = access.caller()
    policy = policy_from_tags(record.model, registered.tags)
    if policy is not None:
        policy.require_judge(who.user, record.model)
    if not record.run_id:
        report = ""
    elif load_settings().mlflow_url or access.is_host_allowed():
        report = moves.console_page("/report", model=record.model, run=record.run_id)
    else:
        report = f"{record.run_id}/{tags.GATE_REPORT_FILE}"
    made = {"version": str(entry.version), "report": report}
    if policy is None and record.policy_digest != GatePolicy().digest:
        # The verdict must not count for a policy that names judges later.
        made["policy_digest"] = ""
    if record.state == "forced":
        # With a report, the event would count as a run of the gate.
        made |= dict.fromkeys(("report", "run_id", "report_digest", "policy_digest"), "")
    record = record.model_copy(update=made)
    _require_match(record, policy)
    store = trail.store()
    record.require_new(store)
    actor = who.user or record.actor or who.actor
    ensure_registered(store, entry, actor)
    machine = {"machine": record.machine} if record.machine not in ("", actor) else {}
    record.record(
        store,
        actor,
        is_tagged=True,
        via="mlflow",
        address=who.address,
        account=who.user,
        created=int(entry.creation_timestamp),
        **machine,
        **access.act_detail(),
    )
    for tag in starmap(ModelVersionTag, record.tags_after(entry.tags).items()):
        mlflow_stores.registry().set_model_version_tag(record.model, record.version, tag)
    trail.notify_agents(record.model)


def recorded_report(store: Store) -> bytes:
    """Return the gate report of ?run= on ?model=, if it is still the report of the
    verdict.

    Raises NotFound if the caller may not read the model, or if there is no verdict or
    no report, GateRefused if the report was replaced, and StoreUnavailable.
    """
    model = access.asked("model")
    run_id = access.asked("run")
    access.require_readable(model)
    events = store.counted_events(model, ("gate",))
    digests = {event.detail.get("run_id"): event.detail.get("report_digest") for event in events}
    digest = digests.get(run_id)
    if not digest:
        raise NotFound(f"no verdict on {model} is recorded with the report of run {run_id!r}")
    report = mlflow_stores.read_report(run_id)
    if hashlib.sha256(report).hexdigest() != digest:
        raise GateRefused(
            f"the gate report of run {run_id} was changed after the verdict on {model}; run the "
            "gate again"
        )
    return report


def _require_match(record: VerdictRecord, policy: GatePolicy | None) -> None:
    """Raise GateRefused if the verdict is on other files or by another policy, or if
    its report was replaced.
    """
    subject = f"{record.model} version {record.version}"
    again = f"run `onnxserve gate models:/{record.model}/{record.version}` again"
    try:
        now = mlflow_stores.files_digest(record.model, record.version)
    except NotFound:
        if policy is not None:
            raise
        # Without a policy, this server may lack access to the files. Agents compare the
        # files.
        now = record.files
    if now != record.files:
        judged = record.files[:12] or "unknown"
        compared = f"sha256 {now[:12]}, judged {judged}"
        raise GateRefused(
            f"the files of {subject} differ from the files that the gate judged ({compared}); "
            f"{again}"
        )
    if policy is None or record.state == "forced":
        return
    if record.policy_digest != policy.digest:
        raise GateRefused(
            f"the policy of {record.model} has changed since the gate judged version "
            f"{record.version}; {again}"
        )
    if (
        policy.approvals is not None
        and mlflow_stores.report_digest(record.run_id) != record.report_digest
    ):
        raise GateRefused(
            f"the report of the gate on {subject} in MLflow is not the report of this verdict; "
            f"{again}"
        )
