"""The route `POST /observed/NAME` of MLflow's server, to which other servers push the
requests and responses of an observed endpoint as CloudEvents 1.0.

Callers are machines with a key of the scope `observe`. The route is in front of all
other apps, so that no login, session or form token is needed. It answers 202 when all
events of a request are stored; otherwise none of them is stored.

- https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
- https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
- https://github.com/kserve/kserve/tree/master/pkg/logger: the types, and the common id
- https://github.com/SeldonIO/seldon-core/tree/master/executor/logger: the `requestid`
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import unquote

from flask import Flask
from pydantic import AwareDatetime, Base64Bytes, BaseModel, Field, TypeAdapter, ValidationError

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
from mlflow_deploy_plugin.serve.messages import error_reply
from mlflow_deploy_plugin.serve.protocols.content import check_depth, load_json, media_name
from mlflow_deploy_plugin.ui.access import static_prefix
from mlflow_deploy_plugin.ui.audit_trail import AuditTrail

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send

_log = logging.getLogger(__name__)

MOST_BODY_BYTES = 4 * 1024**2
_MOST_EVENTS = 1000
_LATEST = datetime(9999, 1, 1, tzinfo=UTC)
_Id = Annotated[str, Field(pattern="^[!-~]{1,200}$")]


class _Event(BaseModel):
    """An event; other attributes are ignored. In binary mode, `data` are the bytes of
    the body. Seldon's request and response have the same `requestid`, but not the same
    `id`.
    """

    specversion: Literal["1.0"]
    id: _Id
    type: str = Field(
        pattern=r"^(org\.kubeflow|io\.seldon)\.serving\.inference\.(request|response)$"
    )
    requestid: _Id | None = None
    time: Annotated[AwareDatetime, Field(ge=EPOCH, le=_LATEST)] | None = None
    data: Any = None
    data_base64: Base64Bytes = b""


_EVENTS = TypeAdapter(Annotated[list[_Event], Field(max_length=_MOST_EVENTS)])


def install(served: "Flask | FastAPI", trail: AuditTrail) -> None:
    """Put the route in front of the app of an ASGI server. A WSGI server has no such
    place that all logins share.
    """
    if isinstance(served, Flask):
        return
    # A WSGI server does not need Starlette.
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    base = f"{static_prefix()}/observed/"

    def enclose(inner: "ASGIApp") -> "ASGIApp":
        async def enclosing(scope: "Scope", receive: "Receive", send: "Send") -> None:
            if scope.get("method") != "POST" or not scope["path"].startswith(base):
                await inner(scope, receive, send)
                return
            request = Request(scope, receive)
            headers = request.headers
            response = Response(status_code=202)
            name = scope["path"].removeprefix(base)
            try:
                # The body of a caller without a key is not read. Its Content-Length may
                # be wrong: h11 ignores it for a chunked body.
                store = await run_in_threadpool(_open_inbox, trail, name, headers)
                body = bytearray()
                async for piece in request.stream():
                    body += piece
                    if len(body) > MOST_BODY_BYTES:
                        raise BodyTooLarge(f"a body has at most {MOST_BODY_BYTES} bytes")
                await run_in_threadpool(_store_events, store, name, headers, bytes(body))
            except OnnxserveError as failure:
                error = failure
                # The reason has addresses, and is not the fault of the caller, who must
                # try again.
                if isinstance(error, InvalidConfig | StoreUnavailable):
                    _log.error("pushed events cannot be stored: %s", error.message)
                    error = StoreUnavailable("events cannot be stored now: see MLflow's log")
                document = {"error_code": error.error_code, "message": error.message}
                response = JSONResponse(document, error.http_status, error_reply(error).headers)
            await response(scope, receive, send)

        return enclosing

    served.add_middleware(enclose)


def _open_inbox(trail: AuditTrail, name: str, headers: Mapping[str, str]) -> Store:
    """Return the store of an endpoint to which the key of a request may push events.
    `headers` have names in lower case.
    """
    store = trail.store()
    digest = hashlib.sha256(sent_key(headers)).hexdigest()
    key = ApiKeys(store).valid_entries().keys.get(digest)
    if key is None:
        raise Unauthenticated(UNKNOWN_KEY)
    require_scope(key, "observe", name)
    observe = store.require_endpoint(name).spec.observe
    if observe is None or observe.source != PUSH:
        raise NotFound(f"endpoint {name!r} is not observed by pushed events")
    return store


def _store_events(store: Store, name: str, headers: Mapping[str, str], body: bytes) -> None:
    add_events(store, name, _read_events(headers, body, store.now()))


def _read_events(headers: Mapping[str, str], body: bytes, now: datetime) -> list[PushedEvent]:
    """Return the events of a request in binary, structured or batched mode. Raises
    InvalidRequest, with the number of the event.
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
        raise InvalidRequest(f"the events: {problem[:500]}") from None
    pushed = []
    for event in events:
        content = event.data
        if not isinstance(content, bytes):
            content = event.data_base64 or json.dumps(content).encode()
        part = event.type.rpartition(".")[2]
        pushed.append(PushedEvent(event.requestid or event.id, part, event.time or now, content))
    return pushed
