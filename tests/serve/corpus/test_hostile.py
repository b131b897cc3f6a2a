"""Hostile bytes, complete or split at any position, are parsed alike, and the
connection ends alike.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serve.corpus import raw
from tests.serve.corpus.raw import exchanged

_AT_ONCE = 8


@pytest.mark.long
def test_hostile_bytes_are_read_alike_however_they_are_cut(tried):
    port = tried.wire.port

    def check(job):
        case, cut = job
        outcome = exchanged(port, [case.sent[:cut], case.sent[cut:]] if cut else [case.sent])
        if outcome == (case.statuses, case.goes_on):
            return ""
        return f"{case.name}, cut behind {case.sent[max(0, cut - 20) : cut]!r}: {outcome}"

    jobs = [(case, cut) for case in raw.CASES for cut in (0, *case.cuts)]
    jobs.sort(key=lambda job: job[1])  # Few streams are then read at the same time.
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        assert [wrong for wrong in pool.map(check, jobs) if wrong] == []
    assert len(jobs) > 2000
    assert len({case.name for case in raw.CASES}) == len(raw.CASES)


def test_hostile_bytes_that_come_one_by_one_are_read_alike(tried):
    port = tried.wire.port
    cases = [case for case in raw.CASES if len(case.sent) < 250][::3]

    def check(case):
        outcome = exchanged(
            port, [case.sent[place : place + 1] for place in range(len(case.sent))], pause=0.0002
        )
        if outcome == (case.statuses, case.goes_on):
            return ""
        return f"{case.name}: {outcome}"

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        assert [wrong for wrong in pool.map(check, cases) if wrong] == []
