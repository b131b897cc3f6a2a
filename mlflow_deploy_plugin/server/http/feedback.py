"""`POST /feedback`: labels of earlier predictions, into the spool and from there into the inference log."""

import time

from mlflow_deploy_plugin.errors import FeedbackNotKept, OnnxserveError
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse, request_id
from mlflow_deploy_plugin.server.models.variants import ServedEndpoint
from mlflow_deploy_plugin.server.protocols import feedback as protocol
from mlflow_deploy_plugin.server.protocols.content import JSON

_RETRY_SECONDS = 30
_OF_THE_LOG = "_request_id"
"""The caller's own id of a request, which a key may name as well."""


def feedback(server: Server, request: RawRequest, endpoint: str | None = None) -> RawResponse:
    """202 once the labels are in the spool; whether there is such a prediction shows when they are joined.

    Raises:
        NotReady, NotFound: no such endpoint; see `Repository.find`.
        UnsupportedMediaType, InvalidRequest, SchemaMismatch: see `protocols/feedback.py`.
        TooManyRequests: a limit has turned it away.
        FeedbackNotKept: the spool does not take it.
    """
    is_let_in = False
    try:
        if server.limits.is_active:
            server.limits.acquire(request.headers, request.client)
            is_let_in = True
        name, served = server.repository.find(endpoint)
        entries = protocol.decode(request.headers.get("content-type"), request.body)
        if columns := _columns(served):
            protocol.check_columns(entries, columns, name)
        mask = {column for variant in served.variants.values() for column in variant.captured.mask}
        try:
            server.capture.write_feedback(name, time.time_ns() // 1000, entries, sorted(mask))
        except OSError as error:
            raise FeedbackNotKept(f"feedback cannot be kept just now: {error}", _RETRY_SECONDS) from None
    except OnnxserveError:
        server.metrics.count_feedback("refused", 1)
        raise
    finally:
        if is_let_in:
            server.limits.release()
    server.metrics.count_feedback("accepted", len(entries))
    return RawResponse(202, protocol.encode(len(entries)), JSON, {"X-Request-Id": request_id(request.headers)})


def _columns(served: ServedEndpoint) -> set[str]:
    """What a captured row of the endpoint may have; empty: that is not known, since a model has no named columns."""
    names: set[str] = set()
    for variant in served.variants.values():
        if not variant.loaded.captured.schema.columns:
            return set()
        names.update(variant.captured.schema.names)
        names.update({*variant.captured.mask} & {*variant.loaded.captured.schema.names})
    return names | {_OF_THE_LOG} if names else names
