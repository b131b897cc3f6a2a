"""The parts of fitted scikit-learn estimators, and the columns that an encoder reads."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, TargetEncoder

_ENCODERS = (OneHotEncoder, OrdinalEncoder, TargetEncoder)


def best_estimator(model: Any) -> Any:
    """Return the estimator that a search has found; skl2onnx supports GridSearchCV, but not its relatives."""
    while hasattr(model, "best_estimator_"):
        model = model.best_estimator_
    return model


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
        elif isinstance(part, list | tuple):
            waiting.extend(reversed(part))
        elif isinstance(part, dict):
            waiting.extend(reversed(list(part.values())))
        elif isinstance(part, np.ndarray) and part.dtype.kind == "O":
            waiting.extend(reversed(part.ravel().tolist()))  # GradientBoosting keeps its trees in an array


def last_step(estimator: Any) -> Any:
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[-1][1]
    return estimator


def column_transformer(estimator: Any) -> ColumnTransformer | None:
    """Return the ColumnTransformer that reads the input, or None if the first step takes all columns alike."""
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[0][1]
    return estimator if isinstance(estimator, ColumnTransformer) else None


def reads_text(estimator: Any) -> bool:
    """Return True if the first step takes one column of texts, not a table."""
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[0][1]
    return isinstance(estimator, CountVectorizer | HashingVectorizer)


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
