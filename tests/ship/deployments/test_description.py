"""Tests of the description of a deployment, from its desired state and the state of its
server.
"""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.spec.document import add_variant, apply_config, new_endpoint
from mlflow_deploy_plugin.core.statedir.models import (
    LoadedVariant,
    RefusedVersion,
    WantedEndpoint,
    WantedVariant,
    WorkerState,
)
from mlflow_deploy_plugin.core.store.store import Endpoint
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation
from mlflow_deploy_plugin.ship.deployments.description import describe, describe_endpoint
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployment
from tests.support.models import write_model
from tests.support.tracking import tracking_at

AT = datetime(2026, 11, 20, tzinfo=UTC)
SPEC = add_variant(
    new_endpoint("flights", "models:/X@a", variant="champion"), "challenger", "models:/X@b"
)
ENDPOINT = Endpoint("flights", "onnxserve", SPEC, AT, AT)
LOADED = {
    "flights": {"champion": LoadedVariant(version="1"), "challenger": LoadedVariant(version="1")}
}


def refused(variant):
    return RefusedVersion(
        endpoint="flights", variant=variant, model="X", version="2", cause="gate", reason="no"
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("refusals", "shown"),
    [
        # The registry is down for all variants.
        ((), {"champion": "it is wrong", "challenger": "it is wrong"}),
        ((refused("challenger"),), {"champion": "", "challenger": "it is wrong"}),
        (
            (refused("champion"), refused("challenger")),
            {"champion": "it is wrong", "challenger": "it is wrong"},
        ),
    ],
)
def test_refused_version_is_the_error_of_its_deployment(refusals, shown):
    worker = WorkerState(pid=1, generation=1, endpoints=LOADED)
    seen = Observation("running", workers=(worker,), refused=refusals, registry_error="it is wrong")

    assert {
        name: describe(Deployment(name, ENDPOINT, seen))["error"] for name in SPEC.variants
    } == shown
    assert describe_endpoint(ObservedEndpoint(ENDPOINT, seen))["error"] == "it is wrong"


@pytest.fixture(scope="module")
def registry(tmp_path_factory, new_database):
    """Create a registry with two versions of `shop`. The alias `live` is at version 2,
    whose parity is `warned`.
    """
    folder = tmp_path_factory.mktemp("registry")
    with tracking_at(new_database(folder)):
        client = MlflowClient()
        client.create_registered_model("shop")
        for number, state in (("1", "proven"), ("2", "warned")):
            section = {"parity": {"state": state}, "provenance": {"dataset_digest": f"d-{number}"}}
            client.create_model_version("shop", str(write_model(folder / number, section=section)))
        client.set_registered_model_alias("shop", "live", "2")
        yield client


def described_pod(wanted, state="running", model="models:/shop@live"):
    """Return the description of a deployment whose files exist only in a pod."""
    endpoint = Endpoint("shop", "onnxserve:/kubernetes/ml", new_endpoint("shop", model), AT, AT)
    served = None if wanted is None else WantedEndpoint(variants={"shop": wanted})
    return describe(Deployment("shop", endpoint, Observation(state, wanted=served)))


def wanted_version(number, aspects):
    folder = Path("/only/in/the/pod")
    return WantedVariant(
        model_uri="models:/shop@live", model="shop", version=number, folder=folder, aspects=aspects
    )


@pytest.mark.parametrize(
    ("wanted", "parity", "digest"),
    [
        # The state of the pod is not readable, so that the registry's version is used.
        (None, "warned", "d-2"),
        # Version 1 is served, although the alias has moved.
        (wanted_version("1", {}), "proven", "d-1"),
        (
            wanted_version("1", {"flavor": "onnxserve", "parity": "proven", "run_id": "r-1"}),
            "proven",
            "",
        ),
    ],
    ids=["unseen", "unreported", "reported"],
)
def test_aspects_of_a_version_in_a_pod_are_shown(registry, wanted, parity, digest):
    described = described_pod(wanted)
    shown = {key: described[key] for key in ("flavor", "parity", "run_id", "dataset_digest")}
    assert shown == {
        "flavor": "onnxserve",
        "parity": parity,
        "run_id": "r-1",
        "dataset_digest": digest,
    }


def test_unknown_or_stopped_deployment_has_no_details(registry):
    unknown = described_pod(None, model="models:/gone/1")
    stopped = described_pod(None, "stopped")
    assert [
        description["flavor"] + description["parity"] + description["run_id"]
        for description in (unknown, stopped)
    ] == ["", ""]


@pytest.mark.parametrize(
    ("weights", "shares"), [((60, 0), (100.0, 0.0)), ((1, 2), (33.33, 66.67)), ((95, 5), (95, 5))]
)
def test_share_is_the_received_traffic(weights, shares):
    variants = dict(zip(SPEC.variants, weights, strict=True))
    config = {f"variants.{name}.weight": weight for name, weight in variants.items()}
    endpoint = Endpoint("flights", "onnxserve", apply_config(SPEC, config), AT, AT)
    described = describe_endpoint(ObservedEndpoint(endpoint, Observation("stopped")))
    assert tuple(deployment["share"] for deployment in described["deployments"].values()) == shares
    assert described["traffic"] == variants
