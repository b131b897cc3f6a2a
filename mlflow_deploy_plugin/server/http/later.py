"""The way of a prediction for an event loop: decoded on it, computed in a batch, answered from the batch's thread."""

import time
from collections.abc import Callable, Mapping

from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.runtime import Array
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.capture.codec import FAILED
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse, refused, request_id
from mlflow_deploy_plugin.server.http.predictions import Protocol, ask, capture_failure, failed, name_version, tell
from mlflow_deploy_plugin.server.inference.dataplane import InferResponse
from mlflow_deploy_plugin.server.observability.metrics import count_response


def infer_later(
    server: Server,
    request: RawRequest,
    done: Callable[[RawResponse], None],
    protocol: Protocol,
    endpoint: str | None = None,
    version: str | None = None,
) -> bool:
    """As `predictions.infer`, without blocking.

    True: `done` is given the answer once, in this thread or another. False: nothing has happened, ask `infer`.
    """
    dataplane = server.dataplane
    if server.limits.may_block or not dataplane.answers_later(endpoint):
        return False
    try:
        variant = dataplane.lease(endpoint, version, request.headers)
    except OnnxserveError:
        return False  # `infer` says what is wrong
    if variant.loaded.batcher is None or variant.key is not None:
        return False  # swapped a moment ago; or the variant is known only once the request is read
    headers = {"X-Request-Id": request_id(request.headers)}
    name_version(headers, variant)

    def finish(result: RawResponse, outputs: Mapping[str, Array] | None = None) -> None:
        seconds = time.perf_counter() - request.arrived
        count_response(server.metrics, variant, protocol.name, str(result.status), seconds, outputs)
        if result.status >= FAILED:
            capture_failure(server, request, variant, result, seconds)
        done(result)

    try:
        server.limits.enter(request.headers, request.client)
    except OnnxserveError as error:
        finish(refused(request.path, error, headers))
        return True

    def answered(response: InferResponse | Exception) -> None:
        outputs = None
        try:
            if isinstance(response, Exception):
                result = failed(request, response, headers)
            else:
                result, outputs = tell(question, variant, response, headers), response.outputs
        except Exception as error:  # noqa: BLE001 - the boundary: logged with its traceback, answered without
            result = failed(request, error, headers)
        server.limits.leave()
        finish(result, outputs)

    try:
        question, asked = ask(request, protocol, variant, headers)
        dataplane.infer_later(variant, asked, answered)
    except Exception as error:  # noqa: BLE001 - as above; nothing was submitted
        answered(error)
    return True
