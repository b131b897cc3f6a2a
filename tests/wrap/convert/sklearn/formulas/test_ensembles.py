"""Each meta-estimator is proven with another meta-estimator inside, or names the
unsupported inner estimator.
"""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_transformer
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    BaggingClassifier,
    HistGradientBoostingClassifier,
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
from tests.support.weather import weather_columns
from tests.wrap.conftest import is_proven

ROWS = pd.DataFrame(normal_rows(200, 3), columns=["a", "b", "c"])
VALUES = (2 * ROWS.a + ROWS.b + 5).to_numpy()
TWO = np.where(VALUES > 5, "yes", "no")
THREE = np.digitize(VALUES, [4, 6])
LABELS = np.column_stack([VALUES > 5, ROWS.c > 0]).astype(int)

CLASSIFIERS: dict[str, tuple[Any, Any]] = {
    "sigmoid": (CalibratedClassifierCV(make_pipeline(StandardScaler(), LinearSVC()), cv=2), TWO),
    "scores of a bag": (
        CalibratedClassifierCV(BaggingClassifier(LogisticRegression(), 3), cv=2),
        THREE,
    ),
    "isotonic": (CalibratedClassifierCV(LogisticRegression(), method="isotonic", cv=2), THREE),
    "temperature of scores": (
        CalibratedClassifierCV(LinearSVC(), method="temperature", cv=2),
        THREE,
    ),
    "temperature of two": (CalibratedClassifierCV(LinearSVC(), method="temperature", cv=2), TWO),
    "temperature of probabilities that may be 0": (
        CalibratedClassifierCV(DecisionTreeClassifier(max_depth=3), method="temperature", cv=2),
        THREE,
    ),
    "calibrated after training": (
        CalibratedClassifierCV(FrozenEstimator(LogisticRegression().fit(ROWS, TWO))),
        TWO,
    ),
    "a threshold for no": (
        FixedThresholdClassifier(LogisticRegression(), threshold=0.3, pos_label="no"),
        TWO,
    ),
    "a threshold for scores": (FixedThresholdClassifier(LinearSVC()), THREE > 1),
    "a tuned threshold": (TunedThresholdClassifierCV(LogisticRegression(C=0.01), cv=2), THREE > 1),
    "a class against the rest": (
        OneVsRestClassifier(make_pipeline(StandardScaler(), LogisticRegression())),
        THREE,
    ),
    "the rest of two": (OneVsRestClassifier(LogisticRegression()), TWO),
    "several labels": (OneVsRestClassifier(LogisticRegression()), LABELS),
    "regressions for classes": (OneVsRestClassifier(Ridge()), THREE),
    "trees for classes": (OneVsRestClassifier(DecisionTreeClassifier(max_depth=3)), THREE),
    "a class against each other": (OneVsOneClassifier(LogisticRegression()), THREE),
    "machines for pairs": (OneVsOneClassifier(SVC()), THREE),
    "one pair": (OneVsOneClassifier(LogisticRegression()), TWO),
    "codes": (OutputCodeClassifier(LogisticRegression(), random_state=0), THREE),
    "a chain": (ClassifierChain(LogisticRegression(), order=[1, 0]), LABELS),
    "a chain by probabilities": (
        ClassifierChain(LogisticRegression(), chain_method="predict_proba"),
        LABELS,
    ),
    "a stack": (
        StackingClassifier(
            [("a", LinearSVC()), ("b", make_pipeline(MinMaxScaler(), LinearSVC()))], cv=2
        ),
        TWO,
    ),
    "a stack of three classes": (
        StackingClassifier(
            [("a", DecisionTreeClassifier(max_depth=3)), ("b", SVC())], LinearSVC(), cv=2
        ),
        THREE,
    ),
    "votes of a bag": (BaggingClassifier(SVC(), 4, random_state=0), TWO),
    "a bag of pipelines": (
        BaggingClassifier(make_pipeline(RFE(LinearSVC()), SVC()), 3, random_state=0),
        THREE,
    ),
    "a bag that seldom sees a class": (
        BaggingClassifier(LogisticRegression(), 8, max_samples=12, max_features=2, random_state=0),
        np.digitize(VALUES, [1, 6]),
    ),
    "votes of a bag that seldom sees a class": (
        BaggingClassifier(
            make_pipeline(MinMaxScaler(), LinearSVC()), 8, max_samples=12, random_state=0
        ),
        np.digitize(VALUES, [1, 6]),
    ),
    "votes with weights": (
        VotingClassifier(
            [("a", LinearDiscriminantAnalysis()), ("b", GaussianNB())],
            voting="soft",
            weights=[2, 1],
        ),
        TWO,
    ),
    "votes by labels": (
        VotingClassifier([("a", DecisionTreeClassifier(max_depth=3)), ("b", GaussianNB())]),
        THREE,
    ),
    "labels of its own": (
        SelfTrainingClassifier(LogisticRegression()),
        np.where(ROWS.c > 1, -1, THREE),
    ),
    "a search within": (
        TunedThresholdClassifierCV(GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, cv=2), cv=2),
        TWO == "yes",
    ),
}


SELDOM = {
    "temperature of two",
    "a threshold for scores",
    "the rest of two",
    "regressions for classes",
    "machines for pairs",
}
SELDOM |= {"one pair", "a chain by probabilities", "a search within", "calibrated after training"}
CASES = [
    pytest.param(*case, id=name, marks=[pytest.mark.long] if name in SELDOM else [])
    for name, case in CLASSIFIERS.items()
]


@pytest.mark.parametrize(("model", "labels"), CASES)
def test_a_classifier_around_others_is_proven(model, labels):
    assert is_proven(model.fit(ROWS, labels), ROWS)


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
@pytest.mark.parametrize("within", [LogisticRegression(), GaussianNB()], ids=["linear", "another"])
def test_calibrations_that_have_not_seen_all_classes_are_proven(within, method):
    two = np.flatnonzero(THREE != 1)
    all_rows = np.arange(len(THREE))
    model = CalibratedClassifierCV(
        within, method=method, cv=[(two, all_rows[::2]), (all_rows, all_rows[1::2])]
    )

    assert is_proven(model.fit(ROWS, THREE), ROWS)


@pytest.mark.long
@pytest.mark.parametrize(
    "model",
    [
        OneVsRestClassifier(LogisticRegression()),
        OneVsOneClassifier(LinearSVC()),
        OutputCodeClassifier(LinearSVC(), random_state=0),
        CalibratedClassifierCV(LinearSVC(), cv=2),
        CalibratedClassifierCV(LinearSVC(), method="isotonic", cv=2),
    ],
    ids=lambda model: type(model).__name__,
)
def test_linear_parts_are_as_few_nodes_for_ten_classes_as_for_three(model):
    ten = np.digitize(VALUES, np.quantile(VALUES, np.arange(1, 10) / 10))

    few, many = (
        wrap(model.fit(ROWS, labels), ROWS).converted.proto.graph.node for labels in (THREE, ten)
    )

    assert len(many) < len(few) + 10


@pytest.mark.parametrize("kind", [int, str])
@pytest.mark.parametrize(
    "last", [LogisticRegression(), DecisionTreeClassifier(max_depth=3), LinearSVC()], ids=str
)
def test_each_of_several_targets_has_a_pipeline(last, kind):
    first = make_column_transformer((StandardScaler(), ["a", "b"]), remainder="passthrough")
    labels: Any = np.column_stack([THREE, ROWS.c > 0]).astype(int).astype(kind)
    model = MultiOutputClassifier(make_pipeline(first, last)).fit(ROWS, labels)

    assert is_proven(model, ROWS)


def test_regressions_of_several_targets_have_a_pipeline_each():
    model = MultiOutputRegressor(make_pipeline(StandardScaler(), SVR())).fit(
        ROWS, np.column_stack([VALUES, -VALUES])
    )

    assert is_proven(model, ROWS)


@pytest.mark.parametrize(
    "within", [LinearRegression(), LinearSVR(), Ridge(fit_intercept=False)], ids=str
)
def test_linear_regressions_of_several_targets_are_one_product(within):
    targets = np.column_stack([VALUES, -VALUES, ROWS.c])

    wrapped = wrap(
        make_pipeline(StandardScaler(), MultiOutputRegressor(within)).fit(ROWS, targets), ROWS
    )

    assert wrapped.report.state == "proven"
    assert (
        sum(
            node.op_type in ("MatMul", "LinearRegressor")
            for node in wrapped.converted.proto.graph.node
        )
        == 1
    )


@pytest.mark.parametrize(
    "transformer",
    [
        *(StandardScaler(), MinMaxScaler(), MaxAbsScaler(), RobustScaler(), PowerTransformer()),
        PowerTransformer("box-cox"),
        QuantileTransformer(n_quantiles=20),
        QuantileTransformer(n_quantiles=20, output_distribution="normal"),
        make_pipeline(FunctionTransformer(np.log1p, np.expm1), StandardScaler()),
    ],
    ids=str,
)
def test_a_transformed_target_is_turned_back(transformer):
    model = TransformedTargetRegressor(Ridge(), transformer=transformer).fit(
        ROWS, np.exp(VALUES / 10)
    )

    assert is_proven(model, ROWS)


@pytest.mark.long
def test_members_of_a_stack_pick_columns_of_their_own():
    table = ROWS.assign(city=np.where(ROWS.c > 0, "rome", "oslo"))
    scaled = make_pipeline(make_column_transformer((StandardScaler(), ["a", "b"])), LinearSVC())
    encoded = make_pipeline(
        make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore"), ["city"]), (MinMaxScaler(), ["c"])
        ),
        RandomForestClassifier(5, random_state=0),
    )

    for model in (
        StackingClassifier([("a", scaled), ("b", encoded)], cv=2),
        VotingClassifier([("a", scaled), ("b", encoded)]),
    ):
        assert is_proven(model.fit(table, TWO), table)


@pytest.mark.parametrize(
    "within", [None, DecisionTreeRegressor(max_depth=3)], ids=["linear", "trees"]
)
def test_gaps_are_filled_in_turn(within):
    gapped = ROWS.mask(np.random.default_rng(1).random(ROWS.shape) < 0.1)
    imputer = IterativeImputer(within, max_iter=3, random_state=0, add_indicator=True)

    assert is_proven(make_pipeline(imputer, Ridge()).fit(gapped, VALUES), gapped)


def test_a_target_of_a_function_and_several_ones_are_turned_back():
    several = np.column_stack([VALUES, VALUES**2])
    for model in (
        TransformedTargetRegressor(
            LinearRegression(), func=np.sqrt, inverse_func=np.square, check_inverse=False
        ),
        TransformedTargetRegressor(
            RandomForestRegressor(5, random_state=0), transformer=StandardScaler()
        ),
        RegressorChain(Ridge(), order=[1, 0]),
    ):
        assert is_proven(model.fit(ROWS, np.abs(several)), ROWS)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            TransformedTargetRegressor(Ridge(), transformer=KBinsDiscretizer(encode="ordinal")),
            "inverse",
        ),
        (OneVsOneClassifier(SVC(kernel="precomputed")), "a precomputed kernel"),
    ],
)
def test_an_inner_estimator_without_a_graph_is_named(model, words):
    target = VALUES if isinstance(model, TransformedTargetRegressor) else THREE
    rows = ROWS if isinstance(model, TransformedTargetRegressor) else ROWS @ ROWS.T

    with pytest.raises(ConversionError, match=words):
        wrap(model.fit(rows, target), rows)


@pytest.mark.long
def test_texts_are_read_by_the_vectorizer_within():
    texts = [
        " ".join(np.random.default_rng(seed).choice(["good", "bad", "warm", "cold"], 4))
        for seed in range(150)
    ]
    within = make_pipeline(TfidfVectorizer(), LogisticRegression())

    for model in (CalibratedClassifierCV(within, cv=2), OneVsRestClassifier(within)):
        assert is_proven(model.fit(texts, ["good" in text for text in texts]), texts)


@pytest.mark.long
def test_texts_and_numbers_are_read_by_the_pipeline_within(weather):
    table, labels = weather
    first = labels == labels.iloc[0]
    for within in (LogisticRegression(), HistGradientBoostingClassifier(max_iter=5)):
        model = TunedThresholdClassifierCV(make_pipeline(weather_columns(), within), cv=2).fit(
            table, first
        )
        assert is_proven(model, table)
    numbers = ColumnTransformer(
        [("scaled", StandardScaler(), ["temperature", "hour"])], remainder="passthrough"
    )
    scaled = TransformedTargetRegressor(
        make_pipeline(numbers, Ridge()), transformer=StandardScaler()
    )
    table_of_numbers = table[["temperature", "humidity", "hour"]].fillna(0.0)
    assert is_proven(scaled.fit(table_of_numbers, table.hour), table_of_numbers)
    prices = TransformedTargetRegressor(
        make_pipeline(weather_columns(), Ridge()), func=np.log1p, inverse_func=np.expm1
    )
    assert is_proven(prices.fit(table, table.humidity.abs()), table)
