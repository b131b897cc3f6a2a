"""`Follower` with a plain MLflow server, which has no record of approvals."""

from collections.abc import Iterator
from pathlib import Path

import mlflow.onnx
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.registry.tags import GATE_POLICY_TAG
from mlflow_deploy_plugin.core.statedir.files import SPEC
from mlflow_deploy_plugin.core.statedir.models import AgentState
from mlflow_deploy_plugin.serve.agent.fetch import MlflowRegistry, ModelCache
from mlflow_deploy_plugin.serve.agent.follow import Follower
from mlflow_deploy_plugin.serve.agent.resolver import PollPolicy, VersionResolver
from tests.support.clocks import Clock
from tests.support.fake_registry import AtOnce
from tests.support.models import adder
from tests.support.refusals import mentions
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import tracking_at

MODEL = "plain-adder"


@pytest.fixture(scope="module", autouse=True)
def client(mlflow_server: MlflowServer) -> Iterator[MlflowClient]:
    """Register a version with the aliases champion and shadow."""
    with tracking_at(mlflow_server.url):
        mlflow.onnx.log_model(adder(1.0), name="model", registered_model_name=MODEL)
        client = MlflowClient()
        for alias in ("champion", "shadow"):
            client.set_registered_model_alias(MODEL, alias, "1")
        yield client


def round_of_agent(folder: Path, uri: str) -> AgentState:
    """Let a new agent serve the URI, and return its state."""
    (folder / SPEC).write_text(f"name: e\nvariants: {{v1: {{model: '{uri}'}}}}\n")
    registry = MlflowRegistry(ModelCache(folder / "cache", folder))
    clock = Clock(0.0)
    polling = PollPolicy(2.0, True, clock)
    resolver = VersionResolver(registry, AtOnce(), AtOnce(), polling)
    return Follower(folder, resolver, clock).round()


@pytest.mark.parametrize(
    ("policy", "place", "is_served"),
    [
        ("approvals: {}", "@champion", False),
        ("{approvals: {}, gated_aliases: ['@Shadow']}", "@shadow", False),
        ("approvals: [", "@champion", False),
        ("approvals: {}", "@shadow", True),
        ("approvals: {}", "/1", True),
        ("gated_aliases: [champion]", "@champion", True),
    ],
)
def test_a_plain_server_has_no_approved_version(
    client: MlflowClient,
    tmp_path: Path,
    policy: str,
    place: str,
    is_served: bool,
) -> None:
    client.set_registered_model_tag(MODEL, GATE_POLICY_TAG, policy)
    state = round_of_agent(tmp_path, f"models:/{MODEL}{place}")
    assert state.fatal is not is_served
    if not is_served:
        assert len(state.error.splitlines()) == 1
        assert mentions(state.error, f"models:/{MODEL}{place}", "version 1", "policy")
