"""Read files of rows of any size as a sequence of Arrow tables of a few megabytes: CSV,
JSON Lines and Parquet.

CSV columns are texts, and an empty field is null; `typed_tables` converts the texts to
typed values. JSON Lines columns have the types that the caller specifies, otherwise the
types inferred from the first block. Rows are counted from 0, without the header and
blank lines.
"""

import codecs
import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, product, starmap
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from mlflow_deploy_plugin.core.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.core.tabular.csv_file import MISSING_TEXTS, CsvRecord, csv_records
from mlflow_deploy_plugin.core.tabular.row_files import (
    SPARK_TIMES,
    FileFormat,
    compression_of,
    first_line,
    format_of,
)

_BLOCK_BYTES = 4 * 2**20
_BLOCK_ROWS = 2**16
_HEADER_BYTES = 2**20
MAX_BYTES = 2_000_000_000
_MAX_VALUES = 200_000_000
"""The limits in bytes and in values for a file that is read into memory at once."""
_MAX_JSON_VALUES = 50_000_000
"""The limit of values in a block of JSON Lines, of which a block of 4 MiB can have
under a million that are not null.
"""
_STREAMED = ("csv", "jsonl", "parquet")
_CSV_TYPES = (
    pa.int64(),
    pa.uint64(),
    pa.float64(),
    pa.bool_(),
    pa.date32(),
    *starmap(
        pa.timestamp,
        product(("us", "ns"), (None, "UTC")),
    ),
)
"""The types that a CSV column may have. The first type that fits is used; otherwise the
column is text.
"""
_LEADING_ZERO = r"^[+-]?0[0-9xX]"
_BESIDE_MARKS = np.isin(np.arange(256), list(b',\r\n"'))
"""True for the bytes that may precede an opening quotation mark or follow a closing
quotation mark.
"""


@dataclass(frozen=True)
class RejectedRow:
    """A row that cannot be read or predicted: the row number in the file, from 0, the
    reason, and the content.
    """

    number: int
    why: str
    content: object


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of a file: valid rows with their numbers in the file, and bad
    rows. `position` is the approximate number of bytes of the file that have been read.
    """

    table: pa.Table
    numbers: Sequence[int]
    bad: tuple[RejectedRow, ...] = ()
    position: int = 0

    def part(self, start: int, stop: int) -> "RowBlock":
        return RowBlock(
            self.table.slice(start, stop - start),
            self.numbers[start:stop],
        )


class RowStream:
    """The rows of an open file, which is a seekable `pyarrow.NativeFile`. For JSON
    Lines, `types` maps column names to Arrow types, and `keep` names columns to include
    even if only a few late lines contain them. The constructor raises InvalidConfig if
    the format cannot be streamed. Reading raises InvalidRequest if the file has another
    format.
    """

    def __init__(
        self,
        file: pa.NativeFile,
        kind: FileFormat,
        types: Mapping[str, pa.DataType],
        keep: Collection[str] = (),
    ) -> None:
        if kind not in _STREAMED:
            raise InvalidConfig(
                f"a {kind} file is one document; {', '.join(_STREAMED)} are read row by row",
            )
        self._file = file
        self.size = file.size()
        self._kind = kind
        self._types = types
        self._keep = keep

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the file; all columns of a CSV file are texts.

        Raises InvalidRequest if the file is not of its format.
        """
        try:
            if self._kind == "parquet":
                return self._parquet.schema_arrow
            if self._kind == "jsonl":
                return self._json_schema()
            if self._header and self._header.error:
                raise InvalidRequest(f"its header is not valid CSV: {self._header.error}")
            names = self._header.fields if self._header else []
            return pa.schema([(name, pa.string()) for name in names])
        # A lone surrogate, which stands for a byte that is not UTF-8, cannot be
        # encoded.
        except UnicodeEncodeError:
            raise InvalidRequest(
                "its header is not in UTF-8, the required encoding of CSV files",
            ) from None
        except (pa.ArrowException, OSError) as error:
            raise InvalidRequest(
                f"it is not a file of the format {self._kind}: {first_line(error)}",
            ) from None

    @cached_property
    def _header(self) -> CsvRecord | None:
        self._file.seek(0)
        return next(csv_records(io.BytesIO(self._file.read(_HEADER_BYTES))), None)

    def blocks(self, columns: Sequence[str]) -> Iterator[RowBlock]:
        """Yield the rows with the `columns` of the schema."""
        row = 0
        read = {
            "csv": self._csv_blocks,
            "jsonl": self._json_blocks,
            "parquet": self._parquet_blocks,
        }
        try:
            for block in read[self._kind](list(columns)):
                bad_numbers = [bad.number for bad in block.bad[-1:]]
                row = max([row, *block.numbers[-1:], *bad_numbers])
                yield block
        except MemoryError:  # It is also an ArrowException, but no fault of the file.
            raise
        except (pa.ArrowException, OSError) as error:
            raise InvalidRequest(
                f"the file cannot be read after row {row}: {first_line(error)}",
            ) from None

    def _csv_blocks(self, columns: list[str]) -> Iterator[RowBlock]:
        """Yield the rows of a CSV file block by block.

        A block that Arrow cannot read is read record by record, to find its invalid
        rows.
        """
        has_one_column = len(self.schema) == 1 and columns
        position = self._header.position if self._header else self.size
        first = 0
        while position < self.size:
            self._file.seek(position)
            content = self._file.read(_BLOCK_BYTES)
            end = _whole_rows(content, position + len(content) == self.size)
            is_read = end > 0
            if is_read:
                try:
                    table = self._csv_table(pa.py_buffer(content).slice(0, end), columns)
                    # Arrow reads a blank line as a value of a single column.
                    if has_one_column and pc.any(pc.utf8_is_space(table.column(0))).as_py():
                        is_read = False
                except pa.ArrowInvalid:  # A row has too few fields, or a byte is not UTF-8.
                    is_read = False
            if is_read:
                numbers = range(first, first + table.num_rows)
                block = RowBlock(table, numbers, position=position + end)
            else:
                block = self._csv_records_block(position, first, columns)
            position = block.position
            first += len(block.numbers) + len(block.bad)
            yield block

    def _csv_table(
        self,
        content: pa.Buffer,
        columns: list[str],
    ) -> pa.Table:
        """Read whole rows of CSV as texts; an empty field is null."""
        names = self.schema.names
        return pyarrow.csv.read_csv(
            pa.BufferReader(content),
            pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=content.size + 1,
                column_names=names,
            ),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            pyarrow.csv.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )

    def _csv_records_block(
        self,
        position: int,
        first: int,
        columns: list[str],
    ) -> RowBlock:
        """Return the rows of one block of about `_BLOCK_BYTES` from `position`. `first`
        is the number of the first row. Each row is checked separately.
        """
        positions = list(map(self.schema.names.index, columns))
        valid_rows: dict[int, bytes] = {}
        bad: list[RejectedRow] = []
        end = self.size
        self._file.seek(position)
        lines = io.BufferedReader(self._file, _BLOCK_BYTES)
        # Until the block ends, a value may have the size of a block: by default, Python
        # has a limit of 128 kB per value, but Arrow has none.
        limit = csv.field_size_limit(_BLOCK_BYTES)
        try:
            for number, record in enumerate(csv_records(lines), first):
                if why := record.fault(len(self.schema), positions):
                    content = record.raw.decode(errors="replace")
                    bad.append(RejectedRow(number, why, content.rstrip("\r\n")))
                else:
                    valid_rows[number] = record.raw
                if record.position >= _BLOCK_BYTES:
                    end = position + record.position
                    break
        finally:
            csv.field_size_limit(limit)
        lines.detach()
        table = self.schema.empty_table().select(columns)
        if valid_rows:
            table = self._csv_table(pa.py_buffer(b"".join(valid_rows.values())), columns)
        return RowBlock(table, list(valid_rows), tuple(bad), end)

    def _json_schema(self) -> pa.Schema:
        """Infer the columns of JSON Lines from the first block. For columns that are
        null there, later blocks are read.
        """
        columns: dict[str, list[object]] = {}
        sought = {*self._types, *self._keep}
        for block, lines in enumerate(self._json_lines()):
            for line in lines:
                try:
                    record = _parse_record(line, ())
                except ValueError:
                    continue  # Invalid lines are reported when rows are read.
                for name, value in record.items():
                    if not block or name in sought:
                        columns.setdefault(name, []).append(value)
            for name, values in columns.items():
                if values.count(None) < len(values):
                    sought.discard(name)
            if not sought:
                break
        types = {}
        for name, values in columns.items():
            try:
                types[name] = self._types.get(name) or pa.array(values).type
            except (pa.ArrowException, TypeError):
                raise InvalidRequest(
                    f"column {name[:100]!r} contains values of several types",
                ) from None
        return pa.schema(list(types.items()))

    def _json_lines(self) -> Iterator[list[bytes]]:
        """Yield the lines that are not blank, in lists of a few megabytes."""
        self._file.seek(0)
        if self._file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            self._file.seek(0)
        reader = io.BufferedReader(self._file, _BLOCK_BYTES)
        try:
            while lines := reader.readlines(_BLOCK_BYTES):
                yield [line.rstrip(b"\n") for line in lines if not line.isspace()]
        finally:
            reader.detach()  # Otherwise, the reader would close the file.

    def _json_blocks(self, columns: list[str]) -> Iterator[RowBlock]:
        """Yield the rows of JSON Lines block by block.

        A block that Arrow cannot read is read record by record, to find its invalid
        rows.
        """
        fields = pa.schema(list(map(self.schema.field, columns)))
        first = 0
        for lines in self._json_lines():
            numbers = range(first, first + len(lines))
            first = numbers.stop
            if len(lines) * len(columns) > _MAX_JSON_VALUES:
                raise InvalidRequest(
                    f"its rows have {len(columns):,} different names, most of them in few rows"
                )
            content = b"\n".join(lines)
            block = None
            with suppress(pa.ArrowException, KeyError, ValueError):
                # Check first: Arrow accepts invalid UTF-8, and crashes if the first
                # line is null.
                content.decode()
                if all(line.lstrip().startswith(b"{") for line in lines):
                    table = pyarrow.json.read_json(
                        io.BytesIO(content),
                        pyarrow.json.ReadOptions(use_threads=False, block_size=len(content) + 1),
                        pyarrow.json.ParseOptions(
                            explicit_schema=fields,
                            unexpected_field_behavior="ignore",
                        ),
                    )
                    if table.num_rows == len(lines):
                        table = table.select(fields.names)
                        block = RowBlock(table, numbers, position=self._file.tell())
            if block is None:
                # Check each row separately; 20.0 is accepted as an integer.
                parts = [fields.empty_table()]
                row_numbers = []
                bad = []
                for number, line in zip(numbers, lines, strict=True):
                    try:
                        parts.append(pa.Table.from_pylist([_parse_record(line, fields)], fields))
                        row_numbers.append(number)
                    except (pa.ArrowException, ValueError, TypeError) as error:
                        bad.append(
                            RejectedRow(number, first_line(error), line.decode(errors="replace"))
                        )
                table = pa.concat_tables(parts).combine_chunks()
                block = RowBlock(table, row_numbers, tuple(bad), self._file.tell())
            yield block

    @cached_property
    def _parquet(self) -> pq.ParquetFile:
        # With a buffer, only the pages being read are in memory; without a buffer, the
        # entire row group is in memory.
        return pq.ParquetFile(
            self._file,
            buffer_size=_BLOCK_BYTES // 4,
            pre_buffer=False,
            page_checksum_verification=True,
            **SPARK_TIMES,
        )

    def _parquet_blocks(self, columns: list[str]) -> Iterator[RowBlock]:
        """Yield the rows of a Parquet file in batches of bounded size."""
        metadata = self._parquet.metadata
        size = sum(group.total_byte_size for group in row_groups(metadata))
        row_bytes = max(1, size // max(1, metadata.num_rows))
        rows = max(1, min(_BLOCK_ROWS, 2 * _BLOCK_BYTES // row_bytes))
        first = 0
        for batch in self._parquet.iter_batches(rows, columns=columns, use_threads=False):
            table = pa.Table.from_batches([batch]).select(columns)
            numbers = range(first, first + len(batch))
            first = numbers.stop
            position = int(self.size * first / metadata.num_rows)
            yield RowBlock(table, numbers, position=position)


def row_groups(metadata: pq.FileMetaData) -> list[pq.RowGroupMetaData]:
    return [metadata.row_group(index) for index in range(metadata.num_row_groups)]


def _parse_record(line: bytes, fields: Iterable[pa.Field]) -> dict[str, object]:
    """Return the JSON object of a line. Raises ValueError if it is not an object, or a
    value is not of the type of its field.
    """
    record = orjson.loads(line)
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    for field in fields:
        if _is_changed(record.get(field.name), field.type):
            raise ValueError(
                f"column {field.name!r}: {record[field.name]!r} is not of type {field.type}",
            )
    return record


def open_csv(path: Path) -> RowStream:
    """Open a CSV file, which may be compressed. Raises OSError if the file cannot be
    read.
    """
    codec = compression_of(path.name)
    if codec:
        file = pa.BufferReader(pa.input_stream(str(path), codec).read())
    else:
        file = pa.OSFile(str(path))
    return RowStream(file, "csv", {})


def csv_tables(
    path: Path,
    most_columns: int | None = None,
) -> Iterator[pa.Table]:
    """Yield first an empty table, then the rows of a CSV file as tables of texts; an
    empty field is null. Only the first `most_columns` columns are read. Raises OSError
    or pyarrow.ArrowException if the file cannot be read.
    """
    try:
        stream = open_csv(path)
        for name, count in Counter(stream.schema.names).items():
            if count > 1:
                raise pa.ArrowInvalid(f"it has two columns named {name!r}")
        names = stream.schema.names[:most_columns]
        yield stream.schema.empty_table().select(names)
        for block in stream.blocks(names):
            for bad in block.bad:
                raise pa.ArrowInvalid(f"row {bad.number}: {bad.why}")
            yield block.table
    except InvalidRequest as error:
        raise pa.ArrowInvalid(error.message) from None


def read_table(
    path: Path,
    types: Mapping[str, pa.DataType],
) -> pa.Table:
    """Read a Parquet file, or a CSV file with the `types` or inferred types. Raises the
    errors of `csv_tables`.
    """
    if format_of(str(path)) == "parquet":
        return read_parquet(path)
    return typed_tables([pa.concat_tables(csv_tables(path))], types)[0]


def group_tables(
    tables: Iterable[pa.Table],
    rows: int,
    size: int,
) -> Iterator[list[pa.Table]]:
    """Group consecutive tables so that each group, except the last, has at least `rows`
    rows or `size` bytes.
    """
    held: list[pa.Table] = []
    held_rows = 0
    held_bytes = 0
    for table in tables:
        held.append(table)
        held_rows += len(table)
        held_bytes += table.nbytes
        if held_rows >= rows or held_bytes >= size:
            yield held
            held = []
            held_rows = 0
            held_bytes = 0
    if held:
        yield held


def typed_tables(
    tables: Sequence[pa.Table],
    types: Mapping[str, pa.DataType],
) -> list[pa.Table]:
    """Convert tables of texts to typed tables. A column has the same type in all
    tables: its type in `types` if every text fits. Otherwise the type is inferred:
    integer, float, boolean, date or time if every text fits. Numbers with a leading
    zero (01234) remain text, because a number would lose the zero. In a column that is
    not text, the texts that pandas reads as missing become null.
    """
    whole = pa.concat_tables(tables, promote_options="default")
    typed = pa.table(
        {
            name: _typed(
                whole.column(name),
                types.get(name),
            )
            for name in whole.column_names
        },
    )
    ends = np.cumsum([len(table) for table in tables]).tolist()
    return [
        typed.slice(
            end - len(table),
            len(table),
        ).select(table.column_names)
        for table, end in zip(tables, ends, strict=True)
    ]


def _typed(texts: pa.ChunkedArray, expected: pa.DataType | None) -> pa.ChunkedArray:
    """Return a column of texts as its expected type, or as the first inferred type that
    fits every text. `expected` is None if no type is known.
    """
    if expected is not None and pa.types.is_dictionary(expected):
        expected = expected.value_type
    if expected in (
        pa.string(),
        pa.large_string(),
        pa.string_view(),
    ):
        return texts
    if texts.null_count == len(texts):
        return pa.chunked_array([pa.nulls(len(texts), expected)])
    trimmed = pc.utf8_trim_whitespace(texts)
    is_missing = pc.is_in(trimmed, pa.array(sorted(MISSING_TEXTS)))
    present = pc.if_else(is_missing, None, trimmed)
    kinds = [] if expected is None else [expected]
    has_values = present.null_count < len(present)
    if has_values and not pc.any(pc.match_substring_regex(present, _LEADING_ZERO)).as_py():
        kinds.extend(_CSV_TYPES)
    for kind in kinds:
        # A text that does not fit the type raises the error.
        with suppress(pa.ArrowException):
            values = present
            if pa.types.is_time(kind):  # Arrow casts texts to timestamps, but not to times of day.
                values = pc.binary_join_element_wise("1970-01-01", values, " ")
                values = values.cast(pa.timestamp("ns"))
            return values.cast(kind)
    return texts


def read_parquet(
    path: Path,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Read a Parquet file. Raises OSError or pyarrow.ArrowException if the file cannot
    be read or is too large.
    """
    metadata = pq.read_metadata(path)
    require_few_values([metadata])
    groups = row_groups(metadata)
    size = 0
    texts = set()
    for index in range(metadata.num_columns):
        leaf = metadata.schema.column(index)
        length = max(leaf.length, 0)  # 0: no fixed length
        size += length * sum(group.column(index).num_values for group in groups)
        if leaf.physical_type == "BYTE_ARRAY":
            texts.add(leaf.path)
    names = sorted(texts)
    # Texts are read as dictionaries, which store repeats once.
    with pq.ParquetFile(path, read_dictionary=names, arrow_extensions_enabled=False) as file:
        for number in range(len(groups)):
            for column in file.read_row_group(number, names).columns:
                size += sum(map(_text_bytes, column.chunks))
    if size > MAX_BYTES:
        raise pa.ArrowInvalid(f"it contains more than {MAX_BYTES:,} bytes: take a sample of it")
    return pq.read_table(path, columns=columns, **SPARK_TIMES)


def require_few_values(files: Sequence[pq.FileMetaData], share: float = 1.0) -> None:
    """Raise pyarrow.ArrowInvalid if the `share` to be read has too many values, which
    may take no bytes.
    """
    count = 0
    for group in chain.from_iterable(map(row_groups, files)):
        count += sum(group.column(index).num_values for index in range(group.num_columns))
    if count * share > _MAX_VALUES:
        why = f"it contains {count:,} values; the limit is {_MAX_VALUES:,}"
        raise pa.ArrowInvalid(f"{why}: take a sample of it")


def _text_bytes(array: pa.Array) -> int:
    """Return the size in bytes of dictionary-encoded texts. A text counts in each row
    or list that contains it.
    """
    if isinstance(array, pa.StructArray):
        return sum(map(_text_bytes, array.flatten()))
    if isinstance(array, pa.MapArray):
        return _text_bytes(array.keys) + _text_bytes(array.items)
    if isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return _text_bytes(array.flatten())
    if not isinstance(array, pa.DictionaryArray) or not (
        pa.types.is_string(array.dictionary.type) or pa.types.is_binary(array.dictionary.type)
    ):
        return 0
    return pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0


def _whole_rows(content: bytes, is_last: bool) -> int:
    """Return the length in bytes of the complete rows in `content`, which begins with a
    row of a CSV file. Return 0 if no row is complete, or if a quotation mark violates
    RFC 4180: marks enclose a value, and a mark inside a value is doubled. Arrow reads
    such rows in its own way without an error.
    """
    line_end = b"\n" if b"\n" in content else b"\r"
    if b'"' not in content:
        if is_last:
            return len(content)
        return content.rfind(line_end) + 1
    signs = np.frombuffer(content, np.uint8)
    marks = np.flatnonzero(signs == ord('"'))
    count = len(marks) // 2 * 2  # `end` precedes an unfinished value.
    end = len(content)
    if is_last and count < len(marks):
        return 0
    if not is_last:
        stop = int(marks[count]) if count < len(marks) else end
        while True:
            start = int(marks[count - 1]) if count else 0
            end = content.rfind(line_end, start, stop) + 1
            if end or not count:
                break
            count -= 2
            stop = int(marks[count])
    # A mark at the edge of the content has no neighbour, so the index is clamped to the
    # mark itself.
    before = signs[np.maximum(marks[:count:2], 1) - 1]
    after = signs[
        np.minimum(
            marks[1:count:2] + 1,
            len(signs) - 1,
        )
    ]
    if _BESIDE_MARKS[before].all() and _BESIDE_MARKS[after].all():
        return end
    return 0


def _is_changed(value: object, kind: pa.DataType) -> bool:
    """Return True if Arrow would change the value: 2.5 into the integer 2, or true into
    1.
    """
    if isinstance(value, bool):
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
    if isinstance(value, float):
        return pa.types.is_integer(kind) and not value.is_integer()
    if isinstance(value, list) and pa.types.is_list(kind):
        return any(_is_changed(item, kind.value_type) for item in value)
    if isinstance(value, dict) and pa.types.is_struct(kind):
        return any(
            _is_changed(
                value.get(field.name),
                field.type,
            )
            for field in kind
        )
    return False
