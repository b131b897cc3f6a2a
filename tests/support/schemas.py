"""Schemas of columns and tensors, and artifacts without files."""

from pathlib import Path

from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Column, Input, Tensor
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema


def columns_schema(missing=None, **types):
    """Return a schema in which each column feeds an input of the same name and type."""
    columns = tuple(Column(name, kind) for name, kind in types.items())
    inputs = tuple(
        Input(c.name, COLUMN_TYPES[c.type], (-1, 1), (c.name,), missing) for c in columns
    )
    return compile_schema(columns, (), inputs)


def tensor_schema(dtype, *shape, name="", graph_name="x", fed=""):
    """Return a schema of one tensor, which feeds an input of the same dtype or of the
    dtype `fed`.
    """
    return compile_schema(
        (), (Tensor(name, dtype, shape),), (Input(graph_name, fed or dtype, shape),)
    )


def stacked_schema(dtype="float32", *names):
    columns = tuple(Column(name, "double") for name in names)
    return compile_schema(columns, (), (Input("X", dtype, (-1, len(names)), names),))


def bare_artifact(flavor="onnxserve", **fields):
    """Return an artifact of a model that has no files."""
    return Artifact(Path(), Path(), flavor, "", "", "", **fields)
