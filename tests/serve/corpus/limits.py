"""Requests that exceed a limit: queues, rates, concurrent requests, deadlines.

The servers batch requests and wait for more, so that a few requests reach the limits.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any

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
from tests.serve.corpus.wire import Answer, Refused, Wire, check_right, read_answer

_BATCHING = {"max_batch_size": 64, "max_queue_delay_microseconds": 150_000, "threads": 32}
NARROW: dict[str, Any] = {
    "queue": {**_BATCHING, "max_queue_size": 4},
    "flight": {
        **_BATCHING,
        "max_concurrent_requests": 4,
        "rate_limit": "12/hour",
        "rate_limit_header": "x-key",
    },
}
"""The servers, with fields of their specs."""


@dataclass(frozen=True)
class Crowd:
    """Concurrent requests, each with its own key by default.

    Attributes:
        status: the status of at least one request; all other requests succeed.
        word: a text in the message of that request.
        at_once: the number of concurrent requests.
    """

    name: str
    bound: str
    requests: int
    at_once: int
    status: int
    word: str
    headers: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def try_on(self, wire: Wire, route: Route) -> None:
        """
        Raises:
            Refused: no request is refused, or a request is refused with another status
                or reason.
        """
        together = Barrier(self.at_once)
        with ThreadPoolExecutor(self.at_once) as pool:
            answers = list(
                pool.map(
                    lambda number: self._ask(wire, route, number, together), range(self.requests)
                )
            )
        refused = [answer for answer in answers if answer.status != route.status]
        if not refused:
            raise Refused("everything passes")
        for answer in refused:
            if answer.status != self.status:
                raise Refused(f"{answer.status} {answer.body!r}")
            if answer.status == 429 and not answer.headers.get("retry-after", "").isdigit():
                raise Refused("429 without Retry-After")
        if not any(self.word in answer.body.decode() for answer in refused):
            raise Refused(f"nobody is told {self.word!r}")
        for answer in answers:
            if answer.status == route.status:
                check_right(route, answer)

    def _ask(self, wire: Wire, route: Route, number: int, together: Barrier) -> Answer:
        body = None
        if self.parameters:
            body = route.good[:-1] + b', "parameters": ' + dump(self.parameters) + b"}"
        with wire.connect() as connection, connection.makefile("rb") as stream:
            # On a busy machine, connecting may take longer than the server waits for a
            # batch.
            together.wait(60)
            connection.sendall(
                route.request(body, {"X-Key": f"{self.name} {number}", **self.headers})
            )
            answer = read_answer(stream)
        if answer is None:
            raise Refused("no answer at all")
        return answer


ROUTES = (INVOCATIONS, LINES, PREDICT, SCORE, VERTEX_PREDICT, INFER, TF_PREDICT)
CASES = [
    (
        "queue",
        Crowd("more than the queue holds", "queue", 8, 8, 429, "waiting for this model"),
        ROUTES,
    ),
    (
        "queue",
        Crowd("a deadline that passes", "deadline", 1, 1, 504, "", {}, {"timeout": 1000}),
        ROUTES[5:6],
    ),
    (
        "flight",
        Crowd("more in flight than may be", "requests in flight", 8, 8, 429, "concurrent requests"),
        ROUTES,
    ),
    (
        "flight",
        Crowd("more than the rate of one caller", "rate", 16, 4, 429, "12/hour", {"X-Key": "one"}),
        ROUTES[:1],
    ),
]
