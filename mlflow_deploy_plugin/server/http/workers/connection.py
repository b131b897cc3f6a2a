"""A connection of the accelerated worker: its state, its deadlines, and its end, whatever is read from it.

Every wait has an end: for the first byte and between requests (keep-alive), for a whole request, and for a client that
takes nothing of its answer. Deadlines are looked at a few times a second (`sweep`), which costs a request nothing.
Where there is no room for another connection, the one that has been silent the longest goes: a thousand clients that
say nothing, or as good as nothing, keep nobody out.
"""

import asyncio
import heapq
import math
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from mlflow_deploy_plugin.errors import InvalidRequest, NotReady, OnnxserveError, RequestTimeout, TooManyRequests
from mlflow_deploy_plugin.server.http.messages import (
    CONTINUE,
    RawRequest,
    RawResponse,
    exception_response,
    serialize_chunked_head,
    serialize_response,
)
from mlflow_deploy_plugin.server.http.parser import (
    CHUNKED,
    EMPTY_LINE,
    SLOWEST_BYTES_PER_SECOND,
    BodyParser,
    RequestHead,
    body_parser,
    parse_head,
    read_head,
)
from mlflow_deploy_plugin.server.http.routes import handle_request_async
from mlflow_deploy_plugin.server.http.streaming import LAST_CHUNK, MAX_STREAMS, StreamedExchange, may_stream
from mlflow_deploy_plugin.server.http.workers.worker_app import WorkerApp

_UNDERWAY_SECONDS = 1.0
"""After an answer, or after connecting, the next request may be on its way for so long."""
_LINGER_SECONDS = 5.0
_LOOKED_FOR = 16
_STALE_SECONDS = 0.5
"""`Front.now` may be so old where the loop is busy: whoever has asked has done so later than it says."""


class Connection(asyncio.Protocol):
    """One connection. uvicorn makes it, and calls `shutdown` when the worker ends."""

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        self._front: WorkerApp = config.app
        self._limits = self._front.limits
        self._connections: set[Connection] = server_state.connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._client = ""
        self._buffer = b""
        self._head: RequestHead | None = None
        self._body: BodyParser | None = None
        self._exchange: StreamedExchange | None = None
        self._deadline = math.inf
        self._unsent = 0
        self._held = 0
        self._lingered = 0
        self._is_fresh = True  # nothing has ever come
        self._is_resting = True  # nothing is in hand: no part of a request has come, no answer is on its way
        self._has_begun = False  # a part of a request has come
        self._is_busy = False  # a request is being answered, or a step is about to be taken
        self._is_blocked = False  # the client does not take what is sent
        self._is_paused = False  # nothing is read
        self._is_ending = False  # after this answer the connection ends
        self._is_lingering = False  # the last answer is sent; what still comes is thrown away
        self._has_eof = False  # the client sends no more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's own class
        self._transport.set_write_buffer_limits(high=1, low=0)  # told of all that a client leaves; 0 would block TLS
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if isinstance(peer, tuple) else ""
        self._connections.add(self)
        self._deadline = self._loop.time() + self._limits.request_seconds
        if len(self._connections) > self._limits.connections and not self._make_room():
            self._refuse(NotReady("this worker has as many connections as it may; ask again in a moment", 1))

    def _make_room(self) -> bool:
        """Ends the connection that has been silent the longest; False: each of them is being answered.

        All are looked at for several who come: who has done nothing since then is still among the first to go.
        """
        silent = self._front.silent
        while silent:
            since, other = silent.pop()
            if other.silent_since == since:
                other.give_way()
                return True
        found = ((other.silent_since, number, other) for number, other in enumerate(self._connections))
        longest = heapq.nsmallest(_LOOKED_FOR, (one for one in found if one[0] < math.inf and one[2] is not self))
        if not longest:
            return False
        silent.extend((since, other) for since, _, other in reversed(longest[1:]))
        longest[0][2].give_way()
        return True

    @property
    def silent_since(self) -> float:
        """When the client has last done what is its turn, in the loop's time; infinite: it is not its turn."""
        waits = self._exchange is not None and self._exchange.awaits_client
        limits = self._limits
        if self._transport.is_closing() or (self._is_busy and not (waits or self._is_blocked)):
            return math.inf
        if self._is_lingering:
            patience = _LINGER_SECONDS
        elif self._is_fresh or self._is_blocked or self._has_begun or waits:
            patience = float(limits.request_seconds)
        else:
            patience = float(limits.keep_alive_seconds)
        since = self._deadline - patience
        if not self._is_fresh:
            come = len(self._buffer) + (self._body.received if self._body is not None else 0)
            since += _STALE_SECONDS + come / SLOWEST_BYTES_PER_SECOND
        return min(since, self._loop.time())

    def give_way(self) -> None:
        """Ends, without waiting for anybody, for the sake of a new connection."""
        if self._has_begun and not (self._is_blocked or self._is_lingering or self._exchange is not None):
            late = RequestTimeout("the request came too slowly, and other clients wait for its place")
            self._transport.write(
                serialize_response(exception_response(self._head.path if self._head else "", late), keeps_alive=False)
            )
            self._transport.close()
            self._deadline = self._front.now + _LINGER_SECONDS
        elif self._is_blocked or self._is_lingering or self._exchange is not None:
            self._transport.abort()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._exchange is not None:
            self._exchange.make_room(is_gone=True)
        if not self._is_busy:
            self._hold(0)
        self._buffer, self._head, self._body = b"", None, None

    def eof_received(self) -> bool:
        """What the client has sent whole is still answered (but over TLS, whose connections end both ways at once)."""
        self._has_eof = True
        if self._is_lingering:
            return False
        if self._body is not None:
            self._refuse(InvalidRequest(self._body.missing()))
        return self._is_busy or self._is_blocked or self._is_lingering

    def pause_writing(self) -> None:
        self._is_blocked = True
        self._is_resting = False
        self._unsent = self._transport.get_write_buffer_size()
        self._deadline = self._front.now + self._limits.request_seconds

    def resume_writing(self) -> None:
        self._is_blocked = False
        if self._exchange is not None:
            self._deadline = math.inf if self._exchange.is_whole else self._front.now + self._limits.request_seconds
            self._exchange.make_room()
        if not self._is_busy and not self._is_lingering:
            self._wait_for_next()

    def shutdown(self) -> None:
        """The worker ends. What has begun, or is likely to be on its way, is answered; an idle connection is closed."""
        self._is_ending = True
        self._is_resting = False
        if not (self._has_begun or self._is_busy or self._is_blocked or self._is_lingering):
            now = self._front.now
            used = now if self._is_fresh else self._deadline - self._limits.keep_alive_seconds
            self._deadline = max(now, min(used, now) + _UNDERWAY_SECONDS)

    def sweep(self, now: float) -> None:
        """Ends a wait that has taken too long."""
        if now < self._deadline:
            return
        if unsent := self._transport.get_write_buffer_size():
            if unsent >= self._unsent:
                self._transport.abort()
            self._unsent = unsent
            self._deadline = now + self._limits.request_seconds
        elif self._is_lingering or self._transport.is_closing():
            self._transport.abort()
        elif self._exchange is not None and not self._exchange.awaits_client:
            self._deadline = now + self._limits.request_seconds  # it is the model that takes its time
        elif self._body is not None:
            self._refuse(RequestTimeout(self._body.missing()))
        elif self._has_begun:
            self._refuse(RequestTimeout("the head of the request did not arrive in time"))
        else:
            self._transport.close()

    def _send_last(self, last: bytes, keeps_alive: bool, reads_on: bool = False) -> None:
        """Sends the end of an answer, and goes on with the next request or ends; see `_end`."""
        self._is_busy = False
        if self._held:
            self._hold(0)
        if self._transport.is_closing():
            return
        self._head = self._body = None
        self._write(last)
        if keeps_alive:
            self._wait_for_next()
        else:
            self._end(reads_on)

    def _write(self, data: bytes) -> None:
        """Sends a part of an answer; the client may not have taken all of the parts before."""
        if self._is_blocked:
            self._unsent += len(data)  # so that what the client has taken shows in what is left
        self._transport.write(data)

    def _wait_for_answer(self) -> None:
        """Nothing more of the request is to come: the model has all the time, and the client to take what there is."""
        self._deadline = self._front.now + self._limits.request_seconds if self._is_blocked else math.inf

    def _wait_for_next(self) -> None:
        self._has_begun = False
        if self._is_blocked:
            return
        self._deadline = self._front.now + self._limits.keep_alive_seconds
        self._read_on()
        if self._buffer not in (b"", EMPTY_LINE):
            self._go_on_soon()
        elif self._has_eof or self._is_ending:
            self._transport.close()
        else:
            self._is_resting = not self._buffer

    def _read_on(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def _hold(self, size: int) -> None:
        """Says how much of a body is held.

        Raises:
            NotReady: with those of other connections it is too much.
        """
        front = self._front
        front.held_bytes += size - self._held
        self._held = size
        if size and front.held_bytes > self._limits.body_bytes:
            raise NotReady("this worker receives as many large bodies as it may; ask again in a moment", 1)

    def _begin(self) -> None:
        """A part of a request has come: the time for all of it begins."""
        if not self._has_begun:
            self._has_begun = True
            self._deadline = self._front.now + self._limits.request_seconds

    def _refuse(self, error: OnnxserveError) -> None:
        """The last answer on this connection: where the next request would begin is not known."""
        if self._exchange is not None:  # which has its own answer to that
            self._exchange.fail(error)
            self._is_ending = True
            self._wait_for_answer()
            return
        head = self._head
        response = exception_response(head.path if head else "", error)
        self._transport.write(
            serialize_response(response, keeps_alive=False, with_body=head is None or head.method != "HEAD")
        )
        self._end(reads_on=True)

    def _end(self, reads_on: bool = False) -> None:
        """Closes; where the client may still be sending only after it has stopped, since a reset would take the answer
        from it."""
        if not (reads_on or self._buffer or self._is_paused):
            self._transport.close()
            self._deadline = self._front.now + self._limits.request_seconds
            return
        self._is_lingering = True
        self._hold(0)
        self._buffer, self._head, self._body = b"", None, None
        self._deadline = self._front.now + _LINGER_SECONDS
        self._read_on()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _go_on_soon(self) -> None:
        """The next step, after other connections had their turn."""
        raise NotImplementedError


# HTTP/1.1 on the event loop: bytes of a connection → `routes.answer` → bytes, without a framework between.
# The whole surface is one function, so that every route is a hot one: no request needs Flask here, and Flask
# is not even imported. A request that is expected to take less than a millisecond is answered on the loop, another one
# in a thread; a connection has one request in hand at a time, so that pipelined requests are answered in their order,
# and what has come beyond it waits in a bounded buffer while reading is paused.

_AHEAD_BYTES = 64 * 1024
_LARGE_BYTES = 64 * 1024
_LINGER_BYTES = 64 * 1024 * 1024


class HttpConnection(Connection):
    """Reads requests from a connection, and sends their answers."""

    def data_received(self, data: bytes) -> None:
        if self._is_lingering:
            self._lingered += len(data)
            if self._lingered > _LINGER_BYTES:
                self._transport.abort()
            return
        self._is_fresh = False
        if self._is_resting and self._answer_at_once(data):
            return
        self._is_resting = False
        self._buffer = self._buffer + data if self._buffer else data
        if self._exchange is not None and not self._exchange.is_whole:
            self._receive()
        elif not (self._is_busy or self._is_blocked):
            self._advance()
        elif len(self._buffer) > _AHEAD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def _answer_at_once(self, data: bytes) -> bool:
        """Answers what nearly every read brings: one whole request, and a quick one. False: nothing has happened."""
        end = data.find(b"\r\n\r\n") + 4
        if end < 8:
            return False
        try:
            head = read_head(data[: end - 4])
        except OnnxserveError:
            return False  # is found, and told, again
        front = self._front
        if head.length != len(data) - end or not head.keeps_alive or head.length > front.server.max_body_bytes:
            return False
        request = RawRequest(head.method, head.path, head.headers, data[end:], self._client)
        if not front.costs.is_quick(request):
            return False
        self._transport.write(serialize_response(front.answer_on_loop(request), True, head.method != "HEAD"))
        if not self._is_blocked:
            self._deadline = front.now + self._limits.keep_alive_seconds
        return True

    def _advance(self) -> None:
        """Goes as far as the bytes that are there allow."""
        try:
            if self._head is None:
                self._read_head()
            if self._head is not None:
                self._read_body(self._head)
        except OnnxserveError as error:
            self._refuse(error)

    def _read_head(self) -> None:
        self._head, self._buffer = parse_head(self._buffer)
        if self._head is None and self._buffer != EMPTY_LINE:
            self._begin()

    def _read_body(self, head: RequestHead) -> None:
        if self._body is None:
            limit = self._front.server.max_body_bytes
            if 0 <= head.length <= min(len(self._buffer), limit):
                piece, self._buffer = self._buffer[: head.length], self._buffer[head.length :]
                self._answer(head, (piece,))
                return
            is_long = head.length == CHUNKED or head.length > limit
            if is_long and head.takes_chunks and may_stream(head.method, head.path, head.headers):
                self._begin_exchange(head, limit)
                return
            self._body = body_parser(head.length, limit)
            self._begin()
            if head.waits and not self._buffer:
                self._transport.write(CONTINUE)
        before = len(self._buffer)
        self._buffer = self._body.feed(self._buffer)
        self._hold(self._body.received)
        if self._body.is_whole:
            self._answer(head, self._body.pieces)
        elif 0 < len(self._buffer) < before:
            self._go_on_soon()

    def _answer(self, head: RequestHead, pieces: Sequence[bytes | bytearray]) -> None:
        request = None
        if len(pieces) == 1 and len(pieces[0]) <= _LARGE_BYTES:
            request = RawRequest(head.method, head.path, head.headers, bytes(pieces[0]), self._client)
            if self._front.costs.is_quick(request):
                self._send(head, self._front.answer_on_loop(request))
                return
        self._is_busy = True
        self._deadline = math.inf
        self._body = None
        if request is None or not handle_request_async(
            self._front.server, request, partial(self._answer_from_batch, head)
        ):
            self._front.pool.submit(self._answer_in_thread, head, pieces)

    def _answer_from_batch(self, head: RequestHead, response: RawResponse) -> None:
        """In the thread that has computed the batch, or in the loop's."""
        with suppress(RuntimeError):  # the loop has ended, and with it the connection
            self._loop.call_soon_threadsafe(self._send, head, response)

    def _answer_in_thread(self, head: RequestHead, pieces: Sequence[bytes | bytearray]) -> None:
        request = RawRequest(head.method, head.path, head.headers, b"".join(pieces), self._client)
        response = self._front.answer(request)
        self._loop.call_soon_threadsafe(self._send, head, response)

    def _begin_exchange(self, head: RequestHead, most_unsent: int) -> None:
        """The body is answered while it comes (`http/streaming.py`); until that is done, nothing else is."""
        front = self._front
        if front.exchanges >= MAX_STREAMS:
            raise TooManyRequests(f"{MAX_STREAMS} streams are being answered here already; ask again later", 1)
        self._is_busy = True
        self._body = body_parser(head.length, sys.maxsize)
        self._exchange = exchange = StreamedExchange(
            self._body,
            self._transport,
            most_unsent,
            self._write,
            partial(self._begin_chunks, head),
            partial(self._end_exchange, head),
        )
        if head.waits and not self._buffer:
            self._transport.write(CONTINUE)
        self._receive()
        request = RawRequest(head.method, head.path, head.headers, b"", self._client)
        threading.Thread(
            target=exchange.run, args=(front.server, request), name="onnxserve-stream", daemon=True
        ).start()
        front.exchanges += 1

    def _begin_chunks(self, head: RequestHead, response: RawResponse) -> None:
        if not self._transport.is_closing():
            self._write(serialize_chunked_head(response, head.keeps_alive and not self._is_ending))

    def _receive(self) -> None:
        exchange = self._exchange
        if exchange is None or self._body is None:
            return
        before = len(self._buffer)
        try:
            self._buffer = exchange.receive(self._buffer)
        except OnnxserveError as error:
            self._refuse(error)
            return
        if exchange.is_whole:
            self._body = None
            self._wait_for_answer()
            return
        self._deadline = self._front.now + self._limits.request_seconds
        if 0 < len(self._buffer) < before:
            self._loop.call_soon(self._receive)

    def _end_exchange(self, head: RequestHead, ending: RawResponse | bool) -> None:
        """The answer has been sent in chunks, whole (True) or broken off; or it is to be sent now."""
        self._front.exchanges -= 1
        self._is_paused = self._is_paused or (self._exchange is not None and self._exchange.is_paused)
        self._exchange = None
        reads_on = self._body is not None  # and where the next request would begin is not known
        self._is_ending = self._is_ending or reads_on
        keeps_alive = head.keeps_alive and not self._is_ending and ending is not False
        if isinstance(ending, RawResponse):
            self._send_last(serialize_response(ending, keeps_alive), keeps_alive, reads_on)
        else:
            self._send_last(LAST_CHUNK if ending else b"", keeps_alive, reads_on)

    def _send(self, head: RequestHead, response: RawResponse) -> None:
        keeps_alive = head.keeps_alive and not self._is_ending
        self._send_last(serialize_response(response, keeps_alive, head.method != "HEAD"), keeps_alive)

    def _go_on_soon(self) -> None:
        """The next step, after other connections had their turn."""
        self._is_busy = True
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_busy = False
        if self._transport.is_closing() or self._is_blocked:
            return
        self._advance()
        if not self._is_busy:
            self._read_on()
        if self._has_eof and not (self._is_busy or self._is_blocked or self._is_lingering):
            self._transport.close()  # the rest is no whole request, and nothing more will come
