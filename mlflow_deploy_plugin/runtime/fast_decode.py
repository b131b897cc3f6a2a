"""The fast path from a table to feeds, for nearly every request: the right columns, the right types, no gaps.

`compile_fast_decoder` works out once a version which columns have which type and which input they end in. A request
then takes one look at its types and one array a type. For anything unusual the decoder returns None, and
`runtime/schema.py` decides, column by column, and names what is wrong. A property test holds both to the same feeds.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

from mlflow_deploy_plugin.runtime.artifact import COLUMN_TYPES, Column, Input, Tensor
from mlflow_deploy_plugin.runtime.feeds import Array, Feeds, SharedDimensions, narrowed_feeds, size_mismatch
from mlflow_deploy_plugin.runtime.values import LISTS, numpy_dtype

_NUMBERS: frozenset[type] = frozenset({float, int, type(None)})  # numpy makes NaN of None
_ACCEPTED: dict[str, frozenset[type]] = {
    "double": _NUMBERS,
    "float": _NUMBERS,
    "integer": frozenset({int}),
    "long": frozenset({int}),
    "boolean": frozenset({bool}),
    "string": frozenset({str}),
}
"""The Python types that a column of this type takes as they are. A missing text and 20.0 for 20 are not among them."""

_ARRAY_KINDS = {"double": "fiu", "float": "f"}
"""The numpy kinds whose numbers convert to these types as a list of the same numbers would."""

_PACKED = {("double", "float32"): "f", ("float", "float32"): "f", ("double", "float64"): "d"}
"""The `struct` format of (column type, input dtype); packing rounds once, as numpy does."""

_MAX_TRANSPOSED = 1_000_000
"""The largest number of values in columns that are turned into rows, each of which takes 50 bytes and more beside its
values. The exact path needs no rows."""
_BLOCK = "@"
"""The first character of the name of a block."""

_Rows = Sequence[Sequence[Any]]
_Pick = Callable[[Sequence[Any]], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class _Group:
    """The columns of one type, how to pick them from a row, and the type of their array."""

    pick: _Pick
    accepted: frozenset[type]
    dtype: np.dtype[Any]

    def takes(self, values: Array) -> bool:
        """Return True if values of columns that came as arrays convert to this type, whatever they are."""
        given = values.dtype
        if self.dtype.kind == "O":
            return given.kind == "O" and set(map(type, values)) == {str}
        if self.dtype.kind == "f":
            return given.kind in "fiu"
        return given == self.dtype or (given.kind in "iu" and np.can_cast(given, self.dtype))


@dataclass(frozen=True, slots=True)
class _Target:
    """One input of the graph.

    Attributes:
        groups, order: the groups of several columns, and their places among the columns of these groups, one group
            after the other.
        cast, place: of a single column: the position of its group in `FastDecoder._casts`, and its place in there; -1
            for several columns.
    """

    name: str
    dtype: np.dtype[Any]
    groups: tuple[int, ...]
    order: Array
    cast: int
    place: int


class FastDecoder:
    """Turns tables that fit into feeds; every method returns None for one that may not fit.

    Args:
        columns: those of the signature; a text feeds an input of texts, and only such.
        blocks: those of `type_blocks`, if the types of the graph are narrower than the signature's.

    Attributes:
        order: the columns that feed the graph, in the signature's order.
        array_kinds: the numpy kinds that `from_array` takes; none if the columns are not one type and one input.
        _names: the same as a list, which is how JSON brings it.
        _casts: (group, dtype, whether its columns are vectors): columns that are inputs by themselves are converted
            with the others of their type.
        _pack_row: decodes a row of numbers that are the only block.
        _blocks: the name of each group in `NarrowedFeeds.sent`, an empty text for a group of texts. No names at all if
            the graph takes the types of the signature.
        _texts: the inputs of texts.
    """

    def __init__(self, columns: tuple[Column, ...], inputs: tuple[Input, ...], blocks: tuple[Input, ...]) -> None:
        self.order = order = tuple(column.name for column in columns)
        self._names = list(order)
        self._by_name = _picker(order)
        types = {column.name: column.type for column in columns}
        kinds = tuple(dict.fromkeys(types.values()))
        members = {kind: [name for name in order if types[name] == kind] for kind in kinds}
        self._groups = [
            _Group(_picker([order.index(name) for name in names]), _ACCEPTED[kind], numpy_dtype(COLUMN_TYPES[kind]))
            for kind, names in members.items()
        ]
        self._casts: list[tuple[int, np.dtype[Any], bool]] = []
        self._targets: list[_Target] = []
        for entry in inputs:
            groups = tuple(sorted({kinds.index(types[name]) for name in entry.columns}))
            places = {name: place for place, name in enumerate(chain(*(members[kinds[group]] for group in groups)))}
            sources = np.array([places[name] for name in entry.columns], dtype=np.intp)
            dtype, cast, place = numpy_dtype(entry.dtype), -1, -1
            if len(entry.columns) == 1:
                place = int(sources[0])
                if (wanted := (groups[0], dtype, len(entry.shape) == 1)) not in self._casts:
                    self._casts.append(wanted)
                cast = self._casts.index(wanted)
            self._targets.append(_Target(entry.name, dtype, groups, sources, cast, place))
        called = {block.name.removeprefix(_BLOCK): block.name for block in blocks}
        self._blocks = tuple(called.get(kind, "") for kind in kinds) if blocks else ()
        self._texts = tuple(entry.name for entry in inputs if entry.dtype == "str")
        self._is_one_block = len(kinds) == 1 and kinds[0] != "string" and [e.columns for e in inputs] == [order]
        self._is_one_block = self._is_one_block and len(inputs[0].shape) == 2
        self.array_kinds = _ARRAY_KINDS.get(kinds[0], "") if self._is_one_block else ""
        packed = _PACKED.get((kinds[0], inputs[0].dtype)) if self._is_one_block else None
        block = blocks[0].name if blocks else ""
        self._pack_row = _row_packer(self._targets[0], packed, len(order), block) if packed else None

    def from_rows(self, names: Sequence[str], rows: _Rows) -> Feeds | None:
        """Decode rows that are lists in the order of `names`."""
        if not rows or not LISTS.issuperset(map(type, rows)) or set(map(len, rows)) != {len(names)}:
            return None
        if names != self._names and names != self.order:
            places = {name: place for place, name in enumerate(names)}
            if len(places) != len(names) or not places.keys() >= set(self.order):
                return None
            pick = _picker([places[name] for name in self.order])
            rows = list(map(pick, rows))
        return self._feeds(rows)

    def from_records(self, records: Sequence[Mapping[str, Any]]) -> Feeds | None:
        """Decode rows that are mappings from column to value."""
        if not records or set(map(type, records)) != {dict}:
            return None
        try:
            rows = list(map(self._by_name, records))
        except KeyError:
            return None
        return self._feeds(rows)

    def from_columns(self, data: Mapping[str, Any]) -> Feeds | None:
        """Decode columns by name."""
        try:
            columns = self._by_name(data)
        except KeyError:
            return None
        kinds = set(map(type, columns))
        if kinds == {np.ndarray}:
            return self._from_arrays(columns)
        if kinds != {list} or len(set(map(len, columns))) != 1 or not columns[0]:
            return None
        if len(columns) * len(columns[0]) > _MAX_TRANSPOSED:
            return None
        return self._feeds(list(zip(*columns, strict=True)))

    def from_array(self, values: Array) -> Feeds | None:
        """Decode numbers of [N, columns] in the signature's order, for one input of one type of column."""
        if values.ndim != 2 or values.shape[1] != len(self.order) or not len(values):
            return None
        if values.dtype.kind not in self.array_kinds or values.dtype.itemsize > 8:
            return None
        return self._one_block(values, self._groups[0].dtype)

    def _feeds(self, rows: _Rows) -> Feeds | None:
        if self._is_one_block:
            group, is_row = self._groups[0], len(rows) == 1
            if not group.accepted.issuperset(map(type, rows[0] if is_row else chain.from_iterable(rows))):
                return None
            if is_row and self._pack_row is not None and (feeds := self._pack_row(rows[0])) is not None:
                return feeds
            return self._one_block(rows, group.dtype)
        picked = []
        columns: Sequence[Any] = rows[0] if len(rows) == 1 else list(zip(*rows, strict=True))
        for group in self._groups:
            values = group.pick(columns)
            if not group.accepted.issuperset(map(type, values if len(rows) == 1 else chain.from_iterable(values))):
                return None
            picked.append(values)
        try:
            with np.errstate(over="raise"):
                return self._of_blocks(
                    [
                        np.array(values, dtype=group.dtype).reshape(-1, len(rows), 1)
                        for group, values in zip(self._groups, picked, strict=True)
                    ]
                )
        except (OverflowError, FloatingPointError):
            return None

    def _from_arrays(self, columns: Sequence[Array]) -> Feeds | None:
        """Decode columns that are arrays of [N]. Those of one type are converted together."""
        if {array.ndim for array in columns} != {1} or len(set(map(len, columns))) != 1 or not len(columns[0]):
            return None
        blocks = []
        try:
            with np.errstate(over="raise"):
                for group in self._groups:
                    values = group.pick(columns)
                    if len({array.dtype for array in values}) != 1 or not group.takes(joined := np.concatenate(values)):
                        return None
                    if self._is_one_block:
                        return self._one_block(joined.reshape(len(values), -1).T, group.dtype)
                    blocks.append(joined.astype(group.dtype, copy=False).reshape(len(values), -1, 1))
                return self._of_blocks(blocks)
        except FloatingPointError:
            return None

    def _of_blocks(self, blocks: Sequence[Array]) -> Feeds:
        """Return the feeds of the groups, each an array of [columns, N, 1] in its type.

        Raises:
            FloatingPointError: a number is too large for its input.
        """
        casts = []
        for source, dtype, is_vector in self._casts:
            cast = blocks[source].astype(dtype, copy=False)
            casts.append(cast[:, :, 0] if is_vector else cast)
        feeds = {
            target.name: casts[target.cast][target.place] if target.cast >= 0 else _stack(target, blocks)
            for target in self._targets
        }
        if not self._blocks:
            return feeds
        sent = {name: block[:, :, 0].T for name, block in zip(self._blocks, blocks, strict=True) if name}
        for name in self._texts:
            sent[name] = feeds[name]
        return narrowed_feeds(feeds, sent)

    def _one_block(self, rows: _Rows | Array, dtype: np.dtype[Any]) -> Feeds | None:
        """Decode rows of which all columns, in their order, are the one input of the graph."""
        target = self._targets[0]
        try:
            with np.errstate(over="raise"):
                exact = np.asarray(rows, dtype=dtype)
                feeds = {target.name: exact.astype(target.dtype, order="C", copy=False)}
        except (OverflowError, FloatingPointError):
            return None
        return narrowed_feeds(feeds, {self._blocks[0]: exact}) if self._blocks else feeds


def compile_fast_tensor_decoder(
    bound: Sequence[tuple[Input, Tensor]], shared: SharedDimensions
) -> Callable[[Mapping[str, Any]], Feeds | None] | None:
    """Return a function that makes feeds of tensors by name, by a look at their dtypes and shapes.

    It returns None if one needs more than a look. There is no such function if one is text or has to be converted.
    """
    if any(entry.dtype != tensor.dtype or tensor.dtype == "str" for entry, tensor in bound):
        return None
    tensors = [(tensor.name, entry.name, numpy_dtype(tensor.dtype), tensor.shape) for entry, tensor in bound]

    def decode(data: Mapping[str, Any]) -> Feeds | None:
        feeds: Feeds = {}
        for name, fed, dtype, shape in tensors:
            array = data.get(name)
            if type(array) is not np.ndarray or array.dtype != dtype or array.ndim != len(shape):
                return None
            for want, have in zip(shape, array.shape, strict=True):
                if want not in (-1, have):
                    return None
            feeds[fed] = array
        return None if shared and size_mismatch(shared, feeds) else feeds

    return decode


def type_blocks(columns: tuple[Column, ...], inputs: tuple[Input, ...]) -> tuple[Input, ...]:
    """Return an input-like block for the numbers or booleans of each type; none if an input has the name of a block."""
    members: dict[str, list[str]] = {}
    for column in columns:
        if column.type != "string":  # the input of a string holds it whole, and says what replaces a missing one
            members.setdefault(column.type, []).append(column.name)
    if any(entry.name.startswith(_BLOCK) and entry.name.removeprefix(_BLOCK) in COLUMN_TYPES for entry in inputs):
        return ()
    return tuple(
        Input(_BLOCK + kind, COLUMN_TYPES[kind], (-1, len(names)), tuple(names)) for kind, names in members.items()
    )


def compile_fast_decoder(
    columns: tuple[Column, ...], inputs: tuple[Input, ...], blocks: tuple[Input, ...]
) -> FastDecoder | None:
    """Return a decoder for this signature; None if it has tensors, or numbers as text."""
    is_text = {column.name: column.type == "string" for column in columns}
    if not columns or any(is_text[name] != (entry.dtype == "str") for entry in inputs for name in entry.columns):
        return None
    return FastDecoder(columns, inputs, blocks)


def _row_packer(target: _Target, form: str, width: int, block: str) -> Callable[[Sequence[Any]], Feeds | None]:
    """Return a decoder of a single row as `_one_block` decodes it, in a quarter of the time.

    It returns None for a null, and for a number that is too large.

    Args:
        form: the `struct` format of a number of the graph's.
        block: the name of the row as it was sent; empty if the graph takes it as it is.
    """
    fed, sent = struct.Struct(f"={width}{form}"), struct.Struct(f"={width}d")
    name, dtype, shape, exact = target.name, target.dtype, (1, width), np.dtype("float64")

    def pack(row: Sequence[Any]) -> Feeds | None:
        try:
            feeds: Feeds = {name: np.ndarray(shape, dtype, fed.pack(*row))}
            return narrowed_feeds(feeds, {block: np.ndarray(shape, exact, sent.pack(*row))}) if block else feeds
        except (struct.error, OverflowError):
            return None

    return pack


def _stack(target: _Target, blocks: Sequence[Array]) -> Array:
    """Return the array of an input of several columns, [N, columns], from blocks of [columns of one type, N, 1]."""
    columns = np.concatenate([blocks[group][:, :, 0].astype(target.dtype, copy=False) for group in target.groups])
    return np.ascontiguousarray(columns[target.order].T)


def _picker(keys: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Return an `itemgetter` that returns a tuple for a single key, too."""
    if len(keys) == 1:
        return lambda row: (row[keys[0]],)
    return itemgetter(*keys)
