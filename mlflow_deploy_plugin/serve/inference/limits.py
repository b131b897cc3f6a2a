"""The limits of a worker: concurrent requests, requests per client and period, and
threads for requests.

A rate that all workers share is counted in Redis. For a busy client, Redis counts
several requests ahead of time (like Envoy's quotas), so that most requests do not wait
for Redis. Each request is counted before it is admitted, so that the workers never
exceed the rate.
"""

import hashlib
import os
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address, IPv6Network
from math import ceil
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.errors import TooManyRequests
from mlflow_deploy_plugin.core.settings import active_workspace
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.models import KeyEntry
from mlflow_deploy_plugin.serve.inference.circuit_breaker import (
    TIMEOUTS,
    CircuitBreaker,
    import_redis,
)
from mlflow_deploy_plugin.serve.messages import RawRequest

if TYPE_CHECKING:
    from limits import RateLimitItem

MAX_CLIENTS = 65_536
"""The maximum number of clients that a worker remembers; a new client replaces the
client that was idle longest.
"""

_BUSY_RETRY_SECONDS = 1
_EDGE_SECONDS = 0.001
_MOST_LOST_THREADS = 100
_GPU_BATCH_SIZE = 32

_RESERVED_SHARE = 0.01
_KEPT_SHARE = 0.1
_EXPECTED_SECONDS = 0.05
"""A reservation covers the demand of `_EXPECTED_SECONDS`, at most `_RESERVED_SHARE` of
the rate; it is valid for `_KEPT_SHARE` of the period.
"""


@dataclass(eq=False)
class RequestLimits:
    """The limits of a worker.

    Attributes:
        max_concurrent_requests: the maximum number of concurrent requests; None for no
            limit.
        rate: the rate for each client, in the spec's syntax; empty for no limit.
        rate_header: the header (in lower case) that identifies the client; if empty,
            the address identifies it.
        count_refused: called with the reason of each refusal: concurrency, rate or key.
        are_shared: True if the server's limit, or a limit that a key may have, is
            counted in Redis; see `may_wait`.
        has_rate: if False, `check_rates` need not be called for a request whose key has
            no limits.
        has_places: if False, `take_place` and `release` need not be called.
    """

    max_concurrent_requests: int | None = None
    rate: str = ""
    rate_header: str | None = None
    count_refused: Callable[[str], None] = lambda reason: None
    open_rate: Callable[[str], "RateLimiter"] = lambda rate: open_rate_limiter(rate, None)
    are_shared: bool = False

    def __post_init__(self) -> None:
        self.has_rate = bool(self.rate)
        self.has_places = self.max_concurrent_requests is not None
        self._limiter = self.open_rate(self.rate) if self.rate else None
        self._of_keys: dict[tuple[str, str], tuple[RateLimiter, bytes]] = {}
        self._lock = threading.Lock()
        self._in_flight = 0

    def check_rates(self, request: RawRequest, key: KeyEntry | None) -> None:
        """Count a request in the rates of its key, then in the server's rate. Raises
        TooManyRequests above a rate.

        A request is counted once, even if its plan fails and the general path checks it
        again.
        """
        if not request.is_counted:
            request.is_counted = True
            for rate, limiter, client in self._limiters(request, key):
                seconds = limiter(client)
                if seconds is None:
                    continue
                cause = "rate"
                reason = f"each caller is limited to {self.rate}"
                if key and rate:
                    cause = "key"
                    reason = f"the key {key.name!r} is limited to {rate}"
                self.count_refused(cause)
                request.refusal = f"{reason}; retry later", max(1, ceil(seconds))
                break
        if request.refusal is not None:
            # Storing the error would store a reference to the request.
            raise TooManyRequests(*request.refusal)

    def _limiters(
        self, request: RawRequest, key: KeyEntry | None
    ) -> Iterator[tuple[str, "RateLimiter", bytes]]:
        """Yield each rate of the key, then an empty string for the server's rate, each
        with its limiter and client.
        """
        caller = request.caller
        if key is not None:
            caller = key.name
            for rate in key.limits:
                limiter_and_client = self._of_keys.get((caller, rate))
                if limiter_and_client is None:
                    limiter_and_client = self._of_keys.setdefault(
                        (caller, rate), (self.open_rate(rate), _digest(f"limit {rate} of {caller}"))
                    )
                yield rate, *limiter_and_client
        if self._limiter is not None:
            rate_key = request.headers.get(self.rate_header) if self.rate_header else None
            client = f"key {rate_key}"
            if rate_key is None:
                address = caller or request.client
                if not caller and ":" in address:
                    with suppress(ValueError):
                        # One caller owns the /64 network of an IPv6 address.
                        parsed = IPv6Address(address.partition("%")[0])
                        address = str(parsed.ipv4_mapped or IPv6Network((parsed, 64), strict=False))
                client = f"address {address}"
            yield "", self._limiter, _digest(client)

    def take_place(self) -> bool:
        """Reserve a place for a concurrent request, to be `release`d; return False if
        all places are in use.
        """
        with self._lock:
            if (
                self.max_concurrent_requests is not None
                and self._in_flight >= self.max_concurrent_requests
            ):
                return False
            self._in_flight += 1
        return True

    def acquire(self) -> None:
        """Reserve one of the concurrent requests, to be `release`d. Raises
        TooManyRequests if all are in use.
        """
        if self.has_places and not self.take_place():
            self.count_refused("concurrency")
            message = (
                f"the limit of {self.max_concurrent_requests} concurrent requests is reached; "
                "retry later"
            )
            raise TooManyRequests(message, _BUSY_RETRY_SECONDS)

    def may_wait(self, request: RawRequest, key: KeyEntry | None) -> bool:
        """Return True if checking a limit of this request may block on Redis; an event
        loop must not check it then.
        """
        return any(limiter.may_wait(client) for _, limiter, client in self._limiters(request, key))

    def release(self) -> None:
        if self.has_places:
            with self._lock:
                self._in_flight -= 1

    @contextmanager
    def admitted(self, request: RawRequest) -> Iterator[None]:
        """Admit a request without a key to the block. Raises TooManyRequests above a
        limit.
        """
        self.check_rates(request, None)
        self.acquire()
        try:
            yield
        finally:
            self.release()


def _digest(source: str) -> bytes:
    """Return a hash of the text that identifies a client, because Redis must not store
    API keys in plain text.
    """
    return hashlib.sha256(source.encode("utf-8", "surrogateescape")).digest()


@dataclass(eq=False)
class MemoryRateLimiter:
    """A rate limiter per worker, with a sliding window of two counters; `clock` is in
    seconds.

    The requests of the previous window are weighted by the share of this window that is
    within the last period. The average rate is exact; a single period admits less than
    twice the rate. The memory storage of the `limits` library is not used: it does not
    bound the number of clients, and starts a thread every 10 ms that checks all of
    them.
    """

    amount: int
    period: float
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        # (window, count, previous count)
        self._clients: OrderedDict[bytes, tuple[int, int, int]] = OrderedDict()

    def __call__(self, client: bytes) -> float | None:
        """Count a request of the client, and return None; above the rate, return the
        seconds to wait instead.
        """
        now = self.clock()
        window, elapsed = divmod(now, self.period)
        with self._lock:
            last, current, previous = self._clients.get(client, (int(window), 0, 0))
            if last != window:
                previous = current if last == window - 1 else 0
                current = 0
            if int(previous * (1 - elapsed / self.period) + current) >= self.amount:
                # Return the time until the weighted count falls below the amount.
                share = 1.0 if current >= self.amount else 1 - (self.amount - current) / previous
                return self.period * share - elapsed + _EDGE_SECONDS
            self._clients[client] = int(window), current + 1, previous
            self._clients.move_to_end(client)
            if len(self._clients) > MAX_CLIENTS:
                self._clients.popitem(last=False)
        return None

    def may_wait(self, client: bytes) -> bool:
        return False


class RedisRates:
    """Counters in Redis for all workers with the same URL. While Redis does not
    respond, every request is admitted.

    All limits of a worker share this object's connections and circuit breaker. Raises
    the errors of `import_redis`.
    """

    def __init__(self, url: str, count_failure: Callable[[], None] = lambda: None) -> None:
        from limits.storage import RedisStorage
        from limits.strategies import SlidingWindowCounterRateLimiter

        import_redis(url)
        storage = RedisStorage(
            url,
            # Workspaces share no counter.
            key_prefix=":".join(filter(None, ("onnxserve:rate", active_workspace()))),
            wrap_exceptions=True,
            **TIMEOUTS,
        )
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._circuit = CircuitBreaker(
            "the rate limit admits every request", storage.storage.ping, count_failure
        )
        self.run_ahead = ThreadPoolExecutor(1, "onnxserve-rate").submit
        """Call a function that uses Redis in a background thread."""

    @property
    def is_away(self) -> bool:
        return self._circuit.is_open

    def count(self, item: "RateLimitItem", client: bytes, requests: int) -> tuple[int, float]:
        """Count as many requests of the client as `requests`; if the rate does not
        admit them all, count one request.

        Return the number of admitted requests, and if it is 0, the seconds until a
        request is admitted.
        """
        from limits.errors import StorageError

        key = client.hex()
        try:
            for cost in [requests, 1] if requests > 1 else [1]:
                if self._limiter.hit(item, key, cost=cost):
                    return cost, 0.0
            reset_time = self._limiter.get_window_stats(item, key).reset_time
            return 0, max(0.0, reset_time - time.time())
        except StorageError as error:
            self._circuit.record_failure(error.storage_error)
            return 1, 0.0


@dataclass(slots=True)
class _Reservation:
    """The requests of a client that Redis has counted and this worker may still admit,
    or the refusal of a client.

    Attributes:
        began / ends: the period of validity, by the limiter's clock.
        size: the number of requests that were counted at once.
        passes_at: the time when a refused client may retry; 0 if the client was not
            refused.
        is_renewed: True while a thread requests the next reservation.
    """

    began: float
    ends: float
    size: int
    passed: int = 1
    left: int = 0
    passes_at: float = 0.0
    is_renewed: bool = False


class SharedRateLimiter:
    """A rate limiter that counts in Redis, together with all other workers, and in
    advance for a busy client.

    A reservation is renewed when half of its requests were admitted, and expires after
    a tenth of the period. A refusal is remembered briefly, so that a client above its
    rate does not keep Redis busy.
    """

    def __init__(
        self, item: "RateLimitItem", redis: RedisRates, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._item = item
        self._redis = redis
        self._clock = clock
        self._lock = threading.Lock()
        self._most = max(1, int(item.amount * _RESERVED_SHARE))
        self._expected_seconds = min(_EXPECTED_SECONDS, item.get_expiry() * _RESERVED_SHARE / 2)
        self._kept_seconds = item.get_expiry() * _KEPT_SHARE
        self._clients: OrderedDict[bytes, _Reservation] = OrderedDict()

    def __call__(self, client: bytes) -> float | None:
        """Count a request of the client, and return None; above the rate, return the
        seconds to wait instead. Redis is called only without a valid reservation.
        """
        if self._redis.is_away:
            return None
        cost = 1
        has_passed = False
        with self._lock:
            reservation = self._clients.get(client)
            now = self._clock()
            if reservation is not None:
                if now < reservation.ends and reservation.passes_at:
                    return reservation.passes_at - now
                if now < reservation.ends and reservation.left:
                    reservation.left -= 1
                    reservation.passed += 1
                    if reservation.is_renewed or 2 * reservation.left > reservation.size:
                        return None
                    has_passed = True
                if not reservation.is_renewed:
                    expected = (
                        reservation.passed
                        * self._expected_seconds
                        / max(now - reservation.began, 1e-6)
                    )
                    cost = max(1, min(int(expected), 2 * reservation.size, self._most))
                    reservation.is_renewed = cost > 1
        if not has_passed:
            return self._count(client, cost, 1)
        if cost > 1:
            self._redis.run_ahead(partial(self._count, client, cost, 0))
        return None

    def _count(self, client: bytes, cost: int, passed: int) -> float | None:
        """Count `cost` requests in Redis, of which `passed` are admitted at once, and
        remember a reservation or a refusal. Return None, or the seconds to wait.
        """
        passing, seconds = self._redis.count(self._item, client, cost)
        with self._lock:
            reservation = self._clients.get(client)
            now = self._clock()
            if reservation is not None and now < reservation.ends:
                left = reservation.left
            else:
                left = 0
            if not passing:
                if not left:
                    self._clients[client] = _Reservation(
                        now,
                        ends=now + min(seconds, 2 * self._expected_seconds),
                        size=1,
                        passed=0,
                        passes_at=now + seconds,
                    )
            elif (
                cost == 1
                and reservation is not None
                and now < reservation.began + 2 * self._expected_seconds
            ):
                reservation.passed += 1
            else:
                self._clients[client] = _Reservation(
                    now,
                    ends=now + self._kept_seconds,
                    size=passing,
                    passed=passed,
                    left=left + passing - passed,
                )
            self._clients.move_to_end(client)
            if len(self._clients) > MAX_CLIENTS:
                self._clients.popitem(last=False)
        return None if passing else seconds

    def may_wait(self, client: bytes) -> bool:
        """Return False while a reservation or a refusal of this client is valid."""
        entry = self._clients.get(client)
        is_valid = (
            entry is not None
            and (entry.left > 0 or entry.passes_at > 0)
            and self._clock() < entry.ends
        )
        return not (is_valid or self._redis.is_away)


RateLimiter = MemoryRateLimiter | SharedRateLimiter
"""A limiter counts a request of the client with a key, and returns None to admit it,
otherwise the seconds to wait. If `may_wait` returns True, the next call for the client
may block on Redis; an event loop must not make this call.
"""


def open_rate_limiter(rate: str, redis: RedisRates | None) -> RateLimiter:
    """Return the limiter for `rate`, in the syntax of the `limits` library. Without
    Redis, it counts in this worker.
    """
    # Import the library here, because it costs memory and time at the start.
    from limits import parse

    item = parse(rate)
    if redis:
        return SharedRateLimiter(item, redis)
    return MemoryRateLimiter(item.amount, item.get_expiry())


class RequestThreads(ThreadPoolExecutor):
    """A pool that continues with fewer threads at `ulimit -u`, where the base class
    raises and yet queues the call.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads, thread_name_prefix="onnxserve-request")
        self._lost = 0
        self.submit(int)  # Start the first thread now, because the limit may be reached later.

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise

    def replace_thread(self) -> None:
        """Start a thread for one that is blocked for good. Above a limit, kill the
        process, which gunicorn replaces.
        """
        self._lost += 1
        if self._lost > _MOST_LOST_THREADS:
            os.kill(os.getpid(), signal.SIGKILL)
        self._max_workers += 1
        self._adjust_thread_count()


def request_threads(spec: ServerSpec) -> int:
    """Return the number of a worker's request threads: enough to fill a batch and to
    refuse more requests.
    """
    batch = max_batch_rows(spec)
    filling = 2 * batch if batch > 1 else 1
    if spec.max_concurrent_requests:
        refusing = spec.max_concurrent_requests + spec.threads
    else:
        refusing = 1
    return max(spec.threads, filling, refusing)


def max_batch_rows(spec: ServerSpec) -> int:
    """Return the maximum number of rows per run; 1 if requests are not batched."""
    default = _GPU_BATCH_SIZE if spec.is_on_nvidia else 1
    return spec.max_batch_size or default
