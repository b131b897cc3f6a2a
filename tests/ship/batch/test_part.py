"""Tests of predicting one file: formats, order, kept columns, bad rows."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.core.errors import InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.core.tabular.row_files import format_of
from mlflow_deploy_plugin.ship.batch.part import BatchPlan, Part, PartJob, PartResult, predict_part
from tests.support.models import tensor_column, tensor_model, write_model
from tests.support.tables import columns_of

from .conftest import flights, labels, write


@pytest.fixture
def predict(model, tmp_path):
    def call(path, name, model=model, threads=1, **options):
        source_format = format_of(str(path))
        made = format_of(name)
        assert source_format
        assert made
        part = Part(path.name, str(path), name, source_format, made, path.stat().st_size, state="")
        plan = BatchPlan("", "", str(tmp_path / "out"), **options)
        return predict_part(PartJob(plan, part, model, threads))

    return call


def read(path):
    match path.suffix:
        case ".parquet":
            return pq.read_table(path).to_pydict()
        case ".csv":
            return pyarrow.csv.read_csv(path).to_pydict()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return columns_of(lines)


@pytest.mark.parametrize(
    ("given", "made"), [("csv", "jsonl"), ("jsonl", "parquet"), ("parquet", "csv")]
)
def test_each_format_is_read_and_written(predict, tmp_path, given, made):
    rows = flights(200)

    result = predict(write(rows, tmp_path / f"rows.{given}"), f"made.{made}", keep=("id",))

    assert result == PartResult(200, 0)
    columns = read(tmp_path / "out" / f"made.{made}")
    assert [int(number) for number in columns["id"]] == rows["id"].to_pylist()
    assert columns["prediction"] == labels(rows)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"made.{made}"]


def test_row_order_is_kept_over_blocks_and_threads(predict, tmp_path):
    rows = flights(140_000)

    predict(write(rows, tmp_path / "rows.parquet"), "made.parquet", keep=("id", "ts"), threads=4)

    made = pq.read_table(tmp_path / "out" / "made.parquet")
    assert made.column_names == ["id", "ts", "prediction"]
    assert made["id"].equals(rows["id"])
    assert made["prediction"].to_pylist() == labels(rows)


def test_kept_csv_columns_are_unchanged(predict, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('id,carrier,distance,hour,late,note\n007,AA,10,5,true,"a ""b"",\nc"\n')

    predict(path, "made.jsonl", keep=("note", "id"))

    assert read(tmp_path / "out" / "made.jsonl") == {
        "note": ['a "b",\nc'],
        "id": ["007"],
        "prediction": ["yes"],
    }


def test_csv_is_read_like_requests(predict, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("carrier,distance,hour,late\nUA,NA,5.0,True\nUA,1e3,6,0\n")

    predict(path, "made.csv")

    assert read(tmp_path / "out" / "made.csv") == {"prediction": ["no", "yes"]}


def test_tensor_outputs_have_the_names_of_the_signature(predict, tmp_path):
    image = pa.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 1.0]], pa.list_(pa.float32()))
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": [1, 2], "image": image}), path)

    predict(path, "made.jsonl", keep=("id",), model=tensor_model(tmp_path / "tensor"))

    assert read(tmp_path / "out" / "made.jsonl") == {
        "id": [1, 2],
        "doubled": [[[2.0, 4.0], [6.0, 8.0]], [[0.0, 0.0], [0.0, 2.0]]],
        "total": [10.0, 1.0],
    }


def test_tensor_without_name_takes_the_columns_not_kept(predict, tmp_path):
    graph = "double (float[N,2] x) => (float[N,2] y) { y = Add(x, x) }"
    folder = write_model(tmp_path / "pair", graph, [tensor_column("float32", -1, 2)])
    path = tmp_path / "rows.csv"
    path.write_text("id,a,b\n7,1,2\n8,3,4\n")

    predict(path, "made.jsonl", keep=("id",), model=folder)

    assert read(tmp_path / "out" / "made.jsonl") == {
        "id": ["7", "8"],
        "y": [[2.0, 4.0], [6.0, 8.0]],
    }


def test_dictionary_encoded_texts_are_ordinary_texts(predict, tmp_path):
    rows = flights(20_000).set_column(2, "carrier", pa.array([None, *["AA", "UA"] * 9_999, "AA"]))
    path = write(rows, tmp_path / "rows.parquet")

    assert predict(path, "made.parquet", on_error="skip-row") == PartResult(19_999, 1)
    predict(path, "kept.parquet", on_error="skip-row", keep=("carrier",))

    assert read(tmp_path / "out" / "made.parquet")["prediction"] == labels(rows.slice(1))
    output = pq.read_table(tmp_path / "out" / "kept.parquet")
    assert output.schema.field("carrier").type == pa.string()
    assert output["carrier"].to_pylist() == rows["carrier"].to_pylist()[1:]
    rejected = json.loads((tmp_path / "out/_rejected/made.parquet.jsonl").read_text())
    assert rejected["row"] == 0
    assert rejected["content"]["carrier"] is None


def test_graph_of_batch_size_one_runs_per_row(predict, tmp_path):
    graph = "one (float[1,1] x) => (float[1,1] y) { y = Add(x, x) }"
    folder = write_model(
        tmp_path / "one", graph, [{"name": "x", "type": "float", "required": True}]
    )
    path = tmp_path / "rows.csv"
    path.write_text("x\n1\n2\n3\n")

    predict(path, "made.csv", model=folder)

    assert read(tmp_path / "out" / "made.csv") == {"y": [2, 4, 6]}


@pytest.mark.parametrize("given", ["csv", "jsonl", "parquet"])
def test_file_without_rows_keeps_its_columns(predict, tmp_path, given):
    rows = flights(0)
    path = tmp_path / f"rows.{given}"
    if given == "csv":
        path.write_text("id,carrier,distance,hour,late")  # The line end is missing.
    elif given == "jsonl":
        path.write_text("\n")
    else:
        write(rows, path)

    assert predict(path, "made.parquet", keep=("id",)).rows == 0

    # JSON Lines without lines do not specify a type for `id`.
    id_columns = [] if given == "jsonl" else ["id"]
    assert pq.read_schema(tmp_path / "out" / "made.parquet").names == [*id_columns, "prediction"]


BAD = {
    "csv": (
        "id,carrier,distance,hour,late\n"
        "0,AA,1,1,true\n"
        "1,AA,1\n"
        "2,UA,far,1,true\n"
        "3,UA,1,1,false\n"
        "4,UA,9,1,0,x\n"
        "5,AA,2,2,1\n"
    ),
    "jsonl": "\n".join(
        [
            '{"id": 0, "carrier": "AA", "distance": 1, "hour": 1, "late": true}',
            '{"id": 1, "carrier"',
            '{"id": 2, "carrier": "UA", "distance": "far", "hour": 1, "late": true}',
            '{"id": 3, "carrier": "UA", "distance": 1, "hour": 1.0, "late": false}',
            "[4]",
            '{"id": 5, "carrier": "AA", "distance": 2, "hour": 2, "late": true}',
        ]
    ),
}


@pytest.mark.parametrize("given", ["csv", "jsonl"])
def test_bad_rows_are_skipped_and_recorded_with_reason(predict, tmp_path, given):
    path = tmp_path / f"rows.{given}"
    path.write_text(BAD[given])

    result = predict(path, "d=1/made.jsonl", keep=("id",), on_error="skip-row")

    assert result == PartResult(3, 3)
    made = read(tmp_path / "out" / "d=1" / "made.jsonl")
    assert [int(number) for number in made["id"]] == [0, 3, 5]
    assert made["prediction"] == ["yes", "yes", "yes"]
    rejected = [
        json.loads(line)
        for line in (tmp_path / "out/_rejected/d=1/made.jsonl.jsonl").read_text().splitlines()
    ]
    assert [row["row"] for row in rejected] == [1, 2, 4]
    assert re.search("far|str", rejected[1]["why"])
    assert "far" in str(rejected[1]["content"])


@pytest.mark.parametrize("given", ["csv", "jsonl"])
def test_first_bad_row_ends_the_part(predict, tmp_path, given):
    path = tmp_path / f"rows.{given}"
    path.write_text(BAD[given])

    with pytest.raises(OnnxserveError, match=rf"^rows\.{given}: row 1 "):
        predict(path, "made.jsonl")

    assert not (tmp_path / "out" / "made.jsonl").exists()


@pytest.mark.parametrize(
    ("place", "column", "value", "message"),
    [
        (4, "hour", 1, r"column 'hour' \(long\): null; an"),
        (5, "late", True, "column 'late' is null; true or false"),
    ],
)
def test_row_refused_by_the_model_is_named(predict, tmp_path, place, column, value, message):
    values = pa.array([None if row == 77_777 else value for row in range(80_000)])
    path = write(flights(80_000).set_column(place, column, values), tmp_path / "rows.parquet")

    with pytest.raises(InvalidRequest, match=rf"^rows\.parquet: row 77777.*{message}"):
        predict(path, "made.parquet", threads=3)

    assert predict(path, "made.parquet", on_error="skip-row") == PartResult(79_999, 1)


MISTAKES = {
    "a missing column": (lambda rows: rows.drop_columns("hour"), {}, "column 'hour' is missing"),
    "a kept column that is not there": (
        lambda rows: rows,
        {"keep": ("day",)},
        "--keep day: no such column",
    ),
    "a type that no number has": (
        lambda rows: rows.set_column(4, "hour", rows["ts"]),
        {},
        "column 'hour' has Arrow's type string; numbers are expected",
    ),
    "a column of the model that stands twice": (
        lambda rows: rows.append_column("hour", rows["id"]),
        {},
        "column 'hour' is duplicated",
    ),
    "a kept column that stands twice": (
        lambda rows: rows.append_column("id", rows["id"]),
        {"keep": ("id",)},
        "column 'id' is duplicated",
    ),
    "a kept column with the output's name": (
        lambda rows: rows.append_column("prediction", rows["id"]),
        {"keep": ("prediction",)},
        "--keep prediction: it is also an output of the model",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_unsuitable_parquet_file_is_refused(predict, tmp_path, mistake):
    change, options, message = MISTAKES[mistake]
    path = write(change(flights(10)), tmp_path / "rows.parquet")

    with pytest.raises(OnnxserveError, match=rf"^rows\.parquet: {message}"):
        predict(path, "made.parquet", on_error="skip-row", **options)


HEADER = "id,carrier,distance,hour,late"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", f"{HEADER},größe\n".encode("latin-1"), "its header is not in UTF-8"),
        ("rows.csv", f"{HEADER}\n".encode("utf-16"), "its header is not in UTF-8"),
        ("rows.csv", f"{HEADER},hour\n0,AA,1,1,true,1\n".encode(), "column 'hour' is duplicated"),
        ("rows.csv", b'id,"carrier,distance\n0,AA,1\n', "its header is not valid CSV: "),
    ],
)
def test_unreadable_csv_header_is_refused(predict, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(InvalidRequest, match=message):
        predict(path, "made.parquet", on_error="skip-row")


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize(
    "bad",
    [
        b"null",
        b'{"carrier": "AA", "distance": 1, "hour": 2.5, "late": true}',
        b'{"carrier": "AA", "distance": true, "hour": 1, "late": true}',
        b'{"carrier": "M\xfc", "distance": 1, "hour": 1, "late": true}',
    ],
)
def test_json_line_that_arrow_misreads_is_a_bad_row(predict, tmp_path, bad, number):
    lines = [b'{"carrier": "AA", "distance": 1, "hour": 1, "late": true}'] * 3
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join([*lines[:number], bad, *lines[number:]]))

    assert predict(path, "made.jsonl", on_error="skip-row") == PartResult(3, 1)

    assert json.loads((tmp_path / "out/_rejected/made.jsonl.jsonl").read_text())["row"] == number


@pytest.mark.parametrize("hour", ["2.5", "99999999999999999999", "1e30"])
def test_fraction_for_integer_is_a_bad_row(predict, tmp_path, hour):
    path = tmp_path / "rows.csv"
    path.write_text(f"{HEADER}\n0,AA,1,1,true\n1,AA,1,{hour},true\n2,AA,1,1.0,true\n")

    assert predict(path, "made.csv", on_error="skip-row") == PartResult(2, 1)

    assert "column 'hour' (long)" in (tmp_path / "out/_rejected/made.csv.jsonl").read_text()


def test_damaged_file_is_named(predict, tmp_path):
    path = write(flights(10), tmp_path / "rows.parquet")
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(InvalidRequest, match=r"^rows\.parquet:.*format parquet"):
        predict(path, "made.parquet")


def test_damaged_end_leaves_no_output(predict, tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(flights(50_000), path, row_group_size=10_000, compression="none")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200_000] = bytes(200_000)
    path.write_bytes(content)

    with pytest.raises(OnnxserveError, match=r"^rows\.parquet: "):
        predict(path, "made.parquet")

    assert list((tmp_path / "out").rglob("*.parquet")) == []


def test_float_values_are_exact(predict, tmp_path):
    graph = "same (double[N,1] x) => (double[N,1] y) { y = Identity(x) }"
    folder = write_model(
        tmp_path / "same", graph, [{"name": "x", "type": "double", "required": True}]
    )
    values = np.random.default_rng(0).normal(size=1000)
    path = tmp_path / "rows.csv"
    path.write_text("x\n" + "\n".join(map(repr, values.tolist())))

    predict(path, "made.parquet", model=folder)

    assert read(tmp_path / "out" / "made.parquet")["y"] == values.tolist()


def test_other_csv_separator_is_named(predict, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("carrier;distance;hour;late\nUA;1;5;true\n")
    with pytest.raises(
        OnnxserveError, match=r"rows\.csv: the CSV separates its columns with semicolons"
    ):
        predict(path, "made.csv")
