"""Tests of batches of a file's rows, and of the row in an error.
tests/cli/test_predict.py tests the command.
"""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.core.errors import BodyTooLarge, InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.ship.deployments.batch_prediction import (
    predict_batch,
    read_rows,
)
from tests.support.refusals import refused


@pytest.mark.parametrize(
    ("kind", "content", "bodies", "places"),
    [
        (
            "csv",
            b'a,b\n1,2\n\n3,"4\n5"\n6,7\n',
            [b'a,b\n1,2\n3,"4\n5"\n', b"a,b\n6,7\n"],
            [["line 2", "line 4"], ["line 6"]],
        ),
        (
            "jsonl",
            b'{"a": 1}\n\n{"a": 2}\n{"a": 3}',
            [b'{"dataframe_records":[{"a":1},{"a":2}]}', b'{"dataframe_records":[{"a":3}]}'],
            [["line 1", "line 3"], ["line 4"]],
        ),
        (
            "json",
            b'{"inputs": {"a": [1, 2, 3], "b": [4, 5, 6]}}',
            [b'{"inputs":{"a":[1,2],"b":[4,5]}}', b'{"inputs":{"a":[3],"b":[6]}}'],
            [["row 0 (from 0)", "row 1 (from 0)"], ["row 2 (from 0)"]],
        ),
    ],
)
def test_batches_have_bodies_and_row_places(kind, content, bodies, places):
    batches = list(read_rows(io.BytesIO(content), "rows", kind, 2))

    assert [batch.body for batch in batches] == bodies
    assert [list(batch.places) for batch in batches] == places


def test_parquet_rows_are_sent_as_arrow():
    file = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2, None], "b": ["x", "y", "z"]}), file)

    batches = list(read_rows(file, "rows", "parquet", 2))

    assert {batch.content_type for batch in batches} == {"application/vnd.apache.arrow.stream"}
    tables = [pa.ipc.open_stream(batch.body).read_all().to_pydict() for batch in batches]
    assert tables == [{"a": [1, 2], "b": ["x", "y"]}, {"a": [None], "b": ["z"]}]
    assert [list(batch.places) for batch in batches] == [
        ["row 0 (from 0)", "row 1 (from 0)"],
        ["row 2 (from 0)"],
    ]


@pytest.mark.parametrize(
    ("kind", "content", "names"),
    [
        ("csv", b"a,b\n1,2\n3\n", ["rows", "line 3", "1 fields"]),
        ("jsonl", b'{"a": 1}\n{"a"\n', ["rows", "line 2", "not valid JSON"]),
        ("json", b'"text"', ["rows", "a JSON object or array"]),
    ],
)
def test_invalid_row_names_its_line(kind, content, names):
    with refused(InvalidRequest, *names):
        list(read_rows(io.BytesIO(content), "rows", kind, 2))


def predict(batch, is_repeated):
    """A model that returns the double, and refuses texts and more than two rows."""
    rows = [row["a"] for row in json.loads(batch.body)["dataframe_records"]]
    if len(rows) > 2:
        raise BodyTooLarge("too many rows")
    for number, row in enumerate(rows):
        if isinstance(row, str):
            raise InvalidRequest(f"column a, row {number}: a number is expected")
    return [row * 2 for row in rows]


def predictions(*rows):
    content = b"".join(json.dumps({"a": row}).encode() + b"\n" for row in rows)
    (batch,) = read_rows(io.BytesIO(content), "rows", "jsonl", 100)
    return predict_batch(predict, "rows", batch)


def test_too_large_batch_is_split():
    assert predictions(1, 2, 3, 4, 5) == [2, 4, 6, 8, 10]


def test_refused_row_is_named_by_its_line():
    with refused(InvalidRequest, "rows", "line 4", "column a"):
        predictions(1, 2, 3, "x", 5)


def test_missing_predictions_are_an_error():
    (batch,) = read_rows(io.BytesIO(b"[1]\n[2]\n"), "rows", "jsonl", 2)
    with refused(OnnxserveError, "2 rows", "1 predictions"):
        predict_batch(lambda batch, is_repeated: [1], "rows", batch)
