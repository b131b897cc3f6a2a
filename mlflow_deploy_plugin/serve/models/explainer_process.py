"""Explanations of predictions, from a process next to the worker that runs only while
it is used.

A single process with a low priority explains the predictions of all versions of the
worker.
"""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from mlflow_deploy_plugin.core.errors import (
    DeadlineExceeded,
    InferenceError,
    InvalidRequest,
    NotReady,
    OnnxserveError,
    TooManyRequests,
)
from mlflow_deploy_plugin.core.logs import configure_logging
from mlflow_deploy_plugin.core.processes.memory import limit_growth
from mlflow_deploy_plugin.core.processes.worker import Worker
from mlflow_deploy_plugin.serve.runtime.explained import Explanation
from mlflow_deploy_plugin.serve.runtime.feeds import Feeds

_START_SECONDS = 60.0
_GRACE_SECONDS = 5.0
"""The time after which the process, which should stop by itself, is killed."""
_NICENESS = 10
"""The niceness of the process, so that predictions have priority."""
_KEPT_ERRORS = (DeadlineExceeded, InferenceError, InvalidRequest, NotReady)


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
        self, timeout_seconds: float, max_waiting: int, idle_seconds: float = 300.0
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._max_waiting = max_waiting
        self._idle_seconds = idle_seconds
        self._worker = Worker(_prepare, kept_errors=_KEPT_ERRORS)
        self._turn = ThreadPoolExecutor(1, "onnxserve-explain")
        self._lock = threading.Lock()
        self._active = 0
        self._idle: threading.Timer | None = None

    def explain(self, folder: Path, feeds: Feeds, max_evals: int, seed: int) -> Explanation:
        """Return the explanation of these rows by the model in `folder`
        (`explainer.answer`).

        Raises:
            InvalidRequest, InferenceError: the model cannot be explained.
            DeadlineExceeded: the explanation took longer than `timeout_seconds`.
            TooManyRequests: `max_waiting` requests are already waiting.
            NotReady: the process cannot be started, is still starting, or exited during
                this request.
        """
        deadline = time.monotonic() + self._timeout_seconds
        with self._lock:
            if self._active >= self._max_waiting:
                raise TooManyRequests(
                    f"this worker has reached its limit of {self._active} explanations", 1
                )
            self._active += 1
            if self._idle is not None:
                self._idle.cancel()
        try:
            turn = self._turn.submit(self._call, folder, feeds, max_evals, seed, deadline)
            wait([turn], self._timeout_seconds)
            if turn.cancel():
                raise DeadlineExceeded(
                    "the request's deadline passed before the explainer was free"
                )
            # The process stops by itself, or is killed.
            return turn.result(3 * _GRACE_SECONDS)
        except TimeoutError:
            raise NotReady("the explainer process is still starting", 1) from None
        finally:
            with self._lock:
                self._active -= 1
                if self._active == 0:
                    self._idle = threading.Timer(
                        self._idle_seconds,
                        self._turn.submit,
                        [self._worker.end_if_idle, self._idle_seconds],
                    )
                    self._idle.daemon = True
                    self._idle.start()

    def close(self) -> None:
        """End the process. Requests are refused from now on."""
        with self._lock:
            if self._idle is not None:
                self._idle.cancel()
        self._worker.end()

    def _call(
        self, folder: Path, feeds: Feeds, max_evals: int, seed: int, deadline: float
    ) -> Explanation:
        """Start the process if it does not run, and let it explain the rows. Runs in
        the thread of `_turn`. Raises TimeoutError if the process starts too slowly.
        """
        try:
            self._worker.call(os.getpid, seconds=_START_SECONDS)
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise TimeoutError
            return self._worker.call(
                _explain, folder, feeds, max_evals, seed, seconds, seconds=seconds + _GRACE_SECONDS
            )
        except _KEPT_ERRORS:
            raise
        except OnnxserveError as error:
            raise NotReady(f"predictions cannot be explained: {error.message}", 1) from None


def _prepare() -> None:
    """Limit the process, and load the explainer."""
    configure_logging(os.environ.get("ONNXSERVE_LOG_FORMAT", "text"), "explainer")
    os.nice(_NICENESS)
    # A model may ask for any memory. The worker, which has the same models, must
    # survive.
    limit_growth()
    with suppress(OSError):  # macOS has no /proc.
        Path("/proc/self/oom_score_adj").write_text("1000")
    # Not within the time limit of the first request.
    from mlflow_deploy_plugin.serve.models import explainer  # noqa: F401


def _explain(folder: Path, feeds: Feeds, max_evals: int, seed: int, seconds: float) -> Explanation:
    # The worker does not need its libraries, such as the reader of Parquet.
    from mlflow_deploy_plugin.serve.models.explainer import answer

    return answer(folder, feeds, max_evals, seed, seconds)
