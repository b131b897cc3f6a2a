"""Hostile bytes, complete or split at any position, are parsed alike, and the
connection ends alike.
"""

from concurrent.futures import ThreadPoolExecutor

from tests.serve.corpus import raw
from tests.serve.corpus.raw import PING, exchanged


def failures(port, jobs, pause):
    """Return the cases whose bytes, in these pieces, are answered otherwise."""

    def check(job):
        case, pieces, statuses = job
        outcome = exchanged(port, pieces, pause)
        return "" if outcome == (statuses, case.goes_on) else f"{case.name}, {pieces}: {outcome}"

    with ThreadPoolExecutor(8) as pool:
        return [wrong for wrong in pool.map(check, jobs) if wrong]


def test_hostile_bytes_leave_earlier_answer_intact(port):
    jobs = [(case, [PING + case.sent], (200, *case.statuses)) for case in raw.CASES]
    assert failures(port, jobs, 0) == []


def test_hostile_bytes_are_read_alike_one_by_one(port):
    cases = [case for case in raw.CASES if len(case.sent) < 250]
    jobs = [(case, [b"%c" % byte for byte in case.sent], case.statuses) for case in cases]
    assert failures(port, jobs, 0.0002) == []
