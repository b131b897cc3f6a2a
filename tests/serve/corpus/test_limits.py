"""Many clients: a request above a limit is refused immediately, and all other requests
succeed.

The servers batch requests and wait for more, so that a few requests reach the limits.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any

import pytest

from tests.serve.corpus.case import Route
from tests.serve.corpus.routes import (
    INFER,
    INVOCATIONS,
    LINES,
    PREDICT,
    SCORE,
    TF_PREDICT,
    VERTEX_PREDICT,
    dump,
)
from tests.serve.corpus.wire import check_right, read_answer


@dataclass(frozen=True)
class Crowd:
    """Concurrent requests, each with its own key by default.

    Attributes:
        status: the status of at least one request; all other requests succeed.
        word: a text in the message of that request.
        at_once: the number of concurrent requests.
    """

    requests: int
    at_once: int
    status: int
    word: str
    routes: tuple[Route, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


ROUTES = (INVOCATIONS, LINES, PREDICT, SCORE, VERTEX_PREDICT, INFER, TF_PREDICT)
SERVERS: dict[str, tuple[dict[str, Any], list[Crowd]]] = {
    "queue": (
        {"max_queue_size": 4},
        [
            Crowd(8, 8, 429, "waiting for this model", ROUTES),
            Crowd(1, 1, 504, "", (INFER,), parameters={"timeout": 1000}),
        ],
    ),
    "flight": (
        {"max_concurrent_requests": 4, "rate_limit": "12/hour", "rate_limit_header": "x-key"},
        [
            Crowd(8, 8, 429, "concurrent requests", ROUTES),
            Crowd(16, 4, 429, "12/hour", ROUTES[:1], headers={"X-Key": "one"}),
        ],
    ),
}


def answers(wire, crowd, route):
    """Return the answers to all requests of a crowd."""
    together = Barrier(crowd.at_once)

    def ask(number):
        body = None
        if crowd.parameters:
            body = route.good[:-1] + b', "parameters": ' + dump(crowd.parameters) + b"}"
        request = route.request(body, {"X-Key": f"{crowd.word} {number}", **crowd.headers})
        with wire.connect() as connection, connection.makefile("rb") as stream:
            # On a busy machine, connecting may take longer than the server waits for a
            # batch.
            together.wait(60)
            connection.sendall(request)
            return read_answer(stream)

    with ThreadPoolExecutor(crowd.at_once) as pool:
        return list(pool.map(ask, range(crowd.requests)))


@pytest.mark.long
@pytest.mark.parametrize("name", SERVERS)
def test_requests_above_limit_are_refused(start, name):
    fields, crowds = SERVERS[name]
    batching = {"max_batch_size": 64, "max_queue_delay_microseconds": 150_000, "threads": 32}
    with start(**batching, **fields) as tried:
        before = tried.pids
        for crowd in crowds:
            for route in crowd.routes:
                refused = []
                for answer in answers(tried.wire, crowd, route):
                    if answer.status == crowd.status:
                        refused.append(answer)
                    else:
                        check_right(route, answer)
                assert any(crowd.word in answer.body.decode() for answer in refused)
                if crowd.status == 429:
                    assert all(answer.headers["retry-after"].isdigit() for answer in refused)
        for route in ROUTES:
            tried.wire.check_good(route)
        assert tried.pids == before
        assert "Traceback" not in tried.log
