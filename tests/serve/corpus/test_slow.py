"""Slow clients, all at the same time: each reaches its time limit, and other clients
are answered in the meantime.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serve.corpus import slow
from tests.serve.corpus.routes import INVOCATIONS, PAGES
from tests.serve.corpus.wire import Refused

LIMIT_SECONDS = 15.0
"""Several times the server's time limit, because the machine may be busy."""


@pytest.mark.long
def test_slow_clients_are_disconnected_and_do_not_delay_others(start):
    clients = [(case.name, case.try_on, route) for case in slow.CASES for route in case.on]
    clients.append(("answers that nobody takes", slow.never_read, PAGES["/docs"]))
    with (
        start(threads=len(clients) + 4, request_timeout_seconds=2) as tried,
        ThreadPoolExecutor(len(clients)) as pool,
    ):
        before = tried.pids
        begun = threading.Barrier(len(clients) + 1)

        def run(name, client, route):
            begun.wait()
            try:
                client(tried.wire, route, LIMIT_SECONDS)
            except Refused as error:
                return f"{name}, {route.name}: {error}"
            return ""

        results = [pool.submit(run, *client) for client in clients]
        begun.wait()
        began = time.monotonic()
        tried.wire.check_good(INVOCATIONS)
        assert time.monotonic() - began < LIMIT_SECONDS / 5
        assert [failure for result in results if (failure := result.result())] == []
        tried.wire.check_good(INVOCATIONS)
        assert "Traceback" not in tried.log
        assert tried.pids == before
