"""Paths, methods, callers and sizes that the server refuses, for any route.

`raw.py` has the heads that no route may receive.
"""

from collections.abc import Callable

from tests.serve.corpus.case import Case, Route, body_case
from tests.serve.corpus.routes import (
    ALL,
    INVOCATIONS,
    MAX_BODY_BYTES,
    ONE_A_FORM,
    POSTS,
    TREE_WIDE,
    reading,
)

Build = Callable[[Route], bytes]


def _line(change: Callable[[bytes, bytes], bytes]) -> Build:
    """Return the request with another request line, which is derived from the method
    and the path.
    """

    def sent(route: Route) -> bytes:
        _, _, rest = route.request().partition(b"\r\n")
        return change(route.method.encode(), route.path.encode()) + b"\r\n" + rest

    return sent


def _at(change: Callable[[str], str]) -> Build:
    """Return a request to another path, which is derived from the route's path."""
    return _line(
        lambda method, path: b"%s %s HTTP/1.1" % (method, change(path.decode()).encode("latin-1"))
    )


def _chunk(route: Route) -> bytes:
    """Return a request with a single chunk above the limit."""
    head = route.request(b"", {"Transfer-Encoding": "chunked"}, length=-1)
    return head + b"%x\r\n%s\r\n0\r\n\r\n" % (_LARGE, b" " * _LARGE)


NOT_FOUND = [
    Case(name, _at(change), TREE_WIDE[:-1], 404, form="any")
    for name, change in {
        "a path that goes on": lambda path: f"{path}/nowhere",
        "escapes of escapes": lambda path: f"/%252e%252e{path}",
        "escapes that are no UTF-8": lambda path: f"/%ff%fe{path}",
        "a path of seven thousand characters": lambda path: f"/{'a' * 7000}{path}",
    }.items()
]
_FLIGHTS = tuple(
    route
    for route in TREE_WIDE
    if "/flights" in route.path and route.right != b"<html" and "/repository/" not in route.path
)
_VERSIONED = tuple(route for route in TREE_WIDE if "/versions/1" in route.path)
UNKNOWN = [
    Case(
        f"{name[:20]} in place of {known}",
        _at(lambda path, known=known, name=name: path.replace(known, name)),  # type: ignore[misc]
        on,
        404,
        (word,),
    )
    for known, name, on, word in (
        ("flights", "none", _FLIGHTS, "'none'"),
        ("flights", "n" * 300, _FLIGHTS, "nnn"),
        ("flights", "%2e%2e%5c", _FLIGHTS, "'..\\\\'"),
        ("/versions/1", "/versions/99", _VERSIONED, "'99'"),
        ("/versions/1", "/versions/one", _VERSIONED, "'one'"),
    )
]
METHODS = [
    Case(
        f"the method {method!r}",
        _line(lambda _, path, m=method: b"%s %s HTTP/1.1" % (m, path)),  # type: ignore[misc]
        ALL,
        405,
    )
    for method in (b"DELETE", b"BREW")
]
FOREIGN = body_case(
    "another host",
    lambda route: b"{}",
    reading("parameters"),
    403,
    ("evil.example",),
    {"Host": "evil.example"},
)
_LARGE = MAX_BODY_BYTES + 1
_WORDS = (str(MAX_BODY_BYTES),)
SIZES = [
    Case(
        "a declared terabyte",
        lambda route: route.request(b"", length=10**12),
        # The body is streamed: see "a long line".
        tuple(route for route in POSTS if route.reads != "jsonl"),
        413,
        _WORDS,
        closes=True,
    ),
    Case(
        "a body of a byte too many",
        lambda route: route.request(b" " * _LARGE),
        ONE_A_FORM[:5],
        413,
        _WORDS,
        closes=True,
    ),
    Case("chunks beyond the limit", _chunk, ONE_A_FORM[:5], 413, _WORDS, closes=True),
    Case("a long line", _chunk, reading("jsonl"), 413, _WORDS),
]
CASES: list[Case] = [
    *NOT_FOUND,
    *UNKNOWN,
    *METHODS,
    FOREIGN,
    *SIZES,
    body_case(
        "a request within a body",  # a smuggling attempt
        lambda route: INVOCATIONS.request(),
        reading("invocations", "v2", "tfserving", "records"),
        words=("JSON",),
    ),
]
