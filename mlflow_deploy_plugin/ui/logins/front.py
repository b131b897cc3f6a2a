"""The layer in front of an ASGI app of MLflow, the same for every login.

The head of a request decides: the login is asked before the body is read, in threads of
its own. An address that has sent wrong logins, or wrong keys of machines, is refused
for a minute, except with credentials that were accepted last. A body has limits of size
and time.
"""

import asyncio
import math
from collections import Counter
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

from cachetools import LRUCache, TTLCache
from flask import Flask
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as WerkzeugResponse

from mlflow_deploy_plugin.core.errors import (
    BodyTooLarge,
    OnnxserveError,
    RequestTimeout,
    TooManyRequests,
)
from mlflow_deploy_plugin.serve.messages import error_reply
from mlflow_deploy_plugin.ui.access import static_prefix
from mlflow_deploy_plugin.ui.logins.login import Login

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CREDENTIALS = (b"authorization", b"x-mlflow-authorization", b"x-forwarded-access-token")
_REMEMBERED = 10_000
_MOST_FAILURES = 10
_FAILURE_SECONDS = 60
_LOGIN_THREADS = 16
OPEN_BYTES = 64 * 1024
_OPEN_SECONDS = 10.0
"""The limits of a body that is read without a login."""
_CALLER_BYTES = 64 * 1024**2
_CALLER_SECONDS = 60.0
"""The limits of a caller's body, and of each pause in it. Artifacts have any size."""
_ARTIFACTS = ("/api/2.0/mlflow-artifacts/artifacts/", "/ajax-api/2.0/mlflow-artifacts/artifacts/")
_GATEWAY = "/gateway/"
_TOO_LARGE = "the body is larger than the limit of this path"


def install(served: "Flask | FastAPI", app: Flask, adapter: Login, machines: str) -> None:
    """Put the layer in front of an ASGI app, which contains `app`. Requests below the
    path `machines` have keys instead of a login.
    """
    if not isinstance(served, Flask):
        served.add_middleware(partial(_Front, app, adapter, machines))


@dataclass
class _Front:
    app: Flask
    adapter: Login
    machines: str
    inner: "ASGIApp"

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(_LOGIN_THREADS, "onnxserve-login")
        self._logins = _Logins()
        self._keys = _Logins()

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        # WSGI cannot tell X_Name from X-Name, which only a proxy may set.
        scope["headers"] = [pair for pair in scope["headers"] if b"_" not in pair[0]]
        path = scope["path"].removeprefix(static_prefix())
        # Browsers ask without a login if a page of another site may send a request.
        is_open = scope["method"] == "OPTIONS" or self.adapter.is_open(scope["path"])
        is_machine = scope["path"].startswith(self.machines)
        body = _Body(receive, is_open, scope["method"] == "PUT" and path.startswith(_ARTIFACTS))
        length = int(dict(scope["headers"]).get(b"content-length", 0))
        logins = self._keys if is_machine else self._logins
        sender = ("", b"")  # not counted
        if self.adapter.counts_failures and not is_open:
            sender = _sender(scope)
        status = 0

        async def answer(message: "Message") -> None:
            nonlocal status
            if body.error is None:
                status = message.get("status", status)
                await send(message)

        app = self.inner
        try:
            logins.check(*sender)
            if length > body.bytes_left:
                raise BodyTooLarge(_TOO_LARGE)
            if not is_open and not is_machine:
                loop = asyncio.get_running_loop()
                app = await loop.run_in_executor(self._threads, self._ask, scope)
            await app(scope, body.receive, answer)
        except Exception as error:
            if isinstance(error, OnnxserveError):
                body.error = error
            if body.error is None:
                raise
        if body.error is not None and not status:
            await error_response(body.error)(scope, receive, send)
        elif not path.startswith(_GATEWAY):  # A provider may answer 401.
            logins.count(*sender, status)

    def _ask(self, scope: "Scope") -> "ASGIApp":
        """Return the app, or the login's refusal of a request by its head."""
        # A WSGI server does not need Starlette.
        from starlette.middleware.wsgi import build_environ
        from starlette.responses import Response

        with self.app.request_context({**build_environ(scope, b""), "asgi.scope": scope}):
            try:
                refused: WerkzeugResponse | None = self.adapter.refusal()
            except HTTPException as error:
                refused = error.get_response()
            if refused is None:
                return self.inner
            return Response(refused.get_data(), refused.status_code, dict(refused.headers))


class _Logins:
    """The wrong logins of each address, and the credentials that were accepted last."""

    def __init__(self) -> None:
        # A counter grows in place, so that the minute begins with the first failure.
        self._failures: MutableMapping[str, Counter[bytes]] = TTLCache(
            _REMEMBERED, _FAILURE_SECONDS
        )
        self._accepted: MutableMapping[bytes, bool] = LRUCache(_REMEMBERED)

    def check(self, address: str, digest: bytes) -> None:
        """Raise TooManyRequests if the address has sent too many wrong logins, or this
        one too often: a client that repeats an old one does not refuse the others.
        """
        failures = self._failures.get(address, Counter())
        most = max(len(failures), failures[digest])
        if digest and most >= _MOST_FAILURES and digest not in self._accepted:
            reason = f"{address} has sent {most} wrong logins: wait for a minute"
            raise TooManyRequests(reason, _FAILURE_SECONDS)

    def count(self, address: str, digest: bytes, status: int) -> None:
        if digest and status == 401:
            self._accepted.pop(digest, None)
            self._failures.setdefault(address, Counter())[digest] += 1
        elif digest and 200 <= status < 300:
            self._accepted[digest] = True


def _sender(scope: "Scope") -> tuple[str, bytes]:
    """Return the address of a client, and the digest of its credentials, if it has
    any.
    """
    address, _ = scope["client"] or ("", 0)
    sent = [pair for pair in scope["headers"] if pair[0] in _CREDENTIALS]
    if not sent:
        return address, b""
    return address, sha256(repr(sent).encode()).digest()


class _Body:
    """The body of a request.

    Attributes:
        error: the limit that the body has exceeded. The response of the app is then not
            sent, because apps hide the error.
    """

    def __init__(self, receive: "Receive", is_open: bool, is_artifact: bool) -> None:
        self._receive = receive
        self._is_open = is_open
        self.bytes_left: float = _CALLER_BYTES
        self._seconds = _CALLER_SECONDS
        if is_artifact:
            self.bytes_left = math.inf
        if is_open:
            self.bytes_left = OPEN_BYTES
            self._seconds = _OPEN_SECONDS
        self._ends_at: float | None = asyncio.get_running_loop().time() + self._seconds
        self.error: OnnxserveError | None = None

    async def receive(self) -> "Message":
        """Return the next piece. Raises BodyTooLarge and RequestTimeout."""
        try:
            async with asyncio.timeout_at(self._ends_at):
                message = await self._receive()
        except TimeoutError:
            self.error = RequestTimeout("the body did not arrive in time: send it again")
            raise self.error from None
        if not message.get("more_body", False):
            self._ends_at = None
        elif not self._is_open:
            self._ends_at = asyncio.get_running_loop().time() + self._seconds
        self.bytes_left -= len(message.get("body", b""))
        if self.bytes_left < 0:
            self.error = BodyTooLarge(_TOO_LARGE)
            raise self.error
        return message


def error_response(error: OnnxserveError) -> "Response":
    """Return the response of an ASGI app to an error."""
    from starlette.responses import JSONResponse  # A WSGI server does not need Starlette.

    document = {"error_code": error.error_code, "message": error.message}
    return JSONResponse(document, error.http_status, error_reply(error).headers)
