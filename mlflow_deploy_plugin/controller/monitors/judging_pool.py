"""Processes that judge windows, so that a judgement that hangs or crashes harms nothing else.

Evidently takes seconds to import and half a gigabyte. So a process is kept for the next window, and ended when it has
been idle for a while or has judged so many windows that its leaked memory matters. It ends itself when the controller
is gone, however that ended: a window is never logged by two processes at a time.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from mlflow_deploy_plugin.controller.monitors.evaluation import (
    EvaluatedWindow,
    count_labels,
    count_rows,
    judge_and_log,
)
from mlflow_deploy_plugin.controller.work import TRANSIENT_ERRORS
from mlflow_deploy_plugin.monitoring import WindowRequest
from mlflow_deploy_plugin.processes import Worker, WorkerPool

IDLE_SECONDS = 300.0
_MAX_CALLS = 50
_NICE = 10
_OOM_SCORE = "500"
"""The kernel adds it to the process's score when memory is short: it is killed before servers and the controller."""


def judging_worker() -> Worker:
    """Return a worker whose process yields to everything else on this machine; transient errors keep their class."""
    return Worker(_prepare, _MAX_CALLS, TRANSIENT_ERRORS)


class JudgingPool:
    """A few processes that judge; a controller makes a new pool each time it gets the lease."""

    def __init__(self, processes: int, seconds: float) -> None:
        self._seconds = seconds
        self._workers = WorkerPool([judging_worker() for _ in range(processes)])

    def judge(self, request: WindowRequest) -> EvaluatedWindow:
        """Call `judge_and_log` in a process. Raises as `Worker.call`, like the following."""
        result: EvaluatedWindow = self._workers.call(judge_and_log, request, seconds=self._seconds)
        return result

    def count(self, request: WindowRequest) -> int:
        """Call `count_rows` in a process."""
        return int(self._workers.call(count_rows, request, seconds=self._seconds))

    def count_labels(self, requests: Sequence[WindowRequest]) -> list[int]:
        """Call `count_labels` in a process."""
        counts: list[int] = self._workers.call(count_labels, requests, seconds=self._seconds)
        return counts

    def rest(self) -> None:
        """End processes that have been idle for a while."""
        self._workers.end_idle(IDLE_SECONDS)

    def end(self) -> None:
        """End all processes, also those at work."""
        self._workers.end()


def _prepare() -> None:
    os.nice(_NICE)  # servers on this machine go first
    with contextlib.suppress(OSError):  # not on every system
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    warnings.simplefilter("ignore")  # libraries' advice to their callers
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    from mlflow_deploy_plugin.registry import set_service_timeouts  # not in the process that starts this one

    set_service_timeouts()
