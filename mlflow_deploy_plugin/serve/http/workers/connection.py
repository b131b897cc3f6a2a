"""A connection of the fast worker: HTTP/1.1 on the event loop, around
`ServerApp.handle`.

A request with an expected time below a millisecond is answered on the loop, any other
request in a thread. A connection answers one request at a time; later bytes wait in a
bounded buffer. Every wait has a deadline (`check_deadline`).
"""

import asyncio
import heapq
import math
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from mlflow_deploy_plugin.core.errors import (
    InvalidRequest,
    NotReady,
    OnnxserveError,
    RequestTimeout,
    StepTimeout,
    TooManyRequests,
)
from mlflow_deploy_plugin.serve.http import parser, request_limits, responses
from mlflow_deploy_plugin.serve.http.parser import BodyParser, RequestHead
from mlflow_deploy_plugin.serve.http.responses import (
    RawResponse,
    serialize_response,
    serialize_streamed_head,
)
from mlflow_deploy_plugin.serve.http.routes import handle_request_async
from mlflow_deploy_plugin.serve.http.streaming import MAX_STREAMS, StreamedExchange, is_upload
from mlflow_deploy_plugin.serve.http.workers.worker_app import WorkerApp
from mlflow_deploy_plugin.serve.inference.auth import certificate_name
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.protocols.arrow import MEDIA_TYPES
from mlflow_deploy_plugin.serve.protocols.v2 import HEADER_LENGTH_KEY
from mlflow_deploy_plugin.serve.runtime import steps

_PIPELINED_BYTES = 64 * 1024
"""The limit of buffered bytes that follow the current request; above this limit,
reading is paused.
"""
_LARGE_BYTES = 64 * 1024
_TLS_WRITE_BYTES = 256 * 1024
_UNDERWAY_SECONDS = 1.0
"""The time for which a request may be in transit, after a response or from a new
connection.
"""
_IDLE_CANDIDATES = 16
_HEAD_PIECES = 4
"""The number of pieces of a head that are read when they arrive; later pieces are read
together every `_DRIP_SECONDS`.
"""
_DRIP_SECONDS = 2.0
_KNOWN_BYTES = 2048
"""The longest head that a connection remembers, because the next request usually has
the same head. The cache of `parser.read_head` alone would make a small prediction 8 %
slower.
"""
_STEP_SECONDS = 1.0
"""The interval of the checks if the thread of a request is blocked in a step."""
_STALE_SECONDS = 0.5
"""The age that `WorkerApp.now` may have on a busy loop; a client may have sent bytes
since then.
"""


# The phases of a connection; the attribute look-up of an Enum would take 0.1 µs.
_NEW = "new"  # The client has not sent anything yet.
_IDLE = "idle"  # No part of the next request has arrived.
_RECEIVING = "receiving"  # A part of a request has arrived.
_ANSWERING = "answering"  # A request is being answered, or a step is scheduled.
_LINGERING = "lingering"  # The last response is sent, and received bytes are discarded.


class HttpConnection(asyncio.Protocol):
    """A client's connection. The fast worker calls `shutdown` when it ends.

    Args:
        app: the application of the worker.
        connections: all connections of the worker, to which this one adds itself.
    """

    def __init__(self, app: WorkerApp, connections: "set[HttpConnection]") -> None:
        self._app = app
        # True once a request had a valid key: the connection is evicted last.
        self._is_caller = not app.server.auth.is_required
        self._limits = app.limits if self._is_caller else app.limits.of_strangers()
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._write_bytes: Callable[[bytes], None]
        self._client = ""
        self._caller = ""
        # the last head that was answered inline, with its bytes
        self._known_head: RequestHead | None = None
        self._known_bytes = b""
        self._buffer = b""
        self._head: RequestHead | None = None
        self._body: BodyParser | None = None
        self._exchange: StreamedExchange | None = None
        self._deadline = math.inf
        self._thread = 0  # the thread that answers the current request
        self._unsent_bytes = 0
        self._buffered_bytes = 0  # the body's share of `WorkerApp.buffered_bytes`
        self._discarded_bytes = 0
        self._head_pieces = 0
        self._phase = _NEW
        self._is_blocked = False  # The client does not read the response.
        self._is_paused = False  # Reading is paused.
        self._is_ending = False  # The connection is closed after this response.
        self._reads_on = False  # The client may still be sending the last request.
        self._has_eof = False  # The client has closed its sending side.

    # The methods that asyncio and the fast worker call.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection. Above the limit of connections, close an idle
        connection, or refuse this one.
        """
        self._transport = transport  # type: ignore[assignment]  # uvloop's own class
        # Report all unsent bytes; high=0 would block TLS.
        self._transport.set_write_buffer_limits(
            high=1,
            low=0,
        )
        self._write_bytes = self._transport.write
        if transport.get_extra_info("sslcontext") is not None:

            def write_in_pieces(data: bytes) -> None:
                """Write in pieces, because a TLS transport does not count one large
                write as unsent bytes.
                """
                for start in range(0, len(data), _TLS_WRITE_BYTES):
                    self._transport.write(data[start : start + _TLS_WRITE_BYTES])

            self._write_bytes = write_in_pieces
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if isinstance(peer, tuple) else ""
        self._caller = certificate_name(transport.get_extra_info("peercert"))
        self._connections.add(self)
        self._deadline = self._loop.time() + self._limits.request_seconds
        if len(self._connections) > self._limits.connections:
            self._app.server.metrics.count_refused("connections")
            if not self._evict_idle_connection():
                self._refuse(
                    NotReady(
                        "this worker has reached its limit of connections; retry in a moment", 1
                    ),
                )

    def data_received(self, data: bytes) -> None:
        """Answer a complete request at once; otherwise buffer the bytes, and continue
        as far as the phase permits. Above the buffer's limit, reading is paused.
        """
        phase = self._phase
        if phase is _LINGERING:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > self._limits.linger_bytes:
                self._transport.abort()
            return
        if phase is _NEW:
            self._phase = _IDLE
            phase = _IDLE
        may_be_inline = phase is _IDLE and not (self._buffer or self._is_blocked or self._is_ending)
        if may_be_inline and self._answer_inline(data):
            return
        self._buffer = self._buffer + data if self._buffer else data
        if self._exchange is not None and not self._exchange.is_whole:
            self._feed_stream()
        elif not (phase is _ANSWERING or self._is_blocked):
            self._advance()
        elif len(self._buffer) > _PIPELINED_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Answer the requests that are complete. (A TLS connection cannot be closed in
        one direction.)
        """
        if self._phase is _LINGERING:
            return False
        self._has_eof = True
        if self._exchange is not None:
            self._feed_stream()
        elif self._phase is _RECEIVING and self._body is not None and not self._is_blocked:
            self._advance()
        return self._is_blocked or self._phase in (_ANSWERING, _LINGERING)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything that the connection holds; a stream ends with an
        error.
        """
        self._connections.discard(self)
        self._app.blocked_connections.pop(self, None)
        # Without this cycle, the buffers of TLS are freed now.
        del self._write_bytes
        if self._exchange is not None:
            self._exchange.resume_sending(is_gone=True)
        if self._phase is not _ANSWERING:
            self._count_buffered(0)
        self._buffer = b""
        self._head = None
        self._body = None

    def pause_writing(self) -> None:
        """Wait until the client reads. Above the worker's limit of unsent bytes, the
        connections that have waited longest are closed.
        """
        self._is_blocked = True
        self._unsent_bytes = self._transport.get_write_buffer_size()
        self._await_client()
        blocked = self._app.blocked_connections
        blocked[self] = None
        while (
            len(blocked) > 1
            and sum(peer._transport.get_write_buffer_size() for peer in blocked)
            > request_limits.MAX_UNSENT_BYTES
        ):
            longest = next(iter(blocked))
            del blocked[longest]
            longest.evict()

    def resume_writing(self) -> None:
        """Continue with the response, or with the next request: the client has read
        everything.
        """
        self._is_blocked = False
        self._app.blocked_connections.pop(self, None)
        if self._exchange is not None:
            if self._exchange.is_whole:
                self._deadline = math.inf
            else:
                self._await_client()
            self._exchange.resume_sending()
        if self._phase is _IDLE:
            self._wait_for_next()
        elif self._phase is _RECEIVING:
            self._resume_reading()
            self._advance_later()

    def shutdown(self) -> None:
        """Answer current requests and requests that may be in transit, then close;
        close now if there are none.
        """
        self._is_ending = True
        if self._phase in (_NEW, _IDLE) and not self._is_blocked:
            now = self._app.now
            self._deadline = max(now, min(self.idle_since, now) + _UNDERWAY_SECONDS)

    # The deadlines, and the actions after them.

    def check_deadline(self, now: float) -> None:
        """Close or refuse the connection after its deadline; a client that reads, or
        waits for the model, receives a new deadline.
        """
        if now < self._deadline:
            return
        if unsent := self._transport.get_write_buffer_size():
            if unsent >= self._unsent_bytes:
                self._transport.abort()
            self._unsent_bytes = unsent
            self._await_client()
        elif self._phase is _LINGERING or self._transport.is_closing():
            self._transport.abort()
        elif self._exchange is not None and not self._exchange.awaits_client:
            self._await_client()  # The model may take any time.
        elif self._phase is _ANSWERING and self._exchange is None:
            self._deadline = now + _STEP_SECONDS
            if steps.is_late(self._thread):
                self._app.pool.replace_thread()
                self._refuse(StepTimeout("a step did not return within the request's time"))
        elif self._body is not None:
            self._refuse(RequestTimeout(self._body.missing()))
        elif self._phase is _RECEIVING:
            self._app.server.metrics.count_refused("slow")
            self._refuse(RequestTimeout("the head of the request did not arrive in time"))
        else:
            self._transport.close()

    @property
    def idle_since(self) -> float:
        """The loop time at which the client became idle; infinite while the client
        waits for the server.
        """
        awaits_client = self._exchange is not None and self._exchange.awaits_client
        phase = self._phase
        if self._transport.is_closing() or (
            phase is _ANSWERING and not (awaits_client or self._is_blocked)
        ):
            return math.inf
        if phase is _LINGERING:
            patience = request_limits.LINGER_SECONDS
        elif phase in (_NEW, _RECEIVING) or self._is_blocked or awaits_client:
            patience = float(self._limits.request_seconds)
        else:
            patience = float(self._limits.keep_alive_seconds)
        since = self._deadline - patience
        if phase is not _NEW:
            received = len(self._buffer)
            if self._body is not None:
                received += self._body.received
            since += _STALE_SECONDS + received / request_limits.SLOWEST_BYTES_PER_SECOND
        return min(since, self._loop.time())

    def _evict_idle_connection(self) -> bool:
        """Close the connection that has been idle for longest, of a stranger if there
        is one; return False if all connections are being answered.
        """
        idle = self._app.idle_connections
        while idle:
            since, other = idle.pop()
            if other.idle_since == since:
                other.evict()
                return True
        rows = [
            (other._is_caller, other.idle_since, number, other)
            for number, other in enumerate(self._connections)
            if other is not self
        ]
        idle_rows = (row for row in rows if row[1] < math.inf)
        candidates = heapq.nsmallest(_IDLE_CANDIDATES, idle_rows)
        if not candidates:
            return False
        # The last element is the next to close. Callers are not kept for later, when
        # there may be new strangers.
        of_callers = candidates[0][0]
        idle.extend(
            (since, other)
            for is_caller, since, _, other in reversed(candidates)
            if is_caller == of_callers
        )
        _, longest_idle = idle.pop()
        longest_idle.evict()
        return True

    def evict(self) -> None:
        """Close immediately, to make room for a new connection."""
        if self._is_blocked or self._phase is not _RECEIVING:
            self._transport.abort()  # Closing TLS would wait for the client.
            return
        self._refuse(
            RequestTimeout("the request arrived too slowly, and other clients need the connection")
        )
        self._transport.close()

    # Reading requests.

    def _answer_inline(self, data: bytes) -> bool:
        """Answer the request if it is complete and quick, which is the usual case.
        Otherwise return False.
        """
        if self._known_head is None or not data.startswith(self._known_bytes):
            end = data.find(b"\r\n\r\n") + 4
            if not 8 <= end <= _KNOWN_BYTES:
                return False
            try:
                self._known_head = parser.read_head(data[: end - 4])
                self._known_bytes = data[:end]
            except OnnxserveError:
                return False  # `_advance` raises the same error, and answers it.
        head = self._known_head
        app = self._app
        body = data[len(self._known_bytes) :]
        if head.length != len(body) or not head.keep_alive or len(body) > app.server.max_body_bytes:
            return False
        response = app.answer_inline(self._request(head, body))
        if response is None:
            return False
        self._write_bytes(serialize_response(response, True, head.method != "HEAD"))
        if not self._is_blocked:
            self._deadline = app.now + self._limits.keep_alive_seconds
        return True

    def _advance(self) -> None:
        """Parse the head that has arrived, then read its body, and answer the request
        once it is complete; refuse a request that is invalid or exceeds a limit.
        """
        try:
            if self._head is None:
                self._head, self._buffer = parser.parse_head(self._buffer)
                if self._head is None and self._buffer != parser.EMPTY_LINE:
                    self._begin()
                    self._head_pieces += 1
                    if self._head_pieces > _HEAD_PIECES and not self._is_paused:
                        self._is_paused = True
                        self._transport.pause_reading()
                        self._loop.call_later(_DRIP_SECONDS, self._resume_reading)
            head = self._head
            body = self._body
            if head is not None and body is None:
                body = self._begin_body(head)
            if head is None or body is None:
                return
            bytes_before = len(self._buffer)
            self._buffer = body.feed(self._buffer)
            self._count_buffered(body.received)
            if body.is_whole:
                self._answer(head, body.content)
            elif 0 < len(self._buffer) < bytes_before:
                self._advance_later()
            elif self._has_eof:
                raise InvalidRequest(body.missing())
        except OnnxserveError as error:
            self._refuse(error)
        except MemoryError:
            self._refuse(NotReady("the worker lacks memory for this body; retry in a moment", 1))

    def _advance_later(self) -> None:
        """Continue with the next request in the loop's next step, so that other
        connections get a turn.
        """
        phase = self._phase
        self._phase = _ANSWERING

        def advance() -> None:
            """Read the next request, unless this one is not over; after it, close if
            the client sends nothing more.
            """
            if self._phase is not _ANSWERING:  # The request was refused in the meantime.
                return
            self._phase = phase
            if self._transport.is_closing() or self._is_blocked:
                return
            self._advance()
            if self._phase is not _ANSWERING:
                self._resume_reading()
            if self._has_eof and self._phase in (_IDLE, _RECEIVING) and not self._is_blocked:
                self._transport.close()  # The remaining bytes are an incomplete request.

        self._loop.call_soon(advance)

    def _begin_body(self, head: RequestHead) -> BodyParser | None:
        """Return the parser of a body that arrives in pieces; None if the request is
        answered now, because its body is complete, not read or streamed.
        """
        limit = self._app.server.max_body_bytes
        is_whole = 0 <= head.length <= min(len(self._buffer), limit)
        if not is_whole or head.length > _LARGE_BYTES:
            # Do not read, buffer or keep a stranger's body.
            if self._app.server.auth.is_stranger(head.headers, self._caller):
                self._is_ending = True
                self._reads_on = True
                self._answer(head, b"")
                return None
            self._trust()
        if is_whole:
            body = self._buffer[: head.length]
            self._buffer = self._buffer[head.length :]
            self._answer(head, body)
            return None
        is_long = head.length == parser.CHUNKED or head.length > limit
        if is_long and is_upload(head):
            # Store the file while it arrives (`http/streaming.py`). The connection's
            # next requests wait.
            app = self._app
            if app.streams >= MAX_STREAMS:
                raise TooManyRequests(
                    f"this worker has reached its limit of {MAX_STREAMS} streams; retry later",
                    1,
                )
            self._phase = _ANSWERING
            self._body = BodyParser(head.length, sys.maxsize)
            exchange = self._new_exchange(head, self._body, streams=1)
            self._exchange = exchange
            if head.expects_continue and not self._buffer:
                self._transport.write(responses.CONTINUE)
            # Reading may have been paused while another request was answered.
            self._resume_reading()
            self._feed_stream()
            thread = threading.Thread(
                target=exchange.run,
                args=(app.handle, self._request(head, b"")),
                name="onnxserve-stream",
                daemon=True,
            )
            try:
                thread.start()
            except RuntimeError:
                self._exchange = None
                raise NotReady(
                    "the machine's limit of threads is reached; retry in a moment",
                    1,
                ) from None
            app.streams += 1
            return None
        text_bytes = head.headers.get(HEADER_LENGTH_KEY, "")
        # The last three digits decide whether the number is a multiple of 8.
        tail = int(text_bytes[-3:]) if text_bytes.isdecimal() else 0
        self._body = BodyParser(head.length, limit, tail)
        self._begin()
        if head.expects_continue and not self._buffer:
            self._transport.write(responses.CONTINUE)
        return self._body

    def _begin(self) -> None:
        """Start the time limit for receiving a request when its first part arrives."""
        if self._phase is not _RECEIVING:
            self._phase = _RECEIVING
            self._head_pieces = 0
            if self._is_caller:  # Otherwise, the time began with the wait for the head.
                self._await_client()

    def _trust(self) -> None:
        """Apply the limits of callers, because a request had a valid key."""
        self._is_caller = True
        self._limits = self._app.limits

    def _count_buffered(self, byte_count: int) -> None:
        """Count the buffered bytes of a body. Raises NotReady if all connections
        together exceed the limit.
        """
        app = self._app
        app.buffered_bytes += byte_count - self._buffered_bytes
        self._buffered_bytes = byte_count
        if byte_count and app.buffered_bytes > self._limits.body_bytes:
            raise NotReady(
                "this worker has reached its limit of buffered bodies; retry in a moment",
                1,
            )

    # Answering requests.

    def _answer(self, head: RequestHead, body: bytes | bytearray) -> None:
        """Answer a complete request: on the loop if it is quick, in a batch if its
        version is batched, otherwise in a thread, which also copies a large body.
        """
        is_small = len(body) <= _LARGE_BYTES
        small_body = bytes(body) if is_small else b""
        request = self._request(head, small_body)
        if is_small and (response := self._app.answer_inline(request)) is not None:
            self._send(head, response)
            return
        self._phase = _ANSWERING
        self._deadline = math.inf
        if self._app.server.repository.has_steps:
            self._await_client()
        self._body = None

        def send_from_batch(response: RawResponse) -> None:
            with suppress(RuntimeError):  # The loop, and therefore the connection, has ended.
                self._loop.call_soon_threadsafe(self._send, head, response)

        def answer_in_thread() -> None:
            """Answer the request, and send the response from the loop; a response in
            pieces is sent while it is computed.
            """
            self._thread = threading.get_ident()
            try:
                if not is_small:
                    # Tensors become views of the body. Their decoders take a bytearray.
                    is_arrow = head.headers.get("content-type") in MEDIA_TYPES
                    has_tensors = is_arrow or HEADER_LENGTH_KEY in head.headers
                    if has_tensors:
                        request.body = body  # type: ignore[assignment]
                    else:
                        request.body = bytes(body)
                response = self._app.handle(request)
            except BaseException as error:  # noqa: BLE001 - the boundary: the client waits, and the pool ignores exits
                response = responses.failure_response(request, error)
            if response.pieces is None:
                self._loop.call_soon_threadsafe(send_if_awaited, response)
                return
            with suppress(RuntimeError):  # The loop, and therefore the connection, has ended.
                exchange = self._new_exchange(head, BodyParser(0, 0))
                self._loop.call_soon_threadsafe(adopt, exchange)
                exchange.send(response, response.pieces)

        def send_if_awaited(response: RawResponse) -> None:
            if self._phase is _ANSWERING:  # Otherwise the request was refused for a late step.
                self._send(head, response)

        def adopt(exchange: StreamedExchange) -> None:
            """Let the connection report to the exchange."""
            if not self._transport.is_closing():
                self._exchange = exchange

        if not (is_small and handle_request_async(self._app.server, request, send_from_batch)):
            self._app.threads_for(request).submit(answer_in_thread)

    def _request(self, head: RequestHead, body: bytes) -> RawRequest:
        request = RawRequest(
            head.method,
            head.path,
            head.headers,
            body,
            self._client,
            head.query,
            self._caller,
        )
        if not self._is_caller and not self._app.server.auth.is_stranger(
            head.headers, self._caller
        ):
            self._trust()
        return request

    def _send(self, head: RequestHead, response: RawResponse) -> None:
        keep_alive = head.keep_alive and not self._is_ending
        self._send_last(serialize_response(response, keep_alive, head.method != "HEAD"), keep_alive)

    def _send_last(self, last: bytes, keep_alive: bool) -> None:
        """Send the end of a response, then continue with the next request, or close
        without `keep_alive`.
        """
        self._phase = _IDLE
        if self._buffered_bytes:
            self._count_buffered(0)
        if self._transport.is_closing():
            return
        self._head = None
        self._body = None
        self._write(last)
        if keep_alive:
            self._wait_for_next()
        else:
            self._end()

    def _write(self, data: bytes) -> None:
        """Send a part of a response; earlier parts may still be unsent."""
        if self._is_blocked:
            # Otherwise the new bytes would hide that the client reads.
            self._unsent_bytes += len(data)
        self._write_bytes(data)

    def _await_client(self) -> None:
        self._deadline = self._app.now + self._limits.request_seconds

    def _wait_for_response(self) -> None:
        """Set the deadline of a complete request: the model may take any time, but the
        client must read.
        """
        if self._is_blocked:
            self._await_client()
        else:
            self._deadline = math.inf

    def _wait_for_next(self) -> None:
        """Continue with the next request if its bytes have arrived; otherwise wait for
        it, or close a connection that is ending. A client that does not read comes
        first.
        """
        if self._is_blocked:
            return
        self._deadline = self._app.now + self._limits.keep_alive_seconds
        self._resume_reading()
        if self._buffer not in (b"", parser.EMPTY_LINE):
            self._advance_later()
        elif self._has_eof or self._is_ending:
            self._transport.close()

    def _resume_reading(self) -> None:
        if self._is_paused and not self._transport.is_closing():
            self._is_paused = False
            self._transport.resume_reading()

    # Streamed requests.

    def _new_exchange(
        self,
        head: RequestHead,
        body: BodyParser,
        streams: int = 0,
    ) -> StreamedExchange:
        """Return the exchange of a request; `streams` is the number that it adds to
        `WorkerApp.streams`.
        """
        is_chunked = head.is_http_1_1  # In HTTP/1.0, closing the connection ends the response.

        def begin_response(response: RawResponse) -> None:
            self._is_ending = self._is_ending or not is_chunked
            if not self._transport.is_closing():
                self._write(
                    serialize_streamed_head(
                        response,
                        head.keep_alive and not self._is_ending,
                        is_chunked,
                    ),
                )

        def write(piece: bytes) -> None:
            if is_chunked:
                piece = b"%X\r\n%b\r\n" % (len(piece), piece)
            self._write(piece)

        def end_response(ending: RawResponse | bool) -> None:
            self._app.streams -= streams
            exchange = self._exchange
            self._is_paused = self._is_paused or (exchange is not None and exchange.is_paused)
            self._exchange = None
            # The client may still be sending an incomplete body.
            self._reads_on = self._body is not None
            self._is_ending = self._is_ending or self._reads_on
            keep_alive = head.keep_alive and not self._is_ending and ending is not False
            if isinstance(ending, RawResponse):
                last = serialize_response(ending, keep_alive)
            else:
                last = parser.LAST_CHUNK if ending and is_chunked else b""
            self._send_last(last, keep_alive)

        most_unsent = self._app.server.max_body_bytes
        return StreamedExchange(
            body,
            self._transport,
            most_unsent,
            write,
            begin_response,
            end_response,
            self._loop,
        )

    def _feed_stream(self) -> None:
        """Pass the bytes that have arrived to the stream, and set the deadline for the
        next bytes; an invalid body is refused.
        """
        exchange = self._exchange
        if exchange is None or self._body is None:
            return
        bytes_before = len(self._buffer)
        try:
            self._buffer = exchange.receive(self._buffer)
        except OnnxserveError as error:
            self._refuse(error)
            return
        if exchange.is_whole:
            self._body = None
            self._wait_for_response()
            return
        self._await_client()
        if 0 < len(self._buffer) < bytes_before:
            self._loop.call_soon(self._feed_stream)
        elif self._has_eof:
            self._refuse(InvalidRequest(self._body.missing()))

    # The end of the connection.

    def _refuse(self, error: OnnxserveError) -> None:
        """Send the last response on this connection, because the beginning of the next
        request is unknown.
        """
        if self._exchange is not None:  # The exchange answers the error.
            self._exchange.fail(error)
            self._is_ending = True
            self._wait_for_response()
            return
        head = self._head
        path = head.path if head else ""
        response = responses.exception_response(path, error)
        with_body = head is None or head.method != "HEAD"
        self._transport.write(serialize_response(response, keep_alive=False, with_body=with_body))
        self._reads_on = True
        self._end()

    def _end(self) -> None:
        """Close, but wait while the client may be sending, because a reset would
        discard the response.
        """
        if not (self._reads_on or self._buffer or self._is_paused):
            self._transport.close()
            self._await_client()
            return
        self._phase = _LINGERING
        self._count_buffered(0)
        self._buffer = b""
        self._head = None
        self._body = None
        self._deadline = self._app.now + request_limits.LINGER_SECONDS
        self._resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
