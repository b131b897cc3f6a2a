"""HTTP requests to servers on this machine: one session class, and the conversion of
server errors.
"""

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import orjson
import requests
from urllib3.exceptions import InsecureRequestWarning

from mlflow_deploy_plugin.core.errors import (
    InvalidRequest,
    NotReady,
    OnnxserveError,
    TooManyRequests,
    Unauthenticated,
)
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.statedir.files import LOCAL_KEY, SERVER, read_state
from mlflow_deploy_plugin.core.statedir.models import ServerState
from mlflow_deploy_plugin.serve.client.client import response_error

_CONNECT_SECONDS = 5
_MARGIN_SECONDS = 5
"""The time by which the client's timeout exceeds the server's timeout, so that the
server reports a timeout first.
"""
_MAX_PAUSE_SECONDS = 10


class ServerSession(requests.Session):
    """A session for servers on this machine.

    Proxies are not used. Certificates are not verified, because they name the public
    host. If the server requires a key, the session reads a key from the server's state
    folder below `deployments`, which is private to its user.
    """

    def __init__(self, deployments: Path | None = None) -> None:
        super().__init__()
        self._deployments = deployments or load_settings().deployments_path
        self.trust_env = False
        self.verify = False

    def request(self, *arguments: Any, **named: Any) -> requests.Response:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureRequestWarning)
            response = super().request(*arguments, **named)
            if response.status_code != Unauthenticated.http_status:
                return response
            port = urlsplit(response.url).port
            for file in self._deployments.glob(f"*/{SERVER}"):
                state = read_state(file, ServerState)
                if state is not None and state.port == port:
                    with suppress(OSError):
                        key = file.with_name(LOCAL_KEY).read_text()
                        self.headers["Authorization"] = f"Bearer {key}"
                        return super().request(*arguments, **named)
            return response


def post(
    session: requests.Session,
    url: str,
    body: bytes,
    content_type: str,
    timeout_seconds: float,
    tries: int = 1,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> tuple[dict[str, Any], str]:
    """Return the server's JSON object and its prediction id, or "".

    With several `tries`, the request is repeated while the server is overloaded or
    being changed. Raises NotReady if the server does not answer. An error status raises
    the OnnxserveError of the status.
    """
    for attempt in range(tries):
        try:
            response = _post(session, url, body, content_type, timeout_seconds, headers=headers)
            break
        except (TooManyRequests, NotReady) as error:
            if attempt == tries - 1:
                raise
            time.sleep(min(error.retry_after or 2**attempt / 10, _MAX_PAUSE_SECONDS))
    try:
        document = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise OnnxserveError(
            f"the server answered with status {response.status_code} and without a JSON object"
        )
    return document, response.headers.get("X-Prediction-Id", "")


def post_for_events(
    session: requests.Session, url: str, body: bytes, timeout_seconds: float
) -> Iterator[object]:
    """Post a JSON body, and yield the parsed JSON of each server-sent event.

    Raises NotReady if the answer is missing or incomplete, InvalidRequest if the answer
    is not a stream of events, and OnnxserveError if the server refuses or an event
    contains an error.
    """
    with _post(session, url, body, "application/json", timeout_seconds, stream=True) as response:
        if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
            raise InvalidRequest(
                "the model has no predict_stream, so it cannot stream: call predict"
            )
        try:
            for line in response.iter_lines(chunk_size=None):
                data = line.removeprefix(b"data: ")
                if data == line or data == b"[DONE]":
                    continue
                event = orjson.loads(data)
                if (
                    isinstance(event, dict)
                    and isinstance(error := event.get("error"), dict)
                    and "message" in error
                ):
                    raise OnnxserveError(error["message"])
                yield event
        except requests.RequestException:
            raise NotReady(f"the answer of {url} is incomplete") from None


def _post(
    session: requests.Session,
    url: str,
    body: bytes,
    content_type: str,
    timeout_seconds: float,
    stream: bool = False,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> requests.Response:
    """Send a body to a server and return its answer. With `stream`, the caller reads
    the answer piece by piece.

    Raises NotReady if the server does not answer, and the server's error if it refuses
    the request.
    """
    accept = "*/*" if stream else "application/json"
    sent = {**headers, "Content-Type": content_type, "Accept": accept}
    read_seconds = timeout_seconds + _MARGIN_SECONDS
    try:
        response = session.post(
            url, data=body, headers=sent, timeout=(_CONNECT_SECONDS, read_seconds), stream=stream
        )
    except requests.Timeout:
        raise NotReady(f"the server did not answer {url} in {read_seconds:g} s") from None
    except requests.RequestException:
        raise NotReady(f"the server at {url} does not answer") from None
    if not response.ok:
        raise response_error(response.status_code, response.content, response.headers)
    return response
