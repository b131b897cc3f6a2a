"""The gate, the audit trail and the console in MLflow's Flask app. The console is the
page `/onnxserve`.
"""

import json
from collections.abc import Callable, Iterator
from functools import cache, wraps
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from flask import (
    Blueprint,
    Flask,
    Response,
    flash,
    jsonify,
    make_response,
    redirect,
    render_template,
    request,
    stream_with_context,
)

from mlflow_deploy_plugin.core import mlflow_private, settings
from mlflow_deploy_plugin.core.errors import OnnxserveError, ScopeMissing
from mlflow_deploy_plugin.core.registry.approved_files import APPROVED, CHANGED_FILES
from mlflow_deploy_plugin.core.registry.audit_trail import AUDIT_TRAIL
from mlflow_deploy_plugin.core.registry.change_feed import CHANGES
from mlflow_deploy_plugin.core.registry.connection import CALLER
from mlflow_deploy_plugin.core.registry.transitions import (
    event_as_json,
    event_history,
    without_step_events,
)
from mlflow_deploy_plugin.core.spec.types import reachable_url
from mlflow_deploy_plugin.core.statedir.history import Span
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.version import __version__
from mlflow_deploy_plugin.promote.evidence.diff import compare
from mlflow_deploy_plugin.promote.evidence.proof import make_proof
from mlflow_deploy_plugin.promote.evidence.record import REPORT_RUN, record_of
from mlflow_deploy_plugin.promote.gate.recording import PATH as VERDICTS
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ui import access
from mlflow_deploy_plugin.ui.actions import DECISIONS, no_endpoint, parse_form
from mlflow_deploy_plugin.ui.approvals import decide, parse_decision, request_rows
from mlflow_deploy_plugin.ui.approved_files import ChangedFilesSearch, version_approval
from mlflow_deploy_plugin.ui.audit_trail import AuditTrail, registry_name
from mlflow_deploy_plugin.ui.change_feed import ChangeFeed
from mlflow_deploy_plugin.ui.charts import shown
from mlflow_deploy_plugin.ui.event_words import ACTIONS, event_rows
from mlflow_deploy_plugin.ui.guard import mlflow_stores, views
from mlflow_deploy_plugin.ui.jobs import Job, Jobs
from mlflow_deploy_plugin.ui.logins import front
from mlflow_deploy_plugin.ui.logins.login import Login
from mlflow_deploy_plugin.ui.mlflow_pages import MlflowPages
from mlflow_deploy_plugin.ui.observed import ROUTE as OBSERVED
from mlflow_deploy_plugin.ui.observed import install as install_observed
from mlflow_deploy_plugin.ui.overview import build_overview
from mlflow_deploy_plugin.ui.pictures import SPANS, endpoint_pictures
from mlflow_deploy_plugin.ui.verdicts import record_verdict, recorded_report
from mlflow_deploy_plugin.ui.witnesses import (
    cosigned_checkpoint,
    send_checkpoints,
    trail_faults,
    witness_states,
)

if TYPE_CHECKING:
    from fastapi import FastAPI

_EXTENSION = "onnxserve"
_PATH = "/onnxserve"
_REQUESTS = "/requests"
_JSON_PATHS = (_REQUESTS, VERDICTS, APPROVED, CHANGED_FILES, AUDIT_TRAIL)
"""The ends of the paths whose errors are JSON documents."""
_FOLDER = "console"
_EVENTS_AT_ONCE = 1000
_EVENTS_PER_PAGE = 50
_LAST_PAGE = 100_000
_COSIGNED_SECONDS = 5.0
"""The maximum time that a dossier waits for cosignatures of its newest events."""
_EVENT_FILTERS = ("endpoint", "model", "actor", "action")
"""The parameters that select events of the audit trail."""
_TEXT = {"Content-Type": "text/plain; charset=utf-8"}
_STATIC = Path(__file__).parent / "static"
_MLFLOW_SCRIPT = "mlflow.js"
_INDEX_VIEW = "serve"
_CONTENT_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src "
    "'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # Without a referrer, the Origin of a form is `null`.
    "Cache-Control": "no-store",
}


def extend(app: Flask, adapter: Login, served: "Flask | FastAPI") -> None:
    """Add the gate, the audit trail and the console to MLflow's Flask app, once.
    `served` is the app of the WSGI or ASGI server, which contains `app`.
    """
    if _EXTENSION in app.extensions:
        return
    _compare_versions_as_numbers()
    trail = AuditTrail(send_checkpoints)
    views.install(app, trail, served)
    access.add_sessions(app, settings.load_settings().root_path / _FOLDER / "key")
    access.set_login(app, adapter)
    adapter.install(app, served)
    console = _Console(trail, access.static_prefix())
    console.feed.install(served, f"{access.static_prefix()}{CHANGES}")
    base = f"{access.static_prefix()}{_PATH}"
    pages = Blueprint(
        "onnxserve",
        __name__,
        template_folder="templates",
        static_folder="static",
        static_url_path=base,
    )
    for (path, method), view in console.views().items():
        address = f"{base}{path.removeprefix(_PATH)}"
        pages.add_url_rule(address, view.__name__, view, methods=[method])
        adapter.allow_page(address, method)
    for asset in _STATIC.iterdir():
        adapter.allow_page(f"{base}/{asset.name}", "GET")

    def add_headers(response: Response) -> Response:
        response.headers.update(_HEADERS)
        response.headers.setdefault("Content-Security-Policy", _CONTENT_POLICY)
        return response

    pages.before_request(_enter_workspace)
    pages.add_app_template_filter(shown)
    pages.register_error_handler(OnnxserveError, _answer_error)
    pages.after_request(add_headers)
    app.register_blueprint(pages)
    serve = app.view_functions[_INDEX_VIEW]

    def serve_with_script() -> Response:
        """Return MLflow's page with a script, which adds a link to the console to the
        page of a registered model. The page has no ETag, because a cached copy may lack
        the script.
        """
        request.environ.pop("HTTP_IF_NONE_MATCH", None)
        request.environ.pop("HTTP_IF_MODIFIED_SINCE", None)
        response = make_response(serve())  # The login may have replaced MLflow's view.
        if response.status_code != 200:
            return response
        response.direct_passthrough = False
        element = f'<script src="{base}/{_MLFLOW_SCRIPT}" defer></script>'
        page = response.get_data(as_text=True).replace("</head>", f"{element}</head>", 1)
        return Response(
            page,
            headers={"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-cache"},
        )

    app.view_functions[_INDEX_VIEW] = serve_with_script
    app.extensions[_EXTENSION] = trail
    install_observed(served, trail)
    # The layer is the last one, so that it is in front of all others.
    front.install(served, app, adapter, f"{access.static_prefix()}{OBSERVED}")
    trail.open_in_background()


def _enter_workspace() -> Response | None:
    """Select the workspace from ?workspace=, like MLflow's pages, because a link cannot
    set the workspace header.

    A server that only serves artifacts has no registry, so it refuses the request, as
    in MLflow's own views.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.server.workspace_helpers import resolve_workspace_for_request_if_enabled
    from mlflow.utils.workspace_context import set_server_request_workspace

    refused = mlflow_private._disable_if_artifacts_only(lambda: None)()
    if refused is not None:
        return make_response(refused)
    name = request.args.get("workspace")
    if not name:
        return None
    try:
        workspace = resolve_workspace_for_request_if_enabled(request.path, name)
    except MlflowException as error:
        return make_response(error.message, error.get_http_status_code(), _TEXT)
    selected = workspace.name if workspace else None
    set_server_request_workspace(selected)
    if selected:
        access.login().enter_workspace(selected)
    return None


def _answer_error(error: OnnxserveError) -> Response:
    """Return the error as JSON for clients, and as a text for browsers."""
    if request.path.endswith(_JSON_PATHS):
        return access.refusal(error.error_code, error.message, error.http_status)
    return make_response(error.message, error.http_status, _TEXT)


@cache  # The cache ensures that several apps of a process wrap MLflow's method only once.
def _compare_versions_as_numbers() -> None:
    """Make MLflow pass a number instead of a string to its store as the version that
    moves to a stage.

    To archive other versions, MLflow 3.17 compares the string with an integer column,
    which fails with psycopg 3.
    """
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    transition = SqlAlchemyStore.transition_model_version_stage

    @wraps(transition)
    def with_number(
        self: object,
        name: str,
        version: str,
        stage: str,
        archive_existing_versions: bool,
    ) -> object:
        number = int(version) if str(version).isdecimal() else version
        return transition(self, name, number, stage, archive_existing_versions)

    SqlAlchemyStore.transition_model_version_stage = with_number


class _Console:
    """The views of the console. `feed` is the change feed of this worker."""

    def __init__(self, trail: AuditTrail, prefix: str) -> None:
        self._trail = trail
        self._prefix = prefix
        self._base = f"{prefix}{_PATH}"
        self._changed_files = ChangedFilesSearch(trail)
        self.feed = ChangeFeed()

    def views(self) -> dict[tuple[str, str], Callable[[], Response]]:
        """Return the views by their path, with or without the path of the console, and
        their method.
        """
        return {
            ("", "GET"): self.page,
            ("", "POST"): self.act,
            ("/history", "GET"): self.history,
            ("/history.jsonl", "GET"): self.export,
            ("/pictures", "GET"): self.pictures,
            ("/diff", "GET"): self.diff,
            ("/report", "GET"): self.report,
            (_REQUESTS, "GET"): self.requests,
            (_REQUESTS, "POST"): self.decide,
            (CHANGES, "GET"): self.changes,
            (CALLER, "GET"): self.caller,
            (VERDICTS, "POST"): self.record_verdict,
            (APPROVED, "GET"): self.approved,
            (CHANGED_FILES, "GET"): self.changed_files,
            (AUDIT_TRAIL, "GET"): self.audit_trail,
        }

    @property
    def _store(self) -> Store:
        return self._trail.store()

    @property
    def _jobs(self) -> Jobs:
        return Jobs(settings.load_settings().home_path / _FOLDER / "jobs")

    def page(self) -> Response:
        return self._render(job=self._jobs.get(access.asked("job")))

    def pictures(self) -> Response:
        """Return the charts of ?endpoint= as HTML: with ?whole=1 for an endpoint's
        page, otherwise for the overview.
        """
        name = access.asked("endpoint")
        only_traffic = not access.asked("whole")
        store = self._store
        if access.hidden_endpoints(store, [name]) or store.endpoint(name) is None:
            raise no_endpoint(name)
        deployments = Deployments(store, settings.load_settings(), lambda line: None)
        observed = deployments.get_endpoint(name)
        pages = self._mlflow_pages()
        span = _span()
        drawings = endpoint_pictures(observed, deployments, pages, span, only_traffic=only_traffic)
        return make_response(render_template("onnxserve_pictures.html", pictures=drawings), 200)

    def diff(self) -> Response:
        """Compare the records of the versions ?before= and ?after= of ?model=, without
        running a model.
        """
        model = access.asked("model")
        stores = mlflow_stores.OwnStores()
        versions = [access.asked(side) for side in ("before", "after")]
        before, after = [
            record_of(model, version, stores, mlflow_stores.fetch_file) for version in versions
        ]
        html = render_template(
            "onnxserve_diff.html",
            diff=compare(before, after),
            model=model,
            versions=versions,
            pages=self._mlflow_pages(),
            base=self._base,
            link=self._link,
        )
        return make_response(html, 200)

    def report(self) -> Response:
        """Return the gate report of ?run= on ?model=. Its scripts do not run, because
        the report is from a caller.
        """
        policy = "sandbox; default-src 'none'; style-src 'unsafe-inline'"
        page = recorded_report(self._store)
        return make_response(page, {"Content-Security-Policy": policy})

    def act(self) -> Response:
        """Start the job of a form's action, or decide about a request. Redirect to the
        form's page, which shows the result, or return the page with the error.
        """
        who = access.caller()
        try:
            access.require_own_form(who.user)
            endpoint = request.form.get("endpoint", "")
            if endpoint and access.hidden_endpoints(self._store, [endpoint]):
                raise no_endpoint(endpoint)
            arguments, description, models = parse_form(request.form, self._store)
            if arguments["action"] in DECISIONS:
                reason = decide(self._store, arguments).reason
                explanation = f" {reason}." if reason else ""
                flash(f"Done: {description}.{explanation}")
                return make_response(redirect(self._here(), 303))
            if not access.may_act_on(models):
                raise ScopeMissing(
                    f"you may not {description}: this needs the permission to edit "
                    f"{' and '.join(models) or 'unregistered models'}"
                )
            # The job sends credentials to these URLs, so the Host header is used only
            # if it is allowed. A URL in the settings is the only one.
            configured_url = settings.load_settings().mlflow_url
            if configured_url:
                servers = [configured_url.rstrip("/")]
            else:
                addresses = []
                # The address is empty for a Unix socket, where gunicorn sets
                # SERVER_NAME from Host.
                if request.remote_addr:
                    addresses.append(
                        reachable_url(
                            str(request.environ.get("SERVER_NAME")),
                            int(request.environ.get("SERVER_PORT") or 0),
                        )
                    )
                if access.is_host_allowed():
                    addresses.append(request.host_url.rstrip("/"))
                servers = [f"{address}{self._prefix}" for address in dict.fromkeys(addresses)]
            job = Job(
                description=description,
                actor=who.actor,
                arguments=arguments,
                servers=tuple(servers),
                has_account=bool(who.user),
            )
            job = self._jobs.start(
                job,
                access.login().credentials() | settings.workspace_environment(),
            )
        except OnnxserveError as failure:
            return self._render(error=failure.message, status=failure.http_status)
        return make_response(redirect(self._here(job=job.id), 303))

    def audit_trail(self) -> Response:
        """Return the public keys of this server, the checkpoint with the most
        cosignatures, the key of the log for witnesses, and the states of the witnesses
        and the faults as JSON, and the proof of a dossier of ?endpoint=.
        """
        store = self._store
        if store.keys is None:
            return jsonify(keys="", checkpoint="")
        endpoint = access.asked("endpoint")
        if endpoint and access.hidden_endpoints(store, [endpoint]):
            raise no_endpoint(endpoint)
        checkpoint = cosigned_checkpoint(store, _COSIGNED_SECONDS if endpoint else 0.0)
        log = store.keys.signer_of(checkpoint)
        published = {
            "keys": store.keys.public_pem(),
            "log": log and log.text,
            "checkpoint": checkpoint.text,
            "witnesses": witness_states(store),
            "faults": trail_faults(store),
        }
        if not endpoint:
            return jsonify(published)
        period = parse_window(access.asked("period"))
        digest = access.asked("document")
        proof = make_proof(store, endpoint, period, digest, access.caller().actor, checkpoint)
        for model in {entry["event"]["model"] for entry in proof["events"]} - {""}:
            access.require_readable(model)
        return jsonify(published | {"proof": proof})

    def requests(self) -> Response:
        """Return the requests for promotions (of ?model=) as JSON."""
        model = access.asked("model")
        rows = request_rows(self._store, {model} if model else None)
        return jsonify([row.model_dump(mode="json") for row in rows])

    def decide(self) -> Response:
        """Decide about the request in the JSON body, and return it as JSON."""
        decided = decide(self._store, parse_decision(self._store))
        return jsonify(decided.model_dump(mode="json"))

    def caller(self) -> Response:
        """Return the names of the caller's account (empty without a login) and of the
        registry, and whether the caller is an administrator, as JSON.
        """
        return jsonify(
            user=access.caller().user,
            registry=registry_name(),
            is_administrator=access.is_administrator(),
        )

    def record_verdict(self) -> Response:
        record_verdict(self._trail)
        return jsonify({})

    def approved(self) -> Response:
        """Return the approval of ?version= of ?model= as JSON."""
        model = access.asked("model")
        approval = version_approval(self._trail, model, access.asked("version"))
        return jsonify(approval.model_dump(mode="json"))

    def changed_files(self) -> Response:
        return jsonify([entry.model_dump(mode="json") for entry in self._changed_files.find()])

    def changes(self) -> Response:
        return self.feed.subscribe(self._store)

    def history(self) -> Response:
        """Return a page of the audit trail, newest first, without the steps of
        promotions and rollbacks.
        """
        store = self._store
        pieces = _visible_events(store, newest_first=True)
        events = chain.from_iterable(map(without_step_events, pieces))
        page = min(max(request.args.get("page", 0, type=int), 0), _LAST_PAGE)
        first = page * _EVENTS_PER_PAGE
        shown = [*islice(events, first, first + _EVENTS_PER_PAGE + 1)]
        return self._answer(
            "onnxserve_history.html",
            events=event_rows(shown[:_EVENTS_PER_PAGE]),
            has_older=len(shown) > _EVENTS_PER_PAGE,
            page=page,
            actions=ACTIONS,
            asked={name: access.asked(name) for name in _EVENT_FILTERS},
            checkpoint=store.keys and cosigned_checkpoint(store),
            witnesses=store.keys and witness_states(store),
        )

    def export(self) -> Response:
        """Return the audit trail of this registry as JSON lines."""
        pieces = _visible_events(self._store)
        # An error before the first piece still sets the HTTP status.
        first = next(pieces, [])

        def content() -> Iterator[str]:
            try:
                for piece in chain([first], pieces):
                    yield "".join(f"{event_as_json(event)}\n" for event in piece)
            except OnnxserveError as error:  # The last line marks an incomplete response.
                yield json.dumps({"error_code": error.error_code, "message": error.message}) + "\n"

        return Response(
            stream_with_context(content()),
            200,
            content_type="application/x-ndjson; charset=utf-8",
        )

    def _mlflow_pages(self) -> MlflowPages:
        return MlflowPages(mlflow_private._get_tracking_store(), self._prefix)

    def _render(
        self,
        job: Job | None = None,
        error: str = "",
        status: int = 200,
    ) -> Response:
        """Return the console page of the request.

        Args:
            job: the job to show; None if there is none.
            error: the message to show. If it is empty, the page shows the failure to
                read the overview, if any.
            status: the HTTP status, unless the overview cannot be read.
        """
        only = access.asked("endpoint")
        model = access.asked("model")
        pages = self._mlflow_pages()
        try:
            overview = build_overview(
                self._store,
                settings.load_settings(),
                pages,
                only,
                model,
                _span(),
                access.asked("beginning"),
            )
        except OnnxserveError as failure:
            overview = None
            error = error or failure.message
            status = failure.http_status
        return self._answer(
            "onnxserve_console.html",
            status,
            overview=overview,
            job=job,
            judged=self._jobs.judged_versions(),
            error=error,
            csrf_field=access.TOKEN_FIELD,
            csrf_token=access.form_token(access.caller().user),
            act=self._here(),
            only=only,
            model=model,
            span=_span(),
            spans=SPANS,
            pages=pages,
            find_report=REPORT_RUN.search,
        )

    def _answer(self, template: str, status: int = 200, **values: object) -> Response:
        """Return the page of a template, with the values of the common layout."""
        query = settings.workspace_query()
        fragment = f"#/{query}" if query else ""
        home = f"{self._prefix}/{fragment}"
        html = render_template(
            template,
            who=access.caller(),
            base=self._base,
            link=self._link,
            workspace=settings.active_workspace() or settings.DEFAULT_WORKSPACE,
            workspaces=access.seen_workspaces(),
            home=home,
            onnxserve_version=__version__,
            **values,
        )
        return make_response(html, status)

    def _link(self, path: str = "", **query: str) -> str:
        """Return the URL of a console page in this workspace, without empty
        parameters.
        """
        parameters = {**query, "workspace": settings.active_workspace()}
        encoded = urlencode({name: value for name, value in parameters.items() if value})
        query_string = f"?{encoded}" if encoded else ""
        return f"{self._base}{path}{query_string}"

    def _here(self, job: str = "") -> str:
        """Return the URL of the current page, which then shows the job."""
        names = ("endpoint", "model", "beginning", "span")
        return self._link(job=job, **{name: access.asked(name) for name in names})


def _visible_events(store: Store, *, newest_first: bool = False) -> Iterator[list[AuditEvent]]:
    """Yield, in pieces, the events of ?endpoint=, ?model=, ?actor= and ?action= that
    the caller may see.
    """
    endpoint, model, actor, action = (access.asked(name) for name in _EVENT_FILTERS)
    events = event_history(
        store,
        endpoint or None,
        model or None,
        store.login.registry,
        actions=(action,) if action else (),
        actor=actor,
        newest_first=newest_first,
    )
    while piece := [*islice(events, _EVENTS_AT_ONCE)]:
        yield access.visible_events(store, piece)


def _span() -> Span:
    return "day" if access.asked("span") == "day" else "hour"
