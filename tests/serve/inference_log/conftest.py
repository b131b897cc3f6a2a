"""An inference log for each test."""

from pathlib import Path

import pytest

from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog, open_log
from tests.support.inference_log import LogWriter


@pytest.fixture
def writer(tmp_path: Path) -> LogWriter:
    return LogWriter(tmp_path / "log")


@pytest.fixture
def log(writer: LogWriter) -> InferenceLog:
    return open_log(str(writer.root))
