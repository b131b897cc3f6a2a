"""Estimators as formulas: a function of the fitted estimator and its rows, in 64-bit floats, that makes the graph.

| module                                                    | content                                                  |
|-----------------------------------------------------------|----------------------------------------------------------|
| `tracing.py`                                              | arrays that write numpy's functions down as nodes        |
| `rows.py`                                                 | the rows, and the answers of estimators within another   |
| `ensembles.py`, `features.py`, `neighbours.py`, `predictors.py` | the formulas                                       |

| a formula returns                           | the estimator's outputs                                                |
|---------------------------------------------|------------------------------------------------------------------------|
| floats [N] or [N, k]                        | predictions, or the columns of a transformer                           |
| integers [N]                                | labels of a cluster, or 1 and -1 of an outlier detector                |
| positions [N] of the classes, scores [N, C] | labels and probabilities; without the latter, numbers that nobody sees |
"""

from typing import Any

import numpy as np
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType
from sklearn.base import ClassifierMixin
from sklearn.multioutput import ClassifierChain

from mlflow_deploy_plugin.flavor.convert.sklearn.estimators import best_estimator
from mlflow_deploy_plugin.flavor.convert.sklearn.formulas import ensembles, features, neighbours, predictors
from mlflow_deploy_plugin.flavor.convert.sklearn.formulas.rows import FORMULAS, SCORES, Rows
from mlflow_deploy_plugin.flavor.convert.sklearn.graph import NodeBuilder, label_type, register_converter, write_labels
from mlflow_deploy_plugin.flavor.convert.sklearn.stand_ins import SeveralTargets


def register() -> None:
    """Tell skl2onnx about the estimators with a formula."""
    if FORMULAS:
        return
    for module in (ensembles, features, neighbours, predictors):
        FORMULAS.update(module.FORMULAS)
    SCORES.update(ensembles.SCORES)
    for kind in FORMULAS:
        has_labels = issubclass(kind, ClassifierMixin) and kind is not ClassifierChain  # a chain answers a matrix
        register_converter(kind, formula_shapes, convert_formula, has_labels)
    register_converter(SeveralTargets, target_shapes, convert_targets, False)


def _answer(operator: Any, rows: Rows) -> Any:
    return (FORMULAS | _PRECISE)[type(operator.raw_operator)](operator.raw_operator, rows)


def formula_shapes(operator: Any) -> None:
    """Set the output types: 64-bit floats for 64-bit inputs, else 32-bit ones."""
    rows = Rows.of(None, operator)
    answer = _answer(operator, rows)
    if isinstance(answer, tuple):
        operator.outputs[0].type = label_type(operator.raw_operator.classes_)
        answer, output = answer[1], operator.outputs[1]
    else:
        output = operator.outputs[0]
    if answer.dtype.kind == "i":
        output.type = Int64TensorType([None])
    else:
        width = answer.sample.shape[1] if answer.ndim > 1 else 1
        output.type = (DoubleTensorType if rows.is_double else FloatTensorType)([None, width])


def convert_formula(scope: Any, operator: Any, container: Any) -> None:
    """Add the nodes of the formula."""
    graph = NodeBuilder(scope, container)
    rows = Rows.of(graph, operator)
    answer = _answer(operator, rows)
    if isinstance(answer, tuple):
        position, answer = answer
        write_labels(graph, operator, position.name)
        output = operator.outputs[1]
    else:
        output = operator.outputs[0]
    if answer.dtype.kind != "i":
        answer = answer.astype(np.float64 if rows.is_double else np.float32)
        answer = answer[:, None] if answer.ndim == 1 else answer
    graph.node("Identity", [answer.name], output.full_name)


def target_shapes(operator: Any) -> None:
    """Set the output type: a label or a number for each target."""
    model = operator.raw_operator
    is_double = any(isinstance(entry.type, DoubleTensorType) for entry in operator.inputs)
    kind = DoubleTensorType if is_double else FloatTensorType
    if hasattr(model, "classes_"):
        kind = type(label_type(model.classes_[0]))
    operator.outputs[0].type = kind([None, len(model.estimators_)])


def convert_targets(scope: Any, operator: Any, container: Any) -> None:
    """Add the estimators of the targets, and their labels or predictions side by side."""
    graph = NodeBuilder(scope, container)
    parts = map(best_estimator, operator.raw_operator.estimators_)
    columns = [graph.node("Reshape", [graph.sub_model(part, operator.inputs)[0], [-1, 1]]) for part in parts]
    graph.node("Concat", columns, operator.outputs[0].full_name, axis=1)


_PRECISE = neighbours.PRECISE | predictors.PRECISE
PRECISE = dict.fromkeys(_PRECISE, (formula_shapes, convert_formula))
"""The shape calculators and converters in place of skl2onnx's, where its 32-bit operators change answers."""
