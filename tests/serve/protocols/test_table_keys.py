"""Key columns (`capture.keys`): every protocol reads them next to the inputs, captures
them, and never feeds them.
"""

import orjson
import pyarrow as pa
import pytest
from pyarrow import parquet

from mlflow_deploy_plugin.serve.agent.ship import Shipper
from mlflow_deploy_plugin.serve.http.plan import PlanTable
from mlflow_deploy_plugin.serve.protocols import v2
from mlflow_deploy_plugin.serve.protocols.examples import Example
from mlflow_deploy_plugin.serve.runtime.artifact import Column
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from tests.support import servers
from tests.support.bodies import arrow_stream, v2_tensor
from tests.support.handling import handle, post
from tests.support.inference_log import rows_of
from tests.support.protocols import JSON_FORMS, protocol_paths

LARGEST = 2**63 - 1
ROWS = {"a": [1.0, 4.0], "b": [2.0, 5.0], "c": [3.0, 6.0]}
RECORDS = [dict(zip(ROWS, row, strict=True)) for row in zip(*ROWS.values(), strict=True)]
ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def server(tmp_path_factory, model_folders):
    state_dir = tmp_path_factory.mktemp("keys") / "state"
    endpoints = {kind: {"v": servers.variant(model_folders[kind])} for kind in ("single", "stock")}
    with servers.opened(state_dir, endpoints, keys=["customer_id", "is_new"]) as server:
        yield server


def as_table(keys):
    return as_arrow(pa.table({**keys, **ROWS}))


def array(rows):
    return as_arrow(pa.table({"": rows}))


def as_arrow(table):
    return post(body=arrow_stream(table), content_type=ARROW)


def with_key(values):
    return [{"customer_id": value, **row} for value, row in zip(values, RECORDS, strict=True)]


SPLIT = {"columns": ["a", "customer_id", "b", "c"], "data": [[1, "x", 2, 3], [4, None, 5, 6]]}
V2 = [v2_tensor(name, "FP64", values) for name, values in ROWS.items()]
TEXTS = v2_tensor("customer_id", "BYTES", ["x", "y"])
IDS = v2_tensor("customer_id", "INT64", [7, 8], [2, 1])
X = v2_tensor("X", "FP32", [1, 2, 3, 4, 5, 6], [2, 3])
SCHEMA = compile_schema(tuple(Column(name, "double") for name in ROWS), (), ())
EXAMPLE = Example({"customer_id": [7, 8], **ROWS}, 2)
DERIVED = [
    (f"{protocol.name} {path}", post(path, form.example(SCHEMA, EXAMPLE)), [7, 8])
    for protocol, form in JSON_FORMS.items()
    if protocol is not v2.V2  # Its example has the datatypes of the model's columns.
    for path in protocol_paths(protocol, "single", "1", "v")
]
CSV_ROWS = b"customer_id,a,b,c\n007,1,2,3\n,4,5,6\n"
REQUESTS = [
    *DERIVED,
    ("records with a gap",
     post("/invocations", {"dataframe_records": with_key([LARGEST, None])},), [LARGEST, None]),
    ("split", post("/invocations", {"dataframe_split": SPLIT}), ["x", None]),
    ("columns",
     post("/invocations", {"inputs": {"customer_id": [0.5, None], **ROWS}},), [0.5, None]),
    ("no key", post("/invocations", {"instances": RECORDS}), []),
    ("CSV", post(body=CSV_ROWS, content_type="text/csv"), ["007", None]),
    ("JSON Lines",
     post(body=b"\n".join(map(orjson.dumps, with_key([7, None]))),
          content_type="application/jsonl"), [7, None]),
    ("Arrow", as_table({"customer_id": pa.array([LARGEST, None])}), [LARGEST, None],),
    ("Arrow dictionary",
     as_table({"customer_id": pa.array(["x", None]).dictionary_encode()}), ["x", None]),
    ("Arrow without names", array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), [],),
    ("V2 by columns", post("/v2/models/single/infer", {"inputs": [*V2, TEXTS]}), ["x", "y"],),
    ("V2 by input", post("/v2/models/single/infer", {"inputs": [IDS, X]}), [7, 8],),
    ("tensor, CSV", post("/endpoints/stock/invocations", CSV_ROWS, content_type="text/csv"),
     ["007", None]),
    ("tensor, V2", post("/v2/models/stock/infer", {"inputs": [X, IDS]}), [7, 8],),
]  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "expected"), [pytest.param(*case, id=name) for name, *case in REQUESTS]
)
def test_key_is_captured_and_not_fed(tmp_path, server, request_, expected):
    answers = [handle(server, request_), PlanTable(server).answer(request_)]
    answered = [answer for answer in answers if answer is not None]
    assert [answer.status for answer in answered] == [200] * len(answered), answered[0].body

    server.capture.close()
    Shipper(server.capture.spool, str(tmp_path / "log")).ship()
    files = sorted((tmp_path / "log").rglob("*.parquet"))
    rows = rows_of([parquet.ParquetFile(file).read() for file in files])
    assert not any("is_new" in row for row in rows)
    bias = 0.5 if "stock" in request_.path else 0.0
    for answer in answered:
        prediction = answer.headers["X-Prediction-Id"]
        own = [row for row in rows if row["_prediction_id"] == prediction]
        assert own
        outputs = [[6.0 + bias], [15.0 + bias]][: len(own)]
        assert [row["output.y"] for row in own] == outputs
        keys = [row["customer_id"] for row in own if "customer_id" in row]
        assert keys == expected[: len(own)]


@pytest.mark.parametrize(
    ("path", "document", "part"),
    [
        ("/invocations", {"instances": with_key([[1], [2]])}, "row 0"),
        ("/invocations", {"inputs": {"customer_id": [1], **ROWS}}, "2 rows"),
        (
            "/v2/models/single/infer",
            {"inputs": [X, v2_tensor("customer_id", "INT64", [1, 2, 3, 4], [2, 2])]},
            "list",
        ),
        (
            "/v2/models/single/infer",
            {"inputs": [X, v2_tensor("customer", "INT64", [1, 2])]},
            "'customer'",
        ),
    ],
)
def test_key_without_one_value_per_row_is_refused(server, path, document, part):
    response = handle(server, post(path, document))
    assert response.status == 400
    message = orjson.loads(response.body).get("message") or orjson.loads(response.body)["error"]
    assert "customer" in message
    assert part in message
