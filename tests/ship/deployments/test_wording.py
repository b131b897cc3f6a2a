"""The wording of the most frequent messages about deployments."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.ship.deployments.backends.targets import parse_target
from mlflow_deploy_plugin.ship.deployments.batch_prediction import read_rows
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments


@pytest.fixture
def deployments(tmp_path: Path) -> Deployments:
    """Return the deployments of a store with the endpoint `flights`, which has no running server."""
    store = open_store(f"sqlite:///{tmp_path}/onnxserve.db")
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/X/1", {"server.port": 8123}))
    return Deployments(store, Settings(home=tmp_path), lambda line: None)


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (
            lambda _: parse_target("onnxserve:/podman"),
            "unknown target 'onnxserve:/podman'; the targets are onnxserve, onnxserve:/docker, "
            "onnxserve:/kubernetes/NAMESPACE (a namespace has letters a-z, digits and -)",
        ),
        (lambda flights: flights.update_endpoint("nope", {}), "there is no endpoint 'nope'; there are flights"),
        (
            lambda flights: flights.update_endpoint("flights", {"server.prot": "1"}),
            "unknown config key 'server.prot'; did you mean 'server.port'?",
        ),
        (
            lambda flights: flights.update_endpoint("flights", {"monitors.m.time_zone": "Berlin"}),
            "time_zone 'Berlin' is not known; a name like Europe/Berlin is expected",
        ),
        (
            lambda flights: flights.update_endpoint("flights", {"monitors.m.retrain.project": "/nowhere"}),
            "monitors.m.retrain.project: the folder /nowhere does not exist; the folder of an MLflow "
            "project or a Git URI is expected",
        ),
        (
            lambda flights: flights.update_endpoint("flights", {"traffic": "flights=100"}),
            "traffic: {NAME: WEIGHT} is expected, not 'flights=100'; on the command line: -C traffic.NAME=WEIGHT",
        ),
        (
            lambda flights: flights.set_traffic("flights", {"other": 50}),
            "the endpoint 'flights' has no deployment 'other'; it has flights",
        ),
        (
            lambda flights: flights.set_traffic("flights", {"flights": 200}),
            "variants.flights.weight: at most 100 is expected (got 200)",
        ),
        (
            lambda flights: flights.create_endpoint("flights", {}),
            "endpoint 'flights' already exists: update or delete it",
        ),
        (
            lambda flights: flights.create_endpoint("taxis", {"server.port": "8123"}),
            "port 8123 belongs to the deployment 'flights': set another port with -C server.port=…",
        ),
        (
            lambda flights: flights.remove_monitor("flights", "daily", ""),
            "endpoint 'flights' has no monitor 'daily'; onnxserve monitor add makes one",
        ),
        (
            lambda _: list(read_rows(io.BytesIO(b"a,b\n1\n"), "rows.csv", "csv", 2).batches),
            "rows.csv, line 2: 1 fields; the header has 2",
        ),
        (
            lambda _: list(read_rows(io.BytesIO(b'[1]\n{"a": 1}\n'), "rows.jsonl", "jsonl", 2).batches),
            "rows.jsonl, line 2: some lines are JSON objects, and others are not",
        ),
    ],
)
def test_the_message_of_a_refusal(
    deployments: Deployments, cause: Callable[[Deployments], object], message: str
) -> None:
    with pytest.raises(OnnxserveError) as refused:
        cause(deployments)
    assert str(refused.value) == message
