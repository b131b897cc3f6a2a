"""The description of a rollout for users, and the checks before a rollout starts."""

from dataclasses import replace

import pytest

from mlflow_deploy_plugin.core.errors import AlreadyExists, InvalidConfig, NotFound, NotReady
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import add_variant, apply_config, new_endpoint
from mlflow_deploy_plugin.promote.rollouts.commands import (
    RolloutRequest,
    command_rollout,
    describe_rollout,
    last_rollout,
    require_controller,
    stall_reason,
    start_rollout,
)
from mlflow_deploy_plugin.promote.rollouts.leadership import rollouts_lease_name
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from tests.support.refusals import mentions, refused
from tests.support.rollouts import PLAN

LEASE = "rollouts/here"


def test_rollout_needs_a_live_controller(store):
    with refused(NotReady, "was not started", "`onnxserve controller`", "--wait"):
        require_controller(store, LEASE, patience=0)

    killed = store.acquire_lease(LEASE, "killed", seconds=0)
    assert killed is not None
    with pytest.raises(NotReady, match="no controller"):
        require_controller(store, LEASE, patience=0)

    store.release_lease(killed)
    store.acquire_lease(LEASE, "alive", seconds=60)
    require_controller(store, LEASE, patience=0)


def test_stalled_rollout_has_a_reason(store, tmp_path):
    settings = Settings(home=tmp_path)
    deployments = Deployments(store, settings, lambda line: None)
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/flight-delay/1"))
    assert mentions(stall_reason(deployments, "flights"), "'flights'", "another machine")

    (settings.deployments_path / "flights").mkdir(parents=True)
    assert mentions(stall_reason(deployments, "flights"), "no controller")

    assert store.acquire_lease(rollouts_lease_name(deployments.place("flights")), "beside", 60)
    assert stall_reason(deployments, "flights") == ""


def test_rollout_in_unreachable_cluster_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    store.add_endpoint(
        "onnxserve:/kubernetes/ml", new_endpoint("flights", "models:/flight-delay/1")
    )
    deployments = Deployments(store, Settings(home=tmp_path), lambda line: None)
    with refused(NotReady, "flights", "no Kubernetes cluster"):
        start_rollout(deployments, "flights", RolloutRequest(to="2"))


def test_second_rollout_of_an_endpoint_is_refused(store, tmp_path):
    spec = add_variant(
        new_endpoint("flights", "models:/flight-delay/1"), "candidate", "models:/flight-delay/2"
    )
    store.add_endpoint("onnxserve", apply_config(spec, {"variants.candidate.weight": 10}))
    store.add_rollout("flights", PLAN.to_json(), "stepping")
    deployments = Deployments(store, Settings(home=tmp_path), lambda line: None)
    with refused(AlreadyExists, "onnxserve rollout abort flights"):
        start_rollout(deployments, "flights", RolloutRequest(to="2"))


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"steps": "0,50"}, "--steps"),
        ({"every": "5"}, "--every"),
        ({"abort_on": "errors>1%"}, "--abort-on"),
    ],
)
def test_invalid_rollout_options_are_refused(fields, option):
    with pytest.raises(InvalidConfig, match=option):
        RolloutRequest(to="2", **fields)  # type: ignore[arg-type]


def test_shown_evidence_is_at_most_all(store):
    judged = {"figures": "many requests failed", "log_evidence": 500.0, "log_evidence_needed": 4.9}
    begun = store.add_rollout("flights", PLAN.to_json(), "stepping")

    text = describe_rollout(replace(begun, figures={"criteria": {"error_rate>1%": judged}}))

    assert mentions(text, "many requests failed", "100%")


def test_impossible_rollout_commands_are_refused(store, tmp_path):
    deployments = Deployments(store, Settings(home=tmp_path), lambda line: None)
    with refused(NotFound, "'flights'", "no rollout"):
        last_rollout(store, "flights")

    store.add_rollout("flights", PLAN.to_json(), "stepping")
    with refused(InvalidConfig, "'flights'", "resumed", "stepping"):
        command_rollout(deployments, "flights", "resume")
