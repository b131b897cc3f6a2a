"""Batches: model inputs as a DataFrame or as named tensors, their input tensors, and
their MLflow signature.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from mlflow.models import ModelSignature
from mlflow.models.signature import infer_signature
from mlflow.types import ColSpec, DataType, TensorSpec
from mlflow.types import Schema as SignatureSchema
from pandas.api.types import (
    infer_dtype,
    is_bool_dtype,
    is_float_dtype,
    is_integer_dtype,
    is_numeric_dtype,
    is_object_dtype,
    is_string_dtype,
)

from mlflow_deploy_plugin.core.column_names import OUTPUT_PREFIX, PREDICTION
from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES
from mlflow_deploy_plugin.serve.runtime.artifact import Column, ColumnType, Input, Output
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, concatenate_feeds
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.runtime.values import numpy_dtype

_SHORT = ("int8", "uint8", "int16", "uint16", "int32")

ModelData: TypeAlias = Any
"""Rows that a user passes: a pandas, polars or Arrow table, an array, a list, a tensor,
or arrays by name.
"""

ModelInput: TypeAlias = pd.DataFrame | dict[str, Array]
"""N rows as model input: a table, or tensors [N, …] by name (a single tensor may have
the empty name).
"""

Positions: TypeAlias = slice | list[int] | npt.NDArray[np.integer] | npt.NDArray[np.bool_]
"""A selection of rows: indices, a slice, or a boolean mask."""

NAMELESS_TEXT = SignatureSchema([ColSpec(DataType.string)])
"""The input schema of a text model: MLflow then accepts an array, a list, a Series, or
a column of a table.
"""


@dataclass(frozen=True, eq=False)
class Batch:
    """N rows of model input. The length of the batch is N; a scalar is one row."""

    data: ModelInput

    @classmethod
    def read(cls, data: object) -> "Batch":
        """Return a batch for a table, a mapping of names to arrays, or a single array,
        which is named "".
        """
        if isinstance(data, pd.DataFrame):
            return cls(data)
        if isinstance(data, dict):
            return cls({str(name): np.asarray(values) for name, values in data.items()})
        return cls({"": np.asarray(data)})

    @classmethod
    def declared(cls, inputs: Sequence[Input]) -> "Batch":
        """Return empty tensors with the names and types of a graph's inputs."""
        return cls({entry.name: np.empty(0, numpy_dtype(entry.dtype)) for entry in inputs})

    @classmethod
    def joined(cls, batches: Sequence["Batch"]) -> "Batch":
        tables = [batch.data for batch in batches if isinstance(batch.data, pd.DataFrame)]
        if tables:
            return cls(pd.concat(tables, ignore_index=True))
        tensors = [batch.data for batch in batches if isinstance(batch.data, dict)]
        return cls(concatenate_feeds(tensors))

    def __len__(self) -> int:
        if isinstance(self.data, pd.DataFrame):
            return len(self.data)
        first = next(iter(self.data.values()))
        return len(first) if first.ndim else 1

    @property
    def is_table(self) -> bool:
        return isinstance(self.data, pd.DataFrame)

    @property
    def tensors(self) -> dict[str, Array]:
        """The tensors by name. The mapping is empty for a table."""
        if isinstance(self.data, pd.DataFrame):
            return {}
        return self.data

    @property
    def unnamed(self) -> ModelInput | Array:
        """The array if the only tensor is unnamed, otherwise the data. MLflow saves an
        example in this form.
        """
        return self.tensors.get("", self.data)

    @property
    def has_rows(self) -> bool:
        """True if all tensors have the same first dimension. In a graph network, nodes
        and edges differ in number.
        """
        return self.is_table or len({array.shape[:1] for array in self.tensors.values()}) == 1

    @property
    def row_size(self) -> int:
        """The number of values per row of the tensors; 0 for a table."""
        return sum(array[:1].size for array in self.tensors.values())

    def take(self, positions: Positions) -> "Batch":
        if isinstance(self.data, pd.DataFrame):
            return Batch(self.data.iloc[positions])
        return Batch({name: array[positions] for name, array in self.data.items()})

    def chunks(self, size: int) -> Iterator["Batch"]:
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))

    def feeds(self, schema: Schema) -> Feeds:
        """Return the input tensors of the graph. Raises SchemaMismatch if the batch
        does not match the schema.
        """
        table = self.data
        if not isinstance(table, pd.DataFrame):
            return schema.from_columns(table)
        if schema.matrix_kinds and len(table) and tuple(map(str, table.columns)) == schema.names:
            # Read columns of the same type at once. Otherwise, each takes 10 µs, or a
            # full scan of a row-major table.
            dtype = table.dtypes.iloc[0]
            is_uniform = isinstance(dtype, np.dtype) and len(set(table.dtypes)) == 1
            if is_uniform and dtype.kind in schema.matrix_kinds:
                return schema.from_array(table.to_numpy())
        return schema.from_columns(
            {str(name): column_values(table[name]) for name in table.columns}
        )

    def digest(self) -> str:
        """Return the first 16 digits of a SHA-256 over names, types and values, which
        is the same on all machines.
        """
        summary = hashlib.sha256()
        if isinstance(self.data, pd.DataFrame):
            table = pa.Table.from_pandas(self.data, preserve_index=False)
            for name in table.column_names:
                column = table[name].combine_chunks()
                summary.update(f"{name}:{column.type}:{len(column)}".encode())
                summary.update(pd.util.hash_array(column.to_pandas().to_numpy()).tobytes())
        else:
            for name, array in self.data.items():
                summary.update(f"{name}:{array.dtype}:{array.shape}".encode())
                values = array.astype("U") if array.dtype.kind == "O" else array
                summary.update(np.ascontiguousarray(values).tobytes())
        return summary.hexdigest()[:16]

    def signature(
        self,
        prediction: Array | dict[str, Array],
        inputs: Sequence[Input] = (),
        outputs: Sequence[Output] = (),
    ) -> ModelSignature:
        """Return the signature. Tensors have the sizes that the graph's `inputs` and
        `outputs` declare; -1 is free.
        """
        predicted = infer_signature(None, prediction).outputs
        if predicted.is_tensor_spec():
            # The graph's outputs have the declared shapes.
            declared = {output.name: output.shape for output in outputs}
            specs = []
            for spec in predicted.inputs:
                # A single output may be unnamed.
                default = outputs[0].shape if len(outputs) == 1 else spec.shape
                shape = declared.get(spec.name, default)
                specs.append(TensorSpec(spec.type, shape, spec.name))
            predicted = SignatureSchema(specs)
        return ModelSignature(inputs=self._input_schema(inputs), outputs=predicted)

    def graph_signature(self, inputs: Sequence[Input], outputs: Sequence[Output]) -> ModelSignature:
        """Return the signature of an ONNX graph, with its types and sizes. Strings have
        the type of the batch.
        """
        answers = SignatureSchema(
            [TensorSpec(np.dtype(output.dtype), output.shape, output.name) for output in outputs]
        )
        if self.is_table:
            return ModelSignature(inputs=self._input_schema(inputs), outputs=answers)
        # MLflow reads an example from JSON, in which all floats have 64 bits.
        types = {entry.name: numpy_dtype(entry.dtype) for entry in inputs}
        first_type = next(iter(types.values()))  # A single tensor may be unnamed.
        tensors = dict(self.tensors)
        for name, array in tensors.items():
            if array.dtype.kind not in "OUT":
                tensors[name] = array.astype(types.get(name, first_type))
        return ModelSignature(inputs=Batch(tensors)._input_schema(inputs), outputs=answers)

    def _input_schema(self, declared: Sequence[Input]) -> SignatureSchema:
        """Return the input schema. `declared` are the inputs of an existing graph, with
        their sizes.
        """
        if isinstance(self.data, pd.DataFrame):
            return SignatureSchema(
                [ColSpec(DataType[column.type], column.name) for column in columns_of(self.data)]
            )
        shapes = {entry.name: entry.shape for entry in declared}
        tensors = []
        for name, array in self.data.items():
            dtype = array.dtype
            if dtype.kind in "OUT":
                # MLflow's schema check distinguishes fixed-width strings from objects,
                # except for [N] objects.
                is_text = dtype.kind == "U" and array.ndim > 1
                dtype = np.dtype(str) if is_text else np.dtype(object)
            shape = (-1, *array.shape[1:])
            if declared:
                shape = shapes.get(name, declared[0].shape)
            tensors.append(TensorSpec(dtype, shape, name or None))
        return SignatureSchema(tensors)

    def free_axes(
        self,
        others: Iterable[Mapping[str, Array]],
        argument: str,
        signature: ModelSignature | None = None,
    ) -> dict[str, tuple[int, ...]]:
        """Return the free axes of each tensor, except axis 0. An axis is free if its
        size differs between the batch and `others`, or is -1 in the signature.

        Args:
            others: tensors by name.
            argument: the name of `others` in the message of InvalidConfig, which is
                raised if the number of dimensions differs.
            signature: the user's signature, or None.
        """
        shapes = {name: [array.shape] for name, array in self.tensors.items()}
        for tensors in others:
            for name, array in tensors.items():
                shapes[name].append(array.shape)
        if signature is not None and signature.inputs is not None:
            for spec in signature.inputs.inputs:
                name = spec.name or ""
                shape = getattr(spec, "shape", ())
                if name in shapes and len(shape) == len(shapes[name][0]):
                    shapes[name].append(shape)
        free_axes = {}
        for name, tensor_shapes in shapes.items():
            for shape in tensor_shapes:
                if len(shape) != len(tensor_shapes[0]):
                    label = name or "the array"
                    raise InvalidConfig(
                        f"{argument}: {label} has the shape {list(shape)}; the example has "
                        f"{list(tensor_shapes[0])}"
                    )
            sizes_by_axis = enumerate(zip(*tensor_shapes, strict=True))
            free_axes[name] = tuple(
                axis for axis, sizes in sizes_by_axis if axis and len(set(sizes)) > 1
            )
        return free_axes

    def check_as_example(self) -> None:
        """Raise InvalidConfig for an example without rows or values or with duplicated
        columns, and ConversionError for a reserved name.
        """
        for name in map(str, self.data):
            if name == PREDICTION or name.startswith((OUTPUT_PREFIX, "_")):
                raise ConversionError(
                    f"input_example: the name {name!r} is reserved: in the inference log, "
                    f"{PREDICTION!r} and names with the prefix {OUTPUT_PREFIX!r} are model "
                    "outputs, and names with the prefix '_' are log fields"
                )
        if isinstance(self.data, pd.DataFrame) and not self.data.columns.is_unique:
            name = self.data.columns[self.data.columns.duplicated()][0]
            raise InvalidConfig(f"input_example: column {name!r} is duplicated")
        # A table without columns is empty, too.
        is_empty_table = isinstance(self.data, pd.DataFrame) and self.data.empty
        if is_empty_table or not len(self):
            raise InvalidConfig("input_example has no rows")
        columns = [column for _, column in self.data.items()]
        if all(column.dtype.kind not in "iub" and pd.isna(column).all() for column in columns):
            raise InvalidConfig(
                "input_example contains only missing values (NaN); the parity check needs a few "
                "real rows"
            )

    def aligned(self, example: "Batch | None", argument: str) -> "Batch":
        """Return the columns or tensors that the example has. Raises InvalidConfig if a
        column or tensor is missing.
        """
        if example is None:
            return self
        names = list(example.data)
        for name in names:
            if name not in self.data:
                raise InvalidConfig(f"{argument}: {name!r} is missing, but the example has it")
        if isinstance(self.data, pd.DataFrame):
            return Batch(self.data[names])
        return Batch({str(name): self.data[str(name)] for name in names})

    def cast_to_signature(self, signature: ModelSignature | None) -> "Batch":
        """Cast the batch to the user's signature. Raises InvalidConfig, or
        ConversionError for unsupported types.
        """
        if signature is None or signature.inputs is None:
            return self
        if not isinstance(self.data, pd.DataFrame):
            # A single tensor may be unnamed.
            names = [spec.name for spec in signature.inputs.inputs if spec.name]
            if not set(names) <= set(self.data):
                what = "tensors" if signature.inputs.is_tensor_spec() else "columns"
                if list(self.data) == [""]:
                    described = "one unnamed tensor"
                else:
                    described = f"the tensors {sorted(self.data)}"
                raise InvalidConfig(
                    f"signature: it has the {what} {names}, and the example has {described}"
                )
            if signature.inputs.is_tensor_spec():
                for spec in signature.inputs.inputs:
                    array = self.data[spec.name] if spec.name else next(iter(self.data.values()))
                    has_other_sizes = any(
                        declared not in (-1, size)
                        for declared, size in zip(spec.shape[1:], array.shape[1:], strict=False)
                    )
                    has_other_kind = (spec.type.kind in "OUS") != (array.dtype.kind in "OUST")
                    has_fractions = spec.type.kind in "iub" and array.dtype.kind == "f"
                    difference = ""
                    if len(spec.shape) != array.ndim or has_other_sizes:
                        difference = f"the shape {list(spec.shape)}, but {list(array.shape)}"
                    elif has_other_kind or has_fractions:
                        difference = f"the type {spec.type}, but {array.dtype}"
                    if difference:
                        label = f"tensor {spec.name!r}" if spec.name else "tensor"
                        raise InvalidConfig(
                            f"signature: the {label} has {difference} in the example"
                        )
            return self
        if signature.inputs == NAMELESS_TEXT:
            return self
        return Batch(_cast_table(self.data, signature.inputs))

    def nameless_signature(
        self, origin: object, signature: ModelSignature | None
    ) -> ModelSignature | None:
        """Return the signature with `NAMELESS_TEXT` as inputs if the user passed
        unnamed strings: MLflow rejects an array if the only column has a name.

        Args:
            origin: the rows as the user passed them.
            signature: the user's signature, or None. It is returned unchanged if it
                describes other inputs.
        """
        if not isinstance(origin, Sequence | np.ndarray | pd.Series | pd.Index):
            return signature
        if not self.is_table or getattr(origin, "name", None):
            return signature
        if np.ndim(origin) != 1 or not isinstance(next(iter(origin), None), str):
            return signature
        if signature is None:
            return ModelSignature(NAMELESS_TEXT)
        if signature.inputs is None:
            return ModelSignature(NAMELESS_TEXT, signature.outputs)
        spec, *other_specs = signature.inputs.inputs
        is_text = spec.type == DataType.string or (
            isinstance(spec, TensorSpec) and spec.type.kind in "OU"
        )
        is_nameless_text = is_text and not spec.name and not other_specs
        if not is_nameless_text:
            return signature
        return ModelSignature(NAMELESS_TEXT, signature.outputs, signature.params)


def as_pandas(data: ModelData) -> ModelData:
    """Convert polars and Arrow tables to pandas, sparse columns to dense columns, and
    decimals to numbers.
    """
    table = data.to_pandas() if hasattr(data, "to_pandas") else data
    if isinstance(table, pd.DataFrame) and any(
        _plain_column(column) is not column for _, column in table.items()
    ):
        return table.apply(_plain_column)
    return table


def _plain_column(column: pd.Series) -> pd.Series:
    """Return a column of decimals as numbers, a sparse column as a dense column, and
    other columns unchanged.
    """
    is_object = is_object_dtype(column.dtype)
    if str(column.dtype).startswith("decimal") or (is_object and infer_dtype(column) == "decimal"):
        return pd.to_numeric(column.astype(object))
    if isinstance(column.dtype, pd.SparseDtype):
        return column.astype(column.dtype.subtype)
    return column


def column_values(series: pd.Series) -> Array:
    """Return the values of a column for the schema: numbers as numbers, other values as
    objects. A missing number is NaN, and any other missing value None.
    """
    if isinstance(series.dtype, pd.CategoricalDtype):
        dtype = object if series.hasnans else series.cat.categories.dtype
        series = series.astype(dtype)
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "fiub":
        return series.to_numpy()
    is_number = is_numeric_dtype(series.dtype) and not is_bool_dtype(series.dtype)
    if is_float_dtype(series.dtype) or (is_number and series.hasnans):
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    values: Array = series.to_numpy(dtype=object, copy=series.hasnans)
    if series.hasnans:
        values[pd.isna(values)] = None
    return values


def missing_value(series: pd.Series) -> float | None:
    """Return None if an object column contains None, otherwise NaN: scikit-learn
    encoders distinguish None and NaN.
    """
    if is_object_dtype(series) and any(value is None for value in series):
        return None
    return np.nan


def unseen_category(series: pd.Series) -> pd.Series | None:
    """Return a categorical column with an unknown category in each row, or None for
    fractions and booleans.

    The unknown category sorts last: XGBoost 3.1 and 3.2 replace any other unknown
    category with the next known category
    (https://github.com/dmlc/xgboost/issues/12189), and 3.3 rejects all unknown
    categories. Another unknown string comes first: after a non-ASCII category, 3.2
    reads each category as other bytes.
    """
    categories = series.cat.categories
    if column_type(series) == "string":
        unseen: str | int = "~ never seen"
        categories = categories.insert(0, "~ also never seen")
    elif len(categories) and is_integer_dtype(categories.dtype):
        unseen = int(categories.max()) + 1
    else:
        return None
    dtype = pd.CategoricalDtype([*categories, unseen], ordered=series.cat.ordered)
    return pd.Series([unseen] * len(series), series.index, dtype, series.name)


def columns_of(table: pd.DataFrame) -> tuple[Column, ...]:
    return tuple(Column(str(name), column_type(table[name])) for name in table.columns)


def column_type(series: pd.Series) -> ColumnType:
    """Return MLflow's type of a column. Raises ConversionError if ONNX does not support
    the type.
    """
    is_categorical = isinstance(series.dtype, pd.CategoricalDtype)
    dtype = series.cat.categories.dtype if is_categorical else series.dtype
    if is_bool_dtype(dtype):
        return "boolean"
    if is_integer_dtype(dtype):
        if series.hasnans:
            return "double"
        return "integer" if str(dtype).lower() in _SHORT else "long"
    if is_float_dtype(dtype):
        if str(dtype).lower() in ("float16", "float32"):
            return "float"
        return "double"
    if isinstance(dtype, pd.StringDtype):
        return "string"
    present = series.dropna()
    if is_string_dtype(dtype) or is_object_dtype(dtype):
        if len(present) and all(isinstance(value, bool | np.bool_) for value in present):
            return "boolean"
        if all(isinstance(value, str) for value in present):
            return "string"
    described = str(dtype)
    if is_object_dtype(dtype):
        value = next(value for value in present if not isinstance(value, str))
        described = f"{dtype} (with values of {type(value).__name__})"
    raise ConversionError(
        f"column {str(series.name)!r} has the type {described}, which an ONNX model cannot "
        f"read: convert it to numbers, booleans or strings. {_unread(str(series.name))}"
    )


def _unread(name: str) -> str:
    """Return the remedy for a column that the model does not read."""
    return (
        f"If the model does not read {name!r}, name it: `onnxserve wrap --drop`, or `--event-time` "
        "(event_time= of log_model) if it has the times of the rows"
    )


def _cast_table(table: pd.DataFrame, inputs: SignatureSchema) -> pd.DataFrame:
    """Return the columns of the signature with its types. Raises InvalidConfig if the
    table has other columns or values, and ConversionError for an unsupported type.
    """
    if inputs.is_tensor_spec():
        raise InvalidConfig("signature: it describes tensors, but the example is a table")
    declared = {
        spec.name: getattr(spec.type, "name", str(spec.type))
        for spec in inputs.inputs
        if spec.name is not None
    }
    for name in declared:
        if name not in table.columns:
            raise InvalidConfig(f"signature: the example has no column {name!r}")
    supported = ", ".join(COLUMN_TYPES)
    for name, kind in declared.items():
        if kind not in COLUMN_TYPES:
            raise ConversionError(
                f"signature: column {name!r} has the type {kind}, which an ONNX "
                f"model cannot read; supported types: {supported}. {_unread(name)}"
            )
    names = list(declared)
    actual = {column.name: column.type for column in columns_of(table[names])}
    for name in names:
        if declared[name] == "string" and actual[name] != "string":
            raise InvalidConfig(
                f"signature: column {name!r} is a string, but a {actual[name]} in the example"
            )
    changed = {
        name: numpy_dtype(COLUMN_TYPES[declared[name]])
        for name in names
        if declared[name] != actual[name]
    }
    try:
        cast = table[names].astype(changed)
    except (TypeError, ValueError) as error:
        raise InvalidConfig(f"signature: the example does not match it: {error}") from None
    for name in changed:
        if cast[name].dtype.kind in "ib" and not np.array_equal(cast[name], table[name]):
            raise InvalidConfig(
                f"signature: column {name!r} is a {declared[name]}, but has other numbers in the "
                "example"
            )
    return cast


def check_outputs(signature: ModelSignature | None, inferred: ModelSignature) -> None:
    """Raise InvalidConfig if the declared outputs are strings and the predictions are
    not, or the reverse.
    """
    declared = signature.outputs if signature is not None else None
    if declared is None or len(declared) != len(inferred.outputs):
        return
    for spec, actual in zip(declared.inputs, inferred.outputs.inputs, strict=True):
        if _is_text(spec) != _is_text(actual):
            output = f"output {spec.name!r}" if spec.name else "output"
            predicted = "strings" if _is_text(actual) else "numbers"
            kind = getattr(spec.type, "name", str(spec.type))
            raise InvalidConfig(
                f"signature: the {output} is a {kind}, but the model predicts {predicted}"
            )


def _is_text(spec: ColSpec | TensorSpec) -> bool:
    dtype = spec.type.to_numpy() if isinstance(spec, ColSpec) else spec.type
    return dtype.kind in "OUS"
