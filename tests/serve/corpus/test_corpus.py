"""The corpus over real sockets and with the WSGI application: bad requests are refused,
and other requests answered.
"""

import pytest

from tests.serve.corpus import bodies, heads, tables, values
from tests.serve.corpus.routes import ALL

CASES = [*heads.CASES, *bodies.CASES, *values.CASES, *tables.CASES]


def failures(check, routes):
    """Return the failures by route."""
    errors = []
    for route in routes:
        try:
            check(route)
        except AssertionError as error:
            errors.append(f"{route.name}: {error}")
    return errors


def test_every_route_answers_its_valid_request(wire):
    assert failures(wire.check_good, ALL) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_request_is_refused_on_every_route(wire, case):
    assert failures(lambda route: wire.check(case, route), case.on) == []
