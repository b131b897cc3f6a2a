"""Our parser, h11 and llhttp read generated raw requests, and must never frame a
request differently.

A request is smuggled if two programs parse the same bytes in two ways. In 12,000
streams, complete and in segments, a peer must parse every request that we accept with
the same method, path, query and body, or refuse it. With one exception, we refuse the
requests that both peers refuse, and all three accept valid requests.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import h11
import httptools
import pytest

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.http.parser import BodyParser, parse_head

STREAMS = pytest.mark.parametrize("count", [2_000, pytest.param(12_000, marks=pytest.mark.long)])
MOST_BYTES = 1 << 20
Framed = tuple[bytes, str, str, bytes]
"""Method, path, query, body."""


@dataclass(frozen=True)
class Reading:
    """The result of a parser for a stream.

    Attributes:
        requests: the complete requests.
        end: "open" (it waits for more), "closed" (it does not read more on this
            connection) or "refused".
    """

    requests: list[Framed]
    end: str


def read_ours(segments):
    requests: list[Framed] = []
    data = b""
    head = None
    body = None
    try:
        for segment in segments:
            data += segment
            while True:
                before = (len(data), head, body is not None)
                if head is None:
                    head, data = parse_head(data)
                if head is not None and body is None:
                    body = BodyParser(head.length, MOST_BYTES)
                if head is not None and body is not None:
                    if not body.is_whole:
                        data = body.feed(data)
                    if body.is_whole:
                        requests.append(
                            (head.method.encode(), head.path, head.query, bytes(body.content))
                        )
                        if not head.keep_alive:
                            return Reading(requests, "closed")
                        head = None
                        body = None
                        continue
                if before == (len(data), head, body is not None):
                    break
    except OnnxserveError:
        return Reading(requests, "refused")
    return Reading(requests, "open")


def framed(method, target, body):
    """Return the result of a peer in our form."""
    path, _, query = target.partition(b"?")
    return method, unquote_to_bytes(path).decode("utf-8", "replace"), query.decode("latin-1"), body


def read_h11(segments):
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 18)
    requests: list[Framed] = []
    head: h11.Request | None = None
    body = b""
    try:
        for segment in segments:
            connection.receive_data(segment)
            while (event := connection.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Request):
                    head = event
                    body = b""
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage) and head is not None:
                    requests.append(framed(head.method, head.target, body))
                    connection.send(
                        h11.Response(status_code=200, headers=[("content-length", "0")])
                    )
                    connection.send(h11.EndOfMessage())
                    if connection.our_state is not h11.DONE:
                        return Reading(requests, "closed")
                    connection.start_next_cycle()
                else:
                    return Reading(requests, "closed")
    except h11.RemoteProtocolError:
        return Reading(requests, "refused")
    return Reading(requests, "open")


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
            self.requests.append(framed(self.parser.get_method(), self.target, self.body))
            self.is_closed = not self.parser.should_keep_alive()


def read_llhttp(segments):
    messages = _Messages()
    try:
        for segment in segments:
            messages.parser.feed_data(segment)
            if messages.is_closed:
                return Reading(messages.requests, "closed")
    except httptools.HttpParserUpgrade:
        return Reading(messages.requests, "closed")
    except httptools.HttpParserError:
        return Reading(messages.requests, "closed" if messages.is_closed else "refused")
    return Reading(messages.requests, "open")


PEERS: dict[str, Callable[[list[bytes]], Reading]] = {"h11": read_h11, "llhttp": read_llhttp}

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
    b";",
    b"\xff",
    b"HTTP/1.1",
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
    kind = chance.randrange(6)
    at = chance.randrange(len(stream))
    if kind == 0:
        return stream[:at] + chance.choice(SPLICES) + stream[at:]
    if kind == 1:
        return stream[:at] + stream[at + chance.randint(1, 3) :]
    if kind == 2:
        return stream[:at] + bytes([chance.randrange(256)]) + stream[at + 1 :]
    if kind == 3:
        return stream.replace(
            b"\r\n", chance.choice([b"\n", b"\r", b"\r\r\n", b"\n\r"]), chance.randint(1, 3)
        )
    if kind == 4:
        return stream.replace(
            b"HTTP/1.1",
            chance.choice([b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 "]),
            1,
        )
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


def check_agreement(ours, theirs, stream, peer):
    both = min(len(ours.requests), len(theirs.requests))
    assert ours.requests[:both] == theirs.requests[:both], (peer, stream)
    if len(ours.requests) > both:
        assert theirs.end != "open", (
            peer,
            "waits for more of a request that we have taken",
            stream,
        )
    if len(theirs.requests) > both:
        assert ours.end != "open", (peer, "has taken a request of which we wait for more", stream)


@STREAMS
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("in_segments", [False, True], ids=["whole", "segments"])
def test_no_request_is_framed_in_two_ways(peer, in_segments, count):
    taken = 0
    for number, (stream, is_valid) in enumerate(streams(count, seed=11)):
        pieces = segments_of(stream, random.Random(number)) if in_segments else [stream]
        ours = read_ours(pieces)
        theirs = PEERS[peer](pieces)
        check_agreement(ours, theirs, stream, peer)
        if is_valid:
            assert ours == theirs, (peer, stream)
        taken += len(ours.requests)
    assert taken > count // 2


SPACE_BEFORE_EXTENSION = re.compile(rb"^[0-9A-Fa-f]+[ \t]+;", re.MULTILINE)
"""White space after a chunk's size, which RFC 9112, 7.1.1 allows; our parser accepts
it, and both peers refuse it.
"""


@STREAMS
def test_streams_that_both_peers_refuse_are_refused(count):
    refused = 0
    for stream, _ in streams(count, seed=13):
        if SPACE_BEFORE_EXTENSION.search(stream):
            continue
        ours = read_ours([stream])
        peers = [read([stream]) for read in PEERS.values()]
        if all(peer.end == "refused" for peer in peers):
            refused += 1
            assert len(ours.requests) <= max(len(peer.requests) for peer in peers), stream
    assert refused > count // 8


@STREAMS
def test_segments_change_nothing(count):
    for number, (stream, _) in enumerate(streams(count, seed=12)):
        assert read_ours(segments_of(stream, random.Random(number))) == read_ours([stream]), stream
