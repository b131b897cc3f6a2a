"""Convert scikit-learn models with encoders of category_encoders.

Each encoder is replaced by a table of its numbers per category. onnxserve converts the
other steps.
"""

import sys
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np


def matches(model: Any) -> bool:
    # No import before this check, because it runs for every model.
    return "category_encoders" in sys.modules and bool(_encoders(model))


def convert(model: Any, example: Any, **options: Any) -> Any:
    from mlflow_deploy_plugin.wrap.convert.sklearn import conversion
    from mlflow_deploy_plugin.wrap.convert.sklearn.libraries.category_tables import as_tables

    stand_ins = {}
    for encoder in _encoders(model):
        tables = as_tables(encoder, _categories(encoder))
        if tables is not None:
            stand_ins[id(encoder)] = tables
    # The last form computes in 64 bits throughout.
    *_, form = conversion.forms(deepcopy(model, stand_ins), example, **options)
    converted = form()

    def original(batch: Any) -> dict[str, Any]:
        rows = batch.get("") if isinstance(batch, dict) else batch
        answers = {converted.outputs[0].name: np.asarray(model.predict(rows))}
        if len(converted.outputs) > 1:
            answers["probabilities"] = model.predict_proba(rows)
        return answers

    return replace(converted, original=original)


def _encoders(model: Any) -> list[Any]:
    from sklearn.base import BaseEstimator

    from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import sub_estimators

    if not isinstance(model, BaseEstimator):
        return []
    parts = sub_estimators(model)
    return [part for part in parts if type(part).__module__.startswith("category_encoders.")]


def _categories(encoder: Any) -> dict[Any, Any]:
    """Return the known categories per column."""
    mapping = getattr(getattr(encoder, "ordinal_encoder", encoder), "mapping", None) or {}
    if isinstance(mapping, list):
        mapping = {entry["col"]: entry["mapping"] for entry in mapping}
    return {name: getattr(values, "index", values) for name, values in mapping.items()}
