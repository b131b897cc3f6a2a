"""The open loop with a server of 20 ms per answer. See tests/benchmarks/test_load.py
for the closed loop.
"""

import numpy as np

from mlflow_deploy_plugin.contrib.sizing.load import open_loop, post, random_times, tail_latency
from tests.benchmarks.test_load import listening, slow

REQUEST = [post("/", b"body")]


def test_latency_counts_from_the_scheduled_time():
    with listening(*slow()) as port:
        # 64 connections answer 3,200 per second.
        latencies, error = open_loop(port, REQUEST, np.arange(1280) / 6400)
    # 640 of 1,280 requests have waited at the last scheduled time, 0.2 s.
    assert tail_latency(latencies) > 0.15
    assert error == ""


def test_unsent_requests_count_with_their_waiting_time():
    with listening(*slow()) as port:
        # The client gives up after a second.
        latencies, error = open_loop(port, REQUEST, np.zeros(6400))
    assert len(latencies) == 6400
    assert 1 <= tail_latency(latencies) < np.inf
    assert error == ""


def test_requests_are_sent_in_turn():
    garbled = b"GET / HTTP/1.1\r\n\r\n1234"
    with listening(*slow()) as port:
        assert open_loop(port, [*REQUEST, garbled], np.arange(4) / 10)[1] == ""


def test_other_status_is_the_error():
    with listening(*slow(503)) as port:
        latencies, error = open_loop(port, REQUEST, np.zeros(3))
    assert 0.02 <= tail_latency(latencies) < 1
    assert error == "503: ok"


def test_random_times_are_a_poisson_process():
    times = random_times(rate=1000, seconds=10, seed=0)
    assert len(times) == 10_000
    assert 0 <= times[0] <= times[-1] <= 10
    counts, _ = np.histogram(times, bins=1000, range=(0, 10))
    # The counts of a Poisson process have the variance of their mean.
    assert 0.8 < counts.var() / counts.mean() < 1.2
    assert len(random_times(rate=0.001, seconds=1, seed=0)) == 1
