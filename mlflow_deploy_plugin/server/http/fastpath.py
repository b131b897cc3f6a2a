"""HTTP/1.1 on the event loop: bytes of a connection → `routes.answer` → bytes, without a framework between.

The whole surface is one function, so that every route is a hot one: no request needs Flask here, and Flask
is not even imported. A request that is expected to take less than a millisecond is answered on the loop, another one
in a thread; a connection has one request in hand at a time, so that pipelined requests are answered in their order,
and what has come beyond it waits in a bounded buffer while reading is paused.
"""

import math
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from mlflow_deploy_plugin.errors import OnnxserveError, TooManyRequests
from mlflow_deploy_plugin.server.http.body import open_body
from mlflow_deploy_plugin.server.http.connection import Connection
from mlflow_deploy_plugin.server.http.exchange import LAST_CHUNK, MOST_EXCHANGES, Exchange
from mlflow_deploy_plugin.server.http.head import CHUNKED, EMPTY_LINE, Head, read_head, take_head
from mlflow_deploy_plugin.server.http.lines import are_lines
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse
from mlflow_deploy_plugin.server.http.reply import CONTINUE, chunked_head, reply
from mlflow_deploy_plugin.server.http.routes import answer_later

_AHEAD_BYTES = 64 * 1024
_LARGE_BYTES = 64 * 1024
_LINGER_BYTES = 64 * 1024 * 1024


class FastProtocol(Connection):
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
        self._transport.write(reply(front.answer_on_loop(request), True, head.method != "HEAD"))
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
        self._head, self._buffer = take_head(self._buffer)
        if self._head is None and self._buffer != EMPTY_LINE:
            self._begin()

    def _read_body(self, head: Head) -> None:
        if self._body is None:
            limit = self._front.server.max_body_bytes
            if 0 <= head.length <= min(len(self._buffer), limit):
                piece, self._buffer = self._buffer[: head.length], self._buffer[head.length :]
                self._answer(head, (piece,))
                return
            may_stream = head.takes_chunks and (head.length == CHUNKED or head.length > limit)
            if may_stream and are_lines(head.method, head.path, head.headers):
                self._begin_exchange(head, limit)
                return
            self._body = open_body(head.length, limit)
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

    def _answer(self, head: Head, pieces: Sequence[bytes | bytearray]) -> None:
        request = None
        if len(pieces) == 1 and len(pieces[0]) <= _LARGE_BYTES:
            request = RawRequest(head.method, head.path, head.headers, bytes(pieces[0]), self._client)
            if self._front.costs.is_quick(request):
                self._send(head, self._front.answer_on_loop(request))
                return
        self._is_busy = True
        self._deadline = math.inf
        self._body = None
        if request is None or not answer_later(self._front.server, request, partial(self._answer_from_batch, head)):
            self._front.pool.submit(self._answer_in_thread, head, pieces)

    def _answer_from_batch(self, head: Head, response: RawResponse) -> None:
        """In the thread that has computed the batch, or in the loop's."""
        with suppress(RuntimeError):  # the loop has ended, and with it the connection
            self._loop.call_soon_threadsafe(self._send, head, response)

    def _answer_in_thread(self, head: Head, pieces: Sequence[bytes | bytearray]) -> None:
        request = RawRequest(head.method, head.path, head.headers, b"".join(pieces), self._client)
        response = self._front.answer(request)
        self._loop.call_soon_threadsafe(self._send, head, response)

    def _begin_exchange(self, head: Head, most_unsent: int) -> None:
        """The body is answered while it comes (`http/exchange.py`); until that is done, nothing else is."""
        front = self._front
        if front.exchanges >= MOST_EXCHANGES:
            raise TooManyRequests(f"{MOST_EXCHANGES} streams are being answered here already; ask again later", 1)
        self._is_busy = True
        self._body = open_body(head.length, sys.maxsize)
        self._exchange = exchange = Exchange(
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

    def _begin_chunks(self, head: Head, response: RawResponse) -> None:
        if not self._transport.is_closing():
            self._write(chunked_head(response, head.keeps_alive and not self._is_ending))

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

    def _end_exchange(self, head: Head, ending: RawResponse | bool) -> None:
        """The answer has been sent in chunks, whole (True) or broken off; or it is to be sent now."""
        self._front.exchanges -= 1
        self._is_paused = self._is_paused or (self._exchange is not None and self._exchange.is_paused)
        self._exchange = None
        reads_on = self._body is not None  # and where the next request would begin is not known
        self._is_ending = self._is_ending or reads_on
        keeps_alive = head.keeps_alive and not self._is_ending and ending is not False
        if isinstance(ending, RawResponse):
            self._send_last(reply(ending, keeps_alive), keeps_alive, reads_on)
        else:
            self._send_last(LAST_CHUNK if ending else b"", keeps_alive, reads_on)

    def _send(self, head: Head, response: RawResponse) -> None:
        keeps_alive = head.keeps_alive and not self._is_ending
        self._send_last(reply(response, keeps_alive, head.method != "HEAD"), keeps_alive)

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
