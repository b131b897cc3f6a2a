"""The compiled signature: it converts columns, records, rows or tensors into the feeds
of the graph, and back.

Unknown columns are ignored; a missing column is an error. `serve/runtime/values.py`
checks the values. A table with the expected types takes the fast path of
`serve/runtime/schemas/fast_decode.py`; any other table is decoded here.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidArtifact, SchemaMismatch
from mlflow_deploy_plugin.core.messages import hint_for_missing, join_names, wrong_separator
from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES
from mlflow_deploy_plugin.serve.runtime.artifact import (
    NO_REFUSALS,
    Column,
    Input,
    Output,
    Refusals,
    Tensor,
    row_symbols,
)
from mlflow_deploy_plugin.serve.runtime.feeds import (
    Array,
    Feeds,
    NarrowedFeeds,
    SharedDimensions,
    as_table,
    narrowed_feeds,
    row_count,
    rowless_reason,
    sent_arrays,
    shared_dimensions,
    size_mismatch,
)
from mlflow_deploy_plugin.serve.runtime.refusals import ValueCheck, check_values, compile_checks
from mlflow_deploy_plugin.serve.runtime.schemas.fast_decode import (
    FastDecoder,
    compile_fast_tensor_decoder,
    type_blocks,
)
from mlflow_deploy_plugin.serve.runtime.values import (
    NO_ROWS,
    Missing,
    cast_tensor,
    convert_column,
    convert_tensor,
    is_lossless_cast,
    numpy_dtype,
    overflow_error,
    short_repr,
)

_MAX_FILLED = 10_000_000
"""The maximum number of omitted values that are filled in. If more values were sent,
their number is the maximum.
"""


@dataclass(frozen=True)
class Schema:
    """The inputs of one model, and the methods that convert data into feeds.

    Attributes:
        columns / tensors: the signature's columns or tensors; one of the two tuples is
            empty.
        has_rows: True if the first dimension of every tensor is its rows. Otherwise a
            request counts as one row.
        keys: additional columns that are captured but not fed (`keyed_schema.py`).
        is_foreign: True if another exporter made the graph. Exporters give unrelated
            dimensions the same name, so only ONNX Runtime can decide which sizes must
            be equal.
        unread: the columns that the model does not read, which V2 accepts too.
    """

    columns: tuple[Column, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[Input, ...]
    has_rows: bool = True
    refusals: Refusals = NO_REFUSALS
    keys: tuple[str, ...] = ()
    is_foreign: bool = False
    unread: tuple[str, ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.columns or self.tensors)

    @cached_property
    def binary_columns(self) -> frozenset[str]:
        """The names of the columns of bytes. Only a pyfunc has such columns."""
        return frozenset(column.name for column in self.columns if column.is_binary)

    def from_columns(self, data: Mapping[str, Sequence[object] | Array]) -> Feeds:
        """Return feeds from columns (or tensors) by name, each a list or an array of
        the rows.

        Raises SchemaMismatch if a column is missing, mistyped or has another length, or
        if there are no rows.
        """
        if not self.columns:
            return self._from_tensors(data)
        if self._fast is not None and (feeds := self._fast.from_columns(data)) is not None:
            return self._check_refused(feeds)
        if missing := self.missing_columns(data):
            raise missing
        rows = self._common_length(data)
        absent = sum(name not in data for name in self.names)
        check_filled(rows * absent, rows * (len(self.names) - absent))
        nulls = [None] * rows  # An optional column that is absent has missing values.
        arrays = {}
        with np.errstate(over="raise"):
            for column in self.columns:
                arrays[column.name] = convert_column(
                    column, data.get(column.name, nulls), self._replacements.get(column.name)
                )
            try:
                feeds = {entry.name: _stack(entry, arrays) for entry in self.inputs}
            except FloatingPointError:
                raise overflow_error(arrays) from None
        if not self._blocks:
            return self._check_refused(feeds)
        # Blocks do not contain texts.
        texts = {column.name for column in self.columns if column.type == "string"}
        sent = {entry.name: _stack(entry, arrays) for entry in self._blocks}
        sent |= {
            entry.name: feeds[entry.name]
            for entry in self.inputs
            if not texts.isdisjoint(entry.columns)
        }
        return self._check_refused(narrowed_feeds(feeds, sent))

    def from_records(self, records: Sequence[Mapping[str, object]]) -> Feeds:
        """Return feeds from rows that map column to value. A column that is absent from
        a row is null in that row.

        Raises the errors of `from_columns`. The rows of tensors must all have the same
        names.
        """
        if self._fast is not None and (feeds := self._fast.from_records(records)) is not None:
            return self._check_refused(feeds)
        check_records(records)
        if not self.columns:
            names = records[0].keys()
            for row, record in enumerate(records):
                # Different keys per row would make a table with a column for every row.
                if record.keys() != names:
                    other = short_repr(next(iter(record.keys() ^ names)))
                    raise SchemaMismatch(
                        f"row {row} and row 0 have different columns: only one of them has {other}"
                    )
            return self.from_frame(columns_of(records, names))
        seen = dict.fromkeys(chain.from_iterable(records))
        if missing := self.missing_columns(seen):
            raise missing
        present = [name for name in self.names if name in seen]
        sent = sum(map(len, records))
        check_filled(len(records) * len(present) - sent, sent)
        return self.from_frame(columns_of(records, present))

    def from_rows(self, names: Sequence[str], rows: Sequence[Sequence[object]]) -> Feeds:
        """Return feeds from rows that are lists in the order of `names` (pandas'
        "split"). Raises SchemaMismatch for a repeated name, a row of another length, no
        rows, or values that do not fit.
        """
        if self._fast is not None and (feeds := self._fast.from_rows(names, rows)) is not None:
            return self._check_refused(feeds)
        if doubled := [name for name, count in Counter(names).items() if count > 1]:
            raise SchemaMismatch(f"column {doubled[0]!r} is duplicated", column=doubled[0])
        for row, values in enumerate(rows):
            if not isinstance(values, list | tuple) or len(values) != len(names):
                raise SchemaMismatch(
                    f"row {row} is {short_repr(values)}; a list of {len(names)} values is expected"
                )
        if not rows:
            raise SchemaMismatch(NO_ROWS)
        columns = map(list, zip(*rows, strict=True))
        return self.from_frame(dict(zip(names, columns, strict=False)))

    def from_array(self, values: object) -> Feeds:
        """Return feeds from nested lists or an array, in the order of the columns.
        Raises SchemaMismatch if they are not rows of the model's columns.
        """
        if not self.columns:
            if len(self.tensors) != 1:
                raise SchemaMismatch(
                    f"the model takes several tensors; send each by name: {join_names(self.names)}"
                )
            return self._from_tensors({self.tensors[0].name: values})
        rows = values
        if isinstance(values, np.ndarray):
            if self._fast is not None and (feeds := self._fast.from_array(values)) is not None:
                return self._check_refused(feeds)
            rows = values.tolist()
        if not isinstance(rows, list | tuple):
            raise SchemaMismatch(f"the data is {short_repr(rows)}; a list of rows is expected")
        if len(self.columns) == 1 and not any(isinstance(row, list | tuple) for row in rows):
            return self.from_columns({self.names[0]: rows})
        return self.from_rows(self.names, rows)

    @property
    def matrix_kinds(self) -> str:
        """The numpy kinds of a matrix that `from_array` decodes directly; empty if the
        graph does not take a matrix.
        """
        if self._fast is not None:
            return self._fast.array_kinds
        return ""

    def to_columns(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the values as they were sent, in the format of captured rows: [N] by
        column, or [N, …] by tensor.

        Inputs that are not in `feeds` are left out. A missing text is None.
        """
        columns = {}
        arrays = sent_arrays(feeds)
        for entry in self.sent_inputs:
            if (array := arrays.get(entry.name)) is None:
                continue
            if entry.missing is not None:
                array = np.where(array == entry.missing, np.array(None, object), array)
            if entry.columns:
                flat = as_table(array)
                columns.update(
                    {name: flat[:, position] for position, name in enumerate(entry.columns)}
                )
            else:
                columns[entry.name] = array
        if self.columns:
            return {name: columns[name] for name in self.names if name in columns}
        return columns

    @cached_property
    def tensor_schema(self) -> "Schema":
        """The schema for tensor protocols: each tensor has the name of the graph input
        that it feeds.
        """
        inputs = self.inputs
        refusals = self.refusals
        if self.columns:
            tensors = [Tensor(entry.name, entry.dtype, entry.shape) for entry in inputs]
            inputs = tuple(
                replace(entry, dimension_names=row_symbols(entry.shape)) for entry in inputs
            )
        else:
            tensors = [replace(tensor, name=entry.name) for entry, tensor in self._bound_tensors]
            names = {tensor.name: entry.name for entry, tensor in self._bound_tensors}
            refusals = renamed_refusals(refusals, names)
        # The inputs of a table always have the same number of rows.
        is_foreign = self.is_foreign and not self.columns
        return Schema((), tuple(tensors), inputs, self.has_rows, refusals, is_foreign=is_foreign)

    def count_rows(self, arrays: Mapping[str, Array]) -> int:
        return row_count(arrays) if self.has_rows else 1

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """The numpy dtype (`str`: strings) of each column or tensor of the signature,
        by name.
        """
        columns = {column.name: COLUMN_TYPES[column.type] for column in self.columns}
        return columns or {tensor.name: tensor.dtype for tensor in self.tensors}

    def missing_columns(self, sent: Collection[str]) -> SchemaMismatch | None:
        """Return an error if required columns are not among the sent columns; otherwise
        return None.
        """
        missing = [
            column.name for column in self.columns if column.required and column.name not in sent
        ]
        if missing:
            return self._missing_error("column", missing, sent)
        return None

    def _missing_error(
        self, noun: str, missing: Sequence[str], sent: Iterable[str]
    ) -> SchemaMismatch:
        """Return the error about missing columns or tensors (`noun`). It suggests the
        sent names that the model does not have.
        """
        if reason := wrong_separator(sent, missing):
            return SchemaMismatch(reason)
        suggestion = hint_for_missing(missing, (name for name in sent if name not in self.dtypes))
        needed = ""
        if "did you mean" not in suggestion:
            needed = f"; the model needs {join_names(self.names, missing[0])}"
        names = join_names(map(repr, missing))
        subject = f"{noun} {names} is" if len(missing) == 1 else f"{noun}s {names} are"
        return SchemaMismatch(f"{subject} missing{suggestion}{needed}", column=missing[0])

    @cached_property
    def sent_inputs(self) -> tuple[Input, ...]:
        """The arrays that may contain sent rows: the graph's inputs and the blocks of
        narrowed numbers.
        """
        return (*self.inputs, *self._blocks)

    @cached_property
    def capture_schema(self) -> "Schema":
        """The schema of the rows in the spool, which contain the values as they were
        sent.
        """
        if self._blocks:
            return replace(self, inputs=self.sent_inputs)
        return self

    @cached_property
    def _blocks(self) -> tuple[Input, ...]:
        """One block per type of numbers, with the type's dtype. Empty if the graph's
        inputs are wide enough.
        """
        if not self.columns:
            return ()
        for entry in self.inputs:
            dtype = numpy_dtype(entry.dtype)
            if not all(
                is_lossless_cast(dtype, numpy_dtype(self.dtypes[name])) for name in entry.columns
            ):
                return type_blocks(self.columns, self.inputs)
        return ()

    @cached_property
    def _fast(self) -> FastDecoder | None:
        """The fast decoder for tables; None for tensors or if a number is fed as
        text.
        """
        if not self.columns:
            return None
        for entry in self.inputs:
            is_text = entry.dtype == "str"
            if any((self.dtypes[name] == "str") != is_text for name in entry.columns):
                return None
        return FastDecoder(self.columns, self.inputs, self._blocks)

    @cached_property
    def _fast_tensors(self) -> Callable[[Mapping[str, object]], Feeds | None] | None:
        return compile_fast_tensor_decoder(self._bound_tensors, self._shared)

    @cached_property
    def _shared(self) -> SharedDimensions:
        """The dimensions of the tensors that must have the same size."""
        if self.is_foreign:
            return ()
        # The rank of a tensor may differ from the rank of its input. In this case, the
        # graph refuses the feeds.
        fitting = [
            entry
            for entry, tensor in self._bound_tensors
            if len(tensor.shape) == len(entry.dimension_names)
        ]
        return shared_dimensions(fitting)

    @cached_property
    def _replacements(self) -> Mapping[str, str | Missing | None]:
        return self.missing_texts

    @cached_property
    def missing_texts(self) -> dict[str, str | None]:
        """The text that replaces a missing string, by column; None if a missing string
        is an error.
        """
        texts: dict[str, str | None] = {}
        for entry in self.inputs:
            texts |= dict.fromkeys(entry.columns, entry.missing)
        return texts

    def _common_length(self, data: Mapping[str, object]) -> int:
        """Return the number of values of each column. Raises SchemaMismatch if a column
        is not a list, the numbers differ, or there are no rows.
        """
        lengths = {}
        for name in self.names:
            if name in data:
                values = data[name]
                if not isinstance(values, list | tuple) and not (
                    isinstance(values, np.ndarray) and values.ndim == 1
                ):
                    reason = (
                        f"column {name!r} is {short_repr(values)}; a list of values is expected"
                    )
                    raise SchemaMismatch(reason, column=name)
                lengths[name] = len(values)
        first, rows = next(iter(lengths.items()), ("", 0))
        for name, length in lengths.items():
            if length != rows:
                reason = f"column {name!r} has {length} values, but column {first!r} has {rows}"
                raise SchemaMismatch(reason, column=name)
        if rows == 0:
            raise SchemaMismatch(NO_ROWS)
        return rows

    def from_frame(self, data: Mapping[str, list[object] | Array]) -> Feeds:
        """Return feeds from a table by column name. The columns are either all lists or
        all arrays.

        A single tensor takes a single column or, with rank 2, all columns in order.
        Raises SchemaMismatch if the table does not fit the signature.
        """
        if self.columns:
            return self.from_columns(data)
        if len(self.tensors) == 1 and len(data) == 1:
            data = {self.tensors[0].name: next(iter(data.values()))}
        if all(name in data for name in self.names):
            return self._from_tensors(
                {tensor.name: _from_cells(tensor, data[tensor.name]) for tensor in self.tensors}
            )
        if len(self.tensors) == 1 and len(self.tensors[0].shape) == 2 and data:
            columns = [column for column in data.values() if isinstance(column, np.ndarray)]
            if any(column.ndim > 1 for column in columns):
                raise SchemaMismatch(
                    "several columns can form one tensor only if each has one value per row"
                )
            matrix: list[Any] | Array
            if columns:
                matrix = np.column_stack(columns)
            else:
                matrix = list(map(list, zip(*data.values(), strict=True)))
            return self._from_tensors({self.tensors[0].name: matrix})
        raise SchemaMismatch(
            f"a table does not fit this model; send the tensors {join_names(self.names)}"
        )

    def _from_tensors(self, data: Mapping[str, Any]) -> Feeds:
        """Return feeds from tensors by name, lists or arrays. Raises SchemaMismatch if
        a tensor is missing, mistyped or has another shape.
        """
        if self._fast_tensors is not None and (feeds := self._fast_tensors(data)) is not None:
            return self._check_refused(feeds)
        if self.names == ("",):
            if len(data) != 1:
                names = join_names(data) or "none"
                raise SchemaMismatch(
                    f"the model takes one array, not {names}: send its rows as lists of values"
                )
            # A single tensor without a name may be sent under any name.
            data = {"": next(iter(data.values()))}
        missing = [name for name in self.names if name not in data]
        if missing:
            raise self._missing_error("tensor", missing, data)
        arrays = {}
        with np.errstate(over="raise"):
            for tensor in self.tensors:
                try:
                    arrays[tensor.name] = convert_tensor(tensor, data[tensor.name])
                except SchemaMismatch as error:
                    error.column = tensor.name
                    raise
            feeds = {
                entry.name: cast_tensor(tensor.name, arrays[tensor.name], entry.dtype)
                for entry, tensor in self._bound_tensors
            }
        if problem := size_mismatch(self._shared, feeds):
            raise SchemaMismatch(problem)
        sent = {}
        for entry, tensor in self._bound_tensors:
            values = data[tensor.name]
            sent[entry.name] = arrays[tensor.name]
            # The input of stacked columns may have another type than the signature.
            if entry.columns and isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
                sent[entry.name] = values
        if all(is_lossless_cast(feeds[name].dtype, array.dtype) for name, array in sent.items()):
            return self._check_refused(feeds)
        return self._check_refused(narrowed_feeds(feeds, sent))

    def _check_refused(self, feeds: Feeds) -> Feeds:
        """Return the feeds unchanged. Raises SchemaMismatch if the original of the
        model refuses one of their values.
        """
        if self._checks:
            if isinstance(feeds, NarrowedFeeds):
                check_values(self._sent_checks, feeds.sent)
            else:
                check_values(self._checks, feeds)
        return feeds

    @cached_property
    def _checks(self) -> list[ValueCheck]:
        """The checks of feeds whose numbers have the types of the signature."""
        tensors = {}
        if not self.columns:
            tensors = {entry.name: tensor.name for entry, tensor in self._bound_tensors}
        return compile_checks(self.refusals, self.inputs, tensors)

    @cached_property
    def _sent_checks(self) -> list[ValueCheck]:
        """The checks of `NarrowedFeeds.sent`, whose blocks contain the numbers of
        several inputs.
        """
        if not self._blocks:
            return self._checks
        texts = [entry for entry in self.inputs if entry.dtype == "str"]
        return compile_checks(self.refusals, [*self._blocks, *texts], {})

    @cached_property
    def _bound_tensors(self) -> list[tuple[Input, Tensor]]:
        """Each input of the graph with the tensor of the same name, or with the only
        tensor.
        """
        if len(self.inputs) == 1:
            return [(self.inputs[0], self.tensors[0])]
        by_name = {tensor.name: tensor for tensor in self.tensors}
        return [(entry, by_name[entry.name]) for entry in self.inputs]


def renamed_refusals(refusals: Refusals, names: Mapping[str, str]) -> Refusals:
    """Return the refusals with new names of the tensors."""
    return Refusals(
        frozenset(names.get(name, name) for name in refusals.missing),
        frozenset(names.get(name, name) for name in refusals.infinite),
        {names.get(name, name): known for name, known in refusals.categories.items()},
    )


def check_records(records: Sequence[Mapping[str, object]]) -> None:
    """Raise SchemaMismatch for a row that is not an object, or without rows."""
    for row, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise SchemaMismatch(
                f"row {row} is {short_repr(record)}; an object with one value per column is "
                "expected"
            )
    if not records:
        raise SchemaMismatch(NO_ROWS)


def columns_of(
    records: Sequence[Mapping[str, object]], names: Iterable[str]
) -> dict[str, list[object]]:
    """Return the values of each name. A record without the name has the value None."""
    columns = {}
    for name in names:
        columns[name] = [record.get(name) for record in records]
    return columns


def compile_schema(
    columns: tuple[Column, ...],
    tensors: tuple[Tensor, ...],
    inputs: tuple[Input, ...],
    outputs: tuple[Output, ...] = (),
    refusals: Refusals = NO_REFUSALS,
    is_foreign: bool = False,
    unread: tuple[str, ...] = (),
) -> Schema:
    """Return the schema of a signature of columns or of tensors. Raises InvalidArtifact
    if the signature lacks an input of the graph or repeats a name.

    `outputs` are empty if they are unknown. `is_foreign` is True for a graph of another
    exporter.
    """
    names = Counter(field.name for field in columns or tensors)
    if doubled := [name for name, count in names.items() if count > 1]:
        raise InvalidArtifact(f"the signature contains {doubled[0]!r} twice")
    if inputs and not names:
        raise InvalidArtifact(
            f"the graph takes {[entry.name for entry in inputs]}, but the signature has no inputs"
        )
    for entry in inputs:
        if columns and (not entry.columns or any(name not in names for name in entry.columns)):
            raise InvalidArtifact(
                f"the graph's input {entry.name!r} is not fed by the signature's {sorted(names)}"
            )
    if tensors and (
        len(tensors) != len(inputs)
        or (len(inputs) > 1 and set(names) != {entry.name for entry in inputs})
    ):
        raise InvalidArtifact(
            f"the graph takes {[entry.name for entry in inputs]}, but the signature has "
            f"{sorted(names)}"
        )
    has_rows = not rowless_reason(columns, inputs, outputs)
    return Schema(
        columns, tensors, inputs, has_rows, refusals, is_foreign=is_foreign, unread=unread
    )


def _from_cells(tensor: Tensor, cells: list[Any] | Array) -> list[Any] | Array:
    """Return a table column as a tensor. A cell has the only value of a row, or all
    values, flat as in MLflow.
    """
    inner = tensor.shape[1:]
    if isinstance(cells, np.ndarray):
        values = cells.size // max(len(cells), 1)
        inner = (values,) if inner == (-1,) else inner
        # `convert_tensor` checks the rest.
        is_fit = len(cells) and -1 not in inner and prod(inner) == values
        if is_fit:
            return cells.reshape(len(cells), *inner)
        return cells
    if len(inner) == 1:
        if any(isinstance(cell, list) for cell in cells):
            return cells
        return [[cell] for cell in cells]
    rows = []
    for cell in cells:
        is_flat = (
            isinstance(cell, list)
            and len(inner) > 1
            and not any(isinstance(value, list) for value in cell)
        )
        # `convert_tensor` checks all other cells.
        if is_flat and min(inner) > 0 and len(cell) == prod(inner):
            for size in inner[:0:-1]:
                cell = [cell[start : start + size] for start in range(0, len(cell), size)]
        rows.append(cell)
    return rows


def _stack(entry: Input, arrays: Mapping[str, Array]) -> Array:
    """Return the columns of one ONNX input as one array: [N, columns], or [N] if the
    graph requires a vector.
    """
    dtype = numpy_dtype(entry.dtype)
    if len(entry.columns) == 1:
        only = arrays[entry.columns[0]].astype(dtype, copy=False)
        if len(entry.shape) == 1:
            return only
        return only.reshape(-1, 1)
    stacked = np.empty((len(arrays[entry.columns[0]]), len(entry.columns)), dtype=dtype)
    for position, name in enumerate(entry.columns):
        stacked[:, position] = arrays[name]
    return stacked


def check_filled(missing: int, sent: int) -> None:
    """Refuse a small body that expands to gigabytes, such as a million empty rows with
    hundreds of columns.
    """
    if missing > max(_MAX_FILLED, sent):
        raise SchemaMismatch(
            f"{missing} values are missing, and at most {sent} are present; send fewer rows, or "
            "complete rows"
        )
