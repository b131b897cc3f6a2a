"""Explanations of predictions, from a process next to the worker that runs only while
it is used.

A single process with a low priority explains the predictions of all versions of the
worker.
"""

import logging
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from mlflow_deploy_plugin.core.errors import (
    InvalidArtifact,
    NotReady,
    TooManyRequests,
)
from mlflow_deploy_plugin.serve.models.side_process import SideProcess
from mlflow_deploy_plugin.serve.protocols.side_messages import SideMessage
from mlflow_deploy_plugin.serve.runtime.feeds import Feeds

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "mlflow_deploy_plugin.serve.pyfunc", "explain")
_GRACE_SECONDS = 5.0
"""The time after which the process, which should stop by itself, is killed."""


class ExplainerClient:
    """A client that starts the explainer process at the first request and sends
    requests to it.

    Args:
        timeout_seconds: the time limit for an explanation, including the wait for a
            turn and the process start.
        max_waiting: the maximum number of requests in this worker that wait or are
            being explained.
        idle_seconds: the time without a request after which the process ends.
    """

    def __init__(
        self,
        timeout_seconds: float,
        max_waiting: int,
        idle_seconds: float = 300.0,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._max_waiting = max_waiting
        self._idle_seconds = idle_seconds
        self._command = command
        self._starting = threading.Lock()
        self._lock = threading.Lock()
        self._active = 0
        self._process: SideProcess | None = None
        self._idle: threading.Timer | None = None

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process else None

    def explain(self, folder: Path, feeds: Feeds, max_evals: int, seed: int) -> SideMessage:
        """Return the result of `serve.pyfunc.explainer.answer` for these rows of the
        model in `folder`.

        Raises:
            InvalidRequest, InferenceError: the model cannot be explained.
            DeadlineExceeded: the explanation took longer than `timeout_seconds`.
            TooManyRequests: `max_waiting` requests are already waiting.
            NotReady: the process cannot be started, is still starting, or exited during
                this request.
        """
        deadline = time.perf_counter() + self._timeout_seconds
        with self._lock:
            if self._active >= self._max_waiting:
                raise TooManyRequests(
                    f"this worker has reached its limit of {self._active} explanations", 1
                )
            self._active += 1  # The process does not end while requests are active.
            if self._idle is not None:
                self._idle.cancel()
        try:
            # The first request starts the process, and other requests wait for the
            # start.
            if not self._starting.acquire(timeout=max(0.0, deadline - time.perf_counter())):
                raise NotReady("the explainer process is still starting", 1)
            try:
                process = self._process
                # It may have failed after the first request's timeout.
                if process is None or process.has_failed:
                    process = SideProcess(
                        self._command, self._timeout_seconds + _GRACE_SECONDS, "explainer"
                    )
                    self._process = process
                    process.start(max(0.0, deadline - time.perf_counter()))
                    logger.info("process %s explains", process.pid)
            except InvalidArtifact as error:
                self._process = None
                raise NotReady(f"predictions cannot be explained: {error.message}") from None
            finally:
                self._starting.release()
            seconds = max(0.0, deadline - time.perf_counter())
            fields = {
                "folder": str(folder),
                "max_evals": max_evals,
                "seed": seed,
                "seconds": seconds,
            }
            return process.request(SideMessage("explain", fields, {"feeds": feeds}), deadline)
        finally:
            with self._lock:
                self._active -= 1
                if self._active == 0:
                    self._idle = threading.Timer(self._idle_seconds, self._end_if_idle)
                    self._idle.daemon = True
                    self._idle.start()

    def close(self) -> None:
        """End the process; the next request starts a new process."""
        with self._lock:
            process = self._process
            self._process = None
            if self._idle is not None:
                self._idle.cancel()
        if process is not None:
            process.close()

    def _end_if_idle(self) -> None:
        """End the process unless a request has begun meanwhile."""
        with self._lock:
            if self._active or self._process is None:
                return
            process = self._process
            self._process = None
        logger.info(
            "no explanation was requested for %.0f s; process %s ends",
            self._idle_seconds,
            process.pid,
        )
        process.close()
