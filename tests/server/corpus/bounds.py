"""Every bound that refuses bad input: its place, and how to remove it, so that the corpus proves that it holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_OURS = "mlflow_deploy_plugin."
_HTTP, _PROTOCOLS, _RUNTIME = f"{_OURS}server.http.", f"{_OURS}server.protocols.", f"{_OURS}runtime."


@dataclass(frozen=True)
class Removal:
    """The removal of a bound in one of the workers, or in the function that both answer by.

    Attributes:
        patched: what stands in for attributes of modules and classes: Python expressions, in which `original` is what
            was there.
        fields: of the server's spec.
    """

    of: Literal["answer", "fast", "gthread"]
    patched: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


def _answer(**patched: str) -> tuple[Removal, ...]:
    """Return a removal from the function. The names have `__` for the dots below the package."""
    return (Removal("answer", {_OURS + name.replace("__", "."): text for name, text in patched.items()}),)


def _both(fast: Mapping[str, str], gthread: Mapping[str, str] | None = None) -> tuple[Removal, ...]:
    """Return removals from both workers; the same if the second is not given."""
    patched = (("fast", fast), ("gthread", fast if gthread is None else gthread))
    return tuple(Removal(of, {_HTTP + name: text for name, text in names.items()}) for of, names in patched)  # type: ignore[arg-type]


_NOTHING = "lambda *_, **__: None"
BOUNDS: dict[str, tuple[str, tuple[Removal, ...]]] = {
    "request line": (
        "http/parser.py: _LINE",
        _both({"parser._LINE": r're.compile(rb"([^ \t]*)[ \t]*([^ ]*).*?(.?)", re.DOTALL)'}),
    ),
    "target": (
        "http/parser.py: decode_path",
        _both(dict.fromkeys(["parser.decode_path", "app.decode_path"], "lambda target: target.partition('?')[0]")),
    ),
    "names in paths": ("http/routes.py: _match", _both({"routes._match": "lambda path: original('/ping')"})),
    "names of models": ("server/models/repository.py: lease", ()),
    "methods": (
        "http/routes.py: _dispatch",
        _both({"routes._match": "lambda path: ({**(m := original(path)[0]), 'DELETE': next(iter(m.values()))}, {})"}),
    ),
    "host": ("http/parser.py: check_host", _both(dict.fromkeys(["parser.check_host", "app.check_host"], _NOTHING))),
    "header fields": (
        "http/parser.py: _FIELD",
        _both({"parser._FIELD": "re.compile('([^:]*):?[ ]*(.*)', re.DOTALL)"}),
    ),
    "lengths": (
        "http/parser.py: _length",
        _both({"parser._length": "lambda headers, is_first_minor: 0"}),
    ),
    "transfer coding": (
        "http/parser.py: _length",
        _both({"parser._length": "lambda headers, is_first_minor: 0"}),
    ),
    "chunks": (
        "http/parser.py: _SIZE",
        _both({"parser._SIZE": "re.compile(rb'[^0-9a-f]*([0-9a-f]*).*')"}),
    ),
    "request line bytes": (
        "http/parser.py: REQUEST_LINE_BYTES",
        _both({"parser.REQUEST_LINE_BYTES": "10**6"}),
    ),
    "field bytes": (
        "http/parser.py: FIELD_BYTES",
        _both({"parser.FIELD_BYTES": "10**6"}),
    ),
    "fields": (
        "http/parser.py: FIELDS",
        _both({"parser.FIELDS": "10**6"}),
    ),
    "expectation": (
        "http/parser.py: _expects",
        _both({"parser._expects": "lambda headers: False"}),
    ),
    "body bytes": (
        "http/parser.py: body_parser; http/app.py: _read_body",
        _both(
            {"workers.connection.body_parser": "lambda length, limit: original(length, 10**15)"},
            {"app._read_body": "lambda stream, length, limit: original(stream, length, 10**15)"},
        ),
    ),
    "seconds of a head": (
        "http/workers/connection.py: check_deadline; http/workers/gthread_worker.py: murder_pending",
        _both(
            {"workers.connection.HttpConnection.check_deadline": _NOTHING},
            {"workers.gthread_worker.GracefulThreadWorker.murder_pending": _NOTHING},
        ),
    ),
    "seconds of a body": (
        "http/workers/connection.py: check_deadline; http/workers/gthread_worker.py: murder_pending",
        _both(
            {"workers.connection.HttpConnection.check_deadline": _NOTHING},
            {"workers.gthread_worker.GracefulThreadWorker.murder_pending": _NOTHING},
        ),
    ),
    "callers": (
        "http/views.py: check_same_site",
        _answer(server__http__views__check_same_site=_NOTHING),
    ),
    "content type": (
        "protocols/content.py: media_type",
        _answer(server__protocols__content__media_type="lambda content_type, accepted: accepted[0]"),
    ),
    "encoding": (
        "http/negotiation.py: decode_body",
        _answer(server__http__routes__decode_body="lambda request, limit: request"),
    ),
    "decompressed bytes": (
        "http/negotiation.py: decode_body",
        _answer(server__http__routes__decode_body="lambda request, limit: original(request, 10**12)"),
    ),
    "gzip members": (
        "http/negotiation.py: _MOST_MEMBERS",
        _answer(server__http__negotiation___MOST_MEMBERS="10**9"),
    ),
    "zstd window": (
        "http/negotiation.py: _ZSTD_WINDOW",
        _answer(server__http__negotiation___ZSTD_WINDOW="2**27"),
    ),
    "JSON": (
        "protocols/content.py: load_json, by orjson",
        _answer(server__protocols__protocol_table__load_json="lambda body: []"),
    ),
    "depth of JSON": ("orjson: 1,024 levels", ()),
    "depth around NaN": (
        "protocols/content.py: DEEPEST",
        _answer(server__protocols__content__DEEPEST="10**9", server__protocols__content___TOO_DEEP="'too deep'"),
    ),
    "kinds of JSON": ("where each document is read", ()),
    "depth of base64": ("protocols/tfserving.py: _DEEPEST", _answer(server__protocols__tfserving___DEEPEST="10**9")),
    "types": (
        "runtime/values.py: _ACCEPTED",
        _answer(runtime__values___ACCEPTED="dict.fromkeys(original, frozenset('fibsn?'))"),
    ),
    "columns": ("runtime/schema.py: from_rows", _answer(runtime__schema__Counter="lambda names: original()")),
    "rows": ("runtime/schema.py: from_rows", ()),
    "shapes": (
        "runtime/values.py: _check_nesting, _SOURCES",
        _answer(
            runtime__values___check_nesting=_NOTHING, runtime__values___SOURCES="dict.fromkeys(original, 'fiubUO')"
        ),
    ),
    "V2": ("protocols/v2.py, v2_tensors.py", _answer(server__protocols__v2___UNSUPPORTED="()")),
    "V2 rank": ("protocols/v2_tensors.py: MAX_RANK", _answer(server__protocols__v2_tensors__MAX_RANK="10**9")),
    "V2 counts": (
        "protocols/v2_tensors.py: _check_count",
        _answer(server__protocols__v2_tensors___check_count=_NOTHING),
    ),
    "binary tensors": (
        "protocols/v2_tensors.py: from_binary",
        _answer(server__protocols__v2__from_binary="lambda head, data: original(head, bytes(data)[:16].ljust(16))"),
    ),
    "TensorFlow": ("protocols/tfserving.py: decode", ()),
    "MLflow": ("protocols/mlflow.py: decode_document", ()),
    "event time": (
        "server/inference/messages.py: event_time",
        _answer(server__inference__pipeline__event_time=_NOTHING),
    ),
    "event years": (
        "inference/messages.py: _FIRST_EVENT, _MOST_AHEAD",
        _answer(
            server__inference__messages___FIRST_EVENT="original.min.replace(tzinfo=original.tzinfo)",
            server__inference__messages___MOST_AHEAD="original.max",
        ),
    ),
    "CSV": (
        "protocols/mlflow.py",
        _answer(server__protocols__mlflow___without_underscore="lambda text: text.replace('_', '')"),
    ),
    "field of CSV": ("csv.field_size_limit: 131,072 characters", ()),
    "JSON Lines": (
        "protocols/jsonlines.py: _feeds",
        _answer(server__protocols__jsonlines__json_type="lambda value: 'object'"),
    ),
    "numpy": ("protocols/npy.py: _LONGEST_HEADER", _answer(server__protocols__npy___LONGEST_HEADER="10**9")),
    "arrow": ("pyarrow; protocols/arrow.py", ()),
    "arrow file": ("pyarrow; protocols/arrow.py", ()),
    "parquet": ("pyarrow; protocols/parquet_metadata.py", ()),
    "Arrow's sizes": (
        "protocols/arrow.py: check_stream_size",
        _answer(server__protocols__arrow__check_stream_size=_NOTHING),
    ),
    "rows of a table": (
        "protocols/arrow.py: _check_value_count",
        _answer(
            server__protocols__arrow___check_value_count=_NOTHING,
            server__protocols__arrow__to_numpy="lambda array, limit, budget: original(array, 10**12, budget)",
        ),
    ),
    "words of a dictionary": (
        "protocols/arrow_columns.py: StringBudget",
        _answer(server__protocols__arrow__StringBudget="lambda left: original(10**12)"),
    ),
    "Parquet's pages": (
        "protocols/parquet_metadata.py: check_pages",
        _answer(server__protocols__arrow__check_pages=_NOTHING),
    ),
    "Parquet's prefixes": (
        "protocols/parquet_metadata.py: _DELTA_BYTE_ARRAY",
        _answer(server__protocols__parquet_metadata___DELTA_BYTE_ARRAY="-1"),
    ),
    "Parquet's footer": (
        "protocols/parquet_metadata.py: _LARGEST_FOOTER",
        _answer(server__protocols__parquet_metadata___LARGEST_FOOTER="10**9"),
    ),
    "the repository": (
        "protocols/v2_extensions.py: check_unload_parameters",
        _answer(server__protocols__v2_extensions__check_unload_parameters=_NOTHING),
    ),
    "bytes of a config": (
        "protocols/v2_extensions.py: LARGEST_CONFIG_BYTES",
        _answer(server__protocols__v2_extensions__LARGEST_CONFIG_BYTES="10**9"),
    ),
    "YAML of a config": (
        "runtime/mlmodel.py: check_yaml",
        _answer(server__protocols__v2_extensions__check_yaml=_NOTHING),
    ),
    "queue": ("runtime/batcher.py", (Removal("fast", fields={"max_queue_size": 1000}),)),
    "requests in flight": ("server/inference/limits.py", (Removal("fast", fields={"max_concurrent_requests": None}),)),
    "rate": ("server/inference/limits.py", (Removal("fast", fields={"rate_limit": None}),)),
    "deadline": ("runtime/batcher.py; server/inference/dataplane.py", ()),
}
"""The place of each bound, and its removals; none if it is not one attribute."""
