"""scikit-learn estimators and pipelines, by skl2onnx.

steps.py     looking into estimators        inputs.py   the graph's inputs
graph.py     the conversion itself          precision.py  where 32-bit and 64-bit floats meet
knowledge.py what the model knows, for the proof
categories.py, elementwise.py, imputer.py, texts.py, trees.py  converters that skl2onnx lacks, or has wrong
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import sklearn
from sklearn.base import is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from mlflow_deploy_plugin.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.flavor import batch as batches
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.flavor.compare import margins
from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel, Original, answers_for
from mlflow_deploy_plugin.flavor.convert.graph import dtype_and_shape, finish_output, keep_outputs
from mlflow_deploy_plugin.flavor.convert.sklearn.graph import to_onnx
from mlflow_deploy_plugin.flavor.convert.sklearn.inputs import bind_inputs, own_form
from mlflow_deploy_plugin.flavor.convert.sklearn.knowledge import knowledge_of
from mlflow_deploy_plugin.flavor.convert.sklearn.precision import Precision
from mlflow_deploy_plugin.flavor.convert.sklearn.steps import last_step, unwrap
from mlflow_deploy_plugin.runtime.artifact import Output, Role
from mlflow_deploy_plugin.runtime.schema import Array

_HEAD = slice(0, 3)


def read_batch(model: Any, data: Any) -> Batch:
    """A DataFrame, one [N, k] array, or one column of texts, as a Series, a list or an array of [N].

    Raises:
        InvalidConfig: the data is neither.
    """
    if isinstance(data, pd.DataFrame):
        # a table without names is one matrix to scikit-learn, and to us
        named = any(isinstance(name, str) for name in data.columns)
        return data if named else {"": _numbers(data.to_numpy())}
    if isinstance(data, dict):
        return pd.DataFrame(data)
    if isinstance(data, pd.Series):
        return pd.DataFrame({data.name or "text": list(data)})
    if _are_texts(data):
        return pd.DataFrame({getattr(data, "name", None) or "text": list(map(str, data))})
    array = np.asarray(data)
    if array.ndim != 2 or array.dtype.kind not in "fiubUTO":
        found = type(data).__name__ + (f" of the shape {array.shape}" if array.ndim else "")
        raise InvalidConfig(
            f"input_example: a scikit-learn model takes a DataFrame or an array of [rows, columns], not a {found}"
        )
    return {"": _numbers(array)}


def _are_texts(data: Any) -> bool:
    """A list, a tuple, an index or an array of [N] texts: numpy's own are of a fixed width, or objects."""
    is_flat = isinstance(data, list | tuple) or (isinstance(data, pd.Index | np.ndarray) and data.ndim == 1)
    return is_flat and all(isinstance(entry, str) for entry in data)


def _numbers(array: Array) -> Array:
    """An array of objects without any text as numbers, as scikit-learn reads it; others as they are."""
    if array.dtype.kind != "O" or any(isinstance(value, str) for value in array.flat):
        return array
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError):
        return array


def forms(model: Any, batch: Batch | None, predict_fn: str) -> list[Callable[[], ConvertedModel]]:
    """32-bit floats; where they change answers: 64 bits up to the last step; 64 bits throughout.

    A scaler in 32-bit floats moves rows across the thresholds of the trees behind it: measured, up to 653 of 4,000.
    64 bits throughout are no general answer, because ONNX Runtime has no such kernels for most that predicts.

    Raises:
        InvalidConfig: there is no example; skl2onnx needs to know the columns and their types.
        InvalidConfig: the model is not fitted.
        ConversionError: the model has no `predict`.
    """
    try:
        check_is_fitted(model)
    except NotFittedError:
        raise InvalidConfig(f"the {type(model).__name__} is not fitted: call its fit before it is logged") from None
    if batch is None:
        raise InvalidConfig("input_example: a scikit-learn model needs one, to know its columns and their types")
    original = _original(model, predict_fn)
    precisions: tuple[Precision, ...] = ("single", "double_until_last_step", "double")
    return [partial(_convert, model, batch, original, predict_fn, precision) for precision in precisions]


def _original(model: Any, predict_fn: str) -> Original:
    """The estimator's own answers: `label` and, where it has them, `probabilities`; else `prediction`."""
    if not hasattr(model, "predict"):
        raise ConversionError(f"{type(model).__name__} has no predict, so there is nothing that a server could answer")
    classifier = is_classifier(model)
    has_proba = classifier and hasattr(model, "predict_proba") and isinstance(model.classes_, np.ndarray)
    if predict_fn == "predict_proba" and not has_proba:
        raise InvalidConfig(f"pyfunc_predict_fn: {type(model).__name__} has no probabilities of one target")

    def original(batch: Batch) -> dict[str, Array]:
        data = own_form(model, batch)
        predicted = np.asarray(model.predict(data))
        if not classifier:
            return {"prediction": predicted}
        return {"label": predicted} | ({"probabilities": model.predict_proba(data)} if has_proba else {})

    return original


def _convert(model: Any, batch: Batch, original: Original, predict_fn: str, precision: Precision) -> ConvertedModel:
    fitted = unwrap(model)
    answers = answers_for(original, batches.take(batch, _HEAD))
    inputs = bind_inputs(model, fitted, batch, "float32" if precision == "single" else "float64")
    proto = to_onnx(fitted, inputs, precision)
    # skl2onnx rewrites names that are not identifiers; the order stays
    nodes = zip(inputs, proto.graph.input, strict=True)
    inputs = tuple(replace(entry, name=node.name) for entry, node in nodes)
    outputs = _finish_outputs(proto.graph, answers)
    names = [str(name) for name in batch.columns] if isinstance(batch, pd.DataFrame) else _positions(batch)
    classes = getattr(model, "classes_", None) if outputs[0].role == "label" else None
    return ConvertedModel(
        proto=proto,
        inputs=inputs,
        outputs=outputs,
        prediction=("probabilities",) if predict_fn == "predict_proba" else (outputs[0].name,),
        framework="sklearn",
        framework_version=sklearn.__version__,
        original=original,
        classes=tuple(classes.tolist()) if isinstance(classes, np.ndarray) else (),
        knowledge=knowledge_of(fitted, names),
        margin=_margin(model) if "label" in answers else None,
        repair=_repair(fitted, precision),
    )


def _finish_outputs(graph: Any, answers: dict[str, Array]) -> tuple[Output, ...]:
    """Names, shapes and label types of the outputs as the original answers; skl2onnx's other outputs are dropped."""
    produced = [value.name for value in graph.output]
    outputs = []
    for (name, answer), old in zip(answers.items(), produced, strict=False):
        role: Role = "probabilities" if name == "probabilities" else "values" if answer.dtype.kind == "f" else "label"
        role = "label" if name == "label" else role
        shape = (-1, *answer.shape[1:])
        value = next(value for value in graph.output if value.name == old)
        labels = {"b": "bool", "f": "float64", "i": "int64", "u": "int64"}.get(answer.dtype.kind, "str")
        dtype = labels if role == "label" else dtype_and_shape(value)[0]
        finish_output(graph, old, name, dtype, shape)
        outputs.append(Output(name, dtype, shape, role))
    keep_outputs(graph, [output.name for output in outputs])
    return tuple(outputs)


def _margin(model: Any) -> Callable[[Batch], Array] | None:
    """How far the best label leads by more than its probability, which may be rounded to 1: [N], or scores [N, C]."""

    def decision(batch: Batch) -> Array:
        return np.asarray(model.decision_function(own_form(model, batch)))

    def of_several_targets(batch: Batch) -> Array:
        by_target = model.predict_proba(own_form(model, batch))
        return np.asarray(np.min([margins(probabilities) for probabilities in by_target], axis=0))

    if hasattr(model, "decision_function"):
        return decision
    return of_several_targets if isinstance(getattr(model, "classes_", None), list) else None


def _repair(fitted: Any, precision: Precision) -> str:
    name = type(last_step(fitted)).__name__
    said = {
        "single": "",
        "double_until_last_step": f"32-bit floats changed answers; inputs are read in 64 bits, and rounded only "
        f"before {name}",
        "double": "32-bit floats changed answers; everything is computed in 64 bits",
    }
    return said[precision]


def _positions(batch: dict[str, Array]) -> list[str]:
    return [str(position) for position in range(batch[""].shape[1])]
