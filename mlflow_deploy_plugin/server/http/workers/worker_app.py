"""What the connections of an accelerated worker share: the server, the threads, the costs, the limits."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.logs import configure_logging
from mlflow_deploy_plugin.server.assembly import Server, open_server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse
from mlflow_deploy_plugin.server.http.routes import handle_request
from mlflow_deploy_plugin.server.inference.limits import max_batch_rows, request_threads
from mlflow_deploy_plugin.settings import load_settings


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """gunicorn's settings as they hold for the connections of one worker.

    Attributes:
        request_seconds: `--timeout`: what a request may take to arrive, and a client to take something of its answer.
        keep_alive_seconds: `--keep-alive`: how long a connection may be idle.
        connections: `--worker-connections`: above that, new ones are refused.
        body_bytes: of all bodies that have not come whole, or are not answered; what goes beyond that is refused.
    """

    request_seconds: float = 60.0
    keep_alive_seconds: float = 75.0
    connections: int = 1000
    body_bytes: int = 256 * 1024 * 1024


class WorkerApp:
    """
    Args:
        may_be_inline: predictions do not wait for each other, so that one can be computed on the loop.
        threads: requests that are answered beside the loop at the same time.

    Attributes:
        limits: set by the worker before it listens.
        now: the loop's time, a tenth of a second old at most.
        held_bytes: see `Limits.body_bytes`.
        exchanges: streamed requests in hand (`http/streaming.py`).
        silent: connections that are the first to go for others, and since when they are (`http/workers/connection.py`).
    """

    def __init__(self, server: Server, may_be_inline: bool, threads: int) -> None:
        self.server = server
        # a pyfunc answers from another process, and may hang there
        self.costs = InlinePolicy(lambda: may_be_inline and not server.repository.has_pyfuncs)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="onnxserve-request")
        self.limits = ConnectionLimits()
        self.now = 0.0
        self.held_bytes = 0
        self.exchanges = 0
        self.silent: list[tuple[float, Any]] = []
        self._answer = partial(handle_request, server)

    def answer(self, request: RawRequest) -> RawResponse:
        """The answer; what it took is remembered."""
        return self.costs.measured(self._answer, request)

    def answer_on_loop(self, request: RawRequest) -> RawResponse:
        """As `answer`, for a request that is quick."""
        return self.costs.on_loop(self._answer, request)

    __call__ = answer  # gunicorn wants its application to be callable


def create_worker_app(state_dir: str) -> WorkerApp:
    """The application of one worker, serving what the state folder says; made after the fork.

    Raises:
        InvalidConfig: spec.yaml in the folder is not a spec.
    """
    settings = load_settings()
    configure_logging(settings, "worker")
    server = open_server(Path(state_dir))
    spec = server.spec
    batch = max_batch_rows(spec)
    return WorkerApp(
        server,
        # what waits for Redis must not hold the loop, and an answer from the cache says nothing of what others cost
        may_be_inline=batch == 1 and not spec.response_cache_bytes and not (spec.rate_limit and settings.redis_url),
        threads=request_threads(spec),
    )


# What a request will cost, by what requests like it have cost: whether it may be answered on the event loop.

INLINE_SECONDS = 0.001
_INLINE_BYTES = 65536
_CLASSES = 4096
_DOWN, _UP, _MOST = 0.5, 0.25, 8
_LEARN_EVERY = 8
_INSTANT = frozenset({"/ping", "/health", "/v2/health/live", "/v2/health/ready"})

_Class = tuple[str, str | None, int]


class InlinePolicy:
    """Average seconds by path, content type (which is what a protocol reads) and size of the body, in powers of two.

    A class that is not known yet, and what is no prediction (a page, an admin call that waits for other workers), is no
    matter for the loop. An average falls faster than it rises, since in a thread requests pay for their neighbours too;
    and one measurement counts as eight times the average at most: a busy machine takes the core away for milliseconds
    now and then, and three slow ones in a row say that it is the model. On the loop, where each microsecond counts, one
    in eight of the quick answers is learned from, and every slow one.

    Args:
        may_be_inline: false while predictions wait for each other (batching), or for another process.
    """

    def __init__(self, may_be_inline: Callable[[], bool]) -> None:
        self._may_be_inline = may_be_inline
        self._seconds: dict[_Class, float] = {}
        self._turn = 0

    def is_quick(self, request: RawRequest) -> bool:
        """Whether the answer is expected within `INLINE_SECONDS`."""
        path, headers, size = request.path, request.headers, len(request.body)
        seconds = self._seconds.get((path, headers.get("content-type"), size.bit_length()))
        if seconds is None:
            return path in _INSTANT and "content-encoding" not in headers
        is_small = size <= _INLINE_BYTES and "content-encoding" not in headers
        return seconds < INLINE_SECONDS and is_small and self._may_be_inline()

    def on_loop(self, answer: Callable[[RawRequest], RawResponse], request: RawRequest) -> RawResponse:
        """As `measured`, for a request that is quick."""
        response = answer(request)
        self._turn = turn = (self._turn + 1) % _LEARN_EVERY
        seconds = time.perf_counter() - request.arrived
        if turn == 0 or seconds >= INLINE_SECONDS:
            self._learn(request, response, seconds)
        return response

    def measured(self, answer: Callable[[RawRequest], RawResponse], request: RawRequest) -> RawResponse:
        """Answers, and remembers what that took."""
        began = time.perf_counter()
        response = answer(request)
        self._learn(request, response, time.perf_counter() - began)
        return response

    def _learn(self, request: RawRequest, response: RawResponse, seconds: float) -> None:
        key = request.path, request.headers.get("content-type"), len(request.body).bit_length()
        average = self._seconds.get(key)
        is_prediction = response.status == 200 and "X-Prediction-Id" in response.headers
        if not is_prediction and (average is None or seconds < average):
            return  # what is refused is quicker than what is answered, and its path is the caller's text
        if average is None:
            if len(self._seconds) >= _CLASSES:
                self._seconds.clear()
            self._seconds[key] = seconds
            return
        change = min(seconds, _MOST * average) - average
        self._seconds[key] = average + change * (_DOWN if change < 0 else _UP)
