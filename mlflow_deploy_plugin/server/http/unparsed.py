"""What is no request, or breaks the connection of one, answered by the threaded worker as the accelerated one does."""

import logging
import ssl

from mlflow_deploy_plugin.errors import InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.server.http.messages import error_response, refused
from mlflow_deploy_plugin.server.http.reply import reply

logger = logging.getLogger(__name__)


def answer_to(refusal: Exception) -> bytes:
    """The last answer on a connection; what is no refusal of a request is logged, and answered without its details."""
    if isinstance(refusal, ssl.SSLError):
        refusal = InvalidRequest(f"the request is not HTTP/1.1 as it is spoken here: {refusal}")
    if isinstance(refusal, OnnxserveError):
        return reply(refused("", refusal), False)
    logger.error("answering failed", exc_info=refusal)
    message = "the server failed to answer; its log says why"
    return reply(error_response("", 500, "INTERNAL_ERROR", message), False)
