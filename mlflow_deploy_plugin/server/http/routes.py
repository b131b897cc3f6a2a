"""The HTTP surface as a function: `answer(server, request)`. Every HTTP front calls it, and adds only bytes."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.nearest import close_matches
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.clouds import Cloud
from mlflow_deploy_plugin.server.http import tfserving, v2_extensions, views
from mlflow_deploy_plugin.server.http.access_log import observe_request
from mlflow_deploy_plugin.server.http.clouds import AZURE, vertex_predict
from mlflow_deploy_plugin.server.http.content_encoding import decode_body, encode_body
from mlflow_deploy_plugin.server.http.explain import explain
from mlflow_deploy_plugin.server.http.feedback import feedback
from mlflow_deploy_plugin.server.http.messages import (
    RawRequest,
    RawResponse,
    error_response,
    exception_response,
)
from mlflow_deploy_plugin.server.http.negotiation import invocations, negotiate_protocol
from mlflow_deploy_plugin.server.http.pipeline import infer, infer_async
from mlflow_deploy_plugin.server.http.spoken import PREDICT, PREDICT_BATCH, V2
from mlflow_deploy_plugin.server.http.v2_extensions import refuse_cross_site

logger = logging.getLogger(__name__)

_MOST_NEAR = 3

View = Callable[..., RawResponse]
"""Answers `(server, request)`, and what its path names by keyword."""


def list_routes() -> list[tuple[str, str]]:
    """Every route: its path as it is shown, and its method."""
    plain = [(path, method) for path, methods in _ROUTES.items() for method in methods]
    return plain + [(pattern.shown, pattern.method) for pattern in _PATTERNS]


def _openapi(server: Server, request: RawRequest, endpoint: str | None = None) -> RawResponse:
    return views.openapi(server, list_routes(), endpoint)


def _docs(server: Server, request: RawRequest, endpoint: str | None = None) -> RawResponse:
    return views.docs_page(server, request, list_routes(), endpoint)


_ROUTES: dict[str, dict[str, View]] = {
    "/": {"GET": views.try_page},
    "/docs": {"GET": _docs},
    "/openapi.json": {"GET": _openapi},
    **{
        f"/pages/{name}": {"GET": partial(views.page_asset, name=name)}
        for name in ("page.css", "try.js", "answer.js", "pictures.js", "docs.js", "icon.svg")
    },
    "/invocations": {"POST": invocations},
    "/predict": {"POST": partial(infer, protocol=PREDICT)},
    "/predict/batch": {"POST": partial(infer, protocol=PREDICT_BATCH)},
    "/score": {"POST": partial(infer, protocol=AZURE)},
    "/explain": {"POST": explain},
    "/feedback": {"POST": feedback},
    "/ping": {"GET": partial(views.readiness, body=b"\n")},  # MLflow's: an empty line
    "/health": {"GET": partial(views.readiness, body=b'{"status":"ok"}')},
    "/version": {"GET": views.version},
    "/metrics": {"GET": views.metrics_page},
    "/v2": {"GET": views.v2_server},
    "/v2/models/stats": {"GET": v2_extensions.stats},
    "/v2/repository/index": {"POST": v2_extensions.index},
    "/v2/health/live": {"GET": views.v2_live},
    "/v2/health/ready": {"GET": partial(views.readiness, body=b'{"ready":true}')},
}


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A route whose path names things: its groups are the view's keywords."""

    shown: str
    path: re.Pattern[str]
    method: str
    view: View


_V2_MODEL = r"/v2/models/(?P<endpoint>[^/]+)(?:/versions/(?P<version>[^/]+))?"
_TF_MODEL = r"/v1/models/(?P<endpoint>[^/:]+)(?:/versions/(?P<version>[^/:]+)|/labels/(?P<label>[^/:]+))?"
_TF_SHOWN = "/v1/models/NAME[/versions/V|/labels/L]"
_V2_STORED = r"/v2/repository/models/(?P<endpoint>[^/]+)"
_PATTERNS = (
    _Pattern(
        "/endpoints/NAME/invocations",
        re.compile(r"/endpoints/(?P<endpoint>[^/]+)/invocations"),
        "POST",
        invocations,
    ),
    _Pattern(
        "/endpoints/NAME/predict/batch",
        re.compile(r"/endpoints/(?P<endpoint>[^/]+)/predict/batch"),
        "POST",
        partial(infer, protocol=PREDICT_BATCH),
    ),
    _Pattern("/endpoints/NAME/explain", re.compile(r"/endpoints/(?P<endpoint>[^/]+)/explain"), "POST", explain),
    _Pattern("/endpoints/NAME/feedback", re.compile(r"/endpoints/(?P<endpoint>[^/]+)/feedback"), "POST", feedback),
    _Pattern("/endpoints/NAME/docs", re.compile(r"/endpoints/(?P<endpoint>[^/]+)/docs"), "GET", _docs),
    _Pattern(
        "/endpoints/NAME/openapi.json", re.compile(r"/endpoints/(?P<endpoint>[^/]+)/openapi\.json"), "GET", _openapi
    ),
    _Pattern("/endpoints/NAME", re.compile(r"/endpoints/(?P<endpoint>[^/]+)"), "GET", views.try_page),
    _Pattern(
        "/v2/models/NAME[/versions/V]/infer", re.compile(_V2_MODEL + "/infer"), "POST", partial(infer, protocol=V2)
    ),
    _Pattern("/v2/models/NAME[/versions/V]/ready", re.compile(_V2_MODEL + "/ready"), "GET", views.v2_model_ready),
    _Pattern("/v2/models/NAME[/versions/V]/stats", re.compile(_V2_MODEL + "/stats"), "GET", v2_extensions.stats),
    _Pattern("/v2/models/NAME[/versions/V]/config", re.compile(_V2_MODEL + "/config"), "GET", v2_extensions.config),
    _Pattern(
        "/v2/repository/models/NAME/load",
        re.compile(_V2_STORED + "/load"),
        "POST",
        refuse_cross_site(v2_extensions.load),
    ),
    _Pattern(
        "/v2/repository/models/NAME/unload",
        re.compile(_V2_STORED + "/unload"),
        "POST",
        refuse_cross_site(v2_extensions.unload),
    ),
    _Pattern("/v2/models/NAME[/versions/V]", re.compile(_V2_MODEL), "GET", views.v2_model),
    _Pattern(_TF_SHOWN + ":predict", re.compile(_TF_MODEL + ":predict"), "POST", tfserving.predict),
    _Pattern(
        _TF_SHOWN + ":classify",
        re.compile(_TF_MODEL + ":(?P<method>classify|regress)"),
        "POST",
        tfserving.no_such_method,
    ),
    _Pattern(_TF_SHOWN + "/metadata", re.compile(_TF_MODEL + "/metadata"), "GET", tfserving.metadata),
    _Pattern(_TF_SHOWN, re.compile(_TF_MODEL), "GET", tfserving.status),
)


def handle_request(server: Server, request: RawRequest) -> RawResponse:
    """The answer to any request. Never raises: what is unexpected is logged with its traceback and answered without."""
    if server.tracer or server.logs_requests:
        return observe_request(request, partial(_answer, server, request), server.tracer, server.logs_requests)
    return _answer(server, request)


def handle_request_async(server: Server, request: RawRequest, done: Callable[[RawResponse], None]) -> bool:
    """As `answer`, for an event loop: predictions of batched versions, without blocking.

    True: `done` is given the answer once, in this thread or another; it must not raise. False: nothing has happened,
    ask `answer`.
    """
    if server.tracer or server.logs_requests or request.method != "POST" or "content-encoding" in request.headers:
        return False
    view = None if request.path in server.cloud.paths else (_methods(request.path) or {}).get("POST")
    named = dict(view.keywords) if isinstance(view, partial) else {}
    function = view.func if isinstance(view, partial) else view
    if function is invocations:
        named["protocol"] = negotiate_protocol(server, request)
    elif function is not infer:
        return False
    return infer_async(server, request, lambda response: done(encode_body(request, response)), **named)


def _answer(server: Server, request: RawRequest) -> RawResponse:
    try:
        return _dispatch(server, request)
    except OnnxserveError as error:
        return exception_response(request.path, error)
    except Exception:
        logger.exception("answering %s %s failed", request.method, request.path[:200])
        message = "the server failed to answer; its log says why"
        return error_response(request.path, 500, "INTERNAL_ERROR", message)


def _dispatch(server: Server, request: RawRequest) -> RawResponse:
    path = request.path
    methods = _cloud_methods(server.cloud, path) if path in server.cloud.paths else _methods(path)
    if methods is None:
        found = close_matches(path, [*_ROUTES, *(pattern.shown for pattern in _PATTERNS)], _MOST_NEAR)
        nearest = f"the nearest {'is' if len(found) == 1 else 'are'} {', '.join(found)}; " if found else ""
        message = f"there is no {path[:200]} here; {nearest}/docs shows every route"
        return error_response(path, 404, "ENDPOINT_NOT_FOUND", message)
    view = methods.get("GET" if request.method == "HEAD" else request.method)
    if view is None:
        allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"])
        if request.method == "OPTIONS":
            return RawResponse(204, b"", "", {"Allow": allowed})
        message = f"{request.path[:200]} takes {allowed}, not {request.method[:20]}"
        return error_response(request.path, 405, "BAD_REQUEST", message, {"Allow": allowed})
    return encode_body(request, view(server, decode_body(request, server.max_body_bytes)))


def _cloud_methods(cloud: Cloud, path: str) -> dict[str, View]:
    """What answers at a path that Vertex AI has named, which may be one of ours."""
    methods: dict[str, View] = {}
    if path == cloud.health_route:
        methods["GET"] = partial(views.readiness, body=b'{"status":"ok"}')
    if path == cloud.predict_route:
        methods["POST"] = vertex_predict
    return methods


def _methods(path: str) -> dict[str, View] | None:
    """What answers at this path, by HTTP method; None: there is nothing."""
    if path in _ROUTES:
        return _ROUTES[path]
    for pattern in _PATTERNS:
        if match := pattern.path.fullmatch(path):
            return {pattern.method: partial(pattern.view, **match.groupdict())}
    return None
