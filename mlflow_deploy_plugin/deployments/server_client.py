"""Asks a deployment's server for predictions and explanations."""

import warnings
from typing import Any

import orjson
import requests
from urllib3.exceptions import InsecureRequestWarning

from mlflow_deploy_plugin.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    NotReady,
    OnnxserveError,
    TooManyRequests,
    UnsupportedMediaType,
)


class ServerSession(requests.Session):
    """For questions to servers of this machine: no proxy stands in between, nor anybody else, and a certificate names
    the public host."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.verify = False

    def request(self, *arguments: Any, **named: Any) -> requests.Response:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureRequestWarning)
            return super().request(*arguments, **named)


_CONNECT_SECONDS = 5
_MARGIN_SECONDS = 5
_ERRORS_BY_STATUS = {
    refusal.http_status: refusal
    for refusal in (
        InvalidRequest,
        NotFound,
        BodyTooLarge,
        UnsupportedMediaType,
        NotReady,
        TooManyRequests,
        DeadlineExceeded,
    )
}


def post(session: requests.Session, url: str, body: bytes, content_type: str, timeout_seconds: float) -> dict[str, Any]:
    """The JSON object that is answered to a body. Raises as `ask`."""
    headers = {"Content-Type": content_type, "Accept": "application/json"}
    patience = timeout_seconds + _MARGIN_SECONDS  # so that the server says itself that it took too long
    try:
        answer = session.post(url, data=body, headers=headers, timeout=(_CONNECT_SECONDS, patience))
    except requests.Timeout:
        raise NotReady(f"the server did not answer {url} in {patience:g} s") from None
    except requests.RequestException:
        raise NotReady(f"there is no answer at {url}") from None
    document = _json_object(answer)
    if answer.ok:
        return document
    refusal = _ERRORS_BY_STATUS.get(answer.status_code, OnnxserveError)
    message = document.get("message", f"the server answered with status {answer.status_code}")
    raise refusal(str(message), _retry_after(answer.headers.get("Retry-After", "")))


def _retry_after(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _json_object(answer: requests.Response) -> dict[str, Any]:
    try:
        document = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise OnnxserveError(f"the server answered with status {answer.status_code} and no JSON object")
    return document
