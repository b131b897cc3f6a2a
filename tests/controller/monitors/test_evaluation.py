"""What is asked before a window is judged."""

from pathlib import Path

import pytest

from mlflow_deploy_plugin.controller.monitors.evaluation import judge_and_log
from mlflow_deploy_plugin.errors import RegistryUnavailable
from mlflow_deploy_plugin.inference_log import parse_window
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import MonitorSpec
from tests.support.tracking import tracking_at
from tests.support.waiting import free_port


def test_where_mlflow_is_down_it_is_said_before_anything_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("mlflow_deploy_plugin.controller.monitors.evaluation.count_rows", pytest.fail)
    window = parse_window("2013-07-01/1d")
    question = WindowRequest("flights", "daily", MonitorSpec(), window, 1, Settings(home=tmp_path))

    with tracking_at(f"http://127.0.0.1:{free_port()}"), pytest.raises(RegistryUnavailable, match="connection refused"):
        judge_and_log(question)
