"""Parts of fitted estimators, and their graph inputs: a matrix, or columns [N, 1] for a
ColumnTransformer.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, is_regressor
from sklearn.calibration import CalibratedClassifierCV, _CalibratedClassifier
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import (
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.feature_selection import RFE
from sklearn.linear_model._base import LinearClassifierMixin, LinearModel
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, TargetEncoder
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.tree._tree import Tree
from sklearn.utils.validation import check_is_fitted

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.batch import Batch, ModelInput, columns_of, missing_value
from mlflow_deploy_plugin.wrap.convert.converted import call_original
from mlflow_deploy_plugin.wrap.convert.sklearn.stand_ins import CategoryTables, Selection

Estimator: TypeAlias = Any
"""A fitted estimator of any class. scikit-learn has no types, and other libraries have
no common base class.
"""

ColumnKeys: TypeAlias = str | int | slice | Sequence[str] | Sequence[int] | Sequence[bool]
"""The columns of a step of a ColumnTransformer: by name, by position, as a slice or as
a mask.
"""

MISSING = "⟨missing⟩"
"""The value of a missing string in the graph: ONNX strings have no missing value. Its
brackets do not occur in data.
"""

MATRIX = "X"

ENCODERS = OneHotEncoder | OrdinalEncoder | TargetEncoder | CategoryTables
"""The estimators that read each column with its own type."""


def passes_on(step: Estimator) -> bool:
    """Return True if a step of a pipeline or a ColumnTransformer changes nothing."""
    return step in (None, "passthrough") or (
        isinstance(step, FunctionTransformer) and step.func is None
    )


def marks_nan(imputer: Estimator) -> bool:
    """Return True if an imputer or indicator treats only NaN as missing."""
    return isinstance(imputer.missing_values, float) and bool(np.isnan(imputer.missing_values))


def best_estimator(model: Estimator) -> Estimator:
    """Return the best estimator of a search, or the estimator in a wrapper. RFE becomes
    a pipeline of two steps.
    """
    while True:
        if type(model).__name__ == "FrozenEstimator":  # available since scikit-learn 1.6
            model = model.estimator
        elif isinstance(model, SelfTrainingClassifier):
            model = model.estimator_
        elif isinstance(model, RFE):
            return Pipeline(
                [
                    ("select", Selection(model.support_)),
                    ("predict", best_estimator(model.estimator_)),
                ]
            )
        elif isinstance(model, Pipeline):
            name, last = model.steps[-1]
            best = best_estimator(last)
            if best is last:
                return model
            return Pipeline([*model.steps[:-1], (name, best)])
        elif hasattr(model, "best_estimator_"):
            model = model.best_estimator_
        else:
            return model


def thawed(fitted: Estimator) -> Estimator:
    """Return the estimator, or a copy in which each FrozenEstimator is replaced by its
    inner estimator.
    """
    while True:
        frozen = {}
        for part in sub_estimators(fitted):
            if type(part).__name__ == "FrozenEstimator":
                frozen[id(part)] = part.estimator
        if not frozen:
            return fitted
        fitted = deepcopy(fitted, frozen)  # An inner estimator may be frozen too.


def is_linear(estimator: Estimator) -> bool:
    estimator = best_estimator(estimator)
    is_regression = isinstance(estimator, LinearModel) and is_regressor(estimator)
    return is_regression or isinstance(estimator, LinearClassifierMixin)


def sub_estimators(estimator: Estimator) -> Iterator[Estimator]:
    """Yield the estimator and all nested estimators, each once, in the order of their
    attributes.
    """
    seen: set[int] = set()
    waiting = [estimator]  # The next part is the last one.
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, BaseEstimator):
            yield part
            waiting.extend(reversed(list(vars(part).values())))
        elif isinstance(part, _CalibratedClassifier):  # This class is not a BaseEstimator.
            waiting.append(part.estimator)
        elif isinstance(part, list | tuple):
            waiting.extend(reversed(part))
        elif isinstance(part, dict):
            waiting.extend(reversed(list(part.values())))
        elif isinstance(part, np.ndarray) and part.dtype.kind == "O":
            # GradientBoosting stores its trees in an array.
            waiting.extend(reversed(part.ravel().tolist()))


def library_of(estimator: Estimator) -> str:
    """Return the boosting library of an estimator or of its native booster, or "" for
    other estimators.
    """
    package = type(getattr(estimator, "native_booster", estimator)).__module__.partition(".")[0]
    if package in ("xgboost", "lightgbm", "catboost"):
        return package
    return ""


def compares_in_64_bits(estimator: Estimator) -> bool:
    """Return True for LightGBM and HistGradientBoosting, which do not round features to
    32 bits.
    """
    return hasattr(estimator, "_predictors") or library_of(estimator) == "lightgbm"


def last_step(estimator: Estimator) -> Estimator:
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[-1][1]
    return estimator


def first_steps(estimator: Estimator) -> list[Estimator]:
    """Return the estimators that read the input: the first step of a pipeline, and of
    each member of an ensemble.
    """
    estimator = best_estimator(estimator)
    match estimator:
        case Pipeline():
            return first_steps(estimator.steps[0][1])
        case TransformedTargetRegressor():
            return first_steps(estimator.regressor_)
        case FixedThresholdClassifier() | TunedThresholdClassifierCV():
            return first_steps(getattr(estimator, "estimator_", estimator.estimator))
        case CalibratedClassifierCV():
            members = [part.estimator for part in estimator.calibrated_classifiers_]
        case (
            OneVsRestClassifier()
            | VotingClassifier()
            | VotingRegressor()
            | StackingClassifier()
            | StackingRegressor()
            | MultiOutputClassifier()
            | MultiOutputRegressor()
        ):
            members = estimator.estimators_
        case _:
            return [estimator]
    return _first_steps_of(members)


def _first_steps_of(members: Iterable[Estimator]) -> list[Estimator]:
    return list(chain.from_iterable(map(first_steps, members)))


def column_transformers(estimator: Estimator) -> list[ColumnTransformer]:
    """Return the ColumnTransformers that read the input, or [] if the first step reads
    all columns.
    """
    return [step for step in first_steps(estimator) if isinstance(step, ColumnTransformer)]


def is_tree(estimator: Estimator) -> bool:
    """Return True for a fitted decision tree. Estimators of other libraries may have
    another kind of `tree_`.
    """
    return isinstance(getattr(estimator, "tree_", None), Tree)


def encoders(estimator: Estimator) -> list[Estimator]:
    return [part for part in sub_estimators(estimator) if isinstance(part, ENCODERS)]


def encoded_columns(transformer: ColumnTransformer) -> set[str]:
    """Return the names of the columns that an encoder in one of the steps may read."""
    names = feature_names(transformer)
    encoded: set[str] = set()
    for _, step, columns in named_steps(transformer):
        if encoders(step):
            encoded.update(names[index] for index in columns)
    return encoded


def feature_names(transformer: ColumnTransformer) -> list[str]:
    """Return the names of the columns, or their positions for an array."""
    names = getattr(transformer, "feature_names_in_", range(transformer.n_features_in_))
    return [str(name) for name in names]


def column_names(columns: ColumnKeys, names: list[str]) -> list[str]:
    """Return the names of a step's columns. `names` are all columns of its
    ColumnTransformer.
    """
    if isinstance(columns, str):
        return [columns]
    if isinstance(columns, slice):
        return names[columns]
    if isinstance(columns, int):
        return [names[columns]]
    keys: list[Any] = list(columns)
    # A boolean of Python, numpy or pandas.
    if keys and all(
        isinstance(key, bool) or str(getattr(key, "dtype", "")) == "bool" for key in keys
    ):
        return [name for name, is_read in zip(names, keys, strict=True) if is_read]
    if all(isinstance(key, str) for key in keys):
        return keys
    return [names[int(key)] for key in keys]


def named_steps(transformer: ColumnTransformer) -> list[tuple[str, Estimator, list[int]]]:
    """Return the steps of a ColumnTransformer that read columns, as (name, step, column
    positions).
    """
    names = feature_names(transformer)
    steps = []
    for name, step, columns in transformer.transformers_:
        if step == "drop":
            continue
        positions = [names.index(column) for column in column_names(columns, names)]
        if positions:
            steps.append((name, step, positions))
    return steps


def bind_inputs(
    model: Estimator, fitted: Estimator, batch: ModelInput, float_dtype: str
) -> tuple[Input, ...]:
    """Return the graph's inputs: a matrix if the columns have the same type and no
    ColumnTransformer selects among them, otherwise an input per column.

    Args:
        model: the user's model, which determines where strings may be missing.
        fitted: the model with stand-ins.
        batch: the example.
        float_dtype: the type of numbers, except for integers and booleans that an
            encoder reads.
    """
    if not isinstance(batch, pd.DataFrame):
        array = batch[""]
        dtype = "str" if array.dtype.kind in "OUT" else float_dtype
        return (Input(MATRIX, dtype, (-1, array.shape[1])),)
    columns = columns_of(batch)
    texts = [column.name for column in columns if column.type == "string"]
    # A text may be missing if the model accepts a missing value in its column.
    optional_texts: set[str] = set()
    # Calls are slow for a wide table: the number of tried columns doubles after a
    # success and is halved after an error.
    start = 0
    count = len(texts)
    while start < len(texts):
        tried = texts[start : start + count]
        if _accepts_gaps(model, batch, tried):
            optional_texts.update(tried)
            count *= 2
        elif len(tried) > 1:
            count = len(tried) // 2
            continue
        start += len(tried)
    encoded = set().union(*map(encoded_columns, column_transformers(fitted)))
    if library_of(fitted):  # Boosters encode pandas categories.
        encoded.update(map(str, batch.select_dtypes("category")))
    have_same_type = len(texts) in (0, len(columns)) and (texts or not encoded)
    if have_same_type and not column_transformers(fitted):
        dtype = float_dtype
        if texts:
            dtype = "str"
        elif encoders(fitted) and all(map(_is_code, columns)):
            dtype = "int64"
        return (_input(MATRIX, dtype, columns, bool(texts) and optional_texts >= {*texts}),)
    inputs = []
    for column in columns:
        dtype = float_dtype
        if column.name in texts:
            dtype = "str"
        elif column.name in encoded and _is_code(column):
            dtype = "int64"
        inputs.append(_input(column.name, dtype, [column], column.name in optional_texts))
    return tuple(inputs)


def _input(name: str, dtype: str, columns: Sequence[Column], is_optional: bool) -> Input:
    """Return an input that stacks columns. `is_optional` is True if its strings may be
    missing.
    """
    names = tuple(column.name for column in columns)
    missing = MISSING if is_optional else None
    return Input(name, dtype, shape=(-1, len(columns)), columns=names, missing=missing)


def is_fitted(model: Estimator, batch: ModelInput | None) -> bool:
    """Return True for a fitted estimator, including libraries without scikit-learn's
    attribute names (NGBoost).
    """
    try:
        check_is_fitted(model)
        return True
    except NotFittedError:
        pass
    except Exception:  # noqa: BLE001 - a class without `fit` cannot be unfitted.
        return True
    if batch is None:
        return False
    with suppress(Exception):  # An unfitted estimator may raise any error.
        first_row = Batch(batch).take(slice(0, 1)).data
        model.predict(estimator_input(model, first_row))
        return True
    return False


def estimator_input(model: Estimator, batch: ModelInput) -> pd.DataFrame | pd.Series | Array:
    """Return a batch as input for the estimator: a table, a matrix, or a column of
    strings.
    """
    if not isinstance(batch, pd.DataFrame):
        return batch[""]
    steps = first_steps(model)
    if isinstance(steps[0], FeatureUnion):
        steps = _first_steps_of(part for _, part in steps[0].transformer_list)
    if any(isinstance(step, CountVectorizer | HashingVectorizer) for step in steps):
        return batch.iloc[:, 0]
    return batch


def _accepts_gaps(model: Estimator, batch: pd.DataFrame, texts: Sequence[str]) -> bool:
    """Return True if the model predicts a row without values in the text columns."""

    def predict(row: ModelInput) -> dict[str, Array]:
        return {"": model.predict(estimator_input(model, row))}

    gaps = {}
    for name in texts:
        gap = pd.Series([missing_value(batch[name])], batch.index[:1])
        gaps[name] = gap.astype(batch[name].dtype)
    try:
        call_original(predict, batch.head(1).assign(**gaps))
    except InvalidConfig:
        return False
    return True


def _is_code(column: Column) -> bool:
    """Return True for a column of integers or booleans, which may be categories."""
    return column.type in ("integer", "long", "boolean")
