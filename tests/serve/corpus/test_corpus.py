"""The corpus over real sockets and with the WSGI application: bad requests are refused,
and other requests answered.
"""

import pytest

from tests.serve.corpus import heads
from tests.serve.corpus.bounds import OF_THE_CONNECTION
from tests.serve.corpus.cases import CASES
from tests.serve.corpus.routes import ALL
from tests.serve.corpus.wire import Refused


def failures(check, routes):
    """Return the failures by route."""
    errors = []
    for route in routes:
        try:
            check(route)
        except Refused as error:
            errors.append(f"{route.name}: {error}")
    return errors


def test_every_route_gives_its_right_answer(tried, wsgi):
    assert failures(tried.wire.check_good, ALL) == []
    assert failures(wsgi.check_good, ALL) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_request_is_refused_and_the_good_one_after_it_answered(tried, case):
    assert failures(lambda route: tried.wire.check(case, route), case.on) == []


@pytest.mark.parametrize("case", heads.PIPELINED, ids=lambda case: case.name)
def test_a_bad_request_behind_a_good_one_does_not_touch_its_answer(tried, case):
    assert failures(lambda route: tried.wire.check(case, route, comes_first=True), case.on) == []


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.bound not in OF_THE_CONNECTION],
    ids=lambda case: case.name,
)
def test_the_wsgi_application_refuses_a_bad_request_alike(wsgi, case):
    assert failures(lambda route: wsgi.check(case, route), case.on) == []
