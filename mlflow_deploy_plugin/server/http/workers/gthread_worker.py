"""gunicorn's threaded worker, with what it lacks: an end without delay, and patience that ends.

gunicorn 26.2's own waits for the whole graceful timeout as soon as one client keeps an idle connection open (tried:
30 s instead of 0.3 s), since it sleeps on its selector until then; and meanwhile new clients are neither answered nor
refused, since nobody accepts from the listener that it keeps.

And it waits for ever for the rest of a request that a client has begun, and for a client to take its answer: as many
silent clients as there are threads, and nobody is served any more; here a request has to be whole after `timeout`
seconds, however its bytes trickle in (of one that is streamed each piece), and a client has to take something of its
answer in as many. And it closes connections in its main thread, where it waits up to 2 s for each client to do the
same; here nothing waits.

And a request that came together with the one before it waits there until the client sends something more: it lies in
the parser's buffer, and the selector hears nothing of it.

And a client that says nothing takes a thread of it for 5 s; here it takes none before its first byte. Where the places
for connections are taken, the one that has been silent the longest goes; and where requests wait for a thread, so do
those that come more slowly than anybody's would, be it in a thread or among those who wait: 366 half heads kept new
clients out for minutes, when each had its three seconds of a thread.

Heads and bodies are read by the rules of the accelerated worker (`http/parser.py`), so that nothing is
read in two ways: gunicorn's answer to an invalid trailer was a traceback, and the next request went with it; it bounds
neither the line of a chunk's size nor what follows the last chunk.
"""

import contextlib
import errno
import math
import selectors
import socket
import struct
import sys
import time
from functools import partial
from types import FrameType
from typing import Any

from gunicorn.http.errors import NoMoreData
from gunicorn.http.message import Request
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import ThreadWorker

from mlflow_deploy_plugin.errors import InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.server.http.parser import (
    CHUNKED,
    SLOWEST_BYTES_PER_SECOND,
    RequestHead,
    body_parser,
    parse_head,
)

_LINGER_SECONDS, _LINGER_BYTES = 5.0, 64 * 1024 * 1024
_SLOW_SECONDS = 3.0
"""What a request may lag behind `SLOWEST_BYTES_PER_SECOND` where others wait for its thread."""
_PEEKED_BYTES = 64 * 1024
_LAST_CHUNK = b"0\r\n\r\n"


class _Unreader(SocketUnreader):  # type: ignore[misc]  # gunicorn has no types
    """Counts what has come."""

    come = 0

    def chunk(self) -> bytes:
        piece: bytes = super().chunk()
        self.come += len(piece)
        return piece


class _Body:
    """`wsgi.input`: a body that is read as the application asks for it.

    Attributes:
        give_up / awaits_client: see `GracefulThreadWorker.handle_request`.
    """

    def __init__(self, unreader: Any, length: int) -> None:
        self._unreader = unreader
        self._length = length
        self._body = body_parser(length, sys.maxsize)
        self._come = b""  # and not understood yet: the line of a chunk's size has not come whole
        self._read = bytearray()

    @property
    def is_whole(self) -> bool:
        """All of it has come, so that it is known where the next request begins."""
        return self._body.is_whole

    def bound(self, limit: int) -> None:
        """Nothing is read of a body that says, or shows, that it is larger; to be called before anything is.

        Raises:
            BodyTooLarge: it says so.
        """
        self._body = body_parser(self._length, limit)

    def read(self, size: int = -1) -> bytes:
        """So many bytes, or all of them; fewer only at the end.

        Raises:
            InvalidRequest, BodyTooLarge: it broke off, or is no body; see `open_body`.
        """
        while not self._body.is_whole and (size < 0 or len(self._read) < size):
            piece = self._unreader.read()
            if not piece:
                raise InvalidRequest(self._body.missing())
            self._feed(self._come + piece)
        read = bytes(self._read if size < 0 else self._read[:size])
        del self._read[: len(read)]
        return read

    def _feed(self, data: bytes) -> None:
        before = -1
        while not self._body.is_whole and len(data) != before:
            before, data = len(data), self._body.feed(data)
        self._read += self._body.take()
        if self._body.is_whole:
            self._unreader.unread(data)
        else:
            self._come = data


class _Request(Request):  # type: ignore[misc]  # gunicorn has no types
    """One request as gunicorn hands it on."""

    def parse(self, unreader: Any) -> bytes:
        """Reads the head, and gives back what has come behind it.

        Raises:
            StopIteration: the client asks nothing more.
            NoMoreData: the head breaks off.
            InvalidRequest: as `take_head`.
        """
        data, head = b"", None
        while head is None:
            piece = unreader.read()
            if not piece:
                raise NoMoreData(data) if data else StopIteration
            head, data = parse_head(data + piece)
        self._head: RequestHead = head
        self.method, self.uri, self.path = head.method, head.target, head.target.partition("?")[0]
        self.query, self.fragment = head.target.partition("?")[2], ""
        self.version = 1, int(head.takes_chunks)
        self.headers = [(name.upper(), value) for name, value in head.headers.items()]
        self._expected_100_continue = head.waits
        return data

    def set_body_reader(self) -> None:
        self.body = _Body(self.unreader, self._head.length)

    def should_close(self) -> bool:
        return bool(self.must_close) or not self._head.keeps_alive


class GracefulThreadWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Ends as soon as the requests in flight are answered; does not wait for ever for a slow client.

    Attributes:
        grpc: the worker's gRPC listener, where there is one (`server/gunicorn_conf.py`).
    """

    grpc: Any = None

    @property
    def server(self) -> Any:
        """The `Server` that the application of this worker answers from."""
        from mlflow_deploy_plugin.server.http.app import SERVER  # gunicorn imports this module before it forks

        return self.wsgi.extensions[SERVER]

    def init_process(self) -> None:
        """Accepted connections inherit the listener's send timeout (Linux); gunicorn leaves it as it is."""
        self._begun: dict[Any, float] = {}
        self._waiting: dict[Any, float] = {}  # for a thread, and since when
        self._looked = 0.0
        self._lingering: dict[socket.socket, list[float]] = {}
        for listener in self.sockets:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", self.cfg.timeout, 0))
        super().init_process()

    def handle(self, conn: Any) -> Any:
        """As gunicorn's; runs in a thread of the pool, from the first byte of a request to the last of its answer."""
        conn.body, conn.come_before = None, _come(conn)
        self._begun[conn] = time.monotonic()
        self._waiting.pop(conn, None)
        try:
            return super().handle(conn)
        finally:
            del self._begun[conn]

    def handle_request(self, req: Any, conn: Any) -> Any:
        """As gunicorn's; the application may give up a body (`http/app.py`), and with it the connection: nobody knows
        where the next request begins. And of a streamed one it says when the client is awaited."""
        conn.body = req.body
        req.body.give_up = req.force_close
        req.body.awaits_client = partial(self._awaits_client, conn)
        try:
            goes_on = super().handle_request(req, conn)
            conn.may_still_send = not req.body.is_whole
            return goes_on
        except BlockingIOError:  # SO_SNDTIMEO (`init_process`); gunicorn would log it as an error of the server
            raise BrokenPipeError(errno.EPIPE, "the client takes nothing of its answer") from None

    def _awaits_client(self, conn: Any, is_awaited: bool) -> None:
        self._begun[conn] = time.monotonic() if is_awaited else math.inf

    def finish_request(self, conn: Any, fs: Any) -> None:
        """As gunicorn's, but what has come already of the next request is read at once."""
        conn.silent_since = time.monotonic()
        goes_on = not fs.cancelled() and fs.exception() is None and fs.result() is True
        if goes_on and _holds_bytes(conn):
            self.enqueue_req(conn)
        else:
            super().finish_request(conn, fs)

    def murder_pending(self) -> None:
        """Runs once a second in the main thread. A request that has come whole does not notice the end of listening."""
        super().murder_pending()
        now = time.monotonic()
        self._end_lingering(now)
        begun = self._begun.copy()
        late = [conn for conn, since in begun.items() if since < now - self.cfg.timeout]
        if waiting := len(self._waiting):
            slow = sorted((_lag(conn, now - since), id(conn), conn) for conn, since in begun.items())
            late += [conn for lag, _, conn in slow[-waiting:] if lag > _SLOW_SECONDS]
        if waiting and now - self._looked > 1.0:
            self._looked = now
            slow_waiting = [
                c for c, since in self._waiting.copy().items() if _lag_unread(c, now - since) > _SLOW_SECONDS
            ]
            late += [conn for conn in slow_waiting if conn in self._waiting]  # no thread has read it meanwhile
        for conn in late:
            with contextlib.suppress(OSError):
                conn.sock.shutdown(socket.SHUT_RD)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """As gunicorn's, with an answer in our form instead of a page of HTML; `exc` is what its parser found."""
        # gunicorn imports this module before it forks
        from mlflow_deploy_plugin.server.http.messages import parse_error_response

        with contextlib.suppress(OSError):
            client.sendall(parse_error_response(exc))

    def accept(self, listener: socket.socket) -> None:
        """As gunicorn's, which may be told of a client in the same moment in which it has closed the listener.

        Whoever takes the last place but one has that of the client that has been silent the longest.
        """
        if listener.fileno() >= 0:
            super().accept(listener)
        if self.nr_conns >= self.worker_connections:
            idle = [(conns[0].silent_since, conns[0]) for conns in (self.keepalived_conns, self.pending_conns) if conns]
            for _, conn in sorted(idle, key=lambda one: one[0])[:1]:
                conn.timeout = 0.0
                self.murder_keepalived()
                super().murder_pending()

    def enqueue_req(self, conn: Any) -> None:
        """As gunicorn's, for a connection that is read as ours, closes without waiting, and has sent something."""
        conn.may_still_send = True
        conn.init = partial(_init, conn)
        conn.close = partial(self._close, conn)
        if self.alive and not (conn.initialized or conn.data_ready):
            conn.sock.setblocking(False)
            conn.silent_since = time.monotonic()
            conn.timeout = conn.silent_since + self.cfg.timeout
            self.pending_conns.append(conn)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))
            return
        self._waiting[conn] = time.monotonic()
        super().enqueue_req(conn)

    def _close(self, conn: Any, graceful: bool = False) -> None:
        """Runs in the main thread. Where the client may still be sending, it is closed only after it has stopped, since
        a reset would take the answer from it."""
        with contextlib.suppress(OSError):
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            if graceful and _sends_on(conn):
                self.poller.register(conn.sock, selectors.EVENT_READ, self._throw_away)
                self._lingering[conn.sock] = [time.monotonic() + _LINGER_SECONDS, _LINGER_BYTES]
                self._end_lingering()
                return
        conn.sock.close()

    def _throw_away(self, connection: socket.socket) -> None:
        left = self._lingering[connection]
        with contextlib.suppress(OSError):
            came = len(connection.recv(65536))
            left[1] -= came
            if came and left[1] > 0:
                return
        self._stop_lingering(connection)

    def _end_lingering(self, now: float = 0.0) -> None:
        """Lets those go whose time is up, and the oldest where there are too many."""
        for connection in list(self._lingering):  # in the order in which they began
            if self._lingering[connection][0] > now and len(self._lingering) <= self.worker_connections:
                return
            self._stop_lingering(connection)

    def _stop_lingering(self, connection: socket.socket) -> None:
        del self._lingering[connection]
        self.poller.unregister(connection)
        connection.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: new clients are refused, requests in flight are finished, idle connections are closed at once."""
        super().handle_exit(sig, frame)
        self.method_queue.defer(self._let_go)

    def _let_go(self) -> None:
        """Runs in the main thread; an idle connection is one whose time is up.

        Clients that the kernel has connected already, and that nobody has accepted yet, would be reset by the close.
        """
        if self.grpc is not None:
            self.grpc.drain()
        self.set_accept_enabled(False)
        for listener in self.sockets:
            connected = -1
            while connected < self.nr_conns < self.worker_connections:
                connected = self.nr_conns
                super().accept(listener)
            listener.close()
        for connection in (*self.keepalived_conns, *self.pending_conns):
            connection.timeout = 0.0
        self.murder_keepalived()
        self.murder_pending()


def _holds_bytes(conn: Any) -> bool:
    """Whether bytes of the connection lie in the parser's buffer, or in that of TLS."""
    pending = getattr(conn.sock, "pending", None)
    return bool(conn.parser.unreader.buf.getbuffer().nbytes or (pending and pending()))


def _sends_on(conn: Any) -> bool:
    """Whether something comes still, or may come."""
    try:
        return bool(conn.sock.recv(65536))
    except BlockingIOError:
        return bool(conn.may_still_send)


def _lag_unread(conn: Any, seconds: float) -> float:
    """As `_lag`, of a request that no thread has begun to read. What lies in the socket is looked at and left there.

    Where it is encrypted, nobody knows how much of a request it is.
    """
    if conn.cfg.is_ssl:
        return -math.inf
    come: bytes = conn.parser.unreader.buf.getvalue() if conn.initialized else b""
    with contextlib.suppress(BlockingIOError):
        come += conn.sock.recv(_PEEKED_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    try:
        head, rest = parse_head(come)
    except OnnxserveError:
        return -math.inf  # is answered as soon as it is read
    is_whole = head is not None and (rest.endswith(_LAST_CHUNK) if head.length == CHUNKED else len(rest) >= head.length)
    return -math.inf if is_whole else seconds - len(come) / SLOWEST_BYTES_PER_SECOND


def _init(conn: Any) -> None:
    """As gunicorn's `TConn.init`; what it makes reads requests as we do."""
    is_new = not conn.initialized
    type(conn).init(conn)
    if is_new:
        conn.parser.mesg_class = _Request
        conn.parser.unreader = _Unreader(conn.sock)


def _come(conn: Any) -> int:
    """Bytes that the client has sent."""
    come: int = conn.parser.unreader.come if conn.initialized and conn.parser is not None else 0
    return come


def _lag(conn: Any, seconds: float) -> float:
    """How far what has come in these seconds lies behind the slowest rate; negative: nothing more is to come."""
    if conn.body is not None and conn.body.is_whole:
        return -math.inf
    come: int = _come(conn) - conn.come_before
    return seconds - come / SLOWEST_BYTES_PER_SECOND
