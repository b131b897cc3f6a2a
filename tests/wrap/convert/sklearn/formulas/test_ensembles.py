"""Each meta-estimator is proven with another meta-estimator inside, or names the
unsupported inner estimator.
"""

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    BaggingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  # the import of IterativeImputer needs it
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import RFE
from sklearn.frozen import FrozenEstimator
from sklearn.impute import IterativeImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier, OutputCodeClassifier
from sklearn.multioutput import (
    ClassifierChain,
    MultiOutputClassifier,
    MultiOutputRegressor,
    RegressorChain,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.svm import SVC, SVR, LinearSVC, LinearSVR
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused
from tests.support.weather import weather_columns
from tests.wrap.conftest import cases, is_proven, operators_of, proven

ROWS = pd.DataFrame(normal_rows(200, 3), columns=["a", "b", "c"])
VALUES = (2 * ROWS.a + ROWS.b + 5).to_numpy()
TWO = np.where(VALUES > 5, "yes", "no")
THREE = np.digitize(VALUES, [4, 6])
LABELS = np.column_stack([VALUES > 5, ROWS.c > 0]).astype(int)

SCALED_SVC = make_pipeline(StandardScaler(), LinearSVC())
LINE = LogisticRegression()
TREE = DecisionTreeClassifier(max_depth=3)
TARGETS = np.column_stack([VALUES, -VALUES])
SEVERAL = np.abs(np.column_stack([VALUES, VALUES**2]))
GAPPED = ROWS.mask(np.random.default_rng(1).random(ROWS.shape) < 0.1)
RARE = np.digitize(VALUES, [1, 6])
TABLE = ROWS.assign(city=np.where(ROWS.c > 0, "rome", "oslo"))
MEMBERS = [
    ("a", make_pipeline(make_column_transformer((StandardScaler(), ["a", "b"])), LinearSVC())),
    (
        "b",
        make_pipeline(
            make_column_transformer(
                (OneHotEncoder(handle_unknown="ignore"), ["city"]), (MinMaxScaler(), ["c"])
            ),
            RandomForestClassifier(5, random_state=0),
        ),
    ),
]
CLASSIFIERS = [
    (CalibratedClassifierCV(SCALED_SVC, cv=2), TWO),
    (
        CalibratedClassifierCV(TREE, method="temperature", cv=2),
        THREE,
    ),
    (FixedThresholdClassifier(LINE, threshold=0.3, pos_label="no"), TWO),
    (OneVsRestClassifier(LINE), LABELS),
    (OneVsOneClassifier(LINE), THREE),
    (ClassifierChain(LINE, order=[1, 0]), LABELS),
    (
        StackingClassifier([("a", TREE), ("b", SVC())], LinearSVC(), cv=2),
        THREE,
    ),
    (
        BaggingClassifier(LINE, 8, max_samples=12, max_features=2, random_state=0),
        RARE,
    ),
    (
        VotingClassifier(
            [("a", LinearDiscriminantAnalysis()), ("b", GaussianNB())],
            voting="soft",
            weights=[2, 1],
        ),
        TWO,
    ),
    (VotingClassifier([("a", TREE), ("b", GaussianNB())]), THREE),
    (SelfTrainingClassifier(LINE), np.where(ROWS.c > 1, -1, THREE)),
    (
        MultiOutputRegressor(make_pipeline(StandardScaler(), SVR())),
        TARGETS,
    ),
    (
        TransformedTargetRegressor(
            LinearRegression(), func=np.sqrt, inverse_func=np.square, check_inverse=False
        ),
        SEVERAL,
    ),
    (RegressorChain(Ridge(), order=[1, 0]), SEVERAL),
    (
        MultiOutputClassifier(
            make_pipeline(
                make_column_transformer((StandardScaler(), ["a", "b"]), remainder="passthrough"),
                LINE,
            )
        ),
        LABELS.astype(str),
    ),
]
SELDOM = [
    (CalibratedClassifierCV(BaggingClassifier(LINE, 3), cv=2), THREE),
    (TunedThresholdClassifierCV(LogisticRegression(C=0.01), cv=2), THREE > 1),
    (OutputCodeClassifier(LINE, random_state=0), THREE),
    (
        BaggingClassifier(make_pipeline(RFE(LinearSVC()), SVC()), 3, random_state=0),
        THREE,
    ),
    (
        TransformedTargetRegressor(
            RandomForestRegressor(5, random_state=0), transformer=StandardScaler()
        ),
        SEVERAL,
    ),
    (
        BaggingClassifier(
            make_pipeline(MinMaxScaler(), LinearSVC()), 8, max_samples=12, random_state=0
        ),
        RARE,
    ),
    (CalibratedClassifierCV(LinearSVC(), method="temperature", cv=2), TWO),
    (
        CalibratedClassifierCV(FrozenEstimator(LogisticRegression().fit(ROWS, TWO))),
        TWO,
    ),
    (FixedThresholdClassifier(LinearSVC()), THREE > 1),
    (OneVsRestClassifier(LINE), TWO),
    (OneVsRestClassifier(Ridge()), THREE),
    (OneVsOneClassifier(SVC()), THREE),
    (OneVsOneClassifier(LINE), TWO),
    (ClassifierChain(LINE, chain_method="predict_proba"), LABELS),
    (
        TunedThresholdClassifierCV(GridSearchCV(LINE, {"C": [0.1, 1]}, cv=2), cv=2),
        TWO == "yes",
    ),
]


VECTORS = make_pipeline(TfidfVectorizer(), LINE)
WORDS = np.random.default_rng(0).choice(["good", "bad", "warm", "cold"], (150, 4))
TEXTS = [" ".join(words) for words in WORDS]
OF_OTHER_ROWS = [
    (StackingClassifier(MEMBERS, cv=2), TABLE, TWO),
    (VotingClassifier(MEMBERS), TABLE, TWO),
    (
        make_pipeline(IterativeImputer(max_iter=3, random_state=0, add_indicator=True), Ridge()),
        GAPPED,
        VALUES,
    ),
    (
        make_pipeline(
            IterativeImputer(DecisionTreeRegressor(max_depth=3), max_iter=3, random_state=0),
            Ridge(),
        ),
        GAPPED,
        VALUES,
    ),
    (CalibratedClassifierCV(VECTORS, cv=2), TEXTS, (WORDS == "good").any(1)),
]


@pytest.mark.parametrize(("model", "target"), [*cases(CLASSIFIERS), *cases(SELDOM, is_long=True)])
def test_ensemble_is_proven(model, target):
    assert is_proven(model.fit(ROWS, target), ROWS)


@pytest.mark.long
@pytest.mark.parametrize(("model", "rows", "target"), cases(OF_OTHER_ROWS))
def test_ensemble_of_other_rows_is_proven(model, rows, target):
    assert is_proven(model.fit(rows, target), rows)


@pytest.mark.parametrize(
    ("within", "method"),
    [
        (LINE, "isotonic"),
        pytest.param(GaussianNB(), "sigmoid", marks=pytest.mark.long),
    ],
    ids=str,
)
def test_calibration_without_all_classes_is_proven(within, method):
    two = np.flatnonzero(THREE != 1)
    all_rows = np.arange(len(THREE))
    folds = [(two, all_rows[::2]), (all_rows, all_rows[1::2])]
    model = CalibratedClassifierCV(within, method=method, cv=folds)

    assert is_proven(model.fit(ROWS, THREE), ROWS)


@pytest.mark.long
@pytest.mark.parametrize(
    "model",
    [
        OneVsRestClassifier(LINE),
        OneVsOneClassifier(LinearSVC()),
        OutputCodeClassifier(LinearSVC(), random_state=0),
        CalibratedClassifierCV(LinearSVC(), cv=2),
        CalibratedClassifierCV(LinearSVC(), method="isotonic", cv=2),
    ],
    ids=lambda model: type(model).__name__,
)
def test_nodes_are_independent_of_classes(model):
    ten = np.digitize(VALUES, np.quantile(VALUES, np.arange(1, 10) / 10))

    few, many = (operators_of(wrap(model.fit(ROWS, labels), ROWS)) for labels in (THREE, ten))

    assert len(many) < len(few) + 10


@pytest.mark.parametrize("within", [LinearSVR(), Ridge(fit_intercept=False)], ids=str)
def test_linear_targets_are_one_product(within):
    targets = np.column_stack([VALUES, -VALUES, ROWS.c])
    model = make_pipeline(StandardScaler(), MultiOutputRegressor(within))

    operators = operators_of(proven(model.fit(ROWS, targets), ROWS))

    assert operators.count("MatMul") + operators.count("LinearRegressor") == 1


TRANSFORMERS = [
    MinMaxScaler(),
    PowerTransformer(),
    QuantileTransformer(n_quantiles=20),
    make_pipeline(FunctionTransformer(np.log1p, np.expm1), StandardScaler()),
]
SELDOM_TRANSFORMERS = [
    PowerTransformer("box-cox"),
    QuantileTransformer(n_quantiles=20, output_distribution="normal"),
    MaxAbsScaler(),
    RobustScaler(),
]


@pytest.mark.parametrize(
    "transformer",
    [
        *cases(TRANSFORMERS),
        *cases(SELDOM_TRANSFORMERS, is_long=True),
    ],
)
def test_transformed_target_is_turned_back(transformer):
    model = TransformedTargetRegressor(Ridge(), transformer=transformer).fit(
        ROWS, np.exp(VALUES / 10)
    )

    assert is_proven(model, ROWS)


def test_unsupported_inner_estimator_is_named():
    binned = TransformedTargetRegressor(Ridge(), transformer=KBinsDiscretizer(encode="ordinal"))
    with refused(ConversionError, "inverse"):
        wrap(binned.fit(ROWS, VALUES), ROWS)
    distances = ROWS @ ROWS.T
    precomputed = OneVsOneClassifier(SVC(kernel="precomputed")).fit(distances, THREE)
    with refused(ConversionError, "a precomputed kernel"):
        wrap(precomputed, distances)


@pytest.mark.long
@pytest.mark.parametrize(
    "model",
    [
        TunedThresholdClassifierCV(make_pipeline(weather_columns(), LINE), cv=2),
        TransformedTargetRegressor(
            make_pipeline(weather_columns(), Ridge()), func=np.log1p, inverse_func=np.expm1
        ),
    ],
    ids=["linear", "a target"],
)
def test_mixed_columns_reach_the_pipeline(model, weather):
    table, labels = weather
    target = labels == "late" if hasattr(model, "scoring") else table.humidity.abs()

    assert is_proven(model.fit(table, target), table)
