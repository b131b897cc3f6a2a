"""Reasons that block a button of the console now. The page does not offer it then, and the action refuses.

Each text is that of the part that would refuse: lifecycle, rollback, promotion, gate. An empty text means that nothing
blocks the button. A reason that only an attempt can find, as the gate's verdict, is not among them.
"""

from collections.abc import Mapping
from typing import Any

from mlflow_deploy_plugin.controller import rollback_refusal
from mlflow_deploy_plugin.deployments import ObservedEndpoint, rollout_traffic_refusal
from mlflow_deploy_plugin.errors import InvalidConfig, RegistryUnavailable
from mlflow_deploy_plugin.gate import GatePolicy, require_mlflow_artifact
from mlflow_deploy_plugin.registry import StageOrAlias, gate_status_of, redact_addresses, rolled_back_refusal
from mlflow_deploy_plugin.store import Store

ALREADY_THERE = "it is there already"


def server_blocker(observed: ObservedEndpoint) -> str:
    """Return why the endpoint must be started first.

    A server that is started from here would keep the credentials of the person who pressed the button.
    """
    if observed.observation.state in ("running", "starting"):
        return ""
    name = observed.endpoint.spec.name
    return f"the server of {name} does not run: `onnxserve start {name}` first"


def traffic_blocker(store: Store, observed: ObservedEndpoint) -> str:
    """Return why the weights cannot be changed."""
    refused = rollout_traffic_refusal(store, observed.endpoint.spec.name)
    return server_blocker(observed) or (refused.reason if refused else "")


def rollback_blocker(store: Store, observed: ObservedEndpoint, registry: Any) -> str:
    """Return why the endpoint cannot be rolled back; `registry` is MLflow's registry store."""
    try:
        return server_blocker(observed) or redact_addresses(rollback_refusal(store, observed, registry))
    except RegistryUnavailable:  # the button then says so
        return ""


def promotion_blocker(
    model: str, version: str, place: StageOrAlias, tags: Mapping[str, str], policy: GatePolicy, holders: frozenset[str]
) -> str:
    """Return why the version cannot be promoted to a stage or alias, which has the versions `holders` now."""
    is_settled = holders == {version} and (gate_status_of(tags).passed or not policy.gates(place))
    return rolled_back_refusal(model, version, place, tags) or (ALREADY_THERE if is_settled else "")


def gate_blocker(policy: GatePolicy, has_account: bool) -> str:
    """Return why the gate cannot be run for versions of a model with this policy."""
    if has_account and "evaluation" not in policy.skip:
        try:
            require_mlflow_artifact(policy.evaluation.dataset)
        except InvalidConfig as error:
            return error.message
    return ""
