"""Each transformer before a linear model is proven, or its error names the unsupported
option.
"""

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import FeatureAgglomeration, KMeans
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA, FactorAnalysis, FastICA, SparsePCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    HistGradientBoostingRegressor,
    RandomForestRegressor,
    RandomTreesEmbedding,
)
from sklearn.feature_selection import (
    RFE,
    GenericUnivariateSelect,
)
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.kernel_approximation import (
    AdditiveChi2Sampler,
    PolynomialCountSketch,
    RBFSampler,
    SkewedChi2Sampler,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    Binarizer,
    KBinsDiscretizer,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    SplineTransformer,
    StandardScaler,
)
from sklearn.random_projection import SparseRandomProjection

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.cases import long_case
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused
from tests.wrap.conftest import cases, is_proven, operators_of, proven

ROWS = np.random.default_rng(0).uniform(0.1, 1, size=(150, 3))
VALUES = 2 * ROWS[:, 0] + ROWS[:, 1]

STEPS = [
    GenericUnivariateSelect(mode="k_best", param=2),
    FactorAnalysis(2),
    FastICA(2, random_state=0),
    SparsePCA(2, max_iter=10, random_state=0),
    FeatureAgglomeration(2),
    RBFSampler(n_components=10, random_state=0),
    PolynomialFeatures(3),
    BernoulliRBM(3, n_iter=2, random_state=0),
    KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf"),
    QuantileTransformer(n_quantiles=20, output_distribution="normal"),
    SparseRandomProjection(2, random_state=0),
    SplineTransformer(include_bias=False),
    AdditiveChi2Sampler(),
]
SELDOM = [
    PolynomialFeatures(2, interaction_only=True, include_bias=False),
    PolynomialCountSketch(degree=3, n_components=10, coef0=1, random_state=0),
    make_union(PCA(2), make_pipeline(StandardScaler(), KMeans(4, n_init=1, random_state=0))),
    SplineTransformer(extrapolation="continue", include_bias=False),
    SplineTransformer(degree=1, knots="quantile"),
    PowerTransformer("box-cox", standardize=False),
    QuantileTransformer(n_quantiles=150),
    PolynomialFeatures((3, 3)),
    FastICA(whiten=False, random_state=0),
    FeatureAgglomeration(2, pooling_func=np.max),
    SkewedChi2Sampler(n_components=10, random_state=0),
    SplineTransformer(sparse_output=True),
]


@pytest.mark.parametrize("step", [*cases(STEPS), *cases(SELDOM, is_long=True)])
def test_transformer_is_proven(step):
    assert is_proven(make_pipeline(step, Ridge()).fit(ROWS, VALUES), ROWS)


def test_products_are_few_nodes():
    rows = normal_rows(60, 10)
    model = make_pipeline(PolynomialFeatures(2), Ridge()).fit(rows, rows[:, 0])

    assert len(operators_of(wrap(model, rows))) < 20


@pytest.mark.parametrize(
    ("extrapolation", "knots"),
    [
        ("constant", "uniform"),
        long_case("linear", "quantile"),
    ],
)
def test_splines_of_few_numbers_are_proven(extrapolation, knots):
    codes = np.random.default_rng(2).integers(0, 2, len(ROWS)) / 10
    constant = np.full(len(ROWS), 3.0)
    rows = np.column_stack([ROWS[:, 0], codes, constant])
    step = SplineTransformer(knots=knots, extrapolation=extrapolation)

    assert is_proven(make_pipeline(step, Ridge()).fit(rows, 100 * VALUES), rows)


@pytest.mark.parametrize(
    "extrapolation", [*cases(["linear"]), *cases(["periodic", "error"], is_long=True)]
)
def test_splines_of_missing_values_are_zeros(extrapolation):
    whole = ROWS[:, :2]
    rows = np.where(np.random.default_rng(1).random(whole.shape) < 0.1, np.nan, whole)
    step = SplineTransformer(handle_missing="zeros", extrapolation=extrapolation)

    assert is_proven(make_pipeline(step, Ridge()).fit(rows, VALUES), rows)


def test_embedding_has_the_leaves_of_trees():
    embedding = RandomTreesEmbedding(5, max_depth=3, sparse_output=False, random_state=0)
    model = make_pipeline(StandardScaler(), embedding, LogisticRegression())

    assert is_proven(model.fit(ROWS, VALUES > 1), ROWS)


def test_new_columns_can_be_selected():
    table = pd.DataFrame(ROWS, columns=list("abc")).assign(
        d=VALUES, city=np.where(ROWS[:, 0] > 0.5, "rome", "oslo")
    )
    table["a"] = table.a.mask(table.b > 0.8)
    numbers = make_column_transformer(
        (make_union(SimpleImputer(), MissingIndicator()), ["a"]),
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["city"]),
        remainder="passthrough",
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    picked = make_column_transformer(
        (StandardScaler(), ["city"]), (PCA(1), ["b", "d"]), ("drop", ["c"])
    )
    model = make_pipeline(numbers, picked.set_output(transform="pandas"), Ridge()).fit(
        table, VALUES
    )

    assert is_proven(model, table)


@pytest.mark.parametrize("solver", ["svd", "eigen"])
def test_discriminant_before_a_classifier_is_proven(solver):
    discriminant = LinearDiscriminantAnalysis(n_components=1, solver=solver)
    model = make_pipeline(discriminant, LogisticRegression())

    assert is_proven(model.fit(ROWS, np.digitize(VALUES, [1.2, 2.0])), ROWS)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_threshold_has_the_row_precision(dtype):
    tenths = np.random.default_rng(0).integers(0, 10, size=(150, 3)) / 10
    rows = tenths.astype(np.float32).astype(dtype)
    model = make_pipeline(Binarizer(threshold=0.3), RandomForestRegressor(3, random_state=0))

    assert is_proven(model.fit(rows, VALUES), rows)


@pytest.mark.parametrize(
    ("distribution", "dtype"),
    [
        ("uniform", np.float32),
        long_case("normal", np.int64),
    ],
)
def test_equal_quantiles_are_proven(distribution, dtype):
    rows = np.random.default_rng(0).integers(1000, 1006, size=(150, 3)).astype(dtype)
    rows[:, 2] = 7
    if dtype is not np.int64:
        rows[::9, 1] = np.nan
    model = make_pipeline(
        QuantileTransformer(n_quantiles=30, output_distribution=distribution),
        SimpleImputer(strategy="constant", fill_value=-9.0),
        RandomForestRegressor(5, random_state=0),
    )

    assert is_proven(model.fit(rows, VALUES), rows)


def test_elimination_predicts_by_its_estimator():
    assert is_proven(RFE(Ridge(), n_features_to_select=2).fit(ROWS, VALUES), ROWS)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            MissingIndicator(missing_values=0, features="all"),
            ("MissingIndicator", "missing_values"),
        ),
        (FeatureAgglomeration(2, pooling_func=np.median), ("numpy.median",)),
    ],
)
def test_unsupported_option_is_named(step, words):
    with refused(ConversionError, *words):
        wrap(make_pipeline(step, Ridge()).fit(ROWS, VALUES), ROWS)


def test_scaled_numbers_are_proven_before_boosting(matrix):
    rows, target = matrix
    table = pd.DataFrame(rows, columns=list("abc"))
    model = make_pipeline(RobustScaler(), HistGradientBoostingRegressor(max_iter=5))

    assert proven(model.fit(table, target), table).report.outputs[0].ties == 0


@pytest.mark.parametrize("method", ["yeo-johnson", long_case("box-cox")])
def test_powers_are_computed_in_64_bits(method, matrix):
    rows, target = matrix
    small = np.abs(rows[:300, :2]) ** 0.2 + 0.1
    model = make_pipeline(PowerTransformer(method), Ridge())

    assert is_proven(model.fit(small, target[:300]), small)
