"""The boundary values of a fitted estimator, from which the parity check generates
rows.

Values of a later step are traced back (`_back`) through steps that map each column to
one column.
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
from sklearn.preprocessing import (
    Binarizer,
    KBinsDiscretizer,
    QuantileTransformer,
    SplineTransformer,
)

from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.converted import MAX_VALUES, BoundaryValues
from mlflow_deploy_plugin.wrap.convert.sklearn.boosters import read_boosting
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import (
    Estimator,
    best_estimator,
    is_tree,
    library_of,
    named_steps,
    passes_on,
    sub_estimators,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.features import SCALERS
from mlflow_deploy_plugin.wrap.convert.sklearn.stand_ins import AdditiveModel, Computed
from mlflow_deploy_plugin.wrap.convert.sklearn.trees import (
    categories_of,
    histogram_boosting,
    rounded_down,
)

_ROWS = (
    "_fit_X",
    "X_fit_",
    "X_",
    "X_train_",
    "support_vectors_",
    "cluster_centers_",
    "subcluster_centers_",
    "centroids_",
)
"""Attributes with training rows that predictions are computed from."""

_FARTHEST = {
    "_fit_X": 1e4,
    "cluster_centers_": 1e9,
    "subcluster_centers_": 1e9,
    "centroids_": 1e9,
    "means_": 1e9,
}
"""The largest magnitude by attribute. Farther away, distances are equal in 64 bits, and
rounding decides.
"""

_MAX_ROW_SETS = 3

_Value = TypeVar("_Value")
_Entry = tuple[str, int, Any]
"""Boundary values: their kind, which is a field of `BoundaryValues`, the position of
the input column, and the values.
"""


@dataclass
class _Collected:
    """The boundary values of columns, and sets of training rows."""

    values: list[_Entry] = field(default_factory=list)
    rows: list[dict[int, Array]] = field(default_factory=list)

    def add(self, other: "_Collected") -> None:
        self.values += other.values
        self.rows += other.rows[: _MAX_ROW_SETS - len(self.rows)]

    def at(self, positions: Iterable[int]) -> "_Collected":
        """Return the values with each column moved to its new position; columns without
        a new position are dropped.
        """
        moved = self._moved({old: int(position) for old, position in enumerate(positions)})
        return _Collected(moved.values, [columns for columns in moved.rows if columns])

    def picked(self, positions: Iterable[int]) -> "_Collected":
        """Return the values of the columns at the positions, numbered from 0."""
        return self._moved({old: position for position, old in enumerate(positions)})

    def _moved(self, new: dict[int, int]) -> "_Collected":
        moved = [(kind, new[old], values) for kind, old, values in self.values if old in new]
        rows = []
        for columns in self.rows:
            rows.append({new[old]: values for old, values in columns.items() if old in new})
        return _Collected(moved, rows)

    def of(self, kind: str) -> dict[int, list[Any]]:
        by_position: dict[int, list[Any]] = {}
        for stored_kind, position, values in self.values:
            if stored_kind == kind:
                by_position.setdefault(position, []).append(values)
        return by_position


def boundary_values_of(fitted: Estimator, names: list[str]) -> BoundaryValues:
    """Return the boundary values that can be traced back to the columns, and the errors
    of failed steps.
    """
    left_out: dict[str, str] = {}
    collected = _known(fitted, left_out)

    def named(values: dict[int, _Value]) -> dict[str, _Value]:
        return {
            names[position]: value for position, value in values.items() if position < len(names)
        }

    edges, categories, texts = (
        named(collected.of(kind)) for kind in ("edges", "categories", "texts")
    )
    return BoundaryValues(
        edges={name: _some(np.unique(np.concatenate(parts))) for name, parts in edges.items()},
        categories={name: tuple(_some(list(chain(*parts)))) for name, parts in categories.items()},
        texts={
            name: tuple(_some(sorted(chain(*parts), key=str.isascii)))
            for name, parts in texts.items()
        },
        rows=tuple(named(rows) for rows in collected.rows if named(rows)),
        left_out=left_out,
        farthest=min(map(_farthest, sub_estimators(fitted)), default=np.inf),
    )


def _farthest(estimator: Estimator) -> float:
    return min(
        (limit for name, limit in _FARTHEST.items() if hasattr(estimator, name)),
        default=np.inf,
    )


def _known(estimator: Estimator, left_out: dict[str, str]) -> _Collected:
    estimator = best_estimator(estimator)
    if not isinstance(estimator, Pipeline):
        return _or_none(estimator, left_out, partial(_of_parts, estimator, left_out))
    collected = _known(estimator.steps[-1][1], left_out)
    for _, step in reversed(estimator.steps[:-1]):
        collected = _or_none(step, left_out, partial(_back, step, collected))
        collected.add(_known(step, left_out))
    return collected


def _or_none(
    step: Estimator,
    left_out: dict[str, str],
    read: Callable[[], _Collected],
) -> _Collected:
    """Return the values that `read` returns for a step, or no values if it fails, with
    the error in `left_out`.
    """
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - estimators may raise any error.
        left_out[f"boundary values of {type(step).__name__}"] = one_line(error)
        return _Collected()


def _of_parts(estimator: Estimator, left_out: dict[str, str]) -> _Collected:
    collected = _own(estimator)
    for part, positions in _inner(estimator):
        part_values = _known(part, left_out)
        if positions is not None:
            part_values = part_values.at(positions)
        collected.add(part_values)
    return collected


def _inner(estimator: Estimator) -> Iterator[tuple[Estimator, Iterable[int] | None]]:
    """Yield the nested estimators with the positions of their columns, or None if they
    read all columns.
    """
    if isinstance(estimator, ColumnTransformer):
        yield from ((step, positions) for _, step, positions in named_steps(estimator))
    elif isinstance(estimator, FeatureUnion):
        yield from ((step, None) for _, step in estimator.transformer_list)
    else:
        # Boosting stores its trees in an array. A member of a bag may read only some of
        # the columns.
        members = list(
            np.ravel(
                np.array(
                    getattr(estimator, "estimators_", []),
                    dtype=object,
                )
            )
        )
        features = getattr(estimator, "estimators_features_", [None] * len(members))
        yield from zip(members, features, strict=False)
        yield from (
            (part.estimator, None) for part in getattr(estimator, "calibrated_classifiers_", [])
        )
        if hasattr(estimator, "estimator_") and not members and not hasattr(estimator, "support_"):
            yield estimator.estimator_, None  # In an ensemble, `estimator_` is only a template.
        if hasattr(estimator, "regressor_"):
            yield estimator.regressor_, None


def _own(estimator: Estimator) -> _Collected:
    collected = _Collected([*_of_trees(estimator)])
    for kind, edges_of in _EDGES.items():
        if isinstance(estimator, kind):
            for position, edges in enumerate(edges_of(estimator)):
                if len(edges):
                    collected.values.append(("edges", position, np.asarray(edges, float)))
    collected.values += _entries("categories", enumerate(getattr(estimator, "categories_", ())))
    if isinstance(estimator, CountVectorizer):
        collected.values.append(("texts", 0, estimator.vocabulary_))
    for name in _ROWS:
        rows = getattr(estimator, name, None)
        if isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.dtype.kind == "f" and len(rows):
            collected.rows.append(dict(enumerate(_some(rows).T)))
    return collected


def _entries(
    kind: str,
    indexed: Iterable[tuple[int, Any]],
) -> list[_Entry]:
    return [(kind, position, values) for position, values in indexed]


def _of_trees(estimator: Estimator) -> Iterator[_Entry]:
    """Yield the thresholds and categories of a tree or of boosted trees."""
    if library_of(estimator):
        boosting = read_boosting(estimator)
        yield from _beside_thresholds(boosting.edges())
        indexed = zip(boosting.category_columns, boosting.categories, strict=False)
        yield from _entries("categories", indexed)
    elif is_tree(estimator):
        inner = estimator.tree_.feature >= 0
        features = estimator.tree_.feature[inner]
        edges = estimator.tree_.threshold[inner]
        yield from _beside_thresholds(
            {int(feature): edges[features == feature] for feature in np.unique(features)},
        )
    elif hasattr(estimator, "_predictors"):
        yield from _beside_thresholds(histogram_boosting(estimator).edges())
        yield from _entries("categories", categories_of(estimator).items())


def _beside_thresholds(splits: Mapping[int, Array]) -> Iterator[_Entry]:
    for feature, values in splits.items():
        # An infinite threshold separates missing values from all numbers.
        thresholds = np.asarray(
            values[np.abs(values) < np.finfo(np.float32).max],
            dtype=np.float64,
        )
        if len(thresholds):
            # Rounding to 32 bits switches at the midpoint of two 32-bit numbers.
            lower = rounded_down(thresholds)
            upper = np.nextafter(lower, np.float32(np.inf))
            middle = lower.astype(np.float64) / 2 + upper.astype(np.float64) / 2
            yield "edges", feature, np.concatenate([thresholds, middle])


def _additive_edges(model: AdditiveModel) -> list[Array]:
    edges = [np.empty(0)] * model.n_features_in_
    for position, cuts in model.cuts:
        if cuts is not None:
            edges[position] = np.concatenate([edges[position], cuts])
    return edges


_EDGES: dict[type, Callable[[Estimator], Iterable[Sequence[float] | Array]]] = {
    AdditiveModel: _additive_edges,
    KBinsDiscretizer: lambda bins: [edges[1:-1] for edges in bins.bin_edges_],
    # A divisor of 0 is omitted: the quotient by the next 64-bit number overflows in 32
    # bits.
    Computed: lambda step: (
        step.edges or [[bound[0] for test, bound in (step.tests or {}).items() if test != "Equal"]]
    ),
    Binarizer: lambda step: [[step.threshold]] * step.n_features_in_,
    BernoulliNB: lambda step: (
        [] if step.binarize is None else [[step.binarize]] * step.n_features_in_
    ),
    QuantileTransformer: lambda step: step.quantiles_.T,
    IsotonicRegression: lambda step: [step.X_thresholds_],
    SplineTransformer: lambda step: [
        spline.t[spline.k : -spline.k or None] for spline in step.bsplines_
    ],
}


def _back(step: Estimator, collected: _Collected) -> _Collected:
    """Convert boundary values of a step's output to boundary values of its input."""
    if isinstance(step, Pipeline):
        for _, part in reversed(step.steps):
            collected = _back(part, collected)
        return collected
    if isinstance(step, ColumnTransformer):
        return _back_columns(step, collected)
    if isinstance(step, SCALERS):

        def inverse(position: int, values: Array) -> Array:
            matrix = np.zeros((len(values), step.n_features_in_))
            matrix[:, position] = values
            return np.asarray(step.inverse_transform(matrix)[:, position])

        values: list[_Entry] = []
        for position, parts in collected.of("edges").items():
            values.append(("edges", position, inverse(position, np.concatenate(parts))))
        learned = []
        for rows in collected.rows:
            learned.append({index: inverse(index, column) for index, column in rows.items()})
        return _Collected(values, learned)
    if hasattr(step, "get_support"):
        return collected.at(np.flatnonzero(step.get_support()))
    if passes_on(step) or isinstance(step, SimpleImputer):
        return collected
    return _Collected()


def _back_columns(transformer: ColumnTransformer, collected: _Collected) -> _Collected:
    traced = _Collected()
    learned: list[dict[int, Array]] = [{} for _ in collected.rows]
    for name, step, inputs in named_steps(transformer):
        span = transformer.output_indices_[name]
        if span.stop - span.start != len(inputs):
            continue  # The step is an encoder with several output columns.
        back = _back(
            step,
            collected.picked(range(span.start, span.stop)),
        ).at(inputs)
        for rows, back_row in zip(learned, back.rows, strict=False):
            rows.update(back_row)
        traced.values += back.values
    traced.rows = [rows for rows in learned if rows]
    return traced


def _some(values: Any) -> Any:
    """Return at most `MAX_VALUES` values, evenly sampled."""
    if len(values) <= MAX_VALUES:
        return values
    positions = np.linspace(0, len(values) - 1, MAX_VALUES).astype(int)
    if isinstance(values, np.ndarray):
        return values[positions]
    return [values[position] for position in positions]
