"""Convert the trees of XGBoost, LightGBM and CatBoost to one ONNX node, with the float
types of the library.

| library  | features and thresholds | comparison | sums    | a missing value                                   |
|----------|-------------------------|------------|---------|---------------------------------------------------|
| XGBoost  | 32 bits                 | x < t      | 32 bits | follows the default direction of each node        |
| LightGBM | 64 bits                 | x <= t     | 64 bits | follows the default direction, or is read as 0    |
| CatBoost | 32 bits                 | x > t      | 64 bits | is below or above all borders of its feature      |

XGBoost's JSON is specified at
https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html.
"""  # noqa: E501

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from sklearn.base import BaseEstimator

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.batch import ModelData
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import Estimator, library_of
from mlflow_deploy_plugin.wrap.convert.sklearn.trees import LEAF, Boosting, Node, Tree

Document: TypeAlias = Mapping[str, Any]
"""A model, a tree or a node in the JSON of its library."""


class NativeBooster(BaseEstimator):  # type: ignore[misc]
    """An estimator interface for a booster of XGBoost's or LightGBM's native API."""

    def __init__(self, native_booster: Estimator) -> None:
        self.native_booster = native_booster

    def predict(self, rows: ModelData) -> Array:
        if library_of(self) == "xgboost":
            rows = sys.modules["xgboost"].DMatrix(rows, enable_categorical=True)
        return np.asarray(self.native_booster.predict(rows))


def as_estimator(model: Estimator) -> Estimator:
    """Return a native booster as an estimator, and other models unchanged."""
    if library_of(model) and type(model).__name__ == "Booster":
        return NativeBooster(model)
    return model


def read_boosting(estimator: Estimator) -> Boosting:
    """Return the trees of a fitted booster. Raises NotImplementedError for unsupported
    categories or objectives.
    """
    if isinstance(estimator, NativeBooster):
        booster = estimator.native_booster
    else:
        booster = estimator
    return _READERS[library_of(booster)](booster)


def _xgboost(model: Estimator) -> Boosting:
    booster = model if type(model).__name__ == "Booster" else model.get_booster()
    document = _read_xgboost(booster)
    link = _XGBOOST_LINKS.get(document.objective)
    if link is None:
        raise NotImplementedError(f"the objective {document.objective}")
    rounds = (0, 0)  # The value (0, 0) stands for all rounds.
    early = model is not booster and model.early_stopping_rounds is not None
    if document.trees and early:
        rounds = (0, model.best_iteration + 1)
        document = document.until(rounds[1])
    trees = document.read_trees()
    margin = _base_margin(booster, rounds, trees)
    if link == "Sigmoid" and len(margin) > 1 and hasattr(model, "classes_"):
        raise NotImplementedError("several labels per row")
    missing = np.nan if model is booster else float(model.missing)
    encoded = document.encoded_categories()
    return Boosting(
        [entry.tree for entry in trees],
        [entry.target for entry in trees],
        margin,
        "BRANCH_LT",
        link,
        True,
        True,
        missing,
        tuple(map(_xgboost_categories, encoded.values())),
        tuple(encoded),
        document.lines(len(margin)),
    )


@dataclass(frozen=True)
class _TargetTree:
    """A tree with one value per leaf, its target, and the position of the tree in the
    document that it was read from.
    """

    tree: Tree
    target: int
    position: int


@dataclass(frozen=True)
class _XgboostDocument:
    """The JSON of a booster.

    Attributes:
        content: the JSON of the trees or the linear weights.
        trees: the trees; gblinear has no trees.
        weights: the weight of each tree for DART, otherwise empty.
    """

    objective: str
    content: Document
    trees: Sequence[Document]
    weights: Sequence[float]

    def until(self, rounds: int) -> "_XgboostDocument":
        """Return the document with the trees of the first rounds."""
        return replace(self, trees=self.trees[: self.content["iteration_indptr"][rounds]])

    def read_trees(self) -> list[_TargetTree]:
        trees = []
        for position, document in enumerate(self.trees):
            weight = self.weights[position] if self.weights else 1.0
            default_target = int(self.content["tree_info"][position])
            for target, tree in _xgboost_trees(document, default_target, weight):
                trees.append(_TargetTree(tree, target, position))
        return trees

    def encoded_categories(self) -> dict[int, Document]:
        """Return the encoded categories by the position of their column."""
        columns = self.content.get("cats", {}).get("enc", [])
        return {index: entry for index, entry in enumerate(columns) if entry["values"]}

    def lines(self, targets: int) -> Array:
        """Return the slopes [features, targets] of gblinear. The last row is the
        bias.
        """
        return np.reshape(self.content.get("weights", []), (-1, targets))[:-1]


def _read_xgboost(booster: Estimator) -> _XgboostDocument:
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    outer = learner["gradient_booster"]
    content = outer.get("gbtree", outer).get("model")  # DART before 3.4 nests the model.
    # Only DART has weights. They are in `content` since 3.4.
    weights = outer.get("weight_drop") or content.get("weight_drop") or ()
    return _XgboostDocument(
        learner["objective"]["name"], content, content.get("trees", []), weights
    )


def _base_margin(booster: Estimator, rounds: tuple[int, int], trees: list[_TargetTree]) -> Array:
    """Return the base score of each target, [targets] float64.

    XGBoost versions store the score in different fields. The score is also a row's
    margin minus its leaf values.
    """
    row = sys.modules["xgboost"].DMatrix(
        np.full((1, booster.num_features()), np.nan),
        feature_names=booster.feature_names,
    )
    predicted = booster.predict(row, output_margin=True, iteration_range=rounds)
    margin = np.ravel(predicted).astype(np.float64)
    if not trees:
        return margin
    leaves = np.ravel(booster.predict(row, pred_leaf=True, iteration_range=rounds)).astype(int)
    for entry in trees:
        margin[entry.target] -= entry.tree.value[leaves[entry.position]]
    return margin


def _xgboost_trees(document: Document, target: int, weight: float) -> list[tuple[int, Tree]]:
    """Return (target, tree) pairs: one tree per value of a leaf. `target` is used if
    leaves have one value.
    """
    conditions = np.array(document["split_conditions"], dtype=np.float32)
    left = np.array(document["left_children"])
    right = np.array(document["right_children"])
    default_left = np.array(document["default_left"], dtype=bool)
    starts = document["categories_segments"]
    sizes = document["categories_sizes"]
    members = {
        node: document["categories"][start : start + size]
        for node, start, size in zip(document["categories_nodes"], starts, sizes, strict=True)
    }
    by_category = list(members)  # XGBoost sends members to the right, a `Tree` to the left.
    left[by_category], right[by_category] = right[by_category], left[by_category]
    default_left[by_category] = ~default_left[by_category]
    values = conditions[None]
    targets = [target]
    if (
        width := int(document["tree_param"]["size_leaf_vector"])
    ) > 1:  # A leaf stores its index in `right`.
        leaves = np.array(document["leaf_weights"], dtype=np.float32).reshape(-1, width)
        values = leaves[np.where(left < 0, right, 0)].T
        targets = list(range(width))
    feature = np.array(document["split_indices"])
    return [
        (target, Tree(feature, conditions, left, right, default_left, value, members))
        for target, value in zip(targets, values * np.float32(weight), strict=True)
    ]


def _xgboost_categories(encoded: Document) -> tuple[str | int, ...]:
    """Return the categories of a column. XGBoost stores strings as bytes, and 3.2
    truncates non-ASCII strings.
    """
    if "offsets" not in encoded:
        return tuple(encoded["values"])  # integer categories
    if min(encoded["values"], default=0) < 0 or max(encoded["values"], default=0) > 127:
        raise NotImplementedError("non-ASCII categories, which XGBoost truncates")
    text = bytes(encoded["values"]).decode()
    return tuple(text[start:end] for start, end in pairwise(encoded["offsets"]))


_XGBOOST_LINKS = {
    **dict.fromkeys(
        ("reg:squarederror", "reg:absoluteerror", "reg:pseudohubererror", "reg:quantileerror"),
        "Identity",
    ),
    **dict.fromkeys(
        ("rank:ndcg", "rank:map", "rank:pairwise", "binary:logitraw", "reg:squaredlogerror"),
        "Identity",
    ),
    **dict.fromkeys(("binary:logistic", "reg:logistic"), "Sigmoid"),
    **dict.fromkeys(
        ("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft"),
        "Exp",
    ),
    "multi:softprob": "Softmax",
}


def _lightgbm(model: Estimator) -> Boosting:
    booster = model if type(model).__name__ == "Booster" else model.booster_
    document = booster.dump_model()  # After early stopping, the dump ends at the best iteration.
    objective = _lightgbm_objective(document)
    width = document["num_tree_per_iteration"]
    scale = objective.scale
    if document["average_output"]:
        scale /= max(1, len(document["tree_info"]) // width)
    kinds: dict[tuple[int, bool], int] = {}
    trees = []
    targets = []
    for index, entry in enumerate(document["tree_info"]):
        for kind, tree in _lightgbm_trees(entry["tree_structure"], scale, kinds):
            trees.append(tree)
            targets.append(kind * width + index % width)
    return Boosting(
        trees,
        targets,
        np.zeros(width),
        "BRANCH_LEQ",
        objective.link,
        categories=_lightgbm_categories(document),
        slopes=tuple(feature for feature, _ in kinds),
    )


@dataclass(frozen=True)
class _LightgbmObjective:
    """The link of an objective, and the factor of the leaves below the link."""

    link: str
    scale: float


def _lightgbm_objective(document: Document) -> _LightgbmObjective:
    """Return the objective. Raises NotImplementedError if it is not supported."""
    name, *parameters = (document.get("objective") or "custom").split()
    options = dict(parameter.partition(":")[::2] for parameter in parameters)
    link = _LIGHTGBM_LINKS.get(name)
    if link is None or "sqrt" in options:
        raise NotImplementedError(f"the objective {' '.join([name, *parameters])}")
    scale = 1.0
    if link == "Sigmoid":
        scale = float(options.get("sigmoid", 1.0))
    return _LightgbmObjective(link, scale)


def _lightgbm_categories(document: Document) -> tuple[tuple[str | int, ...], ...]:
    """Return the categories of each categorical column. Raises NotImplementedError for
    categories that are neither strings nor integers.
    """
    columns = tuple(map(tuple, document["pandas_categorical"] or ()))
    for category in chain.from_iterable(columns):
        if not isinstance(category, str | int):
            raise NotImplementedError(
                "categories that are neither strings nor integers (categorical_feature)",
            )
    return columns


def _lightgbm_trees(
    root: Document,
    scale: float,
    kinds: dict[tuple[int, bool], int],
) -> list[tuple[int, Tree]]:
    """Return (kind, tree) pairs. Kind 0 contains the constants of leaves, and any other
    kind slopes of a feature.

    A feature's positive and negative slopes are separate kinds: for an infinite
    feature, their sum would be NaN.
    """
    rows: list[Node] = []
    members: dict[int, list[int]] = {}
    slopes: dict[int, dict[int, float]] = {}

    def add(node: Document) -> int:
        position = len(rows)
        if "leaf_value" in node:
            read = node.get("leaf_features", ())
            for feature in read:  # With a missing feature, LightGBM returns `leaf_value`.
                rows.append((feature, np.inf, len(rows) + 2, len(rows) + 1, False, 0.0))
                rows.append((0, 0.0, LEAF, LEAF, False, node["leaf_value"] * scale))
            for feature, slope in zip(read, node.get("leaf_coeff", ()), strict=True):
                kind = kinds.setdefault((feature, slope < 0), len(kinds) + 1)
                slopes.setdefault(kind, {})[len(rows)] = slope * scale
            rows.append(
                (0, 0.0, LEAF, LEAF, False, node.get("leaf_const", node["leaf_value"]) * scale),
            )
            return position
        if node["decision_type"] == "==":  # Missing and unknown categories go right.
            members[position] = [int(code) for code in node["threshold"].split("||")]
            node = {**node, "threshold": 0.0, "default_left": False, "missing_type": "NaN"}
        threshold = node["threshold"]
        kind = node["missing_type"]
        default_left = node["default_left"]
        if kind == "None":  # LightGBM reads missing values as 0.
            default_left = threshold >= 0
        elif kind == "Zero" and default_left != (threshold >= 0):
            raise NotImplementedError("trees in which 0 counts as missing (zero_as_missing)")
        if abs(threshold) <= _LIGHTGBM_ZERO:  # LightGBM reads numbers in this range as 0.
            if threshold >= 0:
                threshold = _LIGHTGBM_ZERO
            else:
                threshold = np.nextafter(-_LIGHTGBM_ZERO, -np.inf)
        rows.append((0, 0.0, 0, 0, False, 0.0))
        left = add(node["left_child"])
        right = add(node["right_child"])
        rows[position] = node["split_feature"], threshold, left, right, default_left, 0.0
        return position

    add(root)
    tree = Tree.of(rows, members)
    values = {
        kind: np.bincount([*coefficients], [*coefficients.values()], len(rows))
        for kind, coefficients in sorted(slopes.items())
    }
    return [(0, tree), *((kind, replace(tree, value=value)) for kind, value in values.items())]


_LIGHTGBM_ZERO = float(np.float32(1e-35))
"""LightGBM's kZeroThreshold."""
_LIGHTGBM_LINKS = {
    **dict.fromkeys(
        ("regression", "regression_l1", "huber", "fair", "quantile", "mape"),
        "Identity",
    ),
    **dict.fromkeys(("lambdarank", "rank_xendcg"), "Identity"),
    **dict.fromkeys(("poisson", "gamma", "tweedie"), "Exp"),
    **dict.fromkeys(("binary", "multiclassova", "cross_entropy"), "Sigmoid"),
    "multiclass": "Softmax",
}


def _catboost(model: Estimator) -> Boosting:
    with tempfile.TemporaryDirectory(prefix="onnxserve-") as folder:
        path = Path(folder) / "model.json"
        model.save_model(str(path), format="json")
        document = json.loads(path.read_text())
    features = document["features_info"]
    if kinds := sorted(
        kind for kind, entries in features.items() if kind != "float_features" and entries
    ):
        raise NotImplementedError(f"features that are not numbers ({', '.join(kinds)})")
    loss = str(model.get_all_params().get("loss_function", "RMSE")).partition(":")[0]
    link = _CATBOOST_LINKS.get(loss)
    if link is None:
        raise NotImplementedError(f"the loss {loss}")
    columns = {
        entry["feature_index"]: entry["flat_feature_index"] for entry in features["float_features"]
    }
    goes_left = {
        entry["feature_index"]: entry["nan_value_treatment"] != "AsTrue"
        for entry in features["float_features"]
    }
    scale, base = document["scale_and_bias"]
    width = len(base)
    roots = document.get("trees") or [*map(_nested, document["oblivious_trees"])]
    trees = [
        _catboost_tree(root, target, scale, columns, goes_left)
        for root in roots
        for target in range(width)
    ]
    targets = [*range(width)] * len(roots)
    return Boosting(
        trees,
        targets,
        np.array(base, dtype=np.float64).reshape(width),
        "BRANCH_LEQ",
        link,
        False,
        True,
    )


def _nested(tree: Document) -> Document:
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
    root: Document,
    target: int,
    scale: float,
    columns: dict[int, int],
    goes_left: dict[int, bool],
) -> Tree:
    """Return a tree with the values of one target. A row above the border goes
    right.
    """
    rows: list[Node] = []

    def add(node: Document) -> int:
        position = len(rows)
        # placeholder, since a node precedes its children
        rows.append((0, 0.0, LEAF, LEAF, False, 0.0))
        if "split" in node:
            feature = node["split"]["float_feature_index"]
            left = add(node["left"])
            right = add(node["right"])
            rows[position] = (
                columns[feature],
                node["split"]["border"],
                left,
                right,
                goes_left[feature],
                0.0,
            )
        else:
            rows[position] = (
                0,
                0.0,
                LEAF,
                LEAF,
                False,
                float(np.ravel(node["value"])[target]) * scale,
            )
        return position

    add(root)
    return Tree.of(rows)


_CATBOOST_LINKS = {
    **dict.fromkeys(
        ("RMSE", "MAE", "Quantile", "MAPE", "Huber", "Expectile", "LogCosh", "MultiRMSE"),
        "Identity",
    ),
    **dict.fromkeys(
        ("YetiRank", "PairLogit", "QueryRMSE", "QuerySoftMax", "YetiRankPairwise"),
        "Identity",
    ),
    **dict.fromkeys(("Poisson", "Tweedie"), "Exp"),
    **dict.fromkeys(("Logloss", "CrossEntropy", "MultiClassOneVsAll"), "Sigmoid"),
    "MultiClass": "Softmax",
}

_READERS = {"xgboost": _xgboost, "lightgbm": _lightgbm, "catboost": _catboost}
