"""A snapshot of an endpoint with its server's counts."""

from mlflow_deploy_plugin.core.errors import InvalidConfig, Refused
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.promote.rollouts.snapshot import served_model, take_snapshot
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.server_metrics import (
    MetricsByServer,
    parse_server_metrics,
)
from tests.support.metrics_page import PAGE
from tests.support.refusals import refused


def test_counters_come_from_readable_servers(store):
    spec = new_endpoint("f", "models:/X/Production", variant="main")
    stored = store.add_endpoint("onnxserve", spec)
    metrics: MetricsByServer = {"f-1": parse_server_metrics(PAGE), "f-2": Refused("it answers 500")}
    observed = ObservedEndpoint(stored, Observation("running"))

    snapshot = take_snapshot(observed, metrics)

    ((server, counted),) = snapshot.counters.items()
    assert server == "f-1"
    assert counted["main", "6"].requests == 100
    assert counted["main", "6"].errors == 5
    assert snapshot.unread.split(": ") == ["f-2", "it answers 500"]
    assert take_snapshot(observed).counters == {}
    assert take_snapshot(observed).unread == ""


def test_unregistered_model_is_refused(store, tmp_path):
    of_files = store.add_endpoint("onnxserve", new_endpoint("f", str(tmp_path)))
    with refused(InvalidConfig, "'f'", "does not serve a registered model"):
        served_model(ObservedEndpoint(of_files, Observation("running")))
