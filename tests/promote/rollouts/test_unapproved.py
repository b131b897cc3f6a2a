"""The end of the time for traffic without an approval. The servers of the endpoints are
not running.
"""

from datetime import UTC, datetime, timedelta

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import DeploymentFailed
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import add_variant, apply_config, new_endpoint
from mlflow_deploy_plugin.core.store.audit import move_detail
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.promote.rollouts.commands import end_unapproved
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ship.deployments.unapproved import as_json, permitted_answers
from tests.support.clocks import Clock
from tests.support.tracking import tracking_at

POLICY = "gated_aliases: [champion]\napprovals: {groups: [risk]}\nunapproved: {share: 5%, for: 1h}"


@pytest.fixture
def clock():
    return Clock(datetime(2026, 11, 26, 12, tzinfo=UTC))


@pytest.fixture
def store(tmp_path, clock):
    opened = open_store(f"sqlite:///{tmp_path}/store.db", clock)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def registry(tmp_path_factory, new_database):
    """A registry with the model credit, which requires approvals, and its copy, which
    does not.
    """
    with tracking_at(new_database(tmp_path_factory.mktemp("registry"))):
        client = MlflowClient()
        client.create_registered_model("credit")
        client.create_model_version("credit", "s3://bucket/credit")
        client.create_registered_model("credit-copy")
        yield client


@pytest.fixture(autouse=True)
def policy(registry):
    registry.set_registered_model_tag("credit", "onnxserve.gate.policy", POLICY)


class Written(Deployments):
    """Deployments that only store the traffic. The server of the endpoint `broken` does
    not answer.
    """

    def set_traffic(self, endpoint, weights, *_, **__):
        if endpoint == "broken":
            raise DeploymentFailed("the server of broken does not answer")
        stored = self.store.require_endpoint(endpoint)
        traffic = {f"variants.{name}.weight": weight for name, weight in weights.items()}
        self.store.replace_spec(apply_config(stored.spec, traffic))


@pytest.fixture
def deployments(store, tmp_path):
    return Written(store, Settings(home=tmp_path), lambda line: None)


def deploy(deployments, name, model_uri):
    """Store an endpoint that sends 5 % of its requests to this model."""
    store = deployments.store
    (deployments.settings.deployments_path / name).mkdir(parents=True)
    champion = new_endpoint(name, "models:/credit@champion", variant="main")
    before = store.add_endpoint("onnxserve", apply_config(champion, {"variants.main.weight": 95}))
    spec = apply_config(add_variant(before.spec, "trial", model_uri), {"variants.trial.weight": 5})
    store.replace_spec(spec, unapproved=as_json(permitted_answers(store, before, spec)))


def ended(deployments, name):
    end_unapproved(deployments, deployments.place(name), "the controller")
    return deployments.store.require_endpoint(name).spec.variants["trial"].weight == 0


@pytest.mark.parametrize(
    "model_uri", ["models:/credit/1", "models:/credit-copy/1", "s3://bucket/credit"]
)
def test_traffic_ends_with_its_time(model_uri, deployments, clock):
    deploy(deployments, "credit", model_uri)
    clock.now += timedelta(minutes=59)
    assert not ended(deployments, "credit")
    clock.now += timedelta(minutes=1)
    assert ended(deployments, "credit")


def test_tampered_move_does_not_extend_the_time(deployments, clock):
    deploy(deployments, "credit", "models:/credit/1")
    moved = move_detail("@champion", "", "digest")
    deployments.store.record("alias", model="credit", version="1", detail=moved)
    clock.now += timedelta(hours=1)
    assert ended(deployments, "credit")


def test_promotion_counts_while_mlflow_is_down(deployments, clock, free_port, monkeypatch):
    deploy(deployments, "credit", "models:/credit/1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    clock.now += timedelta(hours=1)
    moved = move_detail("@champion", "", "digest")
    deployments.store.record("alias", model="credit", version="1", detail=moved)
    with tracking_at(f"http://127.0.0.1:{free_port}"):
        assert not ended(deployments, "credit")


def test_unreadable_policy_does_not_extend_the_time(registry, deployments, clock):
    deploy(deployments, "credit", "models:/credit/1")
    registry.set_registered_model_tag(
        "credit", "onnxserve.gate.policy", "approvals: {}\nunapproved: 5"
    )
    clock.now += timedelta(hours=1)
    assert ended(deployments, "credit")


def test_failing_endpoint_does_not_affect_others(deployments, clock, caplog):
    for name in ("broken", "credit"):
        deploy(deployments, name, "models:/credit/1")
    clock.now += timedelta(hours=1)
    assert ended(deployments, "credit")
    assert "the server of broken does not answer" in caplog.text
