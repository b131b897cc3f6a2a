"""MLflow's webhooks, which make agents poll the registry immediately. A repeated delivery only causes another poll."""

import base64
import hmac
import json
import logging
import threading
import time
from socket import socket

import uvicorn
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlflow_deploy_plugin.controller.leadership import log_errors
from mlflow_deploy_plugin.deployments import Deployments
from mlflow_deploy_plugin.errors import InvalidConfig

_ENTITIES = ("registered_model", "model_version", "model_version_tag", "model_version_alias")
_MAX_BYTES, _MAX_AGE_SECONDS, _MAX_OPEN = 1024**2, 300, 100
_UNSIGNED = f"the webhook is not signed with ONNXSERVE_WEBHOOK_SECRET, or was sent over {_MAX_AGE_SECONDS} s ago"


def start_webhook_receiver(deployments: Deployments, listener: socket) -> uvicorn.Server:
    """Receive webhooks at `listener` in a daemon thread. Raises InvalidConfig if no secret is set."""
    if not (secret := deployments.settings.webhook_secret):
        raise InvalidConfig("--webhook-port: set ONNXSERVE_WEBHOOK_SECRET to the secret of the webhook in MLflow")
    waiting: set[str] = set()

    def poll(model: str) -> None:
        waiting.discard(model)  # An event that arrives during the poll causes another poll.
        log_errors(lambda: deployments.poll_registry(model))

    async def receive(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_BYTES:
                return Response(f"the body has more than {_MAX_BYTES:,} bytes", 413)
        if not _is_signed(request, body, secret):
            logging.getLogger(__name__).warning(_UNSIGNED)
            return Response(_UNSIGNED, 401)
        try:
            event = json.loads(body)
            model = str(event["data"]["name"]) if event["entity"] in _ENTITIES else ""
        except (ValueError, LookupError, TypeError):
            return Response("the body is not an event of MLflow", 400)
        if not model or model in waiting:
            return Response()
        waiting.add(model)
        return Response(background=BackgroundTask(poll, model))

    route = Route("/{path:path}", receive, methods=["POST"])
    # A level below "critical" would log a traceback for each client that disconnects early.
    config = uvicorn.Config(route, loop="asyncio", log_config=None, log_level="critical", limit_concurrency=_MAX_OPEN)
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, args=([listener],), name="webhooks", daemon=True).start()
    return server


def _is_signed(request: Request, body: bytes, secret: str) -> bool:
    """Return True if MLflow signed the body with `secret` in the last five minutes (https://www.standardwebhooks.com)."""
    names = ("Delivery-Id", "Timestamp", "Signature")
    delivery, timestamp, signature = (request.headers.get(f"X-MLflow-{name}", "") for name in names)
    digest = hmac.digest(secret.encode(), f"{delivery}.{timestamp}.".encode() + body, "sha256")
    is_ours = hmac.compare_digest(signature.encode(), b"v1," + base64.b64encode(digest))
    return is_ours and abs(int(time.time()) - int(timestamp)) <= _MAX_AGE_SECONDS
