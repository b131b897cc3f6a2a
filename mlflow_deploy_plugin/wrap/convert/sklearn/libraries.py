"""Replace estimators of other libraries with stand-ins: of entry points, and of affine
estimators.
"""

from contextlib import suppress
from copy import deepcopy
from functools import cache, partial

import numpy as np
from sklearn.preprocessing import FunctionTransformer

from mlflow_deploy_plugin.core.extensions import load_entry, registered_in
from mlflow_deploy_plugin.wrap.convert.converters import LIBRARIES, run_entry
from mlflow_deploy_plugin.wrap.convert.sklearn import affine
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import (
    Estimator,
    first_steps,
    sub_estimators,
    thawed,
)

_CONVERTED = ("sklearn", "xgboost", "lightgbm", "catboost")
"""The packages whose estimators are converted without stand-ins."""


def with_stand_ins(fitted: Estimator, columns: list[str] | int) -> Estimator:
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
    libraries = cache(partial(registered_in, LIBRARIES))  # Only other libraries need it.
    for part in sub_estimators(fitted):
        package = type(part).__module__.partition(".")[0]
        is_converted = package in _CONVERTED
        has_function = isinstance(part, FunctionTransformer) and part.func is not None
        if is_converted and has_function and hasattr(part, "feature_names_in_"):
            # A function that fails for a matrix selects columns by name.
            is_converted = False
            with suppress(Exception):  # The user's function may raise any error.
                part.func(np.ones((2, part.n_features_in_)), **(part.kw_args or {}))
                is_converted = True
        if is_converted or id(part) in replaced_inside:
            continue
        stand_in: Estimator | None = None
        entry = libraries().get(package)
        if entry is not None:
            stand_in = run_entry(entry, load_entry(entry).stand_in, part)
        if stand_in is None:
            stand_in = affine.stand_in(part, columns if id(part) in first_ids else 0)
        if stand_in is not None:
            stand_ins[id(part)] = stand_in
            replaced_inside.update(map(id, sub_estimators(part)))
    return deepcopy(fitted, stand_ins) if stand_ins else fitted
