"""Files of rows of any size as Arrow tables of a few megabytes, one after the other: CSV, JSON Lines and Parquet.

Nothing is guessed of a CSV file: its columns are texts, and an empty field is null. The columns of a JSON Lines file
have the types that the caller names, else those of its first block. Rows are counted from 0, without header and blank
lines.
"""

import codecs
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from mlflow_deploy_plugin.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.tabular.files import CsvRecord, FileFormat, csv_records, first_line

_BLOCK_BYTES = 4 * 2**20
_BLOCK_ROWS = 2**16
_HEADER_BYTES = 2**20
_STREAMED = ("csv", "jsonl", "parquet")


@dataclass(frozen=True)
class RejectedRow:
    """A row that cannot be read or predicted: its number in the file, from 0, the reason, and what it holds."""

    number: int
    why: str
    content: Any


@dataclass(frozen=True)
class RowBlock:
    """Rows that follow each other in a file.

    Attributes:
        table: the rows that can be read.
        numbers: the number of each of them in the file.
        bad: the rows that cannot.
        position: the bytes of the file that have been read, about.
    """

    table: pa.Table
    numbers: Sequence[int]
    bad: tuple[RejectedRow, ...] = ()
    position: int = 0

    def part(self, start: int, stop: int) -> "RowBlock":
        """Return some of the rows that can be read."""
        return RowBlock(self.table.slice(start, stop - start), self.numbers[start:stop])


class RowStream:
    """The rows of an open file.

    Args:
        file: a `pyarrow.NativeFile` that can be sought.
        types: Arrow types of columns by name, for JSON Lines.

    Raises (also while the blocks are taken):
        InvalidRequest: it is not of this format; the message ends with where.
        InvalidConfig: the format has no stream.
    """

    def __init__(self, file: pa.NativeFile, kind: FileFormat, types: Mapping[str, pa.DataType]) -> None:
        if kind not in _STREAMED:
            raise InvalidConfig(f"a {kind} file is one document; {', '.join(_STREAMED)} are read row by row")
        self._file = file
        self._kind = kind
        self._types = types

    @cached_property
    def schema(self) -> pa.Schema:
        """All columns with their types."""
        try:
            if self._kind == "parquet":
                return self._parquet.schema_arrow
            if self._kind == "jsonl":
                return self._json_schema()
            return pa.schema([(name, pa.string()) for name in (self._header.fields if self._header else [])])
        except UnicodeEncodeError:  # a byte that no UTF-8 has is a lone surrogate
            raise InvalidRequest("its header is not in UTF-8, which CSV files have to be written in") from None
        except (pa.ArrowException, OSError) as error:
            raise InvalidRequest(f"it is not a file of the format {self._kind}: {first_line(error)}") from None

    @cached_property
    def _header(self) -> CsvRecord | None:
        self._file.seek(0)
        return next(csv_records(io.BytesIO(self._file.read(_HEADER_BYTES))), None)

    def blocks(self, columns: Sequence[str]) -> Iterator[RowBlock]:
        """Yield the rows with these columns only, all of which are in the schema."""
        read = {"csv": self._csv_blocks, "jsonl": self._json_blocks, "parquet": self._parquet_blocks}[self._kind]
        row = 0
        try:
            for block in read(list(columns), self.schema):
                row = max([row, *block.numbers[-1:], *(bad.number for bad in block.bad[-1:])])
                yield block
        except (pa.ArrowException, OSError) as error:
            why = first_line(error)
            if self._kind == "csv":  # Arrow may advise a larger block, which nobody can choose here
                why += "; text is UTF-8, quotation marks come in pairs, and a row takes at most 4 MB"
            raise InvalidRequest(f"what follows row {row} cannot be read: {why}") from None

    def _csv_blocks(self, columns: list[str], schema: pa.Schema) -> Iterator[RowBlock]:
        if self._header is None or self._header.position >= self._file.size():
            return
        found: list[RejectedRow] = []

        def leave_out(row: Any) -> str:
            why = f"{row.actual_columns} fields; the header has {row.expected_columns}"
            found.append(RejectedRow(row.number - 2, why, row.text))  # Arrow counts from 1, and the header
            return "skip"

        self._file.seek(0)
        reader = pyarrow.csv.open_csv(
            self._file,
            pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=leave_out),
            pyarrow.csv.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(schema.names, pa.string()),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
        first = 0
        for batch in reader:
            bad, numbers = [], range(first, first + len(batch))
            while found and found[0].number <= numbers.stop:  # Arrow may have read more than it gives
                bad.append(found.pop(0))
                numbers = range(first, numbers.stop + 1)
            first = numbers.stop
            left_out = {row.number for row in bad}
            yield RowBlock(
                pa.Table.from_batches([batch]),
                [number for number in numbers if number not in left_out] if bad else numbers,
                tuple(bad),
                self._file.tell(),
            )
        if found:
            yield RowBlock(schema.empty_table().select(columns), (), tuple(found))

    def _json_schema(self) -> pa.Schema:
        columns: dict[str, list[Any]] = {}
        for line in next(self._json_lines(), []):
            try:
                record = orjson.loads(line)
            except ValueError:
                continue  # a bad row, as it turns out when it is its turn
            for name, value in record.items() if isinstance(record, dict) else ():
                columns.setdefault(name, []).append(value)
        types = {}
        for name, values in columns.items():
            try:
                types[name] = self._types.get(name) or pa.array(values).type
            except (pa.ArrowException, TypeError):
                raise InvalidRequest(f"column {name[:100]!r} holds values of several types") from None
        return pa.schema(list(types.items()))

    def _json_lines(self) -> Iterator[list[bytes]]:
        """Yield the lines that are not blank, those of a few megabytes at a time."""
        self._file.seek(0)
        rest = b""
        if self._file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            self._file.seek(0)
        while read := self._file.read(_BLOCK_BYTES):
            whole, newline, last = (rest + read).rpartition(b"\n")
            rest = last
            if newline:
                yield [line for line in whole.split(b"\n") if line and not line.isspace()]
        if rest and not rest.isspace():
            yield [rest]

    def _json_blocks(self, columns: list[str], schema: pa.Schema) -> Iterator[RowBlock]:
        wanted = pa.schema([schema.field(name) for name in columns])
        options = pyarrow.json.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore")
        first = 0
        for lines in self._json_lines():
            numbers, bad = range(first, first + len(lines)), []
            kept: Sequence[int] = numbers
            first = numbers.stop
            try:
                content = b"\n".join(lines)
                content.decode()  # Arrow takes any bytes, a null as a row of nulls, and dies of one in the first line
                if not all(line.lstrip().startswith(b"{") for line in lines):
                    raise ValueError
                reading = pyarrow.json.ReadOptions(use_threads=False, block_size=len(content) + 1)
                table = pyarrow.json.read_json(io.BytesIO(content), reading, options).select(columns)
                is_read = table.num_rows == len(lines)
            except (pa.ArrowException, KeyError, ValueError):
                is_read = False
            if not is_read:  # one by one, which also takes 20.0 for a whole number
                parts, read = [wanted.empty_table()], []
                for number, line in zip(numbers, lines, strict=True):
                    try:
                        record = orjson.loads(line)
                        if not isinstance(record, dict):
                            raise ValueError("it is not a JSON object")
                        for field in wanted:
                            if _is_changed(record.get(field.name), field.type):
                                raise ValueError(f"column {field.name!r}: {record[field.name]!r} is no {field.type}")
                        parts.append(pa.Table.from_pylist([record], wanted))
                        read.append(number)
                    except (pa.ArrowException, ValueError, TypeError) as error:
                        bad.append(RejectedRow(number, first_line(error), line.decode(errors="replace")))
                table, kept = pa.concat_tables(parts).combine_chunks(), read
            yield RowBlock(table, kept, tuple(bad), self._file.tell())

    @cached_property
    def _parquet(self) -> pq.ParquetFile:
        # buffered: of a row group of any size, only the pages that are being read are in memory
        return pq.ParquetFile(self._file, buffer_size=_BLOCK_BYTES // 4, pre_buffer=False)

    def _parquet_blocks(self, columns: list[str], schema: pa.Schema) -> Iterator[RowBlock]:
        metadata = self._parquet.metadata
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        row_bytes = max(1, size // max(1, metadata.num_rows))
        rows = max(1, min(_BLOCK_ROWS, 2 * _BLOCK_BYTES // row_bytes))
        first = 0
        for batch in self._parquet.iter_batches(rows, columns=columns, use_threads=False):
            table = pa.Table.from_batches([batch]).select(columns)
            numbers = range(first, first + len(batch))
            first = numbers.stop
            yield RowBlock(table, numbers, (), int(self._file.size() * first / metadata.num_rows))


def _is_changed(value: Any, kind: pa.DataType) -> bool:
    """Return True for a value that Arrow would take as another one: 2.5 as the whole number 2, true as 1."""
    if isinstance(value, bool):
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
    if isinstance(value, float):
        return pa.types.is_integer(kind) and not value.is_integer()
    if isinstance(value, list) and pa.types.is_list(kind):
        return any(_is_changed(one, kind.value_type) for one in value)
    if isinstance(value, dict) and pa.types.is_struct(kind):
        return any(_is_changed(value.get(field.name), field.type) for field in kind)
    return False
