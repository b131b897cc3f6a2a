"""Pipelines and boosters as in practice, each written as the expression that makes it:
scalers, imputers, encoders, texts, searches, ensembles of ensembles.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from projects.converters import estimators
from projects.converters.estimators import numbers, sentences, target
from projects.converters.judge import Case

_NUMBERS = """
hist()
HistGradientBoostingRegressor(loss="poisson", max_iter=20)
HistGradientBoostingRegressor(loss="quantile", quantile=0.9, max_iter=20)
scaled(hist())
make_pipeline(MinMaxScaler(), hist())
make_pipeline(RobustScaler(), forest())
scaled(DecisionTreeRegressor(random_state=0))
scaled(PCA(3), forest())
scaled(PolynomialFeatures(2), Ridge())
make_pipeline(KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf"), Ridge())
make_pipeline(KBinsDiscretizer(5, encode="ordinal"), DecisionTreeRegressor())
make_pipeline(Binarizer(threshold=0.1), Ridge())
make_pipeline(QuantileTransformer(output_distribution="normal"), Ridge())
scaled(KNeighborsRegressor(5))
scaled(KNeighborsRegressor(5, weights="distance"))
scaled(RadiusNeighborsRegressor(2.0))
scaled(MLPRegressor(hidden_layer_sizes=(8,), max_iter=60))
TransformedTargetRegressor(Ridge(), func=np.exp, inverse_func=np.log, check_inverse=False)
TransformedTargetRegressor(scaled(Ridge()), func=np.log1p, inverse_func=np.expm1)
TransformedTargetRegressor(hist(), transformer=PowerTransformer())
TransformedTargetRegressor(columns((StandardScaler(), ["large"])), transformer=StandardScaler())
make_pipeline(FunctionTransformer(ratios), forest())
columns((FunctionTransformer(np.log1p), ["small", "whole"]))
scaled(RFE(Ridge(), n_features_to_select=3), forest())
scaled(KernelRidge(kernel="rbf", gamma=0.2))
scaled(Nystroem(n_components=30, random_state=0), Ridge())
StackingRegressor([("hist", hist()), ("ridge", scaled(Ridge()))], cv=2)
VotingRegressor([("hist", hist()), ("tree", scaled(DecisionTreeRegressor(max_depth=4)))])
BaggingRegressor(scaled(RFE(Ridge(), n_features_to_select=3)), 4, random_state=0)
scaled(AdaBoostRegressor(n_estimators=8, random_state=0))
GridSearchCV(scaled(hist()), {"histgradientboostingregressor__max_depth": [2, 4]}, cv=2)
scaled(FeatureUnion([("a", PCA(2)), ("b", SelectKBest(k=2))]), Ridge())
"""
_CLASSES = """
hist_classes()
scaled(LogisticRegression())
scaled(SVC())
scaled(SVC(probability=True, random_state=0))
CalibratedClassifierCV(scaled(LinearSVC()), cv=2)
CalibratedClassifierCV(RandomForestClassifier(8, random_state=0), method="isotonic", cv=2)
CalibratedClassifierCV(scaled(LogisticRegression()), method="temperature", cv=2)
CalibratedClassifierCV(scaled(GaussianNB()), method="isotonic", cv=2)
OneVsRestClassifier(hist_classes())
scaled(OneVsOneClassifier(SVC()))
DummyClassifier()
CalibratedClassifierCV(hist_classes(), cv=2)
scaled(KNeighborsClassifier(5))
KNeighborsClassifier(5, weights="distance")
scaled(MLPClassifier((8,), max_iter=60, random_state=0))
StackingClassifier([("hist", hist_classes()), ("extra", ExtraTreesClassifier(8))], cv=2)
VotingClassifier([("h", hist_classes()), ("l", scaled(LogisticRegression()))], voting="soft")
VotingClassifier([("a", DecisionTreeClassifier(max_depth=3)), ("b", GaussianNB())])
make_pipeline(MinMaxScaler(), BaggingClassifier(n_estimators=6, random_state=0))
scaled(GradientBoostingClassifier(n_estimators=10))
make_pipeline(Normalizer(), LogisticRegression())
"""
_GAPS = """
hist()
scaled(hist())
scaled(DecisionTreeRegressor(max_depth=6))
forest()
make_pipeline(SimpleImputer(), StandardScaler(), forest())
make_pipeline(SimpleImputer(add_indicator=True), hist())
make_pipeline(KNNImputer(), Ridge())
scaled(IsolationForest(n_estimators=8, random_state=0))
"""
_MIXED = """
encoded(one_hot(), lgbm())
encoded(one_hot(), LogisticRegression())
encoded(one_hot(), hist_classes())
encoded(one_hot(), RandomForestClassifier(8), sparse=1.0)
encoded(TargetEncoder(random_state=0), LogisticRegression())
encoded(make_pipeline(SimpleImputer(strategy="most_frequent"), one_hot()), LogisticRegression())
encoded(one_hot(), MultiOutputClassifier(LogisticRegression()))
make_pipeline(ordinals(), hist_classes())
make_pipeline(ordinals(), StandardScaler(), hist_classes())
make_pipeline(ordinals(), hist_classes(categorical_features=[0]))
hist_classes(categorical_features=["city", "hour"])
CalibratedClassifierCV(encoded(one_hot(), LogisticRegression()), cv=2)
DummyClassifier()
GridSearchCV(encoded(one_hot(), tree()), {"decisiontreeclassifier__max_depth": [2, 3]}, cv=2)
"""
_TEXTS = """
TfidfVectorizer(token_pattern="[a-zA-Z]+")
TfidfVectorizer()
TfidfVectorizer(analyzer="char", ngram_range=(2, 3))
CountVectorizer(ngram_range=(1, 2), token_pattern="[a-zA-Z]+")
CountVectorizer(binary=True, lowercase=False, token_pattern="[a-zA-Z]+")
TfidfVectorizer(stop_words="english", token_pattern="[a-zA-Z]+")
TfidfVectorizer(sublinear_tf=True, token_pattern="[a-zA-Z]+")
CountVectorizer(analyzer="char_wb", ngram_range=(3, 5))
HashingVectorizer(n_features=64)
make_pipeline(TfidfVectorizer(token_pattern="[a-zA-Z]+"), TruncatedSVD(4))
"""
_ACCENTS = """
TfidfVectorizer()
CountVectorizer()
TfidfVectorizer(token_pattern="[a-zà-ÿ]+")
TfidfVectorizer(tokenizer=str.split, token_pattern=None)
TfidfVectorizer(analyzer="char", ngram_range=(1, 2))
TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3))
TfidfVectorizer(strip_accents="unicode")
TfidfVectorizer(tokenizer=letters, token_pattern=None)
HashingVectorizer(n_features=256, lowercase=False, norm=None)
"""
_SEVERAL = """
xgb("Regressor")
xgb("Regressor", multi_strategy="multi_output_tree")
MultiOutputRegressor(Ridge())
MultiOutputRegressor(hist())
forest()
KNeighborsRegressor()
"""
_SINGLE = """
scaled(hist())
scaled(RandomForestRegressor(10))
"""
_BOOSTED = """
xgb("Regressor", max_depth=12)
xgb("Regressor", base_score=3.0)
xgb("Regressor", objective="count:poisson")
xgb("Regressor", objective="reg:gamma")
xgb("RFRegressor")
xgb("Regressor", monotone_constraints=(1, 0, 0, 0, 0))
xgb("Regressor", booster="gblinear")
lgbm("Regressor", objective="quantile", alpha=0.9)
lgbm("Regressor", objective="tweedie")
lgbm("Regressor", linear_tree=True)
cat("Regressor", depth=1)
cat("Regressor", loss_function="Poisson")
VotingRegressor([("x", xgb("Regressor")), ("l", lgbm("Regressor")), ("r", Ridge())])
"""
_BOOSTED_CLASSES = """
xgb(booster="dart", rate_drop=0.3)
xgb(tree_method="hist", max_bin=16)
scaled(xgb())
GridSearchCV(xgb(), {"max_depth": [2, 4]}, cv=2)
lgbm()
lgbm(objective="multiclassova")
lgbm(boosting_type="rf", bagging_freq=1, bagging_fraction=0.5)
lgbm(boosting_type="dart")
lgbm(data_sample_strategy="goss")
CalibratedClassifierCV(lgbm(), cv=2)
cat()
cat(loss_function="MultiClassOneVsAll")
cat(grow_policy="Lossguide")
StackingClassifier([("x", xgb()), ("l", lgbm())], LogisticRegression(), cv=2)
"""
_BOOSTED_GAPS = """
xgb("Regressor")
lgbm("Regressor")
cat("Regressor")
cat("Regressor", nan_mode="Max")
"""
_BOOSTED_CATEGORIES = """
xgb(enable_categorical=True, max_cat_to_onehot=1)
lgbm(max_cat_to_onehot=1, cat_smooth=0.1)
behind_a_table(lgbm(cat_smooth=0.1))
behind_a_table(hist_classes(categorical_features="from_dtype"))
"""
_CITIES = ["rome", "oslo", "lima", "São Paulo", "Łódź"]
_NAMES = ["smooth", "tenths", "whole", "small", "large"]


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for kind, (expressions, case) in _KINDS.items():
        for line in expressions.strip().splitlines():
            yield f"{kind}: {line}", partial(case, line)
    yield "whole numbers: nearest neighbours of equal distance", _equal_distances
    yield "text and numbers: tf-idf next to a scaler", _text_and_numbers


def made(expression: str) -> Any:
    return estimators.made(expression, **_PARTS)


def ratios(table: Any) -> Any:
    rows = np.abs(np.asarray(table) if isinstance(table, pd.DataFrame) else table) + 0.5
    return np.column_stack(
        [rows, np.log(rows[:, 0] / rows[:, 4]), np.where(rows[:, 2] > 3, 1.0, 0.0)],
    )


def letters(text: str) -> list[str]:
    return re.findall(r"[a-zA-Z]+", text)


def _scaled(*steps: Any) -> Any:
    return make_pipeline(StandardScaler(), *steps)


def _hist_classes(**options: Any) -> Any:
    return made("HistGradientBoostingClassifier(max_iter=20, random_state=0)").set_params(**options)


def _columns(*parts: Any) -> Any:
    """Return a ridge regression of the parts and of all other columns, scaled."""
    return make_pipeline(
        make_column_transformer(*parts, remainder=StandardScaler()), made("Ridge()")
    )


def _encoded(encoder: Any, last: Any, sparse: float = 0.0) -> Any:
    whole = made("make_pipeline(SimpleImputer(), StandardScaler())")
    parts = (whole, ["tenths", "large"]), (encoder, ["city"])
    return make_pipeline(make_column_transformer(*parts, sparse_threshold=sparse), last)


def _ordinals() -> Any:
    encoder = made('OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)')
    return make_column_transformer((encoder, ["city"]), remainder="passthrough")


def _booster(module: str, prefix: str, **given: Any) -> Callable[..., Any]:
    def make(kind: str = "Classifier", **options: Any) -> Any:
        return getattr(import_module(module), prefix + kind)(**given, **options)

    return make


def _behind_a_table(model: Any) -> Any:
    scaler = made("StandardScaler()"), ["smooth", "large"]
    scaled = make_column_transformer(scaler, remainder="passthrough")
    return make_pipeline(scaled.set_output(transform="pandas"), model)


_QUIET = {"thread_count": 1, "verbose": 0, "allow_writing_files": False}
_PARTS: dict[str, Any] = {
    "xgb": _booster("xgboost", "XGB", n_estimators=20, n_jobs=1),
    "lgbm": _booster("lightgbm", "LGBM", n_estimators=20, n_jobs=1, verbose=-1),
    "cat": partial(_booster("catboost", "CatBoost", **_QUIET), iterations=20),
    "behind_a_table": _behind_a_table,
    "make_pipeline": make_pipeline,
    "ratios": ratios,
    "letters": letters,
    "scaled": _scaled,
    "hist": lambda: made("HistGradientBoostingRegressor(max_iter=20, random_state=0)"),
    "hist_classes": _hist_classes,
    "forest": lambda: made("RandomForestRegressor(8, random_state=0)"),
    "tree": lambda: made("DecisionTreeClassifier(random_state=0)"),
    "one_hot": lambda: made('OneHotEncoder(handle_unknown="ignore")'),
    "columns": _columns,
    "encoded": _encoded,
    "ordinals": _ordinals,
}


def _frame(seed: int, rows: int = 260) -> pd.DataFrame:
    return pd.DataFrame(numbers(seed, rows), columns=_NAMES)


def _labels(wanted: np.ndarray) -> np.ndarray:
    return np.array(["low", "mid", "high"])[np.digitize(wanted, np.quantile(wanted, [0.3, 0.7]))]


def _regression(expression: str) -> Case:
    rows = _frame(11)
    wanted = target(rows.to_numpy())
    return Case(made(expression).fit(rows, wanted - wanted.min() + 0.1), rows, _frame(12, 200))


def _classification(expression: str) -> Case:
    rows = _frame(13)
    return Case(made(expression).fit(rows, _labels(target(rows.to_numpy()))), rows, _frame(14, 200))


def _whole_classes(expression: str) -> Case:
    rows = _frame(13)
    wanted = target(rows.to_numpy())
    classes = np.digitize(wanted, np.quantile(wanted, [0.3, 0.7]))
    return Case(made(expression).fit(rows, classes), rows, _frame(14, 200))


def _categories(expression: str) -> Case:
    tables = []
    for seed in (28, 29):
        city = pd.Categorical(np.random.default_rng(seed).choice(_CITIES, 260), _CITIES)
        tables.append(_frame(seed).assign(city=city))
    is_high = target(tables[0][_NAMES].to_numpy()) + 2 * (tables[0].city == "oslo") > 4
    return Case(made(expression).fit(tables[0], is_high.astype(int)), *tables)


def _gapped(expression: str) -> Case:
    tables = []
    for seed in (15, 16):
        table = _frame(seed)
        tables.append(table.mask(np.random.default_rng(seed).random(table.shape) < 0.1))
    wanted = target(tables[0].fillna(0).to_numpy()) + 5 * tables[0].smooth.isna()
    return Case(made(expression).fit(tables[0], wanted), *tables)


def _mixed(expression: str) -> Case:
    tables = []
    for seed in (17, 18):
        random = np.random.default_rng(seed)
        city = random.choice(_CITIES, 260)
        tables.append(_frame(seed).assign(city=city, hour=random.integers(0, 24, 260)))
    labels = _labels(target(tables[0][_NAMES].to_numpy()) + (tables[0].city == "oslo"))
    if "MultiOutput" in expression:
        labels = np.column_stack([labels == "high", tables[0].city == "oslo"])
    return Case(made(expression).fit(tables[0], labels), *tables)


def _text(expression: str, accents: bool = False) -> Case:
    texts, fresh = (
        [_accented(text) if accents else text for text in sentences(seed)] for seed in (19, 20)
    )
    labels = ["good" in text or "warm" in text for text in texts]
    model = make_pipeline(made(expression), made("LogisticRegression()")).fit(texts, labels)
    # The example does not contain the training rows with accents.
    plain = [text for text in texts if text.isascii()]
    return Case(model, plain or texts, fresh)


def _accented(text: str) -> str:
    if len(text) % 2:
        return text.replace("warm", "wärm")
    return text.replace("old", "été").replace("new", "żółw")


def _several(expression: str) -> Case:
    rows = _frame(26)
    wanted = target(rows.to_numpy())
    both = np.column_stack([wanted, rows.smooth - wanted])
    return Case(made(expression).fit(rows, both), rows, _frame(27))


def _single(expression: str) -> Case:
    rows, fresh = (_frame(seed).astype(np.float32) for seed in (23, 24))
    return Case(made(expression).fit(rows, target(rows.to_numpy())), rows, fresh)


def _equal_distances() -> Case:
    """Return whole numbers, so that many rows have the same distance to several
    neighbours.
    """
    random = np.random.default_rng(25)
    rows, fresh = (
        pd.DataFrame(random.integers(0, 5, (200, 3)).astype(float), columns=list("abc"))
        for _ in range(2)
    )
    labels = random.choice(["x", "y", "z"], 200)
    return Case(made("KNeighborsClassifier(3)").fit(rows, labels), rows, fresh)


def _text_and_numbers() -> Case:
    tables = [_frame(seed).assign(text=sentences(seed)) for seed in (21, 22)]
    parts = (made('TfidfVectorizer(token_pattern="[a-zA-Z]+")'), "text"), (StandardScaler(), _NAMES)
    columns = make_column_transformer(*parts, sparse_threshold=0)
    labels = _labels(target(tables[0][_NAMES].to_numpy()))
    model = make_pipeline(columns, made("LogisticRegression()"))
    return Case(model.fit(tables[0], labels), *tables)


_KINDS: dict[str, tuple[str, Callable[[str], Case]]] = {
    "numbers": (_NUMBERS, _regression),
    "classes": (_CLASSES, _classification),
    "gaps": (_GAPS, _gapped),
    "mixed": (_MIXED, _mixed),
    "text": (_TEXTS, _text),
    "text with accents": (_ACCENTS, partial(_text, accents=True)),
    "several targets": (_SEVERAL, _several),
    "32-bit table": (_SINGLE, _single),
    "booster": (_BOOSTED, _regression),
    "booster of classes": (_BOOSTED_CLASSES, _whole_classes),
    "booster with gaps": (_BOOSTED_GAPS, _gapped),
    "booster of categories": (_BOOSTED_CATEGORIES, _categories),
}
