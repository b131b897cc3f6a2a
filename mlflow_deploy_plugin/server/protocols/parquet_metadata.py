"""The footer and the page headers of a Parquet file, read to bound the memory that the file takes decompressed.

pyarrow trusts the file for the size of a page and its number of values; run lengths make billions of values of a few
bytes. It does not tell the sizes of single pages, and its `FileMetaData.row_group(i).column(j)` ends the process for
some torn footers (pyarrow 25: an uncaught C++ exception). So footer and page headers are read here.

The field numbers are those of parquet.thrift (https://parquet.apache.org/docs/file-format/), the encoding is Thrift's
compact protocol (https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md).
"""

from collections.abc import Iterable, Iterator
from typing import Any

from mlflow_deploy_plugin.errors import BodyTooLarge, InvalidRequest

Struct = dict[int, Any]
"""A Thrift struct: the value of each field by its number."""

MAGIC = b"PAR1"
_LARGEST_FOOTER = 1_000_000
_DELTA_BYTE_ARRAY = 7
_BYTE_ARRAY = 6

_MOST_NESTED = 16
_VARINT_BYTES = 10
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12


def read_row_groups(body: bytes) -> list[Struct]:
    """Return the row groups in the footer of a file. The footer's length is in the four bytes before the last word.

    Raises:
        InvalidRequest: it is no Parquet file, or its footer is too long; one of ten thousand columns is not.
    """
    if len(body) < 12 or not (body.startswith(MAGIC) and body.endswith(MAGIC)):
        raise InvalidRequest("the body is not a valid Parquet file: it does not begin and end with PAR1")
    length = int.from_bytes(body[-8:-4], "little")
    if length > min(len(body) - 12, _LARGEST_FOOTER):
        raise _invalid(f"its footer has {length} bytes; at most {_LARGEST_FOOTER} within the body are read")
    try:
        footer, _ = read_struct(memoryview(body)[-8 - length : -8], 0)
    except _TORN:
        raise _invalid("its footer is torn") from None
    groups = footer.get(4)
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise _invalid("its footer has no row groups")
    return groups


def count_rows(groups: Iterable[Struct]) -> int:
    """Return the number of rows in all row groups (RowGroup: rows 3).

    Raises:
        InvalidRequest: a row group does not say how many it has.
    """
    return sum(_size(group, 3) for group in groups)


def byte_array_paths(groups: Iterable[Struct]) -> list[str]:
    """Return the paths of the leaves that hold byte arrays.

    RowGroup: columns (1). ColumnChunk: metadata (3). ColumnMetaData: physical type (1), path in the schema (3).
    """
    paths: dict[str, None] = {}
    for group in groups:
        for column in _part(group, 1, list):
            metadata = _part(column, 3, dict)
            if metadata.get(1) == _BYTE_ARRAY:
                paths[b".".join(_part(metadata, 3, list)).decode("utf-8", "replace")] = None
    return list(paths)


def check_pages(body: bytes, groups: Iterable[Struct], columns: Iterable[int], limit: int) -> None:
    """Check that the pages of these columns have at most `limit` bytes, and as many values, when decompressed.

    RowGroup: columns (1). ColumnChunk: metadata (3). ColumnMetaData: compressed bytes (7), first data page (9),
    dictionary page (11).

    Raises:
        BodyTooLarge: they have more.
        InvalidRequest: a page is torn, or in the encoding DELTA_BYTE_ARRAY, whose strings repeat without a bound.
    """
    view = memoryview(body)
    chosen = list(columns)
    left_bytes = left_values = limit
    for group in groups:
        for column in chosen:
            metadata = _part(_part(_part(group, 1, list), column, dict), 3, dict)
            start, dictionary = _size(metadata, 9), metadata.get(11)
            start = dictionary if isinstance(dictionary, int) and 0 < dictionary < start else start
            for size, values in _page_sizes(view, start, start + _size(metadata, 7)):
                left_bytes -= size
                left_values -= values
                if min(left_bytes, left_values) < 0:
                    raise BodyTooLarge(
                        f"the table is larger than this server's limit of {limit} bytes when decompressed"
                    )


def _page_sizes(view: memoryview, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the decompressed size and the declared number of values of each page of a column chunk.

    PageHeader: sizes decompressed (2) and compressed (3), data page (5: values 1, encoding 2), dictionary page
    (7: values 1), data page V2 (8: values 1, encoding 4).
    """
    if end > len(view):
        raise _invalid("a column lies outside of it")
    while start < end:
        try:
            header, start = read_struct(view, start)
        except _TORN:
            raise _invalid("a page is torn") from None
        size, start = _size(header, 2), start + _size(header, 3)
        values = 0
        for kind, encoding in ((5, 2), (7, 2), (8, 4)):
            page = header.get(kind)
            if isinstance(page, dict):
                values += _size(page, 1)
                if page.get(encoding) == _DELTA_BYTE_ARRAY:
                    raise InvalidRequest("this server does not read Parquet's encoding DELTA_BYTE_ARRAY")
        yield size, values


def _part(parts: Any, key: int, kind: type) -> Any:
    try:
        part = parts[key]
    except (KeyError, IndexError):
        part = None
    if not isinstance(part, kind):
        raise _invalid("its footer lacks a column")
    return part


def _size(fields: Struct, number: int) -> int:
    size = fields.get(number)
    if type(size) is not int or size < 0:
        raise _invalid("a size is missing or negative")
    return size


def _invalid(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the body is not a valid Parquet file: {reason}")


class InvalidThrift(Exception):
    """The bytes are no struct, or name a field twice (readers differ in which of the two counts)."""


_TORN = (InvalidThrift, IndexError)


def read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return the number in base 128 (LEB128) that begins at `at`, and its end.

    Raises:
        InvalidThrift: it has more than ten bytes.
        IndexError: the bytes end within it.
    """
    value = 0
    for position in range(_VARINT_BYTES):
        byte = view[at + position]
        value |= (byte & 127) << (7 * position)
        if byte < 128:
            return value, at + position + 1
    raise InvalidThrift


def read_struct(view: memoryview, at: int, depth: int = 0) -> tuple[Struct, int]:
    """Return the struct that begins at `at`, and its end.

    Every element takes a byte, so that the result takes at most a constant times the bytes that are read.

    Raises:
        InvalidThrift, IndexError: there is none, or the bytes end within it.
    """
    if depth > _MOST_NESTED:
        raise InvalidThrift
    fields: Struct = {}
    number = 0
    while head := view[at]:
        at += 1
        if delta := head >> 4:
            number += delta
        else:
            number, at = _zigzag(view, at)
        if number in fields:
            raise InvalidThrift
        kind = head & 15
        if kind in (_TRUE, _FALSE):
            fields[number] = kind == _TRUE
        else:
            fields[number], at = _value(view, at, kind, depth)
    return fields, at + 1


def _value(view: memoryview, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_I16, _I32, _I64):
        return _zigzag(view, at)
    if kind == _STRUCT:
        return read_struct(view, at, depth + 1)
    if kind == _BINARY:
        length, at = read_varint(view, at)
        if length > len(view) - at:
            raise InvalidThrift
        return bytes(view[at : at + length]), at + length
    if kind in (_LIST, _SET) and depth <= _MOST_NESTED:
        head = view[at]
        size, at = (head >> 4, at + 1) if head >> 4 < 15 else read_varint(view, at + 1)
        entries = []
        for _ in range(size):
            entry, at = _value(view, at, head & 15, depth + 1)
            entries.append(entry)
        return entries, at
    if kind in (_TRUE, _FALSE, _BYTE):  # a boolean within a list takes a byte
        return view[at], at + 1
    if kind == _DOUBLE:
        return None, at + 8
    raise InvalidThrift  # lists that are nested too deeply, and maps, which Parquet does not use


def _zigzag(view: memoryview, at: int) -> tuple[int, int]:
    value, at = read_varint(view, at)
    return (value >> 1) ^ -(value & 1), at
