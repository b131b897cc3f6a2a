"""Trees as arrays, and as ONNX Runtime's tree operator.

HistGradientBoosting compares in 64 bits, but skl2onnx rounds its thresholds.
scikit-learn's other trees compare in 32 bits, but skl2onnx sends their missing values
to the right. This module avoids both errors, and sums in 64 bits.
"""

from dataclasses import dataclass, field, replace
from itertools import chain
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, numpy_helper
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.tree._tree import Tree as SklearnTree

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.tree_operator import MANY_ROWS_CONSTANT
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import Estimator
from mlflow_deploy_plugin.wrap.convert.sklearn.graph import NodeBuilder
from mlflow_deploy_plugin.wrap.convert.sklearn.levels import (
    MANY_ROWS,
    MAX_SUMMED,
    MIN_TREES,
    Levels,
    write_levels,
)


def rounded_down(thresholds: Array) -> Array:
    """Return the largest 32-bit floats that are not above the thresholds. Both split
    32-bit numbers identically.
    """
    rounded = thresholds.astype(np.float32)
    return np.where(rounded > thresholds, np.nextafter(rounded, np.float32(-np.inf)), rounded)


_LEAF = -1


class Node(NamedTuple):
    """A node of a `Tree`. Its fields are the arrays of the tree."""

    feature: int
    threshold: float
    left: int
    right: int
    default_left: bool
    value: float = 0.0


_NO_CODE = -1
_COMPARISONS = {"BRANCH_LT": "Less", "BRANCH_LEQ": "LessOrEqual"}
"""The operator of each comparison."""
_OPPOSITES = {"Less": "GreaterOrEqual", "LessOrEqual": "Greater"}
_MAX_PADDING = 8
"""The maximum width of a level of a complete tree, divided by the average number of
nodes per tree.
"""


def leaf(value: float = 0.0) -> Node:
    """Return a leaf."""
    return Node(feature=0, threshold=0.0, left=_LEAF, right=_LEAF, default_left=False, value=value)


@dataclass(frozen=True)
class Tree:
    """A tree as arrays [nodes]. Node 0 is the root.

    Attributes:
        feature: the position of the feature that a node compares.
        threshold: a row goes left if its feature is below this number.
        left: the left child, or -1 for a leaf.
        right: the right child.
        default_left: True if a missing value goes left.
        value: the prediction of a leaf.
        members: the category codes that go left, for the nodes that compare categories
            instead of thresholds.
    """

    feature: Array
    threshold: Array
    left: Array
    right: Array
    default_left: Array
    value: Array
    members: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, nodes: list[Node], members: dict[int, list[int]] | None = None) -> "Tree":
        """Return the tree of a list of nodes, without membership tests by default."""
        arrays = {}
        for name in Node._fields:
            arrays[name] = np.array([getattr(node, name) for node in nodes])
        arrays["threshold"] = arrays["threshold"].astype(float)
        return cls(**arrays, members=members or {})

    @classmethod
    def fitted(cls, tree: SklearnTree, value: Array, columns: Array | None = None) -> "Tree":
        """Return a scikit-learn tree with 32-bit thresholds.

        Args:
            tree: the tree.
            value: the prediction of each node, [nodes].
            columns: the positions of the tree's features; None if they are the same.
        """
        feature = np.maximum(tree.feature, 0)
        if columns is not None:
            feature = columns[feature]
        return cls(
            feature=feature,
            threshold=rounded_down(tree.threshold).astype(float),
            left=tree.children_left,
            right=tree.children_right,
            default_left=tree.missing_go_to_left.astype(bool),
            value=value,
        )

    def splits_as(self, other: "Tree") -> bool:
        """Return True if the trees are equal except for the values of their leaves."""
        for name in Node._fields:
            if name != "value" and not np.array_equal(getattr(self, name), getattr(other, name)):
                return False
        return self.members == other.members

    def as_comparisons(self, mode: str) -> tuple["Tree", Array]:
        """Return the tree with a chain of equality tests per membership test, and the
        ONNX comparison of each node, which is `mode` for nodes with a threshold.
        """
        fields = [getattr(self, name) for name in Node._fields]
        nodes = [Node(*values) for values in zip(*fields, strict=True)]
        modes = np.where(self.left < 0, "LEAF", mode).tolist()
        # ONNX Runtime treats a chain of equality tests with the same left child as a
        # membership test.
        for first, codes in self.members.items():
            position = first
            test = nodes[position]._replace(value=0.0)
            for code in codes[:-1]:
                nodes[position] = test._replace(threshold=code, right=len(nodes))
                modes[position] = "BRANCH_EQ"
                test = test._replace(default_left=False)
                position = len(nodes)
                nodes.append(test)  # The next test overwrites this node.
                modes.append(mode)
            nodes[position] = test._replace(threshold=codes[-1])
            modes[position] = "BRANCH_EQ"
        return Tree.of(nodes), np.array(modes)


@dataclass(frozen=True)
class Boosting:
    """The trees of gradient boosting, and the function that turns their sums into
    predictions.

    Attributes:
        targets: the target of each tree, as a position in the sums.
        base: the sums before the first tree, [targets] float64.
        mode: the ONNX comparison for which a row goes left: BRANCH_LT or BRANCH_LEQ.
        link: the ONNX operator that is applied to the sums: Identity, Exp, Sigmoid or
            Softmax.
        is_single: True if leaves and sums have 32 bits.
        has_single_rows: True if features and thresholds are rounded to 32 bits.
        missing: a number that is treated as missing, like NaN.
        categories: the categories of each categorical column, in the order of their
            codes.
        category_columns: the positions of the categorical columns; empty if they are
            unknown.
        lines: the slopes [features, targets] of a linear booster without trees; a
            missing value adds 0.
        slopes: for linear leaves, the feature of each kind of slopes. The trees of kind
            n for the target t have the target (n + 1) * len(base) + t.
    """

    trees: list[Tree]
    targets: list[int]
    base: Array
    mode: str
    link: str
    is_single: bool = False
    has_single_rows: bool = False
    missing: float = np.nan
    categories: tuple[tuple[str | int, ...], ...] = ()
    category_columns: tuple[int, ...] = ()
    lines: Array = field(default_factory=lambda: np.empty(0))
    slopes: tuple[int, ...] = ()

    def edges(self) -> dict[int, Array]:
        """Return the thresholds of each feature by its position."""
        if not self.trees:
            return {}
        feature_parts = []
        threshold_parts = []
        for tree in self.trees:
            has_threshold = tree.left >= 0
            has_threshold[list(tree.members)] = False
            feature_parts.append(tree.feature[has_threshold])
            threshold_parts.append(tree.threshold[has_threshold])
        features = np.concatenate(feature_parts)
        thresholds = np.concatenate(threshold_parts)
        return {
            int(feature): np.unique(thresholds[features == feature])
            for feature in np.unique(features)
        }

    def levels(self) -> Levels | None:
        """Return the trees as complete trees, or None if they are few, unbalanced, or
        split by categories.
        """
        tree_counts = np.bincount(self.targets, minlength=len(self.base))
        if len(self.trees) < MIN_TREES or len(set(tree_counts)) > 1:
            return None
        if any(tree.members for tree in self.trees):
            return None
        groups = 1 if self.is_single else ceil(int(tree_counts[0]) / MAX_SUMMED)
        # A target's groups have equally many trees, so trees of value 0 are added.
        targets_of_padding = np.repeat(np.arange(len(self.base)), -int(tree_counts[0]) % groups)
        padded = [*self.trees, *[Tree.of([leaf()])] * len(targets_of_padding)]
        order = np.argsort([*self.targets, *targets_of_padding], kind="stable")
        forest = _join_trees([padded[index] for index in order])
        splits = _distinct_splits(forest, self.mode)
        if splits is None:
            return None
        complete = _complete_levels(forest, splits)
        if complete is None:
            return None
        nodes, leaves = complete
        trees = len(forest.roots) // len(self.base)
        # All targets share the levels of one target if they have the same splits.
        if all(
            (level.reshape(-1, trees, level.shape[1]) == level[:trees]).all() for level in nodes
        ):
            nodes = [level[:trees] for level in nodes]
        rows_type = np.float32 if self.has_single_rows else np.float64
        sums_type = np.float32 if self.is_single else np.float64
        return Levels(
            nodes=nodes,
            column=splits.column.astype(np.int64),
            threshold=splits.threshold.astype(rows_type),
            default=splits.default.astype(bool),
            comparison=splits.comparison,
            value=np.reshape(
                forest.nodes["value"][leaves].astype(np.float32), (len(self.base), trees, -1)
            ),
            base=self.base.astype(sums_type),
            groups=groups,
        )


@dataclass(frozen=True, eq=False)
class _Forest:
    """The nodes of all trees as arrays [nodes], and the position of each root, [trees].

    A leaf's `left` and `right` point to the leaf.
    """

    nodes: dict[str, Array]
    roots: Array

    @property
    def is_inner(self) -> Array:
        """True for the nodes that are not leaves, [nodes]."""
        left = self.nodes["left"]
        return np.not_equal(left, np.arange(len(left)))


@dataclass(frozen=True, eq=False)
class _Splits:
    """The distinct splits of the nodes.

    Attributes:
        column: the column that each split compares, [splits].
        threshold: the right side of the comparison, [splits].
        default: 1 if the comparison is true for a missing value, otherwise 0, [splits].
        comparison: Less, LessOrEqual, Greater or GreaterOrEqual.
        index: the split of each node, [nodes]; 0 for leaves.
        left: the child of each node if the comparison is true, [nodes].
        right: the other child, [nodes].
    """

    column: Array
    threshold: Array
    default: Array
    comparison: str
    index: Array
    left: Array
    right: Array


def _distinct_splits(forest: _Forest, mode: str) -> _Splits | None:
    """Return the distinct splits, or None if there are no splits or their missing
    values cannot be replaced.
    """
    nodes = forest.nodes
    is_inner = forest.is_inner
    fields = [nodes[name][is_inner] for name in ("feature", "threshold", "default_left")]
    distinct, index_of_inner = np.unique(np.stack(fields, axis=1), axis=0, return_inverse=True)
    if not len(distinct):
        return None
    column, threshold, default = distinct.T
    if mode == "BRANCH_LT" and np.isneginf(threshold).any():
        return None  # No number is less than -inf, which replaces missing values.
    index = np.zeros(len(is_inner), dtype=np.int64)
    index[is_inner] = index_of_inner.ravel()
    splits = _Splits(
        column=column,
        threshold=threshold,
        default=default,
        comparison=_COMPARISONS[mode],
        index=index,
        left=nodes["left"],
        right=nodes["right"],
    )
    if not default.all():
        return splits
    # The opposite comparison is false for missing values.
    return replace(
        splits,
        default=np.zeros(len(default)),
        comparison=_OPPOSITES[splits.comparison],
        left=splits.right,
        right=splits.left,
    )


def _complete_levels(forest: _Forest, splits: _Splits) -> tuple[list[Array], Array] | None:
    """Return the splits of the trees as complete trees, [trees, 2**d] at each level d,
    and the nodes that are their leaves, [trees, 2**depth]; None if most of their nodes
    would be padding.
    """
    trees = len(forest.roots)
    is_inner = forest.is_inner
    most_nodes = _MAX_PADDING * len(is_inner) / trees
    level_nodes = forest.roots[:, None]  # shape: [trees, nodes of the level]
    levels: list[Array] = []
    while is_inner[level_nodes].any():
        if level_nodes.shape[1] > most_nodes:
            return None
        levels.append(splits.index[level_nodes])
        children = np.stack([splits.right[level_nodes], splits.left[level_nodes]], axis=2)
        level_nodes = children.reshape(trees, -1)
    return levels, level_nodes


def _join_trees(trees: list[Tree]) -> _Forest:
    """Return the nodes of all trees. The children of a leaf are the leaf."""
    nodes = {}
    for name in Node._fields:
        nodes[name] = np.concatenate([getattr(tree, name) for tree in trees])
    node_counts = [len(tree.left) for tree in trees]
    roots = np.cumsum([0, *node_counts[:-1]])
    is_leaf = nodes["left"] < 0
    offsets = np.repeat(roots, node_counts)
    for side in ("left", "right"):
        nodes[side] = np.where(is_leaf, np.arange(len(is_leaf)), nodes[side] + offsets)
    return _Forest(nodes, roots)


def write_trees(graph: NodeBuilder, rows: str, boosting: Boosting) -> str:
    """Add the trees for rows [N, features] (32 bits if `has_single_rows`), and return
    32-bit sums [N, targets].
    """
    levels = boosting.levels()
    if levels is None:
        return write_walk(graph, rows, boosting)
    few = graph.subgraph()
    many = graph.subgraph()
    sums_of_many = write_levels(many, rows, levels)
    sums_of_few = write_walk(few, rows, boosting)
    shape: list[int | None] = [None, len(boosting.base)]
    many_rows = graph.constant([MANY_ROWS], MANY_ROWS_CONSTANT)
    has_many = graph.node("GreaterOrEqual", [graph.row_count(rows), many_rows])
    return graph.node(
        "If",
        [has_many],
        then_branch=many.finish({}, {sums_of_many: (TensorProto.FLOAT, shape)}),
        else_branch=few.finish({}, {sums_of_few: (TensorProto.FLOAT, shape)}),
    )


def write_walk(graph: NodeBuilder, rows: str, boosting: Boosting) -> str:
    """Add ONNX Runtime's tree operator, which is fastest for few rows. The rows and
    sums have the same float type.
    """
    if boosting.has_single_rows and not boosting.is_single:
        rows = graph.cast(rows, TensorProto.DOUBLE)
    distinct, owners = merge_trees(boosting)
    leaves = [np.flatnonzero(tree.left < 0) for tree in boosting.trees]
    leaf_counts = [len(indices) for indices in leaves]
    values = [tree.value[indices] for tree, indices in zip(boosting.trees, leaves, strict=True)]
    floats = {"target_weights": np.concatenate(values), "base_values": boosting.base}
    return graph.node(
        "TreeEnsembleRegressor",
        [rows],
        n_targets=len(boosting.base),
        post_transform="NONE",
        target_treeids=np.repeat(owners, leaf_counts).tolist(),
        target_nodeids=np.concatenate(leaves).tolist(),
        target_ids=np.repeat(boosting.targets, leaf_counts).tolist(),
        **_node_attributes(distinct, boosting),
        **_float_attributes(floats, boosting.is_single),
    )


def merge_trees(boosting: Boosting) -> tuple[list[Tree], list[int]]:
    """Return the trees, in which adjacent trees with equal splits are merged, and for
    each original tree the position of its merged tree.
    """
    owners: list[int] = []
    distinct: list[Tree] = []
    previous_target = -1
    for tree, target in zip(boosting.trees, boosting.targets, strict=True):
        # A merged tree has one value per target and leaf.
        is_same_round = target > previous_target
        if not (is_same_round and distinct and tree.splits_as(distinct[-1])):
            distinct.append(tree)
        owners.append(len(distinct) - 1)
        previous_target = target
    return distinct, owners


def _node_attributes(trees: list[Tree], boosting: Boosting) -> dict[str, Any]:
    """Return the attributes of the tree operator that describe the nodes of trees."""
    comparisons = [tree.as_comparisons(boosting.mode) for tree in trees]
    chained = [tree for tree, _ in comparisons]
    nodes = {}
    for name, field_name in _NODE_FIELDS.items():
        nodes[name] = np.concatenate([getattr(tree, field_name) for tree in chained])
    is_leaf = nodes["nodes_truenodeids"] < 0
    thresholds = np.where(is_leaf, 0.0, nodes.pop("nodes_values"))
    node_counts = [len(tree.left) for tree in chained]
    return {
        "nodes_treeids": np.repeat(np.arange(len(chained)), node_counts).tolist(),
        "nodes_nodeids": np.concatenate([*map(np.arange, node_counts)]).tolist(),
        "nodes_modes": np.concatenate([modes for _, modes in comparisons]).tolist(),
        **{name: np.where(is_leaf, 0, array).astype(int).tolist() for name, array in nodes.items()},
        **_float_attributes({"nodes_values": thresholds}, boosting.is_single),
    }


_NODE_FIELDS = {
    "nodes_featureids": "feature",
    "nodes_values": "threshold",
    "nodes_truenodeids": "left",
    "nodes_falsenodeids": "right",
    "nodes_missing_value_tracks_true": "default_left",
}
"""The field of `Tree` for each attribute of the tree operator. Leaves have zeros."""


def _float_attributes(numbers: dict[str, Array], is_single: bool) -> dict[str, Any]:
    """Return attributes with 32-bit floats, or tensors of 64-bit floats."""
    if is_single:
        return {name: np.asarray(values, np.float32).tolist() for name, values in numbers.items()}
    return {
        f"{name}_as_tensor": numpy_helper.from_array(np.asarray(values, np.float64))
        for name, values in numbers.items()
    }


_LINKS = {
    "IdentityLink": "Identity",
    "LogLink": "Exp",
    "LogitLink": "Sigmoid",
    "MultinomialLogit": "Softmax",
}


def link_of(loss: Any) -> str:
    """Return the inverse of the link of a loss in scikit-learn, as an ONNX operator.
    Raises NotImplementedError if the link is unknown.
    """
    name = type(loss.link).__name__
    if name not in _LINKS:
        raise NotImplementedError(f"the link {name}")
    return _LINKS[name]


def gradient_boosting(estimator: Estimator) -> Boosting:
    """Return the trees of GradientBoosting, which start from a constant. Raises
    NotImplementedError for other starts and unknown links.
    """
    if estimator.init_ != "zero" and not isinstance(
        estimator.init_, DummyClassifier | DummyRegressor
    ):
        raise NotImplementedError("GradientBoosting with an estimator as `init`")
    trees = []
    for member in estimator.estimators_.flat:
        values = member.tree_.value[:, 0, 0] * estimator.learning_rate
        trees.append(Tree.fitted(member.tree_, values))
    rounds, width = estimator.estimators_.shape
    return Boosting(
        trees=trees,
        targets=[*range(width)] * rounds,
        base=np.ravel(estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_)))),
        mode="BRANCH_LEQ",
        link=link_of(estimator._loss),
        is_single=True,  # 64 bits would take a fourth more time per row.
        has_single_rows=True,
    )


def histogram_boosting(estimator: Estimator) -> Boosting:
    """Return the trees of HistGradientBoosting. Raises NotImplementedError for an
    unknown link.
    """
    categories: list[Array] = []
    is_categorical = estimator.is_categorical_
    if is_categorical is None:
        is_categorical = np.zeros(estimator.n_features_in_, bool)
    else:
        categories = estimator._preprocessor.named_transformers_["encoder"].categories_
    columns = np.argsort(~is_categorical, kind="stable")  # Trees read categorical columns first.
    trees = []
    for predictor in chain.from_iterable(estimator._predictors):
        nodes = predictor.nodes
        members = {}
        for node in np.flatnonzero(nodes["is_categorical"]):
            # The categories that go left are 256 bits in eight words of 32 bits.
            words = predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]]
            codes = [code for code in range(256) if words[code // 32] >> code % 32 & 1]
            members[int(node)] = codes or [_NO_CODE]  # Only missing values go left.
        trees.append(
            Tree(
                feature=columns[nodes["feature_idx"]],
                threshold=nodes["num_threshold"],
                left=np.where(nodes["is_leaf"] == 1, _LEAF, nodes["left"].astype(np.int64)),
                right=nodes["right"],
                default_left=nodes["missing_go_to_left"],
                value=nodes["value"],
                members=members,
            )
        )
    width = int(estimator.n_trees_per_iteration_)
    return Boosting(
        trees=trees,
        targets=(np.arange(len(trees)) % width).tolist(),
        base=np.ravel(estimator._baseline_prediction),
        mode="BRANCH_LEQ",
        link=link_of(estimator._loss),
        categories=tuple(map(tuple, categories)),
        category_columns=tuple(np.flatnonzero(is_categorical).tolist()),
    )
