"""Whether the gate lets a version take a stage or an alias, by its tags, its model's policy and the audit trail."""

from typing import Any

from mlflow_deploy_plugin.errors import InvalidConfig, StoreUnavailable
from mlflow_deploy_plugin.gate.policy import policy_from_tags
from mlflow_deploy_plugin.registry.tags import GATE_POLICY_DIGEST_TAG, GateStatus, gate_status_of
from mlflow_deploy_plugin.registry.transitions import ROLLED_BACK_TAG
from mlflow_deploy_plugin.ui.returning import is_rollback_target
from mlflow_deploy_plugin.ui.trail import AuditTrail


def gate_decision(trail: AuditTrail, model: Any, version: Any, place: str, holder: str) -> tuple[str, str]:
    """(why the gate refuses, why it does not), one of them empty; both where nothing is gated.

    Args:
        model / version: MLflow's entities.
        place: a stage, or @alias.
        holder: the version that is there now, or an empty text.
    """
    number, what = str(version.version), f"version {version.version} of {model.name}"
    try:
        policy = policy_from_tags(model.name, model.tags)
    except InvalidConfig as error:  # nobody can tell what is gated
        return f"{what} was not moved to {place}: {error.message}", ""
    is_alias = place.startswith("@")
    if policy is None or not (policy.gates_alias(place[1:]) if is_alias else policy.gates_stage(place)):
        return "", ""
    standing = gate_status_of(version.tags)
    judged_by = version.tags.get(GATE_POLICY_DIGEST_TAG, policy.digest)
    if standing.state == "passed" and judged_by != policy.digest:
        standing = GateStatus(False, "", "it passed another policy than the model has now")
    if standing.passed:
        return "", f"gate {standing.state}: {standing.reason}"
    if holder == number:
        return "", "it is there already"
    if holder and ROLLED_BACK_TAG not in version.tags and _is_rollback_target(trail, model.name, number, place, holder):
        return "", f"back to what stood there before version {holder}; its gate: {standing.reason}"
    return (
        f"{what} may not become {place}: {standing.reason}. "
        f"`onnxserve promote {model.name} {number} --to {place}` runs the gate and says what is missing",
        "",
    )


def _is_rollback_target(trail: AuditTrail, model: str, version: str, place: str, holder: str) -> bool:
    try:
        return is_rollback_target(trail.store(), model, version, place, holder)
    except StoreUnavailable:
        return False
