"""Asks a deployment's server for predictions."""

from typing import Any

import orjson
import requests

from mlflow_deploy_plugin.deployments.payload import encode
from mlflow_deploy_plugin.errors import (
    BodyTooLarge,
    InvalidRequest,
    NotFound,
    NotReady,
    OnnxserveError,
    UnsupportedMediaType,
)

_CONNECT_SECONDS = 5
_REFUSALS = {
    refusal.http_status: refusal for refusal in (InvalidRequest, NotFound, BodyTooLarge, UnsupportedMediaType, NotReady)
}


def invoke(url: str, inputs: Any, timeout_seconds: float) -> dict[str, Any]:
    """The server's answer to /invocations: plain JSON values, the predictions under `predictions`.

    Raises:
        InvalidRequest: `inputs` are of no form that can be sent.
        OnnxserveError: the server's own refusal, in its words; NotReady where it does not answer.
    """
    body = encode(inputs)
    try:
        with requests.Session() as session:
            session.trust_env = False  # no proxy stands between this machine and itself
            answer = session.post(
                f"{url}/invocations",
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=(_CONNECT_SECONDS, timeout_seconds),
            )
    except requests.Timeout:
        raise NotReady(f"the server at {url} did not answer in {timeout_seconds:g} s") from None
    except requests.RequestException:
        raise NotReady(f"the server at {url} does not answer") from None
    document = _document(answer)
    if answer.ok:
        return document
    refusal = _REFUSALS.get(answer.status_code, OnnxserveError)
    raise refusal(str(document.get("message", f"the server answered with status {answer.status_code}")))


def _document(answer: requests.Response) -> dict[str, Any]:
    try:
        document = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict) or (answer.ok and "predictions" not in document):
        raise OnnxserveError(f"the server answered with status {answer.status_code} and no JSON object of predictions")
    return document
