"""The transformers of feature-engine, as ColumnTransformers of scikit-learn's steps.

They take a table and return one, in which some columns are changed, dropped or added, each by itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from mlflow_deploy_plugin.flavor.convert.sklearn.estimators import GroupedCategories, Intervals
from mlflow_deploy_plugin.flavor.convert.sklearn.formulas.features import box_cox, yeo_johnson
from mlflow_deploy_plugin.runtime import Array


def as_column_steps(part: Any) -> ColumnTransformer | None:
    """Return a fitted transformer of feature-engine as a step for each column; None for any other estimator."""
    family = type(part).__module__.partition(".")
    if family[0] != "feature_engine" or not hasattr(part, "feature_names_in_"):
        return None
    names = [str(name) for name in part.feature_names_in_]
    if family[2].startswith("selection."):
        dropped = set(map(str, part.features_to_drop_))
        steps = {name: "passthrough" for name in names if name not in dropped}
    elif getattr(part, "add_indicators", False) or getattr(part, "return_boundaries", False):
        return None
    elif make := _STEPS.get(type(part).__name__):
        steps = {name: make(part, name) if name in part.variables_ else "passthrough" for name in names}
    else:
        return None
    # a row that each step takes: texts for texts
    row = {name: getattr(steps.get(name), "fill_value", 1.0) for name in names}
    return ColumnTransformer([(name, step, [name]) for name, step in steps.items()]).fit(pd.DataFrame([row]))


def _defined(compute: Callable[[Any], Any]) -> Pipeline:
    """Return a function that refuses the numbers for which it is not defined, as feature-engine does."""
    steps = [("compute", FunctionTransformer(compute)), ("refuse", FunctionTransformer(np.positive, validate=True))]
    return Pipeline(steps)


def _filled(part: Any, name: str) -> SimpleImputer:
    return SimpleImputer(strategy="constant", fill_value=part.imputer_dict_[name])


def _capped(part: Any, name: str) -> FunctionTransformer:
    low, high = part.left_tail_caps_.get(name), part.right_tail_caps_.get(name)
    return FunctionTransformer(partial(np.clip, a_min=low, a_max=high))


def _logarithm(part: Any, name: str) -> Pipeline:
    logarithm, added = {"e": np.log, "10": np.log10}[part.base], getattr(part, "C_", 0)
    added = added[name] if isinstance(added, dict) else added
    return _defined(lambda x: logarithm(x + added))


def _normalized(part: Any, name: str) -> FunctionTransformer:
    mean, width = part.mean_[name], part.range_[name]
    return FunctionTransformer(lambda x: (x - mean) / width)


def _powers(part: Any, name: str) -> Array:
    return np.array([part.lambda_dict_[name]])


_STEPS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("MeanMedianImputer", "ArbitraryNumberImputer", "EndTailImputer", "CategoricalImputer"), _filled),
    **dict.fromkeys(("Winsorizer", "ArbitraryOutlierCapper"), _capped),
    **dict.fromkeys(
        (f"{kind}Discretiser" for kind in ("EqualFrequency", "EqualWidth", "GeometricWidth", "Arbitrary")),
        lambda part, name: Intervals(np.asarray(part.binner_dict_[name], float)),
    ),
    **dict.fromkeys(("LogTransformer", "LogCpTransformer"), _logarithm),
    "ReciprocalTransformer": lambda part, name: _defined(np.reciprocal),
    "PowerTransformer": lambda part, name: FunctionTransformer(lambda x: x**part.exp),
    "BoxCoxTransformer": lambda part, name: _defined(lambda x: box_cox(x, _powers(part, name))),
    "YeoJohnsonTransformer": lambda part, name: FunctionTransformer(lambda x: yeo_johnson(x, _powers(part, name))),
    "ArcSinhTransformer": lambda part, name: FunctionTransformer(lambda x: np.arcsinh((x - part.loc) / part.scale)),
    "MeanNormalizationScaler": _normalized,
    "RareLabelEncoder": lambda part, name: GroupedCategories(part.encoder_dict_[name], part.replace_with),
}
"""Functions by the class of a transformer: each returns the step for one of its columns."""
