"""The MLflow signature of a batch and of a model's predictions, and fitting a batch to a given signature."""

from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.models.signature import infer_signature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.flavor import batch as batches
from mlflow_deploy_plugin.flavor.batch import Batch, columns_of, tensors_of
from mlflow_deploy_plugin.runtime import COLUMN_TYPES, OUTPUT_PREFIX, PREDICTION, Array, Input, Output


def signature_of(batch: Batch, prediction: Array | dict[str, Array]) -> ModelSignature:
    """Return the names, order and types of the columns (or tensors), and the type of the prediction.

    Integers are `long`: MLflow warns that they cannot be missing, and indeed an ONNX integer cannot.
    """
    return ModelSignature(inputs=input_schema(batch), outputs=infer_signature(None, prediction).outputs)


def input_schema(batch: Batch) -> Schema:
    """Return the signature's inputs for a batch."""
    if isinstance(batch, pd.DataFrame):
        return Schema([ColSpec(DataType[column.type], column.name) for column in columns_of(batch)])
    specs = ((_spec_dtype(batch[tensor.name]), tensor) for tensor in tensors_of(batch))
    return Schema([TensorSpec(dtype, tensor.shape, tensor.name or None) for dtype, tensor in specs])


def _spec_dtype(array: Array) -> np.dtype[Any]:
    """Return the dtype that MLflow's enforcement compares arrays with.

    It distinguishes texts of a fixed width from objects; for [N] objects it accepts both.
    """
    if array.dtype.kind in "OUT":
        return np.dtype("str" if array.dtype.kind == "U" and array.ndim > 1 else object)
    return array.dtype


def declared_schema(batch: Batch, inputs: tuple[Input, ...]) -> Schema:
    """Return the signature's inputs for a batch of a ready graph: tensors have the sizes that the graph declares."""
    if isinstance(batch, pd.DataFrame):
        return input_schema(batch)
    shapes = {entry.name: entry.shape for entry in inputs}
    return Schema(
        [
            TensorSpec(_spec_dtype(batch[tensor.name]), shapes.get(tensor.name, inputs[0].shape), tensor.name or None)
            for tensor in tensors_of(batch)
        ]
    )


def output_schema(outputs: tuple[Output, ...]) -> Schema:
    """Return the signature's outputs as the graph declares them."""
    return Schema([TensorSpec(np.dtype(output.dtype), output.shape, output.name) for output in outputs])


def graph_signature(inputs: tuple[Input, ...], outputs: tuple[Output, ...]) -> ModelSignature:
    """Return the signature of a graph without an example: tensors by the graph's own names."""
    texts = np.dtype(object)
    tensors = [
        TensorSpec(texts if entry.dtype == "str" else np.dtype(entry.dtype), entry.shape, entry.name)
        for entry in inputs
    ]
    return ModelSignature(inputs=Schema(tensors), outputs=output_schema(outputs))


def check_example(example: Batch) -> None:
    """Refuse an example that has no signature.

    Raises:
        InvalidConfig: no rows, no columns, a column's name that occurs twice, or one that the table of a model's rows
            (`runtime/log_columns.py`) reserves.
    """
    names = [str(name) for name in example]
    if reserved := [name for name in names if name == PREDICTION or name.startswith((OUTPUT_PREFIX, "_"))]:
        raise InvalidConfig(
            f"input_example: the name {reserved[0]!r} is taken: in the inference log, {PREDICTION!r} and what begins "
            f"with {OUTPUT_PREFIX!r} are the model's answers, and what begins with '_' is the log's own"
        )
    if isinstance(example, pd.DataFrame) and not example.columns.is_unique:
        doubled = example.columns[example.columns.duplicated()][0]
        raise InvalidConfig(f"input_example: column {doubled!r} stands twice")
    if (isinstance(example, pd.DataFrame) and example.empty) or not batches.row_count(example):
        raise InvalidConfig("input_example has no rows")


def align_columns(batch: Batch, example: Batch | None, argument: str) -> Batch:
    """Return the batch with the columns (or tensors) of the example and no others.

    Raises:
        InvalidConfig: one is missing; the message names it, and the argument.
    """
    if example is None:
        return batch
    wanted = list(example.columns) if isinstance(example, pd.DataFrame) else list(example)
    if missing := [name for name in wanted if name not in batch]:
        raise InvalidConfig(f"{argument}: {missing[0]!r} is missing; the example has it")
    if isinstance(batch, pd.DataFrame):
        return batch[wanted]
    return {name: batch[name] for name in wanted}


def cast_to_signature(batch: Batch, signature: Any) -> Batch:
    """Return the batch with the columns, the order and the types of the user's signature.

    Raises:
        InvalidConfig: the batch lacks a column of the signature, or no ONNX graph can take a type of it.
    """
    if signature is None or signature.inputs is None:
        return batch
    if not isinstance(batch, pd.DataFrame):
        tensors = [spec.name for spec in signature.inputs.inputs if spec.name]  # the only one may have none
        if set(tensors) - set(batch):
            raise InvalidConfig(f"signature: the example has the tensors {sorted(batch)}, not {tensors}")
        return batch
    names = [name for name in signature.inputs.input_names() if name is not None]
    if missing := [name for name in names if name not in batch.columns]:
        raise InvalidConfig(f"signature: the example has no column {missing[0]!r}")
    types = {spec.name: getattr(spec.type, "name", str(spec.type)) for spec in signature.inputs.inputs}
    if unknown := [name for name in names if types[name] not in COLUMN_TYPES]:
        raise InvalidConfig(
            f"signature: column {unknown[0]!r} has the type {types[unknown[0]]}, which an ONNX model cannot take; "
            f"it takes {', '.join(COLUMN_TYPES)}"
        )
    have = {column.name: column.type for column in columns_of(batch[names])}
    changed = {name: COLUMN_TYPES[types[name]] for name in names if types[name] != have[name]}
    try:
        return batch[names].astype({name: object if dtype == "str" else dtype for name, dtype in changed.items()})
    except (TypeError, ValueError) as error:
        raise InvalidConfig(f"signature: the example does not fit it: {error}") from None
