"""A few processes that judge, kept for one another's windows."""

from collections.abc import Callable, Sequence
from queue import Empty, LifoQueue
from typing import Any

from mlflow_deploy_plugin.controller.monitors.evaluation import LoggedResult, count_rows, judge_and_log
from mlflow_deploy_plugin.controller.monitors.judging_pool import JudgingProcess
from mlflow_deploy_plugin.controller.monitors.labels import count_labels
from mlflow_deploy_plugin.monitoring.question import Question


class JudgingPool:
    """Judges in processes of its own; made anew for each time that the controller's lease is had."""

    def __init__(self, processes: int, seconds: float) -> None:
        self._seconds = seconds
        self._all = [JudgingProcess() for _ in range(processes)]
        self._free: LifoQueue[JudgingProcess] = LifoQueue()  # the last one is still warm
        for process in self._all:
            self._free.put(process)

    def judge(self, asked: Question) -> LoggedResult:
        """As `judge_and_log`; raises as `JudgingProcess.call`."""
        answer: LoggedResult = self._call(judge_and_log, asked)
        return answer

    def count(self, asked: Question) -> int:
        """As `count_rows`; raises likewise."""
        return int(self._call(count_rows, asked))

    def count_labels(self, asked: Sequence[Question]) -> list[int]:
        """As `labels.count_labels`; raises likewise."""
        counts: list[int] = self._call(count_labels, asked)
        return counts

    def rest(self) -> None:
        """Ends processes that have had nothing to do for a while."""
        free = []
        try:
            while True:
                free.append(self._free.get_nowait())
        except Empty:
            pass
        for process in reversed(free):
            process.rest()
            self._free.put(process)

    def end(self) -> None:
        """Ends all, also those at work."""
        for process in self._all:
            process.end()

    def _call(self, function: Callable[..., object], asked: Question | Sequence[Question]) -> Any:
        process = self._free.get()
        try:
            return process.call(function, asked, seconds=self._seconds)
        finally:
            self._free.put(process)
