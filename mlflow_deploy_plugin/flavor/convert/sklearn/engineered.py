"""The transformers of feature-engine, as ColumnTransformers of scikit-learn's steps.

They take a table and return one, in which some columns are changed, dropped or added, each by itself.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from mlflow_deploy_plugin.errors import ConversionError, one_line
from mlflow_deploy_plugin.flavor.convert.sklearn.estimators import GroupedCategories, Intervals
from mlflow_deploy_plugin.flavor.convert.sklearn.formulas.features import box_cox, yeo_johnson
from mlflow_deploy_plugin.runtime import Array


def as_column_steps(part: Any) -> ColumnTransformer | None:
    """Return a fitted transformer of feature-engine as a step for each column; None for any other estimator.

    Raises:
        ConversionError: its options make something else of a column.
    """
    family = type(part).__module__.partition(".")
    if family[0] != "feature_engine" or not hasattr(part, "feature_names_in_"):
        return None
    names = [str(name) for name in part.feature_names_in_]
    kind = type(part).__name__
    dropped: list[str] = []
    added: list[tuple[Any, list[str]]] = []
    if family[2].startswith("selection."):
        dropped = part.features_to_drop_
    elif kind not in _STEPS | _FEATURES or getattr(part, "add_indicators", False):
        return None
    try:
        if kind in _FEATURES:
            added = [(step, list(columns)) for step, columns in _FEATURES[kind](part)]
            dropped = [*part.variables_, *getattr(part, "reference", [])] if part.drop_original else []
        changed = part.variables_ if kind in _STEPS else ()
        kept = {name: _STEPS[kind](part, name) if name in changed else "passthrough" for name in names}
        steps = [(name, step, [name]) for name, step in kept.items() if name not in dropped]
        steps += [(f"{kind} {place}", step, columns) for place, (step, columns) in enumerate(added)]
        # a row that each step takes: texts for texts
        row = {name: getattr(step, "fill_value", 1.0) for name, step in kept.items()}
        return ColumnTransformer(steps).fit(pd.DataFrame([row]))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {one_line(error, 100)}"
        raise ConversionError(f"its step {kind} has options that no graph has ({reason})") from error


def _matrix(compute: Callable[[Any], Any]) -> FunctionTransformer:
    """Return a function of an array of [rows, columns], which a table becomes."""
    return FunctionTransformer(compute, validate=True)


def _defined(step: FunctionTransformer) -> Pipeline:
    """Return a function that refuses the numbers for which it is not defined, as feature-engine does."""
    return Pipeline([("compute", step), ("refuse", _matrix(np.positive))])


def intervals(part: Any, name: str) -> Intervals:
    if part.return_boundaries:
        raise ValueError("return_boundaries=True makes texts")
    return Intervals(np.asarray(part.binner_dict_[name], float))


def logarithm(part: Any, name: str) -> Pipeline:
    log, added = {"e": np.log, "10": np.log10}[part.base], getattr(part, "C_", 0)
    added = added[name] if isinstance(added, dict) else added
    return _defined(_matrix(lambda x: log(x + added)))


def _powers(part: Any, name: str) -> Array:
    return np.array([part.lambda_dict_[name]])


def cycles(part: Any) -> "_Features":
    for name in part.variables_:
        turns = FunctionTransformer(partial(np.multiply, 2 * np.pi / part.max_values_[name]))
        for wave in (np.sin, np.cos):
            yield Pipeline([("turns", turns), ("wave", FunctionTransformer(wave))]), [name]


def across(part: Any) -> "_Features":
    """Yield sums, means and the like of each row; pandas' `std` and `var` are those of a sample."""
    for function in part.func if isinstance(part.func, list) else [part.func]:
        name = function if isinstance(function, str) else function.__name__
        options = {"axis": 1, "keepdims": True, **({"ddof": 1} if name in ("std", "var") else {})}
        yield _matrix(partial(getattr(np, name), **options)), part.variables_


def relations(part: Any) -> "_Features":
    for function in part.func:
        for reference in part.reference:
            for name in part.variables_:
                yield _RELATIONS[function](part), [name, reference]


def quotient(part: Any) -> Any:
    if part.fill_value is None:
        return _defined(_matrix(lambda x: x[:, :1] / x[:, 1:]))

    def filled(x: Any) -> Any:
        none = x[:, 1:] == 0
        return np.where(none, part.fill_value, x[:, :1] / np.where(none, 1.0, x[:, 1:]))

    return _matrix(filled)


_STEPS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(
        ("MeanMedianImputer", "ArbitraryNumberImputer", "EndTailImputer", "CategoricalImputer"),
        lambda part, name: SimpleImputer(strategy="constant", fill_value=part.imputer_dict_[name]),
    ),
    **dict.fromkeys(
        ("Winsorizer", "ArbitraryOutlierCapper"),
        lambda part, name: FunctionTransformer(
            partial(np.clip, a_min=part.left_tail_caps_.get(name), a_max=part.right_tail_caps_.get(name))
        ),
    ),
    **dict.fromkeys(
        (f"{kind}Discretiser" for kind in ("EqualFrequency", "EqualWidth", "GeometricWidth", "Arbitrary")), intervals
    ),
    **dict.fromkeys(("LogTransformer", "LogCpTransformer"), logarithm),
    "ReciprocalTransformer": lambda part, name: _defined(_matrix(np.reciprocal)),
    "PowerTransformer": lambda part, name: FunctionTransformer(lambda x: x**part.exp),
    "BoxCoxTransformer": lambda part, name: _defined(_matrix(lambda x: box_cox(x, _powers(part, name)))),
    "YeoJohnsonTransformer": lambda part, name: FunctionTransformer(lambda x: yeo_johnson(x, _powers(part, name))),
    "ArcSinhTransformer": lambda part, name: FunctionTransformer(lambda x: np.arcsinh((x - part.loc) / part.scale)),
    "MeanNormalizationScaler": lambda part, name: FunctionTransformer(
        lambda x: (x - part.mean_[name]) / part.range_[name]
    ),
    "RareLabelEncoder": lambda part, name: GroupedCategories(part.encoder_dict_[name], part.replace_with),
}
"""Functions by the class of a transformer: each returns the step for one of its columns."""

_Features = Iterator[tuple[Any, list[str]]]
_RELATIONS: dict[str, Callable[[Any], Any]] = {
    "add": lambda part: _matrix(lambda x: x[:, :1] + x[:, 1:]),
    "sub": lambda part: _matrix(lambda x: x[:, :1] - x[:, 1:]),
    "mul": lambda part: _matrix(lambda x: x[:, :1] * x[:, 1:]),
    **dict.fromkeys(("div", "truediv"), quotient),
}
_FEATURES: dict[str, Callable[[Any], _Features]] = {
    "CyclicalFeatures": cycles,
    "MathFeatures": across,
    "RelativeFeatures": relations,
}
"""Functions by the class of a transformer: each yields the steps that add columns, with the columns that they read."""
