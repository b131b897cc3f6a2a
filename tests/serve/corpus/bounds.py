"""The bounds that refuse bad input, with their removals, so that the corpus can prove
that each bound is needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_OURS = "mlflow_deploy_plugin."
_HTTP = f"{_OURS}serve.http."


@dataclass(frozen=True)
class Removal:
    """The removal of a bound in the fast worker, in the WSGI application, or in a
    function that both use.

    Attributes:
        patched: Python expressions that replace attributes of modules and classes;
            `original` is the attribute.
        fields: fields of the server's spec.
    """

    of: Literal["answer", "fast", "wsgi"]
    patched: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


def _answer(**patched: str) -> tuple[Removal, ...]:
    """Return a removal in the function. The names have `__` for the dots below the
    package.
    """
    return (
        Removal(
            "answer", {_OURS + name.replace("__", "."): text for name, text in patched.items()}
        ),
    )


def _fast(patched: Mapping[str, str]) -> tuple[Removal, ...]:
    """Return a removal in the fast worker. The names are relative to `serve/http`."""
    return (Removal("fast", {_HTTP + name: text for name, text in patched.items()}),)


def _both(fast: Mapping[str, str], wsgi: Mapping[str, str] | None = None) -> tuple[Removal, ...]:
    """Return removals in the worker and in the WSGI application; without a second
    argument, they are the same.
    """
    return (*_fast(fast), Removal("wsgi", _fast(wsgi or fast)[0].patched))


_NOTHING = "lambda *_, **__: None"
_ANY_TARGET = "lambda target: target.partition('?')[0]"
BOUNDS: dict[str, tuple[Removal, ...]] = {
    "request line": _fast(
        {"parser._LINE": r're.compile(rb"([^ \t]*)[ \t]*([^ ]*).*?(.?)", re.DOTALL)'}
    ),
    "target": _both({"parser.decode_path": _ANY_TARGET}, {"app.decode_path": _ANY_TARGET}),
    "names in paths": _both({"routes._match": "lambda path: original('/ping')"}),
    "names of models": (),  # serve/models/repository.py: lease
    "methods": _both(
        {
            "routes._match": (
                "lambda path: ({**(m := original(path)[0]), 'DELETE': next(iter(m.values()))}, {})"
            )
        }
    ),
    "host": _both({"parser.check_host": _NOTHING}, {"app.check_host": _NOTHING}),
    "header fields": _fast({"parser._FIELD": "re.compile('([^:]*):?[ ]*(.*)', re.DOTALL)"}),
    "lengths": _fast({"parser._length": "lambda headers, is_first_minor: 0"}),
    "transfer coding": _fast({"parser._length": "lambda headers, is_first_minor: 0"}),
    "chunks": _fast({"parser._SIZE": "re.compile(rb'[^0-9a-f]*([0-9a-f]*).*')"}),
    "request line bytes": _fast({"parser.REQUEST_LINE_BYTES": "10**6"}),
    "field bytes": _fast({"parser.FIELD_BYTES": "10**6"}),
    "fields": _fast({"parser.FIELDS": "10**6"}),
    "expectation": _fast(
        {
            "parser._fields": (
                "lambda lines: {k: v for k, v in original(lines).items() if k != 'expect'}"
            )
        }
    ),
    "body bytes": _both(
        {"workers.connection.BodyParser": "lambda length, limit: original(length, 10**15)"},
        {"app._read_body": "lambda request, limit: original(request, 10**15)"},
    ),
    "seconds of a head": _fast({"workers.connection.HttpConnection.check_deadline": _NOTHING}),
    "seconds of a body": _fast({"workers.connection.HttpConnection.check_deadline": _NOTHING}),
    "callers": _answer(serve__http__views__check_same_site=_NOTHING),
    "content type": _answer(
        serve__protocols__content__media_type="lambda content_type, accepted: accepted[0]"
    ),
    "encoding": _answer(serve__http__routes__decode_body="lambda request, limit: request"),
    "decompressed bytes": _answer(
        serve__http__routes__decode_body="lambda request, limit: original(request, 10**12)"
    ),
    "gzip members": _answer(serve__http__encodings___MOST_MEMBERS="10**9"),
    "zstd window": _answer(serve__http__encodings___ZSTD_WINDOW="2**27"),
    "JSON": _answer(serve__protocols__predict__load_json="lambda body: []"),
    "depth of JSON": (),  # orjson: 1,024 levels
    "depth around NaN": _answer(
        serve__protocols__content__DEEPEST="10**9",
        serve__protocols__content___TOO_DEEP="'too deep'",
    ),
    "kinds of JSON": (),  # everywhere a document is read
    "depth of base64": _answer(serve__protocols__tfserving___DEEPEST="10**9"),
    "types": _answer(
        serve__runtime__values___ACCEPTED="dict.fromkeys(original, frozenset('fibsn?'))"
    ),
    "columns": _answer(serve__runtime__schemas__schema__Counter="lambda names: original()"),
    "rows": (),  # serve/runtime/schemas/schema.py: from_rows
    "shapes": _answer(
        serve__runtime__values___check_nesting=_NOTHING,
        serve__runtime__values___SOURCES="dict.fromkeys(original, 'fiubUO')",
    ),
    "V2": _answer(serve__protocols__v2___UNSUPPORTED="()"),
    "V2 rank": _answer(serve__protocols__v2_tensors__MAX_RANK="10**9"),
    "V2 counts": _answer(serve__protocols__v2_tensors___check_count=_NOTHING),
    "binary tensors": _answer(
        serve__protocols__v2__from_binary=(
            "lambda head, data: original(head, bytes(data)[:16].ljust(16))"
        )
    ),
    "TensorFlow": (),  # serve/protocols/tfserving.py: decode
    "MLflow": (),  # serve/protocols/mlflow.py: decode_document
    "event time": _answer(serve__inference__pipeline__event_time=_NOTHING),
    "event years": _answer(
        serve__messages___FIRST_EVENT="original.min.replace(tzinfo=original.tzinfo)",
        serve__messages___MOST_AHEAD="original.max",
    ),
    "CSV": _answer(
        serve__protocols__mlflow__read_column="lambda name, types, fields: "
        "original(name, types, [text.replace('_', '') for text in fields])"
    ),
    "field of CSV": (),  # csv.field_size_limit: 131,072 characters
    "JSON Lines": _answer(
        serve__protocols__jsonlines___feeds="lambda chunk, kind, schema: "
        "original([line for line in chunk if isinstance(line[1], dict)], 'object', schema)"
    ),
    "arrow": (),  # pyarrow; serve/protocols/arrow.py
    "arrow file": (),  # pyarrow; serve/protocols/arrow.py
    "Arrow's sizes": _answer(serve__protocols__arrow__check_stream_size=_NOTHING),
    "rows of a table": _answer(
        serve__protocols__arrow___check_value_count=_NOTHING,
        serve__protocols__arrow__to_numpy=(
            "lambda array, limit, budget: original(array, 10**12, budget)"
        ),
    ),
    "words of a dictionary": _answer(
        serve__protocols__arrow__StringBudget="lambda left: original(10**12)"
    ),
    "the repository": _answer(serve__inference__management__check_unload_parameters=_NOTHING),
    "bytes of a config": _answer(serve__inference__management__LARGEST_CONFIG_BYTES="10**9"),
    "YAML of a config": _answer(serve__inference__management__check_yaml=_NOTHING),
    "queue": (Removal("fast", fields={"max_queue_size": 1000}),),
    "requests in flight": (Removal("fast", fields={"max_concurrent_requests": None}),),
    "rate": (Removal("fast", fields={"rate_limit": None}),),
    "deadline": (),  # serve/runtime/batcher.py; serve/inference/dataplane.py
}
"""The removals of each bound; empty if the bound is not a single attribute but is at
the place in the comment.
"""
OF_THE_CONNECTION = {
    name for name, removals in BOUNDS.items() if all(removal.of == "fast" for removal in removals)
}
"""The bounds of the fast worker only: the parser's, deadlines, and limits of concurrent
requests.
"""
