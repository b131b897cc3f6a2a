"""The table of the HTTP routes, and their dispatch.

In a route's path, `NAME` is an endpoint, `V` a version, `L` a label and `ID` a job; a
part in brackets is optional.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mlflow_deploy_plugin.core.errors import pass_exit
from mlflow_deploy_plugin.core.messages import close_matches
from mlflow_deploy_plugin.serve.http import views
from mlflow_deploy_plugin.serve.http.encodings import decode_body, encode_body
from mlflow_deploy_plugin.serve.http.openapi import operations
from mlflow_deploy_plugin.serve.http.openapi.operations import Operation
from mlflow_deploy_plugin.serve.http.responses import (
    RawResponse,
    error_response,
    failure_response,
    http_response,
)
from mlflow_deploy_plugin.serve.inference import management
from mlflow_deploy_plugin.serve.inference.auth import Need
from mlflow_deploy_plugin.serve.inference.pipeline import infer_async
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.messages import RawRequest, Reply
from mlflow_deploy_plugin.serve.protocols import v2
from mlflow_deploy_plugin.serve.protocols.invocations import INVOCATIONS
from mlflow_deploy_plugin.serve.protocols.protocol import Protocol
from mlflow_deploy_plugin.serve.protocols.table import PROTOCOLS

_SUGGESTED_PATHS = 3
_ENDPOINT = re.compile(r"/(?:endpoints|(?:v[12]/)?(?:repository/)?models)/([^/:]+)")

View = Callable[..., RawResponse]
"""A function that answers the request; its keyword arguments are the names in the path.
"""


@dataclass(frozen=True, slots=True)
class Route:
    """A method of a path.

    Attributes:
        operation: the description for OpenAPI.
        protocol: the protocol of a prediction; None for other routes.
        need: the scope that a caller needs; None if no key is needed.
        is_admitted_by_view: True if the view checks the scope
            (`RequestContext.admit`); otherwise `handle_route` checks it.
        is_server_wide: True if a key for all endpoints is needed. Otherwise, NAME
            defaults to the default endpoint.
    """

    path: str
    method: str
    view: View
    operation: Operation
    protocol: Protocol | None = None
    need: Need | None = None
    is_admitted_by_view: bool = False
    is_server_wide: bool = False


def _get(
    path: str,
    view: View,
    operation: Operation,
    need: Need = "read",
) -> Route:
    return Route(path, "GET", view, operation, need=need)


def _server_wide(
    path: str,
    view: View,
    operation: Operation,
    method: str = "GET",
) -> Route:
    return Route(path, method, view, operation, need="read", is_server_wide=True)


def _explain(path: str) -> Route:
    operation = operations.EXPLAIN
    return Route(path, "POST", views.explain, operation, need="infer", is_admitted_by_view=True)


def _page(name: str, otherwise: bytes = b"") -> View:
    """Return the view of a page or file. Pages are imported on the first request.
    `otherwise` is a JSON response.
    """

    def view(server: Server, request: RawRequest, endpoint: str | None = None) -> RawResponse:
        if otherwise and "text/" not in request.headers.get("accept", "text/html"):
            return RawResponse(200, otherwise)
        from mlflow_deploy_plugin.serve.http.pages.page_views import PAGES

        return PAGES[name](server, request, endpoint)

    return view


_healthy = partial(views.readiness, body=b'{"status":"ok"}')
_TF_MODEL = "/v1/models/NAME[/versions/V|/labels/L]"
_V2_MODEL = "/v2/models/NAME[/versions/V]"
_statistics = views.v2_document(management.model_statistics)
_load = views.v2_control(management.load_model)
_unload = views.v2_control(management.unload_model)
_ASSETS = Path(__file__).parent / "pages" / "static"
_OF_ASSETS = {".css": operations.STYLESHEET, ".js": operations.SCRIPT, ".svg": operations.ICON}


_asset_routes = []
for _suffix, _operation in _OF_ASSETS.items():
    for _file in sorted(_ASSETS.glob(f"*{_suffix}")):
        _asset_routes.append(Route(f"/pages/{_file.name}", "GET", _page(_file.name), _operation))

_prediction_routes = []
for _protocol in PROTOCOLS:
    for _path in _protocol.paths:
        _prediction_routes.append(
            Route(
                _path,
                "POST",
                partial(views.predict, protocol=_protocol),
                operations.prediction(_protocol),
                protocol=_protocol,
                need="infer",
                is_admitted_by_view=True,
            ),
        )

ROUTES = (
    _get("/", _page("try", b'{"status":"alive"}'), operations.TRY_PAGE),
    _get("/docs", _page("docs"), operations.DOCS_PAGE),
    _server_wide("/openapi.json", _page("openapi"), operations.OPENAPI),
    _server_wide("/requests", _page("requests"), operations.REQUESTS_PAGE),
    *_asset_routes,
    *_prediction_routes,
    _explain("/explain"),
    Route("/feedback", "POST", views.feedback, operations.FEEDBACK, need="infer"),
    # MLflow also returns "\n".
    Route("/ping", "GET", partial(views.readiness, body=b"\n"), operations.PING),
    Route("/health", "GET", _healthy, operations.HEALTH),
    _server_wide("/version", views.mlflow_version, operations.MLFLOW_VERSION),
    _server_wide("/metrics", views.metrics_page, operations.METRICS),
    _server_wide("/metrics/history", views.metrics_history, operations.METRICS_HISTORY),
    _server_wide(
        "/v2",
        views.v2_document(lambda *_: v2.server_metadata()),
        operations.V2_SERVER,
    ),
    _server_wide("/v1/models", views.v2_document(management.list_models), operations.MODELS),
    _server_wide("/v2/models/stats", _statistics, operations.V2_STATISTICS),
    _server_wide("/v2/repository/index", views.v2_repository_index, operations.V2_INDEX, "POST"),
    Route(
        "/v2/health/live",
        "GET",
        lambda *_: RawResponse(200, b'{"live":true}'),
        operations.V2_LIVE,
    ),
    Route(
        "/v2/health/ready",
        "GET",
        partial(views.readiness, body=b'{"ready":true}'),
        operations.V2_READY,
    ),
    _explain("/endpoints/NAME/explain"),
    Route("/endpoints/NAME/feedback", "POST", views.feedback, operations.FEEDBACK, need="infer"),
    Route(
        "/endpoints/NAME/jobs",
        "POST",
        views.create_job,
        operations.CREATE_JOB,
        need="infer",
        is_admitted_by_view=True,
    ),
    _get("/endpoints/NAME/jobs/ID", views.job, operations.JOB, "infer"),
    Route("/endpoints/NAME/jobs/ID", "DELETE", views.job, operations.JOB, need="infer"),
    _get("/endpoints/NAME/jobs/ID/result", views.job_result, operations.JOB_RESULT, "infer"),
    _get("/endpoints/NAME/docs", _page("docs"), operations.ENDPOINT_DOCS_PAGE),
    _get("/endpoints/NAME/requests", _page("requests"), operations.ENDPOINT_REQUESTS_PAGE),
    _get("/endpoints/NAME/openapi.json", _page("openapi"), operations.ENDPOINT_OPENAPI),
    _get("/endpoints/NAME", _page("try"), operations.ENDPOINT_TRY_PAGE),
    _get(
        _V2_MODEL + "/ready",
        views.v2_document(management.model_ready),
        operations.V2_MODEL_READY,
        "describe",
    ),
    _get(_V2_MODEL + "/stats", _statistics, operations.V2_MODEL_STATISTICS),
    _get(
        _V2_MODEL + "/config",
        views.v2_document(management.model_config),
        operations.V2_CONFIG,
        "describe",
    ),
    Route("/v2/repository/models/NAME/load", "POST", _load, operations.V2_LOAD, need="admin"),
    Route("/v2/repository/models/NAME/unload", "POST", _unload, operations.V2_UNLOAD, need="admin"),
    _get(
        _V2_MODEL,
        views.v2_document(management.model_metadata),
        operations.V2_METADATA,
        "describe",
    ),
    _explain("/v1/models/NAME:explain"),
    _get(_TF_MODEL + "/metadata", views.tf_metadata, operations.TF_METADATA, "describe"),
    _get(_TF_MODEL, views.tf_status, operations.TF_STATUS, "describe"),
)


def name_placeholders(path: str, written: str) -> str:
    """Return a path template whose placeholders are replaced by their keywords in the
    format `written`: `<{}>`.
    """
    for placeholder, keyword in (
        ("NAME", "endpoint"),
        ("V", "version"),
        ("L", "label"),
        ("ID", "job"),
    ):
        path = re.sub(rf"(?<=/){placeholder}(?=\W|$)", written.format(keyword), path)
    return path


def expand_path(path: str, written: str) -> list[str]:
    """Return the paths of a template: without the part in brackets, and with each of
    its alternatives.
    """
    head, _, optional = path.partition("[")
    options, bracket, tail = optional.partition("]")
    parts = [""]
    if bracket:
        parts += options.split("|")
    return [name_placeholders(head + part + tail, written) for part in parts]


_BY_PATH: dict[str, dict[str, Route]] = {}
_BY_PATTERN: dict[re.Pattern[str], dict[str, Route]] = {}
for _route in ROUTES:
    if "NAME" in _route.path:
        _part = "[^/:]+" if _route.path.startswith("/v1/") else "[^/]+"
        _path = _route.path.replace(".", r"\.").replace("[", "(?:").replace("]", ")?")
        # The groups are the view's keywords.
        _pattern = re.compile(name_placeholders(_path, f"(?P<{{}}>{_part})"))
        _BY_PATTERN.setdefault(_pattern, {})[_route.method] = _route
    else:
        _BY_PATH.setdefault(_route.path, {})[_route.method] = _route
_BY_PATH["/v2/"] = _BY_PATH["/v2"]  # as in V2's OpenAPI document

_NOTHING_NAMED: Mapping[str, str] = {}


def list_routes() -> list[Route]:
    """Return every route with each of its paths in OpenAPI's form, such as
    `/v2/models/{endpoint}/infer`.
    """
    routes = []
    for route in ROUTES:
        routes += [replace(route, path=path) for path in expand_path(route.path, "{{{}}}")]
    return routes


def handle_request_async(
    server: Server,
    request: RawRequest,
    done: Callable[[RawResponse], None],
) -> bool:
    """Answer a prediction of a batched version without blocking, for an event loop.

    Return True if `done`, which must not raise, is called once with the response in any
    thread. Return False if the request was not started; the caller must then use
    `handle_route` in a thread.
    """
    if (
        server.tracer
        or server.logs_requests
        or request.method != "POST"
        or "content-encoding" in request.headers
    ):
        return False
    if request.path in server.cloud.paths:
        return False
    routes, parameters = _match(request.path)
    route = routes.get("POST")
    if route is None or route.protocol is None:
        return False

    def finish(reply: Reply) -> None:
        """Call `done` with the response; any failure becomes a response."""
        try:
            response = encode_body(request, http_response(request.path, reply))
        except BaseException as error:  # noqa: BLE001 - the boundary; the same thread delivers other requests' responses
            response = failure_response(request, error)
        done(response)

    return infer_async(server, request, finish, route.protocol, **parameters)


def handle_route(server: Server, request: RawRequest) -> RawResponse | None:
    """Authenticate and answer a request to a route of the table; return None for other
    paths. Log unexpected errors, and never raise.
    """
    path = request.path
    routes, parameters = _match(path)
    if path in server.cloud.paths:
        # Vertex AI specifies these paths, which may also be paths of our routes.
        routes = {}
        parameters = _NOTHING_NAMED
        if path == server.cloud.health_route:
            routes["GET"] = Route(path, "GET", _healthy, operations.HEALTH)
        if path == server.cloud.predict_route:
            operation = operations.prediction(INVOCATIONS)
            routes["POST"] = Route(path, "POST", views.vertex_predict, operation)
    if not routes:
        return None
    method = "GET" if request.method == "HEAD" else request.method
    route = routes.get(method)
    if route is None:
        return method_not_allowed(request, routes)
    try:
        if route.need is not None and not route.is_admitted_by_view:
            endpoint = None
            if not route.is_server_wide:
                endpoint = parameters.get("endpoint") or server.repository.default_endpoint
            server.auth.identify(request, route.need, endpoint)
        decoded = decode_body(request, server.max_body_bytes)
        return encode_body(request, route.view(server, decoded, **parameters))
    except BaseException as error:  # noqa: BLE001 - the traceback is logged, and the response omits it
        pass_exit(error)
        return failure_response(request, error)


def not_found(path: str) -> RawResponse:
    """Return the response for a path without a route; the message names similar paths,
    with the endpoint of this path.
    """
    endpoint = endpoint_of(path[:200]) or "NAME"
    templates = [re.sub(r"\[.*\]", "", route.path) for route in ROUTES]
    paths = dict.fromkeys(template.replace("NAME", endpoint) for template in templates)
    matches = close_matches(path, [*paths], _SUGGESTED_PATHS)
    hint = ""
    if matches:
        verb = "is" if len(matches) == 1 else "are"
        hint = f"the nearest {verb} {', '.join(matches)}; "
    message = f"the path {path[:200]} does not exist; {hint}/docs lists all routes"
    return error_response(path, 404, "ENDPOINT_NOT_FOUND", message)


def endpoint_of(path: str) -> str:
    """Return the endpoint in a path; empty if the path names none."""
    match = _ENDPOINT.match(path)
    return match[1] if match else ""


def method_not_allowed(request: RawRequest, methods: Iterable[str]) -> RawResponse:
    """Return the response for a method that a path does not accept; for OPTIONS, the
    methods that it accepts.
    """
    names = sorted({*methods} - {"HEAD", "OPTIONS"})
    if "GET" in names:
        names.append("HEAD")
    allowed = ", ".join([*names, "OPTIONS"])
    if request.method == "OPTIONS":
        return RawResponse(204, b"", "", {"Allow": allowed})
    message = f"{request.path[:200]} accepts {allowed}, not {request.method[:20]}"
    return error_response(request.path, 405, "BAD_REQUEST", message, {"Allow": allowed})


def _match(path: str) -> tuple[dict[str, Route], Mapping[str, str]]:
    """Return the routes of a path by method, and the names in the path; both are empty
    if no route matches.
    """
    if path in _BY_PATH:
        return _BY_PATH[path], _NOTHING_NAMED
    for pattern, routes in _BY_PATTERN.items():
        if match := pattern.fullmatch(path):
            return routes, match.groupdict()
    return {}, _NOTHING_NAMED
