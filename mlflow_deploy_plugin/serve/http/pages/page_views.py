"""The pages. Templates escape all text, and the content security policy allows only
this server's scripts.
"""

import json
import os
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address, ip_network
from itertools import islice, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import parse_qs

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mlflow_deploy_plugin.core.column_names import TRIED_ID, is_prediction
from mlflow_deploy_plugin.core.errors import NotFound, NotReady, OnnxserveError
from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES
from mlflow_deploy_plugin.core.statedir.files import SPOOL
from mlflow_deploy_plugin.core.version import __version__
from mlflow_deploy_plugin.serve.http.openapi import document
from mlflow_deploy_plugin.serve.http.openapi.document import DescribedEndpoint, describe_endpoint
from mlflow_deploy_plugin.serve.http.openapi.operations import TAGS
from mlflow_deploy_plugin.serve.http.responses import RawResponse
from mlflow_deploy_plugin.serve.http.views import PAGE_HEADERS, check_same_site
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.observability.recent_requests import RecentRequest
from mlflow_deploy_plugin.serve.protocols.content import dump_json
from mlflow_deploy_plugin.serve.protocols.examples import Example, invocations_example
from mlflow_deploy_plugin.serve.protocols.invocation_tables import BODY_FORMS
from mlflow_deploy_plugin.serve.protocols.invocations import csv_example
from mlflow_deploy_plugin.serve.protocols.predict import has_probabilities
from mlflow_deploy_plugin.serve.protocols.v2 import v2_example
from mlflow_deploy_plugin.serve.protocols.v2_tensors import dtype_of
from mlflow_deploy_plugin.serve.runtime.artifact import Tensor
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.log_columns import as_text, to_log_columns
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.spool.frames import segments
from mlflow_deploy_plugin.serve.spool.spool_reader import CapturedBatch, read_last_batches

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_HTML = "text/html; charset=utf-8"
_HOST = re.compile(r"[A-Za-z0-9.\-\[\]:]{1,255}")
_PREFIX = re.compile(r"(?:/(?!\.\.?(?:/|$))[A-Za-z0-9._~-]+){1,16}")
_TRUSTED_PROXIES = "127.0.0.1,::1"
"""gunicorn's default for FORWARDED_ALLOW_IPS."""
_MOST_ENDPOINTS = 500
"""The maximum number of endpoints that a page lists; other endpoints have pages at
their addresses.
"""
_MOST_REQUESTS = 100
_MOST_COLUMNS = 100
_MOST_CHARACTERS = 200
_MOST_NUMBERS = 8
"""Limits of the page Requests: requests, columns per request, characters per value, and
numbers per tensor.
"""
_MOST_SEGMENTS = 16
_TAIL_BYTES = 1024 * 1024
"""The page reads the newest segments, and decodes only their ends. Earlier requests are
shown without values.
"""
_ORIGIN = ("status", "endpoint", "variant", "version", "protocol")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def openapi(server: Server, request: RawRequest, endpoint: str | None) -> RawResponse:
    """Return the OpenAPI document of one or all endpoints. Raises NotFound or NotReady
    if the endpoint does not exist or cannot answer.
    """
    only = None if endpoint is None else describe_endpoint(server, endpoint).endpoint
    content = document.document(server, only, _root(request) or "/")
    return RawResponse(200, dump_json(content), headers={"Cache-Control": "no-store"})


def _root(request: RawRequest) -> str:
    """Return the path that a trusted proxy removes from the server's paths, such as
    `/models`; empty without one.
    """
    sent = request.headers.get("x-forwarded-prefix", "").rstrip("/")
    # Two slashes at the start would lead to another host.
    if not sent or not _PREFIX.fullmatch(sent):
        return ""
    trusted = os.environ.get("FORWARDED_ALLOW_IPS", _TRUSTED_PROXIES)
    networks = [entry.strip() for entry in trusted.split(",")]
    if "*" in networks:
        return sent
    with suppress(ValueError):  # A Unix socket has no address.
        peer = ip_address(request.client.partition("%")[0])
        peer = getattr(peer, "ipv4_mapped", None) or peer
        for network in networks:
            with suppress(ValueError):
                if peer in ip_network(network, strict=False):
                    return sent
    return ""


def _try_values(
    server: Server,
    request: RawRequest,
    subject: DescribedEndpoint,
) -> dict[str, Any]:
    """Return the form's fields, the data for the page's script, an example and a body
    for the text field.
    """
    schema = subject.schema
    example = subject.example
    artifact = subject.artifact
    categories = {**artifact.categories, **artifact.refusals.categories}
    fields = form_fields(schema, example, categories, subject.variant.capture.keys)
    route = "predict/batch" if has_probabilities(artifact) else "invocations"
    meanings = Counter(field.meaning for field in fields if field.kind != "tensor")
    shared_meaning = next(
        (meaning for meaning, count in meanings.most_common(1) if count >= _MANY_FIELDS), ""
    )
    page_data = {
        "predictionPath": f"{_root(request)}{subject.path}/{route}",
        "isTable": bool(schema.columns),
        "requestId": TRIED_ID,
        "fields": [asdict(field) for field in fields],
    }
    if schema.columns:
        pasted = csv_example(schema, example)
    else:
        pasted = _json_text(invocations_example(schema, example))
    return {
        "fields": fields,
        "shared_meaning": shared_meaning,
        "page_data": page_data,
        "pasted": pasted,
        "example": example,
    }


def _docs_values(
    server: Server,
    request: RawRequest,
    subject: DescribedEndpoint,
) -> dict[str, Any]:
    """Return the routes, the fields and an example of the endpoint."""
    if request.headers.get("x-forwarded-proto") == "https":
        scheme = "https"
    else:
        scheme = server.spec.scheme
    host = request.headers.get("host", "")
    host = host if _HOST.fullmatch(host) else "127.0.0.1:8080"
    schema = subject.schema
    example = subject.example
    base = f"{scheme}://{host}{_root(request)}"
    path = f"{subject.path}/invocations"
    takes_keys = server.spec.takes_keys
    return {
        "fields": form_fields(schema, example),
        "why_no_fields": subject.artifact.undescribed,
        "outputs": subject.artifact.outputs,
        "snippets": snippets(base, path, subject.endpoint, schema, example, takes_keys),
        "openapi": document.document(server, only=subject.endpoint),
        "tags": TAGS,
        "json_text": _json_text,
    }


def _page(
    template: str,
    values: Callable[[Server, RawRequest, DescribedEndpoint], dict[str, Any]],
    server: Server,
    request: RawRequest,
    endpoint: str | None,
) -> RawResponse:
    """Return the page of an endpoint (None: the default endpoint), or a notice with the
    reason why it has no page.

    The notice of the default endpoint has the status 200, because the server is alive.
    """
    status = 200
    subject = None
    template_values = {}
    try:
        subject = describe_endpoint(server, endpoint)
        template_values = values(server, request, subject)
    except (NotReady, NotFound) as error:
        status = 200 if endpoint is None else error.http_status
        template = "notice.html"
        template_values = {"message": error.message, "is_starting": status != 404}
    key = server.auth.known(request)
    allowed = key.endpoints if key is not None else ()
    lazy = server.repository.lazy
    if lazy is not None and lazy.uri and endpoint is None:
        template = "registry.html"
        # A key for single endpoints does not reach this page.
        entries = sorted(lazy.index(), key=lambda entry: (entry["state"] != "READY", entry["name"]))
        template_values = {
            "models": entries[:_MOST_ENDPOINTS],
            "count": len(entries),
            "sizes": lazy.sizes(),
            "lazy": lazy,
        }
    endpoints = [name for name in server.repository.table if not allowed or name in allowed]
    response = _render(
        template,
        request,
        subject=subject,
        artifact=subject.artifact if subject else None,
        variants=subject.served.answering if subject else (),
        endpoints=endpoints[:_MOST_ENDPOINTS],
        **template_values,
    )
    response.status = status
    return response


def _render(template: str, request: RawRequest, **values: Any) -> RawResponse:
    html = _TEMPLATES.get_template(template).render(
        onnxserve_version=__version__, root=_root(request), **values
    )
    return RawResponse(200, html.encode(), _HTML, dict(PAGE_HEADERS))


def _requests(server: Server, request: RawRequest, endpoint: str | None) -> RawResponse:
    """Return the last requests to the endpoint (None: to the server) as a page; as JSON
    if text is not accepted.

    Values, predictions and messages of failed predictions are read from the spool,
    which has only data that `capture` permits. Strangers see neither these data nor
    paths nor ids. `?status` is a status, or a class such as 4xx. `?find` is a business
    id, a prediction id or the beginning of an event time. Raises NotFound if the
    endpoint does not exist.
    """
    if endpoint is not None:
        server.repository.find(endpoint)
    # The values are for callers with a key, or for this site's pages on a server that
    # other machines cannot use.
    shows_values = server.auth.is_required
    with suppress(OnnxserveError):
        check_same_site(request, server.spec)
        shows_values = shows_values or not server.spec.insecure
    query = parse_qs(request.query)
    status = query.get("status", [""])[-1]
    find = query.get("find", [""])[-1].strip() if shows_values else ""
    # The origin of a request, `row[0]`, begins with its status and its endpoint.
    recent = [row for row in server.recent.read() if endpoint in (None, row[0][1])]
    recent = [row for row in recent if str(row[0][0]).startswith(status.rstrip("x"))]
    if not find:
        recent = recent[:_MOST_REQUESTS]
    rows = _request_rows(server, recent, find, shows_values)
    document = {"requests": rows, "shows_values": shows_values, "status": status, "find": find}
    if "text/" not in request.headers.get("accept", "text/html"):
        return RawResponse(200, dump_json(document), headers={"Cache-Control": "no-store"})
    subject = {"endpoint": endpoint} if endpoint else None
    return _render("requests.html", request, subject=subject, **document)


@dataclass(frozen=True, slots=True)
class _Captured:
    """A captured request.

    Attributes:
        event_time: the time that the caller has sent, as text; empty if it has sent no
            time.
        values: the first row, as short texts by column of the log.
        keys: the values of the business ids by column, one per row.
    """

    event_time: str
    values: Mapping[str, str | None]
    keys: Mapping[str, Array]

    def is_found(self, text: str) -> bool:
        """Return True if the text is one of the business ids, or the beginning of the
        event time (at least a day).
        """
        day = text.rstrip("Z").replace(" ", "T")
        if _DAY.match(text) and self.event_time.startswith(day):
            return True
        return any(text in map(as_text, array.flat) for array in self.keys.values())


_NOT_CAPTURED = _Captured(event_time="", values={}, keys={})


def _request_rows(
    server: Server,
    recent: Sequence[RecentRequest],
    find: str,
    shows_values: bool,
) -> list[dict[str, Any]]:
    """Return the requests as JSON, or only those that `find` finds: a prediction id, a
    business id or the beginning of an event time; "" finds all.
    """
    captured_by_id: dict[str, _Captured] = {}
    if shows_values:
        # A worker writes two segments at a time: the second is for its shadows.
        segment_count = min(2 * server.spec.workers, _MOST_SEGMENTS)
        for segment in segments(server.repository.state_dir / SPOOL)[-segment_count:]:
            with suppress(OSError):  # The agent may have removed the segment.
                for batch in read_last_batches(segment, _TAIL_BYTES):
                    if not batch.is_shadow and batch.rows:
                        captured_by_id |= _select_requests(batch, {row[4] for row in recent})
    rows = []
    for row in recent:
        captured = captured_by_id.get(row[4], _NOT_CAPTURED)
        if find in ("", row[4]) or captured.is_found(find):
            rows.append(_request_row(row, captured, shows_values))
    return rows[:_MOST_REQUESTS]


def _time_text(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="milliseconds")


def _request_row(
    recent: RecentRequest,
    captured: _Captured,
    shows_values: bool,
) -> dict[str, Any]:
    """Return a request as JSON, with the first row of a captured request. Strangers see
    no path, id or message.
    """
    origin, arrived, seconds, rows, prediction_id, code, message = recent
    values = captured.values.items()
    document: dict[str, Any] = {
        "time": _time_text(arrived),
        "event_time": captured.event_time,
        **dict(zip(_ORIGIN, origin, strict=True)),
        "milliseconds": round(seconds * 1000, 3),
        "rows": rows or None,
        "prediction_id": prediction_id,
        "error_code": code,
        "message": message or captured.values.get("_message") or "",
        "keys": {name: _short(array[0]) for name, array in captured.keys.items()},
        # A failed request has only its message.
        "values": {name: text for name, text in values if not (code or is_prediction(name))},
        "predictions": {name: text for name, text in values if is_prediction(name)},
    }
    if not (shows_values and (captured.values or not code)):
        document["prediction_id"] = ""
    if not shows_values:
        document["protocol"] = document["protocol"].partition(" ")[0]
        document["message"] = ""
    return document


def _select_requests(batch: CapturedBatch, ids: set[str]) -> dict[str, _Captured]:
    """Return the requests of a batch with these prediction ids, by id."""
    columns: Mapping[str, Array] = batch.outputs
    if not batch.is_failed:  # A failed batch has only its messages.
        model = batch.model
        columns = to_log_columns(model.schema, model.prediction, batch.feeds, batch.outputs)
        columns = columns | batch.masked
    content = batch.prediction_ids.content.tobytes()
    captured = {}
    for index, (begin, end) in enumerate(pairwise(batch.prediction_ids.bounds.tolist())):
        prediction_id = content[begin:end].decode("ascii", "replace")
        if prediction_id not in ids:
            continue
        rows = slice(index * batch.rows, (index + 1) * batch.rows)
        event_time = batch.event_times[index]
        captured[prediction_id] = _Captured(
            # Without a time from the caller, the log has the time of the request.
            "" if event_time == batch.received_times[index] else _time_text(int(event_time)),
            {
                name: _short(array[rows][0], _prediction_text if is_prediction(name) else as_text)
                for name, array in islice(columns.items(), _MOST_COLUMNS)
            },
            {name: columns[name][rows] for name in batch.model.keys if name in columns},
        )
    return captured


def _prediction_text(value: object) -> str | None:
    """Return the text of a value of a prediction: a float with six digits, but with all
    digits before the decimal point.
    """
    if isinstance(value, float | np.floating):
        value = float(value)
        if abs(value) < 1e6:
            return as_text(float(f"{value:.6g}"))
        value = np.round(value)
    return as_text(value)


def _short(value: object, to_text: Callable[[object], str | None] = as_text) -> str | None:
    """Return a value, or the first numbers of a tensor, as a short text; None for a
    missing value.
    """
    text = to_text(value)
    if isinstance(value, np.ndarray):
        text = ", ".join(to_text(number) or "null" for number in value.flat[:_MOST_NUMBERS])
        if value.size > _MOST_NUMBERS:
            text += ", …"
    if text is None or len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]}…"


PAGES: Mapping[str, Callable[[Server, RawRequest, str | None], RawResponse]] = {
    "try": partial(_page, "try.html", _try_values),
    "docs": partial(_page, "docs.html", _docs_values),
    "requests": _requests,
    "openapi": openapi,
}
"""The view of each page."""


def _json_text(body: dict[str, Any]) -> str:
    return dump_json(body).decode() if body else ""


Kind = Literal["number", "boolean", "string", "datetime", "tensor"]

_KIND_WORDS = {
    "f": ("number", "numbers"),
    "i": ("whole number", "whole numbers"),
    "u": ("whole number", "whole numbers"),
    "b": ("true or false", "true or false"),
    "str": ("text", "texts"),
    "date": ("date and time in UTC", ""),
}
"""The words for a single value and for several values, by numpy kind, `str` or `date`.
"""
_MANY_FIELDS = 8
"""Number of fields of the same kind from which the page states the kind only once."""
_LEAST_SIDE = 8
_MOST_SIDE = 4096
"""Limits of an image's sides in pixels. Smaller tensors are rarely images; larger
images overload a browser.
"""


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The layout of a tensor that is an image: NCHW, NHWC or NHW, with a batch of one.

    `channels` is 1 (grey) or 3 (RGB). `is_scaled` is True if pixels of 0–255 are scaled
    to 0–1, as for floating point.
    """

    layout: Literal["NCHW", "NHWC", "NHW"]
    channels: int
    height: int
    width: int
    is_scaled: bool


@dataclass(frozen=True, slots=True)
class FormField:
    """An input of the form.

    Attributes:
        quoted_name: the name as it is quoted in the server's errors.
        type: the type, or the dtype and shape, in technical terms; `words` describe it
            in plain words.
        is_nullable: True if an empty field is sent as null.
        choices: the categories of the column as texts; empty if they are unknown.
        is_key: True for a column of `capture.keys`, which is sent with the inputs and
            not passed to the model.
    """

    id: str
    name: str
    quoted_name: str
    kind: Kind
    type: str
    words: str
    value: str = ""
    is_nullable: bool = False
    is_required: bool = True
    choices: tuple[str, ...] = ()
    picture: ImageInput | None = None
    is_key: bool = False

    @property
    def meaning(self) -> str:
        return f"{self.words}, may be empty" if self.is_nullable else self.words


def form_fields(
    schema: Schema,
    example: Example,
    categories: Mapping[str, Sequence[str | int | float | bool]] = MappingProxyType({}),
    keys: Sequence[str] = (),
) -> list[FormField]:
    """Return form fields in the signature's order, with the example's first row,
    followed by the fields of the `keys`.

    `categories` are by column name. A model whose signature is unknown has no fields.
    """
    key_fields = [
        FormField(
            id=f"key-{position}",
            name=name,
            quoted_name=repr(name),
            kind="string",
            type="string",
            words="business id, captured with the request and not passed to the model",
            is_nullable=True,
            is_required=False,
            is_key=True,
        )
        for position, name in enumerate(keys)
    ]
    if not schema.columns:
        fields = [
            _tensor_field(position, tensor, schema, example)
            for position, tensor in enumerate(schema.tensors)
        ]
        return fields + key_fields if fields else []
    row = example.record() if example.values else {}
    kinds: dict[str, Kind] = {"str": "string", "bool": "boolean", "date": "datetime"}
    fields = []
    for position, column in enumerate(schema.columns):
        name = column.name
        dtype = COLUMN_TYPES.get(column.type, "str")
        is_nullable_text = dtype == "str" and schema.missing_texts.get(name) is not None
        value = row.get(name)
        if value is None or value != value:  # NaN is a missing number.
            value = ""
        shown = dtype
        if column.is_date:
            shown = "date"
            value = _date_text(str(value))
        fields.append(
            FormField(
                id=f"field-{position}",
                name=name,
                quoted_name=repr(name),
                kind=kinds.get(shown, "number"),
                type=column.type,
                words=_words(shown)[0],
                is_nullable=is_nullable_text or dtype.startswith("float"),
                is_required=column.required,
                value=_field_text(value),
                choices=tuple(map(_field_text, categories.get(name, ()))),
            ),
        )
    return fields + key_fields


def _words(dtype: str) -> tuple[str, str]:
    """Return the words for a single value and for several values."""
    return _KIND_WORDS.get(dtype) or _KIND_WORDS[np.dtype(dtype).kind]


def image_input(tensor: Tensor) -> ImageInput | None:
    """Return the image input of a tensor, or None if the tensor is not a batch of
    images.
    """
    kind = np.dtype(tensor.dtype).kind if tensor.dtype != "str" else ""
    if kind != "f" and tensor.dtype != "uint8":
        return None
    match tensor.shape:
        case (-1 | 1, (1 | 3) as channels, height, width):
            picture = ImageInput("NCHW", channels, height, width, kind == "f")
        case (-1 | 1, height, width, (1 | 3) as channels):
            picture = ImageInput("NHWC", channels, height, width, kind == "f")
        case (-1 | 1, height, width):
            picture = ImageInput("NHW", 1, height, width, kind == "f")
        case _:
            return None
    if _LEAST_SIDE <= min(height, width) <= max(height, width) <= _MOST_SIDE:
        return picture
    return None


def _tensor_field(position: int, tensor: Tensor, schema: Schema, example: Example) -> FormField:
    """Return the field of a tensor, with the example's first row as JSON if the tensor
    has rows; without an example, the field is empty.
    """
    name = tensor.name or schema.inputs[0].name
    sizes = " × ".join(map(str, tensor.shape)).replace("-1", "any")
    # The only tensor may have no name in the signature; then the graph's name is used.
    values = example.values.get(tensor.name, example.values.get(name))
    is_row = schema.has_rows and tensor.shape[:1] in ((-1,), (1,))
    example_text = ""
    if values is not None:
        example_rows = values[:1] if is_row else values
        example_text = dump_json(example_rows).decode()
    dtype = "string" if tensor.dtype == "str" else tensor.dtype
    return FormField(
        id=f"field-{position}",
        name=name,
        quoted_name=repr(tensor.name),
        kind="tensor",
        type=f"{dtype}, {sizes}",
        words=f"{_words(tensor.dtype)[1]}, {sizes}",
        value=example_text,
        picture=image_input(tensor),
    )


def _date_text(text: str) -> str:
    """Return an ISO 8601 date in UTC for an input of the type `datetime-local`; empty
    for another text.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return ""
    in_utc = moment.astimezone(UTC) if moment.tzinfo else moment
    return in_utc.replace(tzinfo=None).isoformat(timespec="milliseconds")


def _field_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return dump_json(value).decode()


def snippets(
    base: str,
    path: str,
    endpoint: str,
    schema: Schema,
    example: Example,
    takes_keys: bool = False,
) -> dict[str, str]:
    """Return a dict from tool names to runnable code that requests predictions for the
    example.

    `base` is the server's address and `path` the endpoint's `/invocations`. With
    `takes_keys`, KEY is a placeholder.
    """
    body = invocations_example(schema, example)
    if not body:
        return {}
    scheme, _, host = base.partition("://")
    # The data of the tensors by datatype and name: a loop for each datatype is short.
    tensors = defaultdict[str, dict[str, Any]](dict)
    for tensor in v2_example(schema, example).get("inputs", ()):
        tensors[tensor["datatype"]][tensor["name"]] = tensor["data"]
    code_by_tool = {}
    for tool in ("curl", "Python, requests", "Python, tritonclient"):
        if tool != "Python, tritonclient" or tensors:
            template = _TEMPLATES.get_template(f"{tool.rpartition(' ')[2]}.txt")
            code_by_tool[tool] = template.render(
                scheme=scheme,
                host=host,
                url=base + path,
                endpoint=endpoint,
                body=body,
                json=json.dumps(body, ensure_ascii=False),
                has_predictions=bool(BODY_FORMS & body.keys()),
                tensors=tensors,
                takes_keys=takes_keys,
                headers=", headers={'Authorization': 'Bearer KEY'}" if takes_keys else "",
                dtype_of=dtype_of,
                quote=shlex.quote,
                repr=repr,
            )
    return code_by_tool
