"""Paths, methods and callers that the server refuses, for any route.

`raw.py` has the heads that no route may receive.
"""

from tests.serve.corpus.case import Case, body_case
from tests.serve.corpus.routes import ALL, TREE_WIDE, reading


def _at(change):
    """Return a request to another path, which is derived from the route's path."""
    return lambda route: route.request(path=change(route.path))


NOT_FOUND = [
    Case(name, _at(change), TREE_WIDE[:-1], 404, has_any_form=True)
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
        f"the method {method}",
        lambda route, method=method: route.request(method=method),  # type: ignore[misc]
        ALL,
        405,
    )
    for method in ("DELETE", "BREW")
]
FOREIGN = body_case(
    "another host",
    lambda route: b"{}",
    reading("parameters"),
    403,
    ("evil.example",),
    {"Host": "evil.example"},
)
CASES = [*NOT_FOUND, *UNKNOWN, *METHODS, FOREIGN]
