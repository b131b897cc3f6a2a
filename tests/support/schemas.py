"""Schemas of columns and tensors."""

from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES
from mlflow_deploy_plugin.serve.runtime.artifact import Column, ColumnType, Input, Tensor
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema, compile_schema


def columns_schema(missing: str | None = None, **types: ColumnType) -> Schema:
    """Return a schema in which each column feeds an input of the same name and type."""
    columns = tuple(Column(name, kind) for name, kind in types.items())
    inputs = tuple(
        Input(
            c.name,
            COLUMN_TYPES[c.type],
            (-1, 1),
            (c.name,),
            missing,
        )
        for c in columns
    )
    return compile_schema(columns, (), inputs)


def tensor_schema(dtype: str, *shape: int, name: str = "") -> Schema:
    return compile_schema(
        (),
        (Tensor(name, dtype, shape),),
        (Input("x", dtype, shape),),
    )


def stacked_schema(dtype: str = "float32", *names: str) -> Schema:
    columns = tuple(Column(name, "double") for name in names)
    return compile_schema(
        columns,
        (),
        (Input("X", dtype, (-1, len(names)), names),),
    )
