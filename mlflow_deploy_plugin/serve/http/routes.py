"""The table of the HTTP routes, and their dispatch.

The names in a route's path are in OpenAPI's form: `endpoint`, `version`, `label`,
`job`. A part in brackets is optional.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import EntryPoint
from itertools import chain
from pathlib import Path

from mlflow_deploy_plugin.core.errors import InvalidConfig, pass_exit
from mlflow_deploy_plugin.core.extensions import describe_entry
from mlflow_deploy_plugin.core.messages import close_matches
from mlflow_deploy_plugin.serve.http import views
from mlflow_deploy_plugin.serve.http.encodings import decode_body, encode_body
from mlflow_deploy_plugin.serve.http.openapi import operations
from mlflow_deploy_plugin.serve.http.openapi.operations import (
    HTML,
    PAGES,
    PREDICTIONS,
    SERVER,
    TEXT,
    V2,
    json_object,
)
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
from mlflow_deploy_plugin.serve.protocols.content import media_name
from mlflow_deploy_plugin.serve.protocols.invocations import INVOCATIONS
from mlflow_deploy_plugin.serve.protocols.protocol import Bodies, Protocol
from mlflow_deploy_plugin.serve.protocols.schemas import STRING
from mlflow_deploy_plugin.serve.protocols.table import EXTENSIONS, OWN
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.explained import is_explainable

_SUGGESTED_PATHS = 3
_ENDPOINT = re.compile(r"/(?:endpoints|(?:v[12]/)?(?:repository/)?models)/([^/:]+)")

View = Callable[..., RawResponse]
"""A function that answers the request; its keyword arguments are the names in the path.
"""


@dataclass(frozen=True, slots=True)
class Route:
    """A method of a path, with its description for OpenAPI.

    Attributes:
        response: the bodies of a successful response; empty if there is no body or no
            description.
        request: the accepted bodies; empty if the operation has no body.
        errors: the statuses of errors, in addition to those of the path and of `need`.
        applies_to: returns False for a model that the route rejects.
        need: the scope that a caller needs; None if no key is needed.
        protocol: the protocol of a prediction; None for other routes.
        is_admitted_by_view: True if the view checks the scope
            (`RequestContext.admit`); otherwise `handle_route` checks it.
        is_server_wide: True if a key for all endpoints is needed. Otherwise, the
            endpoint defaults to the default endpoint.
    """

    path: str
    view: View
    summary: str
    tag: str
    response: Bodies = field(default_factory=dict)
    request: Bodies = field(default_factory=dict)
    errors: tuple[int, ...] = ()
    status: int = 200
    needs_body: bool = True
    applies_to: Callable[[Artifact], bool] = lambda artifact: True
    method: str = "GET"
    need: Need | None = "read"
    protocol: Protocol | None = None
    is_admitted_by_view: bool = False
    is_server_wide: bool = False


def _page(name: str, otherwise: bytes = b"") -> View:
    """Return the view of a page. Pages are imported on the first request. `otherwise`
    is a JSON response.
    """

    def view(server: Server, request: RawRequest, endpoint: str | None = None) -> RawResponse:
        if otherwise and "text/" not in request.headers.get("accept", "text/html"):
            return RawResponse(200, otherwise)
        from mlflow_deploy_plugin.serve.http.pages import page_views

        return page_views.PAGES[name](server, request, endpoint)

    return view


_V2_MODEL = "/v2/models/{endpoint}[/versions/{version}]"
_STATIC = Path(__file__).parent / "pages" / "static"
_ASSETS = {
    ".css": ("The style sheet of the pages", "text/css; charset=utf-8"),
    ".js": ("A script of the pages", "text/javascript; charset=utf-8"),
    ".svg": ("The icon of the pages", "image/svg+xml"),
}
_PREDICTION_ERRORS = (400, 413, 415, 422, 429, 503, 504)
_UPLOAD_ERRORS = (400, 413, 415, 429, 503)
_post = partial(Route, method="POST", need="infer")
_readable = partial(Route, errors=(503,))
_server_wide = partial(Route, is_server_wide=True)

_asset_routes = []
for _file in sorted(_STATIC.iterdir()):
    _summary, _type = _ASSETS[_file.suffix]
    _view = partial(views.asset, file=_file, content_type=_type)
    _body = {media_name(_type): STRING}
    _asset_routes.append(Route(f"/pages/{_file.name}", _view, _summary, PAGES, _body, need=None))


def _protocol_routes(protocol: Protocol) -> list[Route]:
    predictions = [
        _post(
            path,
            partial(views.predict, protocol=protocol),
            protocol.summary,
            protocol.tag,
            protocol.response,
            protocol.request,
            _PREDICTION_ERRORS,
            applies_to=protocol.accepts,
            protocol=protocol,
            is_admitted_by_view=True,
        )
        for path in protocol.paths
    ]
    descriptions = [
        _readable(
            description.path,
            views.json_document(description.describe),
            description.summary,
            protocol.tag,
            description.response,
            need="describe",
        )
        for description in protocol.descriptions
    ]
    return predictions + descriptions


_explain = _post(
    "/explain",
    views.explain,
    "The contribution of each column of each row to its prediction: its SHAP values",
    PREDICTIONS,
    operations.EXPLANATION,
    INVOCATIONS.request,
    _PREDICTION_ERRORS,
    applies_to=is_explainable,
    is_admitted_by_view=True,
)
_feedback = _post(
    "/feedback",
    views.feedback,
    "True labels of earlier predictions, by X-Prediction-Id or by columns; the last label for a "
    "row is used",
    PREDICTIONS,
    json_object("feedback answer", accepted="integer"),
    operations.FEEDBACK,
    _UPLOAD_ERRORS,
    202,
)
_job = Route(
    "/endpoints/{endpoint}/jobs/{job}",
    views.job,
    "The state of a batch job, which DELETE cancels",
    PREDICTIONS,
    operations.JOB,
    need="infer",
)
_load = Route(
    "/v2/repository/models/{endpoint}/load",
    views.v2_control(management.load_model),
    "Loads an endpoint, if the server allows it",
    V2,
    {},
    operations.V2_CONTROL,
    (400, 403, 404, 413, 415, 429, 503, 504),
    needs_body=False,
    method="POST",
    need="admin",
)
_statistics = _readable(
    _V2_MODEL + "/stats",
    views.json_document(management.model_statistics),
    "The number and the duration of requests to the endpoint",
    V2,
    operations.V2_STATISTICS,
)

_OWN_ROUTES = (
    Route(
        "/",
        _page("try", b'{"status":"alive"}'),
        "A page to try the default endpoint in the browser",
        PAGES,
        {**HTML, **operations.STATUS},
    ),
    Route("/docs", _page("docs"), "This document as a page", PAGES, HTML),
    *(
        _server_wide(path, _page("openapi"), "This document", PAGES, operations.DOCUMENT)
        for path in ("/openapi.json", "/v2/docs/dataplane.json")
    ),
    _server_wide(
        "/requests",
        _page("requests"),
        "The last requests to the server, as a page or as JSON",
        PAGES,
        operations.REQUESTS,
    ),
    *_asset_routes,
    *chain.from_iterable(map(_protocol_routes, OWN)),
    _explain,
    _feedback,
    _readable(
        "/ping",
        partial(views.readiness, body=b"\n"),  # MLflow also returns "\n".
        "The readiness of the server, as MLflow's empty line",
        SERVER,
        need=None,
    ),
    _readable(
        "/health",
        partial(views.readiness, body=b'{"status":"ok"}'),
        "The readiness of the server",
        SERVER,
        operations.STATUS,
        need=None,
    ),
    Route(
        "/key",
        views.known_key,
        "204 if the caller's key is valid, for a proxy that asks before it reads a body",
        SERVER,
        errors=(401, 503),
        status=204,
        need=None,  # The view requires a key, and no scope.
    ),
    _readable(
        "/version",
        views.mlflow_version,
        "The version of MLflow that the model was logged with",
        SERVER,
        TEXT,
        is_server_wide=True,
    ),
    _server_wide(
        "/metrics",
        views.metrics_page,
        "Metrics for Prometheus, summed over the workers",
        SERVER,
        TEXT,
    ),
    _server_wide(
        "/metrics/history",
        views.metrics_history,
        "The metrics of the last hour or day, a line per interval",
        SERVER,
        {"application/x-ndjson": STRING},
        errors=(400,),
    ),
    _server_wide(
        "/v2",
        views.json_document(lambda server: server.names.server_metadata()),
        "The server's name and version",
        V2,
        json_object("v2 server", name="string", version="string", extensions="array"),
    ),
    _server_wide(
        "/v1/models",
        views.json_document(management.list_models),
        "The endpoints, for KServe's clients",
        SERVER,
        json_object("endpoints", models="array"),
    ),
    replace(
        _statistics,
        path="/v2/models/stats",
        summary="The statistics of all endpoints",
        is_server_wide=True,
    ),
    _server_wide(
        "/v2/repository/index",
        views.v2_repository_index,
        "The endpoints and their states",
        V2,
        operations.V2_INDEX,
        operations.V2_INDEX_REQUEST,
        (400, 413),
        needs_body=False,
        method="POST",
    ),
    Route(
        "/v2/health/live",
        lambda *_: RawResponse(200, b'{"live":true}'),
        "The liveness of the server",
        V2,
        json_object("v2 live", live="boolean"),
        need=None,
    ),
    _readable(
        "/v2/health/ready",
        partial(views.readiness, body=b'{"ready":true}'),
        "The readiness of the server",
        V2,
        json_object("v2 ready", ready="boolean"),
        need=None,
    ),
    replace(_explain, path="/endpoints/{endpoint}/explain"),
    replace(_feedback, path="/endpoints/{endpoint}/feedback"),
    _post(
        "/endpoints/{endpoint}/jobs",
        views.create_job,
        "Predictions for a file, or for files in a bucket, as a batch job",
        PREDICTIONS,
        operations.JOB,
        {**operations.JOB_FILES, **json_object("job of uris", input="string", output="string")},
        _UPLOAD_ERRORS,
        202,
        is_admitted_by_view=True,
    ),
    _job,
    replace(_job, method="DELETE"),
    replace(
        _job,
        path="/endpoints/{endpoint}/jobs/{job}/result",
        view=views.job_result,
        summary="The predictions of a batch job's file",
        response=operations.JOB_FILES,
    ),
    _readable(
        "/endpoints/{endpoint}/docs",
        _page("docs"),
        "The requests and responses of the endpoint as a page",
        PAGES,
        HTML,
    ),
    _readable(
        "/endpoints/{endpoint}/requests",
        _page("requests"),
        "The last requests to the endpoint, as a page or as JSON",
        PAGES,
        operations.REQUESTS,
    ),
    *(
        _readable(
            path, _page("openapi"), "This document for one endpoint", PAGES, operations.DOCUMENT
        )
        for path in (
            "/endpoints/{endpoint}/openapi.json",
            "/v2/models/{endpoint}/docs/dataplane.json",
        )
    ),
    _readable(
        "/endpoints/{endpoint}",
        _page("try"),
        "A page to try the endpoint in the browser",
        PAGES,
        HTML,
    ),
    _readable(
        _V2_MODEL + "/ready",
        views.json_document(management.model_ready),
        "The readiness of the endpoint, or of a version of it",
        V2,
        json_object("v2 model ready", name="string", ready="boolean"),
        need="describe",
    ),
    _statistics,
    _readable(
        _V2_MODEL + "/config",
        views.json_document(management.model_config),
        "The configuration of the endpoint, in Triton's form",
        V2,
        operations.V2_CONFIG,
        need="describe",
    ),
    _load,
    replace(
        _load,
        path="/v2/repository/models/{endpoint}/unload",
        view=views.v2_control(management.unload_model),
        summary="Unloads an endpoint, if the server allows it",
    ),
    _readable(
        _V2_MODEL,
        views.json_document(management.model_metadata),
        "The inputs and outputs of the graph",
        V2,
        operations.V2_MODEL,
        need="describe",
    ),
    replace(_explain, path="/v1/models/{endpoint}:explain"),
)


def expand_path(path: str) -> list[str]:
    """Return the paths of a route without the part in brackets, and with each of its
    alternatives.
    """
    head, _, optional = path.partition("[")
    parts, _, tail = optional.partition("]")
    return [head + part + tail for part in dict.fromkeys(["", *parts.split("|")])]


_BY_PATH: dict[str, dict[str, Route]] = {}
_BY_PATTERN: dict[re.Pattern[str], dict[str, Route]] = {}
_NOTHING_NAMED: Mapping[str, str] = {}


def _add(routes: Iterable[Route]) -> None:
    for route in routes:
        if "{" in route.path:
            part = "[^/:]+" if route.path.startswith("/v1/") else "[^/]+"
            path = route.path.replace(".", r"\.").replace("[", "(?:").replace("]", ")?")
            # The groups are the view's keywords.
            pattern = re.compile(re.sub(r"{(\w+)}", rf"(?P<\1>{part})", path))
            _BY_PATTERN.setdefault(pattern, {})[route.method] = route
        else:
            _BY_PATH.setdefault(route.path, {})[route.method] = route


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


def _add_extensions() -> Iterator[Route]:
    """Add the routes of protocols that plug in, and yield them. Raises InvalidConfig if
    one of their paths is a path of another route.
    """
    owners: dict[str, EntryPoint] = {}
    for protocol, entry in EXTENSIONS.items():
        routes = _protocol_routes(protocol)
        for path in chain.from_iterable(expand_path(route.path) for route in routes):
            # An endpoint may have any name, so one name shows each collision.
            taken, _ = _match(path.format(endpoint="x", version="x", label="x"))
            for other in taken.values():
                owner = owners.get(other.path)
                raise InvalidConfig(
                    f"the path {path} of the protocol {describe_entry(entry)} is a path of "
                    f"{describe_entry(owner) if owner else 'onnxserve'}; uninstall one of the "
                    "distributions"
                )
        _add(routes)
        owners |= {route.path: entry for route in routes}
        yield from routes


_add(_OWN_ROUTES)
_BY_PATH["/v2/"] = _BY_PATH["/v2"]  # as in V2's OpenAPI document
ROUTES = (*_OWN_ROUTES, *_add_extensions())


def list_routes() -> list[Route]:
    """Return every route with each of its paths."""
    routes = []
    for route in ROUTES:
        routes += [replace(route, path=path) for path in expand_path(route.path)]
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
    if server.observer.is_on or request.method != "POST" or request.path in server.cloud.paths:
        return False
    if "content-encoding" in request.headers:
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

    return infer_async(server, request, finish, server.answering(route.protocol), **parameters)


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
            routes["GET"] = _BY_PATH["/health"]["GET"]
        if path == server.cloud.predict_route:
            invocations = _BY_PATH["/invocations"]["POST"]
            routes["POST"] = replace(invocations, view=views.vertex_predict)
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
        decoded = request
        # The view refuses a stranger, or ignores the body.
        is_encoded = "content-encoding" in request.headers
        if is_encoded and not server.auth.is_stranger(request.headers, request.caller):
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
    templates = dict.fromkeys(expand_path(route.path)[0] for route in ROUTES)
    paths = [template.format(endpoint=endpoint, job="ID") for template in templates]
    matches = close_matches(path, paths, _SUGGESTED_PATHS)
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
