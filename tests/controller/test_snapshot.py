"""An endpoint at one moment, with what its server has counted."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from mlflow_deploy_plugin.controller.snapshot import take_snapshot
from mlflow_deploy_plugin.deployments import Observation, ObservedEndpoint
from mlflow_deploy_plugin.spec import new_endpoint
from mlflow_deploy_plugin.store import open_store
from tests.support.metrics_page import PAGE, serving


def test_the_counters_are_those_of_the_endpoints_server(tmp_path: Path, free_port: int) -> None:
    with closing(open_store(f"sqlite:///{tmp_path / 'onnxserve.db'}")) as store:
        stored = store.add_endpoint("onnxserve", new_endpoint("f", "models:/X/Production", variant="main"))
    with serving({"/metrics": PAGE}) as url:
        one = ObservedEndpoint(stored, Observation("running", url=url))
        counters = take_snapshot(one, with_counters=True).counters

        assert counters is not None
        assert (counters["main", "6"].requests, counters["main", "6"].errors) == (100, 5)
        assert take_snapshot(one).counters is None
    away = replace(one, observation=Observation("running", url=f"http://127.0.0.1:{free_port}"))
    assert take_snapshot(away, with_counters=True).counters is None
