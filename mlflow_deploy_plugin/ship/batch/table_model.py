"""A loaded version as a function of Arrow tables.

ONNX Runtime runs an ONNX form, MLflow any other form. A table is decoded like a request
with an Arrow or CSV body.
"""

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.core.errors import (
    InferenceError,
    InvalidConfig,
    InvalidRequest,
    OnnxserveError,
    SchemaMismatch,
)
from mlflow_deploy_plugin.core.messages import without_row_number
from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES, PYTHON_FUNCTION
from mlflow_deploy_plugin.core.spec.parts import Device
from mlflow_deploy_plugin.core.tabular.row_files import first_line
from mlflow_deploy_plugin.core.tabular.streams import RejectedRow, RowBlock
from mlflow_deploy_plugin.serve.protocols import arrow
from mlflow_deploy_plugin.serve.protocols import mlflow as mlflow_protocol
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import no_batch_dimension_reason
from mlflow_deploy_plugin.serve.runtime.model import RUN_ROWS, OnnxModel
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.serve.runtime.schemas.pyfunc_schema import pyfunc_schema
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.runtime.session import Placement
from mlflow_deploy_plugin.serve.runtime.values import numpy_dtype

_LARGEST_TABLE_BYTES = 2**31
_ONE_BY_ONE = 8
"""The largest refused block whose rows are tried one by one, because halving it again
would only cost time.
"""
_ARROW_TYPES = {"bool": pa.bool_(), "str": pa.string(), "int32": pa.int64(), "int64": pa.int64()}
_FRAME_TYPES = (
    pa.types.is_temporal,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_decimal,
)


@lru_cache(maxsize=2)
def load_table_model(folder: Path, device: Device = "cpu") -> "TableModel":
    """Load the model of a folder, once per process. Raises InvalidConfig if it does not
    predict row by row.
    """
    artifact = read_served_artifact(folder)
    if artifact.flavor == PYTHON_FUNCTION:
        return PyfuncTable(artifact)
    model = OnnxTable(folder, device)
    if not model.schema.has_rows:
        raise InvalidConfig(
            f"the model does not predict row by row: {no_batch_dimension_reason(model.artifact)}"
        )
    return model


class OnnxTable:
    """A version with an ONNX form. Several threads may call it at the same time."""

    def __init__(self, folder: Path, device: Device) -> None:
        self._model = OnnxModel.load(folder, Placement(device), intra_op_num_threads=1)
        self.schema = self._model.schema
        self.artifact = self._model.artifact

    def predict(self, table: pa.Table) -> pa.Table:
        """Return a table of outputs, a row per input row. Raises InvalidRequest or
        InferenceError for a refused row.
        """
        # Each distinct text of a dictionary is converted to a str only once.
        for position, field in enumerate(table.schema):
            if field.type in (pa.string(), pa.large_string()):
                texts = table.column(position).dictionary_encode()
                table = table.set_column(position, field.name, texts)
        if not no_batch_dimension_reason(self.artifact):
            return pa.concat_tables(self._predict_blocks(table))
        tables: list[pa.Table] = []
        for row in range(table.num_rows):
            tables.extend(self._predict_blocks(table.slice(row, 1)))
        return pa.concat_tables(tables)

    def _predict_blocks(self, table: pa.Table) -> list[pa.Table]:
        """Return the tables of outputs of blocks of at most `RUN_ROWS` rows."""
        feeds = arrow.table_feeds(table, self.schema, _LARGEST_TABLE_BYTES)
        tables = []
        for start in range(0, table.num_rows, RUN_ROWS):
            run = {name: array[start : start + RUN_ROWS] for name, array in feeds.items()}
            outputs = self._model.run(run, self.artifact.prediction, first_row=start)
            predictions = arrow.prediction_table(self._model.prediction(outputs, of_table=True))
            tables.append(_require_rows(predictions, min(RUN_ROWS, table.num_rows - start)))
        return tables


class PyfuncTable:
    """A version without an ONNX form. It has the methods of `OnnxTable`, but only one
    thread may call it at a time.
    """

    def __init__(self, artifact: Artifact) -> None:
        # The import of mlflow.pyfunc takes a second.
        from mlflow_deploy_plugin.serve.pyfunc.scorer import load_scorer

        with redirect_stdout(sys.stderr):  # The model's output must not mix with predictions.
            self._scorer = load_scorer(artifact.folder)
        self.schema = pyfunc_schema(artifact)
        self.artifact = artifact

    def predict(self, table: pa.Table) -> pa.Table:
        """Return a table of outputs, a row per input row. Raises InvalidRequest for a
        refused row.
        """
        types = table.schema.types
        has_frame_types = any(any(map(is_frame_type, types)) for is_frame_type in _FRAME_TYPES)
        try:
            if self.artifact.undescribed or has_frame_types:  # Only MLflow converts these columns.
                outputs = self._scorer.outputs_of(table.to_pandas())
            else:
                feeds = arrow.table_feeds(table, self.schema, _LARGEST_TABLE_BYTES)
                outputs = dict(self._scorer.predict(feeds).arrays["outputs"])
        except OnnxserveError as error:  # Each error is about this row.
            raise InvalidRequest(error.message) from None
        return _require_rows(arrow.prediction_table(outputs), table.num_rows)


TableModel = OnnxTable | PyfuncTable


def predict_block(
    model: TableModel, block: RowBlock, keep: tuple[str, ...] = (), are_texts: bool = False
) -> Iterator[pa.Table | RejectedRow]:
    """Yield tables of the kept columns and the outputs, and the rows that the model
    refuses, in row order.

    A refused block is split in halves, and finally into rows, until each refused row is
    known. If `are_texts` is True, the columns come from a CSV file and are converted to
    the types of the signature.
    """
    inputs = block.table.select(
        [name for name in block.table.column_names if takes(model.schema, name, keep)]
    )
    try:
        if are_texts:
            inputs = typed(inputs, model.schema)
        outputs = model.predict(inputs)
    except (InvalidRequest, InferenceError) as error:
        rows = len(block.numbers)
        if rows > 1:
            step = -(-rows // 2) if rows > _ONE_BY_ONE else 1
            for start in range(0, rows, step):
                part = block.part(start, min(rows, start + step))
                yield from predict_block(model, part, keep, are_texts)
            return
        content = block.table.to_pylist()[0]
        yield RejectedRow(block.numbers[0], without_row_number(error.message), content)
        return
    yield with_kept(block.table, keep, outputs)


def with_kept(table: pa.Table, keep: tuple[str, ...], outputs: pa.Table) -> pa.Table:
    """Return a table of kept columns and outputs. Raises InvalidConfig if an output has
    the name of a kept column.
    """
    if doubled := [name for name in outputs.column_names if name in keep]:
        raise InvalidConfig(
            f"--keep {doubled[0]}: it is also an output of the model; rename the column"
        )
    columns = [*(table.column(name) for name in keep), *outputs.columns]
    return pa.Table.from_arrays(columns, names=[*keep, *outputs.column_names])


def takes(schema: Schema, name: str, keep: tuple[str, ...]) -> bool:
    """Return True if the column `name` is an input. If inputs are unnamed, every column
    not in `keep` is an input.
    """
    has_names = bool(schema.columns) or any(
        tensor.name in schema.names and tensor.name for tensor in schema.tensors
    )
    if has_names:
        return name in schema.names
    return name not in keep


def input_types(schema: Schema) -> dict[str, pa.DataType]:
    """Return the Arrow type that represents each column of the signature in JSON, by
    column name.
    """
    return {column.name: _arrow_type(COLUMN_TYPES[column.type]) for column in schema.columns}


def _arrow_type(dtype: str) -> pa.DataType:
    return _ARROW_TYPES.get(dtype, pa.float64())


def typed(table: pa.Table, schema: Schema) -> pa.Table:
    """Return the table with texts converted to the signature's types, as for CSV
    requests. Raises SchemaMismatch.
    """
    kinds: dict[str, str] = {column.name: column.type for column in schema.columns}
    if schema.tensors:  # All columns are parts of one tensor, so they have its type.
        kinds = dict.fromkeys(table.column_names, schema.tensors[0].dtype)
    for position, name in enumerate(table.column_names):
        kind = kinds.get(name, "string")
        dtype = COLUMN_TYPES.get(kind, kind)
        if dtype == "str":
            continue
        texts = table.column(position)
        arrow_type = _arrow_type(dtype)
        try:
            table = table.set_column(position, name, texts.cast(arrow_type))
            continue
        except pa.ArrowInvalid:
            # A text may be a word for a missing value, an integer such as 20.0, or
            # invalid.
            fields = [value or "" for value in texts.to_pylist()]
        values = mlflow_protocol.read_column(name, {name: kind}, fields)
        # Refuse a fraction in an integer column, because Arrow would truncate the
        # fraction.
        if arrow_type == pa.int64():
            for value in values:
                if isinstance(value, float) and not value.is_integer():
                    raise SchemaMismatch(
                        f"column {name!r} ({kind}): {value!r} is not of type {kind}"
                    )
        try:
            table = table.set_column(position, name, pa.array(values, arrow_type))
        except (pa.ArrowException, OverflowError) as error:
            # An integer may have more than 64 bits.
            raise SchemaMismatch(f"column {name!r} ({kind}): {first_line(error)}") from None
    return table


def _require_rows(outputs: pa.Table, rows: int) -> pa.Table:
    """Return the outputs. Raises OnnxserveError if they do not have this number of
    rows.
    """
    if outputs.num_rows != rows:
        raise OnnxserveError(
            f"the model returned {outputs.num_rows} predictions for {rows} rows; they must be equal"
        )
    return outputs


def declared_outputs(artifact: Artifact) -> pa.Table:
    """Return a table without rows that has the columns of the version's predictions."""
    names = artifact.prediction or tuple(output.name for output in artifact.outputs)
    outputs = {output.name: output for output in artifact.outputs}
    arrays = {}
    for name in names:
        output = outputs[name]
        if output.dtype != "map":
            columns = (max(1, size) for size in output.shape[1:])
            arrays[name] = np.empty((0, *columns), numpy_dtype(output.dtype))
    if len(arrays) == 1:
        return arrow.prediction_table(*arrays.values())
    return arrow.prediction_table(arrays)
