"""Trees: the input values at which they decide, and which way a missing value goes."""

from typing import Any

import numpy as np
from skl2onnx.common._registration import get_converter
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

from mlflow_deploy_plugin.flavor.convert.sklearn.steps import column_names, last_step, parts
from mlflow_deploy_plugin.runtime.schema import Array

Thresholds = dict[int, Array]
"""Values by the position of the column."""

_SCALERS = (StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler)


def thresholds_of(fitted: Any, names: list[str]) -> dict[str, Array]:
    """By column name: the input values at which some tree of the last step decides, as far as they can be traced back.

    They are traced through scalers, imputers and ColumnTransformers, one column to one column.
    """
    found = _tree_thresholds(last_step(fitted))
    for step in reversed(_before_last(fitted)):
        found = _back(step, found)
    return {names[position]: values for position, values in found.items() if position < len(names)}


def restore_missing_directions(graph: Any, fitted: Any) -> None:
    """Says in the graph which way a missing value goes at each node of decision trees and forests.

    skl2onnx 1.20 sends it to the right everywhere; scikit-learn's trees keep the side that training preferred.
    """
    trees = [part.tree_ for part in parts(fitted) if hasattr(part, "tree_")]
    for node in graph.node:
        if not node.op_type.startswith("TreeEnsemble"):
            continue
        lists = {attribute.name: np.array(attribute.ints) for attribute in node.attribute}
        owners, positions = lists["nodes_treeids"], lists["nodes_nodeids"]
        count = len(np.unique(owners))
        # the nodes of an IsolationForest, one for each tree, do not come in the trees' order
        starts = (start for start in range(len(trees) - count + 1) if _is_of(lists, trees[start : start + count]))
        if (start := next(starts, None)) is None:
            continue  # gradient boosting, which says it itself, or an arrangement that we do not know
        used = trees[start : start + count]
        del trees[start : start + count]
        left = [int(used[owner].missing_go_to_left[at]) for owner, at in zip(owners, positions, strict=True)]
        tracks = next(attribute for attribute in node.attribute if attribute.name == "nodes_missing_value_tracks_true")
        del tracks.ints[:]
        tracks.ints.extend(left)


def convert_boosted(scope: Any, operator: Any, container: Any) -> None:
    """skl2onnx's own converter, with integers for the booleans that it writes (the way of a missing value).

    protobuf 7 refuses a boolean where ONNX wants an integer: "Field onnx.AttributeProto.ints: Expected an int".
    """
    add_node = container.add_node

    def add_node_of_integers(*args: Any, **attributes: Any) -> None:
        add_node(*args, **{name: _integers(value) for name, value in attributes.items()})

    container.add_node = add_node_of_integers
    try:
        get_converter(operator.type)(scope, operator, container)
    finally:
        container.add_node = add_node


def _integers(value: Any) -> Any:
    """A list with an integer for each boolean in it; anything else as it is."""
    return [int(one) if isinstance(one, bool) else one for one in value] if isinstance(value, list) else value


CONVERTERS = dict.fromkeys((HistGradientBoostingClassifier, HistGradientBoostingRegressor), convert_boosted)


def _is_of(lists: dict[str, Array], trees: list[Any]) -> bool:
    """Whether a node of the graph holds these trees: as many nodes in each, deciding by the same features."""
    for owner, tree in enumerate(trees):
        mine = lists["nodes_treeids"] == owner
        if mine.sum() != tree.node_count:
            return False
        features = tree.feature[lists["nodes_nodeids"][mine]]
        if not np.array_equal(lists["nodes_featureids"][mine][features >= 0], features[features >= 0]):
            return False
    return True


def has_trees(fitted: Any) -> bool:
    return any(hasattr(part, "tree_") or hasattr(part, "_predictors") for part in parts(last_step(fitted)))


def _tree_thresholds(estimator: Any) -> Thresholds:
    pairs: list[tuple[Array, Array]] = []
    for part in parts(estimator):
        if hasattr(part, "tree_"):
            inner = part.tree_.feature >= 0
            pairs.append((part.tree_.feature[inner], part.tree_.threshold[inner]))
        for predictors in getattr(part, "_predictors", ()):
            for predictor in predictors:
                nodes = predictor.nodes[predictor.nodes["is_leaf"] == 0]
                pairs.append((nodes["feature_idx"], nodes["num_threshold"]))
    if not pairs:
        return {}
    features, values = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return {int(feature): np.unique(values[features == feature]) for feature in np.unique(features)}


def _before_last(fitted: Any) -> list[Any]:
    steps: list[Any] = []
    while isinstance(fitted, Pipeline):
        steps.extend(step for _, step in fitted.steps[:-1])
        fitted = fitted.steps[-1][1]
    return steps


def _back(step: Any, thresholds: Thresholds) -> Thresholds:
    """Thresholds on a step's output as thresholds on its input."""
    if isinstance(step, Pipeline):
        for _, part in reversed(step.steps):
            thresholds = _back(part, thresholds)
        return thresholds
    if isinstance(step, ColumnTransformer):
        return _back_columns(step, thresholds)
    if isinstance(step, _SCALERS):
        return {position: _unscaled(step, position, values) for position, values in thresholds.items()}
    same = step == "passthrough" or isinstance(step, SimpleImputer)
    identity = isinstance(step, FunctionTransformer) and step.func is None
    return thresholds if same or identity else {}


def _unscaled(scaler: Any, position: int, values: Array) -> Array:
    matrix = np.zeros((len(values), scaler.n_features_in_))
    matrix[:, position] = values
    return np.asarray(scaler.inverse_transform(matrix)[:, position])


def _back_columns(transformer: ColumnTransformer, thresholds: Thresholds) -> Thresholds:
    names = list(getattr(transformer, "feature_names_in_", range(transformer.n_features_in_)))
    found: Thresholds = {}
    for name, step, columns in transformer.transformers_:
        part = transformer.output_indices_[name]
        inputs = [names.index(column) for column in column_names(columns, names)]
        if part.stop - part.start != len(inputs):
            continue  # an encoder, which makes several columns of one
        inside = {p - part.start: values for p, values in thresholds.items() if part.start <= p < part.stop}
        for position, values in _back(step, inside).items():
            found[inputs[position]] = np.union1d(found.get(inputs[position], np.array([])), values)
    return found
