"""JSON Lines that are answered while they come: no body and no answer is ever held whole.

One version answers all of a stream, in pieces of up to a thousand lines, each of which is captured as a request of its
own. Where the first piece cannot be answered, the answer is an error like any other. After that its status has been
sent: the last line is then an object with `error_code` and `message`, and the connection ends without the chunk that
would end the answer, so that no reader takes it for a whole one.
"""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial

from mlflow_deploy_plugin.errors import OnnxserveError, SchemaMismatch
from mlflow_deploy_plugin.runtime import Feeds, Schema
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.access_log import observe_request
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse, event_time, request_id
from mlflow_deploy_plugin.server.http.parser import BodyParser
from mlflow_deploy_plugin.server.http.pipeline import failure_response, set_version_headers
from mlflow_deploy_plugin.server.inference.dataplane import InferRequest
from mlflow_deploy_plugin.server.models.variants import ServedVariant
from mlflow_deploy_plugin.server.observability.metrics import count_response, predicted_labels
from mlflow_deploy_plugin.server.protocols import jsonlines
from mlflow_deploy_plugin.server.protocols.content import media_name, media_type
from mlflow_deploy_plugin.server.protocols.protocol_table import INVOCATIONS

_PATH = re.compile(r"/invocations|/endpoints/([^/]+)/invocations")
_GONE = 499
"""The status that is counted where the client has left: nginx' word for it."""


class BrokenResponse(Exception):
    """The answer ended in an error after its beginning was sent: it must not look whole."""


class ClientDisconnected(Exception):
    """Nobody reads the answer any more."""


def may_stream(method: str, path: str, headers: Mapping[str, str]) -> bool:
    """Whether a request is one that may be answered while it comes."""
    if method != "POST" or not _PATH.fullmatch(path) or "content-encoding" in headers:
        return False
    media = media_name(headers.get("content-type"))
    return media in jsonlines.MEDIA_TYPES and headers.get("accept", "*/*").strip().lower() in ("*/*", media)


def stream_predictions(
    server: Server, request: RawRequest, pieces: Iterable[bytes]
) -> tuple[RawResponse, Generator[bytes, None, None] | None]:
    """The answer's head and its pieces; or, with None, the whole answer.

    Args:
        request: without its body.
        pieces: of the body, as they come; what they raise ends the answer.

    The pieces raise:
        BrokenAnswer: after the last one, where it tells of an error.
    """
    begun: list[Generator[bytes, None, None]] = []
    begin = partial(_begin, server, request, pieces, begun.append)
    is_observed = server.tracer or server.logs_requests
    response = observe_request(request, begin, server.tracer, server.logs_requests) if is_observed else begin()
    return response, begun[0] if begun else None


def _begin(
    server: Server,
    request: RawRequest,
    pieces: Iterable[bytes],
    go_on: Callable[[Generator[bytes, None, None]], None],
) -> RawResponse:
    """The head of the answer, once its first lines are computed; `go_on` is given these and the others."""
    headers = {"X-Request-Id": request_id(request.headers)}
    variant: ServedVariant | None = None
    is_let_in = False
    try:
        server.limits.acquire(request.headers, request.client)
        is_let_in = True
        found = _PATH.fullmatch(request.path)
        media_type(request.headers.get("content-type"), jsonlines.MEDIA_TYPES)
        variant = server.dataplane.select_variant(found[1] if found else None, None, request.headers)
        set_version_headers(headers, variant)
        answers = _answers(server, request, variant, headers, pieces)
        first = next(answers)
    except Exception as error:  # noqa: BLE001 - the boundary: logged with its traceback, answered without
        has_left = isinstance(error, ClientDisconnected)
        response = RawResponse(_GONE, b"", headers=headers) if has_left else failure_response(request, error, headers)
        if is_let_in:
            server.limits.release()
        _count(server, request, variant, response.status)
        return response
    go_on(_rest(server, request, variant, headers, first, answers))
    return RawResponse(200, b"", media_name(request.headers.get("content-type")), headers)


def _answers(
    server: Server, request: RawRequest, variant: ServedVariant, headers: Mapping[str, str], pieces: Iterable[bytes]
) -> Iterator[bytes]:
    moment = event_time(request.headers)
    predictor = variant.loaded.predictor
    is_empty = True
    for feeds in _feeds(predictor.schema, server.max_body_bytes, pieces):
        is_empty = False
        asked = InferRequest(headers["X-Request-Id"], variant.endpoint, feeds, event_time=moment)
        outputs = server.dataplane.infer(variant, asked).outputs
        for label, rows in predicted_labels(predictor.artifact, outputs):
            server.metrics.count_prediction(variant.loaded.version, label, rows)
        yield jsonlines.encode(predictor.prediction(outputs, of_table=True))
    if is_empty:
        raise SchemaMismatch(jsonlines.NO_LINES)


def _feeds(schema: Schema, most_bytes: int, pieces: Iterable[bytes]) -> Iterator[Feeds]:
    reader = jsonlines.LineReader(schema, most_bytes)
    for piece in pieces:
        yield from reader.feed(piece)
    yield from reader.end()


def _rest(
    server: Server,
    request: RawRequest,
    variant: ServedVariant,
    headers: dict[str, str],
    first: bytes,
    answers: Iterator[bytes],
) -> Generator[bytes, None, None]:
    status = _GONE
    try:
        yield first
        yield from answers
        status = 200
    except ClientDisconnected:
        return
    except Exception as error:  # noqa: BLE001 - as above
        response = failure_response(request, error, headers)
        status = response.status
        yield response.body + b"\n"
        raise BrokenResponse from None
    finally:
        server.limits.release()
        _count(server, request, variant, status)


def _count(server: Server, request: RawRequest, variant: ServedVariant | None, status: int) -> None:
    count_response(server.metrics, variant, INVOCATIONS.name, str(status), time.perf_counter() - request.arrived)


# A streamed request on the event loop: what comes goes to a thread, what the thread answers goes out, both bounded.
# A client may read its answer while it sends, or only afterwards, as most do. So the answer may lie here, up to the
# limit that a whole body has; only beyond it the thread waits for the client to take something.

LAST_CHUNK = b"0\r\n\r\n"
MAX_STREAMS = 4
"""Of one worker at the same time, each in a thread of its own."""
_AHEAD_BYTES = 1024 * 1024
"""What may have come and wait for the thread."""


class StreamedExchange:
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
        body: BodyParser,
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
        self._error: OnnxserveError | ClientDisconnected | None = None
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

    def fail(self, error: OnnxserveError | ClientDisconnected) -> None:
        """No more will come, for this reason."""
        with self._condition:
            self._error = self._error or error
            self._condition.notify()

    def make_room(self, is_gone: bool = False) -> None:
        """The client has taken what there was, or has gone."""
        self._is_gone = self._is_gone or is_gone
        self._room.set()
        if is_gone:
            self.fail(ClientDisconnected())

    def run(self, server: Server, request: RawRequest) -> None:
        """Answers; in a thread of its own, from the first byte to the last."""
        response, pieces = stream_predictions(server, request, self._pieces())
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
            except BrokenResponse:
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
