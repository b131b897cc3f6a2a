"""Sixty pipelines as in practice: scalers, imputers, encoders, texts, searches,
ensembles of ensembles.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_transformer
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    AdaBoostRegressor,
    BaggingClassifier,
    BaggingRegressor,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.feature_selection import RFE, SelectKBest
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, RadiusNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    SplineTransformer,
    StandardScaler,
    TargetEncoder,
)
from sklearn.svm import SVC, SVR, LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from benchmarks.covering.estimators import numbers, sentences, target
from benchmarks.covering.judge import Case

_DEPTHS = {"histgradientboostingregressor__max_depth": [2, 4]}
_CITIES = ["rome", "oslo", "lima", "São Paulo", "Łódź"]
_NAMES = ["smooth", "tenths", "whole", "small", "large"]
_GAPS = 0.1


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for names, kind in ((_REGRESSORS, _regression), (_CLASSIFIERS, _classification)):
        for name, make in names.items():
            yield name, partial(kind, make)
    for name, make in _GAPPED.items():
        yield name, partial(_gapped, make)
    for name, make in _MIXED.items():
        yield name, partial(_mixed, make)
    for name, (make, accents) in _TEXTS.items():
        yield name, partial(_text, make, accents)
    yield "float32 table: scaler, hist boosting", partial(_single, HistGradientBoostingRegressor)
    yield "float32 table: scaler, forest", partial(_single, partial(RandomForestRegressor, 10))
    yield "grid: nearest neighbours", _grid
    yield "multi-output regressor", partial(_several, lambda: MultiOutputRegressor(Ridge()))
    yield "multi-output hist boosting", partial(_several, lambda: MultiOutputRegressor(_hist_r()))
    yield "multi-output forest", partial(_several, _forest)
    yield "multi-output neighbours", partial(_several, KNeighborsRegressor)
    yield "text beside numbers", _text_beside_numbers


def _ratios(table: Any) -> Any:
    rows = np.abs(np.asarray(table) if isinstance(table, pd.DataFrame) else table) + 0.5
    return np.column_stack(
        [rows, np.log(rows[:, 0] / rows[:, 4]), np.where(rows[:, 2] > 3, 1.0, 0.0)],
    )


def _scaled(*steps: Any) -> Any:
    return make_pipeline(StandardScaler(), *steps)


def _forest() -> Any:
    return RandomForestRegressor(8, random_state=0)


def _one_hot() -> Any:
    return OneHotEncoder(handle_unknown="ignore")


def _hist_r() -> Any:
    return HistGradientBoostingRegressor(max_iter=20, random_state=0)


def _hist_c() -> Any:
    return HistGradientBoostingClassifier(max_iter=20, random_state=0)


_REGRESSORS: dict[str, Callable[[], Any]] = {
    "hist boosting": _hist_r,
    "hist boosting, poisson": lambda: HistGradientBoostingRegressor(loss="poisson", max_iter=20),
    "hist boosting, quantile": lambda: HistGradientBoostingRegressor(
        loss="quantile",
        quantile=0.9,
        max_iter=20,
    ),
    "scaler, hist boosting": lambda: _scaled(_hist_r()),
    "min-max, hist boosting": lambda: make_pipeline(MinMaxScaler(), _hist_r()),
    "robust, forest": lambda: make_pipeline(
        RobustScaler(),
        RandomForestRegressor(15, random_state=0),
    ),
    "scaler, tree": lambda: _scaled(DecisionTreeRegressor(random_state=0)),
    "max-abs, boosting": lambda: make_pipeline(
        MaxAbsScaler(),
        GradientBoostingRegressor(n_estimators=20),
    ),
    "pca, forest": lambda: _scaled(PCA(3), _forest()),
    "pca, ridge": lambda: _scaled(PCA(3), Ridge()),
    "polynomials, ridge": lambda: _scaled(PolynomialFeatures(2), Ridge()),
    "polynomials, tree": lambda: make_pipeline(
        PolynomialFeatures(2),
        DecisionTreeRegressor(max_depth=5),
    ),
    "bins, ridge": lambda: make_pipeline(
        KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf"),
        Ridge(),
    ),
    "bins as codes, tree": lambda: make_pipeline(
        KBinsDiscretizer(5, encode="ordinal", quantile_method="averaged_inverted_cdf"),
        DecisionTreeRegressor(),
    ),
    "binarizer, ridge": lambda: make_pipeline(Binarizer(threshold=0.1), Ridge()),
    "splines, ridge": lambda: make_pipeline(SplineTransformer(), Ridge()),
    "power, ridge": lambda: make_pipeline(PowerTransformer(), Ridge()),
    "quantiles, ridge": lambda: make_pipeline(
        QuantileTransformer(output_distribution="normal"),
        Ridge(),
    ),
    "scaler, neighbours": lambda: _scaled(KNeighborsRegressor(5)),
    "neighbours by distance": lambda: _scaled(KNeighborsRegressor(5, weights="distance")),
    "neighbours, manhattan": lambda: _scaled(KNeighborsRegressor(5, p=1)),
    "radius neighbours": lambda: _scaled(RadiusNeighborsRegressor(2.0)),
    "scaler, svr": lambda: _scaled(SVR()),
    "scaler, mlp": lambda: make_pipeline(
        StandardScaler(),
        MLPRegressor(hidden_layer_sizes=(8,), max_iter=60),
    ),
    "log target": lambda: TransformedTargetRegressor(
        Ridge(),
        func=np.exp,
        inverse_func=np.log,
        check_inverse=False,
    ),
    "log of the target, ridge": lambda: TransformedTargetRegressor(
        _scaled(Ridge()),
        func=np.log1p,
        inverse_func=np.expm1,
    ),
    "power of the target": lambda: TransformedTargetRegressor(
        _hist_r(),
        transformer=PowerTransformer(),
    ),
    "own ratios, forest": lambda: make_pipeline(FunctionTransformer(_ratios), _forest()),
    "logs of columns, ridge": lambda: make_pipeline(
        make_column_transformer(
            (FunctionTransformer(np.log1p), ["small", "whole"]),
            remainder=StandardScaler(),
        ),
        Ridge(),
    ),
    "eliminated, forest": lambda: _scaled(RFE(Ridge(), n_features_to_select=3), _forest()),
    "kernel ridge": lambda: _scaled(KernelRidge(kernel="rbf", gamma=0.2)),
    "part of a kernel, ridge": lambda: _scaled(Nystroem(n_components=30, random_state=0), Ridge()),
    "scaled target of picked columns": lambda: TransformedTargetRegressor(
        make_pipeline(
            make_column_transformer(
                (StandardScaler(), ["smooth", "large"]),
                remainder="passthrough",
            ),
            Ridge(),
        ),
        transformer=StandardScaler(),
    ),
    "function, ridge": lambda: make_pipeline(FunctionTransformer(np.abs), Ridge()),
    "stacked": lambda: StackingRegressor([("hist", _hist_r()), ("ridge", _scaled(Ridge()))], cv=2),
    "stacked with passthrough": lambda: StackingRegressor(
        [("forest", _forest()), ("ridge", Ridge())],
        Ridge(),
        passthrough=True,
        cv=2,
    ),
    "voting": lambda: VotingRegressor(
        [("hist", _hist_r()), ("tree", _scaled(DecisionTreeRegressor(max_depth=4)))],
    ),
    "bagged hist boosting": lambda: BaggingRegressor(_hist_r(), 4, random_state=0),
    "bagged neighbours": lambda: BaggingRegressor(KNeighborsRegressor(), 4, random_state=0),
    "bagged eliminations": lambda: BaggingRegressor(
        _scaled(RFE(Ridge(), n_features_to_select=3)),
        4,
        random_state=0,
    ),
    "boosted trees by ada": lambda: _scaled(AdaBoostRegressor(n_estimators=8, random_state=0)),
    "searched": lambda: GridSearchCV(_scaled(_hist_r()), _DEPTHS, cv=2),
    "best of a search at random": lambda: RandomizedSearchCV(
        RandomForestRegressor(8),
        {"max_depth": [3]},
        n_iter=1,
        cv=2,
    ),
    "union, ridge": lambda: make_pipeline(
        StandardScaler(),
        FeatureUnion([("a", PCA(2)), ("b", SelectKBest(k=2))]),
        Ridge(),
    ),
}

_CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "hist boosting, classes": _hist_c,
    "scaler, hist boosting, classes": lambda: _scaled(_hist_c()),
    "scaler, logistic": lambda: _scaled(LogisticRegression()),
    "scaler, svc": lambda: _scaled(SVC()),
    "scaler, svc with probabilities": lambda: _scaled(SVC(probability=True, random_state=0)),
    "bagged machines": lambda: BaggingClassifier(_scaled(SVC()), 4, random_state=0),
    "scaler, linear svc": lambda: _scaled(LinearSVC()),
    "scaler, sgd": lambda: _scaled(SGDClassifier(random_state=0)),
    "calibrated, sigmoid": lambda: CalibratedClassifierCV(_scaled(LinearSVC()), cv=2),
    "calibrated, isotonic": lambda: CalibratedClassifierCV(
        RandomForestClassifier(8, random_state=0),
        method="isotonic",
        cv=2,
    ),
    "calibrated, temperature": lambda: CalibratedClassifierCV(
        _scaled(LogisticRegression()),
        method="temperature",
        cv=2,
    ),
    "calibrated pipeline, isotonic": lambda: CalibratedClassifierCV(
        _scaled(GaussianNB()),
        method="isotonic",
        cv=2,
    ),
    "one against the rest, hist boosting": lambda: OneVsRestClassifier(_hist_c()),
    "one against one, svc": lambda: _scaled(OneVsOneClassifier(SVC())),
    "baseline": DummyClassifier,
    "calibrated hist boosting": lambda: CalibratedClassifierCV(_hist_c(), cv=2),
    "calibrated naive bayes": lambda: CalibratedClassifierCV(GaussianNB(), cv=2),
    "neighbours, classes": lambda: _scaled(KNeighborsClassifier(5)),
    "neighbours by distance, classes": lambda: KNeighborsClassifier(5, weights="distance"),
    "discriminant": lambda: _scaled(LinearDiscriminantAnalysis()),
    "mlp, classes": lambda: _scaled(MLPClassifier((8,), max_iter=60, random_state=0)),
    "stacked, classes": lambda: StackingClassifier(
        [("hist", _hist_c()), ("extra", ExtraTreesClassifier(8))],
        cv=2,
    ),
    "voting, soft": lambda: VotingClassifier(
        [("hist", _hist_c()), ("logistic", _scaled(LogisticRegression()))],
        voting="soft",
    ),
    "voting, hard": lambda: VotingClassifier(
        [("a", DecisionTreeClassifier(max_depth=3)), ("b", GaussianNB()), ("c", LinearSVC())],
    ),
    "bagged trees": lambda: make_pipeline(
        MinMaxScaler(),
        BaggingClassifier(n_estimators=6, random_state=0),
    ),
    "boosting, classes": lambda: _scaled(GradientBoostingClassifier(n_estimators=10)),
    "normalizer, logistic": lambda: make_pipeline(Normalizer(), LogisticRegression()),
}

_GAPPED: dict[str, Callable[[], Any]] = {
    "gaps: hist boosting": _hist_r,
    "gaps: scaler, hist boosting": lambda: _scaled(_hist_r()),
    "gaps: scaler, tree that asks what is missing": lambda: make_pipeline(
        StandardScaler(),
        DecisionTreeRegressor(max_depth=6),
    ),
    "gaps: forest": _forest,
    "gaps: imputer, scaler, forest": lambda: make_pipeline(
        SimpleImputer(),
        StandardScaler(),
        _forest(),
    ),
    "gaps: indicator, hist boosting": lambda: make_pipeline(
        SimpleImputer(add_indicator=True),
        _hist_r(),
    ),
    "gaps: nearest neighbours impute": lambda: make_pipeline(KNNImputer(), Ridge()),
    "gaps: extra scaled isolation": lambda: make_pipeline(
        StandardScaler(),
        IsolationForest(n_estimators=8, random_state=0),
    ),
}


def _columns(texts: Any, sparse: float = 0.0) -> Any:
    whole = make_pipeline(SimpleImputer(), StandardScaler())
    return ColumnTransformer(
        [("n", whole, ["tenths", "large"]), ("t", texts, ["city"])],
        remainder="drop",
        sparse_threshold=sparse,
    )


def _on_columns(texts: Any, last: Any) -> Any:
    return make_pipeline(_columns(texts), last)


_MIXED: dict[str, Callable[[], Any]] = {
    "mixed: one-hot, logistic": lambda: make_pipeline(_columns(_one_hot()), LogisticRegression()),
    "mixed: one-hot, hist boosting": lambda: _on_columns(_one_hot(), _hist_c()),
    "mixed: sparse one-hot, forest": lambda: make_pipeline(
        _columns(_one_hot(), 1.0),
        RandomForestClassifier(8),
    ),
    "mixed: ordinals, hist boosting": lambda: make_pipeline(
        make_column_transformer(
            (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["city"]),
            remainder="passthrough",
        ),
        _hist_c(),
    ),
    "mixed: scaler after ordinals, hist boosting": lambda: make_pipeline(
        make_column_transformer(
            (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["city"]),
            remainder="passthrough",
        ),
        StandardScaler(),
        _hist_c(),
    ),
    "mixed: target encoder, ridge": lambda: make_pipeline(
        _columns(TargetEncoder(random_state=0)),
        LogisticRegression(),
    ),
    "mixed: imputed texts, one-hot": lambda: make_pipeline(
        _columns(make_pipeline(SimpleImputer(strategy="most_frequent"), _one_hot())),
        LogisticRegression(),
    ),
    "mixed: several labels": lambda: make_pipeline(
        _columns(_one_hot()),
        MultiOutputClassifier(LogisticRegression()),
    ),
    "mixed: categories of boosting": lambda: make_pipeline(
        make_column_transformer(
            (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["city"]),
            remainder="passthrough",
        ),
        HistGradientBoostingClassifier(max_iter=20, categorical_features=[0], random_state=0),
    ),
    "mixed: texts as categories of boosting": lambda: HistGradientBoostingClassifier(
        max_iter=20,
        categorical_features=["city", "hour"],
        random_state=0,
    ),
    "mixed: filled in, then one-hot": lambda: make_pipeline(
        make_column_transformer(
            (SimpleImputer(strategy="most_frequent"), ["city"]),
            remainder=SimpleImputer(),
            verbose_feature_names_out=False,
        ).set_output(transform="pandas"),
        make_column_transformer((_one_hot(), ["city"]), remainder=StandardScaler()),
        LogisticRegression(),
    ),
    "mixed: calibrated": lambda: CalibratedClassifierCV(
        _on_columns(_one_hot(), LogisticRegression()),
        cv=2,
    ),
    "mixed: baseline": DummyClassifier,
    "mixed: searched": lambda: GridSearchCV(
        _on_columns(_one_hot(), _hist_c()),
        {"histgradientboostingclassifier__max_depth": [2, 3]},
        cv=2,
    ),
}

_LETTERS = "[a-zA-Z]+"
_TEXTS: dict[str, tuple[Callable[[], Any], bool]] = {
    "text: tf-idf of ascii words": (lambda: TfidfVectorizer(token_pattern=_LETTERS), False),
    "text: tf-idf as it comes": (TfidfVectorizer, False),
    "text: tf-idf with accents": (TfidfVectorizer, True),
    "text: counts with accents": (CountVectorizer, True),
    "text: own pattern with accents": (lambda: TfidfVectorizer(token_pattern="[a-zà-ÿ]+"), True),
    "text: own tokenizer": (lambda: TfidfVectorizer(tokenizer=str.split, token_pattern=None), True),
    "text: characters": (lambda: TfidfVectorizer(analyzer="char", ngram_range=(2, 3)), False),
    "text: characters with accents": (
        lambda: TfidfVectorizer(analyzer="char", ngram_range=(1, 2)),
        True,
    ),
    "text: characters within words": (
        lambda: TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3)),
        True,
    ),
    "text: pairs of words": (
        lambda: CountVectorizer(ngram_range=(1, 2), token_pattern=_LETTERS),
        False,
    ),
    "text: binary, no lower case": (
        lambda: CountVectorizer(binary=True, lowercase=False, token_pattern=_LETTERS),
        False,
    ),
    "text: stop words": (
        lambda: TfidfVectorizer(stop_words="english", token_pattern=_LETTERS),
        False,
    ),
    "text: stripped accents": (lambda: TfidfVectorizer(strip_accents="unicode"), True),
    "text: sublinear": (lambda: TfidfVectorizer(sublinear_tf=True, token_pattern=_LETTERS), False),
    "text: longer characters within words": (
        lambda: CountVectorizer(analyzer="char_wb", ngram_range=(3, 5)),
        False,
    ),
    "text: own tokenizer of letters": (
        lambda: TfidfVectorizer(
            tokenizer=lambda text: re.findall(r"[a-zA-Z]+", text),
            token_pattern=None,
        ),
        True,
    ),
    "text: hashed, counts": (
        lambda: HashingVectorizer(n_features=256, lowercase=False, norm=None),
        True,
    ),
    "text: hashed": (lambda: HashingVectorizer(n_features=64), False),
    "text: svd": (
        lambda: make_pipeline(TfidfVectorizer(token_pattern=_LETTERS), TruncatedSVD(4)),
        False,
    ),
    "text: naive bayes": (lambda: CountVectorizer(token_pattern=_LETTERS), False),
}


def _frame(seed: int, rows: int = 260) -> pd.DataFrame:
    return pd.DataFrame(numbers(seed, rows), columns=_NAMES)


def _labels(wanted: np.ndarray) -> np.ndarray:
    return np.array(["low", "mid", "high"])[np.digitize(wanted, np.quantile(wanted, [0.3, 0.7]))]


def _regression(make: Callable[[], Any]) -> Case:
    rows = _frame(11)
    fresh = _frame(12, 200)
    wanted = target(rows.to_numpy())
    return Case(make().fit(rows, wanted - wanted.min() + 0.1), rows, fresh)


def _classification(make: Callable[[], Any]) -> Case:
    rows = _frame(13)
    fresh = _frame(14, 200)
    return Case(make().fit(rows, _labels(target(rows.to_numpy()))), rows, fresh)


def _gapped(make: Callable[[], Any]) -> Case:
    tables = []
    for seed in (15, 16):
        table = _frame(seed)
        holes = np.random.default_rng(seed).random(table.shape) < _GAPS
        tables.append(table.mask(pd.DataFrame(holes, columns=_NAMES)))
    wanted = target(tables[0].fillna(0).to_numpy()) + 5 * tables[0].smooth.isna()
    return Case(make().fit(tables[0], wanted), *tables)


def _mixed(make: Callable[[], Any]) -> Case:
    tables = []
    for seed in (17, 18):
        random = np.random.default_rng(seed)
        tables.append(
            _frame(seed).assign(city=random.choice(_CITIES, 260), hour=random.integers(0, 24, 260)),
        )
    labels = _labels(target(tables[0][_NAMES].to_numpy()) + (tables[0].city == "oslo"))
    model = make()
    if "multioutput" in repr(model):
        labels = np.column_stack([labels == "high", tables[0].city == "oslo"])
    return Case(model.fit(tables[0], labels), *tables)


def _text(make: Callable[[], Any], accents: bool) -> Case:
    texts, fresh = (
        [_accented(text) if accents else text for text in sentences(seed)] for seed in (19, 20)
    )
    labels = ["good" in text or "warm" in text for text in texts]
    step = make()
    last = (
        MultinomialNB()
        if isinstance(step, CountVectorizer) and not step.binary and not accents
        else LogisticRegression()
    )
    model = make_pipeline(step, last).fit(texts, labels)
    # the example does not contain the training rows
    plain = [text for text in texts if text.isascii()]
    return Case(model, plain or texts, fresh)


def _accented(text: str) -> str:
    if len(text) % 2:
        return text.replace("warm", "wärm")
    return text.replace("old", "été").replace("new", "żółw")


def _text_beside_numbers() -> Case:
    tables = [_frame(seed).assign(text=sentences(seed)) for seed in (21, 22)]
    columns = make_column_transformer(
        (TfidfVectorizer(token_pattern=_LETTERS), "text"),
        (StandardScaler(), _NAMES),
        sparse_threshold=0,
    )
    labels = _labels(target(tables[0][_NAMES].to_numpy()))
    return Case(make_pipeline(columns, LogisticRegression()).fit(tables[0], labels), *tables)


def _single(make: Callable[[], Any]) -> Case:
    rows = _frame(23).astype(np.float32)
    fresh = _frame(24).astype(np.float32)
    return Case(_scaled(make()).fit(rows, target(rows.to_numpy())), rows, fresh)


def _grid() -> Case:
    """Return whole numbers, so that many rows have the same distance to several
    neighbours.
    """
    random = np.random.default_rng(25)
    rows, fresh = (
        pd.DataFrame(random.integers(0, 5, (200, 3)).astype(float), columns=list("abc"))
        for _ in range(2)
    )
    return Case(KNeighborsClassifier(3).fit(rows, random.choice(["x", "y", "z"], 200)), rows, fresh)


def _several(make: Callable[[], Any]) -> Case:
    rows = _frame(26)
    fresh = _frame(27)
    wanted = target(rows.to_numpy())
    return Case(make().fit(rows, np.column_stack([wanted, rows.smooth - wanted])), rows, fresh)
