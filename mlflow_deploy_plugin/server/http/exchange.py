"""A streamed request on the event loop: what comes goes to a thread, what the thread answers goes out, both bounded.

A client may read its answer while it sends, or only afterwards, as most do. So the answer may lie here, up to the limit
that a whole body has; only beyond it the thread waits for the client to take something.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.body import Body
from mlflow_deploy_plugin.server.http.lines import BrokenAnswer, ClientLeft, answer_lines
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse

LAST_CHUNK = b"0\r\n\r\n"
MOST_EXCHANGES = 4
"""Of one worker at the same time, each in a thread of its own."""
_AHEAD_BYTES = 1024 * 1024
"""What may have come and wait for the thread."""


class Exchange:
    """One streamed request and its answer. `receive`, `fail` and `make_room` are called on the loop, `run` in a thread.

    Args:
        body: collects what comes.
        most_unsent: bytes of the answer that the client has not taken yet.
        write: on the loop: sends a part of the answer.
        begin: on the loop: sends the head of an answer in chunks.
        end: on the loop: sends an answer without chunks, or what ends one in chunks: whole (True) or broken off.
    """

    def __init__(
        self,
        body: Body,
        transport: asyncio.Transport,
        most_unsent: int,
        write: Callable[[bytes], None],
        begin: Callable[[RawResponse], None],
        end: Callable[[RawResponse | bool], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._body = body
        self._transport = transport
        self._most_unsent = most_unsent
        self._send, self._begin, self._end = write, begin, end
        self._condition = threading.Condition()
        self._waiting = bytearray()
        self._error: OnnxserveError | ClientLeft | None = None
        self._is_idle = False
        self._is_paused = False
        self._room = threading.Event()
        self._is_gone = False

    @property
    def is_whole(self) -> bool:
        """Nothing more of the request is to come."""
        return self._body.is_whole or self._error is not None

    @property
    def awaits_client(self) -> bool:
        """All that has come is answered."""
        return self._is_idle

    @property
    def is_paused(self) -> bool:
        """Nothing is read, since much waits for the thread. Once that has ended, its connection has to read on."""
        return self._is_paused

    def receive(self, data: bytes) -> bytes:
        """Takes what belongs to the body, gives back the rest; perhaps not all that it could take.

        Raises:
            InvalidRequest: it is no valid body; `fail` has to follow.
        """
        with self._condition:  # the thread must not find the end of the body before what came with it
            data = self._body.feed(data)
            self._waiting += self._body.take()
            self._condition.notify()
            if len(self._waiting) > _AHEAD_BYTES and not self._is_paused:
                self._is_paused = True
                self._transport.pause_reading()
        return data

    def fail(self, error: OnnxserveError | ClientLeft) -> None:
        """No more will come, for this reason."""
        with self._condition:
            self._error = self._error or error
            self._condition.notify()

    def make_room(self, is_gone: bool = False) -> None:
        """The client has taken what there was, or has gone."""
        self._is_gone = self._is_gone or is_gone
        self._room.set()
        if is_gone:
            self.fail(ClientLeft())

    def run(self, server: Server, request: RawRequest) -> None:
        """Answers; in a thread of its own, from the first byte to the last."""
        response, pieces = answer_lines(server, request, self._pieces())
        with suppress(RuntimeError):  # the loop has ended, and with it the connection
            if pieces is None:
                self._loop.call_soon_threadsafe(self._end, response)
                return
            self._loop.call_soon_threadsafe(self._begin, response)
            is_whole = True
            try:
                for piece in filter(None, pieces):  # a chunk without bytes would be the last one
                    self._room.clear()
                    self._loop.call_soon_threadsafe(self._write, b"%X\r\n%b\r\n" % (len(piece), piece))
                    self._room.wait()
                    if self._is_gone:
                        break
            except BrokenAnswer:
                is_whole = False
            finally:
                pieces.close()
            self._loop.call_soon_threadsafe(self._end, is_whole)

    def _write(self, chunk: bytes) -> None:
        if self._transport.is_closing():
            self.make_room(is_gone=True)
            return
        self._send(chunk)
        if self._transport.get_write_buffer_size() <= self._most_unsent:
            self._room.set()

    def _pieces(self) -> Iterator[bytes]:
        """All that has come since the last look, until the end."""
        while True:
            with self._condition:
                self._is_idle = not self._waiting
                self._condition.wait_for(lambda: self._waiting or self.is_whole)
                self._is_idle = False
                piece = bytes(self._waiting)
                self._waiting.clear()
                if self._is_paused:
                    self._is_paused = False
                    self._loop.call_soon_threadsafe(self._read_on)
                if not piece:
                    if self._error is not None:
                        raise self._error
                    return
            yield piece

    def _read_on(self) -> None:
        if not self._is_paused and not self._transport.is_closing():
            self._transport.resume_reading()
