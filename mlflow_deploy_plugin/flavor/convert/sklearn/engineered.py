"""The transformers of feature-engine, as ColumnTransformers of scikit-learn's steps.

They take a table and return one, in which some columns are changed, dropped or added, each by itself.
"""

import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer

from mlflow_deploy_plugin.errors import ConversionError, one_line
from mlflow_deploy_plugin.flavor.convert.sklearn.estimators import Computed, GroupedCategories, Intervals
from mlflow_deploy_plugin.flavor.convert.sklearn.formulas.features import box_cox, yeo_johnson


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
            added = list(_FEATURES[kind](part))
            dropped = [*part.variables_, *getattr(part, "reference", [])] if part.drop_original else []
        changed = part.variables_ if kind in _STEPS else ()
        kept = {name: _STEPS[kind](part, name) if name in changed else "passthrough" for name in names}
        steps = [(name, step, [name]) for name, step in kept.items() if name not in dropped]
        steps += [(f"{kind} {place}", step, columns) for place, (step, columns) in enumerate(added)]
        for _, step, _ in steps:
            if isinstance(step, Computed | Intervals):
                step.stands_for = kind
        # a row that each step takes: texts for texts
        row = {name: getattr(step, "fill_value", 1.0) for name, step in kept.items()}
        return ColumnTransformer(steps).fit(pd.DataFrame([row]))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConversionError(f"its step {kind} has options that no graph has ({one_line(error, 100)})") from error


def _known(table: dict[str, Any], function: str) -> Any:
    if function not in table:
        raise ValueError(f"func={function!r}")
    return table[function]


def intervals(part: Any, name: str) -> Intervals:
    if part.return_boundaries:
        raise ValueError("return_boundaries=True makes texts")
    edges = np.asarray(part.binner_dict_[name], float)
    refused = {"Less": edges[:1], "Greater": edges[-1:]} if getattr(part, "errors", "") == "raise" else None
    return Intervals(edges, refused)


def logarithm(part: Any, name: str) -> Computed:
    log, added = {"e": np.log, "10": np.log10}[part.base], getattr(part, "C_", 0)
    added = added[name] if isinstance(added, dict) else added
    reason = f"takes numbers above {0.0 - added:.6g} only"
    return Computed(lambda x: log(x + added), reason, {"LessOrEqual": [-added]})


def grouped(part: Any, name: str) -> GroupedCategories:
    known = part.encoder_dict_[name]
    if not known or not all(isinstance(one, str) for one in [*known, part.replace_with]):
        raise ValueError("no texts among its categories")
    return GroupedCategories(known, part.replace_with)


def cycles(part: Any) -> "_Features":
    for name in part.variables_:
        turn = 2 * np.pi / part.max_values_[name]
        yield Computed(lambda x, turn=turn: np.concatenate([np.sin(x * turn), np.cos(x * turn)], axis=1)), [name]


def across(part: Any) -> "_Features":
    for function in part.func if isinstance(part.func, list) else [part.func]:
        reduce = _known(_REDUCTIONS, function if isinstance(function, str) else function.__name__)
        yield Computed(lambda x, reduce=reduce: reduce(x, axis=1)[:, None]), part.variables_


def relations(part: Any) -> "_Features":
    for function in part.func:
        related, divides = _known(_RELATIONS, function), function in _DIVISIONS
        if divides and part.fill_value is not None:
            related = partial(_filled, related, part.fill_value)
        for reference in part.reference:
            for name in part.variables_:
                columns = list(dict.fromkeys([name, reference]))
                tests = {"Equal": [np.nan, 0.0][-len(columns) :]} if divides and part.fill_value is None else None
                yield (Computed(lambda x, of=related: of(x[:, :1], x[:, -1:]), "takes no divisor of 0", tests), columns)


def _filled(divided: Any, fill: float, left: Any, right: Any) -> Any:
    return np.where(right == 0, fill, divided(left, np.where(right == 0, 1.0, right)))


_REDUCTIONS: dict[str, Any] = {
    **{name: getattr(np, name) for name in ("sum", "mean", "min", "max", "prod")},
    **{name: partial(getattr(np, name), ddof=1) for name in ("std", "var")},  # of a sample, as pandas has them
}
_DIVISIONS: dict[str, Any] = {"div": operator.truediv, "truediv": operator.truediv, "mod": np.remainder}
_RELATIONS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "pow": operator.pow} | _DIVISIONS

_STEPS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(
        ("MeanMedianImputer", "ArbitraryNumberImputer", "EndTailImputer", "CategoricalImputer"),
        lambda part, name: SimpleImputer(strategy="constant", fill_value=part.imputer_dict_[name]),
    ),
    **dict.fromkeys(
        ("Winsorizer", "ArbitraryOutlierCapper"),
        lambda part, name: Computed(
            partial(np.clip, a_min=part.left_tail_caps_.get(name), a_max=part.right_tail_caps_.get(name))
        ),
    ),
    **dict.fromkeys(
        (f"{kind}Discretiser" for kind in ("EqualFrequency", "EqualWidth", "GeometricWidth", "Arbitrary")), intervals
    ),
    **dict.fromkeys(("LogTransformer", "LogCpTransformer"), logarithm),
    "ReciprocalTransformer": lambda part, name: Computed(np.reciprocal, "takes no 0", {"Equal": [0.0]}),
    "PowerTransformer": lambda part, name: Computed(lambda x: x**part.exp),
    "BoxCoxTransformer": lambda part, name: Computed(
        lambda x: box_cox(x, np.array([part.lambda_dict_[name]])), "takes positive numbers only", {"LessOrEqual": [0.0]}
    ),
    "YeoJohnsonTransformer": lambda part, name: Computed(lambda x: yeo_johnson(x, np.array([part.lambda_dict_[name]]))),
    "ArcsinTransformer": lambda part, name: Computed(
        lambda x: np.arcsin(np.sqrt(x)), "takes numbers from 0 to 1 only", {"Less": [0.0], "Greater": [1.0]}
    ),
    "ArcSinhTransformer": lambda part, name: Computed(lambda x: np.arcsinh((x - part.loc) / part.scale)),
    "MeanNormalizationScaler": lambda part, name: Computed(lambda x: (x - part.mean_[name]) / part.range_[name]),
    "RareLabelEncoder": grouped,
}
"""Functions by the class of a transformer: each returns the step for one of its columns."""

_Features = Iterator[tuple[Any, list[str]]]
_FEATURES: dict[str, Callable[[Any], _Features]] = {
    "CyclicalFeatures": cycles,
    "MathFeatures": across,
    "RelativeFeatures": relations,
}
"""Functions by the class of a transformer: each yields the steps that add columns, with the columns that they read."""
