"""What a captured request is bound to names by, and its form in the spool."""

from dataclasses import dataclass

import orjson

from mlflow_deploy_plugin.runtime.artifact import Column, Input, Tensor
from mlflow_deploy_plugin.runtime.schema import Schema


@dataclass(frozen=True, eq=False)
class CapturedModel:
    """What binds the arrays of a captured request to names; `as_rows(schema, prediction, feeds, outputs)` takes it.

    `eq=False`: one object a loaded version, compared by identity.
    """

    model: str
    version: str
    schema: Schema
    prediction: tuple[str, ...]


def described_model(model: CapturedModel) -> bytes:
    """As JSON, without what the schema has worked out from its fields, which orjson would write as well."""
    schema = {name: getattr(model.schema, name) for name in ("columns", "tensors", "inputs")}
    return orjson.dumps(
        {"model": model.model, "version": model.version, "schema": schema, "prediction": model.prediction}
    )


def read_model(described: memoryview) -> CapturedModel:
    """What `described_model` gave.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    document = orjson.loads(described)
    schema = document["schema"]
    inputs = (
        Input(e["name"], e["dtype"], tuple(e["shape"]), tuple(e["columns"]), e["missing"]) for e in schema["inputs"]
    )
    return CapturedModel(
        document["model"],
        document["version"],
        Schema(
            tuple(Column(**entry) for entry in schema["columns"]),
            tuple(Tensor(e["name"], e["dtype"], tuple(e["shape"])) for e in schema["tensors"]),
            tuple(inputs),
        ),
        tuple(document["prediction"]),
    )
