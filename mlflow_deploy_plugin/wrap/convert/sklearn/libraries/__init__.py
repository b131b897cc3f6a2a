"""Replace estimators of other libraries with stand-ins, by a function in `_STAND_INS`
or because they are affine.
"""

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from functools import partial

import numpy as np
from sklearn.preprocessing import FunctionTransformer

from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import (
    Estimator,
    first_steps,
    sub_estimators,
    thawed,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.libraries import (
    affine,
    category_tables,
    feature_engine,
    interpret,
)

_CONVERTED = ("sklearn", "xgboost", "lightgbm", "catboost")
"""The packages whose estimators are converted without stand-ins."""
_STAND_INS: dict[str, Callable[[Estimator], Estimator]] = {
    "category_encoders": category_tables.of_category_encoders,
    "feature_engine": feature_engine.stand_in,
    "interpret": interpret.as_additive,
    "skrub": category_tables.of_skrub,
}
"""Functions by package that return the stand-in of an estimator or None, or raise
ConversionError.
"""


def with_stand_ins(fitted: Estimator, columns: list[str] | int = 0) -> Estimator:
    """Return the estimator with stand-ins for estimators of other libraries. Raises
    ConversionError.

    Args:
        fitted: the fitted estimator, which is not changed.
        columns: the column names of the input table, or the number of columns of the
            input matrix; 0 is unknown.
    """
    fitted = thawed(fitted)
    stand_ins: dict[int, Estimator] = {}
    replaced_inside: set[int] = set()
    first_ids = set(map(id, first_steps(fitted)))
    for part in sub_estimators(fitted):
        package = type(part).__module__.partition(".")[0]
        is_converted = package in _CONVERTED and not _is_function_of_a_table(part)
        if is_converted or id(part) in replaced_inside:
            continue
        part_columns = columns if id(part) in first_ids else 0
        of_any = partial(affine.stand_in, columns=part_columns)
        of_library: Callable[[Estimator], Estimator] = _STAND_INS.get(package, of_any)
        stand_in = of_library(part)
        if stand_in is not None:
            stand_ins[id(part)] = stand_in
            replaced_inside.update(map(id, sub_estimators(part)))
    return deepcopy(fitted, stand_ins) if stand_ins else fitted


def _is_function_of_a_table(part: Estimator) -> bool:
    """Return True for a FunctionTransformer that fails for a matrix, because it selects
    columns by name.
    """
    has_function = isinstance(part, FunctionTransformer) and part.func is not None
    if not has_function or not hasattr(part, "feature_names_in_"):
        return False
    with suppress(Exception):  # The user's function may raise any error.
        part.func(
            np.ones((2, part.n_features_in_)),
            **(part.kw_args or {}),
        )
        return False
    return True
