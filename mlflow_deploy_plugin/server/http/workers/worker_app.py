"""The application of the fast worker: the state that its connections share, and the choice of loop or thread."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlflow_deploy_plugin.server.assembly import Server, open_worker
from mlflow_deploy_plugin.server.http.app import ServerApp
from mlflow_deploy_plugin.server.http.messages import RawResponse
from mlflow_deploy_plugin.server.http.plan import PlanTable
from mlflow_deploy_plugin.server.inference.limits import RequestThreads, max_batch_rows, request_threads
from mlflow_deploy_plugin.server.inference.messages import RawRequest
from mlflow_deploy_plugin.server.inference.pipeline import may_wait_for_limits

INLINE_SECONDS = 0.001
"""The limit for the event loop: a request that is expected to take longer is answered in a thread."""
_SWITCH_SECONDS = 0.0005
"""The time after which a thread with a large request hands the interpreter to the loop. With Python's default, small
requests waited 5 ms. The threaded worker keeps the default: a shorter time would only make it switch more often."""
_INLINE_BYTES = 65536
_MAX_CLASSES = 4096
_FALLING_WEIGHT, _RISING_WEIGHT, _MAX_RISE = 0.5, 0.25, 8
_INLINE_SAMPLING = 8
_ALWAYS_INLINE = frozenset({"/ping", "/health", "/v2/health/live", "/v2/health/ready"})

_RequestClass = tuple[str, str | None, int]
"""Path, content type (which is what a protocol reads), and size of the body in powers of two."""


class InlinePolicy:
    """Decides whether a request may be answered on the event loop, by what requests of its class took.

    An unknown class, and whatever is no prediction (a page, an admin call that waits for other workers), goes to a
    thread. The average of a class falls faster than it rises, since in a thread requests pay for their neighbours, too.
    One measurement counts as eight times the average at most: a busy machine takes the core away for milliseconds now
    and then, and only three slow ones in a row say that it is the model. On the loop, where each microsecond counts,
    the policy learns from one in eight of the quick answers, and from every slow one.

    Args:
        may_be_inline: returns False if the request waits for others (batching), or for another process.
    """

    def __init__(self, may_be_inline: Callable[[RawRequest], bool]) -> None:
        self._may_be_inline = may_be_inline
        self._seconds: dict[_RequestClass, float] = {}
        self._sample = 0

    def is_quick(self, request: RawRequest) -> bool:
        """Return True if the request is expected to take less than `INLINE_SECONDS`."""
        path, headers, size = request.path, request.headers, len(request.body)
        seconds = self._seconds.get((path, headers.get("content-type"), size.bit_length()))
        if seconds is None:
            return path in _ALWAYS_INLINE and "content-encoding" not in headers
        is_small = size <= _INLINE_BYTES and "content-encoding" not in headers
        return seconds < INLINE_SECONDS and is_small and self._may_be_inline(request)

    def run_inline(self, handle: Callable[[RawRequest], RawResponse], request: RawRequest) -> RawResponse | None:
        """Answer a request on the loop if it is quick; None if it is not."""
        if not self.is_quick(request):
            return None
        response = handle(request)
        self._sample = sample = (self._sample + 1) % _INLINE_SAMPLING
        seconds = time.perf_counter() - request.arrived
        if sample == 0 or seconds >= INLINE_SECONDS:
            self._learn(request, response, seconds)
        return response

    def run_in_thread(self, handle: Callable[[RawRequest], RawResponse], request: RawRequest) -> RawResponse:
        """Answer a request, and learn what it took, unless it may have waited for others."""
        is_telling = self._may_be_inline(request)
        began = time.perf_counter()
        response = handle(request)
        if is_telling:
            self._learn(request, response, time.perf_counter() - began)
        return response

    def _learn(self, request: RawRequest, response: RawResponse, seconds: float) -> None:
        key = request.path, request.headers.get("content-type"), len(request.body).bit_length()
        average = self._seconds.get(key)
        is_prediction = response.status == 200 and "X-Prediction-Id" in response.headers
        if not is_prediction and (average is None or seconds < average):
            return  # an error is quicker than an answer, and its path is the caller's text
        if average is None:
            if len(self._seconds) >= _MAX_CLASSES:
                self._seconds.clear()
            self._seconds[key] = seconds
            return
        change = min(seconds, _MAX_RISE * average) - average
        self._seconds[key] = average + change * (_FALLING_WEIGHT if change < 0 else _RISING_WEIGHT)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """gunicorn's settings for the connections of one worker.

    Attributes:
        request_seconds: `--timeout`: the time that a request may take to arrive, and a client to take a part of its
            response.
        keep_alive_seconds: `--keep-alive`: the time that a connection may be idle.
        connections: `--worker-connections`: above it, an idle connection is closed for a new one, or the new one
            refused.
        body_bytes: the bytes of all bodies that are incomplete or not answered; above it, requests are refused.
    """

    request_seconds: float = 60.0
    keep_alive_seconds: float = 75.0
    connections: int = 1000
    body_bytes: int = 256 * 1024 * 1024


class WorkerApp:
    """The application that gunicorn hands the fast worker.

    Args:
        may_be_inline: predictions do not wait for each other, so that one can be computed on the loop.
        threads: requests that are answered in threads at the same time.

    Attributes:
        limits: set by the worker before it listens.
        now: the loop's time, a tenth of a second old at most.
        buffered_bytes: see `ConnectionLimits.body_bytes`.
        streams: streamed requests that are being answered (`http/streaming.py`).
        blocked_connections: the connections whose clients have not taken all that was sent, by when that began.
        idle_connections: the connections to close first for new ones, and since when they are idle (`connection.py`).
    """

    def __init__(self, server: Server, may_be_inline: bool, threads: int) -> None:
        self.server = server

        def waits_for_nobody(request: RawRequest) -> bool:
            # a pyfunc answers from another process, and may hang there; a call of Redis must not hold the loop
            is_here = not server.repository.has_pyfuncs or self._plans.covers(request.path)
            return may_be_inline and is_here and not may_wait_for_limits(server, request)

        self.inline_policy = InlinePolicy(waits_for_nobody)
        self.pool = RequestThreads(threads)
        self.limits = ConnectionLimits()
        self.now = 0.0
        self.buffered_bytes = 0
        self.streams = 0
        self.blocked_connections: dict[Any, None] = {}
        self.idle_connections: list[tuple[float, Any]] = []
        self._plans = PlanTable(server)
        self._flask = ServerApp(server)

    def _handle(self, request: RawRequest) -> RawResponse:
        return self._plans.answer(request) or self._flask.handle(request)

    def handle(self, request: RawRequest) -> RawResponse:
        """Answer a request in a thread."""
        return self.inline_policy.run_in_thread(self._handle, request)

    def answer_inline(self, request: RawRequest) -> RawResponse | None:
        """Answer a quick request on the loop; None for another."""
        return self.inline_policy.run_inline(self._handle, request)

    __call__ = handle  # gunicorn wants its application to be callable


def create_worker_app(state_dir: str) -> WorkerApp:
    """Return the application of one worker, serving what the state folder says. Called after the fork.

    Raises:
        InvalidConfig: spec.yaml in the folder is not a spec.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    server = open_worker(state_dir)
    spec = server.spec
    return WorkerApp(
        server,
        # a response from the cache does not tell what others cost
        may_be_inline=max_batch_rows(spec) == 1 and not spec.response_cache_bytes,
        threads=request_threads(spec),
    )
