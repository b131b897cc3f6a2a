"""Boosters of XGBoost, LightGBM and CatBoost as cases: some fifty configurations of
their estimators.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingRegressor, StackingClassifier, VotingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.covering.judge import Case

_ROWS = 400


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    yield from ((f"booster {name}", partial(_case, name)) for name in _FORMS)


def _xgb(kind: str = "Classifier", **options: Any) -> Any:
    import xgboost

    return getattr(xgboost, f"XGB{kind}")(n_estimators=20, n_jobs=1, **options)


def _lgbm(kind: str = "Classifier", **options: Any) -> Any:
    import lightgbm

    return getattr(lightgbm, f"LGBM{kind}")(n_estimators=20, n_jobs=1, verbose=-1, **options)


def _cat(kind: str = "Classifier", **options: Any) -> Any:
    import catboost

    options = {
        "iterations": 20,
        "thread_count": 1,
        "verbose": 0,
        "allow_writing_files": False,
        **options,
    }
    return getattr(catboost, f"CatBoost{kind}")(**options)


def _encoded(model: Any) -> Any:
    columns = [("texts", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["kind"])]
    return make_pipeline(ColumnTransformer(columns, remainder="passthrough"), model)


def _behind_a_table(model: Any) -> Any:
    scaled = ColumnTransformer([("scaled", StandardScaler(), ["a", "b"])], remainder="passthrough")
    return make_pipeline(scaled.set_output(transform="pandas"), model)


_FORMS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "xgboost two classes": (_xgb, "two", "gaps"),
    "xgboost three classes": (_xgb, "three", "gaps"),
    "xgboost regressor": (partial(_xgb, "Regressor"), "score", "gaps"),
    "xgboost deep": (partial(_xgb, "Regressor", max_depth=12), "score", "full"),
    "xgboost base score": (partial(_xgb, "Regressor", base_score=3.0), "score", "full"),
    "xgboost counts": (partial(_xgb, "Regressor", objective="count:poisson"), "counts", "full"),
    "xgboost gamma": (partial(_xgb, "Regressor", objective="reg:gamma"), "positive", "full"),
    "xgboost targets": (partial(_xgb, "Regressor"), "targets", "full"),
    "xgboost vector leaves": (
        partial(_xgb, "Regressor", multi_strategy="multi_output_tree"),
        "targets",
        "full",
    ),
    "xgboost DART": (partial(_xgb, booster="dart", rate_drop=0.3), "two", "full"),
    "xgboost forest": (partial(_xgb, "RFRegressor"), "score", "full"),
    "xgboost hist": (partial(_xgb, tree_method="hist", max_bin=16), "three", "gaps"),
    "xgboost monotone": (
        partial(_xgb, "Regressor", monotone_constraints=(1, 0, 0, 0)),
        "score",
        "full",
    ),
    "xgboost linear": (partial(_xgb, "Regressor", booster="gblinear"), "score", "full"),
    "xgboost categories": (
        partial(_xgb, enable_categorical=True, max_cat_to_onehot=1),
        "two",
        "categories",
    ),
    "xgboost encoded": (lambda: _encoded(_xgb()), "two", "texts"),
    "xgboost scaled": (lambda: make_pipeline(StandardScaler(), _xgb()), "three", "full"),
    "xgboost search": (
        lambda: GridSearchCV(
            make_pipeline(SimpleImputer(), _xgb()),
            {"xgbclassifier__max_depth": [2, 4]},
            cv=2,
        ),
        "two",
        "gaps",
    ),
    "lightgbm two classes": (_lgbm, "two", "gaps"),
    "lightgbm three classes": (_lgbm, "three", "gaps"),
    "lightgbm texts": (_lgbm, "text", "full"),
    "lightgbm regressor": (partial(_lgbm, "Regressor"), "score", "gaps"),
    "lightgbm quantile": (
        partial(_lgbm, "Regressor", objective="quantile", alpha=0.9),
        "score",
        "full",
    ),
    "lightgbm tweedie": (partial(_lgbm, "Regressor", objective="tweedie"), "counts", "full"),
    "lightgbm ova": (partial(_lgbm, objective="multiclassova"), "three", "full"),
    "lightgbm forest": (
        partial(_lgbm, boosting_type="rf", bagging_freq=1, bagging_fraction=0.5),
        "two",
        "full",
    ),
    "lightgbm DART": (partial(_lgbm, boosting_type="dart"), "two", "full"),
    "lightgbm GOSS": (partial(_lgbm, data_sample_strategy="goss"), "two", "full"),
    "lightgbm linear": (partial(_lgbm, "Regressor", linear_tree=True), "score", "full"),
    "lightgbm categories": (
        partial(_lgbm, max_cat_to_onehot=1, cat_smooth=0.1),
        "two",
        "categories",
    ),
    "lightgbm categories of a table": (
        lambda: _behind_a_table(_lgbm(cat_smooth=0.1)),
        "two",
        "categories",
    ),
    "hist categories of a table": (
        lambda: _behind_a_table(HistGradientBoostingRegressor()),
        "score",
        "categories",
    ),
    "lightgbm encoded": (lambda: _encoded(_lgbm()), "two", "texts"),
    "lightgbm scaled": (lambda: make_pipeline(StandardScaler(), _lgbm()), "three", "full"),
    "lightgbm calibrated": (lambda: CalibratedClassifierCV(_lgbm(), cv=2), "two", "full"),
    "catboost two classes": (_cat, "two", "gaps"),
    "catboost three classes": (_cat, "three", "gaps"),
    "catboost texts": (_cat, "text", "full"),
    "catboost regressor": (partial(_cat, "Regressor"), "score", "gaps"),
    "catboost shallow": (partial(_cat, "Regressor", depth=1), "score", "full"),
    "catboost missing above": (partial(_cat, "Regressor", nan_mode="Max"), "score", "gaps"),
    "catboost counts": (partial(_cat, "Regressor", loss_function="Poisson"), "counts", "full"),
    "catboost ova": (partial(_cat, loss_function="MultiClassOneVsAll"), "three", "full"),
    "catboost lossguide": (partial(_cat, grow_policy="Lossguide"), "two", "full"),
    "catboost scaled": (lambda: make_pipeline(StandardScaler(), _cat()), "two", "full"),
    "boosters stacked": (
        lambda: StackingClassifier([("x", _xgb()), ("l", _lgbm())], LogisticRegression(), cv=2),
        "two",
        "full",
    ),
    "boosters voting": (
        lambda: VotingRegressor(
            [("x", _xgb("Regressor")), ("l", _lgbm("Regressor")), ("r", Ridge())],
        ),
        "score",
        "full",
    ),
}
"""By name: a function that returns the model, the kind of its target, and the kind of
its rows.
"""


def _case(name: str) -> Case:
    make, learned, kind = _FORMS[name]
    random = np.random.default_rng(11)

    def drawn(rows: int) -> pd.DataFrame:
        table = pd.DataFrame(
            {column: random.normal(size=rows) * 10**place for place, column in enumerate("abcd")},
        )
        if kind == "gaps":
            return table.mask(random.random(table.shape) < 0.1)
        if kind == "categories":
            return table.assign(
                kind=pd.Categorical(random.choice(list("pqrstuv"), rows), list("pqrstuv")),
            )
        if kind == "texts":
            return table.assign(kind=random.choice(["x", "y", "z"], rows))
        return table

    table = drawn(_ROWS)
    score = (
        table["a"].fillna(0) + table["b"].fillna(0) / 10 + random.normal(size=_ROWS) * 0.3
    ).to_numpy()
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
    return Case(make().fit(table, targets[learned]), table, drawn(200))
