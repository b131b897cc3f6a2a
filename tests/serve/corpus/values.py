"""Valid bodies that do not fit the model: rows, columns, types, numbers, strings,
shapes.
"""

import json
from dataclasses import replace

from tests.serve.corpus.case import Case, body_cases
from tests.serve.corpus.routes import COLUMNS, LANGUAGES, RECORD, RECORDS, dump, reading, tensor


def _record(record):
    return lambda route: LANGUAGES[route.reads]([record])


def _one(column, value):
    return _record({**RECORD, column: value})


TYPES = body_cases(
    RECORDS,
    {
        "a text for a number": (_one("distance", "far"), "distance", "'far'"),
        "null for an integer": (_one("hour", None), "hour", "null"),
        "half a surrogate pair for a text": _one("carrier", "\ud800"),
    },
)


def _without(column):
    return {name: value for name, value in RECORD.items() if name != column}


def _split(columns, *rows):
    """Return a table as columns and rows."""

    def body(route):
        return dump({next(iter(json.loads(route.good))): {"columns": columns, "data": list(rows)}})

    return body


def _doubled(route):
    """Repeat the last key of each object, which no JSON encoder would do."""
    return route.good.replace(b'"late": true}', b'"late": true, "late": 5}')


def _document(**fields):
    return lambda route: dump(fields)


_ROW = list(RECORD.values())
COLUMN_CASES = [
    *body_cases(
        RECORDS,
        {
            **{f"without {column}": (_record(_without(column)), column) for column in COLUMNS},
            "a column whose name is mistyped": (
                _record({**_without("distance"), "distnce": 1.5}),
                "'distnce'",
                "distance",
            ),
        },
    ),
    *body_cases(
        reading("invocations", "azure"),
        {
            "a column of two": (_split([*COLUMNS, "late"], [*_ROW, True]), "late", "duplicated"),
            "a row that is too short": (_split(COLUMNS, _ROW[:3]), "row 0"),
            "a second row that is too short": (_split(COLUMNS, _ROW, _ROW[:3]), "row 1"),
            "no rows": (_split(COLUMNS), "no rows"),
            "columns that are no names": (_split([["x"], {}, 1.5, None], _ROW), "columns"),
        },
    ),
    *body_cases(
        reading("dataframe_records", "instances", "predict", "records", "tfserving", "jsonl"),
        {"a key that stands twice, the last time wrongly": (_doubled, "late")},
    ),
    *body_cases(
        reading("predict"),
        {
            f"the features {name}": _document(features=value)
            for name, value in {"1": 1, "a table": [_ROW]}.items()
        },
    ),
    *body_cases(
        reading("records"),
        {
            "a record in place of records": dump(RECORD),
            "a number among records": (lambda route: route.good[:-1] + b", 5]", "row 1"),
        },
    ),
    *body_cases(
        reading("inputs", "tf columns"),
        {
            "a column of another length": (
                lambda route: route.good.replace(b"[100.5]", b"[100.5, 2]"),
                "distance",
                "2 values",
            )
        },
    ),
]
_TENSORS = [tensor(name, [value]) for name, value in RECORD.items()]


def _v2(**changes):
    """Return an infer request with changed fields of one tensor."""
    carrier, distance, *others = _TENSORS
    return _document(inputs=[carrier, {**distance, **changes}, *others])


V2_CASES = body_cases(
    reading("v2"),
    {
        "no shape": _v2(shape=None),
        "data of no bytes": _v2(data=[], parameters={"binary_data_size": 8}),
    },
)


def _image(value):
    return lambda route: dump({"inputs" if route.reads == "tensor" else "instances": value})


SHAPES = body_cases(
    reading("tensor", "tf tensor"),
    {
        "a matrix for a picture": _image([[1, 2], [3, 4]]),
        "a ragged picture": _image([[[1, 2], [3]]]),
    },
)
TF_CASES = body_cases(
    reading("tfserving"),
    {
        "a signature that is a list": _document(signature_name=[1], instances=[RECORD]),
        "base64 of a number": _one("carrier", {"b64": 5}),
        "base64 below a thousand arrays": (
            b'{"instances": ' + b"[" * 1000 + b'{"b64": "QUE="}' + b"]" * 1000 + b"}",
            "32 levels",
        ),
    },
)
MLFLOW = body_cases(
    tuple(route for route in reading("invocations") if route.path == "/invocations"),
    {
        "a table without rows": (b'{"columns": ["a"]}', "colu"),
        "a key of the table that is unknown": _document(dataframe_split={"data": [], "x": 1}),
        "an index of another length": _document(
            dataframe_split={"columns": COLUMNS, "data": [_ROW], "index": [1, 2]}
        ),
    },
)


def _event(moment):
    def sent(route):
        request = route.request()
        return replace(request, headers={**request.headers, "x-event-time": moment})

    return sent


EVENT_TIMES = [
    Case(f"an event of {moment!r}", _event(moment), RECORDS, words=("X-Event-Time",))
    for moment in (
        "",
        "yesterday",
        "2013-07-01T12:30:00",
        "0001-01-01T00:00:00+14:00",
        "0999-01-01T00:00:00Z",
        "1699-12-31T00:00:00Z",
        "9999-12-31T23:59:59-14:00",
        "2100-01-01T00:00:00Z",
    )
]

CASES = [*TYPES, *COLUMN_CASES, *V2_CASES, *SHAPES, *TF_CASES, *MLFLOW, *EVENT_TIMES]
