"""Convert transformers of feature-engine to ColumnTransformers, and its encoders to
category tables.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import Estimator
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.features import box_cox, yeo_johnson
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.tracing import ArrayFunction, TracedArray
from mlflow_deploy_plugin.wrap.convert.sklearn.libraries.category_tables import as_tables
from mlflow_deploy_plugin.wrap.convert.sklearn.stand_ins import Computed, GroupedCategories


def stand_in(transformer: Estimator) -> Estimator:
    """Return the stand-in of a fitted feature-engine transformer, or None if it is not
    supported.
    """
    is_fitted = hasattr(transformer, "feature_names_in_")
    if not is_fitted or getattr(transformer, "add_indicators", False):
        return None
    kind = type(transformer).__name__
    module = type(transformer).__module__
    if kind in _STEPS or kind in _ADD_COLUMNS or module.startswith("feature_engine.selection."):
        return _column_steps(transformer)
    if module.startswith("feature_engine.encoding."):
        return as_tables(transformer, getattr(transformer, "encoder_dict_", {}))
    return None


def _column_steps(transformer: Estimator) -> ColumnTransformer:
    """Return a step per kept or added column. Raises ConversionError for an unsupported
    option.
    """
    try:
        return _fitted_steps(transformer)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        kind = type(transformer).__name__
        raise ConversionError(
            f"its step {kind} has unsupported options ({one_line(error, 100)})",
        ) from error


def _fitted_steps(transformer: Estimator) -> ColumnTransformer:
    """Return a step per kept or added column. An unsupported option raises various
    errors.
    """
    names = [str(name) for name in transformer.feature_names_in_]
    kind = type(transformer).__name__
    changed: dict[str, Estimator] = {}
    added: list[tuple[Estimator, list[str]]] = []
    dropped: list[str] = []
    if kind in _STEPS:
        changed = {name: _STEPS[kind](transformer, name) for name in transformer.variables_}
    elif kind in _ADD_COLUMNS:
        added = list(_added_steps(transformer))
        if transformer.drop_original:
            dropped = [*transformer.variables_, *getattr(transformer, "reference", [])]
    else:
        dropped = transformer.features_to_drop_
    steps = [
        (
            name,
            changed.get(name, "passthrough"),
            [name],
        )
        for name in names
        if name not in dropped
    ]
    steps += [(f"{kind} {number}", step, columns) for number, (step, columns) in enumerate(added)]
    for _, step, _ in steps:
        if isinstance(step, Computed):
            step.stands_for = kind
    # Each step must accept the row, so a step that imputes strings receives a string.
    row = {name: getattr(changed.get(name), "fill_value", 1.0) for name in names}
    return ColumnTransformer(steps).fit(pd.DataFrame([row]))


def _look_up(table: Mapping[str, ArrayFunction], function: str) -> ArrayFunction:
    """Return a function by its name. Raises ValueError for an unsupported name."""
    if function not in table:
        raise ValueError(f"func={function!r}")
    return table[function]


def _intervals(fitted: Estimator, name: str) -> Computed:
    """Return a step that computes the index of a number's interval (upper edge
    included), or NaN outside the edges.
    """
    if fitted.return_boundaries:
        raise ValueError("return_boundaries=True returns strings")
    edges = np.asarray(fitted.binner_dict_[name], float)

    def compute(x: TracedArray) -> TracedArray:
        """Return the index of each number's interval."""
        is_outside = (x < edges[0]) | (x > edges[-1])
        index = np.digitize(
            x,
            edges[1:-1],
            right=True,
        ).astype(float)
        return np.where(is_outside, np.nan, index)

    tests = None
    if getattr(fitted, "errors", "") == "raise":
        tests = {"Less": edges[:1], "Greater": edges[-1:]}
    finite = [edges[np.isfinite(edges)]]
    return Computed(compute, "accepts only numbers within its intervals", tests, edges=finite)


def _logarithm(fitted: Estimator, name: str) -> Computed:
    """Return a step that computes the logarithm of a number plus a learned constant."""
    log = {"e": np.log, "10": np.log10}[fitted.base]
    added = getattr(fitted, "C_", 0)
    added = added[name] if isinstance(added, dict) else added
    reason = f"accepts only numbers above {0.0 - added:.6g}"
    return Computed(
        lambda x: log(x + added),
        reason,
        {"LessOrEqual": [-added]},
    )


def _grouped(fitted: Estimator, name: str) -> GroupedCategories:
    """Return a step that replaces rare categories. Raises ValueError if the categories
    are not strings.
    """
    groups = fitted.encoder_dict_[name]
    are_strings = all(isinstance(category, str) for category in [*groups, fitted.replace_with])
    if not groups or not are_strings:
        raise ValueError("its categories are not strings")
    return GroupedCategories(groups, fitted.replace_with)


def _added_steps(fitted: Estimator) -> Iterator[tuple[Computed, list[str]]]:
    """Yield the steps that add columns, and the columns that each step reads."""
    match type(fitted).__name__:
        case "CyclicalFeatures":
            for name in fitted.variables_:
                yield _cyclical_step(2 * np.pi / fitted.max_values_[name]), [name]
        case "MathFeatures":
            functions = fitted.func
            if not isinstance(functions, list):
                functions = [functions]
            for function in functions:
                reduce = _look_up(_REDUCTIONS, getattr(function, "__name__", function))
                step = Computed(lambda x, reduce=reduce: reduce(x, axis=1)[:, None])
                yield step, fitted.variables_
        case "RelativeFeatures":
            for function in fitted.func:
                yield from _relative_steps(fitted, function)


def _cyclical_step(factor: float) -> Computed:
    return Computed(
        lambda x: np.hstack(
            [
                np.sin(x * factor),
                np.cos(x * factor),
            ]
        )
    )


def _relative_steps(fitted: Estimator, function: str) -> Iterator[tuple[Computed, list[str]]]:
    """Yield the steps that relate each variable to each reference by a function, and
    the columns that each step reads: one column if both are the same.
    """
    relate = _look_up(_RELATIONS, function)
    refuses_zero = function in _DIVISIONS and fitted.fill_value is None
    if function in _DIVISIONS and not refuses_zero:
        relate = partial(_divide_or_fill, relate, fitted.fill_value)
    for reference, name in product(fitted.reference, fitted.variables_):
        columns = list(dict.fromkeys([name, reference]))
        tests = None
        if refuses_zero:
            # The divisor is the last column. No number is equal to NaN.
            tests = {"Equal": [np.nan, 0.0][-len(columns) :]}
        reason = "does not accept a divisor of 0"
        yield (
            Computed(
                lambda x: relate(
                    x[:, :1],
                    x[:, -1:],
                ),
                reason,
                tests,
            ),
            columns,
        )


def _divide_or_fill(
    divide: ArrayFunction,
    fill: float,
    left: TracedArray,
    right: TracedArray,
) -> TracedArray:
    """Return the quotient, or `fill` for a divisor of 0."""
    return np.where(
        right == 0,
        fill,
        divide(left, np.where(right == 0, 1.0, right)),
    )


_REDUCTIONS: dict[str, ArrayFunction] = {
    **{name: getattr(np, name) for name in ("sum", "mean", "min", "max", "prod")},
    # pandas divides by N - 1.
    **{name: partial(getattr(np, name), ddof=1) for name in ("std", "var")},
}
_DIVISIONS: dict[str, ArrayFunction] = {
    "div": operator.truediv,
    "truediv": operator.truediv,
    "mod": np.remainder,
}
_RELATIONS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "pow": operator.pow,
} | _DIVISIONS

_STEPS: dict[str, Callable[[Estimator, str], Estimator]] = {
    **dict.fromkeys(
        ("MeanMedianImputer", "ArbitraryNumberImputer", "EndTailImputer", "CategoricalImputer"),
        lambda fitted, name: SimpleImputer(
            strategy="constant",
            fill_value=fitted.imputer_dict_[name],
        ),
    ),
    **dict.fromkeys(
        ("Winsorizer", "ArbitraryOutlierCapper"),
        lambda fitted, name: Computed(
            partial(
                np.clip,
                a_min=fitted.left_tail_caps_.get(name),
                a_max=fitted.right_tail_caps_.get(name),
            ),
        ),
    ),
    "EqualFrequencyDiscretiser": _intervals,
    "EqualWidthDiscretiser": _intervals,
    "GeometricWidthDiscretiser": _intervals,
    "ArbitraryDiscretiser": _intervals,
    "LogTransformer": _logarithm,
    "LogCpTransformer": _logarithm,
    "ReciprocalTransformer": lambda fitted, name: Computed(
        np.reciprocal,
        "does not accept 0",
        {"Equal": [0.0]},
    ),
    "PowerTransformer": lambda fitted, name: Computed(lambda x: x**fitted.exp),
    "BoxCoxTransformer": lambda fitted, name: Computed(
        lambda x: box_cox(x, np.array([fitted.lambda_dict_[name]])),
        "accepts only positive numbers",
        {"LessOrEqual": [0.0]},
    ),
    "YeoJohnsonTransformer": lambda fitted, name: Computed(
        lambda x: yeo_johnson(x, np.array([fitted.lambda_dict_[name]])),
    ),
    "ArcsinTransformer": lambda fitted, name: Computed(
        lambda x: np.arcsin(np.sqrt(x)),
        "accepts only numbers from 0 to 1",
        {"Less": [0.0], "Greater": [1.0]},
    ),
    "ArcSinhTransformer": lambda fitted, name: Computed(
        lambda x: np.arcsinh((x - fitted.loc) / fitted.scale),
    ),
    "MeanNormalizationScaler": lambda fitted, name: Computed(
        lambda x: (x - fitted.mean_[name]) / fitted.range_[name],
    ),
    "RareLabelEncoder": _grouped,
}
"""Functions by transformer class that return the step for a changed column."""
_ADD_COLUMNS = ("CyclicalFeatures", "MathFeatures", "RelativeFeatures")
