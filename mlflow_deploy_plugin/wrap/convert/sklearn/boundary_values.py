"""The boundary values of a fitted estimator, from which the parity check generates
rows.

Values of a later step are traced back through steps that map each column to
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
from mlflow_deploy_plugin.wrap.convert.sklearn.trees import (
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
    "bsplines_": 1e9,
}
"""The largest magnitude by attribute. Farther away, distances are equal in 64 bits, or
the lines of splines cancel each other, and rounding decides.
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
        """Add the values of another estimator, and its sets of rows up to
        `_MAX_ROW_SETS`.
        """
        self.values += other.values
        self.rows += other.rows[: _MAX_ROW_SETS - len(self.rows)]

    def moved_to(self, positions: Iterable[int]) -> "_Collected":
        """Return the values with each column moved to its new position; columns without
        a new position are dropped.
        """
        moved = self._renumbered({old: int(position) for old, position in enumerate(positions)})
        return _Collected(moved.values, [columns for columns in moved.rows if columns])

    def pick(self, positions: Iterable[int]) -> "_Collected":
        """Return the values of the columns at the positions, numbered from 0."""
        return self._renumbered({old: position for position, old in enumerate(positions)})

    def _renumbered(self, new: dict[int, int]) -> "_Collected":
        """Return the values of the columns in `new`, with their new positions."""
        moved = [(kind, new[old], values) for kind, old, values in self.values if old in new]
        rows = []
        for columns in self.rows:
            rows.append({new[old]: values for old, values in columns.items() if old in new})
        return _Collected(moved, rows)

    def by_column(self, kind: str) -> dict[int, list[Any]]:
        """Return the values of a kind by the position of their column."""
        by_position: dict[int, list[Any]] = {}
        for stored_kind, position, values in self.values:
            if stored_kind == kind:
                by_position.setdefault(position, []).append(values)
        return by_position


def boundary_values_of(fitted: Estimator, names: list[str]) -> BoundaryValues:
    """Return the boundary values that can be traced back to the columns `names`, and
    the errors of failed steps.
    """
    left_out: dict[str, str] = {}
    collected = _collect(fitted, left_out)
    edges = {}
    for name, parts in _by_name(collected.by_column("edges"), names).items():
        edges[name] = _sample_evenly(np.unique(np.concatenate(parts)))
    categories = {}
    for name, parts in _by_name(collected.by_column("categories"), names).items():
        categories[name] = tuple(_sample_evenly(list(chain(*parts))))
    texts = {}
    for name, parts in _by_name(collected.by_column("texts"), names).items():
        # Texts with other characters than ASCII come first.
        texts[name] = tuple(_sample_evenly(sorted(chain(*parts), key=str.isascii)))
    named_rows = [_by_name(rows, names) for rows in collected.rows]
    limits = [
        limit
        for estimator in sub_estimators(fitted)
        for name, limit in _FARTHEST.items()
        if hasattr(estimator, name)
    ]
    return BoundaryValues(
        edges=edges,
        categories=categories,
        texts=texts,
        rows=tuple(rows for rows in named_rows if rows),
        left_out=left_out,
        farthest=min(limits, default=np.inf),
    )


def _by_name(values: dict[int, _Value], names: list[str]) -> dict[str, _Value]:
    """Return values by the names of their columns, without other columns."""
    return {names[position]: value for position, value in values.items() if position < len(names)}


def _collect(estimator: Estimator, left_out: dict[str, str]) -> _Collected:
    """Return the boundary values of an estimator and of the estimators in it, as values
    of its input columns. Errors are added to `left_out`.
    """
    estimator = best_estimator(estimator)
    if isinstance(estimator, Pipeline):
        collected = _collect(estimator.steps[-1][1], left_out)
        for _, step in reversed(estimator.steps[:-1]):
            collected = _try_to_read(step, left_out, partial(_trace_back, step, collected))
            collected.add(_collect(step, left_out))
        return collected

    def read() -> _Collected:
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
            is_matrix_of_floats = (
                isinstance(rows, np.ndarray)
                and rows.ndim == 2
                and rows.dtype.kind == "f"
                and len(rows) > 0
            )
            if is_matrix_of_floats:
                collected.rows.append(dict(enumerate(_sample_evenly(rows).T)))
        for part, positions in _nested_estimators(estimator):
            part_values = _collect(part, left_out)
            if positions is not None:
                part_values = part_values.moved_to(positions)
            collected.add(part_values)
        return collected

    return _try_to_read(estimator, left_out, read)


def _try_to_read(
    step: Estimator, left_out: dict[str, str], read: Callable[[], _Collected]
) -> _Collected:
    """Return the values that `read` returns for a step, or no values if it fails, with
    the error in `left_out`.
    """
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - estimators may raise any error.
        left_out[f"boundary values of {type(step).__name__}"] = one_line(error)
        return _Collected()


def _nested_estimators(estimator: Estimator) -> Iterator[tuple[Estimator, Iterable[int] | None]]:
    """Yield the nested estimators with the positions of their columns, or None if they
    read all columns.
    """
    if isinstance(estimator, ColumnTransformer):
        yield from ((step, positions) for _, step, positions in named_steps(estimator))
    elif isinstance(estimator, FeatureUnion):
        yield from ((step, None) for _, step in estimator.transformer_list)
    else:
        # Boosting stores its trees in an array.
        members = np.array(getattr(estimator, "estimators_", []), dtype=object).ravel().tolist()
        # A member of a bag may read only some of the columns.
        features = getattr(estimator, "estimators_features_", [None] * len(members))
        yield from zip(members, features, strict=False)
        for part in getattr(estimator, "calibrated_classifiers_", []):
            yield part.estimator, None
        if hasattr(estimator, "estimator_") and not members and not hasattr(estimator, "support_"):
            yield estimator.estimator_, None  # In an ensemble, `estimator_` is only a template.
        if hasattr(estimator, "regressor_"):
            yield estimator.regressor_, None


def _entries(kind: str, by_position: Iterable[tuple[int, Any]]) -> list[_Entry]:
    return [(kind, position, values) for position, values in by_position]


def _of_trees(estimator: Estimator) -> Iterator[_Entry]:
    """Yield the thresholds and categories of a tree or of boosted trees."""
    if library_of(estimator) or hasattr(estimator, "_predictors"):
        boosting = read_boosting(estimator)
        yield from _beside_thresholds(boosting.edges())
        by_position = zip(boosting.category_columns, boosting.categories, strict=False)
        yield from _entries("categories", by_position)
    elif is_tree(estimator):
        is_inner = estimator.tree_.feature >= 0
        features = estimator.tree_.feature[is_inner]
        edges = estimator.tree_.threshold[is_inner]
        yield from _beside_thresholds(
            {int(feature): edges[features == feature] for feature in np.unique(features)}
        )


def _beside_thresholds(splits: Mapping[int, Array]) -> Iterator[_Entry]:
    """Yield the finite thresholds of each feature, and the numbers beside them at which
    rounding to 32 bits changes the side of the threshold.
    """
    for feature, values in splits.items():
        # An infinite threshold separates missing values from all numbers.
        thresholds = np.asarray(values[np.abs(values) < np.finfo(np.float32).max], dtype=np.float64)
        if not len(thresholds):
            continue
        # Rounding to 32 bits switches at the midpoint of two 32-bit numbers.
        lower = rounded_down(thresholds)
        upper = np.nextafter(lower, np.float32(np.inf))
        middle = lower.astype(float) / 2 + upper.astype(float) / 2
        yield "edges", feature, np.concatenate([thresholds, middle])


_EDGES: dict[type, Callable[[Estimator], Iterable[Sequence[float] | Array]]] = {
    KBinsDiscretizer: lambda bins: [edges[1:-1] for edges in bins.bin_edges_],
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


def _trace_back(step: Estimator, collected: _Collected) -> _Collected:
    """Convert boundary values of a step's output to boundary values of its input; no
    values if the step does not map each column to one column.
    """
    if isinstance(step, Pipeline):
        for _, part in reversed(step.steps):
            collected = _trace_back(part, collected)
        return collected
    if isinstance(step, ColumnTransformer):
        return _trace_back_columns(step, collected)
    if isinstance(step, SCALERS):

        def inverse(position: int, values: Array) -> Array:
            """Return the numbers of a column before the scaler."""
            matrix = np.zeros((len(values), step.n_features_in_))
            matrix[:, position] = values
            return np.asarray(step.inverse_transform(matrix)[:, position])

        edges: list[_Entry] = []
        for position, parts in collected.by_column("edges").items():
            edges.append(("edges", position, inverse(position, np.concatenate(parts))))
        row_sets = []
        for rows in collected.rows:
            row_sets.append({index: inverse(index, column) for index, column in rows.items()})
        return _Collected(edges, row_sets)
    if hasattr(step, "get_support"):
        return collected.moved_to(np.flatnonzero(step.get_support()))
    if passes_on(step) or isinstance(step, SimpleImputer):
        return collected
    return _Collected()


def _trace_back_columns(transformer: ColumnTransformer, collected: _Collected) -> _Collected:
    """Convert boundary values of a ColumnTransformer's output to those of its input,
    for the steps that have as many output columns as input columns.
    """
    values: list[_Entry] = []
    row_sets: list[dict[int, Array]] = [{} for _ in collected.rows]
    for name, step, inputs in named_steps(transformer):
        span = transformer.output_indices_[name]
        if span.stop - span.start != len(inputs):
            continue  # The step is an encoder with several output columns.
        step_values = collected.pick(range(span.start, span.stop))
        traced = _trace_back(step, step_values).moved_to(inputs)
        for rows, traced_rows in zip(row_sets, traced.rows, strict=False):
            rows.update(traced_rows)
        values += traced.values
    return _Collected(values, [rows for rows in row_sets if rows])


def _sample_evenly(values: Any) -> Any:
    """Return at most `MAX_VALUES` values, evenly sampled."""
    if len(values) <= MAX_VALUES:
        return values
    positions = np.linspace(0, len(values) - 1, MAX_VALUES).astype(int)
    if isinstance(values, np.ndarray):
        return values[positions]
    return [values[position] for position in positions]
