"""What the connections of an accelerated worker share: the server, the threads, the costs, the limits."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.logs import configure_logging
from mlflow_deploy_plugin.server.assembly import Server, open_server
from mlflow_deploy_plugin.server.http.cost import Costs
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse
from mlflow_deploy_plugin.server.http.routes import answer
from mlflow_deploy_plugin.server.inference.limits import answering_threads, largest_batch
from mlflow_deploy_plugin.settings import load_settings


@dataclass(frozen=True, slots=True)
class Limits:
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


class Front:
    """
    Args:
        may_be_inline: predictions do not wait for each other, so that one can be computed on the loop.
        threads: requests that are answered beside the loop at the same time.

    Attributes:
        limits: set by the worker before it listens.
        now: the loop's time, a tenth of a second old at most.
        held_bytes: see `Limits.body_bytes`.
        exchanges: streamed requests in hand (`http/exchange.py`).
        silent: connections that are the first to go for others, and since when they are (`http/connection.py`).
    """

    def __init__(self, server: Server, may_be_inline: bool, threads: int) -> None:
        self.server = server
        # a pyfunc answers from another process, and may hang there
        self.costs = Costs(lambda: may_be_inline and not server.repository.has_pyfuncs)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="onnxserve-request")
        self.limits = Limits()
        self.now = 0.0
        self.held_bytes = 0
        self.exchanges = 0
        self.silent: list[tuple[float, Any]] = []
        self._answer = partial(answer, server)

    def answer(self, request: RawRequest) -> RawResponse:
        """The answer; what it took is remembered."""
        return self.costs.measured(self._answer, request)

    def answer_on_loop(self, request: RawRequest) -> RawResponse:
        """As `answer`, for a request that is quick."""
        return self.costs.on_loop(self._answer, request)

    __call__ = answer  # gunicorn wants its application to be callable


def create_front(state_dir: str) -> Front:
    """The application of one worker, serving what the state folder says; made after the fork.

    Raises:
        InvalidConfig: spec.yaml in the folder is not a spec.
    """
    settings = load_settings()
    configure_logging(settings, "worker")
    server = open_server(Path(state_dir))
    spec = server.spec
    batch = largest_batch(spec)
    return Front(
        server,
        # what waits for Redis must not hold the loop, and an answer from the cache says nothing of what others cost
        may_be_inline=batch == 1 and not spec.response_cache_bytes and not (spec.rate_limit and settings.redis_url),
        threads=answering_threads(spec),
    )
