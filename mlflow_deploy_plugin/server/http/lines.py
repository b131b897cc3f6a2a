"""JSON Lines that are answered while they come: no body and no answer is ever held whole.

One version answers all of a stream, in pieces of up to a thousand lines, each of which is captured as a request of its
own. Where the first piece cannot be answered, the answer is an error like any other. After that its status has been
sent: the last line is then an object with `error_code` and `message`, and the connection ends without the chunk that
would end the answer, so that no reader takes it for a whole one.
"""

import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial

from mlflow_deploy_plugin.errors import SchemaMismatch
from mlflow_deploy_plugin.runtime import Feeds, Schema
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse, event_time, request_id
from mlflow_deploy_plugin.server.http.observed import observed
from mlflow_deploy_plugin.server.http.predictions import failed, name_version
from mlflow_deploy_plugin.server.http.spoken import INVOCATIONS
from mlflow_deploy_plugin.server.inference.dataplane import InferRequest
from mlflow_deploy_plugin.server.models.variants import ServedVariant
from mlflow_deploy_plugin.server.observability.metrics import count_response, predicted_labels
from mlflow_deploy_plugin.server.protocols import jsonlines
from mlflow_deploy_plugin.server.protocols.content import media_name, media_type

_PATH = re.compile(r"/invocations|/endpoints/([^/]+)/invocations")
_GONE = 499
"""The status that is counted where the client has left: nginx' word for it."""


class BrokenAnswer(Exception):
    """The answer ended in an error after its beginning was sent: it must not look whole."""


class ClientLeft(Exception):
    """Nobody reads the answer any more."""


def are_lines(method: str, path: str, headers: Mapping[str, str]) -> bool:
    """Whether a request is one that may be answered while it comes."""
    if method != "POST" or not _PATH.fullmatch(path) or "content-encoding" in headers:
        return False
    media = media_name(headers.get("content-type"))
    return media in jsonlines.MEDIA_TYPES and headers.get("accept", "*/*").strip().lower() in ("*/*", media)


def answer_lines(
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
    response = observed(request, begin, server.tracer, server.logs_requests) if is_observed else begin()
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
        server.limits.enter(request.headers, request.client)
        is_let_in = True
        found = _PATH.fullmatch(request.path)
        media_type(request.headers.get("content-type"), jsonlines.MEDIA_TYPES)
        variant = server.dataplane.lease(found[1] if found else None, None, request.headers)
        name_version(headers, variant)
        answers = _answers(server, request, variant, headers, pieces)
        first = next(answers)
    except Exception as error:  # noqa: BLE001 - the boundary: logged with its traceback, answered without
        has_left = isinstance(error, ClientLeft)
        response = RawResponse(_GONE, b"", headers=headers) if has_left else failed(request, error, headers)
        if is_let_in:
            server.limits.leave()
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
    except ClientLeft:
        return
    except Exception as error:  # noqa: BLE001 - as above
        response = failed(request, error, headers)
        status = response.status
        yield response.body + b"\n"
        raise BrokenAnswer from None
    finally:
        server.limits.leave()
        _count(server, request, variant, status)


def _count(server: Server, request: RawRequest, variant: ServedVariant | None, status: int) -> None:
    count_response(server.metrics, variant, INVOCATIONS.name, str(status), time.perf_counter() - request.arrived)
