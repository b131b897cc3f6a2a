"""Convert estimators with formulas: a formula computes the prediction of a fitted
estimator in 64-bit floats.

| a formula returns                    | the estimator's outputs                       |
|--------------------------------------|-----------------------------------------------|
| texts [N, k] or integers [N, k]      | a transformer's columns, or labels of targets |
| floats [N] or [N, k]                 | predictions, or a transformer's columns       |
| integers [N]                         | labels of clusters, or 1 and -1 for outliers  |
| positions of classes [N], and scores | labels, and probabilities [N, C]              |
| both, and decisions [N] or [N, C]    | the same; ensembles may use the decisions     |

The probabilities are unused numbers if the estimator has no probabilities.
"""

import sys
from functools import partial

import numpy as np
from skl2onnx.common._container import ModelComponentContainer
from skl2onnx.common._topology import Operator, Scope
from sklearn.base import ClassifierMixin
from sklearn.impute import SimpleImputer
from sklearn.multioutput import ClassifierChain

from mlflow_deploy_plugin.wrap.convert.sklearn.formulas import (
    categories,
    ensembles,
    features,
    neighbours,
    predictors,
    texts,
    tree_nodes,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.rows import (
    FORMULAS,
    SCORES,
    Formula,
    Rows,
    labels_of,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.tracing import as_matrix
from mlflow_deploy_plugin.wrap.convert.sklearn.graph import (
    VARIABLE_TYPES,
    ConvertsOperator,
    NodeBuilder,
    register_converter,
)

_BOOSTERS = {
    "xgboost": ("XGBClassifier", "XGBRegressor", "XGBRanker", "XGBRFClassifier", "XGBRFRegressor"),
    "lightgbm": ("LGBMClassifier", "LGBMRegressor", "LGBMRanker"),
    "catboost": ("CatBoostClassifier", "CatBoostRegressor", "CatBoostRanker"),
}


def register() -> None:
    """Register estimators that have formulas, and the boosters of imported libraries,
    with skl2onnx and in the tables of `rows.py`.
    """
    formulas: dict[type, Formula] = {}
    for module in (categories, ensembles, features, neighbours, predictors, texts, tree_nodes):
        formulas |= module.FORMULAS
    for library in _BOOSTERS.keys() & sys.modules.keys():
        for name in _BOOSTERS[library]:
            formulas[getattr(sys.modules[library], name)] = tree_nodes.boosted
    for kind in formulas:
        is_classifier = issubclass(kind, ClassifierMixin) or kind.__name__ == "CatBoostClassifier"
        # A chain returns a matrix of labels.
        has_labels = is_classifier and kind is not ClassifierChain
        register_converter(
            kind, partial(convert_formula, False), has_labels, keeps_type=kind is SimpleImputer
        )
    FORMULAS.update(formulas)
    SCORES.update(ensembles.SCORES)


def convert_formula(
    is_double: bool, scope: Scope, operator: Operator, container: ModelComponentContainer
) -> None:
    """Add the nodes of the formula. Float outputs are 64-bit for 64-bit inputs or, if
    `is_double`, for all inputs except 32-bit floats, otherwise 32-bit.
    """
    graph = NodeBuilder(scope, container)
    estimator = operator.raw_operator
    rows = Rows.of(graph, operator)
    if is_double and not rows.is_single:
        rows.is_double = True  # scikit-learn computes 64-bit floats from texts and integers too.
    formula = (FORMULAS | neighbours.PRECISE)[type(estimator)]
    answer = formula(estimator, rows)
    output = operator.outputs[0]
    if isinstance(answer, tuple):
        position, answer, *_ = answer
        labels = labels_of(estimator)
        output.type = VARIABLE_TYPES[labels.dtype.name]([None])
        graph.node("Gather", [labels, position.name], output.full_name, axis=0)
        output = operator.outputs[1]
    if answer.dtype.kind in "fb":
        is_wide = rows.is_double and (is_double or answer.dtype == np.float64)
        dtype = np.float64 if is_wide else np.float32
        answer = as_matrix(answer.astype(dtype))
    output.type = VARIABLE_TYPES[answer.dtype.name]([None, *answer.shape[1:]])
    graph.node("Identity", [answer.name], output.full_name)


def converters_in_64_bits(is_throughout: bool) -> dict[type, ConvertsOperator]:
    """Return converters that compute in 64 bits: of transformers, or of all estimators
    if `is_throughout`. The latter include replacements for skl2onnx's converters with
    32-bit operators.
    """
    kinds = {*FORMULAS, *neighbours.PRECISE}
    if not is_throughout:
        kinds = {kind for kind in FORMULAS if not hasattr(kind, "predict")}
    return dict.fromkeys(kinds, partial(convert_formula, True))
