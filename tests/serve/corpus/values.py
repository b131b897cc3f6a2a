"""Valid bodies that do not fit the model: rows, columns, types, numbers, strings,
shapes.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.serve.corpus.case import AnyCase, BodyCase, Route
from tests.serve.corpus.routes import COLUMNS, LANGUAGES, RECORD, RECORDS, dump, reading, tensor

RawRecord = Mapping[str, Any]


def _record(record: RawRecord) -> Callable[[Route], bytes]:
    return lambda route: LANGUAGES[route.reads]([record])


def _one(column: str, value: Any) -> Callable[[Route], bytes]:
    return _record({**RECORD, column: value})


_WRONG: list[tuple[str, str, Any, tuple[str, ...]]] = [
    ("a text for a number", "distance", "far", ("distance", "'far'")),
    ("a number in a text", "distance", "1.5", ("distance", "'1.5'")),
    ("a list for a number", "distance", [1.0], ("distance",)),
    ("an object for a number", "distance", {"x": 1}, ("distance",)),
    ("a boolean for a number", "distance", True, ("distance",)),
    ("a fraction for an integer", "hour", 3.5, ("hour", "3.5")),
    ("null for an integer", "hour", None, ("hour", "null")),
    ("an integer of 64 bits and one", "hour", 2**63, ("hour",)),
    ("a negative integer of 65 bits", "hour", -(2**63) - 1, ("hour",)),
    ("an integer of four thousand digits", "hour", 10**4000, ()),
    ("NaN for an integer", "hour", float("nan"), ("hour",)),
    ("infinity for an integer", "hour", float("inf"), ("hour",)),
    ("a number beyond all floats for an integer", "hour", 1e300, ("hour",)),
    ("a number for a boolean", "late", 1, ("late", "1")),
    ("a text for a boolean", "late", "true", ("late", "'true'")),
    ("null for a boolean", "late", None, ("late", "null")),
    ("a number for a text", "carrier", 5, ("carrier", "5")),
    ("null for a text", "carrier", None, ("carrier", "null")),
    ("NaN for a text", "carrier", float("nan"), ("carrier",)),
    ("a deep list for a text", "carrier", [[[[[["AA"]]]]]], ("carrier",)),
    ("half a surrogate pair for a text", "carrier", "\ud800", ()),
    ("the wrong half of a surrogate pair", "carrier", "\udc00x", ()),
]
TYPES: list[AnyCase] = [
    BodyCase(name, "types", _one(column, value), RECORDS, 400, words)
    for name, column, value, words in _WRONG
]


def _without(column: str) -> dict[str, Any]:
    return {name: value for name, value in RECORD.items() if name != column}


def _split(columns: list[Any], *rows: Any) -> Callable[[Route], bytes]:
    """Return a table as columns and rows."""

    def body(route: Route) -> bytes:
        return dump({next(iter(json.loads(route.good))): {"columns": columns, "data": list(rows)}})

    return body


def _doubled(route: Route) -> bytes:
    """Repeat the last key of each object, which no JSON encoder would do."""
    return route.good.replace(b'"late": true}', b'"late": true, "late": 5}')


def _features(value: Any) -> Callable[[Route], bytes]:
    return lambda route: dump({"features": value})


def _always(body: bytes) -> Callable[[Route], bytes]:
    return lambda route: body


def _uneven(route: Route) -> bytes:
    return route.good.replace(b"[100.5]", b"[100.5, 2]")


_RECORD_ROUTES = reading("predict")
_ROW = list(RECORD.values())
_SPLITS = reading("invocations", "azure")
COLUMN_CASES: list[AnyCase] = [
    *[
        BodyCase(
            f"without the column {column}",
            "columns",
            _record(_without(column)),
            RECORDS,
            400,
            (column,),
        )
        for column in COLUMNS
    ],
    BodyCase("other columns", "columns", _record({"a": 1, "b": 2}), RECORDS, 400, ("carrier",)),
    BodyCase(
        "a column whose name is mistyped",
        "columns",
        _record({**_without("distance"), "distnce": 1.5}),
        RECORDS,
        400,
        ("'distnce'", "distance"),
    ),
    BodyCase(
        "a column of another case", "columns", _record({**_without("late"), "LATE": True}), RECORDS
    ),
    BodyCase(
        "a column of two",
        "columns",
        _split([*COLUMNS, "late"], [*_ROW, True]),
        _SPLITS,
        400,
        ("late", "duplicated"),
    ),
    BodyCase(
        "a row that is too short", "rows", _split(COLUMNS, _ROW[:3]), _SPLITS, 400, ("row 0",)
    ),
    BodyCase(
        "a row that is too long", "rows", _split(COLUMNS, [*_ROW, 1]), _SPLITS, 400, ("row 0",)
    ),
    BodyCase(
        "a second row that is too short",
        "rows",
        _split(COLUMNS, _ROW, _ROW[:3]),
        _SPLITS,
        400,
        ("row 1",),
    ),
    BodyCase("a row that is a number", "rows", _split(COLUMNS, 7), _SPLITS, 400, ("row 0",)),
    BodyCase("no rows", "rows", _split(COLUMNS), _SPLITS, 400, ("no rows",)),
    BodyCase(
        "columns that are no names",
        "columns",
        _split([["x"], {}, 1.5, None], _ROW),
        _SPLITS,
        400,
        ("columns",),
    ),
    BodyCase(
        "a key that stands twice, the last time wrongly",
        "types",
        _doubled,
        reading("dataframe_records", "instances", "predict", "records", "tfserving", "jsonl"),
        400,
        ("late",),
    ),
    *[
        BodyCase(f"{name} for features", "rows", _features(value), _RECORD_ROUTES)
        for name, value in {
            "a number": 1,
            "two values": [1, 2],
            "nothing": None,
            "a text": "AA",
            "a table": [_ROW],
        }.items()
    ],
    BodyCase("a record in place of records", "rows", _always(dump(RECORD)), reading("records")),
    BodyCase(
        "a number among records",
        "rows",
        lambda route: route.good[:-1] + b", 5]",
        reading("records"),
        400,
        ("row 1",),
    ),
    BodyCase(
        "a column of another length",
        "columns",
        _uneven,
        reading("inputs", "tf columns"),
        400,
        ("distance", "2 values"),
    ),
    BodyCase(
        "a table without rows",
        "rows",
        lambda route: b'{"columns": ["a"]}',
        reading("invocations"),
        400,
        ("colu",),
    ),
]


def _document(**fields: Any) -> Callable[[Route], bytes]:
    return lambda route: dump(fields)


_TENSORS = [tensor(name, [value]) for name, value in RECORD.items()]


def _v2(position: int = 1, **changes: Any) -> Callable[[Route], bytes]:
    """Return an infer request with a changed field of the tensor at `position`
    (`distance`); None removes the field.
    """

    def body(route: Route) -> bytes:
        entries = [dict(entry) for entry in _TENSORS]
        entries[position] = {
            key: value
            for key, value in {**entries[position], **changes}.items()
            if value is not None
        }
        return dump({"inputs": entries})

    return body


_V2: dict[str, tuple[str, Callable[[Route], bytes]]] = {
    "no inputs": ("V2", _document(id="1")),
    "inputs that are an object": ("V2", _document(inputs={})),
    "an input that is a number": ("V2", _document(inputs=[1])),
    "an unknown tensor": ("V2", _document(inputs=[*_TENSORS, tensor("other", [1.0])])),
    "a tensor that stands twice": ("V2", _document(inputs=[*_TENSORS, _TENSORS[0]])),
    "no shape": ("V2", _v2(shape=None)),
    "a negative shape": ("V2", _v2(shape=[-1])),
    "a shape of fractions": ("V2", _v2(shape=[1.0])),
    "a shape of booleans": ("V2", _v2(shape=[True])),
    "a shape of nothing": ("V2", _v2(shape=[0], data=[])),
    "a shape beyond memory": ("V2", _v2(shape=[2**62, 2**62])),
    "a shape of 65 bits": ("V2", _v2(shape=[2**64])),
    "a shape of a hundred thousand dimensions": ("V2 rank", _v2(shape=[1] * 100_000)),
    "an unknown datatype": ("V2", _v2(datatype="FP8")),
    "a datatype that is a list": ("V2", _v2(datatype=["FP64"])),
    "a datatype that does not fit": ("V2", _v2(datatype="BYTES", data=["x"])),
    "a datatype too narrow for its value": ("V2", _v2(2, datatype="INT8", data=[300])),
    "a number beyond FP16": ("V2", _v2(datatype="FP16", data=[1e30])),
    "more elements than the shape": ("V2 counts", _v2(data=[1.0, 2.0])),
    "fewer elements than the shape": ("V2 counts", _v2(shape=[2])),
    "ragged data": ("V2", _v2(shape=[2, 2], data=[[1.0], [2.0, 3.0]])),
    "deep data": ("V2", _v2(data=[[[[[[1.0]]]]]])),
    "data that is a text": ("V2", _v2(data="1.0")),
    "data of no bytes": ("V2", _v2(data=None, parameters={"binary_data_size": 8})),
    "data that is there twice": ("V2", _v2(parameters={"binary_data_size": 8})),
    "parameters that are a list": ("V2", _v2(parameters=[1])),
    "shared memory": ("V2", _v2(parameters={"shared_memory_region": "/dev/shm/x"})),
    "an id that is a number": ("V2", _document(id=7, inputs=_TENSORS)),
    "an id with a line feed": ("V2", _document(id="a\nb", inputs=_TENSORS)),
    "an unknown output": ("V2", _document(inputs=_TENSORS, outputs=[{"name": "half"}])),
    "an output that stands twice": (
        "V2",
        _document(inputs=_TENSORS, outputs=[{"name": "label"}] * 2),
    ),
    "outputs that are names": ("V2", _document(inputs=_TENSORS, outputs=["label"])),
    "classification": (
        "V2",
        _document(
            inputs=_TENSORS, outputs=[{"name": "label", "parameters": {"classification": 3}}]
        ),
    ),
    "a timeout that is a text": ("V2", _document(inputs=_TENSORS, parameters={"timeout": "soon"})),
    "a timeout that is negative": ("V2", _document(inputs=_TENSORS, parameters={"timeout": -1})),
    "batches that differ": ("V2", _v2(shape=[2], data=[1.0, 2.0])),
    "columns as a matrix": ("V2", _v2(shape=[1, 2], data=[1.0, 2.0])),
}
V2_CASES: list[AnyCase] = [
    BodyCase(name, bound, body, reading("v2")) for name, (bound, body) in _V2.items()
]

_IMAGES: dict[str, Any] = {
    "a matrix for a picture": [[1, 2], [3, 4]],
    "a picture in a picture": [[[[1, 2], [3, 4]]]],
    "a ragged picture": [[[1, 2], [3]]],
    "a picture of texts": [[["1", "2"], ["3", "4"]]],
    "a picture with a text of 100,000 characters": [[["x" * 100_000, 2], [3, 4]]],
    "a picture with an object": [[[{}, 2], [3, 4]]],
    "a picture with a boolean and a text": [[[True, "x"], [3, 4]]],
    "a picture that overflows": [[[1e39, 2], [3, 4]]],
    "a picture with a number of 4,000 digits": [[[10**4000, 2], [3, 4]]],
    "a picture of nothing": [[[], []]],
    "a number for a picture": [5],
}


def _image(value: Any) -> Callable[[Route], bytes]:
    return lambda route: dump({"inputs" if route.reads == "tensor" else "instances": value})


SHAPES: list[AnyCase] = [
    BodyCase(name, "shapes", _image(value), reading("tensor", "tf tensor"))
    for name, value in _IMAGES.items()
]

_TF = reading("tfserving")
TF_CASES: list[AnyCase] = [
    BodyCase("instances and inputs", "TensorFlow", _document(instances=[RECORD], inputs={}), _TF),
    BodyCase(
        "another signature", "TensorFlow", _document(signature_name="x", instances=[RECORD]), _TF
    ),
    BodyCase(
        "a signature that is a list",
        "TensorFlow",
        _document(signature_name=[1], instances=[RECORD]),
        _TF,
    ),
    BodyCase("base64 that is none", "TensorFlow", _one("carrier", {"b64": "*"}), _TF),
    BodyCase("base64 of a number", "TensorFlow", _one("carrier", {"b64": 5}), _TF),
    BodyCase("base64 of no UTF-8", "TensorFlow", _one("carrier", {"b64": "/w=="}), _TF),
    BodyCase(
        "base64 below a thousand arrays",
        "depth of base64",
        lambda route: b'{"instances": ' + b"[" * 1000 + b'{"b64": "QUE="}' + b"]" * 1000 + b"}",
        tuple(route for route in reading("tfserving", "instances") if route.path != "/invocations"),
        words=("32 levels",),
    ),
]

_SINGLE = tuple(
    route for route in RECORDS if route.path == "/invocations" and route.reads == "invocations"
)
MLFLOW: list[AnyCase] = [
    BodyCase(
        "no field",
        "MLflow",
        _document(columns=COLUMNS, data=[]),
        reading("invocations", "instances"),
    ),
    BodyCase(
        "two fields",
        "MLflow",
        _document(inputs=[], instances=[]),
        reading("invocations", "instances"),
    ),
    BodyCase(
        "params that are a list", "MLflow", _document(instances=[RECORD], params=[1]), _SINGLE
    ),
    BodyCase(
        "a key of the table that is unknown",
        "MLflow",
        _document(dataframe_split={"data": [], "x": 1}),
        _SINGLE,
    ),
    BodyCase(
        "an index of another length",
        "MLflow",
        _document(dataframe_split={"columns": COLUMNS, "data": [_ROW], "index": [1, 2]}),
        _SINGLE,
    ),
    *[
        BodyCase(
            f"the time {moment!r} of an event",
            "event time",
            lambda r: r.good,
            RECORDS,
            400,
            (),
            {"X-Event-Time": moment},
        )
        for moment in ("yesterday", "2013-07-01T12:30:00", "9999-99-99T00:00:00Z")
    ],
    *[
        BodyCase(
            f"an event of the year {moment[:4]}",
            "event years",
            lambda r: r.good,
            RECORDS,
            400,
            (words,),
            {"X-Event-Time": moment},
        )
        for moment, words in (
            ("0001-01-01T00:00:00+00:00", "in 1700 or later"),
            ("2100-01-01T00:00:00Z", "a day ahead"),
            ("9999-12-31T23:59:59Z", "a day ahead"),
        )
    ],
]

CASES: list[AnyCase] = [*TYPES, *COLUMN_CASES, *V2_CASES, *SHAPES, *TF_CASES, *MLFLOW]
