"""The checks before a window is judged."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_deploy_plugin.controller.monitors.evaluation import judge_and_log, judging_worker
from mlflow_deploy_plugin.errors import OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.inference_log import parse_window
from mlflow_deploy_plugin.monitoring.result import WindowRequest
from mlflow_deploy_plugin.processes import Worker
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import MonitorSpec
from tests.support.ecs import read_line
from tests.support.raising import raise_it
from tests.support.refusals import refused
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


SECONDS = 60.0


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    one = judging_worker()
    yield one
    one.end()


def test_it_yields_to_servers_and_when_memory_is_short_it_is_ended_first(worker: Worker) -> None:
    pid = worker.call(os.getpid, seconds=SECONDS)

    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == 500
    assert os.getpriority(os.PRIO_PROCESS, pid) >= 10
    with refused(OnnxserveError, "MemoryError"):
        worker.call(bytearray, 2**62, seconds=SECONDS)


def test_what_passes_by_itself_is_told_from_what_does_not(worker: Worker) -> None:
    with refused(RegistryUnavailable, "MLflow"):
        worker.call(raise_it, RegistryUnavailable("MLflow does not answer"), seconds=SECONDS)


@pytest.mark.long
def test_its_lines_are_those_of_the_controller_and_an_outage_is_not_told_at_every_try(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONNXSERVE_LOG_FORMAT", "ecs")
    one = judging_worker()
    one.call(logging.getLogger("urllib3.connectionpool").warning, "Retrying", seconds=SECONDS)
    one.call(logging.warning, "memory is short", seconds=SECONDS)
    one.end()
    (line,) = map(read_line, capfd.readouterr().err.splitlines())
    assert (line["service.node.role"], line["message"]) == ("monitor", "memory is short")
