"""The search for the greatest rate of a server, with loads whose outcome is known, and
the reports of perf_analyzer.
"""

import math
import time

import pytest
import uvloop

from benchmarks.serving.arrivals import LIMIT, Trial, read_report, search
from benchmarks.serving.load import post
from benchmarks.serving.timeline import CONNECTIONS, Answers, Client
from tests.benchmarks.test_load import listening, slow

REPORT = """Request Rate: 420 inference requests per seconds
  Pass [1] throughput: 409.098 infer/sec. p99 latency: 12845 usec
  Client:
    Request count: 972
    Throughput: 397.952 infer/sec
    p50 latency: 3479 usec
    p99 latency: 12070 usec
  Server:
    Request count: 0
"""
LATE = "    [WARNING] Perf Analyzer was not able to keep up. 25.72% of the requests were delayed.\n"


def loads(greatest, greatest_long=math.inf, client=math.inf):
    """Return a server with a greatest rate, another for 60 s, and the client's."""

    def load(rate, seconds, seed):
        holds = rate <= (greatest_long if seconds >= 60 else greatest)
        p99 = LIMIT / 2 if holds else 2 * LIMIT
        return Trial(rate, 100, p99 / 2, p99, 0, "", rate <= client)

    return load


@pytest.mark.parametrize(
    ("load", "greatest"),
    [
        (loads(800), 800),
        (loads(3000), 3000),
        (loads(800, greatest_long=600), 600),
        (loads(800, client=300), 300),
    ],
    ids=["below the closed loop", "above it", "for sixty seconds", "of the client"],
)
def test_search_finds_the_rate_that_holds(load, greatest):
    confirmed, failed = search(load, closed=1000, seconds=60, say=lambda line: None)
    assert confirmed
    assert failed
    assert 0.9 * greatest <= confirmed.rate <= greatest < failed.rate


def test_search_returns_none_if_nothing_holds():
    confirmed, failed = search(loads(10), closed=1000, seconds=60, say=lambda line: None)
    assert confirmed is None
    assert failed
    assert failed.rate == 100


def test_report_of_perf_analyzer_is_read():
    trial = read_report(420, REPORT)
    assert trial == Trial(397.952, 972, 0.003479, 0.01207, 0, "no warning", True)
    late = read_report(420, REPORT.replace("  Server:", LATE + "  Server:"))
    assert (late.late, late.is_valid, late.holds) == ("25.7% delayed", False, False)
    assert not read_report(420, "Failed to obtain stable measurement.").holds
    assert not read_report(420, "  Client:\n  Server:\n").holds
    assert not read_report(420, REPORT.replace("972", "0").replace("12070", "1")).holds
    assert read_report(420, REPORT.replace("397.952", "1.2e+04")).rate == 12_000


def test_latency_counts_from_the_scheduled_time():
    """Each connection answers 50 requests per second, and 100 are due at once."""
    count = 2 * CONNECTIONS
    with listening(*slow()) as port:
        client = Client(port, post("/", b"body"), lambda answer: 0, tick=0)
        begun = time.monotonic()
        answers = Answers.of(uvloop.run(client.run([0.0] * count)))
    assert len(answers.due) == count
    assert answers.failed == 0
    assert begun < answers.due[0] == answers.due[-1]
    assert (answers.latency >= 0.04).sum() >= CONNECTIONS  # the second request of each connection
    assert (answers.lag < answers.latency).all()
