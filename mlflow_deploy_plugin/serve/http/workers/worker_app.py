"""The application of the fast worker: the state that connections share, and the choice
between loop and thread.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from mlflow_deploy_plugin.serve.assembly import open_worker
from mlflow_deploy_plugin.serve.http.app import ServerApp
from mlflow_deploy_plugin.serve.http.plan import PlanTable
from mlflow_deploy_plugin.serve.http.request_limits import ConnectionLimits
from mlflow_deploy_plugin.serve.http.responses import RawResponse
from mlflow_deploy_plugin.serve.http.routes import endpoint_of
from mlflow_deploy_plugin.serve.inference.limits import (
    RequestThreads,
    max_batch_rows,
    request_threads,
)
from mlflow_deploy_plugin.serve.inference.pipeline import may_wait_for_limits
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.messages import RawRequest

INLINE_SECONDS = 0.001
"""A request that is expected to take longer than this is answered in a thread instead
of on the event loop.
"""
_SWITCH_SECONDS = 0.0005
"""The longest time a thread runs before the loop gets the interpreter; with the
default, small requests waited 5 ms.
"""
_LOADING_THREADS = 64
_INLINE_BYTES = 65536
_MAX_CLASSES = 4096
_FALLING_WEIGHT = 0.5
_RISING_WEIGHT = 0.25
_MAX_RISE = 8
_INLINE_SAMPLING = 8
_ALWAYS_INLINE = frozenset({"/key", "/ping", "/health", "/v2/health/live", "/v2/health/ready"})

_RequestClass = tuple[str, str | None, int]
"""The path, the content type, and the size of the body in powers of two."""


class InlinePolicy:
    """A policy that decides from earlier requests of the same class if a request is
    answered on the event loop.

    An unknown class is answered in a thread. The average of a class falls faster than
    it rises, because requests in threads slow each other down. A measurement counts as
    at most eight times the average, so that a model counts as slow only after three
    slow responses in a row. `may_be_inline` returns False if the request waits for a
    batch or for another process.
    """

    def __init__(self, may_be_inline: Callable[[RawRequest], bool]) -> None:
        self.may_be_inline = may_be_inline
        self._seconds: dict[_RequestClass, float] = {}

    def is_quick(self, request: RawRequest) -> bool:
        """Return True if the request is expected to take less than a millisecond, and
        waits for nothing.
        """
        path = request.path
        headers = request.headers
        size = len(request.body)
        key = path, headers.get("content-type"), size.bit_length()
        seconds = self._seconds.get(key)
        if seconds is None:
            return path in _ALWAYS_INLINE and "content-encoding" not in headers
        is_small = size <= _INLINE_BYTES and "content-encoding" not in headers
        return seconds < INLINE_SECONDS and is_small and self.may_be_inline(request)

    def learn(self, request: RawRequest, response: RawResponse, seconds: float) -> None:
        """Update the average time of the request's class. Errors only raise it."""
        key = request.path, request.headers.get("content-type"), len(request.body).bit_length()
        average = self._seconds.get(key)
        is_prediction = response.status == 200 and "X-Prediction-Id" in response.headers
        if not is_prediction and (average is None or seconds < average):
            # Ignore errors: an error is faster than a prediction, and the caller may
            # choose any path.
            return
        if average is None:
            if len(self._seconds) >= _MAX_CLASSES:
                self._seconds.clear()
            self._seconds[key] = seconds
            return
        change = min(seconds, _MAX_RISE * average) - average
        weight = _FALLING_WEIGHT if change < 0 else _RISING_WEIGHT
        self._seconds[key] = average + change * weight


class WorkerApp:
    """The application of the fast worker.

    Args:
        may_be_inline: True if predictions do not wait for each other, so that the loop
            can compute a prediction.

    Attributes:
        limits: the connection limits, set by the worker before it listens.
        now: the loop's time, at most 0.1 s old.
        buffered_bytes: see `ConnectionLimits.body_bytes`.
        blocked_connections: the connections whose clients do not read, the longest
            blocked first.
        idle_connections: the connections to close first for new connections, with their
            `idle_since` (`connection.py`).
    """

    def __init__(self, server: Server, may_be_inline: bool, threads: int) -> None:
        self.server = server

        def waits_for_nobody(request: RawRequest) -> bool:
            # The loop must not wait for a pyfunc, whose process may hang, for a model
            # that is loaded, or for Redis.
            repository = server.repository
            needs_plan = repository.has_pyfuncs or repository.lazy is not None
            is_here = not needs_plan or self._plans.covers(request.path)
            return may_be_inline and is_here and not may_wait_for_limits(server, request)

        self.inline_policy = InlinePolicy(waits_for_nobody)
        self._sample = 0
        self.pool = RequestThreads(threads)
        self._loading_pool = self.pool
        if server.repository.lazy is not None:
            self._loading_pool = RequestThreads(_LOADING_THREADS)
        self.limits = ConnectionLimits(server.spec.request_timeout_seconds)
        self.now = 0.0
        self.buffered_bytes = 0
        self.streams = 0
        # The module of `HttpConnection` imports this module.
        self.blocked_connections: dict[Any, None] = {}
        self.idle_connections: list[tuple[float, Any]] = []
        self._plans = PlanTable(server)
        self._flask = ServerApp(server)

    def _handle(self, request: RawRequest) -> RawResponse:
        return self._plans.answer(request) or self._flask.handle(request)

    def threads_for(self, request: RawRequest) -> RequestThreads:
        """Return the threads that answer a request. Requests that wait until a model is
        loaded do not take the threads of other requests.
        """
        lazy = self.server.repository.lazy
        if lazy is not None and lazy.must_load(endpoint_of(request.path)):
            return self._loading_pool
        return self.pool

    def handle(self, request: RawRequest) -> RawResponse:
        """Answer a request in a thread. The time is recorded unless the request may
        wait for others.
        """
        may_be_inline = self.inline_policy.may_be_inline(request)
        began = time.perf_counter()
        response = self._handle(request)
        if may_be_inline:
            self.inline_policy.learn(request, response, time.perf_counter() - began)
        return response

    def answer_inline(self, request: RawRequest) -> RawResponse | None:
        """Answer a quick request on the loop; return None for other requests. Every
        eighth response is measured.
        """
        if not self.inline_policy.is_quick(request):
            return None
        response = self._handle(request)
        sample = (self._sample + 1) % _INLINE_SAMPLING
        self._sample = sample
        seconds = time.perf_counter() - request.arrived
        if sample == 0 or seconds >= INLINE_SECONDS:
            self.inline_policy.learn(request, response, seconds)
        return response

    __call__ = handle  # gunicorn requires a callable application.


def create_worker_app(state_dir: str) -> WorkerApp:
    """Return the application of a worker. Call it after the fork. Raises InvalidConfig
    if spec.yaml is invalid.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    server = open_worker(state_dir)
    spec = server.spec
    return WorkerApp(
        server,
        # The time of a cached response does not predict the time of other responses.
        may_be_inline=max_batch_rows(spec) == 1 and not spec.response_cache_bytes,
        threads=request_threads(spec),
    )
