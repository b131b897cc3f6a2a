"""File formats by file name, and files that are written completely or not at all."""

import io
import os
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.core.tabular.row_files import (
    atomic_file,
    format_of,
    json_lines,
    open_input,
    open_output,
    open_parquet,
    output_format,
    table_writer,
    unfinished_stem,
    value_writer,
    values_of,
)
from tests.support.refusals import refused


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.csv", "csv"),
        ("A.CSV", "csv"),
        ("a.ndjson", "jsonl"),
        ("a.pq", "parquet"),
        ("a.xlsx", None),
        ("-", None),
    ],
)
def test_file_ending_selects_format(name, kind):
    assert format_of(name) == kind


def test_output_format_defaults_to_input_format():
    assert output_format("out", "jsonl") == "jsonl"
    assert output_format("out.csv", "jsonl") == "csv"
    with pytest.raises(InvalidConfig, match=r"out\.xlsx.*\.csv .*-O"):
        output_format("out.xlsx", "jsonl")


def test_atomic_file_keeps_permissions(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"before")
    path.chmod(0o600)
    with atomic_file(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600, (
            "nor may others read what is written meanwhile"
        )
    assert path.read_bytes() == b"after"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["out"]


def test_unfinished_file_has_known_stem(tmp_path):
    with atomic_file(tmp_path / "b.csv") as file:
        file.write(b"rows")
        (unfinished,) = os.listdir(tmp_path)
    assert unfinished.rpartition(".")[0] == unfinished_stem("b.csv")
    assert os.listdir(tmp_path) == ["b.csv"]


def test_failed_atomic_file_is_unchanged(tmp_path):
    (tmp_path / "out").write_bytes(b"before")
    with suppress(ZeroDivisionError), atomic_file(tmp_path / "out") as file:
        file.write(b"half of")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"before"


def test_dash_is_standard_input_or_output(tmp_path):
    stdin = io.BytesIO(b"x")
    stdout = io.BytesIO()
    with open_input("-", stdin) as source, open_output("-", stdout) as target:
        target.write(source.read())
    assert stdout.getvalue() == b"x"
    with (
        refused(InvalidConfig, f"{tmp_path}/nothing", "No such file or directory"),
        open_input(f"{tmp_path}/nothing", stdin),
    ):
        pass
    with (
        pytest.raises(InvalidConfig, match=r"/no/out .*: the folder .*/no does not exist"),
        open_output(f"{tmp_path}/no/out", stdout),
    ):
        pass


def test_new_file_follows_umask(tmp_path, monkeypatch):
    plain = tmp_path / "plain"
    plain.touch()
    # With another umask, all threads would create files for everybody.
    monkeypatch.setattr("os.umask", None)
    with atomic_file(tmp_path / "new") as file:
        file.write(b"x")
    assert (tmp_path / "new").stat().st_mode == plain.stat().st_mode


def test_blank_json_lines_are_skipped():
    assert list(json_lines(io.BytesIO(b'{"a": 1}\n \n2'))) == [(1, b'{"a": 1}\n', 9), (3, b"2", 12)]


def test_unseekable_parquet_is_read(tmp_path):
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "t.parquet")

    class Stream(io.BytesIO):
        def seekable(self):
            return False

    assert open_parquet(Stream((tmp_path / "t.parquet").read_bytes())).read().num_rows == 2


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
def test_batches_are_written(kind, content):
    assert written(kind, TABLE) == content


def test_parquet_keeps_types():
    assert pq.read_table(io.BytesIO(written("parquet", TABLE))).schema == TABLE.schema


def test_nanoseconds_are_kept():
    table = pa.table({"t": pa.array([1], pa.timestamp("ns"))})
    assert written("jsonl", table) == b'{"t":"1970-01-01T00:00:00.000000001"}\n'
    assert written("csv", table) == b'"t"\n"1970-01-01T00:00:00.000000001"\n'


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("unit", ["s", "ns"])
def test_zoned_times_are_written_in_utc(kind, unit):
    noon = pa.array([datetime(2026, 1, 1, 12, tzinfo=UTC)]).cast(pa.timestamp(unit, "Asia/Tokyo"))

    assert b"2026-01-01T12:00:00.000000Z" in written(kind, pa.table({"t": noon}))


def test_empty_table_is_an_empty_array():
    assert written("json", TABLE.slice(0, 0)) == b"[]\n"


def test_unsupported_type_is_refused():
    with pytest.raises(InvalidConfig, match="cannot be written as parquet"):
        written("parquet", pa.table({"i": pa.array([None], pa.month_day_nano_interval())}))


def test_out_of_range_time_is_text():
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
def test_values_are_written_without_schema(kind, rows, content):
    file = io.BytesIO()
    with value_writer(kind, file, "prediction") as write:
        for row in rows:
            write([row])
    assert file.getvalue().replace(b'""\n', b"\n") == content


def test_nested_dates_are_texts():
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


def test_rows_of_different_columns_are_refused():
    with (
        refused(InvalidRequest, "a, and b"),
        value_writer("csv", io.BytesIO(), "prediction") as write,
    ):
        write([{"a": 1}, {"b": 2}])
