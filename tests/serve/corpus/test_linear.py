"""Ten times the bytes take about ten times the work,
for any pattern in any language.
"""

import csv
import gc
import io
import time
from contextlib import suppress

import orjson
import pytest

from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.serve.corpus import hostile
from tests.serve.corpus.case import Route
from tests.serve.corpus.routes import ARROW, POSTS
from tests.support.handling import handle

SMALL = 40_000
TIMES = 10
MOST = 2.0
"""A multiple of the growth in bytes. The time of a quadratic reader would grow by ten
times the growth in bytes.
"""
_TRIES = 6
_MOST_MEMORY = 3.0
_JSON = {"Content-Type": "application/json"}
_ROUTES = [
    *{route.reads: route for route in POSTS if route.reads in {"arrow", "csv", "jsonl"}}.values(),
    *{route.reads: route for route in POSTS if route.reads in hostile.FIELDS}.values(),
    next(route for route in POSTS if route.reads == "records"),
    next(route for route in POSTS if route.path.endswith("/load")),
    Route("POST", "/feedback", "feedback", headers=_JSON),
    Route("POST", "/endpoints/single/invocations", "invocations", b'{"inputs":[]}', headers=_JSON),
    Route("POST", "/endpoints/single/invocations", "csv", headers={"Content-Type": "text/csv"}),
    Route("POST", "/endpoints/tensor/invocations", "csv", headers={"Content-Type": "text/csv"}),
    Route("POST", "/endpoints/tensor/invocations", "arrow", headers=dict(ARROW.headers)),
]
"""One route per language, and routes whose model uses other readers: only numbers, or
tensors.
"""


@pytest.fixture(autouse=True)
def _without_collector():
    """Switch the garbage collector off, because it would scan all objects of the test
    process.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    yield
    if was_enabled:
        gc.enable()


def seconds(work, body):
    began = time.process_time()
    work(body)
    return time.process_time() - began


def _parsed(body):
    with suppress(orjson.JSONDecodeError):
        orjson.loads(body)


def _rows_of(body):
    with suppress(csv.Error):
        list(csv.reader(io.StringIO(body.decode("latin-1"), newline="")))


REFERENCES = (
    lambda body: dict.fromkeys(body.split(b",")),
    lambda body: [piece.decode("latin-1") for piece in body.split(b"\n")],
    _parsed,
    _rows_of,
)
"""Linear readers that create many objects. Ten times as many exceed the caches and take
up to 20 times as long.
"""


def grows_with(work, small, large):
    """Return an empty text if the time is at most linear in the best of some tries,
    otherwise the measured growth.
    """
    few = many = ratio = float("inf")
    memory = 1.0
    for attempt in range(_TRIES):
        few = min(few, *(seconds(work, small) for _ in range(3)))
        many = min(many, seconds(work, large))
        if attempt:
            for reference in REFERENCES:
                least = min(seconds(reference, small) for _ in range(3))
                memory = max(memory, seconds(reference, large) / least / TIMES)
        ratio = many / few / (len(large) / len(small)) / min(memory, _MOST_MEMORY)
        if ratio <= MOST:
            return ""
    return f"{ratio:.1f} times as fast as its bytes ({few * 1e3:.1f} ms, {many * 1e3:.1f} ms)"


@pytest.mark.long
@pytest.mark.parametrize("route", _ROUTES, ids=lambda route: f"{route.path} {route.reads}")
def test_time_of_hostile_bodies_is_linear(server, route):
    headers = {name.lower(): value for name, value in route.headers.items()}
    statuses = set()

    def ask(body):
        statuses.add(handle(server, RawRequest(route.method, route.path, headers, body)).status)

    superlinear = {}
    for name, fill in hostile.shapes(route).items():
        if grown := grows_with(ask, fill(SMALL), fill(TIMES * SMALL)):
            superlinear[name] = grown
    assert superlinear == {}
    assert statuses <= {200, 202, 400, 413, 415}
