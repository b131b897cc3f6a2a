"""The records of other servers, in the forms that their owners document. They are in
the files of this folder.
"""

import base64
import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.core.extensions import SOURCES, find_entry

HERE = Path(__file__).parent
RECORDED = HERE.parent / "mlserver" / "recordings"
NAMES = ("carrier", "distance", "hour")
FORMATS = ("databricks", "kserve", "sagemaker")
READERS = {source: find_entry(SOURCES, source, "format", ()) for source in FORMATS}


def read(source, record, names=NAMES):
    return READERS[source](record, names)


def records(source):
    return list(map(json.loads, (HERE / f"{source}.jsonl").read_text().splitlines()))


def pair(request, response, request_type="application/json"):
    time = "2026-03-01T12:00:00Z"
    types = {"request_type": request_type, "response_type": "application/json"}
    return {"id": "1", "time": time, "request": request, "response": response, **types}


@pytest.mark.parametrize(
    ("source", "row", "id", "inputs", "predictions"),
    [
        (
            "sagemaker",
            0,
            "0b8c3ac1-0001",
            {"carrier": ["UA", "B6, Inc"], "distance": [1400, None], "hour": [17, 3]},
            {"prediction": [0.25, 0.75]},
        ),
        (
            "sagemaker",
            1,
            "order-7",
            {"carrier": ["UA"], "distance": [1400], "hour": [17]},
            {"output.score": [0.25], "output.predicted_label": [1]},
        ),
        (
            "sagemaker",
            2,
            "0b8c3ac1-0003",
            {"hour": [17, 3], "carrier": ["UA", "B6"]},
            {"prediction": [1, 0]},
        ),
        (
            "databricks",
            0,
            "5f2c-1",
            {"carrier": ["UA", "B6"], "hour": [17, None]},
            {"prediction": [1.5, -2]},
        ),
        (
            "databricks",
            1,
            "5f2c-2",
            {"carrier": ["UA"], "hour": [17]},
            {"output.label": ["late"], "output.probability": [0.75]},
        ),
        (
            "kserve",
            1,
            "9c1e-2",
            {"carrier": ["UA"], "distance": [1400], "hour": [17]},
            {"prediction": [0.25]},
        ),
    ],
)
def test_recording_is_read(source, row, id, inputs, predictions):
    exchange = read(source, records(source)[row])
    assert (exchange.id, exchange.inputs, exchange.predictions) == (id, inputs, predictions)
    assert exchange.time.replace(microsecond=0) == datetime(2026, 3, 1, 12, 0, row, tzinfo=UTC)


def test_tensor_becomes_named_columns():
    exchange = read("kserve", records("kserve")[0])
    assert [exchange.inputs[name][0] for name in NAMES] == [1, 1400, 17]
    assert exchange.predictions["prediction"] == [1, 0]
    assert exchange.predictions["output.probabilities"] == [[0.25, 0.75], [0.5, 0.5]]
    assert exchange.version == "4"
    assert read("databricks", records("databricks")[0]).version == "3"


def test_row_of_parquet_is_read(tmp_path):
    (row,) = records("databricks")[:1]
    version = pa.array([row.pop("request_metadata")], pa.map_(pa.string(), pa.string()))
    moment = pa.array([datetime(2026, 3, 1, 12)], pa.timestamp("us"))
    table = pa.Table.from_pylist([row]).append_column("request_metadata", version)
    pq.write_table(table.append_column("request_time", moment), tmp_path / "rows.parquet")
    (read_row,) = pq.read_table(tmp_path / "rows.parquet").to_pylist(maps_as_pydicts="lossy")
    exchange = read("databricks", read_row)
    assert exchange.version == "3"
    assert exchange.time == datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("server", ["kserve", "mlserver"])
def test_bodies_of_real_servers_are_read(server):
    """The answers of KServe 0.21 and MLServer 1.7.1, of which three are not rows."""
    calls = json.loads((RECORDED / f"{server}.json").read_text())
    refused = {"flights: records in lists", "iris: repeated output", "repository index"}
    for call in calls:
        answer = call["answer"]
        if call["method"] != "POST" or answer["status"] != 200 or call["name"] in refused:
            continue
        exchange = read("kserve", pair(json.dumps(call["body"]), json.dumps(answer["body"])), ())
        columns = [*exchange.inputs.values(), *exchange.predictions.values()]
        assert len(set(map(len, columns))) == 1
        assert exchange.inputs
        assert exchange.predictions


@pytest.mark.parametrize("source", ["databricks", "kserve", "sagemaker"])
def test_record_without_prediction_is_none(source):
    assert read(source, records(source)[-1]) is None


@pytest.mark.parametrize(
    ("request_body", "names", "inputs"),
    [
        ("[[1, 2], [3, 4]]", (), {"input": [[1, 2], [3, 4]]}),
        ("[[1, 2], [3, 4]]", ("image",), {"image": [[1, 2], [3, 4]]}),
        ('[{"a": 1}, {"a": 2}]', ("b",), {"a": [1, 2]}),
    ],
)
def test_names_of_inputs(request_body, names, inputs):
    assert read("kserve", pair(request_body, "[5, 6]"), names).inputs == inputs


def test_csv_without_known_names_has_numbered_columns():
    record = pair("1,x\n2,y", "[5, 6]", "text/csv; charset=utf-8")
    assert read("kserve", record, ()).inputs == {"0": [1, 2], "1": ["x", "y"]}


TENSOR = {"name": "x", "datatype": "INT64", "data": [1, 2]}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (pair("[[1, 2, 3]]", "[1, 2]"), "prediction"),
        (pair('{"a": ', "[1]"), "request: not valid JSON"),
        (pair("1,2,3", "[1]"), "request: not valid JSON"),
        (pair('"no"', '"no"'), "request: inputs is a JSON string"),
        (pair("[[1, 2, 3]]", '{"error": "x"}'), "response: "),
        (pair("[" * 2000, "[1]"), "request: not valid JSON"),
        (pair('[{"a": ' + "[" * 400 + "]" * 400 + "}]", "[1]"), "too many dimensions"),
        (pair('[{"a": {"b": 1}}]', "[1]"), "'a' has objects"),
        (pair(json.dumps([{"a" * 300: 1}]), "[1]"), "more than 256"),
        (pair('[{"a": 1}, {"a": "x"}]', "[1, 2]"), "Could not convert 'x'"),
        (pair("[]", "[]"), "request: the data has no rows"),
        (pair(json.dumps({"inputs": [TENSOR | {"shape": [3]}]}), "[1]"), "request: tensor 'x'"),
        (pair(json.dumps({"inputs": [TENSOR | {"shape": []}]}), "[1]"), "request: tensor 'x'"),
        (pair(b"\xff", "[1]", "text/csv"), "request: the CSV is not valid UTF-8"),
        (pair("[[1, 2, 3]]", "[1]") | {"id": "a\n"}, "id: "),
        (pair("[[1, 2, 3]]", "[1]") | {"id": "a" * 300}, "id: "),
        (pair("[[1, 2, 3]]", "[1]") | {"time": "yesterday"}, "time: "),
    ],
)
def test_malformed_record_is_refused_with_its_place(record, reason):
    with pytest.raises(InvalidRequest, match=reason):
        read("kserve", record)


@pytest.mark.parametrize(
    ("source", "change", "reason"),
    [
        ("databricks", {"status_code": None}, "status_code"),
        ("databricks", {"logging_error_codes": ["MAX_REQUEST_SIZE_EXCEEDED"]}, "MAX_REQUEST_SIZE"),
        ("sagemaker", {"captureData": None}, "request: a text"),
        ("sagemaker", {"eventMetadata": []}, "id: "),
    ],
)
def test_malformed_field_is_refused(source, change, reason):
    with pytest.raises(InvalidRequest, match=reason):
        read(source, records(source)[0] | change)


def test_base64_that_is_not_base64_is_refused():
    record = records("sagemaker")[2]
    record["captureData"]["endpointInput"]["data"] = "&" * 10
    with pytest.raises(InvalidRequest, match="endpointInput is "):
        read("sagemaker", record)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(), part, max_size=4),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    [
        "inputs",
        "instances",
        "predictions",
        "outputs",
        "dataframe_split",
        "columns",
        "data",
        "name",
        "shape",
        "datatype",
        "model_version",
        "x",
        "_row",
        "prediction",
    ]
)
BODIES = st.recursive(
    JSON | st.sampled_from(["INT64", "FP16", "BYTES", [2], [1, 2]]),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(FIELDS, part, max_size=4),
    max_leaves=20,
)
TEXTS = st.text() | st.binary() | BODIES.map(json.dumps)


@st.composite
def mutated(draw, source):
    """A recording with any value in some places, and any bodies."""
    record = draw(st.sampled_from(records(source)))
    places = [record, *record.get("captureData", {}).values(), record.get("eventMetadata", record)]
    for owner in places:
        for name in draw(st.lists(st.sampled_from(sorted(owner)), max_size=2)):
            owner[name] = draw(TEXTS | JSON | TEXTS.map(encoded))
    return record


def encoded(body):
    data = body.encode(errors="surrogatepass") if isinstance(body, str) else body
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("source", FORMATS)
def test_any_record_is_read_or_refused(source):
    @settings(max_examples=100, deadline=None)
    @given(st.dictionaries(st.text(), JSON) | mutated(source), st.lists(FIELDS, unique=True))
    def check(record, names):
        exchange = None
        with suppress(InvalidRequest):
            exchange = read(source, record, names)
        if exchange:
            columns = [*exchange.inputs.values(), *exchange.predictions.values()]
            assert len(set(map(len, columns))) == 1
            assert exchange.time.tzinfo

    check()
