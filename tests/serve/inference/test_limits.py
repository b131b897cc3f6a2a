"""Each client has its own rate, all clients share the concurrent requests, and without
Redis there is no limit.
"""

import logging
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial

import pytest
from limits import parse

from mlflow_deploy_plugin.core.errors import TooManyRequests
from mlflow_deploy_plugin.core.statedir.models import KeyEntry
from mlflow_deploy_plugin.serve.inference import limits
from mlflow_deploy_plugin.serve.inference.limits import (
    MemoryRateLimiter,
    RedisRates,
    RequestLimits,
    SharedRateLimiter,
    open_rate_limiter,
)
from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.support.clocks import Clock
from tests.support.waiting import free_port


def sent(client="192.0.2.1", key=""):
    """A request from this address, with this X-Api-Key."""
    return RawRequest("POST", "/invocations", {"x-api-key": key} if key else {}, b"", client)


def memory(amount, seconds, clock):
    """Return the options of limits that count in memory, by this clock."""
    return {"open_rate": lambda rate: MemoryRateLimiter(amount, seconds, clock)}


@pytest.fixture
def clock():
    return Clock(1000.0)


def test_request_beyond_concurrency_is_refused():
    refused = []
    two = RequestLimits(max_concurrent_requests=2, count_refused=refused.append)
    two.acquire()
    two.acquire()

    with pytest.raises(TooManyRequests, match="2 concurrent requests") as error:
        two.acquire()

    assert error.value.retry_after == 1
    assert refused == ["concurrency"]
    two.release()
    with suppress(ValueError), two.admitted(sent()):
        raise ValueError
    two.acquire()


def test_threads_never_exceed_concurrency():
    five = RequestLimits(max_concurrent_requests=5)
    inside = []
    counts = []

    def client(number):
        for _ in range(500):
            with suppress(TooManyRequests), five.admitted(sent()):
                inside.append(number)
                counts.append(len(inside))
                inside.remove(number)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(client, range(16)))

    assert 1 <= max(counts) <= 5
    for _ in range(5):
        five.acquire()


def test_each_caller_has_its_own_rate(clock):
    refused = []
    limited = RequestLimits(rate="3/minute", count_refused=refused.append, **memory(3, 60, clock))
    for _ in range(3):
        limited.check_rates(sent(), None)

    with pytest.raises(TooManyRequests, match="3/minute") as error:
        limited.check_rates(sent(), None)

    assert 1 <= (error.value.retry_after or 0) <= 60
    assert refused == ["rate"]
    limited.check_rates(sent("192.0.2.2"), None)
    clock.now += 2 * 60
    limited.check_rates(sent(), None)


@pytest.mark.parametrize(
    ("first", "second", "is_one_caller"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("no:address", "no:other", False),
    ],
)
def test_ipv6_network_is_one_caller(clock, first, second, is_one_caller):
    limited = RequestLimits(rate="1/minute", **memory(1, 60, clock))
    limited.check_rates(sent(first), None)

    with pytest.raises(TooManyRequests) if is_one_caller else nullcontext():
        limited.check_rates(sent(second), None)


@pytest.mark.parametrize("start", [0.0, 1000.0, 1019.5, 1059.9])
def test_caller_may_ask_after_retry_after(clock, start):
    clock.now = start
    rate = MemoryRateLimiter(10, 60, clock)
    for _ in range(100):
        if (seconds := rate(b"a")) is not None:
            assert seconds > 0
            clock.now += max(1, -int(-seconds // 1))
            assert rate(b"a") is None
        clock.now += 0.7


def test_refused_request_is_released(clock):
    limited = RequestLimits(rate="1/minute", **memory(0, 60, clock))

    class Headers(dict[str, str]): ...

    request = RawRequest("POST", "/invocations", Headers(), b"large")
    headers = weakref.ref(request.headers)
    for _ in ("its plan", "the general way"):
        with suppress(TooManyRequests):
            limited.check_rates(request, None)
    del request
    assert headers() is None


def test_no_minute_has_twice_the_rate(clock):
    rate = MemoryRateLimiter(100, 60, clock)
    passed = []
    for _ in range(3000):
        if rate(b"a") is None:
            passed.append(clock.now)
        clock.now += 0.1

    busiest = max(sum(moment <= other < moment + 60 for other in passed) for moment in passed)
    assert 100 <= busiest < 200
    assert 400 <= len(passed) <= 600


def test_header_identifies_the_caller(clock):
    limited = RequestLimits(rate="1/minute", rate_header="x-api-key", **memory(1, 60, clock))
    limited.check_rates(sent("192.0.2.1", "one"), None)
    limited.check_rates(sent("192.0.2.1", "two"), None)
    limited.check_rates(sent("192.0.2.1"), None)

    for key in ("one", ""):
        with pytest.raises(TooManyRequests):
            limited.check_rates(sent("192.0.2.1", key), None)


def test_key_has_its_own_limits(clock):
    refused = []
    amounts = {"2/second": (2, 1), "3/day": (3, 86400)}
    of_keys = RequestLimits(
        count_refused=refused.append,
        open_rate=lambda rate: MemoryRateLimiter(*amounts[rate], clock),
    )

    def ask(name):
        of_keys.check_rates(sent(), KeyEntry(name=name, scopes=("infer",), limits=tuple(amounts)))

    for name in ("shop", "shop", "other"):
        ask(name)
    with pytest.raises(TooManyRequests, match=r"'shop' .*2/second") as error:
        ask("shop")
    assert error.value.retry_after == 2
    clock.now += 2
    ask("shop")
    with pytest.raises(TooManyRequests, match=r"'shop' .*3/day"):
        ask("shop")
    assert refused == ["key", "key"]
    assert not of_keys.has_rate


def test_idle_clients_are_evicted_first(clock, monkeypatch):
    monkeypatch.setattr(limits, "MAX_CLIENTS", 100)
    rate = MemoryRateLimiter(1000, 60, clock)
    shared = share(FixedWindow(), "1000/minute", clock)
    for number in range(1000):
        assert rate(b"busy") is None
        assert rate(str(number).encode()) is None
        assert shared(str(number).encode()) is None

    assert len(rate._clients) == len(shared._clients) == 100
    assert rate(b"busy") is not None


@pytest.mark.parametrize(
    ("text", "amount", "period"),
    [("100/minute", 100, 60), ("5 per 10 seconds", 5, 10), ("7/day", 7, 86400)],
)
def test_rate_is_parsed(text, amount, period):
    rate = open_rate_limiter(text, None)
    assert isinstance(rate, MemoryRateLimiter)
    assert rate.amount == amount
    assert rate.period == period


class FixedWindow:
    """Counts as Redis does, in a single window that does not end."""

    is_away = False

    def __init__(self):
        self.asked = []
        self.counted = 0

    def run_ahead(self, ask):
        ask()

    def count(self, item, client, requests):
        self.asked.append(requests)
        for passing in (requests, 1):
            if self.counted + passing <= item.amount:
                self.counted += passing
                return passing, 0.0
        return 0, 30.0


def share(redis, rate, clock):
    return SharedRateLimiter(parse(rate), redis, clock)


def test_busy_client_reserves_within_its_rate(clock):
    redis = FixedWindow()
    workers = [share(redis, "5000/minute", clock) for _ in range(3)]
    passed = 0
    for number in range(30_000):
        passed += workers[number % 3](b"busy") is None
        clock.now += 0.0005

    assert 4900 <= passed <= 5000
    assert 10 < max(redis.asked) <= 50
    assert len(redis.asked) < 30_000 / 20


def test_slow_client_uses_its_whole_rate(clock):
    redis = FixedWindow()
    limiter = share(redis, "1000/hour", clock)
    answers = []
    for _ in range(1001):
        answers.append(limiter(b"slow"))
        clock.now += 0.03

    assert answers == [None] * 1000 + [30.0]
    assert set(redis.asked) == {1}


@pytest.mark.parametrize(("burst", "pause"), [(5, 0.2), (12, 0.7), (40, 2.3)])
def test_bursts_within_the_rate_are_admitted(clock, burst, pause):
    redis = FixedWindow()
    workers = [share(redis, "2000/minute", clock) for _ in range(2)]
    sent = 0
    while clock.now < 1060:
        for number in range(burst):
            assert workers[number % 2](b"in bursts") is None
            clock.now += 0.001
        sent += burst
        clock.now += pause

    assert sent <= redis.counted <= sent + 2 * 20


def test_refused_client_asks_redis_rarely(clock):
    redis = FixedWindow()
    limiter = share(redis, "1/minute", clock)
    assert limiter(b"a") is None
    waits = []
    for _ in range(1000):
        waits.append(limiter(b"a"))
        clock.now += 0.001

    assert waits[:2] == [30.0, pytest.approx(29.999)]
    assert len(redis.asked) <= 1 + 1000 * 0.001 / 0.1 + 1


def test_reservation_and_refusal_need_no_redis(clock):
    redis = FixedWindow()
    limiter = share(redis, "300/minute", clock)
    waits = []
    while limiter(b"a") is None:
        waits.append(limiter.may_wait(b"a"))
        clock.now += 0.001

    assert not limiter.may_wait(b"a")
    assert limiter.may_wait(b"another")
    assert 0 < sum(waits) <= 300 / 2
    clock.now += 0.1
    assert limiter.may_wait(b"a")
    redis.is_away = True
    assert not limiter.may_wait(b"a")


def test_limits_wait_if_a_limiter_does(clock):
    limiter = share(FixedWindow(), "300/minute", clock)
    limits = RequestLimits(
        rate="9/second",
        open_rate=lambda rate: limiter if "minute" in rate else open_rate_limiter(rate, None),
    )
    assert not limits.may_wait(sent(), KeyEntry(name="shop", scopes=()))
    assert limits.may_wait(sent(), KeyEntry(name="shop", scopes=(), limits=("300/minute",)))
    assert RequestLimits(rate="300/minute", open_rate=lambda rate: limiter).may_wait(sent(), None)


@pytest.mark.redis
def test_worker_threads_never_exceed_the_rate(redis_url):
    workers = [open_rate_limiter("2000/day", RedisRates(redis_url)) for _ in range(2)]

    def ask(worker):
        return sum(worker(b"many threads") is None for _ in range(600))

    with ThreadPoolExecutor(8) as threads:
        passed = sum(threads.map(ask, workers * 4))

    assert 1900 <= passed <= 2000


@pytest.mark.redis
def test_key_limits_are_shared_within_a_workspace(redis_url, monkeypatch):
    shop = KeyEntry(name="shop", scopes=("infer",), limits=("2/day",))
    for workspace in ("team-a", "team-b", ""):
        monkeypatch.setenv("MLFLOW_WORKSPACE", workspace)
        workers = [
            RequestLimits(open_rate=partial(open_rate_limiter, redis=RedisRates(redis_url)))
            for _ in range(2)
        ]
        for worker in workers:
            worker.check_rates(sent(), shop)
        with pytest.raises(TooManyRequests, match=r"'shop' .*2/day"):
            workers[0].check_rates(sent(), shop)


def test_workers_share_a_rate_over_redis(redis_url):
    workers = [open_rate_limiter("4/minute", RedisRates(redis_url)) for _ in range(2)]
    answers = [workers[number % 2](b"shared caller") for number in range(6)]

    assert answers[:4] == [None] * 4
    assert all(seconds is not None and 0 < seconds <= 60 for seconds in answers[4:])
    assert workers[0](b"another caller") is None


def test_rate_limits_are_off_without_redis(caplog, monkeypatch):
    # Otherwise the thread that pings Redis would log in later tests that Redis is down.
    monkeypatch.setattr("redis.Redis.ping", lambda client: True)
    redis = RedisRates(f"redis://:secret@127.0.0.1:{free_port()}/0")
    rates = [open_rate_limiter(text, redis) for text in ("1/minute", "1/hour")]
    with caplog.at_level(logging.ERROR):
        assert [rate(b"a") for rate in rates * 20] == [None] * 40

    # The second failed request logs the same, and the log drops repeats.
    (line,) = set(caplog.messages)
    assert "Redis does not answer (Connection refused)" in line
