"""Our parser, h11 and llhttp read hostile requests with random changes, and must never
frame a request differently.

A request is smuggled if two programs parse the same bytes in two ways. A peer must
parse every request that we accept with the same method, path, query and body, or refuse
it.
"""

import random
from urllib.parse import unquote_to_bytes

import h11
import httptools
import pytest

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.http.parser import BodyParser, parse_head
from tests.serve.corpus import raw

Framed = tuple[bytes, str, str, bytes]
"""Method, path, query, body."""
SHORT = [case for case in raw.CASES if len(case.sent) < 1000]
ANY = [case.sent for case in SHORT]
VALID = [case.sent for case in SHORT if case.statuses == (200,) and case.goes_on]
SPLICES = [b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b"\x00", b":", b",", b"0", b"-"]


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
            before: object = None
            while before != (head, data):
                before = (head, data)
                if head is None:
                    head, data = parse_head(data)
                    body = BodyParser(head.length if head else 0, 1 << 20)
                if head is None:
                    continue
                if not body.is_whole:
                    data = body.feed(data)
                if body.is_whole:
                    ours = head.method.encode(), head.path, head.query, bytes(body.content)
                    requests.append(ours)
                    if not head.keep_alive:
                        return requests, "closed"
                    head = None
    except OnnxserveError:
        return requests, "refused"
    return requests, "open"


def framed(method, target, body):
    """Return the result of a peer in our form."""
    path, _, query = target.partition(b"?")
    return method, unquote_to_bytes(path).decode("utf-8", "replace"), query.decode("latin-1"), body


def read_h11(segments):
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 18)
    requests: list[Framed] = []
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
                elif isinstance(event, h11.EndOfMessage):
                    requests.append(framed(head.method, head.target, body))
                    connection.send(h11.Response(status_code=200, headers=[]))
                    if connection.our_state is h11.SEND_BODY:
                        connection.send(h11.EndOfMessage())
                    if connection.our_state is not h11.DONE:
                        return requests, "closed"
                    connection.start_next_cycle()
                else:
                    return requests, "closed"
    except h11.RemoteProtocolError:
        return requests, "refused"
    return requests, "open"


class _Messages:
    """llhttp's callbacks."""

    def __init__(self):
        self.requests = []
        self.parser = httptools.HttpRequestParser(self)
        self.target = self.body = b""
        self.is_closed = False

    def on_message_begin(self):
        self.target = self.body = b""

    def on_url(self, url):
        self.target += url

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        if not self.is_closed:
            self.requests.append(framed(self.parser.get_method(), self.target, self.body))
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


def changed(stream, chance):
    """Insert, remove or replace a few bytes."""
    for _ in range(chance.randrange(4)):
        start = chance.randrange(len(stream))
        end = start + chance.randrange(3)
        stream = stream[:start] + chance.choice([b"", *SPLICES]) + stream[end:]
    return stream


@pytest.mark.parametrize("count", [2_000, pytest.param(12_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("read_theirs", [read_h11, read_llhttp])
def test_peers_frame_every_request_alike(read_theirs, count):
    chance = random.Random(11)
    taken = 0
    for _ in range(count):
        requests = [*chance.choices(VALID, k=chance.randrange(3)), chance.choice(ANY)]
        stream = changed(b"".join(requests), chance)
        ours, our_end = read_ours([stream])
        cut = chance.randrange(len(stream))
        segments = [stream[:cut], stream[cut:]]
        assert read_ours(segments) == (ours, our_end), stream
        theirs, their_end = read_theirs(segments)
        both = min(len(ours), len(theirs))
        assert ours[:both] == theirs[:both], stream
        assert len(ours) == both or their_end != "open", stream
        assert len(theirs) == both or our_end != "open", stream
        taken += len(ours)
    assert taken > count // 5
