"""Files of jobs that are stored while they arrive, and responses that are sent while
they are computed: the events of a streaming model, and the results of jobs.

If an error occurs after the head was sent, the response ends without its last chunk, so
that a client does not treat it as complete.
"""

import asyncio
import re
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass

from mlflow_deploy_plugin.core.errors import ClientDisconnected, OnnxserveError
from mlflow_deploy_plugin.serve.http.parser import BodyParser, RequestHead
from mlflow_deploy_plugin.serve.http.responses import RawResponse, failure_response
from mlflow_deploy_plugin.serve.http.views import JOB_FORMATS
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.protocols.content import media_name

MAX_STREAMS = 4
"""The maximum number of concurrent uploads per worker; each upload has its own thread.
"""
_AHEAD_BYTES = 1024 * 1024
"""The number of received bytes that may wait for the answering thread; above this
number, reading is paused.
"""
_JOBS_PATH = re.compile(r"/endpoints/[^/]+/jobs")


def is_upload(head: RequestHead) -> bool:
    """Return True for the file of a job, unless it is compressed."""
    media = media_name(head.headers.get("content-type"))
    is_plain = head.method == "POST" and "content-encoding" not in head.headers
    return is_plain and media in JOB_FORMATS and bool(_JOBS_PATH.fullmatch(head.path))


@dataclass(eq=False)
class StreamedExchange:
    """An upload, or a response in pieces, between a connection on the loop and the
    thread that answers.

    `receive`, `fail`, `resume_sending` and all callbacks run on the loop, `run` and
    `send` in a thread.

    Attributes:
        max_unsent_bytes: the maximum number of response bytes that wait for the client.
        begin: a callback that sends the head of a streamed response; `write` sends a
            part.
        end: a callback that sends any other response, or ends a streamed response:
            complete (True) or aborted (False).
    """

    body: BodyParser
    transport: asyncio.Transport
    max_unsent_bytes: int
    write: Callable[[bytes], None]
    begin: Callable[[RawResponse], None]
    end: Callable[[RawResponse | bool], None]
    loop: asyncio.AbstractEventLoop

    def __post_init__(self) -> None:
        self._condition = threading.Condition()
        self._received = bytearray()  # received but not yet read by the thread
        self._error: OnnxserveError | None = None
        self._may_send = threading.Event()
        self._is_gone = False
        self.awaits_client = False
        """True while the thread waits for bytes from the client."""
        self.is_paused = False
        """True while reading is paused, because too many bytes wait. After the
        exchange, the connection reads again.
        """

    @property
    def is_whole(self) -> bool:
        return self.body.is_whole or self._error is not None

    def receive(self, data: bytes) -> bytes:
        """Add bytes to the body and return the unused bytes. After an InvalidRequest,
        the caller must call `fail`.
        """
        # Otherwise the thread could see the end of the body before its last bytes.
        with self._condition:
            data = self.body.feed(data)
            self._received += self.body.take()
            self._condition.notify()
            if len(self._received) > _AHEAD_BYTES and not self.is_paused:
                self.is_paused = True
                self.transport.pause_reading()
        return data

    def fail(self, error: OnnxserveError) -> None:
        """End the request with an error; its remaining bytes are not read."""
        with self._condition:
            self._error = self._error or error
            self._condition.notify()

    def resume_sending(self, is_gone: bool = False) -> None:
        """Let the thread continue, because the client has read the response so far or
        has closed the connection.
        """
        self._is_gone = self._is_gone or is_gone
        self._may_send.set()
        if is_gone:
            self.fail(ClientDisconnected("the client closed the connection"))

    def run(self, handle: Callable[[RawRequest], RawResponse], request: RawRequest) -> None:
        """Answer an upload, in its own thread."""
        request.upload = self._pieces()
        try:
            response = handle(request)
        except BaseException as error:  # noqa: BLE001 - the boundary: the client waits
            response = failure_response(request, error)
        with suppress(RuntimeError):  # The loop, and therefore the connection, has ended.
            self.loop.call_soon_threadsafe(self.end, response)

    def send(
        self,
        response: RawResponse,
        pieces: Generator[bytes, None, None],
    ) -> None:
        """Send a response while it is computed, and close its pieces. Raises
        RuntimeError if the loop has ended.
        """
        with closing(pieces):
            self.loop.call_soon_threadsafe(self.begin, response)
            is_whole = False
            try:
                for piece in pieces:  # Each has bytes; an empty chunk would end the response.
                    self._may_send.clear()
                    self.loop.call_soon_threadsafe(self._send, piece)
                    self._may_send.wait()
                    if self._is_gone:
                        break
                is_whole = True
            finally:
                # Otherwise an unexpected error would never end the response, and keep
                # its share of the limits.
                self.loop.call_soon_threadsafe(self.end, is_whole)

    def _send(self, piece: bytes) -> None:
        """Write a piece on the loop. The thread continues at once, unless too many
        bytes wait for the client.
        """
        if self.transport.is_closing():
            self.resume_sending(is_gone=True)
            return
        self.write(piece)
        if self.transport.get_write_buffer_size() <= self.max_unsent_bytes:
            self._may_send.set()

    def _pieces(self) -> Iterator[bytes]:
        """Yield the bytes received since the last piece, until the end of the body."""
        while True:
            with self._condition:
                self.awaits_client = not self._received
                self._condition.wait_for(lambda: self._received or self.is_whole)
                self.awaits_client = False
                piece = bytes(self._received)
                self._received.clear()
                if self.is_paused:
                    self.is_paused = False
                    self.loop.call_soon_threadsafe(self._resume_reading)
                if not piece:
                    if self._error is not None:
                        raise self._error
                    return
            yield piece

    def _resume_reading(self) -> None:
        if not self.is_paused and not self.transport.is_closing():
            self.transport.resume_reading()
