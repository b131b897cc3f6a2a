"""Bodies that are invalid or costly to read: content types, encodings, JSON itself."""

import gzip
import json
import zlib
from collections.abc import Callable

import zstandard

from tests.serve.corpus.case import AnyCase, BodyCase, Route
from tests.serve.corpus.routes import JSON_ROUTES, MAX_BODY_BYTES, POSTS, reading

Body = Callable[[Route], bytes]
_LIMIT = str(MAX_BODY_BYTES)


def _always(body: bytes) -> Body:
    return lambda route: body


def _good(route: Route) -> bytes:
    """Return a valid body, for cases in which only the headers are wrong."""
    return route.good or b"{}"


def _zstd(body: bytes, window_log: int = 20, is_sized: bool = True) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3, window_log=window_log, write_content_size=is_sized
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    if is_sized:
        return zstandard.ZstdCompressor(compression_params=parameters).compress(body)
    return compressor.compress(body) + compressor.flush()


_TYPED = tuple(route for route in POSTS if "Content-Type" in route.headers)
CONTENT_TYPES: list[AnyCase] = [
    BodyCase(
        f"the content type {given[:40] or 'left out'}",
        "content type",
        _good,
        on,
        415,
        (word,),
        {"Content-Type": given},
    )
    for given, on, word in (
        ("", _TYPED, "no Content-Type"),
        ("application/xml", _TYPED, "application/xml"),
        ("application/x-www-form-urlencoded", _TYPED, "application/x-www-form-urlencoded"),
        ("multipart/form-data; boundary=x", _TYPED, "multipart/form-data"),
        ("application/json; charset=latin-1", _TYPED, "latin-1"),
        ("../../etc/passwd", _TYPED, "../../etc/passwd"),
        ("x" * 4000, _TYPED, "xxx"),
        ("text/html", reading("v2"), "text/html"),
    )
]

_BOMB = b" " * (MAX_BODY_BYTES + 1)
_ENCODED: list[tuple[str, str, str, Body, int, str]] = [
    ("an unknown encoding", "encoding", "br", _good, 415, "'br'"),
    (
        "two encodings",
        "encoding",
        "gzip, gzip",
        lambda route: gzip.compress(gzip.compress(_good(route))),
        415,
        "one",
    ),
    ("gzip that is none", "encoding", "gzip", _always(b"not compressed"), 400, "gzip"),
    ("zstd that is none", "encoding", "zstd", _always(b"not compressed"), 400, "zstd"),
    (
        "half a gzip body",
        "encoding",
        "gzip",
        lambda route: gzip.compress(_good(route))[:-9],
        400,
        "gzip",
    ),
    ("half a zstd body", "encoding", "zstd", lambda route: _zstd(_good(route))[:-3], 400, "zstd"),
    (
        "gzip with a wrong sum",
        "encoding",
        "gzip",
        lambda route: gzip.compress(_good(route))[:-8] + bytes(8),
        400,
        "",
    ),
    (
        "zlib in place of gzip",
        "encoding",
        "gzip",
        lambda route: zlib.compress(_good(route)),
        400,
        "gzip",
    ),
    (
        "bytes behind a zstd frame",
        "encoding",
        "zstd",
        lambda route: _zstd(_good(route)) + b"x",
        400,
        "zstd",
    ),
    ("a gzip bomb", "decompressed bytes", "gzip", _always(gzip.compress(_BOMB)), 413, _LIMIT),
    (
        "a gzip bomb in parts",
        "decompressed bytes",
        "gzip",
        _always(gzip.compress(_BOMB[::2]) * 3),
        413,
        _LIMIT,
    ),
    ("a zstd bomb", "decompressed bytes", "zstd", _always(_zstd(_BOMB)), 413, _LIMIT),
    (
        "a zstd bomb without a size",
        "decompressed bytes",
        "zstd",
        _always(_zstd(_BOMB, 20, False)),
        413,
        _LIMIT,
    ),
    (
        "ten thousand gzip members",
        "gzip members",
        "gzip",
        _always(gzip.compress(b"") * 10_001),
        400,
        "members",
    ),
    (
        "a zstd window of 128 MiB",
        "zstd window",
        "zstd",
        lambda route: _zstd(_good(route), 27, False),
        400,
        "zstd",
    ),
]
ENCODINGS: list[AnyCase] = [
    BodyCase(name, bound, body, POSTS, status, (word,), {"Content-Encoding": encoding})
    for name, bound, encoding, body, status, word in _ENCODED
]

_NESTED = (b"[" * 100_000, b"]" * 100_000)
_DOCUMENTS = {
    "a document that breaks off": b'{"inputs": [1, ',
    "two documents": b"{}{}",
    "a comma too many": b'{"inputs": [1,],}',
    "single quotes": b"{'inputs': [1]}",
    "a comment": b'{"inputs": [1]} // good',
    "bytes that are no UTF-8": b'{"inputs": "\xff"}',
    "UTF-16": '{"inputs": [1]}'.encode("utf-16"),
    "half a surrogate pair in bytes": b'{"inputs": ["\xed\xa0\x80"]}',
    "half a surrogate pair in escapes": b'{"inputs": ["\\ud800"]}',
    "a control character in a text": b'{"inputs": ["\x01"]}',
    "a leading zero": b'{"inputs": [007]}',
    "a hexadecimal number": b'{"inputs": [0x10]}',
    "a number that overflows": b'{"inputs": [1e999]}',
    "an unfinished escape": b'{"inputs": ["\\u12"]}',
    "a NUL behind the document": b"{}\x00",
    "a page": b"<html></html>",
}
_DEEP = {
    "a hundred thousand arrays": b"".join(_NESTED),
    "a hundred thousand objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a hundred thousand openings": _NESTED[0],
}
_DEEP_NAN = {
    "a hundred thousand arrays": b"NaN".join(_NESTED),
    "501 arrays": b"[" * 501 + b"NaN" + b"]" * 501,
    "900 objects": b'{"a":' * 900 + b"NaN" + b"}" * 900,
}
_KINDS = {
    "array": b"[1, 2]",
    "null": b"null",
    "string": b'"{}"',
    "number": b"1e5",
    "boolean": b"true",
}
FIELDS = {
    route.reads: name.encode()
    for route in JSON_ROUTES
    if route.good.startswith(b"{")
    for name, value in json.loads(route.good).items()
    if isinstance(value, list | dict)
}
"""The field that contains the data, by language."""


def _in_field(value: bytes) -> Body:
    return lambda route: b'{"%s": %s}' % (FIELDS[route.reads], value)


_NEVER_EMPTY = tuple(route for route in JSON_ROUTES if route.reads not in ("index", "parameters"))
JSON_BODIES: list[AnyCase] = [
    BodyCase("an object without the data", "JSON", _always(b'{"x": 1}'), reading(*FIELDS), 400),
    BodyCase("no body", "JSON", _always(b""), _NEVER_EMPTY, 400, ("empty",)),
    *[
        BodyCase(name, "JSON", _always(body), JSON_ROUTES, 400, ("JSON",))
        for name, body in _DOCUMENTS.items()
    ],
    *[BodyCase(name, "depth of JSON", _always(body), JSON_ROUTES) for name, body in _DEEP.items()],
    *[
        BodyCase(
            f"{name} around NaN",
            "depth around NaN",
            _always(body),
            JSON_ROUTES,
            400,
            ("500 levels",),
        )
        for name, body in _DEEP_NAN.items()
    ],
    *[
        BodyCase(
            f"a JSON {kind} in place of the document",
            "kinds of JSON",
            _always(body),
            tuple(route for route in JSON_ROUTES if (kind, route.reads) != ("array", "records")),
        )
        for kind, body in _KINDS.items()
    ],
    *[
        BodyCase(
            f"{value[:12].decode()} in place of the data",
            "kinds of JSON",
            _in_field(value),
            reading(*FIELDS),
        )
        for value in (
            b"null",
            b"5",
            b'"text"',
            b"true",
            b"[]",
            b"{}",
            b"[" * 900 + b"1" + b"]" * 900,
        )
    ],
]

CASES: list[AnyCase] = [*CONTENT_TYPES, *ENCODINGS, *JSON_BODIES]
