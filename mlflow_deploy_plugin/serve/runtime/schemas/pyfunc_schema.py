"""The schema of a model without an ONNX form: the columns of its pandas frame, its
tensors, or the reason why its inputs are not named arrays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

from mlflow_deploy_plugin.core.errors import SchemaMismatch
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Column
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import column_inputs
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema, compile_schema
from mlflow_deploy_plugin.serve.runtime.values import Missing


@dataclass(frozen=True)
class FrameSchema(Schema):
    """The columns of a pyfunc's pandas frame. Optional columns may be absent, and texts
    may be missing.
    """

    def from_columns(self, data: Mapping[str, Sequence[object] | Array]) -> Feeds:
        """Return feeds of the columns that were sent. Raises SchemaMismatch if a
        required column is missing or a value does not fit.
        """
        columns = tuple(column for column in self.columns if column.required or column.name in data)
        names = {column.name for column in columns}
        present = FrameSchema(
            columns, (), tuple(entry for entry in self.inputs if entry.name in names)
        )
        return Schema.from_columns(present, data)

    @cached_property
    def _replacements(self) -> Mapping[str, str | Missing | None]:
        return dict.fromkeys(self.names, Missing.KEPT)


@dataclass(frozen=True)
class UndescribedSchema(Schema):
    """The schema of a pyfunc whose inputs are not named arrays. The schema refuses
    every array with `reason`.
    """

    reason: str = ""
    logged_columns: tuple[Column, ...] = ()

    @cached_property
    def capture_schema(self) -> Schema:
        return Schema(self.logged_columns, (), column_inputs(self.logged_columns))

    def _refuse(self, *data: object, **named: object) -> NoReturn:
        raise SchemaMismatch(self.reason)

    from_columns = _refuse
    from_records = _refuse
    from_array = _refuse
    from_rows = _refuse
    tensor_schema = property(_refuse)


def pyfunc_schema(pyfunc: Artifact) -> Schema:
    """Return the schema that converts columns, rows and tensors into feeds of this
    pyfunc.
    """
    if pyfunc.undescribed:
        return UndescribedSchema(
            (), (), (), reason=pyfunc.undescribed, logged_columns=pyfunc.logged_columns
        )
    schema = compile_schema(pyfunc.columns, pyfunc.tensors, pyfunc.inputs)
    if pyfunc.columns:
        return FrameSchema(schema.columns, (), schema.inputs)
    return schema
