"""Boosters of XGBoost, LightGBM and CatBoost as cases, each written as the expression
that makes it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.covering.judge import Case
from benchmarks.covering.pipelines import made

_ROWS = 400
_FORMS = """
two, gaps: xgb()
three, gaps: xgb()
score, gaps: xgb("Regressor")
score, full: xgb("Regressor", max_depth=12)
score, full: xgb("Regressor", base_score=3.0)
counts, full: xgb("Regressor", objective="count:poisson")
positive, full: xgb("Regressor", objective="reg:gamma")
targets, full: xgb("Regressor")
targets, full: xgb("Regressor", multi_strategy="multi_output_tree")
two, full: xgb(booster="dart", rate_drop=0.3)
score, full: xgb("RFRegressor")
three, gaps: xgb(tree_method="hist", max_bin=16)
score, full: xgb("Regressor", monotone_constraints=(1, 0, 0, 0))
score, full: xgb("Regressor", booster="gblinear")
two, categories: xgb(enable_categorical=True, max_cat_to_onehot=1)
two, texts: encoded(xgb())
three, full: scaled(xgb())
two, gaps: GridSearchCV(scaled(xgb()), {"xgbclassifier__max_depth": [2, 4]}, cv=2)
two, gaps: lgbm()
three, gaps: lgbm()
text, full: lgbm()
score, gaps: lgbm("Regressor")
score, full: lgbm("Regressor", objective="quantile", alpha=0.9)
counts, full: lgbm("Regressor", objective="tweedie")
three, full: lgbm(objective="multiclassova")
two, full: lgbm(boosting_type="rf", bagging_freq=1, bagging_fraction=0.5)
two, full: lgbm(boosting_type="dart")
two, full: lgbm(data_sample_strategy="goss")
score, full: lgbm("Regressor", linear_tree=True)
two, categories: lgbm(max_cat_to_onehot=1, cat_smooth=0.1)
two, categories: behind_a_table(lgbm(cat_smooth=0.1))
score, categories: behind_a_table(HistGradientBoostingRegressor())
two, texts: encoded(lgbm())
three, full: scaled(lgbm())
two, full: CalibratedClassifierCV(lgbm(), cv=2)
two, gaps: cat()
three, gaps: cat()
text, full: cat()
score, gaps: cat("Regressor")
score, full: cat("Regressor", depth=1)
score, gaps: cat("Regressor", nan_mode="Max")
counts, full: cat("Regressor", loss_function="Poisson")
three, full: cat(loss_function="MultiClassOneVsAll")
two, full: cat(grow_policy="Lossguide")
two, full: scaled(cat())
two, full: StackingClassifier([("x", xgb()), ("l", lgbm())], LogisticRegression(), cv=2)
score, full: VotingRegressor([("x", xgb("Regressor")), ("l", lgbm("Regressor")), ("r", Ridge())])
"""
"""The kind of the target, the kind of the rows, and the model."""


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for line in _FORMS.strip().splitlines():
        yield f"booster {line}", partial(_case, *line.replace(": ", ", ", 1).split(", ", 2))


def _booster(module: str, prefix: str, given: dict[str, Any]) -> Callable[..., Any]:
    def make(kind: str = "Classifier", **options: Any) -> Any:
        return getattr(import_module(module), prefix + kind)(**given, **options)

    return make


def _encoded(model: Any) -> Any:
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = make_column_transformer((encoder, ["kind"]), remainder="passthrough")
    return make_pipeline(columns, model)


def _behind_a_table(model: Any) -> Any:
    scaled = make_column_transformer((StandardScaler(), ["a", "b"]), remainder="passthrough")
    return make_pipeline(scaled.set_output(transform="pandas"), model)


_QUIET = {"iterations": 20, "thread_count": 1, "verbose": 0, "allow_writing_files": False}
_MADE = {
    "xgb": _booster("xgboost", "XGB", {"n_estimators": 20, "n_jobs": 1}),
    "lgbm": _booster("lightgbm", "LGBM", {"n_estimators": 20, "n_jobs": 1, "verbose": -1}),
    "cat": _booster("catboost", "CatBoost", _QUIET),
    "encoded": _encoded,
    "behind_a_table": _behind_a_table,
}


def _case(learned: str, kind: str, expression: str) -> Case:
    random = np.random.default_rng(11)

    def drawn(rows: int) -> pd.DataFrame:
        table = pd.DataFrame(
            {column: random.normal(size=rows) * 10**place for place, column in enumerate("abcd")},
        )
        if kind == "gaps":
            return table.mask(random.random(table.shape) < 0.1)
        if kind == "categories":
            letters = pd.Categorical(random.choice(list("pqrstuv"), rows), list("pqrstuv"))
            return table.assign(kind=letters)
        if kind == "texts":
            return table.assign(kind=random.choice(["x", "y", "z"], rows))
        return table

    table = drawn(_ROWS)
    noise = random.normal(size=_ROWS) * 0.3
    score = (table["a"].fillna(0) + table["b"].fillna(0) / 10 + noise).to_numpy()
    three = np.digitize(score, [-1, 1])
    targets: dict[str, Any] = {
        "score": score,
        "two": (score > 0).astype(int),
        "three": three,
        "text": np.array(["low", "middle", "high"])[three],
        "counts": random.poisson(np.exp(np.clip(score, -2, 2))),
        "positive": np.exp(np.clip(score, -2, 2)),
        "targets": np.c_[score, -score],
    }
    return Case(made(expression, **_MADE).fit(table, targets[learned]), table, drawn(200))
