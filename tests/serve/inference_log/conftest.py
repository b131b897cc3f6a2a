"""An inference log for each test."""

import pytest

from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from tests.support.inference_log import LogWriter


@pytest.fixture
def writer(tmp_path):
    return LogWriter(tmp_path / "log")


@pytest.fixture
def log(writer):
    return open_log(str(writer.root))
