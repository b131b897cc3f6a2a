"""Request lines, paths, header fields and lengths that are malformed, ambiguous or too
large, for any route.
"""

from collections.abc import Callable
from itertools import chain

from tests.serve.corpus.case import AnyCase, BodyCase, Case, Route
from tests.serve.corpus.routes import (
    ALL,
    INVOCATIONS,
    MAX_BODY_BYTES,
    ONE_A_FORM,
    POSTS,
    RECORDS,
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


def _with(*lines: bytes) -> Build:
    """Return the request with additional lines in its head."""

    def sent(route: Route) -> bytes:
        line, _, rest = route.request().partition(b"\r\n")
        return b"\r\n".join([line, *lines, rest])

    return sent


def _host(line: bytes) -> Build:
    return lambda route: route.request().replace(b"Host: x\r\n", line, 1)


def _lengths(*lines: bytes, body: bytes = b"abc") -> Build:
    """Return a head that describes its body with these lines."""

    def sent(route: Route) -> bytes:
        return route.request(b"", length=-1)[:-2] + b"\r\n".join(lines) + b"\r\n\r\n" + body

    return sent


def _chunks(body: bytes) -> Build:
    return _lengths(b"Transfer-Encoding: chunked", body=body)


def _refused(
    bound: str, status: int, on: tuple[Route, ...], sent: dict[str, Build]
) -> list[AnyCase]:
    return [Case(name, bound, build, status, on, closes=True) for name, build in sent.items()]


REQUEST_LINES = _refused(
    "request line",
    400,
    ONE_A_FORM,
    {
        "words that are no HTTP": _line(lambda method, path: b"hello"),
        "no version": _line(lambda method, path: b"%s %s" % (method, path)),
        "HTTP/2 in words": _line(lambda method, path: b"%s %s HTTP/2.0" % (method, path)),
        "HTTP/0.9": _line(lambda method, path: b"%s %s HTTP/0.9" % (method, path)),
        "a method in lower case": _line(
            lambda method, path: b"%s %s HTTP/1.1" % (method.lower(), path)
        ),
        "two spaces": _line(lambda method, path: b"%s  %s HTTP/1.1" % (method, path)),
        "a tab": _line(lambda method, path: b"%s\t%s HTTP/1.1" % (method, path)),
        "a space in the path": _line(lambda method, path: b"%s %s x HTTP/1.1" % (method, path)),
        "bytes of TLS": lambda route: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        "the preface of HTTP/2": lambda route: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    },
)
TARGETS = _refused(
    "target",
    400,
    TREE_WIDE,
    {
        "an absolute target": _at(lambda path: f"http://x{path}"),
        "the target of a proxy": _line(lambda method, path: b"CONNECT x:443 HTTP/1.1"),
        "an asterisk": _line(lambda method, path: b"OPTIONS * HTTP/1.1"),
        "no slash": _at(lambda path: path.lstrip("/") or "x"),
        "a fragment": _at(lambda path: f"{path}#x"),
        "characters beyond ASCII": _at(lambda path: f"{path}ï"),
        "a double slash": _at(lambda path: f"/{path}"),
        "a double slash in escapes": _at(lambda path: f"/%2f{path[1:]}"),
        "a way up": _at(lambda path: f"/v2/..{path}"),
        "a way up in escapes": _at(lambda path: f"/v2/%2e%2E{path}"),
        "a way up in part": _at(lambda path: f"/v2/.%2e{path}"),
        "a dot": _at(lambda path: f"/.{path}"),
        "the way to a password": _at(lambda path: f"{path}/../../../../etc/passwd"),
        "a line feed in escapes": _at(lambda path: f"{path}%0a"),
        "a NUL in escapes": _at(lambda path: f"{path}%00"),
        "a NUL": _at(lambda path: f"{path}\0"),
    },
)
NOT_FOUND: list[AnyCase] = [
    Case(name, "names in paths", _at(change), 404, TREE_WIDE[:-1], form="any")
    for name, change in {
        "a path that goes on": lambda path: f"{path}/nowhere",
        "escapes of escapes": lambda path: f"/%252e%252e{path}",
        "a backslash": lambda path: f"/%5c..%5c..{path}",
        "escapes that are no UTF-8": lambda path: f"/%ff%fe{path}",
        "half an escape": lambda path: f"/%{path[1:]}%",
        "parameters of a segment": lambda path: f"/;x=y{path}",
        "a file that is there": lambda path: "/mlflow_deploy_plugin/core/errors.py",
        "a path of seven thousand characters": lambda path: f"/{'a' * 7000}{path}",
    }.items()
]
_FLIGHTS = tuple(
    route
    for route in TREE_WIDE
    if "/flights" in route.path and route.right != b"<html" and "/repository/" not in route.path
)
_VERSIONED = tuple(route for route in TREE_WIDE if "/versions/1" in route.path)
UNKNOWN: list[AnyCase] = [
    Case(name, "names of models", _at(change), 404, on, (word,))
    for name, change, on, word in (
        (
            "an endpoint that is not there",
            lambda path: path.replace("flights", "none"),
            _FLIGHTS,
            "'none'",
        ),
        (
            "an endpoint of 300 characters",
            lambda path: path.replace("flights", "n" * 300),
            _FLIGHTS,
            "nnn",
        ),
        (
            "an endpoint that is a way up",
            lambda path: path.replace("flights", "%2e%2e%5c"),
            _FLIGHTS,
            "'..\\\\'",
        ),
        (
            "a version that is not there",
            lambda path: path.replace("/versions/1", "/versions/99"),
            _VERSIONED,
            "'99'",
        ),
        (
            "a version that is a word",
            lambda path: path.replace("/versions/1", "/versions/one"),
            _VERSIONED,
            "'one'",
        ),
    )
]
METHODS: list[AnyCase] = [
    Case(
        f"the method {method!r}",
        "methods",
        _line(lambda _, path, m=method: b"%s %s HTTP/1.1" % (m, path)),  # type: ignore[misc]
        405,
        ALL,
    )
    for method in (b"DELETE", b"TRACE", b"BREW")
]
HOSTS = _refused(
    "host",
    400,
    ONE_A_FORM,
    {
        "no host": _host(b""),
        "a list of hosts": _host(b"Host: x, y\r\n"),
        "a path in the host": _host(b"Host: x/y\r\n"),
        "a user in the host": _host(b"Host: me@x\r\n"),
        "a port that is none": _host(b"Host: x:port\r\n"),
    },
)
FIELDS = _refused(
    "header fields",
    400,
    ONE_A_FORM,
    {
        "two hosts": _host(b"Host: x\r\nHost: x\r\n"),
        "a folded field": _with(b"A: b", b" c"),
        "a folded first field": lambda route: route.request().replace(b"Host", b" Host", 1),
        "a space before the colon": _with(b"A : b"),
        "a field without a name": _with(b": b"),
        "a field without a colon": _with(b"A"),
        "a name beyond ASCII": _with("Ä: b".encode("latin-1")),
        "a NUL in a value": _with(b"A: \x00"),
        "a bare carriage return": _with(b"A: b\rC: d"),
        "a bare line feed": _with(b"A: b\nC: d"),
        "lines that end with LF": lambda route: (
            route.request(b"", length=-1).replace(b"\r\n", b"\n") + b"\r\n\r\n"
        ),
        "two content types": _with(b"Content-Type: application/json", b"Content-Type: text/csv"),
    },
)
SMUGGLING = _refused(
    "lengths",
    400,
    tuple(route for route in ONE_A_FORM if route.method == "POST"),
    {
        "a length and chunks": _lengths(
            b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"
        ),
        "chunks and a length": _lengths(
            b"Transfer-Encoding: chunked", b"Content-Length: 3", body=b"0\r\n\r\n"
        ),
        "two lengths": _lengths(b"Content-Length: 3", b"Content-Length: 3"),
        "two lengths that differ": _lengths(b"Content-Length: 3", b"Content-Length: 4"),
        "a list of lengths": _lengths(b"Content-Length: 3, 3"),
        "a length with a sign": _lengths(b"Content-Length: +3"),
        "a negative length": _lengths(b"Content-Length: -3"),
        "a length in hexadecimal": _lengths(b"Content-Length: 0x3"),
        "an empty length": _lengths(b"Content-Length:"),
        "a length in two parts": _lengths(b"Content-Length: 1 3"),
        "a length in other digits": _lengths(b"Content-Length: \xb3"),
        "chunks of HTTP/1.0": lambda route: _chunks(b"0\r\n\r\n")(route).replace(
            b"HTTP/1.1", b"HTTP/1.0", 1
        ),
    },
)
CODINGS = _refused(
    "transfer coding",
    501,
    tuple(route for route in ONE_A_FORM if route.method == "POST"),
    {
        "another transfer coding": _lengths(b"Transfer-Encoding: br", body=b""),
        "a coding that is misspelt": _lengths(b"Transfer-Encoding: xchunked", body=b""),
    },
)
CHUNKS = _refused(
    "chunks",
    400,
    reading("invocations", "v2", "tfserving", "csv", "parameters"),
    {
        "a chunk without a size": _chunks(b"\r\n\r\n"),
        "a chunk of 0x3": _chunks(b"0x3\r\nabc\r\n0\r\n\r\n"),
        "a chunk of +3": _chunks(b"+3\r\nabc\r\n0\r\n\r\n"),
        "a chunk of -3": _chunks(b"-3\r\nabc\r\n0\r\n\r\n"),
        "a chunk of 1_0": _chunks(b"1_0\r\nabcdefghijklmnop\r\n0\r\n\r\n"),
        "a chunk longer than its size": _chunks(b"3\r\nabcd\r\n0\r\n\r\n"),
        "a chunk that ends with LF": _chunks(b"3\nabc\n0\n\n\r\n\r\n"),
    },
)
CALLERS: list[AnyCase] = [
    BodyCase(name, "callers", lambda route: b"{}", reading("parameters"), status, (word,), headers)
    for name, headers, status, word in (
        ("text from a web page", {"Content-Type": "text/plain"}, 415, "text/plain"),
        (
            "a form of a web page",
            {"Content-Type": "application/x-www-form-urlencoded"},
            415,
            "urlencoded",
        ),
        ("a page of elsewhere", {"Origin": "http://evil.example"}, 403, "http://evil.example"),
        ("a page of another port", {"Origin": "http://localhost:1"}, 403, "http://localhost:1"),
        ("a page that hides", {"Origin": "null"}, 403, "null"),
        ("a name that leads here", {"Host": "evil.example"}, 403, "evil.example"),
        (
            "its page",
            {"Host": "evil.example", "Origin": "http://evil.example"},
            403,
            "evil.example",
        ),
        (
            "a name that begins as ours",
            {"Host": "localhost.evil.example"},
            403,
            "localhost.evil.example",
        ),
        ("a number for an address", {"Host": "2130706433"}, 403, "2130706433"),
    )
]
TIMES: list[AnyCase] = [
    Case(
        "an empty time of an event",
        "event time",
        _with(b"X-Event-Time:"),
        400,
        RECORDS,
        ("X-Event-Time", "RFC 3339"),
    )
]
MEASURES: list[AnyCase] = [
    *_refused(
        "request line bytes",
        414,
        TREE_WIDE,
        {
            "a query of 9,000 bytes": _at(lambda path: f"{path}?{'a' * 9000}"),
            "a request line without an end": lambda route: (
                f"{route.method} {route.path}?{'a' * 9000}".encode()
            ),
        },
    ),
    *_refused(
        "field bytes", 431, TREE_WIDE, {"a field of 9,000 bytes": _with(b"A: " + b"a" * 9000)}
    ),
    *_refused("fields", 431, TREE_WIDE, {"a hundred and ten fields": _with(*[b"A: b"] * 110)}),
    *_refused(
        "expectation",
        417,
        tuple(route for route in ONE_A_FORM if route.method == "POST"),
        {"a miracle is expected": _with(b"Expect: miracles")},
    ),
]
_LARGE = MAX_BODY_BYTES + 1
BODIES: list[AnyCase] = [
    Case(
        "a declared terabyte",
        "body bytes",
        lambda route: route.request(b"", length=10**12),
        413,
        # The body is streamed: see "a long line".
        tuple(route for route in POSTS if route.reads != "jsonl"),
        (str(MAX_BODY_BYTES),),
        closes=True,
    ),
    Case(
        "a body of a byte too many",
        "body bytes",
        lambda route: route.request(b" " * _LARGE),
        413,
        ONE_A_FORM[:5],
        (str(MAX_BODY_BYTES),),
        closes=True,
    ),
    Case(
        "a long line",
        "body bytes",
        _chunks(b"%x\r\n%s\r\n0\r\n\r\n" % (_LARGE, b" " * _LARGE)),
        413,
        reading("jsonl"),
        (str(MAX_BODY_BYTES),),
    ),
    Case(
        "chunks beyond the limit",
        "body bytes",
        _chunks(b"%x\r\n%s\r\n0\r\n\r\n" % (_LARGE, b" " * _LARGE)),
        413,
        ONE_A_FORM[:5],
        (str(MAX_BODY_BYTES),),
        closes=True,
    ),
    BodyCase(
        "a request within a body",  # a smuggling attempt
        "lengths",
        lambda route: INVOCATIONS.request(),
        reading("invocations", "v2", "tfserving", "records"),
        words=("JSON",),
    ),
]
PIPELINED: list[AnyCase] = [
    Case(
        f"{case.name}, behind a good request",
        case.bound,
        case.sent,
        case.status,
        (INVOCATIONS,),
        closes=case.closes,
    )
    for case in chain.from_iterable(
        (REQUEST_LINES, TARGETS, HOSTS, FIELDS, SMUGGLING, CODINGS, CHUNKS, MEASURES)
    )
]
"""Each is sent together with a valid request before it (`wire.answered`), which must be
answered correctly first.
"""

CASES: list[AnyCase] = [
    *REQUEST_LINES,
    *TARGETS,
    *NOT_FOUND,
    *UNKNOWN,
    *METHODS,
    *HOSTS,
    *FIELDS,
    *SMUGGLING,
    *CODINGS,
    *CHUNKS,
    *CALLERS,
    *TIMES,
    *MEASURES,
    *BODIES,
]
