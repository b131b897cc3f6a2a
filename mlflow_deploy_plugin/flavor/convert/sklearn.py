"""scikit-learn estimators and pipelines, by skl2onnx."""

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pandas as pd
import sklearn
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import (
    DoubleTensorType,
    FloatTensorType,
    Int64TensorType,
    StringTensorType,
)
from sklearn.base import is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from mlflow_deploy_plugin.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.flavor.batch import Batch, columns_of
from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel, Original
from mlflow_deploy_plugin.flavor.convert.graph import dtype_and_shape, finish_output, keep_outputs
from mlflow_deploy_plugin.runtime.artifact import Input, Output, Role
from mlflow_deploy_plugin.runtime.schema import Array

# Said explicitly: with the defaults, IsolationForest is not converted, and newer opsets need a newer runtime.
_OPSET = {"": 21, "ai.onnx.ml": 3}
_TYPES = {"float32": FloatTensorType, "float64": DoubleTensorType, "int64": Int64TensorType, "str": StringTensorType}


def read_batch(model: Any, data: Any) -> Batch:
    """A DataFrame, or one [N, k] array.

    Raises:
        InvalidConfig: the data is neither.
    """
    if isinstance(data, pd.DataFrame):
        # a table without names is one matrix to scikit-learn, and to us
        named = any(isinstance(name, str) for name in data.columns)
        return data if named else {"": data.to_numpy()}
    if isinstance(data, dict):
        return pd.DataFrame(data)
    array = np.asarray(data)
    if array.ndim != 2 or array.dtype.kind not in "fiubUTO":
        raise InvalidConfig(
            f"input_example: a scikit-learn model takes a DataFrame or an array of [rows, columns], not {array.shape}"
        )
    return {"": array}


def forms(model: Any, batch: Batch | None, predict_fn: str) -> list[Callable[[], ConvertedModel]]:
    """The plain conversion in 32-bit floats.

    Raises:
        InvalidConfig: there is no example; skl2onnx needs to know the columns and their types.
    """
    if batch is None:
        raise InvalidConfig("input_example: a scikit-learn model needs one, to know its columns and their types")
    fitted = unwrap(model)
    return [lambda: _convert(model, fitted, batch, predict_fn, "float32")]


def unwrap(model: Any) -> Any:
    """The estimator that a search has found; skl2onnx knows GridSearchCV, but not its relatives."""
    while hasattr(model, "best_estimator_"):
        model = model.best_estimator_
    return model


def _convert(model: Any, fitted: Any, batch: Batch, predict_fn: str, float_dtype: str) -> ConvertedModel:
    original = _original(model, predict_fn)
    answers = original(_head(batch))
    inputs = _inputs(fitted, batch, float_dtype)
    proto = _to_onnx(fitted, inputs)
    produced = [value.name for value in proto.graph.output]
    outputs = []
    for (name, answer), old in zip(answers.items(), produced, strict=False):
        role: Role = name if name in ("label", "probabilities") else "values"  # type: ignore[assignment]
        shape = (-1, *answer.shape[1:])
        dtype = _output_dtype(role, answer, proto.graph, old)
        finish_output(proto.graph, old, name, dtype, shape)
        outputs.append(Output(name, dtype, shape, role))
    keep_outputs(proto.graph, [output.name for output in outputs])
    _set_locale(proto.graph)
    classes = getattr(model, "classes_", ()) if "probabilities" in answers or "label" in answers else ()
    return ConvertedModel(
        proto=proto,
        inputs=inputs,
        outputs=tuple(outputs),
        prediction=("probabilities",) if predict_fn == "predict_proba" else (outputs[0].name,),
        framework="sklearn",
        framework_version=sklearn.__version__,
        original=original,
        classes=tuple(np.asarray(classes).tolist()) if isinstance(classes, np.ndarray) else (),
    )


def _original(model: Any, predict_fn: str) -> Original:
    """The estimator's own answers: `label` and, where it has them, `probabilities`; else `prediction`."""
    classifier = is_classifier(model)
    if not hasattr(model, "predict"):
        raise ConversionError(f"{type(model).__name__} has no predict, so there is nothing that a server could answer")
    has_proba = classifier and hasattr(model, "predict_proba") and isinstance(model.classes_, np.ndarray)
    if predict_fn == "predict_proba" and not has_proba:
        raise InvalidConfig(f"pyfunc_predict_fn: {type(model).__name__} has no probabilities of one target")

    def original(batch: Batch) -> dict[str, Array]:
        data = batch if isinstance(batch, pd.DataFrame) else batch[""]
        predicted = np.asarray(model.predict(data))
        if not classifier:
            return {"prediction": predicted}
        return {"label": predicted} | ({"probabilities": model.predict_proba(data)} if has_proba else {})

    return original


def _head(batch: Batch) -> Batch:
    return batch.head(3) if isinstance(batch, pd.DataFrame) else {"": batch[""][:3]}


def _inputs(fitted: Any, batch: Batch, float_dtype: str) -> tuple[Input, ...]:
    """One stacked input for a matrix or a table of one kind, one input a column where the model picks columns."""
    if not isinstance(batch, pd.DataFrame):
        array = batch[""]
        return (Input("X", "str" if array.dtype.kind in "OUT" else float_dtype, (-1, array.shape[1])),)
    columns = columns_of(batch)
    names = tuple(column.name for column in columns)
    strings = [column.type == "string" for column in columns]
    if not _picks_columns(fitted) and (all(strings) or not any(strings)):
        return (Input("X", "str" if all(strings) else float_dtype, (-1, len(names)), names),)
    dtypes = {"string": "str"}
    return tuple(
        Input(column.name, dtypes.get(column.type, float_dtype), (-1, 1), (column.name,)) for column in columns
    )


def _picks_columns(fitted: Any) -> bool:
    if isinstance(fitted, Pipeline):
        return any(_picks_columns(step) for _, step in fitted.steps)
    return isinstance(fitted, ColumnTransformer)


def _to_onnx(fitted: Any, inputs: tuple[Input, ...]) -> Any:
    """skl2onnx's ModelProto.

    Raises:
        ConversionError: a step has no converter; the message names it.
    """
    copy = deepcopy(fitted)  # skl2onnx changes some estimators
    last = copy.steps[-1][1] if isinstance(copy, Pipeline) else copy
    try:
        return convert_sklearn(
            copy,
            initial_types=[(entry.name, _TYPES[entry.dtype]([None, *entry.shape[1:]])) for entry in inputs],
            options={id(last): {"zipmap": False}} if is_classifier(last) else None,
            target_opset=_OPSET,
        )
    except Exception as error:  # noqa: BLE001 - skl2onnx raises a dozen unrelated classes here
        raise ConversionError(f"{_culprit(error, last)} cannot be converted to ONNX: {_first_line(error)}") from error


def _culprit(error: Exception, last: Any) -> str:
    found = re.search(r"type '?<class '([\w.]+)'>", str(error))
    return found.group(1).split(".")[-1] if found else type(last).__name__


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _output_dtype(role: str, answer: Array, graph: Any, name: str) -> str:
    if role == "label":
        return {"b": "bool", "f": "float64", "i": "int64", "u": "int64"}.get(answer.dtype.kind, "str")
    value = next(value for value in graph.output if value.name == name)
    return dtype_and_shape(value)[0]


def _set_locale(graph: Any) -> None:
    """Without en_US on the machine a graph that names it does not load; C.UTF-8 is everywhere."""
    for node in graph.node:
        if node.op_type == "StringNormalizer":
            for attribute in node.attribute:
                if attribute.name == "locale":
                    attribute.s = b"C.UTF-8"
