"""Our parser and llhttp read generated raw requests, and must never frame a request
differently.

A request is smuggled if two programs parse the same bytes in two ways. llhttp must
parse every request that we accept with the same method, path, query and body, or refuse
it. Both accept valid requests.
"""

import random
from urllib.parse import unquote_to_bytes

import httptools
import pytest

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.http.parser import BodyParser, parse_head

MOST_BYTES = 1 << 20
Framed = tuple[bytes, str, str, bytes]
"""Method, path, query, body."""


def read_ours(segments):
    """Return the complete requests, and the end: "open" (it waits for more), "closed"
    (it does not read more on this connection) or "refused".
    """
    requests: list[Framed] = []
    data = b""
    head = None
    try:
        for segment in segments:
            data += segment
            before = None
            while before != (head, data):
                before = (head, data)
                if head is None:
                    head, data = parse_head(data)
                    body = BodyParser(head.length if head else 0, MOST_BYTES)
                if head is None:
                    continue
                if not body.is_whole:
                    data = body.feed(data)
                if body.is_whole:
                    framed = head.method.encode(), head.path, head.query, bytes(body.content)
                    requests.append(framed)
                    if not head.keep_alive:
                        return requests, "closed"
                    head = None
    except OnnxserveError:
        return requests, "refused"
    return requests, "open"


class _Messages:
    """llhttp's callbacks."""

    def __init__(self) -> None:
        self.requests: list[Framed] = []
        self.parser = httptools.HttpRequestParser(self)
        self.target = self.body = b""
        self.is_closed = False

    def on_message_begin(self) -> None:
        self.target = self.body = b""

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if not self.is_closed:
            path, _, query = self.target.partition(b"?")
            decoded = unquote_to_bytes(path).decode("utf-8", "replace")
            method = self.parser.get_method()
            self.requests.append((method, decoded, query.decode("latin-1"), self.body))
            self.is_closed = not self.parser.should_keep_alive()


def read_llhttp(segments):
    messages = _Messages()
    try:
        for segment in segments:
            messages.parser.feed_data(segment)
            if messages.is_closed:
                return messages.requests, "closed"
    except httptools.HttpParserUpgrade:
        return messages.requests, "closed"
    except httptools.HttpParserError:
        return messages.requests, "closed" if messages.is_closed else "refused"
    return messages.requests, "open"


METHODS = [b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH"]
TARGETS = [b"/", b"/invocations", b"/v2/models/a/infer?x=1&y=%20", b"/ping", b"/a%2Fb", b"/~x;v=1"]
FIELDS = [
    b"Accept: */*",
    b"User-Agent: x/1.0 (y)",
    b"X-Empty:",
    b"X-Latin: caf\xe9",
    b"Content-Type: application/json",
]
BODIES = [
    b"",
    b"{}",
    b'{"inputs": [[1.0, 2.0]]}',
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\n",
    b"0\r\n\r\n",
    b"a" * 300,
]
AMBIGUOUS = [
    b"Content-Length: 0", b"Content-Length: 5", b"Content-Length: +5", b"Content-Length: 5, 5",
    b"Content-Length: 0x5",
    b"Content-Length : 5", b"Content-Length: 5 ", b"Content-Length:",
    b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding: CHUNKED", b"Transfer-Encoding:\tchunked",
    b"transfer-encoding:chunked",
    b"Transfer-Encoding: gzip, chunked", b"Transfer_Encoding: chunked", b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: close, keep-alive", b"Host: other", b"Host:", b" folded", b"\tfolded",
    b"NoColon", b": no name",
    b"X: a\x00b",
    b"X: a\nContent-Length: 5", b"X: a\rY: b", b"Expect: 100-continue", b"X\x80: 1", b"",
]  # fmt: skip
SPLICES = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b"\x00",
    b"\x0b",
    b":",
    b",",
    b"0",
    b"-",
]


def chunked(body, chance):
    """Draw a chunked body, with the extensions
    that the standard allows in size lines.
    """
    out = b""
    rest = body
    while rest:
        size = chance.randint(1, len(rest))
        digits = format(size, chance.choice(["x", "X", "04x"])).encode()
        out += digits + chance.choice([b"", b"", b";a=b", b";a"]) + b"\r\n" + rest[:size] + b"\r\n"
        rest = rest[size:]
    return out + b"0\r\n" + chance.choice([b"", b"", b"X-Trailer: 1\r\n"]) + b"\r\n"


def valid_request(chance):
    """Draw a request that the standard allows, with a target and a host that our server
    accepts.
    """
    fields = [
        b"Host: " + chance.choice([b"x", b"x:80", b"[::1]:8080"]),
        *chance.sample(FIELDS, chance.randint(0, 3)),
    ]
    body = b""
    if chance.random() < 0.7:
        content = chance.choice(BODIES)
        if chance.random() < 0.5:
            fields.append(
                chance.choice([b"Content-Length: ", b"content-length:"])
                + str(len(content)).encode()
            )
            body = content
        else:
            fields.append(b"Transfer-Encoding: chunked")
            body = chunked(content, chance)
    chance.shuffle(fields)
    line = b"%s %s HTTP/1.1" % (chance.choice(METHODS), chance.choice(TARGETS))
    return b"\r\n".join([line, *fields]) + b"\r\n\r\n" + body


def mutated(stream, chance):
    """Insert bytes that parsers are known to read differently."""
    kind = chance.randrange(5)
    at = chance.randrange(len(stream))
    if kind == 0:
        return stream[:at] + chance.choice(SPLICES) + stream[at:]
    if kind == 1:
        return stream[:at] + stream[at + chance.randint(1, 3) :]
    if kind == 2:
        endings = [b"\n", b"\r", b"\r\r\n", b"\n\r"]
        return stream.replace(b"\r\n", chance.choice(endings), chance.randint(1, 3))
    if kind == 3:
        versions = [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 "]
        return stream.replace(b"HTTP/1.1", chance.choice(versions), 1)
    lines = stream.split(b"\r\n")
    place = chance.randint(1, max(1, lines.index(b"") if b"" in lines else 1))
    return b"\r\n".join([*lines[:place], chance.choice(AMBIGUOUS), *lines[place:]])


def streams(count, seed):
    """Draw streams of one to three requests, and True if the stream was not changed."""
    chance = random.Random(seed)
    for number in range(count):
        stream = b"".join(valid_request(chance) for _ in range(chance.randint(1, 3)))
        changes = number % 4  # Every fourth stream is valid.
        for _ in range(changes):
            stream = mutated(stream, chance)
        yield stream, changes == 0


def segments_of(stream, chance):
    """Split the stream as it may arrive."""
    cuts = sorted(
        chance.sample(range(1, len(stream)), min(len(stream) - 1, chance.choice([1, 2, 5, 40])))
    )
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


@pytest.mark.parametrize("count", [2_000, pytest.param(12_000, marks=pytest.mark.long)])
def test_llhttp_frames_every_request_alike(count):
    taken = 0
    for number, (stream, is_valid) in enumerate(streams(count, seed=11)):
        ours, our_end = read_ours([stream])
        segments = segments_of(stream, random.Random(number))
        assert read_ours(segments) == (ours, our_end), stream
        theirs, their_end = read_llhttp(segments)
        both = min(len(ours), len(theirs))
        assert ours[:both] == theirs[:both], stream
        assert len(ours) == both or their_end != "open", stream
        assert len(theirs) == both or our_end != "open", stream
        assert not is_valid or (ours, our_end) == (theirs, their_end), stream
        taken += len(ours)
    assert taken > count // 2
