"""Trees that skl2onnx converts so that they decide otherwise than the original.

HistGradientBoosting compares in 64 bits, while scikit-learn's other trees round their input to 32 before they compare.
skl2onnx rounds its thresholds, so that a number between a threshold and its rounding would go the other way. Here the
thresholds are converted as they are, and the sums over the trees are made in 64 bits too. In other trees, the direction
of missing values is restored.
"""

from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from mlflow_deploy_plugin.flavor.convert.sklearn.estimators import sub_estimators
from mlflow_deploy_plugin.flavor.convert.sklearn.graph import NodeBuilder, float_columns
from mlflow_deploy_plugin.runtime import Array


def restore_missing_directions(graph: Any, fitted: Any) -> None:
    """Set in the graph the direction of a missing value at each node of decision trees and forests.

    skl2onnx 1.20 sends it to the right everywhere; scikit-learn's trees keep the side that training preferred.
    """
    trees = [part.tree_ for part in sub_estimators(fitted) if hasattr(part, "tree_")]
    for node in graph.node:
        if not node.op_type.startswith("TreeEnsemble"):
            continue
        lists = {attribute.name: np.array(attribute.ints) for attribute in node.attribute}
        owners, positions = lists["nodes_treeids"], lists["nodes_nodeids"]
        count = len(np.unique(owners))
        # the nodes of an IsolationForest, one for each tree, do not come in the trees' order
        starts = (start for start in range(len(trees) - count + 1) if _is_of(lists, trees[start : start + count]))
        if (start := next(starts, None)) is None:
            continue  # gradient boosting, which has the directions itself, or an unknown arrangement
        used = trees[start : start + count]
        del trees[start : start + count]
        left = [int(used[owner].missing_go_to_left[at]) for owner, at in zip(owners, positions, strict=True)]
        tracks = next(attribute for attribute in node.attribute if attribute.name == "nodes_missing_value_tracks_true")
        del tracks.ints[:]
        tracks.ints.extend(left)


def _is_of(lists: dict[str, Array], trees: list[Any]) -> bool:
    """Return True if a node of the graph holds these trees: as many nodes in each, deciding by the same features."""
    for owner, tree in enumerate(trees):
        mine = lists["nodes_treeids"] == owner
        if mine.sum() != tree.node_count:
            return False
        features = tree.feature[lists["nodes_nodeids"][mine]]
        if not np.array_equal(lists["nodes_featureids"][mine][features >= 0], features[features >= 0]):
            return False
    return True


def convert_regressor(scope: Any, operator: Any, container: Any) -> None:
    """Add the sum of the trees, through the inverse of the loss's link.

    Raises:
        NotImplementedError: trees that split by categories, or another link.
    """
    graph = NodeBuilder(scope, container)
    boosting: HistGradientBoostingRegressor = operator.raw_operator
    scores = _scores(graph, operator)
    link = type(boosting._loss.link).__name__
    inverse = {"IdentityLink": "Identity", "LogLink": "Exp"}.get(link)
    if inverse is None:
        raise NotImplementedError(f"HistGradientBoostingRegressor with the link {link}")
    graph.node(inverse, [scores], operator.outputs[0].full_name)


def classifier_shapes(operator: Any) -> None:
    """Set the output types: the label, and a 32-bit float for each class."""
    classes = operator.raw_operator.classes_
    operator.outputs[0].type = (StringTensorType if classes.dtype.kind in "OU" else Int64TensorType)([None])
    operator.outputs[1].type = FloatTensorType([None, len(classes)])


def convert_classifier(scope: Any, operator: Any, container: Any) -> None:
    """Add the probabilities from the trees' sums, and the class of the largest; with two classes, of a positive sum."""
    graph = NodeBuilder(scope, container)
    boosting: HistGradientBoostingClassifier = operator.raw_operator
    width = int(boosting.n_trees_per_iteration_)
    raw = container.get_options(boosting, {"raw_scores": False})["raw_scores"]
    write_classes(
        graph, operator, _scores(graph, operator), width, "Identity" if raw else "Sigmoid" if width == 1 else "Softmax"
    )


def write_classes(graph: NodeBuilder, operator: Any, scores: str, width: int, link: str) -> None:
    """Add the outputs of a classifier: the probabilities, and the class of the largest or of a positive score.

    Args:
        scores: [N, width]; one score is that of the second of two classes.
        link: the operator that makes probabilities of scores; Identity for the scores themselves.
    """
    classes = operator.raw_operator.classes_
    label, probabilities = (output.full_name for output in operator.outputs)
    if width == 1:
        zero, one = (graph.constant(TensorProto.FLOAT, [1], [value]) for value in (0.0, 1.0))
        chosen = graph.node("Greater", [scores, zero])
        likely = graph.node(link, [scores])
        other = graph.node("Neg", [scores]) if link == "Identity" else graph.node("Sub", [one, likely])
        graph.node("Concat", [other, likely], probabilities, axis=1)
        position = graph.node("Cast", [chosen], to=TensorProto.INT64)
    else:
        graph.node(link, [scores], probabilities)
        position = graph.node("ArgMax", [scores], axis=1, keepdims=1)
    flat = graph.constant(TensorProto.INT64, [1], [-1])
    position = graph.node("Reshape", [position, flat])
    if classes.dtype.kind in "OU":
        names = graph.constant(TensorProto.STRING, [len(classes)], [str(entry).encode() for entry in classes])
    else:
        names = graph.constant(TensorProto.INT64, [len(classes)], _integers(classes))
    graph.node("Gather", [names, position], label, axis=0)


def _scores(graph: NodeBuilder, operator: Any) -> str:
    """Return [N, trees an iteration] 32-bit floats, the sums of the trees' leaves; the trees add to them in turn."""
    boosting = operator.raw_operator
    rows = graph.node("Cast", [graph.all_columns(operator)], to=TensorProto.DOUBLE)
    width = int(boosting.n_trees_per_iteration_)
    trees = [predictor.nodes for iteration in boosting._predictors for predictor in iteration]
    if any(tree["is_categorical"].any() for tree in trees):
        raise NotImplementedError("trees that split by categories (categorical_features)")
    nodes = np.concatenate(trees)
    leaf = nodes["is_leaf"] == 1
    owners = np.repeat(np.arange(len(trees)), [len(tree) for tree in trees])
    positions = np.concatenate([np.arange(len(tree)) for tree in trees])
    return graph.node(
        "TreeEnsembleRegressor",
        [rows],
        n_targets=width,
        post_transform="NONE",
        base_values_as_tensor=_tensor(boosting._baseline_prediction),
        nodes_treeids=_integers(owners),
        nodes_nodeids=_integers(positions),
        nodes_featureids=_integers(np.where(leaf, 0, nodes["feature_idx"])),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_truenodeids=_integers(np.where(leaf, 0, nodes["left"])),
        nodes_falsenodeids=_integers(np.where(leaf, 0, nodes["right"])),
        nodes_missing_value_tracks_true=_integers(np.where(leaf, 0, nodes["missing_go_to_left"])),
        nodes_values_as_tensor=_tensor(np.where(leaf, 0.0, nodes["num_threshold"])),
        target_treeids=_integers(owners[leaf]),
        target_nodeids=_integers(positions[leaf]),
        target_ids=_integers(owners[leaf] % width),
        target_weights_as_tensor=_tensor(nodes["value"][leaf]),
    )


def _integers(values: Array) -> list[int]:
    return [int(value) for value in values]


def _tensor(values: Any) -> Any:
    return numpy_helper.from_array(np.asarray(values, dtype=np.float64).reshape(-1))


CONVERTERS = {
    HistGradientBoostingRegressor: (float_columns(lambda boosting: 1), convert_regressor),
    HistGradientBoostingClassifier: (classifier_shapes, convert_classifier),
}
