"""Bodies that are invalid or costly to read: content types, encodings, JSON itself."""

import gzip
import json

from tests.serve.corpus.case import body_cases
from tests.serve.corpus.routes import JSON_ROUTES, MAX_BODY_BYTES, POSTS, reading

_LIMIT = str(MAX_BODY_BYTES)


def _good(route):
    """Return a valid body, for cases in which only the headers are wrong."""
    return route.good or b"{}"


_TYPED = tuple(route for route in POSTS if "Content-Type" in route.headers)
CONTENT_TYPES = []
for given, word in {
    "": "no Content-Type",
    "application/xml": "application/xml",
    "application/json; charset=latin-1": "latin-1",
    "../../etc/passwd": "../../etc/passwd",
    "x" * 4000: "xxx",
}.items():
    name = f"the content type {given[:40]!r}"
    CONTENT_TYPES += body_cases(_TYPED, {name: _good}, 415, (word,), {"Content-Type": given})

_BOMB = b" " * (MAX_BODY_BYTES + 1)


ENCODINGS = [
    *body_cases(POSTS, {"an unknown encoding": _good}, 415, ("'br'",), {"Content-Encoding": "br"}),
    *body_cases(
        POSTS,
        {"gzip that is none": (b"not compressed", "gzip")},
        headers={"Content-Encoding": "gzip"},
    ),
    *body_cases(
        POSTS,
        {"a gzip bomb": gzip.compress(_BOMB)},
        413,
        (_LIMIT,),
        {"Content-Encoding": "gzip"},
    ),
]

_NESTED = (b"[" * 100_000, b"]" * 100_000)
_DOCUMENTS = {
    "a document that breaks off": b'{"inputs": [1, ',
    "bytes that are no UTF-8": b'{"inputs": "\xff"}',
    "half a surrogate pair in escapes": b'{"inputs": ["\\ud800"]}',
    "a number that overflows": b'{"inputs": [1e999]}',
    "a NUL behind the document": b"{}\x00",
}
_DEEP = {
    "a hundred thousand arrays": b"".join(_NESTED),
    "a hundred thousand objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
}
_DEEP_NAN = {
    "a hundred thousand arrays around NaN": b"NaN".join(_NESTED),
    "900 objects around NaN": b'{"a":' * 900 + b"NaN" + b"}" * 900,
}
_KINDS = (b"null", b'"{}"')
_DATA = (b"null", b"5", b'"text"', b"[]", b"{}", b"[" * 900 + b"1" + b"]" * 900)
FIELDS = {
    route.reads: name.encode()
    for route in JSON_ROUTES
    if route.good.startswith(b"{")
    for name, value in json.loads(route.good).items()
    if isinstance(value, list | dict)
}
"""The field that contains the data, by language."""


def _in_field(value):
    return lambda route: b'{"%s": %s}' % (FIELDS[route.reads], value)


JSON_BODIES = [
    *body_cases(reading(*FIELDS), {"an object without the data": b'{"x": 1}'}),
    *body_cases(
        tuple(route for route in JSON_ROUTES if route.reads not in ("index", "parameters")),
        {"no body": (b"", "empty")},
    ),
    *body_cases(JSON_ROUTES, _DOCUMENTS, words=("JSON",)),
    *body_cases(JSON_ROUTES, _DEEP),
    *body_cases(JSON_ROUTES, _DEEP_NAN, words=("500 levels",)),
    *body_cases(
        tuple(route for route in JSON_ROUTES if route.reads != "records"),
        {"an array in place of the document": b"[1, 2]"},
    ),
    *body_cases(JSON_ROUTES, {f"the document {kind!r}": kind for kind in _KINDS}),
    *body_cases(
        reading(*FIELDS), {f"the data {value[:12]!r}": _in_field(value) for value in _DATA}
    ),
]

CASES = [*CONTENT_TYPES, *ENCODINGS, *JSON_BODIES]
