"""The limits of a worker: requests in flight, requests of one client in a period, and threads for requests.

A rate that all workers share is counted in Redis, for a busy client ahead of time (like Envoy's quotas), so that most
requests do not wait for Redis. Each request is counted before it passes, so the workers never exceed the rate.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address, IPv6Network
from math import ceil
from typing import TYPE_CHECKING, Protocol

from mlflow_deploy_plugin.errors import TooManyRequests
from mlflow_deploy_plugin.server.inference.circuit_breaker import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    CircuitBreaker,
    import_redis,
)
from mlflow_deploy_plugin.server.messages import RawRequest
from mlflow_deploy_plugin.settings import active_workspace
from mlflow_deploy_plugin.spec import ServerSpec
from mlflow_deploy_plugin.statedir import KeyEntry

if TYPE_CHECKING:
    from limits import RateLimitItem

MAX_CLIENTS = 65_536
"""The clients that a worker remembers. A further client replaces the client that was idle for longest."""

_BUSY_RETRY_SECONDS = 1
_EDGE_SECONDS = 0.001
_GPU_BATCH_SIZE = 32

_RESERVED_SHARE, _KEPT_SHARE, _EXPECTED_SECONDS = 0.01, 0.1, 0.05
"""A reservation is the demand of `_EXPECTED_SECONDS`, at most `_RESERVED_SHARE` of the rate, for `_KEPT_SHARE`."""


class RateLimiter(Protocol):
    def __call__(self, client: bytes) -> float | None:
        """Count a request of the client with this key; return None if it may pass, otherwise the seconds to wait."""

    def may_wait(self, client: bytes) -> bool:
        """Return True if the next call for this client asks another machine: an event loop must not wait for it."""


@dataclass(eq=False)
class RequestLimits:
    """The limits of one worker.

    Attributes:
        max_concurrent_requests: requests in flight; None for any number.
        rate: of the requests of each client, as the spec has it; empty for no limit.
        rate_header: the header (lower case) that identifies the client; if empty, its address does.
        count_refused: called with the reason of each refusal: concurrency, rate or key.
        are_shared: a limit, or one that a key may have, is counted on another machine; see `may_wait`.
        has_rate: if false, `check_rates` need not be called for a request whose key has no limits.
        has_places: if false, `take_place` and `release` need not be called.
    """

    max_concurrent_requests: int | None = None
    rate: str = ""
    rate_header: str | None = None
    count_refused: Callable[[str], None] = lambda reason: None
    open_rate: Callable[[str], RateLimiter] = lambda rate: open_rate_limiter(rate, None)
    are_shared: bool = False

    def __post_init__(self) -> None:
        self.has_rate, self.has_places = bool(self.rate), self.max_concurrent_requests is not None
        self._limiter = self.open_rate(self.rate) if self.rate else None
        self._of_keys: dict[tuple[str, str], tuple[RateLimiter, bytes]] = {}
        self._lock = threading.Lock()
        self._in_flight = 0

    def check_rates(self, request: RawRequest, key: KeyEntry | None) -> None:
        """Count a request by the rates of its key, then by the server's. Raises TooManyRequests above a rate.

        A request is counted once, even if its plan fails and the general way asks again.
        """
        if not request.is_counted:
            request.is_counted = True
            for rate, limiter, client in self._limiters(request, key):
                if (seconds := limiter(client)) is None:
                    continue
                self.count_refused("key" if rate else "rate")
                allowed = f"the key {key.name!r} may ask for {rate}" if key and rate else ""
                message = f"{allowed or f'more than {self.rate} from one caller'}; ask again later"
                request.refusal = message, max(1, ceil(seconds))
                break
        if request.refusal is not None:
            raise TooManyRequests(*request.refusal)  # another each time: its traceback holds the request

    def _limiters(self, request: RawRequest, key: KeyEntry | None) -> Iterator[tuple[str, RateLimiter, bytes]]:
        """Yield the rates of the key, then an empty text for the server's, each with its limiter and the client."""
        for rate in key.limits if key is not None else ():
            name = key.name if key is not None else ""
            if (opened := self._of_keys.get((name, rate))) is None:
                opened = self.open_rate(rate), _digest(f"limit {rate} of {name}")
                opened = self._of_keys.setdefault((name, rate), opened)
            yield rate, *opened
        if self._limiter is not None:
            named = request.headers.get(self.rate_header) if self.rate_header else None
            address = (key.name if key else request.caller) or _network(request.client)
            yield "", self._limiter, _digest(f"address {address}" if named is None else f"key {named}")

    def take_place(self) -> bool:
        """Take a place among the requests in flight, which has to be released; return False if there is none."""
        with self._lock:
            if self.max_concurrent_requests is not None and self._in_flight >= self.max_concurrent_requests:
                return False
            self._in_flight += 1
        return True

    def acquire(self) -> None:
        """Take a place among the requests in flight, to be `release`d. Raises TooManyRequests if there is none."""
        if self.has_places and not self.take_place():
            self.count_refused("concurrency")
            message = f"{self.max_concurrent_requests} requests are being answered here already; ask again later"
            raise TooManyRequests(message, _BUSY_RETRY_SECONDS)

    def may_wait(self, request: RawRequest, key: KeyEntry | None) -> bool:
        """Return True if a limit of this request asks another machine now: an event loop must not check it."""
        return any(limiter.may_wait(client) for _, limiter, client in self._limiters(request, key))

    def release(self) -> None:
        if self.has_places:
            with self._lock:
                self._in_flight -= 1

    @contextmanager
    def admitted(self, request: RawRequest) -> Iterator[None]:
        self.check_rates(request, None)
        self.acquire()
        try:
            yield
        finally:
            self.release()


def _network(address: str) -> str:
    """Return the address by which a caller is counted; for IPv6 its /64, since one caller has all of that."""
    if ":" not in address:
        return address
    try:
        parsed = IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(parsed.ipv4_mapped or IPv6Network((parsed, 64), strict=False))


def _digest(source: str) -> bytes:
    """Hash a header of any length to 16 bytes. So Redis stores no API key in plain, either."""
    return hashlib.blake2b(source.encode("utf-8", "surrogateescape"), digest_size=16).digest()


@dataclass(eq=False)
class MemoryRateLimiter:
    """Counts per worker in a sliding window of two counters; `clock` is in seconds.

    Requests of the previous window count with the share of that window that lies within the last period. On average
    exactly the rate passes, within one period at most nearly twice the rate. The storage of the `limits` library is not
    used: it starts a thread every 10 ms that checks every client, and never bounds their number.
    """

    amount: int
    period: float
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: OrderedDict[bytes, tuple[int, int, int]] = OrderedDict()  # window, its requests, those before it

    def __call__(self, client: bytes) -> float | None:
        now = self.clock()
        window, elapsed = divmod(now, self.period)
        with self._lock:
            last, current, previous = self._clients.get(client, (int(window), 0, 0))
            if last != window:
                current, previous = 0, current if last == window - 1 else 0
            if int(previous * (1 - elapsed / self.period) + current) >= self.amount:
                # until the requests that still count are fewer than the amount, not just as many
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
    """Counts in Redis for all workers that name it. While it does not answer, every request passes.

    All limits of a worker share its connections and its circuit breaker. Raises as `import_redis`.
    """

    def __init__(self, url: str, count_failure: Callable[[], None] = lambda: None) -> None:
        from limits.storage import RedisStorage
        from limits.strategies import SlidingWindowCounterRateLimiter

        import_redis(url)
        storage = RedisStorage(
            url,
            key_prefix=":".join(filter(None, ("onnxserve:rate", active_workspace()))),  # each has keys of its own
            wrap_exceptions=True,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=ANSWER_SECONDS,
        )
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._circuit = CircuitBreaker("the rate limit lets every request pass", storage.storage.ping, count_failure)
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="onnxserve-rate")

    def run_ahead(self, ask: Callable[[], object]) -> None:
        """Call a function that asks Redis, in a thread that no request waits for."""
        self._ahead.submit(ask)

    @property
    def is_away(self) -> bool:
        return self._circuit.is_open

    def count(self, item: "RateLimitItem", client: bytes, requests: int) -> tuple[int, float]:
        """Count `requests` of the client ahead, or one if no more may pass.

        Return the number of requests that may pass, and if it is 0, the seconds until a request may.
        """
        from limits.errors import StorageError

        key = client.hex()
        try:
            for asked in (requests, 1)[requests == 1 :]:
                if self._limiter.hit(item, key, cost=asked):
                    return asked, 0.0
            return 0, max(0.0, self._limiter.get_window_stats(item, key).reset_time - time.time())
        except StorageError as error:
            self._circuit.record_failure(error.storage_error)
            return 1, 0.0


@dataclass(slots=True)
class _Reservation:
    """Requests of a client that Redis has counted and that may still pass in this worker, or a refusal.

    Attributes:
        began / ends: by the limiter's clock.
        size: the requests that were counted at once.
        passes_at: the time when a refused client may ask again; 0 if it was not refused.
        is_renewed: a thread is asking for the next reservation.
    """

    began: float
    ends: float
    size: int
    passed: int = 1
    left: int = 0
    passes_at: float = 0.0
    is_renewed: bool = False


class SharedRateLimiter:
    """Counts in Redis, together with all other workers, and for a busy client ahead.

    A reservation is renewed when half of its requests have passed; the rest is valid for a tenth of the period. A
    refusal is remembered for a moment, so that a client above its rate does not keep Redis busy.
    """

    def __init__(self, item: "RateLimitItem", redis: RedisRates, clock: Callable[[], float] = time.monotonic) -> None:
        self._item = item
        self._redis = redis
        self._clock = clock
        self._lock = threading.Lock()
        self._most = max(1, int(item.amount * _RESERVED_SHARE))
        self._expected_seconds = min(_EXPECTED_SECONDS, item.get_expiry() * _RESERVED_SHARE / 2)
        self._kept_seconds = item.get_expiry() * _KEPT_SHARE
        self._clients: OrderedDict[bytes, _Reservation] = OrderedDict()

    def __call__(self, client: bytes) -> float | None:
        if self._redis.is_away:
            return None
        asked, has_passed = 1, False
        with self._lock:
            held, now = self._clients.get(client), self._clock()
            if held is not None:
                if now < held.ends and held.passes_at:
                    return held.passes_at - now
                if now < held.ends and held.left:
                    held.left -= 1
                    held.passed += 1
                    if held.is_renewed or 2 * held.left > held.size:
                        return None
                    has_passed = True
                if not held.is_renewed:
                    expected = held.passed * self._expected_seconds / max(now - held.began, 1e-6)
                    asked = max(1, min(int(expected), 2 * held.size, self._most))
                    held.is_renewed = asked > 1
        if not has_passed:
            return self._count(client, asked, 1)
        if asked > 1:
            self._redis.run_ahead(partial(self._count, client, asked, 0))
        return None

    def _count(self, client: bytes, asked: int, passed: int) -> float | None:
        """Count `asked` requests, of which `passed` pass at once; return None if they may, or as `__call__`."""
        passing, seconds = self._redis.count(self._item, client, asked)
        with self._lock:
            held, now = self._clients.get(client), self._clock()
            left = held.left if held is not None and now < held.ends else 0
            if not passing:
                if not left:
                    ends = now + min(seconds, 2 * self._expected_seconds)
                    self._clients[client] = _Reservation(now, ends, size=1, passed=0, passes_at=now + seconds)
            elif asked == 1 and held is not None and now < held.began + 2 * self._expected_seconds:
                held.passed += 1
            else:
                ends = now + self._kept_seconds
                self._clients[client] = _Reservation(now, ends, passing, passed, left + passing - passed)
            self._clients.move_to_end(client)
            if len(self._clients) > MAX_CLIENTS:
                self._clients.popitem(last=False)
        return None if passing else seconds

    def may_wait(self, client: bytes) -> bool:
        """Return False while a reservation or a refusal of this client holds."""
        held = self._clients.get(client)
        holds = held is not None and (held.left > 0 or held.passes_at > 0) and self._clock() < held.ends
        return not (holds or self._redis.is_away)


def open_rate_limiter(rate: str, redis: RedisRates | None) -> RateLimiter:
    """Return the limiter for `rate`, in the syntax of the `limits` library; without Redis it counts in this worker."""
    from limits import parse  # late: it costs memory and time at the start

    item = parse(rate)
    return SharedRateLimiter(item, redis) if redis else MemoryRateLimiter(item.amount, item.get_expiry())


class RequestThreads(ThreadPoolExecutor):
    """A pool that continues with fewer threads at `ulimit -u`; the base class would raise and keep the call."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, thread_name_prefix="onnxserve-request")
        self.submit(int)  # starts the first thread now: later there may be none for it

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise


def request_threads(spec: ServerSpec) -> int:
    """Return the number of a worker's threads for requests, also for a batch that fills and for refusals."""
    batch = max_batch_rows(spec)
    filling = 2 * batch if batch > 1 else 1
    refusing = spec.max_concurrent_requests + spec.threads if spec.max_concurrent_requests else 1
    return max(spec.threads, filling, refusing)


def max_batch_rows(spec: ServerSpec) -> int:
    """Return the largest number of rows in one run; 1 if requests are not run together."""
    return spec.max_batch_size or (1 if spec.device == "cpu" else _GPU_BATCH_SIZE)
