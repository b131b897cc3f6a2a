"""Values and batches as files of each format."""

import io
from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.tabular.row_files import table_writer, value_writer, values_of

TABLE = pa.table(
    {
        "t": pa.array([datetime(2013, 7, 1, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
        "x": pa.array([0.5, float("nan")]),
        "v": pa.array([[1, 2], None]),
        "b": pa.array([b"\x00", None]),
        "d": pa.array([Decimal("1.50"), None]),
    }
)


def written(kind, table):
    file = io.BytesIO()
    with table_writer(kind, table.schema, file, "choose another") as write:
        for batch in table.to_batches():
            write(batch)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (
            "csv",
            (
                b'"t","x","v","b","d"\n'
                b'"2013-07-01T00:00:00.000000Z",0.5,"[1, 2]","AA==","1.50"\n,nan,,,\n'
            ),
        ),
        (
            "json",
            b'[\n{"t":"2013-07-01T00:00:00.000000Z","x":0.5,"v":[1,2],"b":"AA==","d":"1.50"},\n'
            b'{"t":null,"x":null,"v":null,"b":null,"d":null}\n]\n',
        ),
        (
            "jsonl",
            b'{"t":"2013-07-01T00:00:00.000000Z","x":0.5,"v":[1,2],"b":"AA==","d":"1.50"}\n'
            b'{"t":null,"x":null,"v":null,"b":null,"d":null}\n',
        ),
    ],
)
def test_batches_of_one_schema(kind, content):
    assert written(kind, TABLE) == content


def test_batches_in_parquet_keep_their_types():
    assert pq.read_table(io.BytesIO(written("parquet", TABLE))).schema == TABLE.schema


def test_nanoseconds_stay_as_they_are():
    table = pa.table({"t": pa.array([1], pa.timestamp("ns"))})
    assert written("jsonl", table) == b'{"t":"1970-01-01T00:00:00.000000001"}\n'
    assert written("csv", table) == b'"t"\n"1970-01-01T00:00:00.000000001"\n'


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("unit", ["s", "ns"])
def test_times_of_a_zone_are_written_in_utc(kind, unit):
    noon = pa.array([datetime(2026, 1, 1, 12, tzinfo=UTC)]).cast(pa.timestamp(unit, "Asia/Tokyo"))

    assert b"2026-01-01T12:00:00.000000Z" in written(kind, pa.table({"t": noon}))


def test_no_rows_are_an_empty_array():
    assert written("json", TABLE.slice(0, 0)) == b"[]\n"


def test_a_type_that_a_format_lacks_is_one_line():
    with pytest.raises(InvalidConfig, match="cannot be written as parquet"):
        written("parquet", pa.table({"i": pa.array([None], pa.month_day_nano_interval())}))


def test_times_that_python_lacks_are_texts():
    assert values_of(pa.array([2**62], pa.timestamp("us"))) == [f"<value out of range: {2**62}>"]


@pytest.mark.parametrize(
    ("kind", "rows", "content"),
    [
        ("json", [1.5, [1, 2]], b'{"predictions": [1.5, [1,2]]}\n'),
        ("jsonl", [1.5, {"a": 1}], b'1.5\n{"a":1}\n'),
        ("csv", [1.5, None], b"prediction\n1.5\n\n"),
        ("csv", [{"a": [1, True], "b": {"c": 1}}], b'a_0,a_1,b\n1,true,"{""c"":1}"\n'),
    ],
)
def test_values_without_a_schema(kind, rows, content):
    file = io.BytesIO()
    with value_writer(kind, file, "prediction") as write:
        for row in rows:
            write([row])
    assert file.getvalue().replace(b'""\n', b"\n") == content


def test_dates_and_times_within_values_are_texts():
    table = pa.table(
        {"a": [{"day": date(2026, 1, 2), "at": datetime(2026, 1, 2, 3), "n": Decimal("1.50")}]}
    )
    assert (
        written("jsonl", table)
        == b'{"a":{"day":"2026-01-02","at":"2026-01-02T03:00:00","n":"1.50"}}\n'
    )
    assert written("csv", table) == (
        b'"a"\n"{""day"": ""2026-01-02"", ""at"": ""2026-01-02T03:00:00"", ""n"": ""1.50""}"\n'
    )
