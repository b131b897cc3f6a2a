"""Many clients: a request above a limit is refused immediately, and all other requests
succeed.
"""

import pytest

from tests.serve.corpus import limits
from tests.serve.corpus.limits import ROUTES


@pytest.mark.long
@pytest.mark.parametrize("server", limits.NARROW)
def test_a_crowd_is_refused_only_for_its_number(start, server):
    with start(**limits.NARROW[server]) as tried:
        before = tried.pids
        for where, crowd, routes in limits.CASES:
            for route in routes if where == server else ():
                crowd.try_on(tried.wire, route)
        for route in ROUTES:
            tried.wire.check_good(route)
        assert tried.pids == before
        assert "Traceback" not in tried.log
