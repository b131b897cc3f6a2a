"""Explanations of predictions, from a process next to the worker that runs only while it is used.

SHAP takes seconds and 250 MB to import. One process explains for every version of the worker.
"""

import importlib.util
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlflow_deploy_plugin.errors import InvalidArtifact, NotInstalled, NotReady, TooManyRequests
from mlflow_deploy_plugin.protocols import SideMessage
from mlflow_deploy_plugin.runtime.feeds import Feeds
from mlflow_deploy_plugin.server.models.side_process import SideProcess

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "mlflow_deploy_plugin.pyfunc", "explain")
_GRACE_SECONDS = 5.0
"""The process gives up by itself; if it has not by then, it is killed."""


class ExplainerClient:
    """Starts the explaining process at the first request and sends it requests.

    Args:
        timeout_seconds: the time for one explanation, with the wait for its turn and the start of the process.
        max_waiting: the most requests in this worker that are explained or wait.
        idle_seconds: the process ends after this time without a request.
    """

    def __init__(
        self, timeout_seconds: float, max_waiting: int, idle_seconds: float = 300.0, command: Sequence[str] = COMMAND
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
        """Return what `pyfunc.explainer.answer` computes for these rows of the model in `folder`.

        Raises:
            NotInstalled: shap is missing.
            InvalidRequest, InferenceError: the model cannot be explained.
            DeadlineExceeded: it took longer than `timeout_seconds`.
            TooManyRequests: `max_waiting` requests wait already.
            NotReady: the process cannot be started, is still starting, or has ended during this request.
        """
        deadline = time.perf_counter() + self._timeout_seconds
        if importlib.util.find_spec("shap") is None:
            raise NotInstalled(
                "explanations need shap, which is not installed where this server runs: "
                "pip install 'mlflow-onnxserve[explain]'"
            )
        with self._admit():
            process, left = self._start(deadline), max(0.0, deadline - time.perf_counter())
            fields = {"folder": str(folder), "max_evals": max_evals, "seed": seed, "seconds": left}
            return process.request(SideMessage("explain", fields, {"feeds": feeds}), deadline)

    def close(self) -> None:
        """End the process; the next request would start another."""
        with self._lock:
            process, self._process = self._process, None
            if self._idle is not None:
                self._idle.cancel()
        if process is not None:
            process.close()

    @contextmanager
    def _admit(self) -> Iterator[None]:
        """Bound the requests that wait, and keep the process while there is one."""
        with self._lock:
            if self._active >= self._max_waiting:
                raise TooManyRequests(
                    f"{self._active} requests are being explained in this worker, or wait for it; no more wait", 1
                )
            self._active += 1
            if self._idle is not None:
                self._idle.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1
                if self._active == 0:
                    self._idle = threading.Timer(self._idle_seconds, self._end_if_idle)
                    self._idle.daemon = True
                    self._idle.start()

    def _end_if_idle(self) -> None:
        with self._lock:
            if self._active or self._process is None:
                return
            process, self._process = self._process, None
        logger.info("no explanation was requested for %.0f s; process %s ends", self._idle_seconds, process.pid)
        process.close()

    def _start(self, deadline: float) -> SideProcess:
        """Return the process, which the first request starts and all others wait for."""
        if not self._starting.acquire(timeout=max(0.0, deadline - time.perf_counter())):
            raise NotReady("the process that explains is still being started", 1)
        try:
            process = self._process
            if process is None or process.has_failed:  # perhaps after the first request had stopped waiting for it
                process = self._process = SideProcess(
                    self._command, self._timeout_seconds + _GRACE_SECONDS, "explainer"
                )
                process.start(max(0.0, deadline - time.perf_counter()))
                logger.info("process %s explains", process.pid)
            return process
        except InvalidArtifact as error:
            self._process = None
            raise NotReady(f"predictions cannot be explained: {error.message}") from None
        finally:
            self._starting.release()
