"""The pages: rendered here from templates, with headers that let them do little.

Everything that comes from a model or a request is text to a page: the templates escape it, and the policy allows no
script that is not a file of this package, and no other host.
"""

import re
import secrets
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mlflow_deploy_plugin.errors import NotFound, NotReady, OnnxserveError
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse
from mlflow_deploy_plugin.server.http.openapi import document, examples
from mlflow_deploy_plugin.server.http.openapi.document import DescribedEndpoint, DocumentedRoute, describe_endpoint
from mlflow_deploy_plugin.server.http.openapi.operations import TAGS
from mlflow_deploy_plugin.server.http.pages.form_fields import form_fields
from mlflow_deploy_plugin.server.http.pages.snippets import snippets
from mlflow_deploy_plugin.server.models.repository import Repository
from mlflow_deploy_plugin.server.protocols.content import dump_json
from mlflow_deploy_plugin.version import __version__

_HERE = Path(__file__).parent
_HTML = "text/html; charset=utf-8"
_ASSETS = {
    "page.css": "text/css; charset=utf-8",
    "try.js": "text/javascript; charset=utf-8",
    "answer.js": "text/javascript; charset=utf-8",
    "pictures.js": "text/javascript; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_HOST = re.compile(r"[A-Za-z0-9.\-\[\]:]{1,255}")
_MOST_ENDPOINTS = 500
"""How many endpoints a page lists; the others are reached by their address."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class _Ask:
    """Where the try page sends its questions: where the answers hold the probabilities, if the model has any."""

    path: str

    @classmethod
    def of(cls, subject: DescribedEndpoint) -> "_Ask":
        artifact = subject.variant.loaded.predictor.artifact
        has_classes = artifact.classes and any(output.role == "probabilities" for output in artifact.outputs)
        return cls(f"/endpoints/{quote(subject.endpoint, safe='')}/{'predict/batch' if has_classes else 'invocations'}")


def asset(name: str) -> RawResponse:
    """One of the files that the pages load."""
    return RawResponse(200, _asset(name), _ASSETS[name], dict(HEADERS))


def openapi(server: Server, routes: Iterable[DocumentedRoute], endpoint: str | None) -> RawResponse:
    """The OpenAPI document, of all endpoints or of one.

    Raises:
        NotReady, NotFound: as `Repository.lease`, for one endpoint.
    """
    only = None if endpoint is None else describe_endpoint(server, endpoint).endpoint
    body = _once(server, ("openapi", only), lambda: dump_json(document.document(server, routes, only)))
    return RawResponse(200, body, headers={"Cache-Control": "no-store"})


def try_page(server: Server, endpoint: str | None) -> RawResponse:
    """The page to try an endpoint (None: the default one). Before a model is loaded it says so, and is there: 200."""
    try:
        subject = describe_endpoint(server, endpoint)
    except (NotReady, NotFound) as error:
        return _notice(server, error, endpoint)
    loaded = subject.variant.loaded
    schema, example = loaded.predictor.schema, examples.example_of(loaded)
    fields = form_fields(schema, example)
    told = {
        "ask": _Ask.of(subject).path,
        "isTable": bool(schema.columns),
        "classes": list(loaded.predictor.artifact.classes),
        "fields": [field.as_json() for field in fields],
    }
    pasted = examples.csv_example(example) if schema.columns else _pasted(examples.invocations_example(schema, example))
    return _page("try.html", server, subject, fields=fields, told=told, pasted=pasted, example=example)


def docs_page(
    server: Server, request: RawRequest, endpoint: str | None, routes: Iterable[DocumentedRoute]
) -> RawResponse:
    """The document to be read, and the fields and an example of one endpoint (None: the default one)."""
    try:
        subject = describe_endpoint(server, endpoint)
    except (NotReady, NotFound) as error:
        return _notice(server, error, endpoint)
    scheme, host = _base(request)
    stand_in = f"[{_STAND_IN}]" if "[" in host else _STAND_IN  # a shell's quotes go by the brackets

    def build() -> bytes:
        loaded = subject.variant.loaded
        schema, example = loaded.predictor.schema, examples.example_of(loaded)
        base = f"{scheme}://{stand_in}"
        return _page(
            "docs.html",
            server,
            subject,
            fields=form_fields(schema, example),
            outputs=loaded.predictor.artifact.outputs,
            snippets=snippets(base, _invocations(subject), subject.endpoint, schema, example),
            groups=_groups(document.document(server, routes, only=subject.endpoint)),
        ).body

    html = _once(server, ("docs", subject.endpoint, scheme, stand_in), build)
    return RawResponse(200, html.replace(stand_in.encode(), host.encode()), _HTML, dict(HEADERS))


@dataclass
class _Built:
    """What was built of the table of one repository, as long as that stays as it was."""

    state: Any
    bodies: dict[tuple[Any, ...], bytes] = field(default_factory=dict)


_BUILT: "weakref.WeakKeyDictionary[Repository, _Built]" = weakref.WeakKeyDictionary()
_BUILDING = threading.Lock()
_MOST_BUILT_BYTES = 8 * 1024 * 1024
_STAND_IN = f"host-{secrets.token_hex(8)}"
"""Of the address that the caller knows, in a page that is kept for all; no model can have it among its texts."""


def _once(server: Server, what: tuple[Any, ...], build: Callable[[], bytes]) -> bytes:
    """What `build` makes, made once as long as the same versions are served: it takes milliseconds, and seconds where
    a model has thousands of columns."""
    with _BUILDING:
        state = _state_of(server)
        kept = _BUILT.get(server.repository)
        if kept is None or kept.state != state:
            kept = _BUILT[server.repository] = _Built(state)
        if what not in kept.bodies:
            body = build()
            while kept.bodies and sum(map(len, kept.bodies.values())) + len(body) > _MOST_BUILT_BYTES:
                del kept.bodies[next(iter(kept.bodies))]
            kept.bodies[what] = body
        return kept.bodies[what]


def _state_of(server: Server) -> list[tuple[Any, ...]]:
    """All that the pages say of what is served, without holding a version in memory."""
    return [
        (
            name,
            variant.name,
            variant.weight,
            variant.shadow,
            dict(variant.aspects),
            weakref.ref(variant.loaded),
            variant.loaded.unavailable_reason,
            variant.loaded.predictor.artifact.outputs,  # a pyfunc learns them from its first answer
        )
        for name, served in server.repository.table.items()
        for variant in served.variants.values()
    ]


def _invocations(subject: DescribedEndpoint) -> str:
    return f"/endpoints/{quote(subject.endpoint, safe='')}/invocations"


def _pasted(body: dict[str, Any]) -> str:
    return dump_json(body).decode() if body else ""


def _base(request: RawRequest) -> tuple[str, str]:
    """The server's scheme and host as the caller knows them."""
    host = request.headers.get("host", "")
    scheme = request.headers.get("x-forwarded-proto", "http")
    return "https" if scheme == "https" else "http", host if _HOST.fullmatch(host) else "127.0.0.1:8080"


def _groups(described: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The operations by tag, without the files of the pages."""
    groups: dict[str, list[dict[str, Any]]] = {tag: [] for tag in TAGS}
    for path, operations in described["paths"].items():
        if not path.startswith("/pages/"):
            for method, operation in operations.items():
                groups.setdefault(operation["tags"][0], []).append(_row(path, method, operation))
    return {tag: rows for tag, rows in groups.items() if rows}


def _row(path: str, method: str, operation: dict[str, Any]) -> dict[str, Any]:
    content = operation.get("requestBody", {}).get("content", {})
    return {
        "method": method.upper(),
        "path": path,
        "summary": operation["summary"],
        "parameters": [
            (said["name"], said["in"], said.get("description") or "one of " + ", ".join(said["schema"].get("enum", [])))
            for said in operation.get("parameters", [])
        ],
        "bodies": {
            media_type: said["example"] if isinstance(said.get("example"), str) else _pasted(said.get("example") or {})
            for media_type, said in content.items()
        },
        "responses": [(status, said["description"]) for status, said in operation["responses"].items()],
    }


def _notice(server: Server, error: OnnxserveError, endpoint: str | None) -> RawResponse:
    """A page that says why there is nothing to try. Who asks for the plain page asks whether the server lives."""
    status = 200 if endpoint is None else error.http_status
    return _page("notice.html", server, None, status=status, message=error.message, is_starting=status != 404)


def _page(
    template: str, server: Server, subject: DescribedEndpoint | None, status: int = 200, **values: Any
) -> RawResponse:
    endpoints = list(server.repository.table)[:_MOST_ENDPOINTS]
    variants = list(server.repository.table[subject.endpoint].answering) if subject else []
    html = (
        _templates()
        .get_template(template)
        .render(
            onnxserve_version=__version__,
            subject=subject,
            loaded=subject.variant.loaded if subject else None,
            artifact=subject.variant.loaded.predictor.artifact if subject else None,
            variants=variants,
            endpoints=endpoints,
            **values,
        )
    )
    return RawResponse(status, html.encode(), _HTML, dict(HEADERS))


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


@cache
def _asset(name: str) -> bytes:
    return (_HERE / "static" / name).read_bytes()
