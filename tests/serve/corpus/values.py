"""Valid bodies that do not fit the model: rows, columns, types, numbers, strings,
shapes.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.serve.corpus.case import Case, Route, body_cases
from tests.serve.corpus.routes import COLUMNS, LANGUAGES, RECORD, RECORDS, dump, reading, tensor

Build = Callable[[Route], bytes]


def _record(record: Mapping[str, Any]) -> Build:
    return lambda route: LANGUAGES[route.reads]([record])


def _one(column: str, value: Any) -> Build:
    return _record({**RECORD, column: value})


TYPES = body_cases(
    RECORDS,
    {
        "a text for a number": (_one("distance", "far"), "distance", "'far'"),
        "a number in a text": (_one("distance", "1.5"), "distance", "'1.5'"),
        "a list for a number": (_one("distance", [1.0]), "distance"),
        "an object for a number": (_one("distance", {"x": 1}), "distance"),
        "a boolean for a number": (_one("distance", True), "distance"),
        "a fraction for an integer": (_one("hour", 3.5), "hour", "3.5"),
        "null for an integer": (_one("hour", None), "hour", "null"),
        "an integer of 64 bits and one": (_one("hour", 2**63), "hour"),
        "a negative integer of 65 bits": (_one("hour", -(2**63) - 1), "hour"),
        "an integer of four thousand digits": _one("hour", 10**4000),
        "NaN for an integer": (_one("hour", float("nan")), "hour"),
        "infinity for an integer": (_one("hour", float("inf")), "hour"),
        "a number for a boolean": (_one("late", 1), "late", "1"),
        "a text for a boolean": (_one("late", "true"), "late", "'true'"),
        "null for a boolean": (_one("late", None), "late", "null"),
        "a number for a text": (_one("carrier", 5), "carrier", "5"),
        "null for a text": (_one("carrier", None), "carrier", "null"),
        "NaN for a text": (_one("carrier", float("nan")), "carrier"),
        "a deep list for a text": (_one("carrier", [[[[[["AA"]]]]]]), "carrier"),
        "half a surrogate pair for a text": _one("carrier", "\ud800"),
        "the wrong half of a surrogate pair": _one("carrier", "\udc00x"),
    },
)


def _without(column: str) -> dict[str, Any]:
    return {name: value for name, value in RECORD.items() if name != column}


def _split(columns: list[Any], *rows: Any) -> Build:
    """Return a table as columns and rows."""

    def body(route: Route) -> bytes:
        return dump({next(iter(json.loads(route.good))): {"columns": columns, "data": list(rows)}})

    return body


def _doubled(route: Route) -> bytes:
    """Repeat the last key of each object, which no JSON encoder would do."""
    return route.good.replace(b'"late": true}', b'"late": true, "late": 5}')


def _document(**fields: Any) -> Build:
    return lambda route: dump(fields)


_ROW = list(RECORD.values())
COLUMN_CASES = [
    *body_cases(
        RECORDS,
        {
            **{f"without {column}": (_record(_without(column)), column) for column in COLUMNS},
            "other columns": (_record({"a": 1, "b": 2}), "carrier"),
            "a column whose name is mistyped": (
                _record({**_without("distance"), "distnce": 1.5}),
                "'distnce'",
                "distance",
            ),
            "a column of another case": _record({**_without("late"), "LATE": True}),
        },
    ),
    *body_cases(
        reading("invocations", "azure"),
        {
            "a column of two": (_split([*COLUMNS, "late"], [*_ROW, True]), "late", "duplicated"),
            "a row that is too short": (_split(COLUMNS, _ROW[:3]), "row 0"),
            "a row that is too long": (_split(COLUMNS, [*_ROW, 1]), "row 0"),
            "a second row that is too short": (_split(COLUMNS, _ROW, _ROW[:3]), "row 1"),
            "a row that is a number": (_split(COLUMNS, 7), "row 0"),
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
            for name, value in {"1": 1, "none": None, "text": "AA", "a table": [_ROW]}.items()
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


def _v2(position: int = 1, **changes: Any) -> Build:
    """Return an infer request with a changed field of the tensor at `position`
    (`distance`); None removes the field.
    """
    entries = list(_TENSORS)
    changed = {**entries[position], **changes}
    entries[position] = {key: value for key, value in changed.items() if value is not None}
    return _document(inputs=entries)


def _inputs(**fields: Any) -> Build:
    """Return a valid infer request with these fields."""
    return _document(inputs=_TENSORS, **fields)


V2_CASES = body_cases(
    reading("v2"),
    {
        "no inputs": _document(id="1"),
        "inputs that are an object": _document(inputs={}),
        "an input that is a number": _document(inputs=[1]),
        "an unknown tensor": _document(inputs=[*_TENSORS, tensor("other", [1.0])]),
        "a tensor that stands twice": _document(inputs=[*_TENSORS, _TENSORS[0]]),
        "no shape": _v2(shape=None),
        "a negative shape": _v2(shape=[-1]),
        "a shape of fractions": _v2(shape=[1.0]),
        "a shape of booleans": _v2(shape=[True]),
        "a shape of nothing": _v2(shape=[0], data=[]),
        "a shape beyond memory": _v2(shape=[2**62, 2**62]),
        "a shape of 65 bits": _v2(shape=[2**64]),
        "a shape of a hundred thousand dimensions": _v2(shape=[1] * 100_000),
        "an unknown datatype": _v2(datatype="FP8"),
        "a datatype that is a list": _v2(datatype=["FP64"]),
        "a datatype that does not fit": _v2(datatype="BYTES", data=["x"]),
        "a datatype too narrow for its value": _v2(2, datatype="INT8", data=[300]),
        "a number beyond FP16": _v2(datatype="FP16", data=[1e30]),
        "more elements than the shape": _v2(data=[1.0, 2.0]),
        "fewer elements than the shape": _v2(shape=[2]),
        "ragged data": _v2(shape=[2, 2], data=[[1.0], [2.0, 3.0]]),
        "deep data": _v2(data=[[[[[[1.0]]]]]]),
        "data that is a text": _v2(data="1.0"),
        "data of no bytes": _v2(data=None, parameters={"binary_data_size": 8}),
        "data that is there twice": _v2(parameters={"binary_data_size": 8}),
        "parameters that are a list": _v2(parameters=[1]),
        "shared memory": _v2(parameters={"shared_memory_region": "/dev/shm/x"}),
        "batches that differ": _v2(shape=[2], data=[1.0, 2.0]),
        "columns as a matrix": _v2(shape=[1, 2], data=[1.0, 2.0]),
        "an id that is a number": _inputs(id=7),
        "an id with a line feed": _inputs(id="a\nb"),
        "an unknown output": _inputs(outputs=[{"name": "half"}]),
        "an output that stands twice": _inputs(outputs=[{"name": "label"}] * 2),
        "outputs that are names": _inputs(outputs=["label"]),
        "classification": _inputs(outputs=[{"name": "label", "parameters": {"classification": 3}}]),
        "a timeout that is a text": _inputs(parameters={"timeout": "soon"}),
        "a timeout that is negative": _inputs(parameters={"timeout": -1}),
    },
)


def _image(value: Any) -> Build:
    return lambda route: dump({"inputs" if route.reads == "tensor" else "instances": value})


SHAPES = body_cases(
    reading("tensor", "tf tensor"),
    {
        "a matrix for a picture": _image([[1, 2], [3, 4]]),
        "a picture in a picture": _image([[[[1, 2], [3, 4]]]]),
        "a ragged picture": _image([[[1, 2], [3]]]),
        "a picture with a text of 100,000 characters": _image([[["x" * 100_000, 2], [3, 4]]]),
        "a picture with an object": _image([[[{}, 2], [3, 4]]]),
        "a picture with a boolean and a text": _image([[[True, "x"], [3, 4]]]),
        "a picture that overflows": _image([[[1e39, 2], [3, 4]]]),
        "a picture with a number of 4,000 digits": _image([[[10**4000, 2], [3, 4]]]),
        "a picture of nothing": _image([[[], []]]),
        "a number for a picture": _image([5]),
    },
)
TF_CASES = body_cases(
    reading("tfserving"),
    {
        "instances and inputs": _document(instances=[RECORD], inputs={}),
        "another signature": _document(signature_name="x", instances=[RECORD]),
        "a signature that is a list": _document(signature_name=[1], instances=[RECORD]),
        "base64 that is none": _one("carrier", {"b64": "*"}),
        "base64 of a number": _one("carrier", {"b64": 5}),
        "base64 of no UTF-8": _one("carrier", {"b64": "/w=="}),
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
        "no field": _document(columns=COLUMNS, data=[]),
        "two fields": _document(inputs=[], instances=[]),
        "params that are a list": _document(instances=[RECORD], params=[1]),
        "a key of the table that is unknown": _document(dataframe_split={"data": [], "x": 1}),
        "an index of another length": _document(
            dataframe_split={"columns": COLUMNS, "data": [_ROW], "index": [1, 2]}
        ),
    },
)
EVENT_TIMES: list[Case] = []
for moment, words in {
    "yesterday": "",
    "2013-07-01T12:30:00": "",
    "9999-99-99T00:00:00Z": "",
    "0001-01-01T00:00:00+00:00": "in 1700 or later",
    "9999-12-31T23:59:59Z": "a day ahead",
}.items():
    EVENT_TIMES += body_cases(
        RECORDS,
        {f"an event of {moment}": lambda route: route.good},
        words=(words,),
        headers={"X-Event-Time": moment},
    )

CASES = [*TYPES, *COLUMN_CASES, *V2_CASES, *SHAPES, *TF_CASES, *MLFLOW, *EVENT_TIMES]
