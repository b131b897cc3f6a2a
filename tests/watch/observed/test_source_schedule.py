"""The controller's readings of sources."""

import threading

import pytest

from mlflow_deploy_plugin.core.spec.document import validate_spec
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.leases import held_lease
from mlflow_deploy_plugin.serve.inference_log.source_state import read_source_state
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.observed.source_schedule import read_sources
from tests.support.waiting import wait_until
from tests.watch.observed.test_reading import rows, write


@pytest.fixture
def reading(observed, tmp_path, monkeypatch):
    """Reads the source of the endpoint every second until the test ends."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(observed.settings.home_path))
    observed.observe(every="1s")
    said = []
    store = open_store(f"sqlite:///{tmp_path}/store.db")
    store.add_endpoint("onnxserve:/observed", validate_spec(observed.document))
    over = threading.Event()
    deployments = Deployments(store, observed.settings, said.append)

    def run():
        with held_lease(store, "monitors", lambda holder: None) as keeper:
            read_sources(deployments, keeper, over, look_seconds=0.1)

    thread = threading.Thread(target=run)
    thread.start()
    yield store, said
    over.set()
    thread.join()
    store.close()


def state_of(observed):
    return read_source_state(locate_log(observed.settings.inference_log), "churn")


def test_controller_reads_new_rows_of_a_source(observed, reading):
    write(observed, "a.parquet", rows(0, 10))
    wait_until(lambda: state_of(observed).rows == 10)

    write(observed, "b.parquet", rows(10, 20))

    wait_until(lambda: state_of(observed).rows == 20)


def test_controller_reports_a_broken_source_once(observed, reading):
    _, said = reading
    wait_until(lambda: said)
    write(observed, "a.parquet", rows(0, 10))
    wait_until(lambda: state_of(observed).rows == 10)

    assert len(said) == 1
