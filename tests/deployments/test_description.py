"""What is shown of a deployment, from what is wanted of it and seen of its server."""

from datetime import UTC, datetime

import pytest

from mlflow_deploy_plugin.deployments import Deployment, Observation, ObservedEndpoint
from mlflow_deploy_plugin.deployments.description import describe, describe_endpoint
from mlflow_deploy_plugin.spec import add_variant, new_endpoint
from mlflow_deploy_plugin.statedir import LoadedVariant, RefusedVersion, WorkerState
from mlflow_deploy_plugin.store import Endpoint

AT = datetime(2026, 11, 20, tzinfo=UTC)
SPEC = add_variant(new_endpoint("flights", "models:/X@a", variant="champion"), "challenger", "models:/X@b")
ENDPOINT = Endpoint("flights", "onnxserve", SPEC, AT, AT)
LOADED = {"flights": {"champion": LoadedVariant(version="1"), "challenger": LoadedVariant(version="1")}}


def refused(variant: str) -> RefusedVersion:
    return RefusedVersion(endpoint="flights", variant=variant, model="X", version="2", cause="gate", reason="no")


@pytest.mark.parametrize(
    ("refusals", "shown"),
    [
        ((), {"champion": "it is wrong", "challenger": "it is wrong"}),  # the registry is away, for all of them
        ((refused("challenger"),), {"champion": "", "challenger": "it is wrong"}),
        ((refused("champion"), refused("challenger")), {"champion": "it is wrong", "challenger": "it is wrong"}),
    ],
)
def test_a_version_that_is_refused_is_the_error_of_its_own_deployment(
    refusals: tuple[RefusedVersion, ...], shown: dict[str, str]
) -> None:
    worker = WorkerState(pid=1, generation=1, endpoints=LOADED)
    seen = Observation("running", workers=(worker,), refused=refusals, registry_error="it is wrong")

    assert {name: describe(Deployment(name, ENDPOINT, seen))["error"] for name in SPEC.variants} == shown
    assert describe_endpoint(ObservedEndpoint(ENDPOINT, seen))["error"] == "it is wrong"
