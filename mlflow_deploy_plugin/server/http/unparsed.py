"""What gunicorn's own parser refuses, answered as the accelerated worker answers it."""

import logging
import ssl

from gunicorn.http import errors

from mlflow_deploy_plugin.errors import (
    ExpectationFailed,
    HeadersTooLarge,
    InvalidRequest,
    OnnxserveError,
    TargetTooLong,
    UnknownTransferCoding,
)
from mlflow_deploy_plugin.server.http.messages import error_response, refused
from mlflow_deploy_plugin.server.http.reply import reply

logger = logging.getLogger(__name__)

_KINDS: tuple[tuple[type[Exception], type[OnnxserveError]], ...] = (
    (errors.LimitRequestLine, TargetTooLong),
    (errors.LimitRequestHeaders, HeadersTooLarge),
    (errors.UnsupportedTransferCoding, UnknownTransferCoding),
    (errors.ExpectationFailed, ExpectationFailed),
    (errors.ParseException, InvalidRequest),
    (ssl.SSLError, InvalidRequest),
)


def answer_to(refusal: Exception) -> bytes:
    """The last answer on a connection; what is no refusal of a request is logged, and answered without its details."""
    for kind, ours in _KINDS:
        if isinstance(refusal, kind):
            return reply(refused("", ours(f"the request is not HTTP/1.1 as it is spoken here: {refusal}")), False)
    logger.error("answering failed", exc_info=refusal)
    message = "the server failed to answer; its log says why"
    return reply(error_response("", 500, "INTERNAL_ERROR", message), False)
