"""The fast path from a table to feeds, for tables with the expected columns and types
and without missing texts.

`FastDecoder` compiles the columns and inputs of a version once. Each request then takes
one check of its types and one array per type. For any other table, the result is None
and `schema.py` decodes the table. A property test checks that both modules return the
same feeds.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, final

import numpy as np

from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Tensor
from mlflow_deploy_plugin.serve.runtime.feeds import (
    Array,
    Dtype,
    Feeds,
    SharedDimensions,
    narrowed_feeds,
    size_mismatch,
)
from mlflow_deploy_plugin.serve.runtime.values import LISTS, is_lossless_cast, numpy_dtype

# None is allowed: numpy converts it to NaN.
_NUMBERS: frozenset[type] = frozenset({float, int, type(None)})
_ACCEPTED: dict[str, frozenset[type]] = {
    "double": _NUMBERS,
    "float": _NUMBERS,
    "integer": frozenset({int}),
    "long": frozenset({int}),
    "boolean": frozenset({bool}),
    "string": frozenset({str}),
}
"""The Python types that a column of this type accepts unchanged: no None in texts, and
no floats in integer columns.
"""

_ARRAY_KINDS = {"double": "fiu", "float": "f"}
"""The numpy kinds that convert to this column type with the same result as a list of
the same numbers.
"""

_PACKED = {("double", "float32"): "f", ("float", "float32"): "f", ("double", "float64"): "d"}
"""The `struct` format by (column type, input dtype). `struct` rounds a number once, as
numpy does.
"""

_MAX_TRANSPOSED = 1_000_000
"""The maximum number of values in columns that are transposed (50 bytes per value).
`schema.py` does not transpose.
"""
_COLUMN_TYPES = {dtype: kind for kind, dtype in COLUMN_TYPES.items() if dtype != "str"}
"""The column type whose values a matrix of this dtype accepts."""
_BLOCK = "@"

_Rows = Sequence[Sequence[object]]
_Pick = Callable[[Sequence[Any]], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class _Group:
    """The columns of one type. `pick` takes the columns' values from a row, and `dtype`
    is the dtype of the array.
    """

    column_type: str
    names: list[str]
    pick: _Pick
    accepted: frozenset[type]
    dtype: Dtype

    def join(self, columns: Sequence[Array]) -> Array | None:
        """Return the arrays of the group's columns as one array; None if the fast path
        cannot convert them.
        """
        values = self.pick(columns)
        if len({array.dtype for array in values}) != 1:
            return None
        joined = np.concatenate(values)
        source = joined.dtype
        if self.dtype.kind == "O":
            takes = source.kind == "O" and set(map(type, joined)) == {str}
        elif self.dtype.kind == "f":
            takes = source.kind in "fiu"
        else:
            takes = source == self.dtype or (
                source.kind in "iu" and np.can_cast(source, self.dtype)
            )
        return joined if takes else None


class FastDecoder:
    """Converts tables with the expected columns and types into feeds. Each method
    returns None for any other table.

    Args:
        columns: the columns of the signature. Only text columns feed inputs of texts.
        blocks: the result of `type_blocks` if the graph's types are narrower than the
            signature's types.

    Attributes:
        order: the names of the columns, in the order of the signature.
        array_kinds: the numpy kinds that `from_array` accepts; empty if it accepts no
            array.
    """

    def __init__(
        self, columns: tuple[Column, ...], inputs: tuple[Input, ...], blocks: tuple[Input, ...]
    ) -> None:
        order = tuple(column.name for column in columns)
        self.order = order
        self._names = list(order)  # A list, because the names in a JSON body are a list.
        self._by_name = _picker(order)
        # A group per type, in the order in which the types first occur.
        positions_by_type: dict[str, list[int]] = {}
        for position, column in enumerate(columns):
            positions_by_type.setdefault(column.type, []).append(position)
        groups = []
        for kind, positions in positions_by_type.items():
            names = [columns[position].name for position in positions]
            groups.append(
                _Group(
                    kind,
                    names,
                    _picker(positions),
                    _ACCEPTED[kind],
                    numpy_dtype(COLUMN_TYPES[kind]),
                )
            )
        first = groups[0]
        self._matrix: _MatrixDecoder | None = None
        # All columns, of one numeric or boolean type, are the only input, a matrix.
        if (
            [entry.columns for entry in inputs] == [order]
            and len(inputs[0].shape) == 2
            and len(groups) == 1
            and first.column_type != "string"
        ):
            block = blocks[0].name if blocks else ""
            self._matrix = _MatrixDecoder(first, len(order), inputs[0], block)
        decoder = self._matrix or _ColumnDecoder(groups, inputs, blocks)
        self._feeds: Callable[[_Rows], Feeds | None] = decoder.from_rows
        self._from_arrays: Callable[[Sequence[Array]], Feeds | None] = decoder.from_arrays
        self.array_kinds = _ARRAY_KINDS.get(first.column_type, "") if self._matrix else ""

    def from_rows(self, names: Sequence[str], rows: _Rows) -> Feeds | None:
        """Decode rows that are lists in the order of `names`; None for other rows."""
        if not rows or not LISTS.issuperset(map(type, rows)) or set(map(len, rows)) != {len(names)}:
            return None
        if names != self._names and names != self.order:
            positions = {name: position for position, name in enumerate(names)}
            if len(positions) != len(names) or not positions.keys() >= set(self.order):
                return None
            pick = _picker([positions[name] for name in self.order])
            rows = list(map(pick, rows))
        return self._feeds(rows)

    def from_records(self, records: Sequence[Mapping[str, object]]) -> Feeds | None:
        """Decode rows that are dictionaries with all columns; None for other rows."""
        if not records or set(map(type, records)) != {dict}:
            return None
        try:
            rows = list(map(self._by_name, records))
        except KeyError:
            return None
        return self._feeds(rows)

    def from_columns(self, data: Mapping[str, object]) -> Feeds | None:
        """Decode columns of one length that are all arrays, or all lists if they are
        few enough to be transposed; None for other columns.
        """
        try:
            columns = self._by_name(data)
        except KeyError:
            return None
        kinds = set(map(type, columns))
        if kinds == {np.ndarray}:
            if (
                {array.ndim for array in columns} != {1}
                or len(set(map(len, columns))) != 1
                or not len(columns[0])
            ):
                return None
            return self._from_arrays(columns)
        if kinds != {list} or len(columns) * len(columns[0]) > _MAX_TRANSPOSED:
            return None
        try:
            rows = list(zip(*columns, strict=True))
        except ValueError:  # The columns have different lengths.
            return None
        return self._feeds(rows) if rows else None

    def from_array(self, values: Array) -> Feeds | None:
        """Decode a matrix of numbers whose columns are in the signature's order and
        have one type and one input; None for any other array.
        """
        if (
            self._matrix is None
            or values.dtype.kind not in self.array_kinds
            or values.dtype.itemsize > 8
        ):
            return None
        if values.ndim != 2 or values.shape[1] != len(self.order) or not len(values):
            return None
        return self._matrix.from_matrix(values)


class _MatrixDecoder:
    """Decodes tables with one numeric or boolean type whose columns, in order, are the
    only input of the graph. Each method returns None for any other table.

    `block` is the name of the table in `NarrowedFeeds.sent`, or empty if the graph
    takes the table unchanged.
    """

    def __init__(self, group: _Group, width: int, entry: Input, block: str) -> None:
        self._group = group
        self._name = entry.name
        self._dtype = numpy_dtype(entry.dtype)
        self._block = block
        form = _PACKED.get((group.column_type, entry.dtype))
        self._pack_row: Callable[[Sequence[object]], Feeds | None] | None = None
        if form is None:
            return
        name = entry.name
        dtype = self._dtype
        shape = (1, width)
        exact = np.dtype("float64")
        fed = struct.Struct(f"={width}{form}")
        sent = struct.Struct(f"={width}d")

        def pack(row: Sequence[object]) -> Feeds | None:
            """Return the same feeds from one row as `from_matrix`, in a quarter of the
            time; None for a null or an overflow.
            """
            try:
                feeds: Feeds = {name: np.ndarray(shape, dtype, fed.pack(*row))}
                if block:
                    return narrowed_feeds(feeds, {block: np.ndarray(shape, exact, sent.pack(*row))})
                return feeds
            except (struct.error, OverflowError):
                return None

        self._pack_row = pack

    def from_rows(self, rows: _Rows) -> Feeds | None:
        """Decode rows; None if a value has another type or overflows."""
        is_row = len(rows) == 1
        values = rows[0] if is_row else chain.from_iterable(rows)
        if not self._group.accepted.issuperset(map(type, values)):
            return None
        if is_row and self._pack_row is not None and (feeds := self._pack_row(rows[0])) is not None:
            return feeds
        return self.from_matrix(rows)

    def from_arrays(self, columns: Sequence[Array]) -> Feeds | None:
        joined = self._group.join(columns)
        if joined is None:
            return None
        return self.from_matrix(joined.reshape(len(columns), -1).T)

    def from_matrix(self, rows: _Rows | Array) -> Feeds | None:
        """Decode a matrix; None if a number overflows in the graph's type."""
        try:
            with np.errstate(over="raise"):
                exact = np.asarray(rows, dtype=self._group.dtype)
                feeds = {self._name: exact.astype(self._dtype, order="C", copy=False)}
        except (OverflowError, FloatingPointError):
            return None
        if self._block:
            return narrowed_feeds(feeds, {self._block: exact})
        return feeds


@final
@dataclass(frozen=True, slots=True)
class _SingleColumn:
    """An input that takes one column: position `place` in the group at
    `_ColumnDecoder._casts[cast]`.
    """

    name: str
    cast: int
    place: int


@final
@dataclass(frozen=True, slots=True)
class _StackedColumns:
    """An input that takes several columns. `order` has their positions among the
    columns of all `groups`.
    """

    name: str
    dtype: Dtype
    groups: tuple[int, ...]
    order: Array

    def stack(self, blocks: Sequence[Array]) -> Array:
        """Return the array of this input, [N, columns], from the blocks of the groups,
        each [columns, N, 1].
        """
        columns = np.concatenate(
            [blocks[group][:, :, 0].astype(self.dtype, copy=False) for group in self.groups]
        )
        return np.ascontiguousarray(columns[self.order].T)


class _ColumnDecoder:
    """Decodes tables with several types or inputs: one array per type, which is then
    split into the inputs. Each method returns None for any other table.

    Attributes:
        _casts: conversions (group, dtype, True if its inputs are vectors). Columns that
            are separate inputs are converted together with the other columns of their
            type.
        _blocks: the name of each group in `NarrowedFeeds.sent`, or an empty string for
            the group of texts. Empty if the graph takes the types of the signature.
    """

    def __init__(
        self, groups: list[_Group], inputs: tuple[Input, ...], blocks: tuple[Input, ...]
    ) -> None:
        self._groups = groups
        self._casts: list[tuple[int, Dtype, bool]] = []
        self._inputs: list[_SingleColumn | _StackedColumns] = []
        for entry in inputs:
            dtype = numpy_dtype(entry.dtype)
            column_names = set(entry.columns)
            taken = tuple(
                position
                for position, group in enumerate(groups)
                if not column_names.isdisjoint(group.names)
            )
            names = chain.from_iterable(groups[group].names for group in taken)
            places = {name: position for position, name in enumerate(names)}
            if len(entry.columns) > 1:
                order = np.array([places[name] for name in entry.columns], dtype=np.intp)
                self._inputs.append(_StackedColumns(entry.name, dtype, taken, order))
                continue
            cast = (taken[0], dtype, len(entry.shape) == 1)
            if cast not in self._casts:
                self._casts.append(cast)
            place = places[entry.columns[0]]
            self._inputs.append(_SingleColumn(entry.name, self._casts.index(cast), place))
        block_names = {block.name.removeprefix(_BLOCK): block.name for block in blocks}
        self._blocks: tuple[str, ...] = ()
        if blocks:
            self._blocks = tuple(block_names.get(group.column_type, "") for group in groups)
        self._texts = tuple(entry.name for entry in inputs if entry.dtype == "str")

    def from_rows(self, rows: _Rows) -> Feeds | None:
        """Decode rows in the order of the columns; None if a type does not fit."""
        picked = []
        columns: Sequence[Any] = rows[0] if len(rows) == 1 else list(zip(*rows, strict=True))
        for group in self._groups:
            picked_values = group.pick(columns)
            values = picked_values if len(rows) == 1 else chain.from_iterable(picked_values)
            if not group.accepted.issuperset(map(type, values)):
                return None
            picked.append(picked_values)
        try:
            with np.errstate(over="raise"):
                return self._to_feeds(
                    [
                        np.array(values, dtype=group.dtype).reshape(-1, len(rows), 1)
                        for group, values in zip(self._groups, picked, strict=True)
                    ]
                )
        except (OverflowError, FloatingPointError):
            return None

    def from_arrays(self, columns: Sequence[Array]) -> Feeds | None:
        """Decode columns of equal length; None if a type does not fit."""
        blocks = []
        try:
            with np.errstate(over="raise"):
                for group in self._groups:
                    joined = group.join(columns)
                    if joined is None:
                        return None
                    blocks.append(
                        joined.astype(group.dtype, copy=False).reshape(len(group.names), -1, 1)
                    )
                return self._to_feeds(blocks)
        except FloatingPointError:
            return None

    def _to_feeds(self, blocks: Sequence[Array]) -> Feeds:
        """Return the feeds for the groups' blocks, each [columns, N, 1]. Raises
        FloatingPointError on overflow.
        """
        casts = []
        for source, dtype, is_vector in self._casts:
            cast = blocks[source].astype(dtype, copy=False)
            if is_vector:
                cast = cast[:, :, 0]
            casts.append(cast)
        feeds = {}
        for entry in self._inputs:
            if type(entry) is _SingleColumn:
                feeds[entry.name] = casts[entry.cast][entry.place]
            else:
                feeds[entry.name] = entry.stack(blocks)
        if not self._blocks:
            return feeds
        sent = {
            name: block[:, :, 0].T for name, block in zip(self._blocks, blocks, strict=True) if name
        }
        for name in self._texts:
            sent[name] = feeds[name]
        return narrowed_feeds(feeds, sent)


def compile_fast_tensor_decoder(
    bound: Sequence[tuple[Input, Tensor]], shared: SharedDimensions
) -> Callable[[Mapping[str, object]], Feeds | None] | None:
    """Return a function that makes feeds from tensors by dtype and shape, or None if
    more checks are needed.

    The result is None if there are texts or a dtype must be converted, except for a
    single tensor that is a matrix.
    """
    decode_matrix = None
    if len(bound) == 1 and not shared:
        decode_matrix = _compile_matrix_decoder(*bound[0])
    if any(entry.dtype != tensor.dtype or tensor.dtype == "str" for entry, tensor in bound):
        return decode_matrix
    tensors = [
        (tensor.name, entry.name, numpy_dtype(tensor.dtype), tensor.shape)
        for entry, tensor in bound
    ]

    def decode(data: Mapping[str, object]) -> Feeds | None:
        """Return the tensors as feeds; None unless all have their dtype and shape."""
        if decode_matrix is not None and (decoded := decode_matrix(data)) is not None:
            return decoded
        feeds = {}
        for name, fed, dtype, shape in tensors:
            array = data.get(name)
            if type(array) is not np.ndarray or array.dtype != dtype or array.ndim != len(shape):
                return None
            for size, actual in zip(shape, array.shape, strict=True):
                if size not in (-1, actual):
                    return None
            feeds[fed] = array
        if shared and size_mismatch(shared, feeds):
            return None
        return feeds

    return decode


def _compile_matrix_decoder(
    entry: Input, tensor: Tensor
) -> Callable[[Mapping[str, object]], Feeds | None] | None:
    """Return a function that makes feeds from rows of the only tensor, and that returns
    None if the rows do not fit.

    Return None instead of a function unless the tensor is a matrix of fixed width with
    a dtype that a column can have.
    """
    kind = _COLUMN_TYPES.get(tensor.dtype)
    if kind is None or len(tensor.shape) != 2 or tensor.shape[0] != -1 or tensor.shape[1] < 1:
        return None
    name = tensor.name
    width = tensor.shape[1]
    dtype = numpy_dtype(tensor.dtype)
    is_rounded_once = kind == "float"
    block = "" if is_lossless_cast(numpy_dtype(entry.dtype), dtype) else entry.name
    group = _Group(kind, [], tuple, _ACCEPTED[kind], dtype)
    decoder = _MatrixDecoder(group, width, entry, block)

    def decode(data: Mapping[str, object]) -> Feeds | None:
        """Return feeds from the rows of the only tensor; None if they do not fit."""
        rows = data.get(name) if name or len(data) != 1 else next(iter(data.values()))
        if type(rows) is not list or not rows or not LISTS.issuperset(map(type, rows)):
            return None
        # numpy rounds a matrix of integers once to 32-bit floats, but this decoder
        # would round each value twice.
        if set(map(len, rows)) != {width} or (is_rounded_once and type(rows[0][0]) is int):
            return None
        return decoder.from_rows(rows)

    return decode


def type_blocks(columns: tuple[Column, ...], inputs: tuple[Input, ...]) -> tuple[Input, ...]:
    """Return a block (an `Input`) for each numeric or boolean type; no blocks if an
    input has the name of a block.
    """
    members: dict[str, list[str]] = {}
    for column in columns:
        if column.type != "string":  # The input of a string column stores the text unchanged.
            members.setdefault(column.type, []).append(column.name)
    if any(
        entry.name.startswith(_BLOCK) and entry.name.removeprefix(_BLOCK) in COLUMN_TYPES
        for entry in inputs
    ):
        return ()
    return tuple(
        Input(_BLOCK + kind, COLUMN_TYPES[kind], (-1, len(names)), tuple(names))
        for kind, names in members.items()
    )


def _picker(keys: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Return an `itemgetter` that returns a tuple even for a single key."""
    if len(keys) == 1:
        return lambda row: (row[keys[0]],)
    return itemgetter(*keys)
