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
from base64 import b64decode
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import unquote

from flask import Flask
from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter, ValidationError
from werkzeug import Request, Response

from mlflow_deploy_plugin.core.errors import (
    BodyTooLarge,
    InvalidConfig,
    InvalidRequest,
    NotFound,
    OnnxserveError,
    ScopeMissing,
    StoreUnavailable,
    Unauthenticated,
)
from mlflow_deploy_plugin.core.spec.document import field_problem
from mlflow_deploy_plugin.core.spec.parts import PUSH
from mlflow_deploy_plugin.core.store.inbox import Part, PushedEvent, add_events
from mlflow_deploy_plugin.core.store.keys import ApiKeys
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.serve.protocols.content import check_depth, load_json, media_name
from mlflow_deploy_plugin.ui.access import refusal, static_prefix
from mlflow_deploy_plugin.ui.audit_trail import AuditTrail

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY_BYTES = 4 * 1024**2
_MOST_EVENTS = 1000
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_AHEAD = timedelta(hours=1)

_BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
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
    time: Annotated[AwareDatetime, Field(ge=_EARLIEST)] | None = None
    datacontenttype: str = Field(default="application/json", pattern="^[ -~]{0,200}$")
    data: Any = None
    data_base64: str = Field(default="", pattern=_BASE64)


_EVENTS = TypeAdapter(Annotated[list[_Event], Field(max_length=_MOST_EVENTS)])


def install(app: Flask, served: "Flask | FastAPI", trail: AuditTrail) -> None:
    """Put the route in front of the app of the WSGI or ASGI server, `served`, which
    contains MLflow's app.
    """
    base = f"{static_prefix()}/observed/"

    def answer(request: Request) -> Response:
        try:
            _store_events(trail.store(), request.path.removeprefix(base), request)
            return Response(status=202)
        except InvalidConfig as failure:  # The fault is not the caller's, who must try again.
            error: OnnxserveError = StoreUnavailable(failure.message)
        except OnnxserveError as failure:
            error = failure
        with app.app_context():
            refused = refusal(error.error_code, error.message, error.http_status)
        refused.headers["WWW-Authenticate"] = "Bearer"
        if error.retry_after is not None:
            refused.headers["Retry-After"] = str(error.retry_after)
        return refused

    others = app.wsgi_app

    @Request.application
    def route(request: Request) -> Any:
        is_push = request.method == "POST" and request.path.startswith(base)
        return answer(request) if is_push else others

    app.wsgi_app = route  # type: ignore[assignment,method-assign]
    if isinstance(served, Flask):
        return
    from starlette.middleware.wsgi import WSGIMiddleware  # A WSGI server does not need it.

    def enclose(inner: "ASGIApp") -> "ASGIApp":
        pushes = WSGIMiddleware(route)

        async def enclosing(scope: "Scope", receive: "Receive", send: "Send") -> None:
            if scope.get("method") != "POST" or not scope["path"].startswith(base):
                await inner(scope, receive, send)
                return
            length = int(dict(scope["headers"]).get(b"content-length", MOST_BODY_BYTES + 1))
            if length > MOST_BODY_BYTES:
                receive = _receive_nothing  # Otherwise, the middleware reads all of the body.
            await pushes(scope, receive, send)

        return enclosing

    served.add_middleware(enclose)


async def _receive_nothing() -> "Message":
    return {"type": "http.request"}


def _store_events(store: Store, name: str, request: Request) -> None:
    """Store the events of a request for an endpoint, if its key permits this."""
    sent = request.authorization
    text = (sent and (sent.token or sent.password)) or ""
    keys = ApiKeys(store).valid(digest=hashlib.sha256(text.encode()).hexdigest())
    if not keys:
        raise Unauthenticated(
            "the key is missing, unknown, expired or revoked; send Authorization: Bearer KEY; "
            "`onnxserve keys create NAME --scope observe` creates a key"
        )
    (key,) = keys
    if "observe" not in key.scopes or (key.endpoints and name not in key.endpoints):
        places = ", ".join(key.endpoints) or "all endpoints"
        raise ScopeMissing(
            f"the key {key.name!r} is for {', '.join(key.scopes)} at {places}; this needs observe "
            f"at {name[:100]!r}"
        )
    endpoint = store.endpoint(name)
    spec = endpoint.spec.observe if endpoint is not None else None
    if spec is None or spec.source != PUSH:
        raise NotFound(f"there is no endpoint {name[:100]!r} that is observed by pushed events")
    if request.content_length is None:
        raise InvalidRequest("the request has no Content-Length")
    if request.content_length > MOST_BODY_BYTES:
        raise BodyTooLarge(
            f"the body is larger than this server's limit of {MOST_BODY_BYTES} bytes"
        )
    headers = {name.lower(): value for name, value in request.headers.items()}
    add_events(store, name, read_events(headers, request.get_data(), store.now()))


def read_events(headers: Mapping[str, str], body: bytes, now: datetime) -> list[PushedEvent]:
    """Return the events of a request in binary, structured or batched mode, whose
    headers have names in lower case. Raises InvalidRequest, with the number of the
    event.
    """
    content_type = headers.get("content-type", "")
    kind = media_name(content_type)
    if kind == "application/cloudevents-batch+json":
        documents = load_json(body)
    elif kind == "application/cloudevents+json":
        documents = [load_json(body)]
    else:
        attributes = {
            name.removeprefix("ce-"): unquote(value)
            for name, value in headers.items()
            if name.startswith("ce-")
        }
        documents = [{**attributes, "datacontenttype": content_type, "data": body}]
    check_depth(documents)
    try:
        events = _EVENTS.validate_python(documents)
    except ValidationError as error:
        problem = field_problem(error, _Event.model_fields)
        raise InvalidRequest(f"the events: {problem[:500]}") from None
    pushed = []
    for number, event in enumerate(events):
        time = event.time or now
        if time > now + _MOST_AHEAD:
            raise InvalidRequest(f"the events: {number}.time: {time} is over an hour in the future")
        content = event.data
        if not isinstance(content, bytes):
            content = b64decode(event.data_base64) or json.dumps(content).encode()
        parts: tuple[Part, ...] = ("request",)
        if event.type.endswith(".response"):
            parts = ("response",)
            with suppress(InvalidRequest):  # The pass reports a body that is not JSON.
                document = load_json(content)
                # The sinks of onnxserve send a request and its response as one event.
                if isinstance(document, dict) and document.keys() >= {"inputs", "outputs"}:
                    parts = ("request", "response")
        identity = event.requestid or event.id
        for part in parts:
            pushed.append(PushedEvent(identity, part, time, event.datacontenttype, content))
    return pushed
