"""Explanations of predictions, from a process beside the worker that is there only while it is asked.

SHAP takes seconds to import, and 250 MB; so the process is started by the first request, which waits for it, and ends
when nobody has asked for some minutes. One process explains for every version of the worker.
"""

import importlib.util
import logging
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from mlflow_deploy_plugin.errors import InvalidArtifact, NotInstalled, NotReady, TooManyRequests
from mlflow_deploy_plugin.runtime import Feeds
from mlflow_deploy_plugin.server.models.side_messages import SideMessage
from mlflow_deploy_plugin.server.models.side_process import SideProcess, unless_refused

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "mlflow_deploy_plugin.pyfunc.explain")
_GRACE_SECONDS = 5.0
"""The process gives up by itself; if it has not by then, it is killed."""


class ExplainerClient:
    """Asks the process, and keeps it as long as it is needed.

    Args:
        answer_seconds: what one explanation may take, its turn and the start of the process included.
        most_waiting: requests in this worker that are explained or wait for it; above it they are refused, so that
            threads are left for predictions.
        idle_seconds: without a question for so long, the process ends.
    """

    def __init__(
        self,
        answer_seconds: float,
        most_waiting: int,
        idle_seconds: float = 300.0,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._answer_seconds = answer_seconds
        self._most_waiting = most_waiting
        self._idle_seconds = idle_seconds
        self._command = command
        self._starting = threading.Lock()
        self._counting = threading.Lock()
        self._asked = 0
        self._process: SideProcess | None = None
        self._idle: threading.Timer | None = None

    @property
    def pid(self) -> int | None:
        """The process that explains now; None: there is none."""
        process = self._process
        return process.pid if process else None

    def explain(self, folder: Path, feeds: Feeds, max_evals: int, seed: int) -> SideMessage:
        """What `pyfunc.explainer.Explainer.answer` says of these rows of the model in `folder`.

        Raises:
            NotInstalled: shap is missing.
            InvalidRequest, InferenceError: the model cannot be explained.
            DeadlineExceeded: not within `answer_seconds`.
            TooManyRequests: too many wait already.
            NotReady: the process cannot be started, is still being started, or has ended over this question.
        """
        deadline = time.perf_counter() + self._answer_seconds
        if importlib.util.find_spec("shap") is None:
            raise NotInstalled(
                "explanations need shap, which is not installed where this server runs: "
                "pip install 'mlflow-onnxserve[explain]'"
            )
        self._enter()
        try:
            process = self._started(deadline)
            fields = {"folder": str(folder), "max_evals": max_evals, "seed": seed}
            left = max(0.0, deadline - time.perf_counter())
            question = SideMessage("explain", {**fields, "seconds": left}, {"feeds": feeds})
            return unless_refused(process.request(question, deadline))
        finally:
            self._leave()

    def close(self) -> None:
        """Ends the process; the next question would start another."""
        with self._counting:
            process, self._process = self._process, None
            if self._idle is not None:
                self._idle.cancel()
        if process is not None:
            process.close()

    def _enter(self) -> None:
        with self._counting:
            if self._asked >= self._most_waiting:
                raise TooManyRequests(
                    f"{self._asked} requests are being explained in this worker, or wait for it; no more wait", 1
                )
            self._asked += 1
            if self._idle is not None:
                self._idle.cancel()

    def _leave(self) -> None:
        with self._counting:
            self._asked -= 1
            if self._asked == 0:
                self._idle = threading.Timer(self._idle_seconds, self._end_if_idle)
                self._idle.daemon = True
                self._idle.start()

    def _end_if_idle(self) -> None:
        with self._counting:
            if self._asked or self._process is None:
                return
            process, self._process = self._process, None
        logger.info("nobody has asked for an explanation for %.0f s; process %s ends", self._idle_seconds, process.pid)
        process.close()

    def _started(self, deadline: float) -> SideProcess:
        """The process, which the first to ask starts and all wait for."""
        if not self._starting.acquire(timeout=max(0.0, deadline - time.perf_counter())):
            raise NotReady("the process that explains is still being started", 1)
        try:
            process = self._process
            if process is None:
                process = self._process = SideProcess(self._command, self._answer_seconds + _GRACE_SECONDS, "explainer")
                process.start(max(0.0, deadline - time.perf_counter()))
                logger.info("process %s explains", process.pid)
            return process
        except InvalidArtifact as error:
            self._process = None
            raise NotReady(f"predictions cannot be explained: {error.message}") from None
        finally:
            self._starting.release()
