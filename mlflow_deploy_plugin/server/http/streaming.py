"""JSON Lines that are answered while they come: neither the body nor the response is ever held whole.

One version answers all of a stream, in pieces of up to a thousand lines, each of which is captured as a request of its
own. If the first piece fails, the response is an error like any other. Later the status has been sent: the last line is
then an object with `error_code` and `message`, and the connection ends without the last chunk, so that no client takes
the response for a whole one.

`stream_predictions` blocks its thread. `StreamedExchange` runs it in a thread for a connection on the event loop.
"""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain

from mlflow_deploy_plugin.errors import OnnxserveError, SchemaMismatch
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

MAX_STREAMS = 4
"""Streams of one worker at the same time, each in a thread of its own."""
_AHEAD_BYTES = 1024 * 1024
"""Bytes that may have come and wait for the thread; with more, reading is paused."""
_PATH = re.compile(r"/invocations|/endpoints/([^/]+)/invocations")
_CLIENT_CLOSED_REQUEST = 499
"""The status that is counted if the client has left, as in nginx."""


class BrokenResponse(Exception):
    """The response ended in an error after its beginning was sent: it must not look whole."""


class ClientDisconnected(Exception):
    """Nobody reads the response any more."""


def may_stream(method: str, path: str, headers: Mapping[str, str]) -> bool:
    """Return True if the request may be answered while it comes."""
    if method != "POST" or not _PATH.fullmatch(path) or "content-encoding" in headers:
        return False
    media = media_name(headers.get("content-type"))
    return media in jsonlines.MEDIA_TYPES and headers.get("accept", "*/*").strip().lower() in ("*/*", media)


def stream_predictions(
    server: Server, request: RawRequest, pieces: Iterable[bytes]
) -> tuple[RawResponse, Generator[bytes, None, None] | None]:
    """Return the head of the response and its pieces; or the whole response, and None.

    Args:
        request: without its body.
        pieces: the body, as it comes. An error that they raise ends the response.

    The returned pieces raise:
        BrokenResponse: after the last one, if that holds an error.
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
    """Return the head of the response once its first piece is computed. `go_on` is given that and the others."""
    headers = {"X-Request-Id": request_id(request.headers)}
    variant: ServedVariant | None = None
    is_admitted = False
    try:
        server.limits.acquire(request.headers, request.client)
        is_admitted = True
        match = _PATH.fullmatch(request.path)
        media = media_type(request.headers.get("content-type"), jsonlines.MEDIA_TYPES)
        variant = server.dataplane.select_variant(match[1] if match else None, None, request.headers)
        set_version_headers(headers, variant)
        predictions = _predict(server, request, variant, headers["X-Request-Id"], pieces)
        first = next(predictions)
    except Exception as error:  # noqa: BLE001 - the boundary: logged with its traceback, answered without
        if isinstance(error, ClientDisconnected):
            response = RawResponse(_CLIENT_CLOSED_REQUEST, b"", headers=headers)
        else:
            response = failure_response(request, error, headers)
        if is_admitted:
            server.limits.release()
        _count(server, request, variant, response.status)
        return response
    go_on(_send(server, request, variant, headers, first, predictions))
    return RawResponse(200, b"", media, headers)


def _predict(
    server: Server, request: RawRequest, variant: ServedVariant, identity: str, pieces: Iterable[bytes]
) -> Iterator[bytes]:
    """Yield the predictions of each piece of up to a thousand lines."""
    moment = event_time(request.headers)
    predictor = variant.loaded.predictor
    reader = jsonlines.LineReader(predictor.schema, server.max_body_bytes)
    is_empty = True
    for feeds in chain(chain.from_iterable(map(reader.feed, pieces)), reader.end()):
        is_empty = False
        infer_request = InferRequest(identity, variant.endpoint, feeds, event_time=moment)
        outputs = server.dataplane.infer(variant, infer_request).outputs
        for label, rows in predicted_labels(predictor.artifact, outputs):
            server.metrics.count_prediction(variant.loaded.version, label, rows)
        yield jsonlines.encode(predictor.prediction(outputs, of_table=True))
    if is_empty:
        raise SchemaMismatch(jsonlines.NO_LINES)


def _send(
    server: Server,
    request: RawRequest,
    variant: ServedVariant,
    headers: dict[str, str],
    first: bytes,
    predictions: Iterator[bytes],
) -> Generator[bytes, None, None]:
    """Yield the predictions, and an error as the last line; count the response when it ends."""
    status = _CLIENT_CLOSED_REQUEST
    try:
        yield first
        yield from predictions
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


class StreamedExchange:
    """One streamed request and its response, between a connection on the loop and the thread that answers.

    A client may read its response while it sends, or only afterwards, as most do. So the response may wait here, up to
    the limit of a whole body; only beyond it the thread waits for the client to take something.

    `receive`, `fail` and `resume_sending` are called on the loop, `run` in a thread. All callbacks run on the loop.

    Args:
        body: the parser of the request's body.
        max_unsent_bytes: bytes of the response that the client may not have taken yet.
        write: sends a part of the response.
        begin: sends the head of a response in chunks.
        end: sends a response that is not in chunks, or the end of one in chunks: whole (True) or broken off (False).
    """

    def __init__(
        self,
        body: BodyParser,
        transport: asyncio.Transport,
        max_unsent_bytes: int,
        write: Callable[[bytes], None],
        begin: Callable[[RawResponse], None],
        end: Callable[[RawResponse | bool], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._body = body
        self._transport = transport
        self._max_unsent_bytes = max_unsent_bytes
        self._write, self._begin, self._end = write, begin, end
        self._condition = threading.Condition()
        self._received = bytearray()  # and not taken by the thread
        self._error: OnnxserveError | ClientDisconnected | None = None
        self._may_send = threading.Event()
        self._is_gone = False
        self.awaits_client = False
        """True while everything that has come is answered."""
        self.is_paused = False
        """True while reading is paused, since much waits for the thread. The connection has to resume it at the end."""

    @property
    def is_whole(self) -> bool:
        """True if nothing more of the request is to come."""
        return self._body.is_whole or self._error is not None

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the body, and return those that are not used, perhaps not all that could be used.

        Raises:
            InvalidRequest: it is no valid body; `fail` has to follow.
        """
        with self._condition:  # the thread must not find the end of the body before what came with it
            data = self._body.feed(data)
            self._received += self._body.take()
            self._condition.notify()
            if len(self._received) > _AHEAD_BYTES and not self.is_paused:
                self.is_paused = True
                self._transport.pause_reading()
        return data

    def fail(self, error: OnnxserveError | ClientDisconnected) -> None:
        """End the request with an error: no more of it will come."""
        with self._condition:
            self._error = self._error or error
            self._condition.notify()

    def resume_sending(self, is_gone: bool = False) -> None:
        """Let the thread go on, since the client has taken what there was, or is gone."""
        self._is_gone = self._is_gone or is_gone
        self._may_send.set()
        if is_gone:
            self.fail(ClientDisconnected())

    def run(self, server: Server, request: RawRequest) -> None:
        """Answer the request, in a thread of its own, from the first byte to the last."""
        response, pieces = stream_predictions(server, request, self._pieces())
        with suppress(RuntimeError):  # the loop has ended, and with it the connection
            if pieces is None:
                self._loop.call_soon_threadsafe(self._end, response)
                return
            self._loop.call_soon_threadsafe(self._begin, response)
            is_whole = True
            try:
                for piece in filter(None, pieces):  # a chunk without bytes would be the last one
                    self._may_send.clear()
                    self._loop.call_soon_threadsafe(self._send, b"%X\r\n%b\r\n" % (len(piece), piece))
                    self._may_send.wait()
                    if self._is_gone:
                        break
            except BrokenResponse:
                is_whole = False
            finally:
                pieces.close()
            self._loop.call_soon_threadsafe(self._end, is_whole)

    def _send(self, chunk: bytes) -> None:
        if self._transport.is_closing():
            self.resume_sending(is_gone=True)
            return
        self._write(chunk)
        if self._transport.get_write_buffer_size() <= self._max_unsent_bytes:
            self._may_send.set()

    def _pieces(self) -> Iterator[bytes]:
        """Yield what has come since the last piece, until the end of the body."""
        while True:
            with self._condition:
                self.awaits_client = not self._received
                self._condition.wait_for(lambda: self._received or self.is_whole)
                self.awaits_client = False
                piece = bytes(self._received)
                self._received.clear()
                if self.is_paused:
                    self.is_paused = False
                    self._loop.call_soon_threadsafe(self._resume_reading)
                if not piece:
                    if self._error is not None:
                        raise self._error
                    return
            yield piece

    def _resume_reading(self) -> None:
        if not self.is_paused and not self._transport.is_closing():
            self._transport.resume_reading()
