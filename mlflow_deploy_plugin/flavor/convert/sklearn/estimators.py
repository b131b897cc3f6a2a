"""The parts of fitted scikit-learn estimators, their ONNX inputs, and the copy of the model that reads them.

A matrix, and a table whose columns are all treated alike, become one input [N, k]: one array to fill for a request. A
table from which a ColumnTransformer picks becomes one input [N, 1] for each column, under the column's name.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, is_regressor
from sklearn.calibration import CalibratedClassifierCV, _CalibratedClassifier
from sklearn.cluster._kmeans import _BaseKMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    AdaBoostClassifier,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.feature_selection import RFE, SelectorMixin
from sklearn.linear_model import LinearRegression
from sklearn.linear_model._base import LinearClassifierMixin, LinearModel
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, TargetEncoder
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.utils.validation import check_is_fitted

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.flavor.batch import Batch, columns_of, missing_value, take_rows
from mlflow_deploy_plugin.flavor.convert.converted import call_original
from mlflow_deploy_plugin.runtime import Array, Column, Input

MISSING = "⟨missing⟩"
"""The value of a missing text in the graph: ONNX strings have no missing value. Nobody types its brackets."""

MATRIX = "X"


class _Fitted(BaseEstimator):  # type: ignore[misc]
    def fit(self, rows: Any, target: Any = None) -> "_Fitted":
        return self  # scikit-learn asks for this method before it takes an estimator as one


class Selection(SelectorMixin, _Fitted):  # type: ignore[misc]
    """The columns that a recursive elimination has kept: `support` are booleans [k]."""

    def __init__(self, support: Array) -> None:
        self.support = support
        self.n_features_in_ = len(support)

    def _get_support_mask(self) -> Array:
        return self.support


class LaterColumns(TransformerMixin, _Fitted):  # type: ignore[misc]
    """A ColumnTransformer of what the steps before it have made: each step with the positions of its columns.

    skl2onnx picks by names and positions of the graph's inputs only.
    """

    stands_for = "ColumnTransformer"

    def __init__(self, parts: list[tuple[Any, list[int]]], n_features_in_: int) -> None:
        self.parts, self.n_features_in_ = parts, n_features_in_

    @classmethod
    def of(cls, model: ColumnTransformer) -> "LaterColumns":
        return cls([(step, positions) for _, step, positions in cls.named_parts(model)], model.n_features_in_)

    @staticmethod
    def named_parts(model: ColumnTransformer) -> list[tuple[str, Any, list[int]]]:
        """Return the name of each step that reads columns, the step, and their positions."""
        names = [str(name) for name in getattr(model, "feature_names_in_", range(model.n_features_in_))]
        return [
            (entry, step, [names.index(str(name)) for name in column_names(columns, names)])
            for entry, step, columns in model.transformers_
            if step != "drop" and column_names(columns, names)
        ]


class CategoryTables(TransformerMixin, _Fitted):  # type: ignore[misc]
    """An encoder of any library, by what it makes of each category: numbers that are looked up.

    `tables` has an array [categories + 1, numbers] for each column, in the order of `categories_`; the last row is for
    what is unknown.
    """

    def __init__(self, categories_: list[Array], tables: list[Array]) -> None:
        self.categories_, self.tables = categories_, tables
        self.n_features_in_ = len(categories_)

    def transform(self, rows: pd.DataFrame) -> Array:
        columns = zip(rows.columns, self.categories_, self.tables, strict=True)
        return np.hstack([table[pd.Index(known).get_indexer(pd.Index(rows[name]))] for name, known, table in columns])


class GroupedCategories(TransformerMixin, _Fitted):  # type: ignore[misc]
    """A step that makes one text of all but the known categories; a missing text stays so."""

    def __init__(self, known: list[str], fill_value: str) -> None:
        self.known, self.fill_value = known, fill_value

    def transform(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows.where(rows.isin(self.known), self.fill_value)


class Computed(TransformerMixin, _Fitted):  # type: ignore[misc]
    """A step of another library, as a function of columns [N, k].

    Attributes:
        refuses: why it refuses a row.
        tests: the numbers that it refuses: ONNX's tests, each with a bound for all columns or one for each.
        stands_for: the class of that library, which errors name.
    """

    def __init__(self, compute: Any, refuses: str = "", tests: Any = None, stands_for: str = "") -> None:
        self.compute, self.refuses, self.tests, self.stands_for = compute, refuses, tests, stands_for

    def transform(self, rows: Any) -> Any:
        return self.compute(np.asarray(rows, np.float64))


class Intervals(TransformerMixin, _Fitted):  # type: ignore[misc]
    """A step that makes of one column the position of its interval, each with its upper edge.

    What is outside of all intervals is NaN, or refused as `tests` say; all but `edges` is as in `Computed`.
    """

    n_features_in_ = 1
    refuses = "takes numbers within its intervals only"

    def __init__(self, edges: Array, tests: Any = None, stands_for: str = "") -> None:
        self.edges, self.tests, self.stands_for = edges, tests, stands_for

    def transform(self, rows: Any) -> Any:
        outside = (rows < self.edges[0]) | (rows > self.edges[-1])
        return np.where(outside, np.nan, np.digitize(rows, self.edges[1:-1], right=True).astype(np.float64))


class AdditiveModel(_Fitted):
    """A sum of numbers that are looked up: one for each term, by the bins of one column or several.

    Attributes:
        cuts: the position of each binned column, and its ascending cuts; None where it has the number of its bin.
        strides: how many rows of `scores` the next bin of each binned column is further, [binned, terms].
        offsets: the row of `scores` at which each term begins, [terms].
        scores: the numbers of all terms, [rows, 1 or classes].
        intercept / link: what is added, and the function of the sums that is answered.
    """

    def __init__(
        self,
        cuts: list[tuple[int, Array | None]],
        strides: Array,
        offsets: Array,
        scores: Array,
        intercept: Array,
        link: str,
    ) -> None:
        self.cuts, self.strides, self.offsets, self.scores = cuts, strides, offsets, scores
        self.intercept, self.link = intercept, link
        self.n_features_in_ = 1 + max(position for position, _ in cuts)


class AdditiveClassifier(ClassifierMixin, AdditiveModel):  # type: ignore[misc]
    """Likewise, of classes: by the sign of the sum, or the largest of several."""

    classes_: Array


_ENCODERS = (OneHotEncoder, OrdinalEncoder, TargetEncoder, CategoryTables)


class Transforming(TransformerMixin, _Fitted):  # type: ignore[misc]
    """A predictor that stands where its `transform` is asked, and not its `predict`, as skl2onnx always does."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator
        self.n_features_in_ = estimator.n_features_in_


class SeveralTargets(MultiOutputRegressor):  # type: ignore[misc]
    """An estimator for each target, of labels too; skl2onnx takes no pipelines there, nor classes without scores."""


def _transforming(step: Any) -> Any:
    if isinstance(step, Pipeline):
        step.steps[-1:] = [(name, _transforming(last)) for name, last in step.steps[-1:]]
    replaced = isinstance(step, _BaseKMeans | LinearDiscriminantAnalysis) and hasattr(step, "n_features_in_")
    return Transforming(step) if replaced else step


def passes_on(step: Any) -> bool:
    """Return True if a step of a pipeline or a ColumnTransformer changes nothing."""
    return step in (None, "passthrough") or (isinstance(step, FunctionTransformer) and step.func is None)


def marks_nan(imputer: Any) -> bool:
    """Return True if an imputer or indicator takes NaN, and nothing else, as missing."""
    return isinstance(imputer.missing_values, float) and bool(np.isnan(imputer.missing_values))


def best_estimator(model: Any) -> Any:
    """Return the estimator that answers: the one that a search has found, or that only stands within another.

    A recursive elimination (RFE) becomes a pipeline of its selection and its estimator.
    """
    while True:
        if type(model).__name__ == "FrozenEstimator":  # scikit-learn has it from 1.6 on
            model = model.estimator
        elif isinstance(model, SelfTrainingClassifier):
            model = model.estimator_
        elif isinstance(model, RFE):
            return Pipeline([("select", Selection(model.support_)), ("predict", best_estimator(model.estimator_))])
        elif isinstance(model, Pipeline) and (last := best_estimator(model.steps[-1][1])) is not model.steps[-1][1]:
            return Pipeline([*model.steps[:-1], (model.steps[-1][0], last)])
        elif hasattr(model, "best_estimator_"):
            model = model.best_estimator_
        else:
            return model


def thawed(fitted: Any) -> Any:
    """Return the estimator, or a copy in which the frozen estimators stand themselves, as steps too."""
    while frozen := [part for part in sub_estimators(fitted) if type(part).__name__ == "FrozenEstimator"]:
        fitted = deepcopy(fitted, {id(part): part.estimator for part in frozen})
    return fitted


def is_linear(estimator: Any) -> bool:
    """Return True for a linear classifier or regression."""
    estimator = best_estimator(estimator)
    is_regression = isinstance(estimator, LinearModel) and is_regressor(estimator)
    return is_regression or isinstance(estimator, LinearClassifierMixin)


def sub_estimators(estimator: Any) -> Iterator[Any]:
    """Yield the estimator and all estimators within it, however deep, each once."""
    seen: set[int] = set()
    waiting = [estimator]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, BaseEstimator):
            yield part
            waiting.extend(reversed(list(vars(part).values())))
        elif isinstance(part, _CalibratedClassifier):  # is no estimator itself
            waiting.append(part.estimator)
        elif isinstance(part, list | tuple):
            waiting.extend(reversed(part))
        elif isinstance(part, dict):
            waiting.extend(reversed(list(part.values())))
        elif isinstance(part, np.ndarray) and part.dtype.kind == "O":
            waiting.extend(reversed(part.ravel().tolist()))  # GradientBoosting keeps its trees in an array


def library_of(estimator: Any) -> str:
    """Return the boosting library of an estimator's class, or of the booster that it holds; empty if there is none."""
    package = type(getattr(estimator, "native_booster", estimator)).__module__.partition(".")[0]
    return package if package in ("xgboost", "lightgbm", "catboost") else ""


def compares_in_64_bits(estimator: Any) -> bool:
    """Return True for LightGBM and scikit-learn's boosting by histograms, which do not round features to 32 bits."""
    return hasattr(estimator, "_predictors") or library_of(estimator) == "lightgbm"


def last_step(estimator: Any) -> Any:
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[-1][1]
    return estimator


def first_steps(estimator: Any) -> list[Any]:
    """Return the estimators that read the input: the first step of a pipeline, and of those within another one."""
    estimator = best_estimator(estimator)
    match estimator:
        case Pipeline():
            return first_steps(estimator.steps[0][1])
        case TransformedTargetRegressor():
            return first_steps(estimator.regressor_)
        case FixedThresholdClassifier() | TunedThresholdClassifierCV():
            return first_steps(getattr(estimator, "estimator_", estimator.estimator))
        case CalibratedClassifierCV():
            within = [part.estimator for part in estimator.calibrated_classifiers_]
        case (
            OneVsRestClassifier()
            | VotingClassifier()
            | VotingRegressor()
            | StackingClassifier()
            | StackingRegressor()
            | MultiOutputClassifier()
            | MultiOutputRegressor()
        ):
            within = estimator.estimators_
        case _:
            return [estimator]
    return [step for one in within for step in first_steps(one)]


def column_transformers(estimator: Any) -> list[ColumnTransformer]:
    """Return the ColumnTransformers that read the input; none if the first step takes all columns alike."""
    return [step for step in first_steps(estimator) if isinstance(step, ColumnTransformer)]


def encoders(estimator: Any) -> list[Any]:
    return [part for part in sub_estimators(estimator) if isinstance(part, _ENCODERS)]


def encoded_columns(transformer: ColumnTransformer) -> set[str]:
    """Return the names of the columns that an encoder reads as categories."""
    names = list(getattr(transformer, "feature_names_in_", ()))
    found: set[str] = set()
    for _, step, columns in transformer.transformers_:
        if encoders(step):
            found |= set(column_names(columns, names))
    return found


def column_names(columns: Any, names: list[str]) -> list[str]:
    """Return a ColumnTransformer's columns, however they were given, as names."""
    if isinstance(columns, str):
        return [columns]
    if isinstance(columns, slice):
        return names[columns]
    if isinstance(columns, int):
        return [names[columns]]
    listed = list(columns)
    if listed and all(isinstance(entry, bool) or str(getattr(entry, "dtype", "")) == "bool" for entry in listed):
        return [name for name, chosen in zip(names, listed, strict=True) if chosen]
    return [entry if isinstance(entry, str) else names[int(entry)] for entry in listed]


def bind_inputs(model: Any, fitted: Any, batch: Batch, float_dtype: str) -> tuple[Input, ...]:
    """Return the graph's inputs: numbers in `float_dtype`, except integers and booleans that an encoder reads."""
    if not isinstance(batch, pd.DataFrame):
        array = batch[""]
        return (Input(MATRIX, "str" if array.dtype.kind in "OUT" else float_dtype, (-1, array.shape[1])),)
    columns = columns_of(batch)
    texts = [column.name for column in columns if column.type == "string"]
    missing = dict.fromkeys(_may_be_missing(model, batch, texts), MISSING)
    transformers = column_transformers(fitted)
    # a booster reads the categories of pandas itself, as texts or integers
    coded = {name for name in batch if library_of(fitted) and isinstance(batch[name].dtype, pd.CategoricalDtype)}
    if not transformers and (not coded or texts) and len(texts) in (0, len(columns)):
        names = tuple(column.name for column in columns)
        codes = not texts and bool(encoders(fitted)) and all(_is_code(column) for column in columns)
        dtype = "str" if texts else "int64" if codes else float_dtype
        missing_text = MISSING if texts and len(missing) == len(texts) else None
        return (Input(MATRIX, dtype, (-1, len(names)), names, missing_text),)
    encoded = {name for transformer in transformers for name in encoded_columns(transformer)} | set(map(str, coded))
    inputs = []
    for column in columns:
        is_encoded = column.name in encoded and _is_code(column)
        dtype = "str" if column.name in texts else "int64" if is_encoded else float_dtype
        inputs.append(Input(column.name, dtype, (-1, 1), (column.name,), missing.get(column.name)))
    return tuple(inputs)


def is_fitted(model: Any, batch: Batch | None) -> bool:
    """Return True for a fitted estimator, also of a library that names what it learns in its own way (NGBoost)."""
    with suppress(NotFittedError):
        check_is_fitted(model)
        return True
    if batch is not None:
        with suppress(Exception):  # of a model that is not fitted, about anything
            model.predict(estimator_input(model, take_rows(batch, slice(0, 1))))
            return True
    return False


def estimator_input(model: Any, batch: Batch) -> Any:
    """Return a batch as the estimator itself takes it: a table, a matrix, or a column of texts."""
    if not isinstance(batch, pd.DataFrame):
        return batch[""]
    steps = first_steps(model)
    if isinstance(steps[0], FeatureUnion):
        steps = [step for _, part in steps[0].transformer_list for step in first_steps(part)]
    return batch.iloc[:, 0] if any(isinstance(step, CountVectorizer | HashingVectorizer) for step in steps) else batch


def convertible_copy(fitted: Any) -> Any:
    """Return a copy that skl2onnx reads correctly: columns by name, categories without booleans and missing texts."""
    copy = deepcopy(fitted)  # skl2onnx changes some estimators, and so does this function
    for encoder in encoders(copy):
        if hasattr(encoder, "categories_"):
            encoder.categories_ = [_readable(categories) for categories in encoder.categories_]
    for part in sub_estimators(copy):
        _prepare(part)
    for part in sub_estimators(copy):
        if isinstance(part, Pipeline):
            while all(isinstance(step, ColumnTransformer) for _, step in part.steps[:2]) and len(part.steps) > 1:
                if not _merged(part.steps[0][1], part.steps[1][1]):
                    break
                del part.steps[1]
            part.steps[1:] = [
                (name, LaterColumns.of(step) if isinstance(step, ColumnTransformer) else step)
                for name, step in part.steps[1:]
            ]
    transformers = column_transformers(copy)
    for transformer in transformers:
        if hasattr(transformer, "feature_names_in_"):
            names = list(transformer.feature_names_in_)
            parts = [(name, step, column_names(columns, names)) for name, step, columns in transformer.transformers_]
            transformer.transformers_ = [
                (name, "passthrough" if passes_on(step) else step, some)
                for name, step, columns in parts
                for some in (([one] for one in columns) if passes_on(step) else [columns])
            ]
    for part in sub_estimators(copy):
        if all(part is not transformer for transformer in transformers):
            vars(part).pop("feature_names_in_", None)  # skl2onnx would look for them among the graph's inputs
    return copy


def _merged(first: ColumnTransformer, second: ColumnTransformer) -> bool:
    """Make the first ColumnTransformer do the second one's steps, too; False if a step reads what several have made.

    So the texts that the first one fills in stay apart from numbers until the second one encodes them.
    """
    names = list(getattr(first, "feature_names_in_", range(first.n_features_in_)))
    made_by = {place: entry for entry in first.transformers_ for place in _places(first.output_indices_[entry[0]])}
    merged: list[tuple[str, Any, list[Any]]] = []
    outputs: dict[str, slice] = {}
    width = 0
    for entry, later, positions in LaterColumns.named_parts(second):
        makers = [made_by[place][0] for place in positions]
        passed = [
            [place for _, place in some] for _, some in groupby(zip(makers, positions, strict=True), itemgetter(0))
        ]
        for read in passed if passes_on(later) else [positions]:
            name, step, columns = made_by[read[0]]
            made = _places(first.output_indices_[name])
            if not {*read} <= {*made}:
                return False
            columns, inside = column_names(columns, names), [made.index(position) for position in read]
            if passes_on(step):
                columns, step = [columns[place] for place in inside], later
            elif inside != list(range(len(made))):
                step = Pipeline([("first", step), ("then", LaterColumns([(later, inside)], len(made)))])
            elif not passes_on(later):
                step = Pipeline([("first", step), ("then", later)])
            count = len(read) if passes_on(later) else len(_places(second.output_indices_[entry]))
            outputs[f"step {len(merged)}"] = slice(width, width + count)
            merged.append((f"step {len(merged)}", step, columns))
            width += count
    first.transformers_, first.output_indices_ = merged, outputs
    return True


def _places(made: slice) -> range:
    return range(made.start, made.stop)


def _prepare(part: Any) -> None:
    """Change the options of an estimator that skl2onnx does not read, and that change no prediction."""
    if type(part).__module__.startswith("imblearn.ensemble") and hasattr(part, "estimators_"):
        # they learn from other rows than their ancestors, and answer alike
        part.__class__ = next(kind for kind in type(part).__mro__ if kind.__module__.startswith("sklearn.ensemble"))
    if isinstance(part, AdaBoostClassifier) and getattr(part, "classes_", np.empty(0)).dtype.kind == "b":
        # skl2onnx takes these for texts
        part.classes_ = part.classes_.astype(np.int64)
    if isinstance(part, MultiOutputRegressor) and all(map(is_linear, getattr(part, "estimators_", [None]))):
        linear = [best_estimator(one) for one in part.estimators_]
        weights = {
            "coef_": np.array([one.coef_ for one in linear]),
            "intercept_": np.ravel([one.intercept_ for one in linear]),
        }
        vars(part).update(vars(LinearRegression()) | weights)
        part.__class__ = LinearRegression  # of all targets at once
    elif isinstance(part, MultiOutputClassifier | MultiOutputRegressor):
        part.__class__ = SeveralTargets
    if hasattr(part, "sparse_output"):
        part.sparse_output = False  # a graph has no sparse arrays; the numbers are the same
    if hasattr(part, "tree_"):  # infinity, which sends only missing values to the right, hangs skl2onnx 1.20
        threshold = part.tree_.threshold
        threshold[np.isinf(threshold)] = np.finfo(np.float32).max
    if isinstance(part, ColumnTransformer) and hasattr(part, "transformers_"):
        weights, part.transformer_weights = dict(part.transformer_weights or {}), None
        part.transformers_ = [(name, _transforming(step), columns) for name, step, columns in part.transformers_]
        for place, (name, step, columns) in enumerate(part.transformers_):
            if name in weights and step != "drop":
                weigh = FunctionTransformer(partial(np.multiply, weights[name]))
                part.transformers_[place] = name, Pipeline([("make", step), ("weigh", weigh)]), columns
    if isinstance(part, FeatureUnion):
        part.transformer_list = [(name, _transforming(step)) for name, step in part.transformer_list if step != "drop"]
    if isinstance(part, Pipeline):  # skl2onnx supports no step that does nothing; samplers of imblearn only train
        steps = [step for step in part.steps[:-1] if not passes_on(step[1]) and not hasattr(step[1], "fit_resample")]
        part.steps = [(name, _transforming(step)) for name, step in steps] + part.steps[-1:]


def _may_be_missing(model: Any, batch: pd.DataFrame, texts: Sequence[str]) -> set[str]:
    """Return the texts without which the model itself predicts a row.

    A call takes twice as many texts after an answer, and half as many after a refusal: each takes as long as the table
    is wide.
    """
    found: set[str] = set()
    start, size = 0, len(texts)
    while some := texts[start : start + size]:
        gaps = {
            name: pd.Series([missing_value(batch[name])], batch.index[:1]).astype(batch[name].dtype) for name in some
        }
        try:
            row = batch.head(1).assign(**gaps)
            call_original(lambda batch: {"": model.predict(estimator_input(model, batch))}, row)
        except InvalidConfig:
            if len(some) > 1:
                size = len(some) // 2
                continue
        else:
            found.update(some)
            size *= 2
        start += len(some)
    return found


def _is_code(column: Column) -> bool:
    return column.type in ("integer", "long", "boolean")


def _readable(categories: Array) -> Array:
    if categories.dtype.kind == "b" or (len(categories) and all(isinstance(entry, bool) for entry in categories)):
        return categories.astype(np.int64)
    if categories.dtype.kind == "O" and any(pd.isna(entry) for entry in categories):
        return np.array([MISSING if pd.isna(entry) else entry for entry in categories], dtype=object)
    return categories
