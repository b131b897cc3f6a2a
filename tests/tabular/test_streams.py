"""Files of any size, block by block: numbers of rows, types, bad rows."""

import csv
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from mlflow_deploy_plugin.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.tabular import FileFormat, RowBlock, RowStream


def stream(content: bytes, kind: FileFormat, **types: pa.DataType) -> RowStream:
    return RowStream(pa.BufferReader(content), kind, types)


def joined(blocks: list[RowBlock]) -> tuple[list[int], list[int]]:
    return [n for block in blocks for n in block.numbers], [row.number for block in blocks for row in block.bad]


@pytest.mark.parametrize("bad", [(0,), (150_000, 150_001, 399_999), (123_456,)])
def test_rows_of_a_csv_file_keep_their_numbers_past_bad_ones(bad: tuple[int, ...]) -> None:
    lines = [b"1,2,3" if row in bad else b"%d,%s" % (row, b"x" * 20) for row in range(400_000)]

    blocks = list(stream(b"a,b\n" + b"\n".join(lines) + b"\n", "csv").blocks(["a"]))

    numbers, left_out = joined(blocks)
    assert len(blocks) > 1
    assert left_out == list(bad)
    assert numbers == [row for row in range(400_000) if row not in bad]
    assert [int(value) for block in blocks for value in block.table["a"].to_pylist()] == numbers
    assert blocks[-1].position == 4 + sum(map(len, lines)) + len(lines)


FIELDS = st.text(st.sampled_from('ab "\n,\u00e9'), max_size=6)


@given(st.lists(st.lists(FIELDS, min_size=1, max_size=4), max_size=30))
def test_csv_is_read_as_the_csv_module_reads_it(rows: list[list[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(["x", "y"])
    writer.writerows(rows)

    blocks = list(stream(text.getvalue().encode(), "csv").blocks(["x", "y"]))

    whole = {number: row for number, row in enumerate(rows) if len(row) == 2}
    numbers, bad = joined(blocks)
    assert numbers == list(whole)
    assert bad == [number for number in range(len(rows)) if number not in whole]
    read = [(one["x"] or "", one["y"] or "") for block in blocks for one in block.table.to_pylist()]
    assert read == [tuple(row) for row in whole.values()]


def test_a_csv_file_may_have_a_byte_order_mark_quotes_and_empty_fields() -> None:
    rows = stream('\ufeffa,"b,c"\r\n1,"x\ny"\r\n,""\r\n'.encode(), "csv")

    assert rows.schema.names == ["a", "b,c"]
    (block,) = rows.blocks(["a", "b,c"])
    assert block.table.to_pydict() == {"a": ["1", None], "b,c": ["x\ny", None]}


def test_json_lines_have_the_types_of_the_caller_else_of_their_values() -> None:
    content = b'{"a": 1, "b": 2, "t": "2026-01-01"}\n\n{"a": 2.0, "c": [1, 2.5]}\n[]\n'

    rows = stream(content, "jsonl", a=pa.int64())

    assert rows.schema == pa.schema(
        [("a", pa.int64()), ("b", pa.int64()), ("t", pa.string()), ("c", pa.list_(pa.float64()))]
    )
    (block,) = rows.blocks(["a", "t", "c"])
    assert block.table.to_pydict() == {"a": [1, 2], "t": ["2026-01-01", None], "c": [None, [1.0, 2.5]]}
    assert (list(block.numbers), block.bad[0].number, block.bad[0].why) == ([0, 1], 2, "it is not a JSON object")


def test_a_later_line_keeps_its_values_or_is_a_bad_row() -> None:
    lines = [b'{"a": 1, "b": [1], "c": {"d": 1}, "t": "%s"}' % (b"x" * 1000)] * 5000
    later = [b'{"a": 1.5}', b'{"b": [true]}', b'{"c": {"d": 1.5}}', b'{"a": 2.0, "b": [null, 3.0], "c": {}}']

    *_, last = stream(b"\n".join([*lines, *later, b""]), "jsonl").blocks(["a", "b", "c"])

    assert [row.why for row in last.bad] == [
        "column 'a': 1.5 is no int64",
        "column 'b': [True] is no list<item: int64>",
        "column 'c': {'d': 1.5} is no struct<d: int64>",
    ]
    assert last.table.to_pylist()[-1] == {"a": 2, "b": [None, 3], "c": {"d": None}}


def test_a_column_of_json_lines_with_several_types_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="column 'a' holds values of several types"):
        _ = stream(b'{"a": 1}\n{"a": "x"}\n', "jsonl").schema


def test_json_lines_over_several_blocks(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(b'{"a": %d, "b": "%s"}\n' % (row, b"x" * 90) for row in range(100_000)))

    with fs.LocalFileSystem().open_input_file(str(path)) as file:
        blocks = list(RowStream(file, "jsonl", {}).blocks(["a"]))

    assert len(blocks) > 1
    assert joined(blocks) == (list(range(100_000)), [])
    assert [value for block in blocks for value in block.table["a"].to_pylist()] == list(range(100_000))


def test_a_wide_parquet_file_comes_in_small_blocks(tmp_path: Path) -> None:
    values = pa.array(range(2000 * 4000), pa.float64())
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": pa.FixedSizeListArray.from_arrays(values, 4000)}), path, use_dictionary=False)

    with fs.LocalFileSystem().open_input_file(str(path)) as file:
        blocks = list(RowStream(file, "parquet", {}).blocks(["x"]))

    assert joined(blocks) == (list(range(2000)), [])
    assert max(block.table.nbytes for block in blocks) < 20e6


def test_a_json_document_has_no_stream() -> None:
    with pytest.raises(InvalidConfig, match="a json file is one document; csv, jsonl, parquet are read row by row"):
        stream(b"[]", "json")
