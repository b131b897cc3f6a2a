"""The compiled signature: columns, records, rows or tensors → the named arrays that feed the graph, and back.

Values are checked as MLflow's signature enforcement checks them: integers go into floating-point columns, nothing else
changes its type silently; extra columns are ignored; a missing one is an error. An error names the column, the row and
the value.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlflow_deploy_plugin.errors import InvalidArtifact, SchemaMismatch
from mlflow_deploy_plugin.runtime.artifact import COLUMN_TYPES, Column, Input, Tensor

Array = npt.NDArray[Any]
Feeds = dict[str, Array]
"""Arrays by ONNX input name, the batch first."""

_EXPECTED = {"f": "a number", "i": "an integer", "b": "true or false", "s": "a string"}
_KINDS = {"double": "f", "float": "f", "integer": "i", "long": "i", "boolean": "b", "string": "s"}
_ACCEPTED = {"f": frozenset("fi"), "i": frozenset("i"), "b": frozenset("b"), "s": frozenset("s")}
_NAMED = {"f": "a number with a fraction", "i": "an integer", "b": "a boolean", "s": "a string", "n": "null"}


@dataclass(frozen=True)
class Schema:
    """The inputs of one model, ready to turn data into feeds.

    Attributes:
        columns: the signature's columns; empty for a tensor-based signature.
        tensors: the signature's tensors; empty for a column-based one.
        inputs: the graph's inputs, each bound to columns or to a tensor.
    """

    columns: tuple[Column, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[Input, ...]

    @property
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
        missing = [column.name for column in self.columns if column.required and column.name not in data]
        if missing:
            raise SchemaMismatch(f"{_plural('column', missing)} missing; the model needs {', '.join(self.names)}")
        lengths = {name: _length(name, data[name]) for name in self.names if name in data}
        rows = next(iter(lengths.values()))
        if uneven := [name for name, length in lengths.items() if length != rows]:
            first = next(iter(lengths))
            raise SchemaMismatch(
                f"column {uneven[0]!r} has {lengths[uneven[0]]} values, but column {first!r} has {rows}"
            )
        if rows == 0:
            raise SchemaMismatch("the data has no rows; at least one is needed")
        arrays = {
            column.name: _typed(
                column, data[column.name] if column.name in data else [None] * rows, self._missing(column)
            )
            for column in self.columns
        }
        return {entry.name: self._stack(entry, arrays) for entry in self.inputs}

    def from_records(self, records: Sequence[Mapping[str, Any]]) -> Feeds:
        """Rows as mappings from column to value; a key that some rows lack is null in those.

        Raises:
            SchemaMismatch: as `from_columns`, or a row is not a mapping.
        """
        for row, record in enumerate(records):
            if not isinstance(record, Mapping):
                raise SchemaMismatch(f"row {row} is {_shown(record)}; an object with one value a column is expected")
        names = self.names if self.columns else self._frame_names()
        present = {name for name in names if any(name in record for record in records)}
        if not records:
            raise SchemaMismatch("the data has no rows; at least one is needed")
        return self._from_frame({name: [record.get(name) for record in records] for name in names if name in present})

    def from_rows(self, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Feeds:
        """Rows as lists in the order of `names` (pandas' "split").

        Raises:
            SchemaMismatch: as `from_columns`, a name that stands twice, or a row of another length than `names`.
        """
        if len(set(names)) != len(names):
            doubled = next(name for name in names if list(names).count(name) > 1)
            raise SchemaMismatch(f"column {doubled!r} stands twice")
        for row, values in enumerate(rows):
            if not isinstance(values, list | tuple) or len(values) != len(names):
                raise SchemaMismatch(f"row {row} is {_shown(values)}; a list of {len(names)} values is expected")
        if not rows:
            raise SchemaMismatch("the data has no rows; at least one is needed")
        return self._from_frame(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))

    def from_array(self, values: Any) -> Feeds:
        """Rows without names: the columns in the signature's order, or the only tensor, as nested lists or an array.

        Raises:
            SchemaMismatch: as `from_columns`, or the shape does not fit.
        """
        if not self.columns:
            if len(self.tensors) != 1:
                raise SchemaMismatch(f"the model takes several tensors; give each by name: {', '.join(self.names)}")
            return self._from_tensors({self.tensors[0].name: values})
        rows = values.tolist() if isinstance(values, np.ndarray) else values
        if len(self.columns) == 1 and not any(isinstance(row, list | tuple) for row in rows):
            rows = [[row] for row in rows]
        for row, entry in enumerate(rows):
            if not isinstance(entry, list | tuple) or len(entry) != len(self.columns):
                raise SchemaMismatch(
                    f"row {row} is {_shown(entry)}; a list of {len(self.columns)} values is expected: "
                    f"{', '.join(self.names)}"
                )
        return self.from_rows(self.names, rows)

    def to_columns(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The way back: arrays of [N] by signature column (of [N, …] by tensor name), as captured rows need them."""
        columns: dict[str, Array] = {}
        for entry in self.inputs:
            array = feeds[entry.name]
            if entry.columns:
                flat = array.reshape(len(array), -1)
                columns.update({name: flat[:, position] for position, name in enumerate(entry.columns)})
            else:
                columns[entry.name] = array
        return {name: columns[name] for name in self.names if name in columns} if self.columns else columns

    def _missing(self, column: Column) -> str | None:
        return next((entry.missing for entry in self.inputs if column.name in entry.columns), None)

    def _frame_names(self) -> tuple[str, ...]:
        """The names that a table for a tensor-based signature may use: those of the tensors, or positions."""
        if len(self.tensors) == 1 and len(self.tensors[0].shape) == 2:
            return tuple(str(position) for position in range(max(self.tensors[0].shape[1], 0)))
        return self.names

    def _from_frame(self, data: Mapping[str, list[Any]]) -> Feeds:
        """A table: by column name; for the only tensor of rank 2, its columns in the order in which they come."""
        if self.columns or all(name in data for name in self.names):
            return self.from_columns(data)
        if len(self.tensors) == 1 and len(self.tensors[0].shape) == 2:
            return self._from_tensors({self.tensors[0].name: list(map(list, zip(*data.values(), strict=True)))})
        raise SchemaMismatch(f"a table does not fit this model; it takes the tensors {', '.join(self.names)}")

    def _from_tensors(self, data: Mapping[str, Any]) -> Feeds:
        missing = [tensor.name for tensor in self.tensors if tensor.name not in data]
        if missing and len(self.tensors) == 1 and len(data) == 1 and not missing[0]:
            data = {"": next(iter(data.values()))}  # the only, nameless tensor may be called anything
        elif missing:
            raise SchemaMismatch(f"{_plural('tensor', missing)} missing; the model needs {', '.join(self.names)}")
        arrays = {tensor.name: _tensor(tensor, data[tensor.name]) for tensor in self.tensors}
        rows = {name: len(array) for name, array in arrays.items()}
        if len(set(rows.values())) > 1:
            raise SchemaMismatch(f"the tensors have different batch sizes: {rows}")
        by_input = zip(self.inputs, self.tensors, strict=True)
        return {
            entry.name: arrays[entry.name if entry.name in arrays else tensor.name].astype(
                _numpy_dtype(entry.dtype), copy=False
            )
            for entry, tensor in by_input
        }

    def _stack(self, entry: Input, arrays: Mapping[str, Array]) -> Array:
        """The columns of one ONNX input, as [N, columns] (or [N] where the graph wants a vector)."""
        dtype = _numpy_dtype(entry.dtype)
        if len(entry.columns) == 1:
            only = arrays[entry.columns[0]].astype(dtype, copy=False)
            return only if len(entry.shape) == 1 else only.reshape(-1, 1)
        stacked = np.empty((len(arrays[entry.columns[0]]), len(entry.columns)), dtype=dtype)
        for position, name in enumerate(entry.columns):
            stacked[:, position] = arrays[name]
        return stacked


def compile_schema(columns: tuple[Column, ...], tensors: tuple[Tensor, ...], inputs: tuple[Input, ...]) -> Schema:
    """Checks that every input of the graph is fed by the signature.

    Raises:
        InvalidArtifact: an input has no source in the signature.
    """
    names = {field.name for field in columns or tensors}
    for entry in inputs:
        unknown = [name for name in entry.columns if name not in names]
        if unknown or (columns and not entry.columns):
            raise InvalidArtifact(f"the graph's input {entry.name!r} is not fed by the signature's {sorted(names)}")
    if tensors and len(tensors) != len(inputs):
        raise InvalidArtifact(f"the graph has {len(inputs)} inputs, the signature {len(tensors)} tensors")
    return Schema(columns, tensors, inputs)


def _numpy_dtype(dtype: str) -> npt.DTypeLike:
    return np.dtype(object) if dtype == "str" else np.dtype(dtype)


def _category(kind: type) -> str:
    """f, i, b, s for the type of a value, n for a missing one, ? for anything else."""
    if issubclass(kind, bool | np.bool_):
        return "b"
    if issubclass(kind, int | np.integer):
        return "i"
    if issubclass(kind, float | np.floating):
        return "f"
    if issubclass(kind, str):
        return "s"
    return "n" if kind is type(None) else "?"


def _typed(column: Column, values: Sequence[Any] | Array, missing: str | None) -> Array:
    """The values of one column as an array of [N] in the column's dtype."""
    kind = _KINDS[column.type]
    dtype = _numpy_dtype(COLUMN_TYPES[column.type])
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        array_kind = "i" if values.dtype.kind == "u" else values.dtype.kind
        if array_kind in _ACCEPTED[kind]:
            return _fitting(column, values, dtype)
        raise SchemaMismatch(_mistyped(column, 0, values[0].item()))
    values = values.tolist() if isinstance(values, np.ndarray) else values
    categories = set(map(_category, set(map(type, values))))
    if kind == "s":
        return _strings(column, values, categories, missing)
    if "n" in categories and (kind == "f" or not column.required):
        if kind != "f":
            raise SchemaMismatch(
                f"column {column.name!r} ({column.type}) has a missing value, which an ONNX {column.type} cannot hold"
            )
        values = [np.nan if value is None else value for value in values]
        categories.discard("n")
    if not categories <= _ACCEPTED[kind]:
        row, value = _first_bad(values, _ACCEPTED[kind])
        raise SchemaMismatch(_mistyped(column, row, value))
    try:
        return np.array(values, dtype=dtype)
    except (OverflowError, ValueError):
        row = next(i for i, value in enumerate(values) if not _fits(value, dtype))
        raise SchemaMismatch(
            f"column {column.name!r}, row {row}: {_shown(values[row])} does not fit the type {column.type}"
        ) from None


def _strings(column: Column, values: Sequence[Any], categories: set[str], missing: str | None) -> Array:
    if not categories <= {"s"}:
        gaps = [value is None or (isinstance(value, float) and value != value) for value in values]
        if any(gaps) and missing is not None:
            values = [missing if gap else value for value, gap in zip(values, gaps, strict=True)]
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise SchemaMismatch(_mistyped(column, row, value))
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _fitting(column: Column, values: Array, dtype: npt.DTypeLike) -> Array:
    """Integers may not wrap around when they are narrowed."""
    wanted = np.dtype(dtype)
    if wanted.kind == "i" and values.dtype.itemsize > wanted.itemsize:
        limits = np.iinfo(wanted)
        outside = np.flatnonzero((values < limits.min) | (values > limits.max))
        if len(outside):
            row = int(outside[0])
            raise SchemaMismatch(
                f"column {column.name!r}, row {row}: {values[row]} does not fit the type {column.type}"
            )
    return values.astype(wanted, copy=False)


def _fits(value: Any, dtype: npt.DTypeLike) -> bool:
    try:
        np.array(value, dtype=dtype)
    except (OverflowError, ValueError):
        return False
    return True


def _first_bad(values: Iterable[Any], accepted: frozenset[str]) -> tuple[int, Any]:
    return next((row, value) for row, value in enumerate(values) if _category(type(value)) not in accepted)


def _mistyped(column: Column, row: int, value: Any) -> str:
    expected = _EXPECTED[_KINDS[column.type]]
    return f"column {column.name!r} ({column.type}), row {row}: {_shown(value)}; {expected} is expected"


def _tensor(tensor: Tensor, values: Any) -> Array:
    """One tensor, checked against the signature's dtype and shape."""
    label = f"tensor {tensor.name!r}" if tensor.name else "the tensor"
    wanted = _numpy_dtype(tensor.dtype)
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        raise SchemaMismatch(f"{label} is ragged: every row needs the same shape {_free(tensor.shape)}") from None
    kind = {"u": "i", "U": "s", "T": "s", "O": "s" if tensor.dtype == "str" else "?"}.get(
        array.dtype.kind, array.dtype.kind
    )
    wanted_kind = {"u": "i", "O": "s"}.get(np.dtype(wanted).kind, np.dtype(wanted).kind)
    if array.size and kind not in _ACCEPTED.get(wanted_kind, frozenset()):
        if kind == "?" and wanted_kind == "f":
            return _tensor(tensor, _with_nan(label, values))
        raise SchemaMismatch(f"{label}: {_NAMED.get(kind, 'a mixture of types')} where {tensor.dtype} is expected")
    if array.ndim != len(tensor.shape) or any(
        want not in (-1, have) for want, have in zip(tensor.shape, array.shape, strict=False)
    ):
        raise SchemaMismatch(f"{label} has the shape {list(array.shape)}; {_free(tensor.shape)} is expected")
    if array.shape[0] == 0:
        raise SchemaMismatch("the data has no rows; at least one is needed")
    converted = array.astype(wanted, copy=False)
    if np.dtype(wanted).kind in "iu" and array.dtype != converted.dtype and not np.array_equal(array, converted):
        raise SchemaMismatch(f"{label} has a value that does not fit {tensor.dtype}")
    return converted


def _with_nan(label: str, values: Any) -> Array:
    """Nested numbers in which null stands for NaN."""
    objects = np.array(values, dtype=object)
    objects[objects == None] = np.nan  # noqa: E711 - element by element
    try:
        return objects.astype(np.float64)
    except (TypeError, ValueError):
        raise SchemaMismatch(f"{label} holds something that is not a number") from None


def _free(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join("any" if size == -1 else str(size) for size in shape) + "]"


def _length(name: str, values: Any) -> int:
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return len(values)
    if isinstance(values, list | tuple):
        return len(values)
    raise SchemaMismatch(f"column {name!r} is {_shown(values)}; a list of values is expected")


def _plural(noun: str, names: Sequence[str]) -> str:
    listed = ", ".join(repr(name) for name in names[:10]) + (", …" if len(names) > 10 else "")
    return f"{noun} {listed} is" if len(names) == 1 else f"{noun}s {listed} are"


def _shown(value: Any) -> str:
    """A value as an error may show it: short, and never a whole body."""
    text = {None: "null", True: "true", False: "false"}.get(value, repr(value)) if _hashable(value) else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _hashable(value: Any) -> bool:
    return isinstance(value, bool | None)
