"""What a Parquet body will take when it is read, from its footer and the headers of its pages.

Read here and not by pyarrow, whose `FileMetaData.row_group(i).column(j)` ends the process for some torn footers
(pyarrow 25: a C++ exception that nothing catches), and which tells nothing of single pages. The size of a page, and the
values that it stands for (run lengths make billions of a few bytes), are taken by the reader as they are said.

https://parquet.apache.org/docs/file-format/, parquet.thrift.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from mlflow_deploy_plugin.errors import BodyTooLarge, InvalidRequest
from mlflow_deploy_plugin.server.protocols.thrift import InvalidThrift, Struct, read_struct

MAGIC = b"PAR1"

_LARGEST_FOOTER = 1_000_000
_DELTA_BYTE_ARRAY = 7
_BYTE_ARRAY = 6


def read_row_groups(body: bytes) -> list[Struct]:
    """The row groups in the footer of a file; the length of the footer stands in four bytes before the last word.

    Raises:
        InvalidRequest: it is no Parquet file, or its footer is longer than that of ten thousand columns.
    """
    if len(body) < 12 or not (body.startswith(MAGIC) and body.endswith(MAGIC)):
        raise InvalidRequest("the body is not a valid Parquet file: it does not begin and end with PAR1")
    length = int.from_bytes(body[-8:-4], "little")
    if length > min(len(body) - 12, _LARGEST_FOOTER):
        raise _invalid(f"its footer has {length} bytes; at most {_LARGEST_FOOTER} within the body are read")
    try:
        footer, _ = read_struct(memoryview(body)[-8 - length : -8], 0)
    except InvalidThrift:
        raise _invalid("its footer is torn") from None
    groups = footer.get(4)
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise _invalid("its footer has no row groups")
    return groups


def count_rows(groups: Iterable[Struct]) -> int:
    """The rows of all row groups (RowGroup: rows 3).

    Raises:
        InvalidRequest: one does not say how many.
    """
    return sum(_size(group, 3) for group in groups)


def leaf_paths(groups: Iterable[Struct]) -> list[str]:
    """The paths of the leaves that hold bytes of any length.

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
    """Whether the pages of these columns fit `limit` bytes, and as many values, when decompressed.

    RowGroup: columns (1). ColumnChunk: metadata (3). ColumnMetaData: compressed bytes (7), first data page (9),
    dictionary page (11).

    Raises:
        BodyTooLarge: they do not.
        InvalidRequest: a page is torn, or in the encoding DELTA_BYTE_ARRAY, whose strings repeat without a bound.
    """
    view = memoryview(body)
    chosen = list(columns)
    left_bytes = left_values = limit
    for group in groups:
        for column in chosen:
            metadata = _part(_part(group, 1, list), column, dict).get(3)
            if not isinstance(metadata, dict):
                raise _invalid("a column says nothing of itself")
            start, dictionary = _size(metadata, 9), metadata.get(11)
            start = dictionary if isinstance(dictionary, int) and 0 < dictionary < start else start
            for size, values in _pages(view, start, start + _size(metadata, 7)):
                left_bytes -= size
                left_values -= values
                if min(left_bytes, left_values) < 0:
                    raise BodyTooLarge(
                        f"the table is larger than this server's limit of {limit} bytes when decompressed"
                    )


def _pages(view: memoryview, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Of each page of a column chunk: its size when decompressed, and how many values it says it has.

    PageHeader: sizes decompressed (2) and compressed (3), data page (5: values 1, encoding 2), dictionary page
    (7: values 1), data page V2 (8: values 1, encoding 4).
    """
    if end > len(view):
        raise _invalid("a column lies outside of it")
    while start < end:
        try:
            header, start = read_struct(view, start)
        except InvalidThrift:
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
