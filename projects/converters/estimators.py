"""Every estimator of scikit-learn as a case: predictors directly, and transformers
before a linear model.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.utils import all_estimators

from projects.converters.judge import Case

WORDS = ["good", "bad", "ugly", "fine", "poor", "slow", "quick", "old", "new", "warm", "cold"]
_TEXTS = ("CountVectorizer", "HashingVectorizer", "TfidfVectorizer")
_ROWS = 260
_OF_A_CLASSIFIER = (
    *("ClassifierChain", "FixedThresholdClassifier", "OneVsOneClassifier", "OneVsRestClassifier"),
    *("OutputCodeClassifier", "TunedThresholdClassifierCV", "MultiOutputClassifier"),
    "SelfTrainingClassifier",
)
_OF_A_REGRESSOR = (
    *("MultiOutputRegressor", "RegressorChain", "RFE", "RFECV", "SelectFromModel"),
    "SequentialFeatureSelector",
)
_TWO_CLASSIFIERS = '[("a", DecisionTreeClassifier(max_depth=3)), ("b", LogisticRegression())]'
_TWO_REGRESSORS = '[("a", DecisionTreeRegressor(max_depth=3)), ("b", Ridge())]'
_ARGUMENTS = {
    **dict.fromkeys(_OF_A_CLASSIFIER, "LogisticRegression()"),
    **dict.fromkeys(_OF_A_REGRESSOR, "Ridge()"),
    **dict.fromkeys(("StackingClassifier", "VotingClassifier"), _TWO_CLASSIFIERS),
    **dict.fromkeys(("StackingRegressor", "VotingRegressor"), _TWO_REGRESSORS),
    **dict.fromkeys(("GaussianRandomProjection", "SparseRandomProjection"), "n_components=3"),
    "ColumnTransformer": '[("a", StandardScaler(), [0, 1]), ("b", "passthrough", [2, 3])]',
    "FeatureUnion": '[("a", PCA(2)), ("b", SelectKBest(k=2))]',
    "GridSearchCV": 'LogisticRegression(), {"C": [0.1, 1]}, cv=2',
    "RandomizedSearchCV": 'DecisionTreeRegressor(), {"max_depth": [2, 5]}, n_iter=2, cv=2',
    "FrozenEstimator": "LogisticRegression().fit(numbers(1), target(numbers(1)) > 1)",
    "PLSSVD": "n_components=1",
    "LocalOutlierFactor": "novelty=True",
    "Pipeline": '[("a", StandardScaler()), ("b", Ridge())]',
    "SparseCoder": "np.eye(5)",
}
"""The arguments of estimators that have no defaults for them, or with which they
predict for new rows.
"""
_SMALLER = {
    "n_estimators": 15,
    "max_iter": 60,
    "n_init": 1,
    "cv": 2,
    "n_jobs": None,
    "random_state": 0,
}
_KEEP_ITERATIONS = ("SVC", "SVR", "NuSVC", "NuSVR", "OneClassSVM")
"""-1 there means that it runs until it has converged."""


def made(expression: str, **names: Any) -> Any:
    """Return the value of an expression with scikit-learn's classes and `names`."""
    known = {"np": np, "numbers": numbers, "target": target}
    return eval(expression, {**dict(all_estimators()), **known, **names})


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Return the names with functions that make the case; a function raises
    `LookupError` if its estimator cannot answer requests.
    """
    for name, kind in all_estimators():
        yield name, partial(_case, name, kind)


def numbers(seed: int, rows: int = _ROWS) -> np.ndarray:
    """Return five columns: smooth numbers, numbers with one decimal, whole, small, and
    large numbers.
    """
    random = np.random.default_rng(seed)
    return np.column_stack(
        [
            random.normal(size=rows),
            np.round(random.normal(size=rows) * 10, 1),
            random.integers(0, 6, rows).astype(float),
            random.uniform(0, 0.01, rows),
            random.normal(3000, 700, rows),
        ],
    )


def target(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(
        matrix[:, 0] * 2 + matrix[:, 1] / 10 + np.sin(matrix[:, 2]) + matrix[:, 4] / 1000,
    )


def sentences(seed: int, rows: int = _ROWS) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(2, 9))) for _ in range(rows)]


def _case(name: str, kind: type) -> Case:
    if name in _TEXTS:
        texts = sentences(1)
        model = make_pipeline(kind(), LogisticRegression()).fit(
            texts,
            ["good" in text for text in texts],
        )
        return Case(model, texts, sentences(2))
    estimator = _estimator(name)
    tried = []
    for rows, fresh, wanted in _worlds(
        name.endswith(("Classifier", "NB", "SVC")) or is_classifier(estimator),
    ):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = _fitted(estimator, rows, wanted)
                model.predict(rows[:3])
        except Exception as error:  # noqa: BLE001 - the next kind of data may fit
            tried.append(
                f"{type(error).__name__}: {str(error).splitlines()[0][:80]}" if str(error) else "",
            )
            continue
        return Case(model, rows, fresh)
    raise LookupError(tried[0] if tried else "no data fits")


def _estimator(name: str) -> Any:
    estimator = made(f"{name}({_ARGUMENTS.get(name, '')})")
    known = estimator.get_params(deep=False)
    changed = {key: value for key, value in _SMALLER.items() if key in known}
    if name in _KEEP_ITERATIONS:
        changed.pop("max_iter", None)
    if changed:
        return estimator.set_params(**changed)
    return estimator


def _worlds(classifies: bool) -> Iterator[tuple[Any, Any, Any]]:
    rows = numbers(1)
    fresh = numbers(2, 200)
    wanted = target(rows)
    labels = np.array(["low", "mid", "high"])[np.digitize(wanted, np.quantile(wanted, [0.3, 0.7]))]
    first = labels if classifies else wanted
    yield rows, fresh, first
    yield rows, fresh, (labels == "high").astype(int)
    yield np.abs(rows), np.abs(fresh), first if classifies else np.abs(wanted) + 0.1
    yield rows, fresh, np.column_stack([wanted, -wanted + rows[:, 0]])
    yield rows, fresh, np.column_stack([wanted > 1, rows[:, 0] > 0]).astype(int)
    yield rows[:, :1], fresh[:, :1], wanted
    yield np.abs(rows[:, 2:3]), np.abs(fresh[:, 2:3]), labels


def _fitted(estimator: Any, rows: Any, wanted: Any) -> Any:
    estimator = clone(estimator)
    if hasattr(estimator, "predict") or hasattr(type(estimator), "predict"):
        return estimator.fit(rows, wanted)
    if not hasattr(estimator, "transform"):
        raise LookupError("it neither predicts nor transforms new rows")
    last = Ridge() if wanted.dtype.kind == "f" else LogisticRegression()
    return make_pipeline(estimator, last).fit(rows, wanted)
