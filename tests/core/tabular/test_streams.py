"""Files of any size, block by block: row numbers, types, bad rows."""

import csv
import gzip
import io
import json
from datetime import date, datetime, time
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from mlflow_deploy_plugin.core.errors import InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.core.tabular.row_files import open_parquet
from mlflow_deploy_plugin.core.tabular.streams import (
    RowStream,
    read_parquet,
    read_table,
    typed_tables,
)
from mlflow_deploy_plugin.watch.drift.references.rows import load_datasets
from mlflow_deploy_plugin.wrap.flavor.example_rows import read_rows
from tests.support.refusals import refused


def stream(content, kind, **types):
    return RowStream(pa.BufferReader(content), kind, types)


def joined(blocks):
    numbers = chain.from_iterable(block.numbers for block in blocks)
    bad = chain.from_iterable(block.bad for block in blocks)
    return list(numbers), [row.number for row in bad]


@pytest.fixture
def small_blocks(monkeypatch):
    """Let a block have 128 kB."""
    monkeypatch.setattr("mlflow_deploy_plugin.core.tabular.streams._BLOCK_BYTES", 2**17)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("bad", [(0,), (480, 481, 1_249), (380,)])
def test_csv_rows_keep_numbers_past_bad_rows(bad):
    lines = [b"1,2,3" if row in bad else b"%d,%s" % (row, b"x" * 260) for row in range(1_250)]

    blocks = list(stream(b"a,b\n" + b"\n".join(lines) + b"\n", "csv").blocks(["a"]))

    numbers, left_out = joined(blocks)
    assert len(blocks) > 1
    assert left_out == list(bad)
    assert numbers == [row for row in range(1_250) if row not in bad]
    values = chain.from_iterable(block.table["a"].to_pylist() for block in blocks)
    assert list(map(int, values)) == numbers
    assert blocks[-1].position == 4 + sum(map(len, lines)) + len(lines)


FIELDS = st.text(st.sampled_from('ab "\n,\u00e9'), max_size=6)


@settings(max_examples=50)
@given(st.lists(st.lists(FIELDS, min_size=1, max_size=4), max_size=30))
def test_csv_matches_csv_module(rows):
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(["x", "y"])
    writer.writerows(rows)

    blocks = list(stream(text.getvalue().encode(), "csv").blocks(["x", "y"]))

    whole = {number: row for number, row in enumerate(rows) if len(row) == 2}
    numbers, bad = joined(blocks)
    assert numbers == list(whole)
    assert bad == [number for number in range(len(rows)) if number not in whole]
    records = chain.from_iterable(block.table.to_pylist() for block in blocks)
    read = [(record["x"] or "", record["y"] or "") for record in records]
    assert read == [tuple(row) for row in whole.values()]


UNREADABLE = {
    "a quotation mark that is not closed": b'2,"y',
    "text behind a quotation mark": b'2,"y"y',
    "too few fields": b"2",
    "a byte that is not UTF-8": b"2,M\xfcnchen",
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("row", [0, 280])
@pytest.mark.parametrize("after", [b"3,z", b'3,"z"', b'3,"z\nz"', b'3,5" pipe'])
@pytest.mark.parametrize("bad", UNREADABLE)
def test_only_unreadable_row_is_omitted(bad, after, row):
    lines = [b"1," + b"x" * 520] * row + [UNREADABLE[bad]] + [after] * (300 - row)

    blocks = list(stream(b"a,b\n" + b"\n".join(lines), "csv").blocks(["b"]))

    numbers, left_out = joined(blocks)
    assert left_out == [row]
    assert numbers == [number for number in range(301) if number != row]
    (rejected,) = chain.from_iterable(block.bad for block in blocks)
    assert rejected.content == UNREADABLE[bad].decode(errors="replace")
    assert sum(len(block.table) for block in blocks) == 300


def test_long_value_survives_unreadable_row():
    rows = stream(b"a,b\n1\n2," + b"x" * 1_000_000 + b"\n", "csv")

    (block,) = rows.blocks(["b"])

    assert [row.why for row in block.bad] == ["1 fields; the header has 2"]
    assert len(block.table["b"][0].as_py()) == 1_000_000


def test_invalid_utf_8_in_unread_column_is_ignored():
    rows = stream(b"a,b\n1,M\xfcnchen\n2,z\n3\n", "csv")

    (block,) = rows.blocks(["a"])

    assert block.table["a"].to_pylist() == ["1", "2"]
    assert list(block.numbers) == [0, 1]
    assert [row.number for row in block.bad] == [2]


@pytest.mark.usefixtures("small_blocks")
def test_carriage_return_ends_csv_line():
    rows = stream(b"a,b\r" + b"1,x\r" * 50_000, "csv")

    assert sum(len(block.table) for block in rows.blocks(["a", "b"])) == 50_000


@pytest.mark.parametrize("bad", [b"", b"3,4\n"])
def test_line_of_spaces_is_not_a_row(bad):
    (block,) = stream(b'a\n1\n  \n""\n' + bad, "csv").blocks(["a"])

    assert block.table["a"].to_pylist() == ["1", None]


def test_csv_may_have_bom_quotes_and_gaps():
    rows = stream('\ufeffa,"b,c"\r\n1,"x\ny"\r\n,""\r\n'.encode(), "csv")

    assert rows.schema.names == ["a", "b,c"]
    (block,) = rows.blocks(["a", "b,c"])
    assert block.table.to_pydict() == {"a": ["1", None], "b,c": ["x\ny", None]}


def test_json_lines_have_requested_or_inferred_types():
    content = b'{"a": 1, "b": 2, "t": "2026-01-01"}\n\n{"a": 2.0, "c": [1, 2.5]}\n[]\n'

    rows = stream(content, "jsonl", a=pa.int64())

    assert rows.schema == pa.schema(
        [("a", pa.int64()), ("b", pa.int64()), ("t", pa.string()), ("c", pa.list_(pa.float64()))]
    )
    (block,) = rows.blocks(["a", "t", "c"])
    assert block.table.to_pydict() == {
        "a": [1, 2],
        "t": ["2026-01-01", None],
        "c": [None, [1.0, 2.5]],
    }
    assert list(block.numbers) == [0, 1]
    assert block.bad[0].number == 2
    assert block.bad[0].why == "it is not a JSON object"


@pytest.mark.parametrize(
    ("content", "kind", "names"),
    [
        (b"[]", "json", ("json", "csv, jsonl, parquet")),
        (b'{"a": 1}\n{"a": "x"}\n', "jsonl", ("column 'a'",)),
    ],
)
def test_unreadable_content_is_refused(content, kind, names):
    with refused(OnnxserveError, *names):
        list(stream(content, kind).blocks(["a"]))


@pytest.mark.usefixtures("small_blocks")
def test_later_json_line_fits_or_is_bad():
    lines = [b'{"a": 1, "b": [1], "c": {"d": 1}, "t": "%s"}' % (b"x" * 1000)] * 160
    later = [
        b'{"a": 1.5}',
        b'{"b": [true]}',
        b'{"c": {"d": 1.5}}',
        b'{"a": 2.0, "b": [null, 3.0], "c": {}}',
    ]

    *_, last = stream(b"\n".join([*lines, *later, b""]), "jsonl").blocks(["a", "b", "c"])

    assert [row.why for row in last.bad] == [
        "column 'a': 1.5 is not of type int64",
        "column 'b': [True] is not of type list<item: int64>",
        "column 'c': {'d': 1.5} is not of type struct<d: int64>",
    ]
    assert last.table.to_pylist()[-1] == {"a": 2, "b": [None, 3], "c": {"d": None}}


@pytest.mark.usefixtures("small_blocks")
def test_requested_late_json_column_is_found(tmp_path):
    path = tmp_path / "rows.jsonl"
    plain = b'{"a": 1, "said": "b", "null": null, "fill": "%s"}\n' % (b"x" * 80)
    path.write_bytes(plain * 3_200 + b'{"a": 2, "b": 0.5, "c" : "z", "null": 7, "d": 1}\n')

    with pa.OSFile(str(path)) as file:
        rows = RowStream(
            file,
            "jsonl",
            {"a": pa.int64(), "b": pa.float64(), "not there": pa.string()},
            ["c", "null"],
        )
        assert rows.schema.names == ["a", "said", "null", "fill", "b", "c"]
        blocks = list(rows.blocks(["b", "c", "null"]))

    assert len(blocks) > 2
    assert joined(blocks) == (list(range(3_201)), [])
    assert blocks[0].table.slice(0, 1).to_pylist() == [{"b": None, "c": None, "null": None}]
    assert blocks[-1].table.slice(blocks[-1].table.num_rows - 1).to_pylist() == [
        {"b": 0.5, "c": "z", "null": 7}
    ]


@pytest.mark.usefixtures("small_blocks")
def test_escaped_late_json_column_is_found():
    """Python's `json` and pandas escape names that are not ASCII."""
    plain = b'{"a": 1, "fill": "%s"}\n' % (b"x" * 2**11)
    late = json.dumps({"größe": 0.5}).encode()
    assert (
        "größe"
        in stream(plain * 200 + late, "jsonl", a=pa.int64(), größe=pa.float64()).schema.names
    )


@pytest.mark.usefixtures("small_blocks")
def test_wide_parquet_has_small_blocks(tmp_path):
    values = pa.array(np.arange(100 * 4000, dtype=np.float64))
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.table({"x": pa.FixedSizeListArray.from_arrays(values, 4000)}), path, use_dictionary=False
    )

    with fs.LocalFileSystem().open_input_file(str(path)) as file:
        blocks = list(RowStream(file, "parquet", {}).blocks(["x"]))

    assert joined(blocks) == (list(range(100)), [])
    assert max(block.table.nbytes for block in blocks) < 6e5


def test_damaged_parquet_page_is_detected():
    file = io.BytesIO()
    table = pa.table({"x": range(1000)})
    pq.write_table(table, file, write_page_checksum=True, use_dictionary=False, compression="none")
    content = bytearray(file.getvalue())
    content[4000] ^= 1
    with pytest.raises(InvalidRequest, match=r"row 0: .*checksum"):
        list(stream(bytes(content), "parquet").blocks(["x"]))


def test_table_has_known_types(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n1,\n2,"x"\n')
    assert read_table(tmp_path / "t.csv", {}).to_pydict() == {"a": [1, 2], "b": [None, "x"]}
    assert read_table(tmp_path / "t.csv", {"a": pa.string()}).column("a").to_pylist() == ["1", "2"]
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", {"a": pa.string()}).column("a").to_pylist() == [1, 2]


def test_table_may_be_compressed(tmp_path):
    lines = "".join(f'{row},"a, {row:x}"\n' for row in range(5000))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(f"a,b\n{lines}".encode()))
    assert read_table(tmp_path / "t.csv.gz", {}).column("a").to_pylist() == list(range(5000))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("a,b,a\n1,2,3\n", "'a'"),
        ("a,b\n1\n", "row 0"),
        ('a,b\n1,x\n2,"y\n3,z\n', "^row 1: "),
        ('a,b\n1,x\n2,"y\n3,"z"\n', "^row 1: "),
        ('a,b\n1,x\n2,"y\n3,"z\n', "^row 1: "),
        ('a,b\n1,x\n2,"y"z\n', "^row 1: "),
    ],
)
def test_table_with_bad_row_or_header_is_refused(tmp_path, content, named):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(pa.ArrowInvalid, match=named):
        read_table(tmp_path / "t.csv", {})


@pytest.mark.parametrize(
    "read",
    [
        lambda path: next(iter(stream(path.read_bytes(), "parquet").blocks(["x"]))).table,
        lambda path: open_parquet(path.open("rb")).read(),
        read_parquet,
        lambda path: load_datasets([str(path)])[0].table,
        lambda path: pa.table(dict(read_rows(path))),
    ],
    ids=["block by block", "a file", "a table", "a dataset", "an example"],
)
def test_spark_dates_exceed_nanosecond_range(tmp_path, read):
    """Parquet's INT96 is read as nanoseconds by default, so that the year 9999 became
    1816.
    """
    last = datetime(9999, 12, 31)
    table = pa.table({"x": [last], "y": [1]})
    pq.write_table(table, tmp_path / "t.parquet", use_deprecated_int96_timestamps=True)
    read_back = read(tmp_path / "t.parquet")
    (time,) = read_back.column("x" if "x" in read_back.column_names else "_event_time").to_pylist()
    assert time.replace(tzinfo=None) == last


def test_table_values_may_have_quotes_and_newlines(tmp_path):
    long = "x" * 200_000
    (tmp_path / "t.csv").write_text(f'a,b\n"x\n""y""",1\n5" pipe,2\n{long},3\n')
    assert read_table(tmp_path / "t.csv", {}).column("a").to_pylist() == ['x\n"y"', '5" pipe', long]


LONG = "x" * 100
TYPED = {
    "map": pa.array([[("a", LONG)]] * 50, pa.map_(pa.string(), pa.string())),
    "list of texts": pa.array([[LONG, LONG]] * 50),
    "view": pa.array([LONG] * 50, pa.string_view()),
    "JSON": pa.array([f'"{LONG}"'] * 50, pa.json_()),
    "bytes of one length": pa.array([LONG.encode()] * 50, pa.binary(100)),
}


@pytest.mark.parametrize("values", TYPED.values(), ids=TYPED.keys())
def test_parquet_values_of_any_type_are_bounded(tmp_path, monkeypatch, values):
    table = pa.table({"a": values})
    file = tmp_path / "rows.parquet"
    pq.write_table(table, file, row_group_size=20)

    assert read_parquet(file).equals(table)
    monkeypatch.setattr("mlflow_deploy_plugin.core.tabular.streams.MAX_BYTES", 4_000)
    with pytest.raises(pa.ArrowInvalid, match="4,000 bytes"):
        read_parquet(file)


US = pa.timestamp("us")
NS = pa.timestamp("ns")


def typed(texts, known=None):
    table = pa.table({"x": pa.array(texts, pa.string())})
    return typed_tables([table], {} if known is None else {"x": known})[0].column("x")


@pytest.mark.parametrize(
    ("texts", "kind", "values"),
    [
        (["1", None, "-2"], pa.int64(), [1, None, -2]),
        (["1", "NA", " 2"], pa.int64(), [1, None, 2]),
        (["9007199254740993"], pa.int64(), [2**53 + 1]),
        (["18446744073709551615"], pa.uint64(), [2**64 - 1]),
        (["0", "0.5", "1e3", "NaN"], pa.float64(), [0.0, 0.5, 1000.0, None]),
        (["True", "false", None], pa.bool_(), [True, False, None]),
        (["2024-01-31"], pa.date32(), [date(2024, 1, 31)]),
        (["2024-01-31T12:00:00"], US, [datetime(2024, 1, 31, 12)]),
        (
            ["2024-01-31", "2024-01-31 12:00"],
            US,
            [datetime(2024, 1, 31), datetime(2024, 1, 31, 12)],
        ),
        ([None, None], pa.null(), [None, None]),
        (["01234", "90210"], pa.string(), ["01234", "90210"]),
        (["007.5"], pa.string(), ["007.5"]),
        (["0x1f"], pa.string(), ["0x1f"]),
        (["NA", None], pa.string(), ["NA", None]),
        (["31.01.2024"], pa.string(), ["31.01.2024"]),
        ([" x"], pa.string(), [" x"]),
    ],
)
def test_column_type_is_inferred(texts, kind, values):
    assert typed(texts).type == kind
    assert typed(texts).to_pylist() == values


@pytest.mark.parametrize(
    ("texts", "known", "values"),
    [
        (["1", "NA", None], pa.string(), ["1", "NA", None]),
        (["1"], pa.dictionary(pa.int32(), pa.string()), ["1"]),
        (["01234", "NA"], pa.int64(), [1234, None]),
        (["0", "1"], pa.bool_(), [False, True]),
        (["1", "2"], pa.float32(), [1.0, 2.0]),
        (["08:30:01"], pa.time64("us"), [time(8, 30, 1)]),
        ([None], pa.float64(), [None]),
    ],
)
def test_known_type_is_preferred(texts, known, values):
    kind = known.value_type if pa.types.is_dictionary(known) else known
    assert typed(texts, known).type == kind
    assert typed(texts, known).to_pylist() == values


@pytest.mark.parametrize(
    ("texts", "known", "kind"),
    [
        (["1.5"], pa.int64(), pa.float64()),
        (["Y"], pa.bool_(), pa.string()),
        (["n/d", "1"], pa.int64(), pa.string()),
        (["31.01.2024"], pa.date32(), pa.string()),
        (["3000000000"], pa.int32(), pa.int64()),
        (["1"], pa.list_(pa.int64()), pa.int64()),
        (["1"], pa.null(), pa.int64()),
        (["2024-01-31 12:00:00.000000001"], US, NS),
    ],
)
def test_unfit_known_type_is_ignored(texts, known, kind):
    assert typed(texts, known).type == kind


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (["1234"], ["01234"], pa.string()),
        (["1"], ["1.5"], pa.float64()),
        (["1"], ["x"], pa.string()),
        (["1"], [None], pa.int64()),
        (["2024-01-31"], ["2024-01-31 12:00"], US),
        (["2024-01-31"], ["31.01.2024"], pa.string()),
        (["True"], ["0"], pa.bool_()),
    ],
)
def test_column_has_one_type_in_all_files(one, other, kind):
    tables = [pa.table({"x": pa.array(texts, pa.string())}) for texts in (one, [*other, *other])]

    read = typed_tables([*tables, pa.table({"y": ["1"]})], {})

    assert [table.schema for table in read[:2]] == [pa.schema([("x", kind)])] * 2
    assert [table.num_rows for table in read] == [1, 2, 1]
    assert read[2].to_pydict() == {"y": [1]}


def test_json_lines_with_a_name_per_line_are_refused():
    lines = "".join(f'{{"name{number}": {number}}}\n' for number in range(20_000))
    rows = stream(lines.encode(), "jsonl")

    with refused(InvalidRequest, "20,000"):
        list(rows.blocks(rows.schema.names))
