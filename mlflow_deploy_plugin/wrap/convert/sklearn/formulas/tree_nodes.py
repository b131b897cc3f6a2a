"""Formulas of trees, forests and boosted trees. Each of them is one ONNX node."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import special
from sklearn import ensemble
from sklearn.base import is_classifier
from sklearn.ensemble._gb import BaseGradientBoosting
from sklearn.ensemble._iforest import _average_path_length
from sklearn.tree import (
    DecisionTreeClassifier,
    DecisionTreeRegressor,
    ExtraTreeClassifier,
    ExtraTreeRegressor,
)

from mlflow_deploy_plugin.wrap.convert.sklearn.boosters import NativeBooster, read_boosting
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import Estimator, is_tree
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.categories import encoded, is_missing
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.rows import (
    Answer,
    Formula,
    Rows,
    both_classes,
    largest,
    softmax,
    softmax_of_two,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.tracing import (
    Traced,
    TracedArray,
    smallest,
    take,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.graph import NodeBuilder
from mlflow_deploy_plugin.wrap.convert.sklearn.stand_ins import TreeFeatures
from mlflow_deploy_plugin.wrap.convert.sklearn.trees import (
    Boosting,
    Tree,
    write_trees,
    write_walk,
)

WritesTrees = Callable[[NodeBuilder, str, Boosting], str]
"""The function `write_trees` or `write_walk`."""
_LINKS: dict[str, Callable[[TracedArray], TracedArray]] = {
    "Identity": lambda scores: scores,
    "Exp": np.exp,
    "Sigmoid": special.expit,
    "Softmax": softmax,
}


def boosted(model: Estimator, rows: Rows) -> Answer:
    """Return predictions, or a classifier's decision, probabilities and scores. A
    positive score means class 1.
    """
    boosting = read_boosting(model)
    x = _features(model, rows, boosting)
    if boosting.slopes:
        # The slopes of the leaves are multiplied by the features. A missing feature
        # adds 0.
        width = len(boosting.base)
        kinds = 1 + len(boosting.slopes)  # The first kind of sums is for the constants.
        sums = _sums_of_trees(x, replace(boosting, base=np.zeros(kinds * width)))
        by_kind = sums.astype(float).reshape(-1, kinds, width)
        features = np.hstack([np.ones_like(x[:, :1]), x[:, list(boosting.slopes)]])
        features = features[:, :, None]
        scores = np.where(by_kind == 0, 0.0, by_kind * features).sum(axis=1)
    elif len(boosting.lines):
        filled = np.where(np.isnan(x), np.float32(0.0), x).astype(float)
        scores = (filled @ boosting.lines + boosting.base).astype(np.float32)
    elif isinstance(model, BaseGradientBoosting):
        scores = _sums_of_trees(x, boosting)  # One row takes a fifth less time than with levels.
    else:
        scores = _sums_of_trees(x, boosting, write_trees)
    if not is_classifier(model):
        return _LINKS[boosting.link](scores)
    if scores.sample.shape[1] > 1:
        return np.argmax(scores, axis=1), _LINKS[boosting.link](scores), scores
    likely = softmax_of_two(scores) if boosting.link == "Sigmoid" else both_classes(scores)
    flat = scores.reshape(-1)
    return (flat > 0).astype(np.int64), likely, flat


def tree_features(model: TreeFeatures, rows: Rows) -> TracedArray:
    """Return the features of the trees, with a code per category."""
    return _features(model.model, rows, read_boosting(model.model))


def _features(model: Estimator, rows: Rows, boosting: Boosting) -> TracedArray:
    """Return the columns as numbers [N, k]. Categories are codes; missing values and
    unknown categories are NaN.
    """
    by_position = dict(zip(boosting.category_columns, boosting.categories, strict=False))
    dtype = np.float32 if boosting.has_single_rows else np.float64
    if boosting.categories or rows.has_texts:
        columns = rows.columns()
        if not by_position:
            positions = [
                position for position, column in enumerate(columns) if column.dtype.kind in "iO"
            ]
            if len(positions) != len(boosting.categories):
                raise NotImplementedError(
                    "categories that are not separate columns of strings or integers"
                )
            by_position = dict(zip(positions, boosting.categories, strict=True))
        for position, categories in by_position.items():
            names = np.array(categories, object)
            codes = np.where([*map(is_missing, names)], np.nan, np.arange(len(names)))
            columns[position] = encoded(columns[position], names, codes.tolist(), unknown=np.nan)
        x = np.hstack([column.astype(dtype) for column in columns])
    else:
        x = rows.own if boosting.has_single_rows else rows.matrix
        x = x.astype(dtype)
        tested = [tree.feature[[*tree.members]] for tree in boosting.trees if tree.members]
        if tested:  # LightGBM and XGBoost truncate numbers to codes.
            is_code = np.isin(np.arange(x.sample.shape[1]), np.concatenate(tested))
            x = np.where(is_code, np.trunc(x), x)
    if np.isnan(boosting.missing):
        return x
    return np.where(x == boosting.missing, dtype(np.nan), x)


def _sums_of_trees(
    x: TracedArray, boosting: Boosting, write: WritesTrees = write_walk
) -> TracedArray:
    """Return the 32-bit sums [N, targets] of the trees' leaves."""
    sample = np.ones((len(x.sample), len(boosting.base)), np.float32)
    return Traced(x.graph, write(x.graph, x.name, boosting), sample)


def _sums(
    rows: Rows, trees: list[Tree], targets: list[int], write: WritesTrees = write_trees
) -> TracedArray:
    """Return the sums [N, targets] of the leaves of scikit-learn's trees, which read
    32-bit floats.

    Args:
        rows: the rows.
        trees: the trees.
        targets: the target of each tree.
        write: the function that adds the operators.
    """
    return _sums_of_trees(rows.own.astype(np.float32), _forest(trees, targets), write)


def _forest(trees: list[Tree], targets: list[int]) -> Boosting:
    """Return the sums of scikit-learn's trees."""
    return Boosting(
        trees=trees,
        targets=targets,
        base=np.zeros(max(targets) + 1),
        mode="BRANCH_LEQ",
        link="Identity",
        has_single_rows=True,
    )


def grown(model: Estimator, rows: Rows) -> Answer:
    """Return the prediction of a decision tree, or the mean of a forest or bag of
    trees. Trees read 32-bit floats.
    """
    forest = replace(forest_sums(model), is_single=not rows.is_double)
    sums = _sums_of_trees(rows.own.astype(np.float32), forest, write_trees)
    if not is_classifier(model):
        return sums
    if np.size(model.n_classes_) == 1:
        return largest(sums)
    labels = []
    start = 0
    for classes in model.classes_:
        end = start + len(classes)
        names = classes.astype(object) if classes.dtype.kind == "U" else classes
        labels.append(take(names, np.argmax(sums[:, start:end], axis=1)))
        start = end
    return np.column_stack(labels)


def forest_sums(model: Estimator) -> Boosting:
    """Return the trees of a decision tree, forest or bag of trees, whose sums are the
    means of the predictions, or of the probabilities of all targets.
    """
    members = getattr(model, "estimators_", [model])
    member_columns = getattr(model, "estimators_features_", [None] * len(members))
    if is_classifier(model):
        sizes = np.ravel(model.n_classes_).tolist()
    else:
        sizes = [1] * members[0].n_outputs_  # one number per target
    trees: list[Tree] = []
    for member, columns in zip(members, member_columns, strict=True):
        # The values of a tree are its predictions or probabilities, [all sizes, nodes].
        leaves = [member.tree_.value[:, output, :size] for output, size in enumerate(sizes)]
        if is_classifier(member):
            leaves = [part / part.sum(axis=1, keepdims=True) for part in leaves]
        values = np.hstack(leaves).T / len(members)
        trees += [Tree.fitted(member.tree_, value, columns) for value in values]
    return _forest(trees, [*range(sum(sizes))] * len(members))


def adaptive_classes(model: ensemble.AdaBoostClassifier, rows: Rows) -> Answer:
    """Return the class positions, probabilities and scores by weighted votes: 1 for the
    member's class, and -1 / (C - 1) for every other class. Raises NotImplementedError
    for sums of probabilities (SAMME.R).
    """
    count = len(model.classes_)
    if getattr(model, "algorithm", "") == "SAMME.R":  # scikit-learn before 1.6
        raise NotImplementedError("AdaBoostClassifier with algorithm='SAMME.R'")
    weights = model.estimator_weights_[: len(model.estimators_)]
    is_class = _member_answers(model, rows)[:, None, :] == np.arange(count)[:, None]
    votes = is_class.astype(float) @ weights
    total = votes - (weights.sum() - votes) / (count - 1.0)
    total = total / model.estimator_weights_.sum()
    if count > 2:
        return np.argmax(total, axis=1), softmax(total / (count - 1.0)), total
    score = total[:, 1] - total[:, 0]
    position = (score > 0).astype(np.int64)
    return position, softmax(np.column_stack([-score, score]) / 2.0), score


def adaptive_values(model: ensemble.AdaBoostRegressor, rows: Rows) -> TracedArray:
    """Return the weighted median of the members' predictions."""
    count = len(model.estimators_)
    values, members = smallest(_member_answers(model, rows), count)
    up_to_here = take(model.estimator_weights_, members) @ np.triu(np.ones((count, count)))
    is_half = up_to_here >= 0.5 * up_to_here[:, -1:]
    median = np.argmax(is_half.astype(np.int64), axis=1)  # the first position of half
    return np.where(median[:, None] == np.arange(count), values, 0.0).sum(axis=1)


def _member_answers(model: Estimator, rows: Rows) -> TracedArray:
    """Return the members' predictions [N, members]: class positions for a classifier.
    Raises NotImplementedError for members that are not trees.
    """
    trees = []
    for member in model.estimators_:
        if not is_tree(member):
            raise NotImplementedError(f"AdaBoost of {type(member).__name__}, which is not a tree")
        values = member.tree_.value[:, 0, :]
        leaves = values[:, 0]
        if is_classifier(model):
            codes = np.searchsorted(model.classes_, member.classes_).astype(float)
            leaves = codes[values.argmax(axis=1)]
        trees.append(Tree.fitted(member.tree_, leaves))
    return _sums(rows, trees, [*range(len(trees))]).astype(float)


def embedded(model: ensemble.RandomTreesEmbedding, rows: Rows) -> TracedArray:
    """Return 1 in the column of the leaf that a row reaches in each tree, and 0 in the
    columns of other leaves.
    """
    trees = []
    for member in model.estimators_:
        trees.append(Tree.fitted(member.tree_, np.arange(member.tree_.node_count)))
    reached = _sums(rows, trees, [*range(len(trees))])
    leaves = model.one_hot_encoder_.categories_
    tree_of_leaf = np.repeat(range(len(trees)), [*map(len, leaves)])
    return (reached[:, tree_of_leaf] == np.concatenate(leaves)).astype(float)


def isolated(model: ensemble.IsolationForest, rows: Rows) -> TracedArray:
    """Return 1 for an inlier, otherwise -1. skl2onnx's graph of 500 trees took minutes
    to load.
    """
    members = zip(
        model.estimators_,
        model.estimators_features_,
        model._decision_path_lengths,
        model._average_path_length_per_tree,
        strict=True,
    )
    trees = [
        Tree.fitted(member.tree_, depth + depth_below - 1.0, columns)
        for member, columns, depth, depth_below in members
    ]
    # The score is -(2 ** (-depths / scale)). Compare depths, so that a row at the
    # offset remains an inlier.
    scale = len(trees) * _average_path_length([model._max_samples])[0]
    offset = model.offset_
    least = -scale * np.log2(-offset) if offset < 0 else np.inf
    depths = _sums(rows, trees, [0] * len(trees), write=write_walk).reshape(-1)
    return np.where(depths >= np.float32(least), 1, -1)


FORMULAS: dict[type, Formula] = {
    ensemble.AdaBoostClassifier: adaptive_classes,
    ensemble.AdaBoostRegressor: adaptive_values,
    ensemble.GradientBoostingClassifier: boosted,
    ensemble.GradientBoostingRegressor: boosted,
    ensemble.HistGradientBoostingClassifier: boosted,
    ensemble.HistGradientBoostingRegressor: boosted,
    NativeBooster: boosted,
    DecisionTreeClassifier: grown,
    DecisionTreeRegressor: grown,
    ExtraTreeClassifier: grown,
    ExtraTreeRegressor: grown,
    ensemble.RandomForestClassifier: grown,
    ensemble.RandomForestRegressor: grown,
    ensemble.ExtraTreesClassifier: grown,
    ensemble.ExtraTreesRegressor: grown,
    ensemble.RandomTreesEmbedding: embedded,
    ensemble.IsolationForest: isolated,
    TreeFeatures: tree_features,
}

FORESTS = tuple(kind for kind, formula in FORMULAS.items() if formula is grown)
"""The estimators whose predictions are the means of trees."""
