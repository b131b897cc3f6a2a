"""The fields of the Elastic Common Schema 8.11 that onnxserve logs, with their types.

The names and types are from elastic/ecs, `generated/csv/fields.csv` at v8.11.0.
"""

import json
from datetime import datetime
from ipaddress import ip_address

_TEXT = "keyword"
_NUMBER = "long"
FIELDS = {
    "@timestamp": "date",
    "client.address": _TEXT,
    "client.ip": "ip",
    "ecs.version": _TEXT,
    "error.message": _TEXT,
    "error.stack_trace": _TEXT,
    "error.type": _TEXT,
    "event.category": _TEXT,
    "event.dataset": _TEXT,
    "event.duration": _NUMBER,
    "http.request.body.bytes": _NUMBER,
    "http.request.id": _TEXT,
    "http.request.method": _TEXT,
    "http.response.body.bytes": _NUMBER,
    "http.response.status_code": _NUMBER,
    "log.level": _TEXT,
    "log.logger": _TEXT,
    "log.origin.file.line": _NUMBER,
    "log.origin.file.name": _TEXT,
    "log.origin.function": _TEXT,
    "message": _TEXT,
    "process.name": _TEXT,
    "process.pid": _NUMBER,
    "process.thread.id": _NUMBER,
    "process.thread.name": _TEXT,
    "server.address": _TEXT,
    "service.name": _TEXT,
    "service.node.role": _TEXT,
    "service.version": _TEXT,
    "span.id": _TEXT,
    "trace.id": _TEXT,
    "url.path": _TEXT,
    "user.name": _TEXT,
}
OWN = ("onnxserve.", "labels.")
"""Custom fields, in a namespace that the schema does not use. `labels` is reserved for
users.
"""


def read_line(line):
    """Return the fields of a line by their dotted names.

    Raises:
        AssertionError: a field is not in the schema, or has the wrong type.
    """
    fields = dict(_flat(json.loads(line)))
    assert {"@timestamp", "log.level", "message", "ecs.version"} <= fields.keys(), line
    assert fields["ecs.version"] == "8.11.0"
    for name, value in fields.items():
        if name.startswith(OWN):
            continue
        assert name in FIELDS, f"{name}: no field of the schema; {line}"
        for item in value if isinstance(value, list) else [value]:
            _check(FIELDS[name], item)
    return fields


def _check(kind, value):
    if kind == "long":
        assert isinstance(value, int), value
        return
    assert isinstance(value, str), value
    if kind == "date":
        assert datetime.fromisoformat(value).tzinfo is not None
    if kind == "ip":
        ip_address(value)


def _flat(document, before=""):
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
