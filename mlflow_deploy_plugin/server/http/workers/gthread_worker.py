"""gunicorn's threaded worker, with a prompt end, and with a limit for every wait.

The faults of gunicorn 26.2, and what this worker does:

- It ends only after the whole graceful timeout if one client keeps an idle connection open (tried: 30 s instead of
  0.3 s), because it sleeps on its selector until then. Meanwhile it keeps a listener from which nobody accepts, so that
  new clients are neither answered nor refused.
- It waits for ever for the rest of a request, and for a client to take its response. Once there are as many silent
  clients as threads, nobody is served any more. Here a request has to be whole after `timeout` seconds, however its
  bytes trickle in; a streamed one has this time for each piece. A response that its client does not take at once holds
  no thread: the main thread sends the rest, and the client has to take a part of it every `timeout` seconds.
- It closes connections in its main thread, and waits there up to 2 s for each client to do the same; here nothing
  waits.
- It answers a pipelined request only after the client has sent something more: the request lies in the parser's buffer,
  of which the selector knows nothing.
- A client that sends nothing takes a thread for 5 s; here it takes none before its first byte. If there are too many
  connections, the one that has been idle the longest is closed. While requests wait for a thread, those that come too
  slowly are ended, with a thread or without: 366 half heads, each with a thread for three seconds, kept new clients out
  for minutes.
- A TLS handshake takes a thread until the client has done its part; here it takes none.
- It answers an invalid trailer with a traceback, and loses the next request with it; it bounds neither the line of a
  chunk's size nor what follows the last chunk. Heads and bodies are parsed here by the parser of the fast worker
  (`http/parser.py`), so that nothing is read in two ways.
"""

import contextlib
import errno
import math
import select
import selectors
import socket
import ssl
import struct
import sys
import time
from functools import partial
from types import FrameType
from typing import Any

from gunicorn.http import get_parser
from gunicorn.http.errors import NoMoreData
from gunicorn.http.message import Request
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import ThreadWorker

from mlflow_deploy_plugin.errors import InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.server.certificates import open_following_tls
from mlflow_deploy_plugin.server.http.limits import (
    LINGER_BYTES,
    LINGER_SECONDS,
    MAX_UNSENT_BYTES,
    SLOWEST_BYTES_PER_SECOND,
)
from mlflow_deploy_plugin.server.http.parser import CHUNKED, LAST_CHUNK, RequestHead, body_parser, parse_head
from mlflow_deploy_plugin.server.inference.limits import RequestThreads

_MAX_LAG_SECONDS = 3.0
"""The seconds that a request may lag behind `SLOWEST_BYTES_PER_SECOND` while others wait for its thread."""
_PEEKED_BYTES = 64 * 1024
_UNSENT_BYTES = 64 * 1024
"""Above it, a thread that has more to send waits for its client."""


class _CountingUnreader(SocketUnreader):  # type: ignore[misc]  # gunicorn has no types
    """The reader of a socket, which counts the bytes that have come."""

    received = 0

    def chunk(self, *size_hint: int | None) -> bytes:  # gunicorn 27 says how much it may take, 26 does not
        piece: bytes = super().chunk(*size_hint)
        self.received += len(piece)
        return piece


class _ResponseSocket:
    """A connection's socket during a request. Its thread waits for the client only in the middle of a response.

    Attributes:
        unsent: the bytes at the end that the client has not taken.
        stalled_since: the time since which the thread waits for the client to take something; infinite if it does not.
    """

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._sock, self._timeout = sock, timeout
        self.unsent: bytes | memoryview = b""
        self.stalled_since = math.inf

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendall(self, data: bytes) -> None:
        """Send a part of a response. Raises BrokenPipeError if the client takes nothing of the parts before."""
        while len(self.unsent) > _UNSENT_BYTES:
            self.stalled_since = time.monotonic()
            writable = select.poll()
            writable.register(self._sock, select.POLLOUT)
            if not writable.poll(self._timeout * 1000):
                raise BrokenPipeError(errno.EPIPE, "the client takes nothing of its answer")
            self.unsent = _send(self._sock, self.unsent)
        self.stalled_since = math.inf
        self.unsent = _send(self._sock, b"".join((self.unsent, data)) if self.unsent else data)


def _send(sock: socket.socket, data: bytes | memoryview) -> memoryview:
    """Send what the client takes at once, and return the rest."""
    left = memoryview(data)
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
        while left:
            left = left[sock.send(left) :]
    sock.setblocking(True)
    return left


class _WsgiInput:
    """`wsgi.input`: a body that is read as the application asks for it.

    Attributes:
        close_connection / awaits_client: set by `GracefulThreadWorker.handle_request`, for the application.
        waited_seconds: the time for which the request has waited for a thread, after its first byte.
    """

    waited_seconds = 0.0

    def __init__(self, unreader: Any, length: int) -> None:
        self._unreader = unreader
        self._length = length
        self._body = body_parser(length, sys.maxsize)
        self._unparsed = b""  # the line of a chunk's size has not come whole
        self._content = bytearray()

    @property
    def is_whole(self) -> bool:
        """True once all of it has come, so that it is known where the next request begins."""
        return self._body.is_whole

    def limit(self, limit: int) -> None:
        """Bound the body, before anything is read. Raises BodyTooLarge: its declared length is larger."""
        self._body = body_parser(self._length, limit)

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, or all of them; fewer only at the end.

        Raises:
            InvalidRequest, BodyTooLarge: the body broke off, or is none; see `body_parser`.
        """
        while not self._body.is_whole and (size < 0 or len(self._content) < size):
            piece = self._unreader.read()
            if not piece:
                raise InvalidRequest(self._body.missing())
            self._feed(self._unparsed + piece)
        read = bytes(self._content if size < 0 else self._content[:size])
        del self._content[: len(read)]
        return read

    def _feed(self, data: bytes) -> None:
        before = -1
        while not self._body.is_whole and len(data) != before:
            before, data = len(data), self._body.feed(data)
        self._content += self._body.take()
        if self._body.is_whole:
            self._unreader.unread(data)
        else:
            self._unparsed = data


class _Request(Request):  # type: ignore[misc]  # gunicorn has no types
    """One request as gunicorn hands it on."""

    def parse(self, unreader: Any) -> bytes:
        """Read the head, and return what has come behind it.

        Raises:
            StopIteration: the client sends no more requests.
            NoMoreData: the head breaks off.
            InvalidRequest: see `parse_head`.
        """
        data, head = b"", None
        while head is None:
            piece = unreader.read()
            if not piece:
                raise NoMoreData(data) if data else StopIteration
            head, data = parse_head(data + piece)
        self._head: RequestHead = head
        self.method, self.uri, self.path = head.method, head.target, head.target.partition("?")[0]
        self.query, self.fragment = head.query, ""
        self.version = 1, int(head.is_http_1_1)
        self.headers = [(name.upper(), value) for name, value in head.headers.items()]
        self._expected_100_continue = head.expects_continue
        return data

    def set_body_reader(self) -> None:
        self.body = _WsgiInput(self.unreader, self._head.length)

    def should_close(self) -> bool:
        return bool(self.must_close) or not self._head.keep_alive


class GracefulThreadWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's threaded worker, which ends as soon as the requests in flight are answered.

    Attributes:
        grpc: the worker's gRPC listener, or None (`server/gunicorn_conf.py`).
    """

    grpc: Any = None

    def init_process(self) -> None:
        """Set the send timeout of the listeners, for errors of the parser; accepted connections inherit it (Linux)."""
        self._handled_since: dict[Any, float] = {}
        self._queued_since: dict[Any, float] = {}  # connections that wait for a thread
        self._queue_checked = 0.0
        self._lingering: dict[socket.socket, list[float]] = {}
        self._sending: dict[Any, float] = {}  # when the clients of unsent responses took something; by their beginning
        for listener in self.sockets:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", self.cfg.timeout, 0))
        self._tls = open_following_tls(self.cfg) if self.cfg.is_ssl else None
        super().init_process()

    def get_thread_pool(self) -> RequestThreads:
        """Return a pool with which the worker goes on if no more threads can be started."""
        return RequestThreads(self.cfg.threads)

    def handle(self, conn: Any) -> Any:
        """Handle a request in a thread of the pool, from its first byte to the last of its response."""
        conn.body, conn.received_before = None, _received(conn)
        self._handled_since[conn] = now = time.monotonic()
        conn.waited_seconds = now - self._queued_since.pop(conn, now)
        try:
            return super().handle(conn)
        finally:
            del self._handled_since[conn]

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Handle a request, and give its body two functions for the application (`http/app.py`).

        `close_connection` ends the connection after a body that is not read to its end, since it is not known where the
        next request begins. `awaits_client` says when the client of a streamed request has to send.
        """
        conn.body = req.body
        req.body.waited_seconds = conn.waited_seconds
        req.body.close_connection = req.force_close

        def awaits_client(is_awaited: bool) -> None:
            self._handled_since[conn] = time.monotonic() if is_awaited else math.inf

        req.body.awaits_client = awaits_client
        sock = conn.sock
        conn.sock = response = _ResponseSocket(sock, self.cfg.timeout)
        try:
            goes_on = super().handle_request(req, conn)
            conn.may_still_send = not req.body.is_whole
            return goes_on
        finally:
            conn.sock, conn.unsent = sock, response.unsent if response.stalled_since == math.inf else b""

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Send the rest of the response, then read a pipelined request at once."""
        conn.idle_since = time.monotonic()
        if conn.unsent:
            self._sending[conn] = conn.idle_since
            self.poller.register(conn.sock, selectors.EVENT_WRITE, partial(self._send_rest, conn, fs))
            while len(self._sending) > 1 and sum(len(one.unsent) for one in self._sending) > MAX_UNSENT_BYTES:
                self._break_off(next(iter(self._sending)))
            return
        goes_on = not fs.cancelled() and fs.exception() is None and fs.result() is True
        tls_pending = getattr(conn.sock, "pending", None)
        if goes_on and (conn.parser.unreader.buf.getbuffer().nbytes or (tls_pending and tls_pending())):
            self.enqueue_req(conn)
        else:
            super().finish_request(conn, fs)

    def _send_rest(self, conn: Any, fs: Any, _: Any) -> None:
        try:
            conn.unsent = _send(conn.sock, conn.unsent)
            self._sending[conn] = time.monotonic()
        except OSError:  # the client has gone, which shows when its connection is read or closed
            conn.unsent = b""
        if not conn.unsent:
            del self._sending[conn]
            self.poller.unregister(conn.sock)
            self.finish_request(conn, fs)

    def _break_off(self, conn: Any) -> None:
        """Close the connection of a response that its client has not taken."""
        del self._sending[conn]
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.unsent = b""
        conn.close()

    def murder_pending(self) -> None:
        """Shut down the reading side of late requests, once a second in the main thread.

        A request that has come whole does not notice that.
        """
        super().murder_pending()
        now = time.monotonic()
        self._end_lingering(now)
        for conn in [conn for conn, since in self._sending.items() if since < now - self.cfg.timeout]:
            self._break_off(conn)
        handled = self._handled_since.copy()
        late = [conn for conn, since in handled.items() if since < now - self.cfg.timeout]
        if queued := len(self._queued_since):
            slow = sorted((_lag(conn, now - since), id(conn), conn) for conn, since in handled.items())
            late += [conn for lag, _, conn in slow[-queued:] if lag > _MAX_LAG_SECONDS]
            for conn in handled:
                if getattr(conn.sock, "stalled_since", now) < now - _MAX_LAG_SECONDS:
                    _shut_down(conn, socket.SHUT_RDWR)  # which ends the wait of its thread
        if queued and now - self._queue_checked > 1.0:
            self._queue_checked = now
            waiting = self._queued_since.copy()
            slow_waiting = [one for one, since in waiting.items() if _lag_unread(one, now - since) > _MAX_LAG_SECONDS]
            late += [conn for conn in slow_waiting if conn in self._queued_since]  # a thread may have taken some
        for conn in late:
            _shut_down(conn, socket.SHUT_RD)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer an error of the parser in our form, not by gunicorn's page of HTML."""
        # gunicorn imports this module before it forks
        from mlflow_deploy_plugin.server.http.responses import failure_response, serialize_response

        if isinstance(exc, ssl.SSLError):
            exc = InvalidRequest(f"the request is not HTTP/1.1 as it is spoken here: {exc}")
        with contextlib.suppress(OSError):
            client.sendall(serialize_response(failure_response(None, exc), keep_alive=False))

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Call back for what the selector reports, but not for a connection that an earlier call has just closed."""
        registered = self.poller.get_map()
        for key, _ in self.poller.select(timeout):
            if registered.get(key.fd) is key:
                key.data(key.fileobj)

    def accept(self, listener: socket.socket) -> None:
        """Accept a client. One that takes the last place but one, or the last file of the process, replaces the client
        that has been idle the longest."""
        is_full = False
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            is_full = True
        if is_full or self.nr_conns >= self.worker_connections:
            waiting = (self.keepalived_conns, self.pending_conns, [*self._sending][:1])
            idle = [(conns[0].idle_since, conns[0]) for conns in waiting if conns]
            for _, conn in sorted(idle, key=lambda one: one[0])[:1]:
                if conn in self._sending:
                    self._break_off(conn)
                conn.timeout = 0.0
                self.murder_keepalived()
                super().murder_pending()

    def enqueue_req(self, conn: Any) -> None:
        """Queue a connection that has sent something for a thread. Its requests are parsed by our parser."""
        conn.may_still_send, conn.unsent = True, b""
        conn.init = partial(_init, conn)
        conn.close = partial(self._close, conn)
        if self.alive and not (conn.initialized or conn.data_ready):
            conn.sock.setblocking(False)
            conn.idle_since = time.monotonic()
            conn.timeout = conn.idle_since + self.cfg.timeout
            self.pending_conns.append(conn)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))
            return
        self._queued_since[conn] = time.monotonic()
        super().enqueue_req(conn)

    def on_pending_socket_readable(self, conn: Any, client: socket.socket) -> None:
        """Queue a new client that has sent something; over TLS, once it has sent something after its handshake."""
        if self._tls is None or conn.parser is not None:
            super().on_pending_socket_readable(conn, client)
            return
        try:
            if not isinstance(client, ssl.SSLSocket):
                self.poller.unregister(client)
                conn.sock = self._tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
                self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))
            conn.sock.do_handshake()
            conn.parser = get_parser(self.cfg, conn.sock, conn.client)  # so that gunicorn's `TConn.init` wraps no more
        except ssl.SSLWantReadError:
            pass
        except OSError:  # the client has gone, or speaks no TLS
            with contextlib.suppress(OSError, KeyError, ValueError):
                self.poller.unregister(conn.sock)
            self.pending_conns.remove(conn)
            self.nr_conns -= 1
            conn.close()

    def _close(self, conn: Any, graceful: bool = False) -> None:
        """Close in the main thread. If the client may still be sending, close only after it has stopped: a reset would
        take the response from it."""
        with contextlib.suppress(OSError):
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            sends_on = conn.may_still_send
            if graceful:
                with contextlib.suppress(BlockingIOError):
                    sends_on = bool(conn.sock.recv(65536))
            if graceful and sends_on:
                self.poller.register(conn.sock, selectors.EVENT_READ, self._discard)
                self._lingering[conn.sock] = [time.monotonic() + LINGER_SECONDS, LINGER_BYTES]
                self._end_lingering()
                return
        conn.sock.close()

    def _discard(self, connection: socket.socket) -> None:
        left = self._lingering[connection]
        with contextlib.suppress(OSError):
            received = len(connection.recv(65536))
            left[1] -= received
            if received and left[1] > 0:
                return
        self._stop_lingering(connection)

    def _end_lingering(self, now: float = 0.0) -> None:
        """Close the lingering connections whose time is up, and the oldest if there are too many."""
        for connection in list(self._lingering):  # in the order in which they began
            if self._lingering[connection][0] > now and len(self._lingering) <= self.worker_connections:
                return
            self._stop_lingering(connection)

    def _stop_lingering(self, connection: socket.socket) -> None:
        del self._lingering[connection]
        self.poller.unregister(connection)
        connection.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse new clients, finish requests in flight, and close idle connections at once (SIGTERM)."""
        super().handle_exit(sig, frame)
        self.method_queue.defer(self._stop_listening)

    def _stop_listening(self) -> None:
        """Stop listening, in the main thread, and close idle connections by ending their time.

        Clients that the kernel has already connected are accepted first: the close of the listener would reset them.
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
        for connection in [one for one in self.pending_conns if isinstance(one.sock, ssl.SSLSocket) and not one.parser]:
            connection.parser = get_parser(self.cfg, connection.sock, connection.client)
            super().on_pending_socket_readable(connection, connection.sock)  # reading ends its handshake, in a thread
        for connection in (*self.keepalived_conns, *self.pending_conns):
            connection.timeout = 0.0
        self.murder_keepalived()
        self.murder_pending()


def _init(conn: Any) -> None:
    """Replace the parser that gunicorn's `TConn.init` makes."""
    is_new = not conn.initialized
    type(conn).init(conn)
    if is_new:
        conn.parser.mesg_class = _Request
        conn.parser.unreader = _CountingUnreader(conn.sock)


def _received(conn: Any) -> int:
    """Return the number of bytes that the client has sent. A thread may just be making its parser."""
    received: int = getattr(conn.parser.unreader, "received", 0) if conn.parser is not None else 0
    return received


def _shut_down(conn: Any, how: int) -> None:
    with contextlib.suppress(OSError):
        conn.sock.shutdown(how)


def _lag(conn: Any, seconds: float) -> float:
    """Return the seconds by which the request lags behind the slowest rate; -inf if nothing more is to come."""
    if conn.body is not None and conn.body.is_whole:
        return -math.inf
    received: int = _received(conn) - conn.received_before
    return seconds - received / SLOWEST_BYTES_PER_SECOND


def _lag_unread(conn: Any, seconds: float) -> float:
    """Return the lag of a request that no thread has begun to read. The bytes in the socket are left there.

    If they are encrypted, nobody knows how much of a request they are.
    """
    if conn.cfg.is_ssl:
        return -math.inf
    data: bytes = conn.parser.unreader.buf.getvalue() if conn.parser is not None else b""
    with contextlib.suppress(OSError):  # nothing has come, or the client has reset the connection
        data += conn.sock.recv(_PEEKED_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    try:
        head, rest = parse_head(data)
    except OnnxserveError:
        return -math.inf  # it is answered as soon as it is read
    is_whole = head is not None and (rest.endswith(LAST_CHUNK) if head.length == CHUNKED else len(rest) >= head.length)
    return -math.inf if is_whole else seconds - len(data) / SLOWEST_BYTES_PER_SECOND
