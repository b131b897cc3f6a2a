"""MLflow's own server with the gate, the audit trail and the console: the apps of the entry point group `mlflow.app`.

    mlflow server --app-name onnxserve …               without accounts
    mlflow server --app-name onnxserve-basic-auth …    on top of MLflow's own basic auth

Under uvicorn, the default, MLflow needs FastAPI's app around its Flask app; gunicorn and waitress need the Flask app
itself. The console is the page `/onnxserve`.
"""

import json
import os
from collections.abc import Iterator
from functools import cache, wraps
from itertools import islice
from pathlib import Path
from urllib.parse import urlencode

from flask import Blueprint, Flask, Response, make_response, redirect, render_template, request, stream_with_context

from mlflow_deploy_plugin.deployments import Deployments
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.registry.transitions import event_as_json, event_history
from mlflow_deploy_plugin.settings import (
    DEFAULT_WORKSPACE,
    active_workspace,
    load_settings,
    workspace_environment,
    workspace_query,
)
from mlflow_deploy_plugin.spec import reachable_url
from mlflow_deploy_plugin.statedir import Span
from mlflow_deploy_plugin.ui import guard
from mlflow_deploy_plugin.ui.access import (
    TOKEN_FIELD,
    add_sessions,
    allow_pages,
    authenticate_once_a_request,
    caller,
    form_refusal,
    form_token,
    hidden_endpoints,
    may_act_on,
    seen_workspaces,
    visible_events,
)
from mlflow_deploy_plugin.ui.actions import no_endpoint, parse_form
from mlflow_deploy_plugin.ui.charts import shown
from mlflow_deploy_plugin.ui.jobs import Job, Jobs
from mlflow_deploy_plugin.ui.mlflow_pages import MlflowPages
from mlflow_deploy_plugin.ui.overview import build_overview
from mlflow_deploy_plugin.ui.pictures import SPANS, endpoint_pictures
from mlflow_deploy_plugin.version import __version__

_SGI = "_MLFLOW_SGI_NAME"  # MLflow's own: which server runs the app
_EXTENSION = "onnxserve"
_PATH = "/onnxserve"
_FOLDER = "console"
_EXPORTED_AT_ONCE = 1000
_TEXT = {"Content-Type": "text/plain; charset=utf-8"}
_STATIC = Path(__file__).parent / "static"
_MLFLOW_SCRIPT, _INDEX_VIEW = "mlflow.js", "serve"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # a form's Origin is `null` without a referrer
    "Cache-Control": "no-store",
}


def create_app() -> object:
    from mlflow.server import app
    from mlflow.server.fastapi_app import create_fastapi_app

    extend(app)
    return create_fastapi_app(app) if os.environ.get(_SGI) == "uvicorn" else app


def create_basic_auth_app() -> object:
    """Return the same behind MLflow's basic auth, which identifies the caller before the gate decides."""
    from mlflow.server import app
    from mlflow.server.auth import create_app as create_with_accounts

    served = create_with_accounts(app)
    authenticate_once_a_request()
    extend(app)
    return served


def extend(app: Flask) -> None:
    """Add the gate, the audit trail and the console to MLflow's Flask app, once."""
    from mlflow.server.handlers import _add_static_prefix

    if _EXTENSION in app.extensions:
        return
    _compare_versions_as_numbers()
    trail = guard.AuditTrail()
    guard.install(app, trail)
    add_sessions(app, load_settings().root_path / _FOLDER / "key")
    prefix = _add_static_prefix("/").rstrip("/")
    console = _Console(trail, prefix)
    base = f"{prefix}{_PATH}"
    pages = Blueprint("onnxserve", __name__, template_folder="templates", static_folder="static", static_url_path=base)
    read = {base: console.page, f"{base}/history.jsonl": console.export, f"{base}/pictures": console.pictures}
    for path, view in read.items():
        pages.add_url_rule(path, view.__name__, view, methods=["GET"])
    pages.add_url_rule(base, "act", console.act, methods=["POST"])

    @pages.before_request
    def enter_workspace() -> Response | None:
        """Answer for the workspace of ?workspace=, as MLflow's own pages do; a browser sends no header.

        A server that only has artifacts has no registry, and is refused as MLflow refuses its own views.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.server.handlers import _disable_if_artifacts_only
        from mlflow.server.workspace_helpers import resolve_workspace_for_request_if_enabled
        from mlflow.utils.workspace_context import set_server_request_workspace

        if (refused := _disable_if_artifacts_only(lambda: None)()) is not None:
            return make_response(refused)
        if name := request.args.get("workspace"):
            try:
                found = resolve_workspace_for_request_if_enabled(request.path, name)
            except MlflowException as error:
                return make_response(error.message, error.get_http_status_code(), _TEXT)
            set_server_request_workspace(found.name if found else None)
        return None

    pages.add_app_template_filter(shown)

    @pages.errorhandler(OnnxserveError)
    def answer_error(error: OnnxserveError) -> Response:
        return make_response(error.message, error.http_status, _TEXT)

    @pages.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response

    app.register_blueprint(pages)
    _link_from_mlflow(app, f"{base}/{_MLFLOW_SCRIPT}")
    allow_pages("GET", *read, *(f"{base}/{asset.name}" for asset in _STATIC.iterdir()))
    allow_pages("POST", base)
    app.extensions[_EXTENSION] = trail


def _link_from_mlflow(app: Flask, script: str) -> None:
    """Have MLflow's pages run our script, which links each page of a registered model to the console."""
    index = Path(app.static_folder or "") / "index.html"
    if _INDEX_VIEW not in app.view_functions or not index.exists():
        return  # this MLflow serves its pages in another way, or was built without pages

    def serve_with_script() -> Response:
        """Return the page without the file's ETag, by which browsers would keep a copy without the script."""
        page = index.read_text().replace("</head>", f'<script src="{script}" defer></script></head>', 1)
        return Response(page, headers={"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-cache"})

    app.view_functions[_INDEX_VIEW] = serve_with_script


@cache  # MLflow's class is changed once, also for several apps in a process
def _compare_versions_as_numbers() -> None:
    """Give MLflow's store the number of a version that is moved to a stage, where MLflow 3.17 gives it the text.

    With archived versions it is compared with a column of numbers, which PostgreSQL refuses by psycopg 3.
    """
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    transition = SqlAlchemyStore.transition_model_version_stage

    @wraps(transition)
    def with_number(self: object, name: str, version: str, stage: str, archive_existing_versions: bool) -> object:
        number = int(version) if str(version).isdecimal() else version
        return transition(self, name, number, stage, archive_existing_versions)

    SqlAlchemyStore.transition_model_version_stage = with_number


class _Console:
    def __init__(self, trail: guard.AuditTrail, prefix: str) -> None:
        self._trail = trail
        self._prefix = prefix
        self._base = f"{prefix}{_PATH}"

    @property
    def _jobs(self) -> Jobs:
        return Jobs(load_settings().home_path / _FOLDER / "jobs")

    def page(self) -> Response:
        return self._render(job=self._jobs.get(request.args.get("job", "")))

    def pictures(self) -> Response:
        """Return the pictures of ?endpoint= as HTML; with ?whole=1 those of its own page, otherwise of the overview."""
        name, only_traffic = request.args.get("endpoint", ""), not request.args.get("whole")
        store = self._trail.store()
        if hidden_endpoints(store, [name]) or store.endpoint(name) is None:
            raise no_endpoint(name)
        deployments = Deployments(store, load_settings(), lambda line: None)
        one, pages = deployments.get_endpoint(name), self._mlflow_pages()
        found = endpoint_pictures(one, deployments, pages, _span(), only_traffic=only_traffic)
        return make_response(render_template("onnxserve_pictures.html", pictures=found), 200)

    def act(self) -> Response:
        """Start the action of a form, and show the page that it was on, which follows its job."""
        who = caller()
        if refusal := form_refusal(who.user):
            return self._render(error=refusal, status=403)
        try:
            store, endpoint = self._trail.store(), request.form.get("endpoint", "")
            if endpoint and hidden_endpoints(store, [endpoint]):
                raise no_endpoint(endpoint)
            action = parse_form(request.form, store)
            if not may_act_on(action.models):
                models = " and ".join(action.models) or "what is not registered"
                error = f"you may not {action.description}: that takes the permission to edit {models}"
                return self._render(error=error, status=403)
            job = Job(
                description=action.description,
                actor=who.actor,
                arguments=action.arguments,
                servers=self._servers(),
                has_account=bool(who.user),
            )
            job = self._jobs.start(job, _credentials() | workspace_environment())
        except OnnxserveError as failure:
            return self._render(error=failure.message, status=failure.http_status)
        return make_response(redirect(self._here(job=job.id), 303))

    def export(self) -> Response:
        """Return the audit trail as JSON lines: of everything, or of ?endpoint= or ?model=."""
        store = self._trail.store()
        found = event_history(store, request.args.get("endpoint") or None, request.args.get("model") or None, None)
        pages = iter(lambda: [*islice(found, _EXPORTED_AT_ONCE)], [])
        pieces = ("".join(f"{event_as_json(event)}\n" for event in visible_events(store, page)) for page in pages)
        first = next(pieces, "")  # a store that does not answer is an error while there is a status to say it

        def content() -> Iterator[str]:
            yield first
            try:
                yield from pieces
            except OnnxserveError as error:  # MLflow's server would end the response as if it were whole
                yield json.dumps({"error_code": error.error_code, "message": error.message}) + "\n"

        return Response(stream_with_context(content()), 200, content_type="application/x-ndjson; charset=utf-8")

    def _mlflow_pages(self) -> MlflowPages:
        from mlflow.server import handlers

        return MlflowPages(handlers._get_tracking_store(), self._prefix)

    def _render(self, job: Job | None = None, error: str = "", status: int = 200) -> Response:
        from mlflow.server import handlers

        who, only, model = caller(), request.args.get("endpoint", ""), request.args.get("model", "")
        pages = self._mlflow_pages()
        try:
            registry = handlers._get_model_registry_store()
            store, settings = self._trail.store(), load_settings()
            beginning = request.args.get("beginning", "")
            overview = build_overview(store, settings, registry, pages, only, model, _span(), beginning)
        except OnnxserveError as failure:
            overview, error, status = None, error or failure.message, failure.http_status
        html = render_template(
            "onnxserve_console.html",
            overview=overview,
            job=job,
            error=error,
            who=who,
            csrf_field=TOKEN_FIELD,
            csrf_token=form_token(who.user),
            base=self._base,
            link=self._link,
            act=self._here(),
            workspace=active_workspace() or DEFAULT_WORKSPACE,
            workspaces=seen_workspaces(),
            only=only,
            model=model,
            span=_span(),
            spans=SPANS,
            home=f"{self._prefix}/{workspace_query() and f'#/{workspace_query()}'}",
            pages=pages,
            onnxserve_version=__version__,
        )
        return make_response(html, status)

    def _link(self, path: str = "", **query: str) -> str:
        """Return the address of a page of the console in this workspace, without empty parameters."""
        given = {name: value for name, value in {**query, "workspace": active_workspace()}.items() if value}
        return f"{self._base}{path}{'?' if given else ''}{urlencode(given)}"

    def _here(self, job: str = "") -> str:
        """Return the address of the current page, with a job that it follows."""
        kept = {name: request.args.get(name, "") for name in ("endpoint", "model", "beginning", "span")}
        return self._link(job=job, **kept)

    def _servers(self) -> tuple[str, ...]:
        """Return addresses of this MLflow server for a process of this machine, the best first.

        The process trusts these addresses. A caller can send any Host, so it counts only where the operator has named
        it.
        """
        from mlflow.server.security_utils import get_allowed_hosts_from_env

        if known := load_settings().mlflow_url:
            return (known.rstrip("/"),)
        found = []
        if request.remote_addr:  # none at a Unix socket, where gunicorn takes SERVER_NAME from Host
            host, port = str(request.environ.get("SERVER_NAME")), int(request.environ.get("SERVER_PORT") or 0)
            found.append(reachable_url(host, port))
        if request.host in (get_allowed_hosts_from_env() or ()):
            found.append(request.host_url.rstrip("/"))
        return tuple(dict.fromkeys(f"{address}{self._prefix}" for address in found))


def _span() -> Span:
    return "day" if request.args.get("span") == "day" else "hour"


def _credentials() -> dict[str, str]:
    if (given := request.authorization) is None:
        return {}
    if given.type == "basic":
        return {"MLFLOW_TRACKING_USERNAME": given.username or "", "MLFLOW_TRACKING_PASSWORD": given.password or ""}
    return {"MLFLOW_TRACKING_TOKEN": given.token} if given.type == "bearer" and given.token else {}
