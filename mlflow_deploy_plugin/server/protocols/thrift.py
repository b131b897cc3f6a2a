"""Thrift's compact protocol, as far as the headers of a Parquet file need it: bytes → structs.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md. A struct is a mapping from the number
of a field to its value. Every element takes a byte, so that nothing here takes more than a constant times the bytes it
reads.
"""

from typing import Any

Struct = dict[int, Any]

_MOST_NESTED = 16
_LARGEST_VARINT = 10
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12


class InvalidThrift(Exception):
    """The bytes are no struct, end within it, or name a field twice (readers differ in which of the two counts)."""


def read_struct(view: memoryview, at: int) -> tuple[Struct, int]:
    """The struct that begins at `at`, and where it ends.

    Raises:
        Torn: there is none.
    """
    try:
        return _struct(view, at, 0)
    except IndexError:
        raise InvalidThrift from None


def _struct(view: memoryview, at: int, depth: int) -> tuple[Struct, int]:
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
        return _struct(view, at, depth + 1)
    if kind == _BINARY:
        length, at = read_varint(view, at)
        if length > len(view) - at:
            raise InvalidThrift
        return bytes(view[at : at + length]), at + length
    if kind in (_LIST, _SET):
        return _list(view, at, depth)
    if kind in (_TRUE, _FALSE, _BYTE):  # a boolean within a list takes a byte
        return view[at], at + 1
    if kind == _DOUBLE:
        return None, at + 8
    raise InvalidThrift  # maps, which Parquet does not use


def _list(view: memoryview, at: int, depth: int) -> tuple[list[Any], int]:
    if depth > _MOST_NESTED:
        raise InvalidThrift
    head = view[at]
    size, at = (head >> 4, at + 1) if head >> 4 < 15 else read_varint(view, at + 1)
    entries = []
    for _ in range(size):
        entry, at = _value(view, at, head & 15, depth + 1)
        entries.append(entry)
    return entries, at


def _zigzag(view: memoryview, at: int) -> tuple[int, int]:
    value, at = read_varint(view, at)
    return (value >> 1) ^ -(value & 1), at


def read_varint(view: memoryview, at: int) -> tuple[int, int]:
    """The number in base 128 (LEB128) that begins at `at`, and where it ends.

    Raises:
        Torn: it has more than ten bytes.
        IndexError: the bytes end within it.
    """
    value = 0
    for position in range(_LARGEST_VARINT):
        byte = view[at + position]
        value |= (byte & 127) << (7 * position)
        if byte < 128:
            return value, at + position + 1
    raise InvalidThrift
