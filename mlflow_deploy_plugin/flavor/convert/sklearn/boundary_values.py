"""The boundary values of a fitted estimator, from which the proof makes rows that no example shows.

Values of a later step are traced back (`_back`) through steps that turn one column into one column.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.isotonic import IsotonicRegression
from sklearn.naive_bayes import BernoulliNB
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import Binarizer, KBinsDiscretizer, QuantileTransformer, SplineTransformer

from mlflow_deploy_plugin.flavor.convert.converted import MAX_VALUES, BoundaryValues
from mlflow_deploy_plugin.flavor.convert.sklearn import estimators
from mlflow_deploy_plugin.flavor.convert.sklearn.boosters import read_boosting
from mlflow_deploy_plugin.flavor.convert.sklearn.estimators import Estimator, best_estimator
from mlflow_deploy_plugin.flavor.convert.sklearn.formulas.features import SCALERS
from mlflow_deploy_plugin.flavor.convert.sklearn.stand_ins import AdditiveModel, Computed
from mlflow_deploy_plugin.flavor.convert.sklearn.trees import categories_of, histogram_boosting, rounded_down
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.runtime.feeds import Array

_ROWS = (
    *("_fit_X", "X_fit_", "X_", "X_train_", "support_vectors_"),
    *("cluster_centers_", "subcluster_centers_", "centroids_"),
)
"""Attributes with rows from which predictions are computed."""

_MAX_ROW_SETS = 3


_Value = TypeVar("_Value")


@dataclass
class _Collected:
    """Boundary values: the kind (a field of `BoundaryValues`), the position of the input column, and the values."""

    values: list[tuple[str, int, Any]] = field(default_factory=list)
    rows: list[dict[int, Array]] = field(default_factory=list)

    def add(self, other: "_Collected") -> None:
        self.values += other.values
        self.rows += other.rows[: _MAX_ROW_SETS - len(self.rows)]

    def at(self, positions: Iterable[int]) -> "_Collected":
        """Return the same for a table with each column at its new position; columns without one are dropped."""
        new = {old: int(position) for old, position in enumerate(positions)}
        moved = [(kind, new[old], values) for kind, old, values in self.values if old in new]
        rows = [{new[old]: values for old, values in one.items() if old in new} for one in self.rows]
        return _Collected(moved, [one for one in rows if one])

    def of(self, kind: str) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = {}
        for one, position, values in self.values:
            if one == kind:
                found.setdefault(position, []).append(values)
        return found


def boundary_values_of(fitted: Estimator, names: list[str]) -> BoundaryValues:
    """Return the values that can be traced back to the columns; `left_out` names the steps that raised an error."""
    left_out: dict[str, str] = {}
    found = _known(fitted, left_out)

    def named(values: dict[int, _Value]) -> dict[str, _Value]:
        return {names[position]: value for position, value in values.items() if position < len(names)}

    edges, categories, texts = (named(found.of(kind)) for kind in ("edges", "categories", "texts"))
    return BoundaryValues(
        edges={name: _some(np.unique(np.concatenate(parts))) for name, parts in edges.items()},
        categories={name: tuple(_some(list(chain(*parts)))) for name, parts in categories.items()},
        texts={name: tuple(_some(sorted(chain(*parts), key=str.isascii))) for name, parts in texts.items()},
        rows=tuple(named(rows) for rows in found.rows if named(rows)),
        left_out=left_out,
    )


def _known(estimator: Estimator, left_out: dict[str, str]) -> _Collected:
    estimator = best_estimator(estimator)
    if not isinstance(estimator, Pipeline):
        return _or_none(estimator, left_out, partial(_of_parts, estimator, left_out))
    found = _known(estimator.steps[-1][1], left_out)
    for _, step in reversed(estimator.steps[:-1]):
        found = _or_none(step, left_out, partial(_back, step, found))
        found.add(_known(step, left_out))
    return found


def _or_none(step: Estimator, left_out: dict[str, str], read: Callable[[], _Collected]) -> _Collected:
    """Return the values that `read` finds in a step, or none, with its error in `left_out`; the proof gets weaker."""
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - estimators raise anything
        left_out[f"boundary values of {type(step).__name__}"] = one_line(error)
        return _Collected()


def _of_parts(estimator: Estimator, left_out: dict[str, str]) -> _Collected:
    found = _own(estimator)
    for part, positions in _inner(estimator):
        known = _known(part, left_out)
        found.add(known if positions is None else known.at(positions))
    return found


def _inner(estimator: Estimator) -> Iterator[tuple[Estimator, Iterable[int] | None]]:
    """Yield the estimators within one, each with the positions of its columns, or None if it reads all."""
    if isinstance(estimator, ColumnTransformer):
        yield from ((step, positions) for _, step, positions in estimators.named_steps(estimator))
    elif isinstance(estimator, FeatureUnion):
        yield from ((step, None) for _, step in estimator.transformer_list)
    else:
        # boosting has its trees in an array; a member of a bag may read only some of the columns
        members = list(np.ravel(np.array(getattr(estimator, "estimators_", []), dtype=object)))
        features = getattr(estimator, "estimators_features_", [None] * len(members))
        yield from zip(members, features, strict=False)
        yield from ((part.estimator, None) for part in getattr(estimator, "calibrated_classifiers_", []))
        if hasattr(estimator, "estimator_") and not members and not hasattr(estimator, "support_"):
            yield estimator.estimator_, None  # of an ensemble, it is what its members were cloned from
        if hasattr(estimator, "regressor_"):
            yield estimator.regressor_, None


def _own(estimator: Estimator) -> _Collected:
    found = _Collected()
    splits: Mapping[int, Array] = {}
    if estimators.library_of(estimator):
        boosting = read_boosting(estimator)
        splits = boosting.edges()
        found.values += [
            ("categories", *known) for known in zip(boosting.category_columns, boosting.categories, strict=False)
        ]
    elif estimators.is_tree(estimator):
        inner = estimator.tree_.feature >= 0
        features, edges = estimator.tree_.feature[inner], estimator.tree_.threshold[inner]
        splits = {int(feature): edges[features == feature] for feature in np.unique(features)}
    elif hasattr(estimator, "_predictors"):
        splits = histogram_boosting(estimator).edges()
    found.values += _beside_thresholds(splits)
    for kind, edges_of in _EDGES.items():
        if isinstance(estimator, kind):
            known = enumerate(edges_of(estimator))
            found.values += [("edges", position, np.asarray(edges, float)) for position, edges in known if len(edges)]
    if hasattr(estimator, "categories_"):
        found.values += [("categories", position, values) for position, values in enumerate(estimator.categories_)]
    if hasattr(estimator, "_predictors"):
        found.values += [("categories", position, values) for position, values in categories_of(estimator).items()]
    if isinstance(estimator, CountVectorizer):
        found.values.append(("texts", 0, estimator.vocabulary_))
    for rows in (getattr(estimator, name, None) for name in _ROWS):
        if isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.dtype.kind == "f" and len(rows):
            found.rows.append(dict(enumerate(_some(rows).T)))
    return found


def _beside_thresholds(splits: Mapping[int, Array]) -> Iterator[tuple[str, int, Array]]:
    for feature, values in splits.items():
        # an infinite threshold separates missing values from all numbers
        thresholds = np.asarray(values[np.abs(values) < np.finfo(np.float32).max], dtype=np.float64)
        if len(thresholds):
            # the comparison of a 32-bit rounding changes at the 64-bit number in the middle of two
            lower = rounded_down(thresholds)
            upper = np.nextafter(lower, np.float32(np.inf))
            middle = lower.astype(np.float64) / 2 + upper.astype(np.float64) / 2
            yield "edges", feature, np.concatenate([thresholds, middle])


_EDGES: dict[type, Callable[[Estimator], Iterable[Sequence[float] | Array]]] = {
    AdditiveModel: lambda model: [
        np.concatenate([[], *(cuts for place, cuts in model.cuts if place == position and cuts is not None)])
        for position in range(model.n_features_in_)
    ],
    KBinsDiscretizer: lambda bins: [edges[1:-1] for edges in bins.bin_edges_],
    # not the 0 of a divisor: the quotient by a 64-bit number next to it is none in 32 bits
    Computed: lambda step: step.edges or [[bound[0] for test, bound in (step.tests or {}).items() if test != "Equal"]],
    Binarizer: lambda step: [[step.threshold]] * step.n_features_in_,
    BernoulliNB: lambda step: [[] if step.binarize is None else [step.binarize]] * step.n_features_in_,
    QuantileTransformer: lambda step: step.quantiles_.T,
    IsotonicRegression: lambda step: [step.X_thresholds_],
    SplineTransformer: lambda step: [spline.t[spline.k : -spline.k or None] for spline in step.bsplines_],
}


def _back(step: Estimator, found: _Collected) -> _Collected:
    """Turn boundary values of a step's output into boundary values of its input."""
    if isinstance(step, Pipeline):
        for _, part in reversed(step.steps):
            found = _back(part, found)
        return found
    if isinstance(step, ColumnTransformer):
        return _back_columns(step, found)
    if isinstance(step, SCALERS):

        def inverse(position: int, values: Array) -> Array:
            matrix = np.zeros((len(values), step.n_features_in_))
            matrix[:, position] = values
            return np.asarray(step.inverse_transform(matrix)[:, position])

        edges = found.of("edges").items()
        values = [("edges", position, inverse(position, np.concatenate(parts))) for position, parts in edges]
        learned = [{position: inverse(position, column) for position, column in rows.items()} for rows in found.rows]
        return _Collected(values, learned)
    if hasattr(step, "get_support"):
        return found.at(np.flatnonzero(step.get_support()))
    return found if estimators.passes_on(step) or isinstance(step, SimpleImputer) else _Collected()


def _back_columns(transformer: ColumnTransformer, found: _Collected) -> _Collected:
    before = _Collected()
    learned: list[dict[int, Array]] = [{} for _ in found.rows]
    for name, step, inputs in estimators.named_steps(transformer):
        made = transformer.output_indices_[name]
        places = {position: place for place, position in enumerate(range(made.start, made.stop))}
        if len(places) != len(inputs):
            continue  # an encoder, which makes several columns of one
        inside = _Collected(
            [(kind, places[at], values) for kind, at, values in found.values if at in places],
            [{places[at]: values for at, values in rows.items() if at in places} for rows in found.rows],
        )
        back = _back(step, inside).at(inputs)
        for rows, known in zip(learned, back.rows, strict=False):
            rows.update(known)
        before.values += back.values
    before.rows = [rows for rows in learned if rows]
    return before


def _some(values: Any) -> Any:
    """Return at most `MAX_VALUES` of the values, evenly spread."""
    if len(values) <= MAX_VALUES:
        return values
    chosen = np.linspace(0, len(values) - 1, MAX_VALUES).astype(int)
    return values[chosen] if isinstance(values, np.ndarray) else [values[position] for position in chosen]
