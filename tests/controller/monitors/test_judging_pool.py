"""The processes that judge yield to everything else, and tell an outage from a failure."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_deploy_plugin.controller.monitors.judging_pool import judging_worker
from mlflow_deploy_plugin.errors import OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.processes import Worker
from tests.support.raising import raise_it

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
    with pytest.raises(OnnxserveError, match=r"^MemoryError: without a word$"):
        worker.call(bytearray, 2**62, seconds=SECONDS)


def test_what_passes_by_itself_is_told_from_what_does_not(worker: Worker) -> None:
    with pytest.raises(RegistryUnavailable, match=r"^MLflow does not answer$"):
        worker.call(raise_it, RegistryUnavailable("MLflow does not answer"), seconds=SECONDS)
