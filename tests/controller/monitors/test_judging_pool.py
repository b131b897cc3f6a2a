"""The process that judges: it answers, and its hanging and crashing end with it."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlflow_deploy_plugin.controller.monitors.judging_pool import (
    JudgingProcess,
    ProcessCrashed,
    ProcessEnded,
)
from mlflow_deploy_plugin.errors import DeadlineExceeded, OnnxserveError, RegistryUnavailable
from tests.support.raising import raise_it
from tests.support.waiting import wait_until

SECONDS = 60.0
CONTROLLER = """
import os, sys, time
from mlflow_deploy_plugin.controller.monitors.judging_pool import JudgingProcess
if __name__ == "__main__":
    process = JudgingProcess()
    print(process.call(os.getpid, seconds=60), flush=True)
    process.call(time.sleep, 600, seconds=600)
"""


@pytest.fixture(scope="module")
def process() -> Iterator[JudgingProcess]:
    one = JudgingProcess()
    yield one
    one.end()


def test_it_is_kept_for_the_next_call_and_another_one_takes_its_place_where_it_hangs_or_dies(
    process: JudgingProcess,
) -> None:
    first = process.call(os.getpid, seconds=SECONDS)
    assert process.call(os.getpid, seconds=SECONDS) == first != os.getpid()

    with pytest.raises(DeadlineExceeded, match=r"it took longer than 0\.1 s and was ended"):
        process.call(time.sleep, 600, seconds=0.1)
    second = process.call(os.getpid, seconds=SECONDS)
    assert second != first

    with pytest.raises(ProcessCrashed, match="its process ended by signal SIGKILL, as where memory is short"):
        process.call(os.kill, second, signal.SIGKILL, seconds=SECONDS)
    assert process.call(os.getpid, seconds=SECONDS) != second


def test_what_is_raised_there_is_raised_here(process: JudgingProcess) -> None:
    with pytest.raises(OnnxserveError, match=r"^ValueError: "):
        process.call(math.sqrt, -1, seconds=SECONDS)
    with pytest.raises(OnnxserveError, match=r"^FileNotFoundError: .*/nowhere"):
        process.call(os.stat, "/nowhere", seconds=SECONDS)


def test_where_memory_is_short_it_is_ended_before_anybody_else_and_says_so_where_it_can(
    process: JudgingProcess,
) -> None:
    pid = process.call(os.getpid, seconds=SECONDS)

    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == 500
    with pytest.raises(OnnxserveError, match=r"^MemoryError: without a word$"):
        process.call(bytearray, 2**62, seconds=SECONDS)


def test_what_passes_by_itself_is_told_from_what_does_not(process: JudgingProcess) -> None:
    with pytest.raises(RegistryUnavailable, match=r"^MLflow does not answer$"):
        process.call(raise_it, RegistryUnavailable("MLflow does not answer"), seconds=SECONDS)


def test_it_ends_when_it_is_told_to() -> None:
    process = JudgingProcess()
    pid = process.call(os.getpid, seconds=SECONDS)
    timer = threading.Timer(0.3, process.end)
    timer.start()

    with pytest.raises(ProcessEnded):
        process.call(time.sleep, 600, seconds=SECONDS)

    timer.join()
    assert not psutil.pid_exists(pid)
    with pytest.raises(ProcessEnded):
        process.call(os.getpid, seconds=SECONDS)


def test_it_ends_with_the_controller_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "controller.py"
    script.write_text(CONTROLLER)
    controller = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    try:
        assert controller.stdout is not None
        pid = int(controller.stdout.readline())
        assert psutil.pid_exists(pid)
    finally:
        controller.kill()
        controller.communicate()

    def is_gone() -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        return True

    wait_until(is_gone, SECONDS, "the process of a killed controller has ended")
