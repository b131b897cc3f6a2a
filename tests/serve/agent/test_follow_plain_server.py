"""`Follower` with a plain MLflow server, which has no record of approvals."""

import mlflow.onnx
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.statedir.files import SPEC
from mlflow_deploy_plugin.serve.agent.fetch import MlflowRegistry, ModelCache
from mlflow_deploy_plugin.serve.agent.follow import Follower
from mlflow_deploy_plugin.serve.agent.resolver import PollPolicy, VersionResolver
from tests.support.clocks import Clock
from tests.support.fake_registry import AtOnce
from tests.support.models import adder
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at


@pytest.mark.parametrize(
    ("policy", "place", "error"),
    [
        ("approvals: {}", "@champion", "requires approvals for @champion"),
        ("{approvals: {}, gated_aliases: ['@Champion']}", "@champion", "requires approvals"),
        ("approvals: [", "@champion", "policy"),
        ("approvals: {}", "/1", ""),
        ("gated_aliases: [champion]", "@champion", ""),
    ],
)
def test_plain_server_has_no_approved_versions_in_gated_places(
    mlflow_server, tmp_path, policy, place, error
):
    model = tmp_path.name
    (tmp_path / SPEC).write_text(f"name: e\nvariants: {{v1: {{model: 'models:/{model}{place}'}}}}")
    clock = Clock(0.0)
    registry = MlflowRegistry(ModelCache(tmp_path / "cache", tmp_path))
    resolver = VersionResolver(registry, AtOnce(), AtOnce(), PollPolicy(2.0, True, clock))
    with tracking_at(mlflow_server.url):
        mlflow.onnx.log_model(adder(1.0), name="model", registered_model_name=model)
        MlflowClient().set_registered_model_alias(model, "champion", "1")
        MlflowClient().set_registered_model_tag(model, "onnxserve.gate.policy", policy)
        state = Follower(tmp_path, resolver, clock).round()
    assert state.fatal is bool(error)
    assert len(state.error.splitlines()) == state.fatal
    assert mentions(state.error, error)
