"""MLmodel folders of MLflow's onnx flavor, a case for the follower, and a spool for the
shipper.
"""

import pytest

from mlflow_deploy_plugin.serve.agent.ship import Shipper
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter
from tests.support.clocks import Clock
from tests.support.fake_registry import Case, World
from tests.support.models import write_model


@pytest.fixture
def make_model():
    return lambda folder, model_id="m-1": write_model(folder, model_id=model_id)


@pytest.fixture
def case(tmp_path, make_model):
    (tmp_path / "state").mkdir()
    return Case(tmp_path / "state", World(make_model, tmp_path / "versions"))


@pytest.fixture
def follower(case):
    """Return a follower that makes version 1 served."""
    return case.serving("1")


@pytest.fixture
def writer(tmp_path):
    writer = CaptureWriter(tmp_path / "spool")
    yield writer
    writer.close()


@pytest.fixture
def shipper(tmp_path):
    return Shipper(tmp_path / "spool", str(tmp_path / "log"))


@pytest.fixture
def clock():
    return Clock(0.0)


@pytest.fixture
def patient(tmp_path, clock):
    return Shipper(tmp_path / "spool", str(tmp_path / "log"), clock)
