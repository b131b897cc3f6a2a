"""The views of routes other than predictions, and the views that select the protocol or
endpoint of a prediction.

A view receives the server, the request and the names in its path: `endpoint`,
`version`, `label`, `job`.
"""

import ipaddress
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl

from mlflow_deploy_plugin.core.errors import (
    CallerRefused,
    InvalidConfig,
    InvalidRequest,
    NotFound,
    NotReady,
    OnnxserveError,
)
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import SERVER
from mlflow_deploy_plugin.core.statedir.history import SPANS, read_history
from mlflow_deploy_plugin.serve.http.responses import RawResponse, error_response, http_response
from mlflow_deploy_plugin.serve.inference import explain as explanations
from mlflow_deploy_plugin.serve.inference import management
from mlflow_deploy_plugin.serve.inference.jobs import accept_job, find_job, read_request
from mlflow_deploy_plugin.serve.inference.pipeline import infer
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.messages import RawRequest, request_id
from mlflow_deploy_plugin.serve.observability.gauges import CONTENT_TYPE, gauges_page
from mlflow_deploy_plugin.serve.protocols import feedback as protocol
from mlflow_deploy_plugin.serve.protocols import jsonlines
from mlflow_deploy_plugin.serve.protocols.content import (
    CSV,
    JSON,
    dump_json,
    json_object,
    media_name,
    media_type,
)
from mlflow_deploy_plugin.serve.protocols.invocations import INVOCATIONS
from mlflow_deploy_plugin.serve.protocols.protocol import Protocol
from mlflow_deploy_plugin.serve.protocols.table import PROTOCOLS

_VERTEX = next((entry for entry in PROTOCOLS if entry.name == "vertex"), INVOCATIONS)
_RETRY_SECONDS = 30
_REQUEST_ID_COLUMN = "_request_id"
"""The log's column with the request id that the caller sent. A feedback key may use
this column like a model column.
"""
JOB_FORMATS = {
    CSV: "csv",
    **dict.fromkeys(jsonlines.MEDIA_TYPES, "jsonl"),
    "application/vnd.apache.parquet": "parquet",
}
"""The formats of a job's files by media type."""
_PIECE_BYTES = 256 * 1024
_HOST = re.compile(r"(\[.*\]|[^:]*)(:[0-9]*)?")
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; "
        "frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_read_file = cache(Path.read_bytes)


def predict(
    server: Server,
    request: RawRequest,
    protocol: Protocol,
    **names: str | None,
) -> RawResponse:
    reply = infer(server, request, server.answering(protocol), **names)
    return http_response(request.path, reply)


def explain(server: Server, request: RawRequest, endpoint: str | None = None) -> RawResponse:
    return http_response(request.path, explanations.explain(server, request, endpoint))


def vertex_predict(server: Server, request: RawRequest) -> RawResponse:
    """Answer Vertex AI's `AIP_PREDICT_ROUTE`. `rawPredict` also sends other formats of
    `/invocations`.
    """
    is_json = media_name(request.headers.get("content-type")) == JSON
    protocol = _VERTEX if is_json else INVOCATIONS
    return predict(server, request, protocol)


def readiness(server: Server, request: RawRequest, body: bytes) -> RawResponse:
    """Return 200 with `body` if an endpoint can answer or no endpoint is configured;
    otherwise 503 with the reason.
    """
    if reason := server.repository.not_ready_reason():
        if server.auth.is_stranger(request.headers, request.caller):
            reason = "the server cannot predict now; send a key to get the reason"
        return error_response(request.path, 503, "TEMPORARILY_UNAVAILABLE", reason)
    return RawResponse(200, body)


def known_key(server: Server, request: RawRequest) -> RawResponse:
    """Return 204. Raises Unauthenticated and NotReady like `Authenticator.find`."""
    if server.auth.is_required:
        server.auth.find(request.headers, request.caller)
    return RawResponse(204, b"", "")


def asset(server: Server, request: RawRequest, file: Path, content_type: str) -> RawResponse:
    """Return a file that the pages load."""
    return RawResponse(200, _read_file(file), content_type, dict(PAGE_HEADERS))


def mlflow_version(server: Server, request: RawRequest) -> RawResponse:
    artifact = server.repository.select_variant(None).loaded.predictor.artifact
    return RawResponse(200, artifact.mlflow_version.encode(), "text/plain; charset=utf-8")


def metrics_page(server: Server, request: RawRequest) -> RawResponse:
    page = server.metrics.page() + gauges_page(
        server.repository.state_dir,
        server.spec.is_on_nvidia,
    )
    return RawResponse(200, page, CONTENT_TYPE)


def metrics_history(server: Server, request: RawRequest) -> RawResponse:
    """Return the metrics of the last hour, or with `?span=day` of the last day, as the
    agent has written them. Raises InvalidRequest for another span.
    """
    requested = parse_qs(request.query).get("span", ["hour"])[-1]
    if span := next((span for span in SPANS if span == requested), None):
        history = read_history(server.repository.state_dir, span)
        return RawResponse(200, history, "application/x-ndjson")
    raise InvalidRequest(f"the span {requested[:20]!r} does not exist; use {' or '.join(SPANS)}")


def json_document(document: Callable[..., Mapping[str, object]]) -> Callable[..., RawResponse]:
    """Return the view of a document about the server, an endpoint or a version: a
    function of the server and the names in the path.
    """

    def view(server: Server, request: RawRequest, **names: str | None) -> RawResponse:
        return RawResponse(200, dump_json(document(server, **names)))

    return view


def v2_repository_index(server: Server, request: RawRequest) -> RawResponse:
    only_ready = management.decode_index(request.body)
    return RawResponse(200, dump_json(management.repository_index(server.repository, only_ready)))


def v2_control(
    change: Callable[[Server, str, Mapping[str, object], str], None],
) -> Callable[..., RawResponse]:
    """Return the view of a load or an unload, which rejects pages of other sites.
    (Browsers do not support gRPC.)
    """

    def view(server: Server, request: RawRequest, endpoint: str) -> RawResponse:
        check_same_site(request, server.spec)
        change(server, endpoint, management.decode_parameters(request.body), request.caller)
        return RawResponse(200, b"")

    return view


def check_same_site(request: RawRequest, spec: ServerSpec) -> None:
    """Reject a request that a browser sends for a page of another site, because a
    server without keys would accept it.

    A page cannot change `Origin` and `Sec-Fetch-Site`. A browser may send a
    `Content-Type` other than JSON without asking the server first
    (https://fetch.spec.whatwg.org/#cors-safelisted-request-header), so such a type
    raises UnsupportedMediaType. If the page's name resolves to this server (DNS
    rebinding), `Host` contains that name; an address in `Host` cannot be rebound. All
    other checks raise CallerRefused. A missing Content-Type is accepted, because
    Triton's client does not send it.
    """
    if "content-type" in request.headers:
        media_type(request.headers["content-type"], (JSON,))
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    match = _HOST.fullmatch(host.lower())
    name = match[1].strip("[]").removesuffix(".") if match else ""
    is_ours = name in ("localhost", spec.host.lower(), *spec.allowed_hosts)
    with suppress(ValueError):
        is_ours = bool(ipaddress.ip_address(name))
    if not is_ours:
        raise CallerRefused(
            f"the Host {host[:100]!r} is not a name of this server: use its address or localhost, "
            "or add the name to server.allowed_hosts (-C server.allowed_hosts=NAME)",
        )
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise CallerRefused(f"a web page of {origin[:100]!r} may not change the served models")
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise CallerRefused("a web page of another site may not change the served models")


def feedback(server: Server, request: RawRequest, endpoint: str | None = None) -> RawResponse:
    """Return 202 after the labels were written to the spool.

    Raises NotReady, NotFound or TooManyRequests, and for an invalid body
    UnsupportedMediaType, InvalidRequest or SchemaMismatch.
    """
    try:
        with server.limits.admitted(request):
            name, served = server.repository.find(endpoint)
            entries = protocol.decode(request.headers.get("content-type"), request.body)
            columns: set[str] = set()
            mask: set[str] = set()
            for variant in served.variants.values():
                captured = variant.captured
                schema = variant.loaded.captured.schema
                masked_inputs = {*captured.mask} & {*schema.names, *captured.keys}
                columns |= {*captured.schema.names} | masked_inputs
                mask.update(captured.mask)
            # A model may not name its columns; then a captured row may have any column.
            if columns and all(
                variant.loaded.captured.schema.columns for variant in served.variants.values()
            ):
                protocol.check_columns(entries, {*columns, _REQUEST_ID_COLUMN}, name)
            try:
                server.capture.write_feedback(
                    name,
                    time.time_ns() // 1000,
                    entries,
                    sorted(mask),
                )
            except OSError as error:
                reason = error.strerror or error  # The file name is omitted.
                raise NotReady(f"feedback cannot be stored now: {reason}", _RETRY_SECONDS) from None
    except OnnxserveError:
        server.metrics.count_feedback("refused", 1)
        raise
    server.metrics.count_feedback("accepted", len(entries))
    return RawResponse(
        202,
        dump_json({"accepted": len(entries)}),
        JSON,
        {"X-Request-Id": request_id(request.headers)},
    )


def create_job(server: Server, request: RawRequest, endpoint: str) -> RawResponse:
    """Return 202 with a job for the file in the body, or for URIs.

    Raises the errors of `identify`, `check_rates`, `media_type`, `select_variant`,
    `read_request` and `accept_job`, and InvalidConfig if this server runs no jobs.
    """
    key = server.auth.identify(request, "infer", endpoint)
    server.limits.check_rates(request, key)
    spec = server.spec.jobs
    state_dir = server.repository.state_dir
    media = media_type(request.headers.get("content-type"), (JSON, *JOB_FORMATS))
    if not (spec.max_jobs and (state_dir / SERVER).exists()):
        raise InvalidConfig(
            "this server runs no jobs: use onnxserve serve, and server.jobs.max_jobs"
        )
    variant = server.repository.select_variant(endpoint)
    loaded = variant.loaded
    if variant.steps is not None or variant.guard is not None:
        raise InvalidConfig(
            "this endpoint has steps or a guard, which jobs do not apply: send the rows to its "
            "route /invocations"
        )
    served = {**vars(loaded), "model_uri": f"models:/{loaded.model}/{loaded.version}"}
    fields: dict[str, object]
    upload = None
    if media == JSON:
        fields = json_object(request.body)
    else:
        upload = request.upload or [request.body]
        fields = dict(parse_qsl(request.query))
        fields |= {"input": f"input.{JOB_FORMATS[media]}", "output": ""}
    fields |= {"endpoint": endpoint, "variant": served, "caller": key.name if key else ""}
    job = accept_job(state_dir, spec, read_request(spec, fields, upload is not None), upload)
    location = {"Location": f"{request.path}/{job.folder.name}"}
    return RawResponse(202, dump_json(job.document), JSON, location)


def job(server: Server, request: RawRequest, endpoint: str, job: str) -> RawResponse:
    """Describe a job, which DELETE has cancelled before."""
    found = find_job(server.repository.state_dir, endpoint, job)
    if request.method == "DELETE" and not found.is_ended:
        found.cancel_mark.touch()
    return RawResponse(200, dump_json(found.document))


def job_result(server: Server, request: RawRequest, endpoint: str, job: str) -> RawResponse:
    """Return the predictions of a file, or with `?rejected=true` the skipped rows.
    Raises NotFound if there are none.
    """
    found = find_job(server.repository.state_dir, endpoint, job)
    pattern = "output/_rejected/*" if request.query == "rejected=true" else "output/input.*"
    path = next(found.folder.glob(pattern), None)
    if path is None or found.state.state != "succeeded":
        reason = f": {found.state.error}" if found.state.error else ""
        raise NotFound(f"job {job} has no such file: its state is {found.state.state}{reason}")
    media = next(name for name, kind in JOB_FORMATS.items() if path.suffix == f".{kind}")
    response = RawResponse(200, b"", media)
    if request.method != "HEAD":
        read = partial(path.open("rb").read, _PIECE_BYTES)
        response.pieces = (piece for piece in iter(read, b""))
    return response
