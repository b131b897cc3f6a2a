"""What one caller, and all together, may ask of a worker: requests in flight, and a rate.

A transport calls `acquire` before it decodes anything, and `release` when its answer is made.

In memory the rate is a sliding window of two counters, as in the `limits` library, whose own storage in memory is not
used: it starts a thread every 10 ms that looks at every caller, and never bounds their number.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

from mlflow_deploy_plugin.errors import TooManyRequests
from mlflow_deploy_plugin.server.inference.circuit_breaker import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    CircuitBreaker,
    import_redis,
)
from mlflow_deploy_plugin.spec import ServerSpec

MAX_CALLERS = 65_536
"""Callers that a worker's memory holds; whoever has not asked for longest is forgotten."""

_BUSY_RETRY_SECONDS = 1
_EDGE_SECONDS = 0.001

RateLimiter = Callable[[bytes], float | None]
"""Counts a request of this caller: None where it may pass, else the seconds until one would."""


class RequestLimits:
    """The limits of one worker.

    Args:
        max_concurrent_requests: requests in flight; None: any number.
        rate: counts the requests of each caller; None: they are not.
        rate_text: the rate as the spec has it, for the message.
        rate_header: the header (lower case) that names the caller; None, or not sent: its address does.
        refused: is told why a request was refused: concurrency or rate.

    Attributes:
        is_active: false: there is no limit, and `acquire` and `release` need not be called.
    """

    def __init__(
        self,
        max_concurrent_requests: int | None = None,
        rate: RateLimiter | None = None,
        rate_text: str = "",
        rate_header: str | None = None,
        refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.is_active = max_concurrent_requests is not None or rate is not None
        self._allowed = max_concurrent_requests
        self._rate = rate
        self._rate_text = rate_text
        self._rate_header = rate_header
        self._refused = refused
        self._lock = threading.Lock()
        self._in_flight = 0

    @property
    def may_block(self) -> bool:
        """Whether `acquire` asks another machine: that is nothing for an event loop."""
        return isinstance(self._rate, RedisRateLimiter)

    def acquire(self, headers: Mapping[str, str], client: str) -> None:
        """Lets one request in; `release` has to follow, whatever becomes of it. One that is refused does not leave.

        Args:
            headers: names in lower case; gRPC's metadata.
            client: the caller's address.

        Raises:
            TooManyRequests: with the seconds after which to ask again.
        """
        if self._rate is not None:
            self._check_rate(headers, client)
        if self._allowed is not None:
            with self._lock:
                is_full = self._in_flight >= self._allowed
                if not is_full:
                    self._in_flight += 1
            if is_full:
                self._refused("concurrency")
                raise TooManyRequests(
                    f"{self._allowed} requests are being answered here already; ask again later", _BUSY_RETRY_SECONDS
                )

    def release(self) -> None:
        if self._allowed is not None:
            with self._lock:
                self._in_flight -= 1

    def _check_rate(self, headers: Mapping[str, str], client: str) -> None:
        named = headers.get(self._rate_header) if self._rate_header else None
        caller = f"address {client}" if named is None else f"key {named}"
        # of one length, however long the header is; and no key of a caller stands in a Redis as it is
        key = hashlib.blake2b(caller.encode("utf-8", "surrogateescape"), digest_size=16).digest()
        seconds = self._rate(key) if self._rate else None
        if seconds is not None:
            self._refused("rate")
            raise TooManyRequests(
                f"more than {self._rate_text} from one caller; ask again later", max(1, ceil(seconds))
            )


class MemoryRateLimiter:
    """Counts in this process: each worker allows each caller the whole rate.

    The requests of the window before count by the share of it that still lies within the last period, as if they had
    come evenly: over time exactly the rate passes, within one period at worst nearly twice as much.

    Args:
        clock: seconds.
    """

    def __init__(self, amount: int, period: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._amount = amount
        self._period = period
        self._clock = clock
        self._lock = threading.Lock()
        self._callers: OrderedDict[bytes, tuple[int, int, int]] = OrderedDict()  # window, its requests, those before it

    def __call__(self, caller: bytes) -> float | None:
        now = self._clock()
        window, elapsed = divmod(now, self._period)
        with self._lock:
            last, current, previous = self._callers.get(caller, (int(window), 0, 0))
            if last != window:
                current, previous = 0, current if last == window - 1 else 0
            if int(previous * (1 - elapsed / self._period) + current) >= self._amount:
                return self._wait(elapsed, current, previous)
            self._callers[caller] = int(window), current + 1, previous
            self._callers.move_to_end(caller)
            if len(self._callers) > MAX_CALLERS:
                self._callers.popitem(last=False)
        return None

    def _wait(self, elapsed: float, current: int, previous: int) -> float:
        """Seconds until the requests that still count are fewer than the amount, not just as many."""
        if current >= self._amount:
            return self._period - elapsed + _EDGE_SECONDS
        return self._period * (1 - (self._amount - current) / previous) - elapsed + _EDGE_SECONDS


class RedisRateLimiter:
    """Counts in Redis, for all workers and servers that share it. While Redis is away, every request passes."""

    def __init__(self, item: Any, url: str) -> None:
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
        self._item = item
        self._circuit = CircuitBreaker("the rate limit lets every request pass")

    def __call__(self, caller: bytes) -> float | None:
        from limits.errors import StorageError

        if self._circuit.is_open:
            return None
        key = caller.hex()
        try:
            if self._limiter.hit(self._item, key):
                return None
            return float(self._limiter.get_window_stats(self._item, key).reset_time - time.time())
        except StorageError as error:
            self._circuit.record_failure(error.storage_error)
            return None


def open_rate_limiter(rate: str, redis_url: str) -> RateLimiter:
    """What counts towards `rate`, in the words of the `limits` library (`spec.Rate` has checked them)."""
    from limits import parse  # only where a limit is wanted: it costs memory and time at the start

    item = parse(rate)
    return RedisRateLimiter(item, redis_url) if redis_url else MemoryRateLimiter(item.amount, item.get_expiry())


_GPU_BATCH_SIZE = 32


def request_threads(spec: ServerSpec) -> int:
    """Threads for requests beside a loop: one batch is computed while the next one fills; and what is over the limit of
    requests needs a free thread too, to be told so at once."""
    batch = max_batch_rows(spec)
    filling = 2 * batch if batch > 1 else 1
    refusing = spec.max_concurrent_requests + spec.threads if spec.max_concurrent_requests else 1
    return max(spec.threads, filling, refusing)


def max_batch_rows(spec: ServerSpec) -> int:
    """Rows that are joined into one run at most; 1: requests are not joined."""
    return spec.max_batch_size or (1 if spec.device == "cpu" else _GPU_BATCH_SIZE)
