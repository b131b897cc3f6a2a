"""The route `POST /observed/NAME` of MLflow's server, to which other servers push the
requests and responses of an observed endpoint as CloudEvents 1.0.

Callers are machines with a key of the scope `observe`. The route is in front of all
other apps, so that no login, session or form token is needed. It answers 202 when all
events of a request are stored; otherwise none of them is stored.

A request without a valid key takes one look-up of the key, before its body is read.

- https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
- https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
- https://github.com/kserve/kserve/tree/master/pkg/logger: the types, and the common id
- https://github.com/SeldonIO/seldon-core/tree/master/executor/logger: the `requestid`
"""

import asyncio
import hashlib
import json
import logging
from base64 import b64decode
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import unquote

from flask import Flask
from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, TypeAdapter, ValidationError

from mlflow_deploy_plugin.core.errors import (
    BodyTooLarge,
    InvalidConfig,
    InvalidRequest,
    NotFound,
    OnnxserveError,
    StoreUnavailable,
    Unauthenticated,
)
from mlflow_deploy_plugin.core.spec.document import field_problem
from mlflow_deploy_plugin.core.spec.parts import PUSH
from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.core.store.inbox import PushedEvent, add_events
from mlflow_deploy_plugin.core.store.keys import ApiKeys
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.serve.inference.auth import UNKNOWN_KEY, require_scope, sent_key
from mlflow_deploy_plugin.serve.protocols.content import check_depth, load_json, media_name
from mlflow_deploy_plugin.ui.access import static_prefix
from mlflow_deploy_plugin.ui.audit_trail import AuditTrail
from mlflow_deploy_plugin.ui.logins.front import error_response

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send

_log = logging.getLogger(__name__)

ROUTE = "/observed/"
MOST_BODY_BYTES = 4 * 1024**2
_MOST_EVENTS = 1000
_LATEST = datetime(9999, 1, 1, tzinfo=UTC)
_THREADS = 8
_Id = Annotated[str, Field(pattern="^[!-~]{1,200}$")]


def _encode(value: object) -> bytes:
    """Return the body in binary mode, or the JSON of a value that `load_json` has read.
    Raises ValueError for NaN and Infinity, which `load_json` accepts.
    """
    return value if isinstance(value, bytes) else json.dumps(value, allow_nan=False).encode()


_Json = Annotated[Any, AfterValidator(_encode)]
_Base64 = Annotated[bytes, AfterValidator(partial(b64decode, validate=True))]


class _Event(BaseModel, extra="allow"):
    """An event; other attributes are not stored. In binary mode, `data` are the bytes
    of the body. Seldon's request and response have the same `requestid`, but not the
    same `id`.
    """

    specversion: Literal["1.0"]
    id: _Id
    type: str = Field(
        pattern=r"^(org\.kubeflow|io\.seldon)\.serving\.inference\.(request|response)$"
    )
    requestid: _Id | None = None
    time: Annotated[AwareDatetime, Field(ge=EPOCH, le=_LATEST)] | None = None
    data: _Json = b"null"
    data_base64: _Base64 = b""
    __pydantic_extra__: dict[str, _Json]


_EVENTS = TypeAdapter(Annotated[list[_Event], Field(max_length=_MOST_EVENTS)])


def install(served: "Flask | FastAPI", trail: AuditTrail) -> None:
    """Put the route in front of the app of an ASGI server. A WSGI server has no such
    place that all logins share.
    """
    if isinstance(served, Flask):
        return
    # A WSGI server does not need Starlette.
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response

    base = f"{static_prefix()}{ROUTE}"
    # Requests without a key must not occupy the threads of MLflow's app.
    threads = ThreadPoolExecutor(_THREADS, "onnxserve-observed")

    def enclose(inner: "ASGIApp") -> "ASGIApp":
        async def enclosing(scope: "Scope", receive: "Receive", send: "Send") -> None:
            if scope.get("method") != "POST" or not scope["path"].startswith(base):
                await inner(scope, receive, send)
                return
            request = Request(scope, receive)
            headers = request.headers
            response = Response(status_code=202)
            name = scope["path"].removeprefix(base)
            run = partial(asyncio.get_running_loop().run_in_executor, threads)
            try:
                store = await run(_open_inbox, trail, name, headers)
                # The body of a caller without a key is not read. Its Content-Length may
                # be wrong: h11 ignores it for a chunked body.
                body = bytearray()
                async for piece in request.stream():
                    body += piece
                    if len(body) > MOST_BODY_BYTES:
                        raise BodyTooLarge(f"a body has at most {MOST_BODY_BYTES} bytes")
                await run(_store_events, store, name, headers, bytes(body))
            except ClientDisconnect:
                return
            except OnnxserveError as error:
                # The reason has addresses, and is not the fault of the caller, who must
                # try again.
                if isinstance(error, InvalidConfig | StoreUnavailable):
                    _log.error("pushed events cannot be stored: %s", error.message)
                    error = StoreUnavailable("events cannot be stored now: see MLflow's log")
                response = error_response(error)
            await response(scope, receive, send)

        return enclosing

    served.add_middleware(enclose)


def _open_inbox(trail: AuditTrail, name: str, headers: Mapping[str, str]) -> Store:
    """Return the store of an endpoint to which the key of a request may push events."""
    digest = hashlib.sha256(sent_key(headers)).hexdigest()
    store = trail.store()
    keys = ApiKeys(store).valid(digest=digest)
    if not keys:
        raise Unauthenticated(UNKNOWN_KEY)
    require_scope(keys[0].entry, "observe", name)
    observe = store.require_endpoint(name).spec.observe
    if observe is None or observe.source != PUSH:
        raise NotFound(f"endpoint {name!r} is not observed by pushed events")
    return store


def _store_events(store: Store, name: str, headers: Mapping[str, str], body: bytes) -> None:
    """Store the events of a request in binary, structured or batched mode. Raises
    InvalidRequest, with the number of the event, and the errors of `add_events`.
    """
    if media_name(headers.get("content-type")).startswith("application/cloudevents"):
        document = load_json(body)
    else:
        document = {
            name.removeprefix("ce-"): unquote(value)
            for name, value in headers.items()
            if name.startswith("ce-")
        }
        document["data"] = body
    documents = document if isinstance(document, list) else [document]
    check_depth(documents)
    try:
        events = _EVENTS.validate_python(documents)
    except ValidationError as error:
        problem = field_problem(error, _Event.model_fields)
        raise InvalidRequest(
            f"the events: {problem[:500]}; correct this event, and repeat the request"
        ) from None
    pushed = []
    for event in events:
        identity = event.requestid or event.id
        part = event.type.rpartition(".")[2]
        content = event.data_base64 or event.data
        pushed.append(PushedEvent(identity, part, event.time or store.now(), content))
    add_events(store, name, pushed)
