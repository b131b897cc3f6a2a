"""Looking into fitted scikit-learn estimators: their parts, and which columns an encoder reads."""

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
    """The estimator that a search has found; skl2onnx knows GridSearchCV, but not its relatives."""
    while hasattr(model, "best_estimator_"):
        model = model.best_estimator_
    return model


def sub_estimators(estimator: Any) -> Iterator[Any]:
    """The estimator and everything in it that is one, however deep, each once."""
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
    """The ColumnTransformer that reads the input, or None where the first step takes all columns alike."""
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[0][1]
    return estimator if isinstance(estimator, ColumnTransformer) else None


def reads_text(estimator: Any) -> bool:
    """Does the first step take one column of texts, not a table?"""
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[0][1]
    return isinstance(estimator, CountVectorizer | HashingVectorizer)


def has_encoder(estimator: Any) -> bool:
    return any(isinstance(part, _ENCODERS) for part in sub_estimators(estimator))


def encoders(estimator: Any) -> list[Any]:
    return [part for part in sub_estimators(estimator) if isinstance(part, _ENCODERS)]


def encoded_columns(transformer: ColumnTransformer) -> set[str]:
    """Names of the columns whose values are categories to some encoder."""
    names = list(getattr(transformer, "feature_names_in_", ()))
    found: set[str] = set()
    for _, step, columns in transformer.transformers_:
        if has_encoder(step):
            found |= set(column_names(columns, names))
    return found


def column_names(columns: Any, names: list[str]) -> list[str]:
    """A ColumnTransformer's columns, however they were given, as names."""
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
