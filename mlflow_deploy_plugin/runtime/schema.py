"""The compiled signature: columns, records, rows or tensors → the named arrays that feed the graph, and back.

The signature says what is given, the graph what is fed: columns are stacked into the input that they belong to, extra
columns are ignored, a missing one is an error. `runtime/values.py` checks the values themselves. A table that plainly
fits goes the quick way of `runtime/fast_decode.py`; the way that is written here decides on every other.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from mlflow_deploy_plugin.errors import InvalidArtifact, SchemaMismatch
from mlflow_deploy_plugin.nearest import hint_for_missing, join_names
from mlflow_deploy_plugin.runtime.artifact import COLUMN_TYPES, Column, Input, Output, Tensor
from mlflow_deploy_plugin.runtime.dimensions import (
    SharedDimensions,
    row_symbols,
    rowless_reason,
    shared_dimensions,
    size_mismatch,
    sizes_match,
)
from mlflow_deploy_plugin.runtime.fast_decode import (
    FastDecoder,
    FastTensorDecoder,
    compile_fast_decoder,
    compile_fast_tensor_decoder,
    type_blocks,
)
from mlflow_deploy_plugin.runtime.feeds import NarrowedFeeds, sent_arrays
from mlflow_deploy_plugin.runtime.values import (
    NO_ROWS,
    Missing,
    convert_column,
    convert_tensor,
    is_lossless_cast,
    numpy_dtype,
    overflow_message,
    short_repr,
)
from mlflow_deploy_plugin.runtime.values import Array as Array

Feeds = dict[str, Array]
"""Arrays by ONNX input name."""

_MOST_FILLED = 10_000_000
"""Values that are made for what a request leaves out, where it does not give as many itself."""


@dataclass(frozen=True)
class Schema:
    """The inputs of one model, ready to turn data into feeds.

    Attributes:
        columns: the signature's columns; empty for a tensor-based signature.
        tensors: the signature's tensors; empty for a column-based one.
        inputs: the graph's inputs, each bound to columns or to a tensor.
        has_rows: the first dimension of every tensor is its rows; a request to another model is one row as a whole.
    """

    columns: tuple[Column, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[Input, ...]
    has_rows: bool = True

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the signature's columns, or of its tensors."""
        return tuple(field.name for field in self.columns or self.tensors)

    def from_columns(self, data: Mapping[str, Sequence[Any] | Array]) -> Feeds:
        """Columns (or tensors) by name; each value a list or an array of N.

        Raises:
            SchemaMismatch: a column is missing, mistyped or of another length than the others; no rows.
        """
        if not self.columns:
            return self._from_tensors(data)
        if self._quick is not None and (feeds := self._quick.from_columns(data)) is not None:
            return feeds
        if absence := self.missing_columns(data):
            raise SchemaMismatch(absence)
        rows = self._rows(data)
        absent = sum(name not in data for name in self.names)
        _check_filled(rows * absent, rows * (len(self.names) - absent))
        with np.errstate(over="raise"):
            arrays = {
                column.name: convert_column(
                    column, data[column.name] if column.name in data else [None] * rows, self._missing[column.name]
                )
                for column in self.columns
            }
            try:
                feeds = {entry.name: _stack(entry, arrays) for entry in self.inputs}
            except FloatingPointError:
                raise SchemaMismatch(overflow_message(arrays)) from None
        if not self._blocks:
            return feeds
        sent = {entry.name: _stack(entry, arrays) for entry in self._blocks}
        return NarrowedFeeds(feeds, sent | {name: feeds[name] for name in self._texts})

    def from_records(self, records: Sequence[Mapping[str, Any]]) -> Feeds:
        """Rows as mappings from column to value; a column that some rows lack is null in those.

        Raises:
            SchemaMismatch: as `from_columns`, a row is no mapping, or names other columns of a tensor than the first.
        """
        if self._quick is not None and (feeds := self._quick.from_records(records)) is not None:
            return feeds
        for row, record in enumerate(records):
            if not isinstance(record, Mapping):
                raise SchemaMismatch(
                    f"row {row} is {short_repr(record)}; an object with one value a column is expected"
                )
        if not records:
            raise SchemaMismatch(NO_ROWS)
        if not self.columns:
            return self._from_tensor_records(records)
        seen = dict.fromkeys(chain.from_iterable(records))
        if absence := self.missing_columns(seen):
            raise SchemaMismatch(absence)
        present = [name for name in self.names if name in seen]
        given = sum(map(len, records))
        _check_filled(len(records) * len(present) - given, given)
        return self._from_frame({name: [record.get(name) for record in records] for name in present})

    def from_rows(self, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Feeds:
        """Rows as lists in the order of `names` (pandas' "split").

        Raises:
            SchemaMismatch: as `from_columns`, a name that stands twice, or a row of another length than `names`.
        """
        if self._quick is not None and (feeds := self._quick.from_rows(names, rows)) is not None:
            return feeds
        doubled = [name for name, count in Counter(names).items() if count > 1]
        if doubled:
            raise SchemaMismatch(f"column {doubled[0]!r} stands twice")
        for row, values in enumerate(rows):
            if not isinstance(values, list | tuple) or len(values) != len(names):
                raise SchemaMismatch(f"row {row} is {short_repr(values)}; a list of {len(names)} values is expected")
        if not rows:
            raise SchemaMismatch(NO_ROWS)
        return self._from_frame(dict(zip(names, map(list, zip(*rows, strict=True)), strict=False)))

    def from_array(self, values: Any) -> Feeds:
        """Rows without names: the columns in the signature's order, or the only tensor, as nested lists or an array.

        Raises:
            SchemaMismatch: as `from_columns`, or the shape does not fit.
        """
        if not self.columns:
            if len(self.tensors) != 1:
                raise SchemaMismatch(f"the model takes several tensors; give each by name: {join_names(self.names)}")
            return self._from_tensors({self.tensors[0].name: values})
        rows = values
        if isinstance(values, np.ndarray):
            if self._quick is not None and (feeds := self._quick.from_array(values)) is not None:
                return feeds
            rows = values.tolist()
        if not isinstance(rows, list | tuple):
            raise SchemaMismatch(f"the data is {short_repr(rows)}; a list of rows is expected")
        if len(self.columns) == 1 and not any(isinstance(row, list | tuple) for row in rows):
            return self.from_columns({self.names[0]: rows})
        return self.from_rows(self.names, rows)

    def to_columns(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The way back: arrays of [N] by signature column (of [N, …] by tensor name), as captured rows need them.

        They are what was sent, where the graph takes less. An input without an entry in `feeds` (one value for all
        rows is not captured) has no column.
        """
        columns: dict[str, Array] = {}
        arrays = sent_arrays(feeds)
        for entry in self.sent_inputs:
            if (array := arrays.get(entry.name)) is None:
                continue
            if entry.columns:
                flat = array.reshape(len(array), -1)
                columns.update({name: flat[:, position] for position, name in enumerate(entry.columns)})
            else:
                columns[entry.name] = array
        return {name: columns[name] for name in self.names if name in columns} if self.columns else columns

    @cached_property
    def tensor_schema(self) -> "Schema":
        """The same model for protocols of tensors: each tensor is named as the input of the graph that it feeds."""
        inputs = self.inputs
        if self.columns:
            tensors = [Tensor(entry.name, entry.dtype, entry.shape) for entry in inputs]
            inputs = tuple(replace(entry, dimension_names=row_symbols(entry.shape)) for entry in inputs)
        else:
            tensors = [replace(tensor, name=entry.name) for entry, tensor in self._bound_tensors]
        return Schema((), tuple(tensors), inputs, self.has_rows)

    def count_rows(self, arrays: Mapping[str, Array]) -> int:
        """How many rows a request with these inputs, or outputs, has."""
        return row_count(arrays) if self.has_rows else 1

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """The numpy dtype (`str`: strings) of each column or tensor of the signature, by its name."""
        columns = {column.name: COLUMN_TYPES[column.type] for column in self.columns}
        return columns or {tensor.name: tensor.dtype for tensor in self.tensors}

    def missing_columns(self, given: Collection[str]) -> str:
        """A message that says which required columns are not among the given ones; empty: all are."""
        missing = [column.name for column in self.columns if column.required and column.name not in given]
        return self._absence("column", missing, given) if missing else ""

    def _absence(self, noun: str, missing: Sequence[str], given: Iterable[str]) -> str:
        """Names what is missing, and what came in its place where that is not known."""
        instead = hint_for_missing(missing, (name for name in given if name not in self.dtypes))
        needed = "" if "did you mean" in instead else f"; the model needs {join_names(self.names, missing[0])}"
        return f"{_plural(noun, missing)} missing{instead}{needed}"

    @cached_property
    def sent_inputs(self) -> tuple[Input, ...]:
        """What arrays of sent rows may be called, and what of the signature they hold: the graph's inputs, and a block
        of each type of number where the graph takes less than the signature says."""
        return (*self.inputs, *self._blocks)

    @cached_property
    def capture_schema(self) -> "Schema":
        """The same model for rows in the spool, which hold what was sent."""
        return replace(self, inputs=self.sent_inputs) if self._blocks else self

    @cached_property
    def _blocks(self) -> tuple[Input, ...]:
        """The numbers of each type as one array of that type; empty: the graph's inputs lose nothing of them."""
        types = {column.name: numpy_dtype(COLUMN_TYPES[column.type]) for column in self.columns}
        fed = [(numpy_dtype(entry.dtype), types[name]) for entry in self.inputs for name in entry.columns if types]
        return () if all(is_lossless_cast(*pair) for pair in fed) else type_blocks(self.columns, self.inputs)

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        """The inputs that have columns of texts, which stand in no block."""
        texts = {column.name for column in self.columns if column.type == "string"}
        return tuple(entry.name for entry in self.inputs if not texts.isdisjoint(entry.columns))

    @cached_property
    def _quick(self) -> FastDecoder | None:
        return compile_fast_decoder(self.columns, self.inputs, self._blocks)

    @cached_property
    def _quick_tensors(self) -> FastTensorDecoder | None:
        return compile_fast_tensor_decoder(self._bound_tensors, self._shared)

    @cached_property
    def _shared(self) -> SharedDimensions:
        # a signature may say another rank than the graph, which then refuses what it is fed
        fitting = [entry for entry, tensor in self._bound_tensors if len(tensor.shape) == len(entry.dimension_names)]
        return shared_dimensions(fitting)

    @cached_property
    def _missing(self) -> Mapping[str, str | Missing | None]:
        """By column: what stands for a missing string; None: nothing does."""
        said = {name: entry.missing for entry in self.inputs for name in entry.columns}
        return {name: said.get(name) for name in self.names}

    def _rows(self, data: Mapping[str, Any]) -> int:
        """The one length of all columns."""
        lengths = {name: _length(name, data[name]) for name in self.names if name in data}
        first, rows = next(iter(lengths.items()), ("", 0))
        for name, length in lengths.items():
            if length != rows:
                raise SchemaMismatch(f"column {name!r} has {length} values, but column {first!r} has {rows}")
        if rows == 0:
            raise SchemaMismatch(NO_ROWS)
        return rows

    def _from_frame(self, data: Mapping[str, list[Any]]) -> Feeds:
        """A table: by column name; for the only tensor its only column, or, of rank 2, all columns as they come."""
        if self.columns:
            return self.from_columns(data)
        if len(self.tensors) == 1 and len(data) == 1:
            data = {self.tensors[0].name: next(iter(data.values()))}
        if all(name in data for name in self.names):
            return self._from_tensors({tensor.name: _from_cells(tensor, data[tensor.name]) for tensor in self.tensors})
        if len(self.tensors) == 1 and len(self.tensors[0].shape) == 2:
            return self._from_tensors({self.tensors[0].name: list(map(list, zip(*data.values(), strict=True)))})
        raise SchemaMismatch(f"a table does not fit this model; it takes the tensors {join_names(self.names)}")

    def _from_tensor_records(self, records: Sequence[Mapping[str, Any]]) -> Feeds:
        """The first row names the columns; keys of the rows' own would make a table as wide as it is long."""
        names = records[0].keys()
        for row, record in enumerate(records):
            if record.keys() != names:
                other = next(iter(record.keys() ^ names))
                raise SchemaMismatch(
                    f"row {row} and row 0 name different columns: {short_repr(other)} is in one of them"
                )
        return self._from_frame({name: [record[name] for record in records] for name in names})

    def _from_tensors(self, data: Mapping[str, Any]) -> Feeds:
        if self._quick_tensors is not None and (feeds := self._quick_tensors.from_arrays(data)) is not None:
            return feeds
        if self.names == ("",) and len(data) == 1:
            data = {"": next(iter(data.values()))}  # the only, nameless tensor may be called anything
        missing = [name for name in self.names if name not in data]
        if missing:
            raise SchemaMismatch(self._absence("tensor", missing, data))
        try:
            with np.errstate(over="raise"):
                arrays = {tensor.name: convert_tensor(tensor, data[tensor.name]) for tensor in self.tensors}
                feeds = {
                    entry.name: arrays[tensor.name].astype(numpy_dtype(entry.dtype), copy=False)
                    for entry, tensor in self._bound_tensors
                }
        except FloatingPointError:
            raise SchemaMismatch("a number is too large for the model's floating-point type") from None
        if not sizes_match(self._shared, feeds):
            raise SchemaMismatch(size_mismatch(self._shared, feeds))
        sent = {
            entry.name: _given(entry, arrays[tensor.name], data[tensor.name]) for entry, tensor in self._bound_tensors
        }
        is_narrowed = not all(is_lossless_cast(feeds[name].dtype, array.dtype) for name, array in sent.items())
        return NarrowedFeeds(feeds, sent) if is_narrowed else feeds

    @cached_property
    def _bound_tensors(self) -> list[tuple[Input, Tensor]]:
        """Each input of the graph with its tensor: by name, or the only one."""
        if len(self.inputs) == 1:
            return [(self.inputs[0], self.tensors[0])]
        named = {tensor.name: tensor for tensor in self.tensors}
        return [(entry, named[entry.name]) for entry in self.inputs]


def row_count(arrays: Mapping[str, Array]) -> int:
    """How many rows the arrays have; of those that differ, the most, and 0 where none has rows."""
    return max((len(array) for array in arrays.values() if array.ndim), default=0)


def compile_schema(
    columns: tuple[Column, ...],
    tensors: tuple[Tensor, ...],
    inputs: tuple[Input, ...],
    outputs: tuple[Output, ...] = (),
) -> Schema:
    """Checks that every input of the graph is fed by the signature.

    Args:
        outputs: empty where they are not known.

    Raises:
        InvalidArtifact: an input has no source in the signature, or a name stands twice in it.
    """
    names = Counter(field.name for field in columns or tensors)
    if doubled := [name for name, count in names.items() if count > 1]:
        raise InvalidArtifact(f"the signature names {doubled[0]!r} twice")
    for entry in inputs:
        if columns and (not entry.columns or any(name not in names for name in entry.columns)):
            raise InvalidArtifact(f"the graph's input {entry.name!r} is not fed by the signature's {sorted(names)}")
    if tensors and (len(tensors) != len(inputs) or (len(inputs) > 1 and set(names) != {e.name for e in inputs})):
        raise InvalidArtifact(f"the graph takes {[e.name for e in inputs]}, the signature gives {sorted(names)}")
    return Schema(columns, tensors, inputs, not rowless_reason(columns, inputs, outputs))


def _from_cells(tensor: Tensor, cells: list[Any]) -> list[Any]:
    """A column of a table as a tensor: a cell holds its row's one value, or all of them flattened, as in MLflow."""
    inner = tensor.shape[1:]
    if len(inner) == 1:
        return cells if any(isinstance(cell, list) for cell in cells) else [[cell] for cell in cells]
    return [_unflattened(cell, inner) for cell in cells]


def _unflattened(cell: Any, shape: tuple[int, ...]) -> Any:
    """The values of one row in its shape; what is not as many values in one list is left as it is, to be checked."""
    is_flat = isinstance(cell, list) and len(shape) > 1 and not any(isinstance(value, list) for value in cell)
    if not is_flat or min(shape) < 1 or len(cell) != prod(shape):
        return cell
    for size in shape[:0:-1]:
        cell = [cell[start : start + size] for start in range(0, len(cell), size)]
    return cell


def _stack(entry: Input, arrays: Mapping[str, Array]) -> Array:
    """The columns of one ONNX input, as [N, columns] (or [N] where the graph wants a vector)."""
    dtype = numpy_dtype(entry.dtype)
    if len(entry.columns) == 1:
        only = arrays[entry.columns[0]].astype(dtype, copy=False)
        return only if len(entry.shape) == 1 else only.reshape(-1, 1)
    stacked = np.empty((len(arrays[entry.columns[0]]), len(entry.columns)), dtype=dtype)
    for position, name in enumerate(entry.columns):
        stacked[:, position] = arrays[name]
    return stacked


def _check_filled(missing: int, given: int) -> None:
    """Refuses what is small as a body, and a table of gigabytes: a million rows of nothing, for hundreds of columns."""
    if missing > max(_MOST_FILLED, given):
        raise SchemaMismatch(
            f"{missing} values are left out, and at most {given} given; send fewer rows, or whole ones"
        )


def _given(entry: Input, typed: Array, values: Any) -> Array:
    """A tensor as it was sent: in the signature's type, which says nothing of an input that columns are stacked in."""
    return values if entry.columns and isinstance(values, np.ndarray) and values.dtype.kind in "fiub" else typed


def _length(name: str, values: Any) -> int:
    if isinstance(values, list | tuple) or (isinstance(values, np.ndarray) and values.ndim == 1):
        return len(values)
    raise SchemaMismatch(f"column {name!r} is {short_repr(values)}; a list of values is expected")


def _plural(noun: str, names: Sequence[str]) -> str:
    called = join_names([repr(name) for name in names])
    return f"{noun} {called} is" if len(names) == 1 else f"{noun}s {called} are"
