"""The requests of the recordings: to MLServer by HTTP and gRPC, and to KServe's
servers.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

Document = dict[str, Any]
Rows = Sequence[Sequence[Any]]

ROWS = [[5.1, 3.5, 1.4, 0.2], [6.2, 2.9, 4.3, 1.3], [7.3, 2.9, 6.3, 1.8]]
FIRST = [row[:3] for row in ROWS]
FLIGHTS: dict[str, list[Any]] = {
    "carrier": ["UA", "B6", "AA"],
    "distance": [1400.0, 2.0, 800.0],
    "hour": [17, 3, 13],
}
LENGTHS = dict(zip(("length", "width", "petal"), map(list, zip(*FIRST, strict=True)), strict=True))
UNKNOWN_FLIGHTS = {**FLIGHTS, "carrier": ["UA", "XX", "AA"]}
_DATATYPES = {str: "BYTES", float: "FP64", int: "INT64"}


def tensor(
    rows: Rows,
    name: str = "input-0",
    datatype: str = "FP64",
    content_type: str | None = None,
    shape: list[int] | None = None,
    is_flat: bool = True,
) -> Document:
    """Return a tensor of rows."""
    data = list(chain.from_iterable(rows)) if is_flat else rows
    entry: Document = {
        "name": name,
        "shape": shape or [len(rows), len(rows[0])],
        "datatype": datatype,
    }
    if content_type:
        entry["parameters"] = {"content_type": content_type}
    return {**entry, "data": data}


def columns(
    table: dict[str, list[Any]], is_column: bool = True, with_types: bool = True
) -> list[Document]:
    """Return a tensor per column, of the shape [N, 1] or [N]."""
    tensors = []
    for name, values in table.items():
        kind = _DATATYPES[type(values[0])]
        entry: Document = {
            "name": name,
            "shape": [len(values), 1] if is_column else [len(values)],
            "datatype": kind,
            "data": values,
        }
        if with_types:
            entry["parameters"] = {"content_type": {"BYTES": "str"}.get(kind, "np")}
        tensors.append(entry)
    return tensors


def infer(
    name: str,
    model: str,
    inputs: list[Document],
    outputs: Iterable[str | Document] = (),
    path: str = "",
    headers: dict[str, str] | None = None,
    **fields: Any,
) -> Document:
    body: Document = {"inputs": inputs, **fields}
    if outputs:
        body["outputs"] = [
            output if isinstance(output, dict) else {"name": output} for output in outputs
        ]
    sent: Document = {"name": name, "method": "POST", "path": f"/v2/models/{model}{path}/infer"}
    if headers:
        sent["headers"] = headers
    return {**sent, "body": body}


def get(name: str, path: str) -> Document:
    return {"name": name, "method": "GET", "path": path}


PD = {"content_type": "pd"}
NP = {"content_type": "np"}
FOUR = [tensor(ROWS)]
THREE = [tensor(FIRST)]
OF_FOUR = ("iris", "names", "xgb-classes", "xgb-binary", "lgb-classes", "lgb-binary", "cat-classes")
OF_THREE = ("widths", "xgb-widths", "lgb-widths", "mlflow-plain", "mlflow-array")
OF_FLIGHTS = ("flights", "mlflow-table", "mlflow-texts")
MODELS = (*OF_FOUR, *OF_THREE, *OF_FLIGHTS, "mlflow-columns")


def first_tensors(model: str) -> list[Document]:
    if model in OF_FOUR:
        return FOUR
    if model in OF_THREE:
        return THREE
    if model == "mlflow-columns":
        return columns(LENGTHS)
    table = FLIGHTS if model == "flights" else {name: FLIGHTS[name] for name in ("carrier", "hour")}
    return columns(table)


MLSERVER = [
    *[infer(f"{model}: usual", model, first_tensors(model), id="q1") for model in MODELS],
    *[get(f"{model}: metadata", f"/v2/models/{model}") for model in MODELS],
    *[
        infer(f"{model}: predict by name", model, FOUR, ["predict"], id="q1")
        for model in ("iris", "xgb-classes", "lgb-binary", "cat-classes")
    ],
    *[
        infer(f"{model}: predict_proba", model, FOUR, ["predict_proba"], id="q1")
        for model in ("iris", "names", "xgb-classes", "xgb-binary", "lgb-binary", "cat-classes")
    ],
    infer("iris: both outputs", "iris", FOUR, ["predict_proba", "predict"], id="q1"),
    infer("xgb-classes: both outputs", "xgb-classes", FOUR, ["predict", "predict_proba"], id="q1"),
    infer("iris: repeated output", "iris", FOUR, ["predict", "predict"], id="q1"),
    infer("iris: output by content type", "iris", FOUR, [{"name": "predict", "parameters": NP}]),
    infer(
        "names: output as str",
        "names",
        FOUR,
        [{"name": "predict", "parameters": {"content_type": "str"}}],
    ),
    infer("widths: predict_proba of a regressor", "widths", THREE, ["predict_proba"]),
    infer("xgb-widths: predict_proba of a regressor", "xgb-widths", THREE, ["predict_proba"]),
    infer("iris: unknown output", "iris", FOUR, ["label"]),
    infer("xgb-classes: unknown output", "xgb-classes", FOUR, ["label"]),
    infer("lgb-binary: unknown output", "lgb-binary", FOUR, ["label"]),
    infer("mlflow-columns: unknown output", "mlflow-columns", columns(LENGTHS), ["label"]),
    infer("mlflow-plain: named output", "mlflow-plain", THREE, ["output-1"]),
    infer("iris: transform", "iris", FOUR, ["transform"]),
    infer("iris: without id", "iris", FOUR),
    infer("iris: empty id", "iris", FOUR, id=""),
    infer("iris: id in the header", "iris", FOUR, headers={"X-Request-Id": "q9"}),
    infer("iris: Ce-Id of the caller", "iris", FOUR, headers={"Ce-Id": "c1", "Ce-Type": "x"}),
    infer("iris: content type np", "iris", [tensor(ROWS, content_type="np")], parameters=NP),
    infer("iris: nested data", "iris", [tensor(ROWS, is_flat=False)]),
    infer("iris: FP32", "iris", [tensor(ROWS, datatype="FP32")]),
    infer("iris: INT64", "iris", [tensor([[5, 3, 1, 0]], datatype="INT64")]),
    infer("iris: other name", "iris", [tensor(ROWS, name="predict")]),
    infer("iris: one row", "iris", [tensor(ROWS[:1])]),
    infer("iris: other parameters", "iris", FOUR, parameters={"tenant": "a", "n": 3}),
    infer(
        "iris: parameters of an output", "iris", FOUR, [{"name": "predict", "parameters": {"a": 1}}]
    ),
    infer(
        "iris: columns as pd",
        "iris",
        columns(dict(zip("abcd", map(list, zip(*ROWS, strict=True)), strict=True))),
        parameters=PD,
    ),
    infer("iris: two tensors", "iris", [tensor(ROWS), tensor(ROWS, name="b")]),
    infer("iris: too few columns", "iris", THREE),
    infer("iris: one dimension", "iris", [tensor([ROWS[0]], shape=[4])]),
    infer("iris: data does not fit the shape", "iris", [tensor(ROWS, shape=[2, 4])]),
    infer("iris: texts", "iris", [tensor([["a", "b", "c", "d"]], datatype="BYTES")]),
    infer("iris: unknown datatype", "iris", [tensor(ROWS, datatype="FP128")]),
    infer("iris: no inputs", "iris", []),
    infer("iris: null", "iris", [tensor([[5.1, None, 1.4, 0.2]])]),
    infer("xgb-classes: null", "xgb-classes", [tensor([[5.1, None, 1.4, 0.2]])]),
    infer("lgb-binary: too few columns", "lgb-binary", THREE),
    infer("cat-classes: too few columns", "cat-classes", THREE),
    infer("xgb-classes: too few columns", "xgb-classes", THREE),
    infer("xgb-classes: FP32", "xgb-classes", [tensor(ROWS, datatype="FP32")]),
    infer("widths: FP32", "widths", [tensor(FIRST, datatype="FP32")]),
    infer("flights: pd in the request", "flights", columns(FLIGHTS), parameters=PD),
    infer("flights: columns of [N]", "flights", columns(FLIGHTS, is_column=False)),
    infer("flights: without content types", "flights", columns(FLIGHTS, with_types=False)),
    infer("flights: predict_proba", "flights", columns(FLIGHTS), ["predict_proba"]),
    infer("flights: unknown category", "flights", columns(UNKNOWN_FLIGHTS)),
    infer("flights: missing column", "flights", columns(FLIGHTS)[:2]),
    infer("flights: one tensor", "flights", THREE),
    infer("mlflow-columns: columns of [N]", "mlflow-columns", columns(LENGTHS, is_column=False)),
    infer(
        "mlflow-columns: without content types",
        "mlflow-columns",
        columns(LENGTHS, with_types=False),
    ),
    infer("mlflow-columns: pd in the request", "mlflow-columns", columns(LENGTHS), parameters=PD),
    infer("mlflow-columns: missing column", "mlflow-columns", columns(LENGTHS)[:2]),
    infer(
        "mlflow-columns: additional column",
        "mlflow-columns",
        [*columns(LENGTHS), *columns({"x": [1.0, 2.0, 3.0]})],
    ),
    infer(
        "mlflow-columns: wrong datatype",
        "mlflow-columns",
        columns({**LENGTHS, "width": ["a", "b", "c"]}),
    ),
    infer("mlflow-plain: content type np", "mlflow-plain", THREE, parameters=NP),
    infer("mlflow-plain: np of the tensor", "mlflow-plain", [tensor(FIRST, content_type="np")]),
    infer("mlflow-plain: columns as pd", "mlflow-plain", columns(LENGTHS), parameters=PD),
    infer("mlflow-array: np of the tensor", "mlflow-array", [tensor(FIRST, content_type="np")]),
    infer("mlflow-array: FP32", "mlflow-array", [tensor(FIRST, datatype="FP32")]),
    infer(
        "mlflow-texts: with params",
        "mlflow-texts",
        first_tensors("mlflow-texts"),
        parameters={"words": 2},
    ),
    infer(
        "mlflow-texts: unknown param",
        "mlflow-texts",
        first_tensors("mlflow-texts"),
        parameters={"other": 2},
    ),
    infer(
        "mlflow-table: one column requested",
        "mlflow-table",
        first_tensors("mlflow-table"),
        ["delay"],
    ),
    infer("widths: version", "widths", THREE, path="/versions/v3", id="q1"),
    infer("widths: unknown version", "widths", THREE, path="/versions/v1"),
    infer("iris: version of a model without versions", "iris", FOUR, path="/versions/v1"),
    get("widths: metadata of the version", "/v2/models/widths/versions/v3"),
    get("widths: metadata of an unknown version", "/v2/models/widths/versions/v1"),
    get("widths: version is ready", "/v2/models/widths/versions/v3/ready"),
    get("widths: unknown version is not ready", "/v2/models/widths/versions/v1/ready"),
    get("iris: ready", "/v2/models/iris/ready"),
    get("unknown model: ready", "/v2/models/unknown/ready"),
    get("unknown model: metadata", "/v2/models/unknown"),
    infer("unknown model: infer", "unknown", FOUR),
    get("server metadata", "/v2"),
    get("server: live", "/v2/health/live"),
    get("server: ready", "/v2/health/ready"),
    get("server: document", "/v2/docs/dataplane.json"),
    get("iris: document", "/v2/models/iris/docs/dataplane.json"),
    get("unknown path", "/v2/unknown"),
    {"name": "iris: infer by GET", "method": "GET", "path": "/v2/models/iris/infer"},
    {
        "name": "iris: malformed JSON",
        "method": "POST",
        "path": "/v2/models/iris/infer",
        "body": "{",
    },
    {
        "name": "iris: JSON is a list",
        "method": "POST",
        "path": "/v2/models/iris/infer",
        "body": [1],
    },
    {
        "name": "iris: inputs is missing",
        "method": "POST",
        "path": "/v2/models/iris/infer",
        "body": {},
    },
    {"name": "iris: empty body", "method": "POST", "path": "/v2/models/iris/infer"},
    {
        "name": "iris: generate",
        "method": "POST",
        "path": "/v2/models/iris/generate",
        "body": {"inputs": FOUR, "id": "q1"},
    },
    {"name": "repository index", "method": "POST", "path": "/v2/repository/index", "body": {}},
]


def call(name: str, model: str, inputs: list[Document], **fields: Any) -> Document:
    return {
        "name": name,
        "method": "ModelInfer",
        "message": {"model_name": model, "inputs": inputs, **fields},
    }


def typed(
    rows: Rows,
    name: str = "input-0",
    datatype: str = "FP64",
    field: str = "fp64_contents",
    **fields: Any,
) -> Document:
    flat = list(chain.from_iterable(rows))
    return {
        "name": name,
        "datatype": datatype,
        "shape": [len(rows), len(rows[0])],
        "contents": {field: flat},
        **fields,
    }


_CARRIERS = ["VUE=", "QjY=", "QUE="]  # UA, B6 and AA in base64
_OF_STR: Document = {"parameters": {"content_type": {"string_param": "str"}}}
FLIGHT_TENSORS = [
    typed([[text] for text in _CARRIERS], "carrier", "BYTES", "bytes_contents", **_OF_STR),
    typed([[hour] for hour in FLIGHTS["hour"]], "hour", "INT64", "int64_contents"),
]
_RAW = "ZmZmZmZmFEAAAAAAAAAMQGZmZmZmZvY/mpmZmZmZyT8="  # the first row as FP64

CALLS = [
    call("iris: usual", "iris", [typed(ROWS)], id="q1"),
    call(
        "iris: both outputs",
        "iris",
        [typed(ROWS)],
        outputs=[{"name": "predict_proba"}, {"name": "predict"}],
        id="q1",
    ),
    call(
        "iris: raw contents",
        "iris",
        [{"name": "x", "datatype": "FP64", "shape": [1, 4]}],
        raw_input_contents=[_RAW],
        id="q1",
    ),
    call("names: usual", "names", [typed(ROWS)], id="q1"),
    call(
        "names: raw contents",
        "names",
        [{"name": "x", "datatype": "FP64", "shape": [1, 4]}],
        raw_input_contents=[_RAW],
        id="q1",
    ),
    call("widths: version", "widths", [typed(FIRST)], model_version="v3", id="q1"),
    call("widths: unknown version", "widths", [typed(FIRST)], model_version="v1"),
    call(
        "xgb-binary: predict_proba",
        "xgb-binary",
        [typed(ROWS)],
        outputs=[{"name": "predict_proba"}],
        id="q1",
    ),
    call("lgb-binary: usual", "lgb-binary", [typed(ROWS)], id="q1"),
    call("cat-classes: usual", "cat-classes", [typed(ROWS)], id="q1"),
    call("mlflow-table: usual", "mlflow-table", FLIGHT_TENSORS, id="q1"),
    call("mlflow-texts: usual", "mlflow-texts", FLIGHT_TENSORS, id="q1"),
    call("unknown model", "unknown", [typed(ROWS)]),
    call("iris: unknown output", "iris", [typed(ROWS)], outputs=[{"name": "label"}]),
    *[
        {"name": f"{model}: metadata", "method": "ModelMetadata", "message": {"name": model}}
        for model in ("iris", "widths", "flights", "mlflow-table", "mlflow-array", "unknown")
    ],
    {"name": "server metadata", "method": "ServerMetadata", "message": {}},
    {"name": "iris: ready", "method": "ModelReady", "message": {"name": "iris"}},
]


def predict(name: str, model: str, body: Any) -> Document:
    return {"name": name, "method": "POST", "path": f"/v1/models/{model}:predict", "body": body}


def _usual(model: str, rows: Rows) -> list[Document]:
    return [
        predict(f"{model}: instances", model, {"instances": rows}),
        predict(f"{model}: inputs", model, {"inputs": rows}),
        predict(f"{model}: ragged", model, {"instances": [rows[0], rows[1][:2]]}),
        predict(f"{model}: empty object", model, {}),
        predict(f"{model}: not JSON", model, "{"),
        predict(f"{model}: unknown model", "unknown", {"instances": rows}),
        get(f"{model}: ready", f"/v1/models/{model}"),
        get(f"{model}: list", "/v1/models"),
    ]


_RECORDS = [
    [{"carrier": a, "distance": b, "hour": c}] for a, b, c in zip(*FLIGHTS.values(), strict=True)
]
PROBA = {"PREDICT_PROBA": "true"}
KSERVE: list[tuple[str, str, dict[str, str], list[Document]]] = [
    ("sklearnserver", "iris", {}, _usual("iris", ROWS)),
    ("sklearnserver", "iris", PROBA, _usual("iris", ROWS)[:2]),
    ("sklearnserver", "names", {}, _usual("names", ROWS)[:1]),
    ("sklearnserver", "widths", PROBA, _usual("widths", FIRST)[:1]),
    (
        "sklearnserver",
        "flights",
        {},
        [
            predict("flights: records in lists", "flights", {"instances": _RECORDS}),
            predict("flights: records", "flights", {"instances": [row for (row,) in _RECORDS]}),
        ],
    ),
    ("xgbserver", "xgb-classes", {}, _usual("xgb-classes", ROWS)),
    ("xgbserver", "xgb-binary", {}, _usual("xgb-binary", ROWS)[:1]),
    ("xgbserver", "xgb-widths", {}, _usual("xgb-widths", FIRST)[:1]),
    ("lgbserver", "lgb-classes", {}, _usual("lgb-classes", ROWS)),
    ("lgbserver", "lgb-binary", {}, _usual("lgb-binary", ROWS)[:1]),
]
