"""Copy a fitted estimator for skl2onnx, with changed options and stand-ins for some steps."""

from copy import deepcopy
from functools import partial

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
    Estimator,
    encoders,
    passes_on,
    sub_estimators,
)
from mlflow_deploy_plugin.flavor.convert.sklearn.stand_ins import SeveralTargets, Transforming
from mlflow_deploy_plugin.runtime.feeds import Array


def convertible_copy(fitted: Estimator) -> Estimator:
    """Return a copy that skl2onnx converts correctly. The estimator is not changed."""
    copy = deepcopy(fitted)
    for encoder in encoders(copy):
        if hasattr(encoder, "categories_"):
            encoder.categories_ = [_graph_categories(categories) for categories in encoder.categories_]
    for part in sub_estimators(copy):
        _change_kind(part)
        _use_transforms(part)
        if not isinstance(part, ColumnTransformer):
            part.__dict__.pop("feature_names_in_", None)  # skl2onnx would expect graph inputs with these names.
    return copy


def _graph_categories(categories: Array) -> Array:
    """Convert categories for the graph: booleans to integers, and missing values to the string `MISSING`."""
    if categories.dtype.kind == "b" or (len(categories) and all(isinstance(entry, bool) for entry in categories)):
        return categories.astype(np.int64)
    if categories.dtype.kind == "O" and any(pd.isna(entry) for entry in categories):
        return np.array([MISSING if pd.isna(entry) else entry for entry in categories], dtype=object)
    return categories


def _change_kind(part: Estimator) -> None:
    """Change the class or options of an estimator to variants that skl2onnx supports. Predictions do not change."""
    # Ensembles of imbalanced-learn differ from scikit-learn's only in training.
    if type(part).__module__.startswith("imblearn.ensemble") and hasattr(part, "estimators_"):
        part.__class__ = next(kind for kind in type(part).__mro__ if kind.__module__.startswith("sklearn.ensemble"))
    if hasattr(part, "sparse_output"):
        part.sparse_output = False  # The graph has no sparse tensors.
    if isinstance(part, MultiOutputClassifier | MultiOutputRegressor):
        part.__class__ = SeveralTargets


def _use_transforms(part: Estimator) -> None:
    """Replace predictors that are used as transformers, convert weights to steps, and drop steps without effect."""
    if isinstance(part, ColumnTransformer) and hasattr(part, "transformers_"):
        weights, part.transformer_weights = part.transformer_weights or {}, None
        for index, (name, step, columns) in enumerate(part.transformers_):
            used = _transforming(step)
            if name in weights and step != "drop":
                weigh = FunctionTransformer(partial(np.multiply, weights[name]))
                used = Pipeline([("make", used), ("weigh", weigh)])
            part.transformers_[index] = name, used, columns
    elif isinstance(part, FeatureUnion):
        part.transformer_list = [(name, _transforming(step)) for name, step in part.transformer_list if step != "drop"]
    elif isinstance(part, Pipeline):
        # skl2onnx does not support steps without effect. Samplers of imbalanced-learn affect only training.
        steps = [step for step in part.steps[:-1] if not passes_on(step[1]) and not hasattr(step[1], "fit_resample")]
        part.steps = [(name, _transforming(step)) for name, step in steps] + part.steps[-1:]


def _transforming(step: Estimator) -> Estimator:
    if isinstance(step, Pipeline):
        step.steps[-1:] = [(name, _transforming(last)) for name, last in step.steps[-1:]]
    replaced = isinstance(step, _BaseKMeans | LinearDiscriminantAnalysis) and hasattr(step, "n_features_in_")
    return Transforming(step) if replaced else step
