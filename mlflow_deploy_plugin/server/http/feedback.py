"""`POST /feedback`: labels of earlier predictions, into the spool and from there into the inference log."""

import time

from mlflow_deploy_plugin.errors import FeedbackNotKept, OnnxserveError
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse, request_id
from mlflow_deploy_plugin.server.http.pipeline import admitted
from mlflow_deploy_plugin.server.models.variants import ServedEndpoint
from mlflow_deploy_plugin.server.protocols import feedback as protocol
from mlflow_deploy_plugin.server.protocols.content import JSON

_RETRY_SECONDS = 30
_REQUEST_ID_COLUMN = "_request_id"
"""The log's column with the caller's own request id. A key may name it like a column of the model."""


def feedback(server: Server, request: RawRequest, endpoint: str | None = None) -> RawResponse:
    """Return 202 once the labels are in the spool. They are matched with predictions later, when they are joined.

    Raises:
        NotReady, NotFound: no such endpoint; see `Repository.find`.
        UnsupportedMediaType, InvalidRequest, SchemaMismatch: see `protocols/feedback.py`.
        TooManyRequests: a limit of the server is reached.
        FeedbackNotKept: the spool cannot be written.
    """
    try:
        with admitted(server, request):
            name, served = server.repository.find(endpoint)
            entries = protocol.decode(request.headers.get("content-type"), request.body)
            if columns := _captured_columns(served):
                protocol.check_columns(entries, columns, name)
            mask = {column for variant in served.variants.values() for column in variant.captured.mask}
            try:
                server.capture.write_feedback(name, time.time_ns() // 1000, entries, sorted(mask))
            except OSError as error:
                raise FeedbackNotKept(f"feedback cannot be kept just now: {error}", _RETRY_SECONDS) from None
    except OnnxserveError:
        server.metrics.count_feedback("refused", 1)
        raise
    server.metrics.count_feedback("accepted", len(entries))
    return RawResponse(202, protocol.encode(len(entries)), JSON, {"X-Request-Id": request_id(request.headers)})


def _captured_columns(served: ServedEndpoint) -> set[str]:
    """Return the columns that a captured row of the endpoint may have; empty if a model has no named columns."""
    names: set[str] = set()
    for variant in served.variants.values():
        if not variant.loaded.captured.schema.columns:
            return set()
        names.update(variant.captured.schema.names)
        names.update({*variant.captured.mask} & {*variant.loaded.captured.schema.names})
    return names | {_REQUEST_ID_COLUMN} if names else names
