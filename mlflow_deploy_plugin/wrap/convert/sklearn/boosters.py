"""Convert the trees of XGBoost, LightGBM and CatBoost to one ONNX node, with the float
types of the library.

Features and thresholds have the same type.

| library  | features | comparison | sums    | a missing value                        |
|----------|----------|------------|---------|----------------------------------------|
| XGBoost  | 32 bits  | x < t      | 32 bits | follows the node's default direction   |
| LightGBM | 64 bits  | x <= t     | 64 bits | follows the default direction, or is 0 |
| CatBoost | 32 bits  | x > t      | 64 bits | is below or above all borders          |

XGBoost's JSON is specified at
https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise, product
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.ensemble._gb import BaseGradientBoosting

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.batch import ModelData
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import (
    Estimator,
    library_of,
    sub_estimators,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.trees import (
    Boosting,
    Node,
    Tree,
    gradient_boosting,
    histogram_boosting,
    leaf,
)

Document: TypeAlias = Mapping[str, Any]
"""A model, a tree or a node in the JSON of its library."""


class NativeBooster(BaseEstimator):  # type: ignore[misc]
    """An estimator interface for a booster of XGBoost's or LightGBM's native API."""

    def __init__(self, native_booster: Estimator) -> None:
        self.native_booster = native_booster

    @property
    def booster_(self) -> Estimator:
        return self.native_booster

    def predict(self, rows: ModelData) -> Array:
        if library_of(self) == "xgboost":
            rows = sys.modules["xgboost"].DMatrix(rows, enable_categorical=True)
        return np.asarray(self.native_booster.predict(rows))


def as_estimator(model: Estimator) -> Estimator:
    """Return a native booster as an estimator, and other models unchanged."""
    if library_of(model) and type(model).__name__ == "Booster":
        return NativeBooster(model)
    return model


def with_category_names(model: Estimator, example: pd.DataFrame) -> Estimator:
    """Return the model, or a copy in which XGBoost's estimators have the categories of
    the example's columns as strings.
    """
    columns = example.select_dtypes("category")
    names = [tuple(map(str, series.cat.categories)) for _, series in columns.items()]
    named = {}
    for part in sub_estimators(model):
        if library_of(part) == "xgboost":
            named[id(part)] = copy(part)
            named[id(part)].category_names = names
    return deepcopy(model, named) if named else model


def read_boosting(estimator: Estimator) -> Boosting:
    """Return the trees of a fitted booster, or of scikit-learn's gradient boosting.
    Raises NotImplementedError for unsupported categories or objectives.
    """
    if hasattr(estimator, "_predictors"):
        return histogram_boosting(estimator)
    if isinstance(estimator, BaseGradientBoosting):
        return gradient_boosting(estimator)
    return _READERS[library_of(estimator)](estimator)


def _read_xgboost(model: Estimator) -> Boosting:
    """Return the trees of a native booster, or of an estimator up to the round at which
    it was stopped early. Raises NotImplementedError for unsupported objectives or
    categories.
    """
    is_native = isinstance(model, NativeBooster)
    booster = model.native_booster if is_native else model.get_booster()
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    outer = learner["gradient_booster"]
    # DART before 3.4 nests the model, and has the weights beside it.
    document: dict[str, Any] = outer.get("gbtree", outer).get("model")
    document["weight_drop"] = (
        outer.get("weight_drop")
        or document.get("weight_drop")
        or [1.0] * len(document.get("trees", ()))
    )
    document["objective"] = learner["objective"]["name"]
    link = _XGBOOST_LINKS.get(document["objective"])
    if link is None:
        raise NotImplementedError(f"the objective {document['objective']}")
    rounds = 0
    if document.get("trees") and not is_native and model.early_stopping_rounds is not None:
        rounds = model.best_iteration + 1
    trees = [*_xgboost_trees(document, rounds)]
    margin = _base_margin(booster, rounds, trees)
    if link == "Sigmoid" and len(margin) > 1 and hasattr(model, "classes_"):
        raise NotImplementedError("several labels per row")
    encoded = {
        position: entry
        for position, entry in enumerate(document.get("cats", {}).get("enc", []))
        if entry["values"]
    }
    return Boosting(
        trees=[entry.tree for entry in trees],
        targets=[entry.target for entry in trees],
        base=margin,
        mode="BRANCH_LT",
        link=link,
        is_single=True,
        has_single_rows=True,
        missing=np.nan if is_native else float(model.missing),
        categories=tuple(_xgboost_categories(entry, model) for entry in encoded.values()),
        category_columns=tuple(encoded),
        # The slopes [features, targets] of gblinear. The last row is the bias.
        lines=np.reshape(document.get("weights", []), (-1, len(margin)))[:-1],
    )


class _TargetTree(NamedTuple):
    """A tree with one value per leaf, its target, and the position of the tree in the
    document that it was read from.
    """

    tree: Tree
    target: int
    position: int


def _base_margin(booster: Estimator, rounds: int, trees: list[_TargetTree]) -> Array:
    """Return the base score of each target, [targets] float64.

    XGBoost versions store the score in different fields. The score is also a row's
    margin minus its leaf values.

    Args:
        booster: the native booster.
        rounds: the number of rounds that predictions use; 0 stands for all rounds.
        trees: the trees of these rounds.
    """
    used_rounds = (0, rounds)
    row = sys.modules["xgboost"].DMatrix(
        np.full((1, booster.num_features()), np.nan), feature_names=booster.feature_names
    )
    predicted = booster.predict(row, output_margin=True, iteration_range=used_rounds)
    margin = np.ravel(predicted).astype(float)
    if not trees:
        return margin
    leaves = np.ravel(booster.predict(row, pred_leaf=True, iteration_range=used_rounds))
    leaves = leaves.astype(int)
    for entry in trees:
        margin[entry.target] -= entry.tree.value[leaves[entry.position]]
    return margin


def _xgboost_trees(document: Document, rounds: int) -> Iterator[_TargetTree]:
    """Yield the trees of the first rounds, or of all for 0: several for a document's
    tree with several values per leaf.
    """
    entries = document.get("trees", [])
    if rounds:
        entries = entries[: document["iteration_indptr"][rounds]]
    for position, entry in enumerate(entries):
        left = np.array(entry["left_children"])
        right = np.array(entry["right_children"])
        values = np.array([entry["split_conditions"]], dtype=np.float32)
        targets = [int(document["tree_info"][position])]
        width = int(entry["tree_param"]["size_leaf_vector"])
        if width > 1:
            # A leaf stores the index of its values in `right_children`.
            values = np.array(entry["leaf_weights"], dtype=np.float32).reshape(-1, width)
            values = values[np.where(left < 0, right, 0)].T
            targets = [*range(width)]
        segments = zip(
            entry["categories_nodes"],
            entry["categories_segments"],
            entry["categories_sizes"],
            strict=True,
        )
        is_swapped = np.isin(np.arange(len(left)), entry["categories_nodes"])
        # XGBoost sends members to the right, a `Tree` to the left.
        tree = Tree(
            feature=np.array(entry["split_indices"]),
            threshold=np.array(entry["split_conditions"], dtype=np.float32),
            left=np.where(is_swapped, right, left),
            right=np.where(is_swapped, left, right),
            default_left=np.array(entry["default_left"], dtype=bool) ^ is_swapped,
            value=values[0],
            members={
                node: entry["categories"][start : start + size] for node, start, size in segments
            },
        )
        values = values * np.float32(document["weight_drop"][position])
        for target, value in zip(targets, values, strict=True):
            yield _TargetTree(replace(tree, value=value), target, position)


def _xgboost_categories(encoded: Document, model: Estimator) -> tuple[str | int, ...]:
    """Return the categories of a column. XGBoost 3.2 stores as many bytes as the joined
    strings have characters, so that non-ASCII strings are read from the example.

    Args:
        encoded: the categories in the JSON of XGBoost.
        model: the estimator, which may have the categories of each column of the
            example.
    """
    if "offsets" not in encoded:
        return tuple(encoded["values"])  # integer categories
    stored = bytes(code % 256 for code in encoded["values"])
    slices = [stored[start:end] for start, end in pairwise(encoded["offsets"])]
    if stored.isascii():
        return tuple(map(bytes.decode, slices))
    if len(set(slices)) < len(slices):
        raise NotImplementedError("non-ASCII categories that XGBoost itself mixes up")
    examples: Sequence[tuple[str, ...]] = getattr(model, "category_names", ())
    for names in examples:
        if len(names) == len(slices) and "".join(names).encode().startswith(stored):
            return names
    raise NotImplementedError("non-ASCII categories that are not those of the example")


_XGBOOST_LINKS = {
    **dict.fromkeys(
        (
            "reg:squarederror",
            "reg:absoluteerror",
            "reg:pseudohubererror",
            "reg:quantileerror",
            "reg:squaredlogerror",
            "rank:ndcg",
            "rank:map",
            "rank:pairwise",
            "binary:logitraw",
        ),
        "Identity",
    ),
    "binary:logistic": "Sigmoid",
    "reg:logistic": "Sigmoid",
    "count:poisson": "Exp",
    "reg:gamma": "Exp",
    "reg:tweedie": "Exp",
    "survival:cox": "Exp",
    "survival:aft": "Exp",
    "multi:softprob": "Softmax",
}


def _read_lightgbm(model: Estimator) -> Boosting:
    """Return the trees of a native booster or an estimator of LightGBM. Raises
    NotImplementedError for unsupported objectives or categories.
    """
    # After early stopping, the dump ends at the best iteration.
    document = model.booster_.dump_model()
    link, scale = _lightgbm_objective(document)
    kinds: dict[tuple[int, bool], int] = {}
    width = document["num_tree_per_iteration"]
    trees = []
    targets = []
    for index, entry in enumerate(document["tree_info"]):
        reader = _LightgbmTree(scale, kinds)  # The reader adds to `kinds`.
        reader.add(entry["tree_structure"])
        for kind, tree in reader.by_kind():
            trees.append(tree)
            targets.append(kind * width + index % width)
    # The categories of each pandas column.
    document["pandas_categorical"] = document["pandas_categorical"] or []
    if {*map(type, chain.from_iterable(document["pandas_categorical"]))} - {str, int, bool}:
        raise NotImplementedError(
            "categories that are neither strings nor integers (categorical_feature)"
        )
    return Boosting(
        trees=trees,
        targets=targets,
        base=np.zeros(width),
        mode="BRANCH_LEQ",
        link=link,
        categories=tuple(map(tuple, document["pandas_categorical"])),
        slopes=tuple(kind[0] for kind in kinds),
    )


def _lightgbm_objective(document: Document) -> tuple[str, float]:
    """Return the link of the objective, and the factor of the leaves below the link.
    Raises NotImplementedError if the objective is not supported.
    """
    name, *parameters = (document.get("objective") or "custom").split()
    options = {}
    for parameter in parameters:  # for example "sigmoid:1" or "sqrt"
        option, _, value = parameter.partition(":")
        options[option] = value
    link = _LIGHTGBM_LINKS.get(name)
    if link is None or "sqrt" in options:
        objective = " ".join([name, *parameters])
        raise NotImplementedError(f"the objective {objective}")
    scale = 1.0
    if link == "Sigmoid":
        scale = float(options.get("sigmoid", 1.0))
    if document["average_output"]:
        scale /= max(1, len(document["tree_info"]) // document["num_tree_per_iteration"])
    return link, scale


@dataclass(frozen=True)
class _LightgbmTree:
    """A tree that is read node by node.

    Attributes:
        scale: the factor of the leaves.
        kinds: the kind of the slopes of each feature and sign, for all trees. Negative
            slopes are a separate kind: for an infinite feature, the sum of positive and
            negative slopes would be NaN.
        slopes: for each kind, the slopes by the position of their leaf.
    """

    scale: float
    kinds: dict[tuple[int, bool], int]
    rows: list[Node] = field(default_factory=list)
    members: dict[int, list[int]] = field(default_factory=dict)
    slopes: dict[int, dict[int, float]] = field(default_factory=dict)

    def by_kind(self) -> Iterator[tuple[int, Tree]]:
        """Yield (kind, tree) pairs. Kind 0 contains the constants of leaves, and any
        other kind slopes of a feature.
        """
        tree = Tree.of(self.rows, self.members)
        yield 0, tree
        for kind, slopes in sorted(self.slopes.items()):
            value = np.bincount([*slopes], [*slopes.values()], len(self.rows))
            yield kind, replace(tree, value=value)

    def add(self, node: Document) -> int:
        """Add a node and the nodes below it, and return the node's position."""
        position = len(self.rows)
        if "leaf_value" in node:
            features = node.get("leaf_features", ())
            # A row with a missing feature goes right, to a leaf with `leaf_value`.
            for feature in features:
                left = len(self.rows) + 2
                self.rows.append(Node(feature, np.inf, left, right=left - 1, default_left=False))
                self.rows.append(leaf(node["leaf_value"] * self.scale))
            for feature, slope in zip(features, node.get("leaf_coeff", ()), strict=True):
                kind = self.kinds.setdefault((feature, slope < 0), len(self.kinds) + 1)
                self.slopes.setdefault(kind, {})[len(self.rows)] = slope * self.scale
            self.rows.append(leaf(node.get("leaf_const", node["leaf_value"]) * self.scale))
            return position
        if node["decision_type"] == "==":  # Missing and unknown categories go right.
            self.members[position] = [int(code) for code in node["threshold"].split("||")]
            node = {**node, "threshold": 0.0, "default_left": False, "missing_type": "NaN"}
        zero_goes_left = bool(node["threshold"] >= 0)
        if node["missing_type"] == "None":  # LightGBM reads missing values as 0.
            default_left = zero_goes_left
        else:
            default_left = bool(node["default_left"])
            if node["missing_type"] == "Zero" and default_left != zero_goes_left:
                raise NotImplementedError("trees in which 0 counts as missing (zero_as_missing)")
        self.rows.append(leaf())  # The positions of the children follow.
        left = self.add(node["left_child"])
        right = self.add(node["right_child"])
        threshold = node["threshold"]
        if abs(threshold) <= _LIGHTGBM_ZERO:  # LightGBM reads numbers near 0 as 0.
            threshold = _LIGHTGBM_ZERO if zero_goes_left else _LIGHTGBM_BELOW_ZERO
        self.rows[position] = Node(node["split_feature"], threshold, left, right, default_left)
        return position


_LIGHTGBM_ZERO = float(np.float32(1e-35))
"""LightGBM's kZeroThreshold."""
_LIGHTGBM_BELOW_ZERO = float(np.nextafter(-_LIGHTGBM_ZERO, -np.inf))
_LIGHTGBM_LINKS = {
    **dict.fromkeys(
        (
            "regression",
            "regression_l1",
            "huber",
            "fair",
            "quantile",
            "mape",
            "lambdarank",
            "rank_xendcg",
        ),
        "Identity",
    ),
    "poisson": "Exp",
    "gamma": "Exp",
    "tweedie": "Exp",
    "binary": "Sigmoid",
    "multiclassova": "Sigmoid",
    "cross_entropy": "Sigmoid",
    "multiclass": "Softmax",
}


def _read_catboost(model: Estimator) -> Boosting:
    """Return the trees of a CatBoost estimator: each tree of the model once per
    target.
    """
    with tempfile.TemporaryDirectory(prefix="onnxserve-") as folder:
        path = Path(folder) / "model.json"
        model.save_model(str(path), format="json")
        document = json.loads(path.read_text())
    described = document["features_info"]
    other_kinds = [
        kind for kind in sorted(described) if kind != "float_features" and described[kind]
    ]
    if other_kinds:
        raise NotImplementedError(f"features that are not numbers ({', '.join(other_kinds)})")
    features = {entry["feature_index"]: entry for entry in described["float_features"]}
    # A loss may have parameters ("Quantile:alpha=0.1").
    loss = str(model.get_all_params().get("loss_function", "RMSE")).partition(":")[0]
    if loss not in _CATBOOST_LINKS:
        raise NotImplementedError(f"the loss {loss}")
    scale, base = document["scale_and_bias"]
    targets = range(len(base))
    roots = document.get("trees") or [*map(_nest_levels, document["oblivious_trees"])]
    trees = [
        _catboost_tree(root, target, scale, features) for root, target in product(roots, targets)
    ]
    return Boosting(
        trees=trees,
        targets=[*targets] * len(roots),
        base=np.array(base, dtype=np.float64).reshape(len(base)),
        mode="BRANCH_LEQ",
        link=_CATBOOST_LINKS[loss],
        has_single_rows=True,
    )


def _nest_levels(tree: Document) -> Document:
    """Convert a symmetric tree, which has one split per level, to nested nodes. The
    last split is at the root.
    """
    leaves = np.array(tree["leaf_values"]).reshape(2 ** len(tree["splits"]), -1)
    level: list[Document] = [{"value": values} for values in leaves]
    for split in tree["splits"]:
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [{"split": split, "left": left, "right": right} for left, right in pairs]
    return level[0]


def _catboost_tree(
    root: Document, target: int, scale: float, features: dict[int, Document]
) -> Tree:
    """Return a tree with the values of one target. A row above the border goes right.

    Args:
        root: the root in the JSON of CatBoost.
        target: the position of the target in the values of a leaf.
        scale: the factor of the leaves.
        features: the descriptions of the features by their index.
    """
    rows: list[Node] = []

    def add(node: Document) -> int:
        """Add a node and the nodes below it, and return the node's position."""
        position = len(rows)
        if "split" not in node:
            rows.append(leaf(float(np.ravel(node["value"])[target]) * scale))
            return position
        rows.append(leaf())  # The positions of the children follow.
        left = add(node["left"])
        right = add(node["right"])
        feature = features[node["split"]["float_feature_index"]]
        rows[position] = Node(
            feature=feature["flat_feature_index"],
            threshold=node["split"]["border"],
            left=left,
            right=right,
            default_left=feature["nan_value_treatment"] != "AsTrue",
        )
        return position

    add(root)
    return Tree.of(rows)


_CATBOOST_LINKS = {
    **dict.fromkeys(
        (
            "RMSE",
            "MAE",
            "Quantile",
            "MAPE",
            "Huber",
            "Expectile",
            "LogCosh",
            "MultiRMSE",
            "YetiRank",
            "PairLogit",
            "QueryRMSE",
            "QuerySoftMax",
            "YetiRankPairwise",
        ),
        "Identity",
    ),
    "Poisson": "Exp",
    "Tweedie": "Exp",
    "Logloss": "Sigmoid",
    "CrossEntropy": "Sigmoid",
    "MultiClassOneVsAll": "Sigmoid",
    "MultiClass": "Softmax",
}

_READERS = {"xgboost": _read_xgboost, "lightgbm": _read_lightgbm, "catboost": _read_catboost}
