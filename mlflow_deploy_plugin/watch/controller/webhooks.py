"""MLflow's webhooks, which make agents poll the registry immediately. A repeated
delivery only causes another poll.
"""

import asyncio
import base64
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from socket import socket
from typing import Any

import uvicorn
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.promote.rollouts.leadership import log_errors
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments

_ENTITIES = ("registered_model", "model_version", "model_version_tag", "model_version_alias")
_MAX_BYTES = 1024**2
_MAX_AGE_SECONDS = 300
_MAX_OPEN = 100
_REQUEST_SECONDS = 10.0
_LOG_SECONDS = 60.0
_ONCE = {"Connection": "close"}  # A connection that is kept open would need more time limits.
_UNSIGNED = (
    f"the webhook is not signed with ONNXSERVE_WEBHOOK_SECRET, or was sent over {_MAX_AGE_SECONDS} "
    "s ago"
)


class _Connection(H11Protocol):
    """A connection for a single request, which must be complete and answered within a
    time limit.

    If too many connections are open, the connection that has been silent for longest is
    closed for a new one. uvicorn has neither of these limits.
    """

    def __init__(self, request_seconds: float, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._request_seconds = request_seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.heard_at = self.loop.time()
        self._limit = self.loop.call_later(self._request_seconds, transport.abort)
        open_connections: list[Any] = [
            other for other in self.connections if not other.transport.is_closing()
        ]
        if len(open_connections) > _MAX_OPEN:
            min(open_connections, key=lambda other: other.heard_at).transport.abort()

    def data_received(self, data: bytes) -> None:
        self.heard_at = self.loop.time()
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._limit.cancel()
        super().connection_lost(exc)


@dataclass(eq=False)
class _Receiver:
    """Polls the registry for the model in each signed event.

    Attributes:
        clock: the clock of the log, which has at most one line about unsigned webhooks
            per minute.
        log_at: the earliest time of the next line.
        waiting: the models with an event whose poll has not begun.
    """

    deployments: Deployments
    secret: str = field(repr=False)
    clock: Callable[[], float]
    log_at: float
    waiting: set[str] = field(default_factory=set)

    async def receive(self, request: Request) -> Response:
        """Answer a webhook, and then poll the registry for its model, unless a poll for
        this model is waiting.

        The webhook is refused if it is too long, not signed or not an event. Other
        events than those of models have no effect.
        """
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_BYTES:
                return _refuse(f"the body has more than {_MAX_BYTES:,} bytes", 413)
        try:
            is_signed = _is_signed(request, body, self.secret)
        except ValueError:
            return _refuse("X-MLflow-Timestamp is not a whole number of seconds", 400)
        if not is_signed:
            self._log_unsigned()
            return _refuse(_UNSIGNED, 401)
        try:
            model = _model_of_event(body)
        except (ValueError, LookupError, TypeError, RecursionError):
            return _refuse("the body is not an event of MLflow", 400)
        if not model or model in self.waiting:
            return Response(headers=_ONCE)
        self.waiting.add(model)
        return Response(headers=_ONCE, background=BackgroundTask(self._poll, model))

    def _poll(self, model: str) -> None:
        self.waiting.discard(model)  # An event during the poll causes another poll.
        log_errors(lambda: self.deployments.poll_registry(model))

    def _log_unsigned(self) -> None:
        now = self.clock()
        if now >= self.log_at:
            self.log_at = now + _LOG_SECONDS
            logging.getLogger(__name__).warning("%s (logged at most once per minute)", _UNSIGNED)


def _model_of_event(body: bytes) -> str:
    """Return the name of the event's model; empty for an event of another entity.
    Raises ValueError, LookupError, TypeError or RecursionError if it is not an event.
    """
    event = json.loads(body)
    if event["entity"] not in _ENTITIES:
        return ""
    return str(event["data"]["name"])


def _refuse(reason: str, status: int) -> Response:
    return Response(reason, status, _ONCE)


def start_webhook_receiver(
    deployments: Deployments,
    listener: socket,
    request_seconds: float = _REQUEST_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> uvicorn.Server:
    """Receive webhooks at `listener` in a daemon thread. Raises InvalidConfig if no
    secret is set.

    Args:
        request_seconds: the time limit for the head and the body of a request.
        clock: the clock of the log, which has at most one line about unsigned webhooks
            per minute.
    """
    secret = deployments.settings.webhook_secret
    if not secret:
        raise InvalidConfig(
            "--webhook-port: set ONNXSERVE_WEBHOOK_SECRET to the secret of the webhook in MLflow",
        )
    receiver = _Receiver(deployments, secret, clock, clock())
    route = Route("/{path:path}", receiver.receive, methods=["POST"])
    # A level below "critical" would log a traceback for each client that disconnects
    # early.
    config = uvicorn.Config(
        route,
        loop="asyncio",
        http=partial(_Connection, request_seconds),  # type: ignore[arg-type]  # uvicorn only calls it.
        ws="none",  # A WebSocket would not be a _Connection, and would have none of its limits.
        log_config=None,
        log_level="critical",
        limit_concurrency=2 * _MAX_OPEN,  # This also counts polls.
    )
    server = uvicorn.Server(config)
    threading.Thread(
        target=server.run,
        args=([listener],),
        name="webhooks",
        daemon=True,
    ).start()
    return server


def _is_signed(request: Request, body: bytes, secret: str) -> bool:
    """Return True if MLflow signed the body with `secret` in the last five minutes
    (https://www.standardwebhooks.com).

    Raises ValueError if the body is signed, and its timestamp is not a number.
    """
    delivery = request.headers.get("X-MLflow-Delivery-Id", "")
    timestamp = request.headers.get("X-MLflow-Timestamp", "")
    signature = request.headers.get("X-MLflow-Signature", "")
    digest = hmac.digest(secret.encode(), f"{delivery}.{timestamp}.".encode() + body, "sha256")
    is_ours = hmac.compare_digest(signature.encode(), b"v1," + base64.b64encode(digest))
    return is_ours and abs(int(time.time()) - int(timestamp)) <= _MAX_AGE_SECONDS
