"""The alerts of the controller about MLflow's server."""

import os
from contextlib import closing
from datetime import timedelta

import pytest
import requests

from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.core.store.database import open_store, utc_now
from mlflow_deploy_plugin.watch.controller.service import announce_lateness
from tests.support.clocks import Clock
from tests.support.refusals import mentions
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import tracking_at


@pytest.fixture
def store(tmp_path):
    """A store four hours after the start of its server."""
    clock = Clock(utc_now() + timedelta(hours=4))
    with closing(open_store(f"sqlite:///{tmp_path}/store.db", clock)) as opened:
        yield opened


def test_late_checkpoint_is_an_alert(store, tmp_path, new_database):
    with tracking_at(new_database(tmp_path)):
        announce_lateness(store)
    assert Alerts(store).recent() == []
    variables = {"ONNXSERVE_STORE_URI": str(store._engine.url), "ONNXSERVE_HOME": str(tmp_path)}
    server = MlflowServer(tmp_path, app="onnxserve", variables={**os.environ, **variables})
    server.start()
    try:
        with tracking_at(server.url):
            assert requests.get(f"{server.url}/onnxserve/history.jsonl", timeout=30).ok
            for _ in range(2):
                announce_lateness(store)
    finally:
        server.kill()
    (alert,) = Alerts(store).recent()
    assert mentions(alert.detail["lines"][0], "newest checkpoint")
