"""Label files, row by row: a bad row is reported and does not affect other rows."""

import io
from datetime import date
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.serve.inference_log.label_files import (
    BadRow,
    LabelColumns,
    LabelEntry,
    read_label_file,
)
from mlflow_deploy_plugin.serve.spool.codec import Feedback
from tests.support.refusals import mentions, refused

KEY = LabelColumns(key=("flight", "day"), label="late")


def read(kind, content, columns=None):
    data = content.encode() if isinstance(content, str) else content
    return list(read_label_file(io.BytesIO(data), "labels", kind, columns or LabelColumns()))


def good(rows):
    return [row.feedback for row in rows if isinstance(row, LabelEntry)]


def bad(rows):
    return {row.place: row.why for row in rows if isinstance(row, BadRow)}


def parquet(**columns):
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content)
    return content.getvalue()


def test_csv_by_prediction_id_and_row():
    rows = read("csv", "\ufeffprediction_id,row,label,other\na,0,1,x\n\nb,,late,x\n")

    assert good(rows) == [Feedback("a", 0, None, "1"), Feedback("b", None, None, "late")]
    assert [row.place for row in rows] == ["line 2", "line 4"]


def test_csv_by_key_columns():
    rows = read("csv", 'flight,late,day\n7,1,"July, the 1st"\n', KEY)
    assert good(rows) == [Feedback(None, None, {"flight": "7", "day": "July, the 1st"}, "1")]


def test_csv_keys_are_numbers_like_the_log():
    columns = LabelColumns(key=("flight", "name"), label="late", numbers=frozenset({"flight"}))
    rows = read("csv", "flight,name,late\n7.0,7.0,1\n.50,x,1\n8,y,1\n1.2.3,z,1\n", columns)
    assert [entry.key["flight"] for entry in good(rows) if entry.key] == [7.0, 0.5, "8", "1.2.3"]
    assert good(rows)[0].key == {"flight": 7.0, "name": "7.0"}


def test_parquet_of_bytes_decimals_and_lists():
    ids = pa.array([b"a", b"\xff", b"c"])
    label = [Decimal("1.10"), Decimal("2.0"), Decimal("100")]
    rows = read("parquet", parquet(prediction_id=ids, label=label))
    assert good(rows) == [Feedback("a", None, None, "1.1"), Feedback("c", None, None, "100")]
    assert list(bad(rows)) == ["row 1 (from 0)"]
    lists = bad(read("parquet", parquet(prediction_id=["a"], label=[[1]])))
    assert lists["row 0 (from 0)"].startswith("label is [1]")


def test_jsonl_accepts_feedback_bodies_and_columns():
    lines = (
        '{"prediction_id": "a", "row": 1, "label": 2.5}\n{"key": {"flight": 7}, "label": null}\n'
    )
    assert good(read("jsonl", lines)) == [
        Feedback("a", 1, None, 2.5),
        Feedback(None, None, {"flight": 7}, None),
    ]
    columns = '{"flight": 7, "day": null, "late": true, "more": [1]}\n'
    assert good(read("jsonl", columns, KEY)) == [
        Feedback(None, None, {"flight": 7, "day": None}, True)
    ]


def test_parquet_keeps_types():
    content = parquet(
        flight=[7, 8], day=[date(2013, 7, 1)] * 2, late=[True, None], unused=[[1], [2]]
    )

    rows = read("parquet", content, KEY)

    assert good(rows) == [Feedback(None, None, {"flight": 7, "day": "2013-07-01"}, True)]
    assert bad(rows) == {"row 1 (from 0)": "its 'late' is empty"}


def test_nan_is_missing_in_parquet():
    nan = float("nan")
    label = [1.0, nan, float("inf")]
    rows = read("parquet", parquet(prediction_id=["a", "b", "c"], row=[nan, 1.0, nan], label=label))
    assert good(rows) == [Feedback("a", None, None, 1.0), Feedback("c", None, None, "inf")]
    assert bad(rows) == {"row 1 (from 0)": "its 'label' is empty"}


def test_bad_rows_are_named_with_their_line():
    lines = [
        b"prediction_id,row,label",
        b"a,0,1",
        b"b,0",
        b",0,1",
        b"c,0,",
        b"d,-1,1",
        b"e,first,1",
        b"f,0," + b"x" * 2000,
        b"g\xff,0,1",
        b"h" * 200 + b",0,1",
        b"i,0,2",
        b"j," + b"9" * 5000 + b",1",
    ]

    rows = read("csv", b"\n".join(lines))

    assert [feedback.prediction_id for feedback in good(rows)] == ["a", "i"]
    assert "X-Prediction-Id" in bad(rows)["line 10"]
    assert "whole number" in bad(rows)["line 12"]
    assert "UTF-8" in bad(rows)["line 9"]
    assert {
        place: why
        for place, why in bad(rows).items()
        if place not in ("line 9", "line 10", "line 12")
    } == {
        "line 3": "2 fields; the header has 3",
        "line 4": "it has no 'prediction_id'",
        "line 5": "its 'label' is empty",
        "line 6": "row is '-1'; a whole number from 0 is expected",
        "line 7": "row is 'first'; a whole number from 0 is expected",
        "line 8": "label has 2000 characters; at most 1000 are allowed",
    }


def test_bad_lines_of_json_are_named():
    lines = '{"prediction_id": "a", "label": 1}\nnope\n[1]\n{"prediction_id": "a"}\n{"label": 1}\n'
    lines += '{"prediction_id": 5, "label": 1}\n'
    lines += (
        '{"prediction_id": "a", "key": {"f": 1}, "label": 1}\n{"key": {"f": [1]}, "label": 1}\n'
    )

    rows = read("jsonl", lines)

    assert len(good(rows)) == 1
    assert list(bad(rows)) == [f"line {number}" for number in range(2, 9)]
    assert bad(rows)["line 2"].startswith("it is not JSON")
    assert mentions(bad(rows)["line 4"], "no label", "null")


def test_many_rows_are_read_in_order():
    text = "prediction_id,label\n" + "".join(
        f"p{number},{number if number % 100 else ''}\n" for number in range(3500)
    )

    rows = read("csv", text)

    assert [row.place for row in rows] == [f"line {number + 2}" for number in range(3500)]
    assert len(bad(rows)) == 35


@pytest.mark.parametrize(
    ("kind", "content", "columns", "names"),
    [
        ("csv", "", LabelColumns(), ["empty"]),
        (
            "csv",
            "a,b\n1,2\n",
            LabelColumns(),
            ["'prediction_id'", "a, b", "--id-column", "--key"],
        ),
        ("csv", "prediction_id,label,label\np,0,1\n", LabelColumns(), ["two columns 'label'"]),
        ("csv", "flight,late\n1,2\n", KEY, ["'day'", "flight, late", "--key"]),
        ("csv", "flight,day\n1,2\n", KEY, ["'late'", "flight, day", "--label-column"]),
        ("parquet", b"PAR1", LabelColumns(), ["Parquet"]),
        ("parquet", parquet(a=[1]), LabelColumns(), ["'prediction_id'"]),
        (
            "parquet",
            parquet(prediction_id=["a"], label=pa.array([2**62], pa.timestamp("us"))),
            LabelColumns(),
            ["Parquet", "date value out of range"],
        ),
    ],
)
def test_file_without_the_columns_is_refused(kind, content, columns, names):
    with refused(InvalidConfig, "labels", *names):
        read(kind, content, columns)
