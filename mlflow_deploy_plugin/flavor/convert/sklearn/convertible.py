"""The copy of a fitted estimator that skl2onnx converts correctly.

Options that skl2onnx does not read are changed where that changes no prediction, and steps that it cannot convert are
replaced by the ones of `stand_ins.py`.
"""

from copy import deepcopy
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from sklearn.cluster._kmeans import _BaseKMeans
from sklearn.compose import ColumnTransformer
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer

from mlflow_deploy_plugin.flavor.convert.sklearn.estimators import (
    MISSING,
    column_names,
    column_transformers,
    encoders,
    named_steps,
    passes_on,
    sub_estimators,
)
from mlflow_deploy_plugin.flavor.convert.sklearn.stand_ins import LaterColumns, SeveralTargets, Transforming
from mlflow_deploy_plugin.runtime import Array


def convertible_copy(fitted: Any) -> Any:
    """Return a copy that skl2onnx converts correctly; the estimator itself stays unchanged."""
    copy = deepcopy(fitted)
    for encoder in encoders(copy):
        if hasattr(encoder, "categories_"):
            encoder.categories_ = [_graph_categories(categories) for categories in encoder.categories_]
    for part in sub_estimators(copy):
        _change_kind(part)
        _use_transforms(part)
    for part in sub_estimators(copy):
        if isinstance(part, Pipeline):
            _replace_later_columns(part)
    transformers = column_transformers(copy)
    for transformer in transformers:
        if hasattr(transformer, "feature_names_in_"):
            names, steps = list(transformer.feature_names_in_), []
            for name, step, columns in transformer.transformers_:
                read = column_names(columns, names)
                # a step for each column that is passed on, so that texts and numbers are not joined
                apart = [[column] for column in read] if passes_on(step) else [read]
                steps += [(name, "passthrough" if passes_on(step) else step, some) for some in apart]
            transformer.transformers_ = steps
    for part in sub_estimators(copy):
        if all(part is not transformer for transformer in transformers):
            vars(part).pop("feature_names_in_", None)  # skl2onnx would look for them among the graph's inputs
    return copy


def _graph_categories(categories: Array) -> Array:
    """Return the categories as the graph has them: booleans are integers, and missing ones are the text `MISSING`."""
    if categories.dtype.kind == "b" or (len(categories) and all(isinstance(entry, bool) for entry in categories)):
        return categories.astype(np.int64)
    if categories.dtype.kind == "O" and any(pd.isna(entry) for entry in categories):
        return np.array([MISSING if pd.isna(entry) else entry for entry in categories], dtype=object)
    return categories


def _change_kind(part: Any) -> None:
    """Change the class or the options of an estimator to those that skl2onnx reads; predictions stay the same."""
    # ensembles of imbalanced-learn learn from other rows than scikit-learn's, and predict alike
    if type(part).__module__.startswith("imblearn.ensemble") and hasattr(part, "estimators_"):
        part.__class__ = next(kind for kind in type(part).__mro__ if kind.__module__.startswith("sklearn.ensemble"))
    if hasattr(part, "sparse_output"):
        part.sparse_output = False  # a graph has none, and the numbers are the same
    if isinstance(part, MultiOutputClassifier | MultiOutputRegressor):
        part.__class__ = SeveralTargets


def _use_transforms(part: Any) -> None:
    """Replace the steps that are used by their `transform`, write weights as steps, and leave out idle steps."""
    if isinstance(part, ColumnTransformer) and hasattr(part, "transformers_"):
        weights, part.transformer_weights = part.transformer_weights or {}, None
        for place, (name, step, columns) in enumerate(part.transformers_):
            used = _transforming(step)
            if name in weights and step != "drop":
                weigh = FunctionTransformer(partial(np.multiply, weights[name]))
                used = Pipeline([("make", used), ("weigh", weigh)])
            part.transformers_[place] = name, used, columns
    elif isinstance(part, FeatureUnion):
        part.transformer_list = [(name, _transforming(step)) for name, step in part.transformer_list if step != "drop"]
    elif isinstance(part, Pipeline):
        # skl2onnx supports no step that does nothing. Samplers of imbalanced-learn are used in training only.
        steps = [step for step in part.steps[:-1] if not passes_on(step[1]) and not hasattr(step[1], "fit_resample")]
        part.steps = [(name, _transforming(step)) for name, step in steps] + part.steps[-1:]


def _transforming(step: Any) -> Any:
    if isinstance(step, Pipeline):
        step.steps[-1:] = [(name, _transforming(last)) for name, last in step.steps[-1:]]
    replaced = isinstance(step, _BaseKMeans | LinearDiscriminantAnalysis) and hasattr(step, "n_features_in_")
    return Transforming(step) if replaced else step


def _replace_later_columns(pipeline: Pipeline) -> None:
    """Merge the ColumnTransformers at the start of a pipeline, and replace all others behind the first step.

    skl2onnx selects columns only from the graph's inputs.
    """
    while len(pipeline.steps) > 1:
        first, second = (step for _, step in pipeline.steps[:2])
        if not (isinstance(first, ColumnTransformer) and isinstance(second, ColumnTransformer)):
            break
        if not _merge(first, second):
            break
        del pipeline.steps[1]
    for position, (name, step) in enumerate(pipeline.steps):
        if position > 0 and isinstance(step, ColumnTransformer):
            parts = [(inner, positions) for _, inner, positions in named_steps(step)]
            pipeline.steps[position] = name, LaterColumns(parts, step.n_features_in_)


def _merge(first: ColumnTransformer, second: ColumnTransformer) -> bool:
    """Make the first ColumnTransformer do the steps of the second one, too; return False if that is impossible.

    It is impossible if a step of the second one reads columns that several steps of the first one have made. Merged,
    the texts that the first one fills in are not joined with numbers before the second one encodes them.
    """
    names = list(getattr(first, "feature_names_in_", range(first.n_features_in_)))
    maker_of = {place: maker for maker in first.transformers_ for place in _places(first.output_indices_[maker[0]])}
    merged: list[tuple[str, Any, list[Any]]] = []
    outputs: dict[str, slice] = {}
    width = 0
    for second_name, later, positions in named_steps(second):
        # columns that are passed on may have several makers: each maker then gets a step of its own
        by_maker = [list(run) for _, run in groupby(positions, lambda position: maker_of[position][0])]
        for read in by_maker if passes_on(later) else [positions]:
            name, step, columns = maker_of[read[0]]
            made = _places(first.output_indices_[name])
            if not set(read) <= set(made):
                return False
            columns = column_names(columns, names)
            inside = [position - made.start for position in read]
            if passes_on(step):
                columns, step = [columns[place] for place in inside], later
            elif inside != list(range(len(made))):
                step = Pipeline([("first", step), ("then", LaterColumns([(later, inside)], len(made)))])
            elif not passes_on(later):
                step = Pipeline([("first", step), ("then", later)])
            count = len(read) if passes_on(later) else len(_places(second.output_indices_[second_name]))
            merged_name = f"step {len(merged)}"
            outputs[merged_name] = slice(width, width + count)
            merged.append((merged_name, step, columns))
            width += count
    first.transformers_, first.output_indices_ = merged, outputs
    return True


def _places(made: slice) -> range:
    return range(made.start, made.stop)
