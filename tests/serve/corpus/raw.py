"""The bytes of complete connections, and the expected responses, which must not depend
on how the bytes are split.
"""

import contextlib
import json
import re
import socket
import time
from dataclasses import dataclass

from tests.serve.corpus.routes import MAX_BODY_BYTES

PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
ROW = b'{"carrier":"AA","distance":100.5,"hour":3,"late":true}'
_LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: last\r\nConnection: close\r\n\r\n"
_LAST_ANSWER = b'{"live":true}'
_LINE = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Raw:
    """The bytes that a client sends, followed by a valid request.

    Attributes:
        statuses: the statuses of the responses to `sent`, in order.
        goes_on: True if the last request is also answered; False if the connection
            closes before.
    """

    name: str
    sent: bytes
    statuses: tuple[int, ...]
    goes_on: bool = False


def exchanged(port, pieces, pause):
    """Return the statuses for these segments, and True if the last request was
    answered.

    Args:
        pause: the seconds after a segment, in which the server reads it separately.
    """
    answered = b""
    with socket.create_connection(("127.0.0.1", port), timeout=8) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            connection.sendall(_LAST)
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                answered += piece
    answers = list(_answers(answered))
    goes_on = bool(answers) and answers[-1][1] == _LAST_ANSWER
    return tuple(status for status, _ in answers[: -1 if goes_on else None]), goes_on


def _answers(data):
    """Return the status and the body of each response."""
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        line = _LINE.match(head)
        length = _LENGTH.search(head + b"\r\n")
        assert line, head
        size = int(length[1]) if length else 0
        body = data[:size]
        data = data[size:]
        if line[1] != b"100":
            if int(line[1]) >= 400:
                assert json.loads(body).keys() in ({"error"}, {"error_code", "message"}), body
            yield int(line[1]), body


def _head(line, *fields):
    return b"\r\n".join([line, b"Host: x", *fields, b"\r\n"])


def _get(target=b"/ping", *fields):
    return _head(b"GET %s HTTP/1.1" % target, *fields)


def _post(body, *fields, path=b"/predict", kind=b"json"):
    """Return a request whose length is described by `fields`."""
    return _head(b"POST %s HTTP/1.1" % path, b"Content-Type: application/" + kind, *fields) + body


def _sized(body=ROW, *fields):
    return _post(body, *fields, b"Content-Length: %d" % len(body))


_CHUNKED = b"Transfer-Encoding: chunked"
_SIZE = b"%x" % len(ROW)
_ONE = b"%s\r\n%s\r\n" % (_SIZE, ROW)
_END = b"0\r\n\r\n"
_JOBS = b"/endpoints/e/jobs"


def _chunks(body, *fields):
    return _post(body, *fields, _CHUNKED)


def _size(size):
    """Return chunks; the first chunk has this size line."""
    return _chunks(size + b"\r\n" + ROW + b"\r\n" + _END)


def _trailer(trailer):
    return _chunks(_ONE + b"0\r\n" + trailer + b"\r\n")


def _length(*fields):
    return _post(_END if any(b"hunked" in field for field in fields) else b"abc", *fields)


def _each(texts):
    return texts.split(b"|")


_LARGE = MAX_BODY_BYTES + 1
_TAKEN = {
    "chunks": _chunks(_ONE + _END),
    "two chunks": _chunks(
        b"5\r\n" + ROW[:5] + b"\r\n%X\r\n" % len(ROW[5:]) + ROW[5:] + b"\r\n" + _END
    ),
    "a size with zeros before it": _size(b"0" * 10 + _SIZE),
    "an extension": _size(_SIZE + b";a=b"),
    "an extension in quotes": _size(_SIZE + b';a="b c"'),
    "an extension of 900 bytes": _size(_SIZE + b";" + b"a" * 900),
    "a trailer": _trailer(b"X: y\r\n"),
    "a hundred trailers": _trailer(b"X: y\r\n" * 100),
    "chunks of a GET": _chunks(_ONE + _END).replace(b"POST /predict", b"GET /ping"),
    "a body of a GET": _sized().replace(b"POST /predict", b"GET /ping"),
    "an empty line before it": b"\r\n" + PING,
    "escapes in the path": _get(b"/%70ing"),
    "a line of 8,190 bytes": _get(b"/ping?" + b"a" * 8171),
    "a field of 8,190 bytes": _get(b"/ping", b"A: " + b"a" * 8187),
    "a hundred fields": _get(b"/ping", *[b"A: b"] * 99),
    "an empty host": PING.replace(b" x", b""),
    "a value beyond ASCII": _get(b"/ping", b"A: \x85\xa0\xe4"),
    "a length with an underscore in its name": _get(
        b"/ping", b"Content_Length: 5", b"Transfer_Encoding: chunked"
    ),
    "100-continue": _sized(ROW, b"Expect: 100-Continue"),
    "HTTP/1.0 that goes on": b"GET /ping HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
}
_CLOSED = {
    "HTTP/1.0": b"GET /ping HTTP/1.0\r\n\r\n",
    "close": _get(b"/ping", b"Connection: close"),
}
_SEVERAL = {
    "three requests": (PING + _sized() + PING, (200, 200, 200)),
    "behind chunks that are not there": (
        _chunks(_ONE + _END).replace(b"/predict", b"/nowhere") + PING,
        (404, 200),
    ),
    "behind a method that is not taken": (PING.replace(b"GET", b"DELETE") + PING, (405, 200)),
    "a method of twenty letters": (PING.replace(b"GET", b"G" * 20) + PING, (405, 200)),
}
_CUT = {
    "two empty lines between": (PING + b"\r\n\r\n" + PING, (200, 400)),
    "a line feed behind a body": (_sized() + b"\n" + PING, (200, 400)),
    "a body that is too large": (
        _post(b"x" * _LARGE, b"Content-Length: %d" % _LARGE) + PING,
        (413,),
    ),
    "a chunk that says so": (_chunks(b"f" * 15 + b"\r\nabc\r\n" + _END), (413,)),
    "a large body that waits": (
        _post(b"", b"Expect: 100-continue", b"Content-Length: %d" % _LARGE),
        (413,),
    ),
    "a body that says so": (_post(b"x", b"Content-Length: " + b"9" * 18), (413,)),
    "an expectation": (_sized(ROW, b"Expect: miracles") + PING, (417,)),
    "a line of 8,191 bytes": (_get(b"/ping?" + b"a" * 8172), (414,)),
    "a field of 8,191 bytes": (_get(b"/ping", b"A: " + b"a" * 8188), (431,)),
    "a hundred and one fields": (_get(b"/ping", *[b"A: b"] * 100), (431,)),
    **{
        f"Transfer-Encoding: {coding.decode()!r}": (
            _length(b"Transfer-Encoding: " + coding),
            (501,),
        )
        for coding in _each(
            b"br|gzip|gzip, chunked|identity|identity, chunked|chunked, identity|"
            b"chunked, chunked|chunked,"
            b'|,chunked|"chunked"|chunked;q=1|xchunked|'
        )
    },
}
TARGETS = [
    _get(target)
    for target in _each(
        b"http://x/ping|https://y/ping|x:80|ping|?ping|/ping#a|/a/../ping|/%2e%2e/ping|/ping%00"
        b"|/ping%0d%0aX:%20y|/%2fping|//ping|/ping?\x01|/ping?\xe4|/ping?\x00|/ping\x00|/ping\x7f"
        b"|/p\xefng|/pi\rng"
    )
]
HOSTS = [
    PING.replace(b"Host: x", field)
    for field in _each(b"A: b| Host: x|Host: x, y|Host: a@b|Host: x:port|Host: x/y")
]
_REFUSED = {
    **{
        f"the line {line.decode('latin-1')!r}": _head(line)
        for line in [
            *_each(
                b"hello|get /ping HTTP/1.1|Get /ping HTTP/1.1|G#T /ping HTTP/1.1|GE /ping HTTP/1.1"
                b"|CONNECT x:443 HTTP/1.1|OPTIONS * HTTP/1.1|GET /ping|GET  HTTP/1.1|"
                b"GET /ping HTTP/1.2"
                b"|GET /ping HTTP/2.0|GET /ping HTTP/0.9|GET /ping HTTP/1.10|GET /ping http/1.1"
                b"|GET /ping HTTP/01.1|GET /ping HTTP 1.1|GET /ping HTTP/1.1 |GET  /ping HTTP/1.1"
                b"|GET /ping  HTTP/1.1|GET\t/ping HTTP/1.1|GET /pi ng HTTP/1.1|GET /ping HTTP/1.1\r"
                b"| GET /ping HTTP/1.1|\r\n GET /ping HTTP/1.1|\x00GET /ping HTTP/1.1|\n"
                b"GET /ping HTTP/1.1"
                b"|\rGET /ping HTTP/1.1|\r\n\nGET /ping HTTP/1.1|\r\n\r\nGET /ping HTTP/1.1"
            ),
            b"G" * 21 + b" /ping HTTP/1.1",
        ]
    },
    **{
        f"the target or host in {sent.decode('latin-1')!r}": sent + PING
        for sent in [*TARGETS, *HOSTS]
    },
    **{
        f"the field {field.decode('latin-1')!r}": _get(b"/ping", field) + PING
        for field in _each(
            b"Host: x|Host: y|A: b\r\n c|A: b\r\n\tc|A: b\r\n |A : b|A\t: b|A|: b|\xe4: b|"
            b"A\x01: b|A(: b"
            b"|A: \x00|A: \x01|A: \x7f|A:\x0bb|A: b\x0b|A: \x0cb|A: b\rC: d|A: b\nC: d|A: b\r|\n"
        )
    },
    **{
        f"Content-Length: {length.decode('latin-1')!r}": _length(b"Content-Length: " + length)
        for length in [*_each(b"3, 3|+3|-3|0x3||1 3|\xb3|1_0|3.0"), b"0" * 30 + b"3", b"9" * 30]
    },
    "two lengths": _length(b"Content-Length: 3", b"Content-Length: 3"),
    "two lengths that differ": _length(b"Content-Length: 3", b"Content-Length: 4"),
    "a length and chunks": _length(b"Content-Length: 3", _CHUNKED) + PING,
    "chunks and a length": _length(_CHUNKED, b"Content-Length: 3") + PING,
    "chunks said twice": _length(_CHUNKED, _CHUNKED),
    "chunks behind a vertical tab": _length(b"Transfer-Encoding: \x0bchunked"),
    "chunks of HTTP/1.0": _chunks(_ONE + _END).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "two content types": _sized(ROW, b"Content-Type: text/csv"),
    "lines that end with LF": b"GET /ping HTTP/1.1\nHost: x\n\n\r\n\r\n",
    "bytes of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    **{
        f"the size {size.decode('latin-1')!r} of a chunk": _size(size) + PING
        for size in [
            *_each(b"0x5|+5|-5|1_0|| 5|5 |zz"),
            b"f" * 16,
            b"f" * 17,
            b"0" * 20 + _SIZE,
            _SIZE + b"\r",
            _SIZE + b";a\rb",
            _SIZE + b";a\nb",
            _SIZE + b";a\x00b",
            _SIZE + b";a\x7fb",
        ]
    },
    "an extension of 2,000 bytes": _size(_SIZE + b";" + b"a" * 2000),
    "sizes that end with LF": _chunks(b"3\nabc\n0\n\n\r\n\r\n"),
    **{
        f"a chunk that ends with {end.decode()!r}": _chunks(_ONE[:-2] + end + _END) + PING
        for end in (b"\n", b"\rX", b"\n\r", b"}\r\n")
    },
    "a chunk shorter than its size": _chunks(b"5\r\nabc\r\n" + _END) + PING,
    **{
        f"the trailer {trailer[:20].decode('latin-1')!r}": _trailer(trailer + b"\r\n") + PING
        for trailer in [
            *_each(
                b": y|X|X : y|X: y\r\n z| X: y|X: \x00|X: y\n|X: y\n\n|X: y\rz|\xe4: a|"
                b"GET /ping HTTP/1.1\r\nHost: x|Content-Length: 5|transfer-encoding: chunked"
            ),
            b"A: " + b"a" * 9000,
            b"A: b\r\n" * 100 + b"A: b",
        ]
    },
    "a last chunk that ends with LF": _chunks(_ONE + b"0\n\r\n") + PING,
    "bad chunks of a bad path": _chunks(b"zz\r\n").replace(b"/predict", b"//predict"),
    "bad chunks of an upload": _post(b"zz\r\n", _CHUNKED, path=_JOBS, kind=b"jsonl"),
    "a bad trailer of an upload": _post(
        _ONE + b"0\r\nX\r\n\r\n", _CHUNKED, path=_JOBS, kind=b"jsonl"
    ),
}
CASES = [
    *[Raw(name, sent, (200,), goes_on=True) for name, sent in _TAKEN.items()],
    *[Raw(name, sent, (200,)) for name, sent in _CLOSED.items()],
    *[Raw(name, sent, statuses, goes_on=True) for name, (sent, statuses) in _SEVERAL.items()],
    *[Raw(name, sent, statuses) for name, (sent, statuses) in _CUT.items()],
    *[Raw(name, sent, (400,)) for name, sent in _REFUSED.items()],
]
