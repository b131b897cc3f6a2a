"""The limits of a worker: requests in flight, requests of one client in a period, and threads for requests.

The pipeline calls `acquire` before it decodes anything, and `release` when the response is made.

In memory the rate is a sliding window of two counters, as in the `limits` library. That library's own storage in memory
is not used: it starts a thread every 10 ms that looks at every client, and never bounds their number.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil
from typing import Any

from mlflow_deploy_plugin.errors import TooManyRequests
from mlflow_deploy_plugin.server.inference.circuit_breaker import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    CircuitBreaker,
    import_redis,
)
from mlflow_deploy_plugin.server.inference.messages import RawRequest
from mlflow_deploy_plugin.spec import ServerSpec
from mlflow_deploy_plugin.statedir import KeyEntry

MAX_CLIENTS = 65_536
"""Clients that a worker's memory holds; the one that was idle for longest is dropped."""

_BUSY_RETRY_SECONDS = 1
_EDGE_SECONDS = 0.001
_GPU_BATCH_SIZE = 32

RateLimiter = Callable[[bytes], float | None]
"""Counts a request of the client with this key; returns None if it may pass, else the seconds until one would."""


class RequestLimits:
    """The limits of one worker.

    Args:
        max_concurrent_requests: requests in flight; None for any number.
        rate: of the requests of each client, as the spec has it; empty for no limit.
        rate_header: the header (lower case) that identifies the client; without it, its address does.
        count_refused: called with the reason of each refusal: concurrency, rate or key.
        open_rate: opens the limiter of a rate: of `rate`, and of those of keys.
        may_block: a limit, or one that a key may have, asks another machine: an event loop must not wait for it.

    Attributes:
        is_active: if false, `acquire` and `release` need not be called: there is no limit but those of keys.
    """

    def __init__(
        self,
        max_concurrent_requests: int | None = None,
        rate: str = "",
        rate_header: str | None = None,
        count_refused: Callable[[str], None] = lambda reason: None,
        open_rate: Callable[[str], RateLimiter] = lambda rate: open_rate_limiter(rate, None),
        may_block: bool = False,
    ) -> None:
        self.may_block = may_block
        self.is_active = max_concurrent_requests is not None or bool(rate)
        self._allowed = max_concurrent_requests
        self._rate_text = rate
        self._rate = open_rate(rate) if rate else None
        self._rate_header = rate_header
        self._count_refused = count_refused
        self._open_rate = open_rate
        self._of_keys: dict[tuple[str, str], tuple[RateLimiter, bytes]] = {}
        self._lock = threading.Lock()
        self._in_flight = 0

    def acquire(self, request: RawRequest) -> None:
        """Admit one request; the caller has to `release` it, however it ends. A refused request is not released.

        Its client is its caller, once that is authenticated, else the address that it came from.

        Raises:
            TooManyRequests: with the seconds after which to try again.
        """
        if self._rate is not None:
            named = request.headers.get(self._rate_header) if self._rate_header else None
            client = f"address {request.caller or request.client}" if named is None else f"key {named}"
            if (seconds := self._rate(_digest(client))) is not None:
                self._count_refused("rate")
                raise TooManyRequests(
                    f"more than {self._rate_text} from one caller; ask again later", max(1, ceil(seconds))
                )
        if self._allowed is not None:
            with self._lock:
                is_full = self._in_flight >= self._allowed
                if not is_full:
                    self._in_flight += 1
            if is_full:
                self._count_refused("concurrency")
                raise TooManyRequests(
                    f"{self._allowed} requests are being answered here already; ask again later", _BUSY_RETRY_SECONDS
                )

    def check_key(self, request: RawRequest, key: KeyEntry) -> None:
        """Count a request by the rates of its key: once, even if its plan fails and the general way asks again.

        Raises:
            TooManyRequests: with the seconds after which to try again.
        """
        refusal = request.key_refusal
        if refusal is None:
            name, refusal = key.name, ()
            for rate in key.limits:
                if (opened := self._of_keys.get((name, rate))) is None:
                    opened = self._open_rate(rate), _digest(f"limit {rate} of {name}")
                    opened = self._of_keys.setdefault((name, rate), opened)
                if (seconds := opened[0](opened[1])) is not None:
                    refusal = rate, seconds
                    self._count_refused("key")
                    break
            request.key_refusal = refusal
        if refusal:
            rate, seconds = refusal
            raise TooManyRequests(f"the key {key.name!r} may ask for {rate}; ask again later", max(1, ceil(seconds)))

    def release(self) -> None:
        if self._allowed is not None:
            with self._lock:
                self._in_flight -= 1

    @contextmanager
    def admitted(self, request: RawRequest) -> Iterator[None]:
        """Hold a place: `acquire` and `release`."""
        self.acquire(request)
        try:
            yield
        finally:
            self.release()


def _digest(source: str) -> bytes:
    """Hash to one length, however long a header is; so no API key is stored in Redis as it is, either."""
    return hashlib.blake2b(source.encode("utf-8", "surrogateescape"), digest_size=16).digest()


class MemoryRateLimiter:
    """Counts in this process: each worker allows each client the whole rate.

    Requests of the previous window count by the share of it that is still within the last period, as if they had come
    evenly. Over time exactly the rate passes, within one period at worst nearly twice as much.

    Args:
        clock: seconds.
    """

    def __init__(self, amount: int, period: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._amount = amount
        self._period = period
        self._clock = clock
        self._lock = threading.Lock()
        self._clients: OrderedDict[bytes, tuple[int, int, int]] = OrderedDict()  # window, its requests, those before it

    def __call__(self, client: bytes) -> float | None:
        now = self._clock()
        window, elapsed = divmod(now, self._period)
        with self._lock:
            last, current, previous = self._clients.get(client, (int(window), 0, 0))
            if last != window:
                current, previous = 0, current if last == window - 1 else 0
            if int(previous * (1 - elapsed / self._period) + current) >= self._amount:
                # until the requests that still count are fewer than the amount, not just as many
                share = 1.0 if current >= self._amount else 1 - (self._amount - current) / previous
                return self._period * share - elapsed + _EDGE_SECONDS
            self._clients[client] = int(window), current + 1, previous
            self._clients.move_to_end(client)
            if len(self._clients) > MAX_CLIENTS:
                self._clients.popitem(last=False)
        return None


class RedisRates:
    """Counts in Redis: all workers that name it count together. While it does not answer, every request passes.

    All limits of a worker share its connections, and the circuit that keeps requests from one that is away.

    Raises:
        InvalidConfig: see `import_redis`.
    """

    def __init__(self, url: str) -> None:
        from limits.storage import RedisStorage
        from limits.strategies import SlidingWindowCounterRateLimiter

        import_redis(url)
        storage = RedisStorage(
            url,
            key_prefix="onnxserve:rate",
            wrap_exceptions=True,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=ANSWER_SECONDS,
        )
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._circuit = CircuitBreaker("the rate limit lets every request pass")

    def count(self, item: Any, client: bytes) -> float | None:
        """Count a request as a `RateLimiter` of this rate does."""
        from limits.errors import StorageError

        if self._circuit.is_open:
            return None
        key = client.hex()
        try:
            if self._limiter.hit(item, key):
                return None
            return float(self._limiter.get_window_stats(item, key).reset_time - time.time())
        except StorageError as error:
            self._circuit.record_failure(error.storage_error)
            return None


def open_rate_limiter(rate: str, redis: RedisRates | None) -> RateLimiter:
    """Return the limiter for `rate`, in the syntax of the `limits` library, which `spec` has checked.

    Args:
        redis: None: it counts in this worker.
    """
    from limits import parse  # late: it costs memory and time at the start

    item = parse(rate)
    return partial(redis.count, item) if redis else MemoryRateLimiter(item.amount, item.get_expiry())


def request_threads(spec: ServerSpec) -> int:
    """Return the number of a worker's threads for requests.

    One batch runs while the next one fills. A request above the limit needs a free thread too, to be refused at once.
    """
    batch = max_batch_rows(spec)
    filling = 2 * batch if batch > 1 else 1
    refusing = spec.max_concurrent_requests + spec.threads if spec.max_concurrent_requests else 1
    return max(spec.threads, filling, refusing)


def max_batch_rows(spec: ServerSpec) -> int:
    """Return the largest number of rows in one run; 1 if requests are not run together."""
    return spec.max_batch_size or (1 if spec.device == "cpu" else _GPU_BATCH_SIZE)
