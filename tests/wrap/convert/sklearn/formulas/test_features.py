"""Each transformer before a linear model is proven, or its error names the unsupported
option.
"""

from typing import Any

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
    SelectFromModel,
    SequentialFeatureSelector,
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
from tests.support.random_rows import normal_rows
from tests.wrap.conftest import is_proven

ROWS = np.random.default_rng(0).uniform(0.1, 1, size=(150, 4))
VALUES = 2 * ROWS[:, 0] + ROWS[:, 1]

STEPS: dict[str, Any] = {
    "one by one": GenericUnivariateSelect(mode="k_best", param=2),
    "of a forest": SelectFromModel(RandomForestRegressor(5, random_state=0)),
    "in order": SequentialFeatureSelector(Ridge(), n_features_to_select=2, cv=2),
    "by elimination": RFE(Ridge(), n_features_to_select=2),
    "factors": FactorAnalysis(2),
    "independent": FastICA(2, random_state=0),
    "independent, not whitened": FastICA(whiten=False, random_state=0),
    "sparse components": SparsePCA(2, max_iter=10, random_state=0),
    "groups": FeatureAgglomeration(2),
    "groups by their largest": FeatureAgglomeration(2, pooling_func=np.max),
    "cosines": RBFSampler(n_components=10, random_state=0),
    "skewed": SkewedChi2Sampler(n_components=10, random_state=0),
    "counts": AdditiveChi2Sampler(),
    "products": PolynomialFeatures(3),
    "products of others, without a constant": PolynomialFeatures(
        2, interaction_only=True, include_bias=False
    ),
    "products of three": PolynomialFeatures((3, 3)),
    "sketch": PolynomialCountSketch(degree=3, n_components=10, coef0=1, random_state=0),
    "machine": BernoulliRBM(3, n_iter=2, random_state=0),
    "distances from centres": KMeans(4, n_init=1, random_state=0),
    "a union with distances": make_union(
        PCA(2), make_pipeline(StandardScaler(), KMeans(4, n_init=1, random_state=0))
    ),
    "distances of some columns": make_column_transformer(
        (KMeans(3, n_init=1, random_state=0), [0, 1])
    ),
    "bins": KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf"),
    "codes of bins": KBinsDiscretizer(3, encode="ordinal", strategy="uniform"),
    "threshold": Binarizer(threshold=0.5),
    "powers": PowerTransformer(),
    "powers, not standardised": PowerTransformer("box-cox", standardize=False),
    "shares": QuantileTransformer(n_quantiles=150),
    "deviates of shares": QuantileTransformer(n_quantiles=20, output_distribution="normal"),
    "projection": SparseRandomProjection(2, random_state=0),
    **{
        f"splines, {extrapolation}": SplineTransformer(
            extrapolation=extrapolation, include_bias=False
        )
        for extrapolation in ("constant", "linear", "continue", "periodic")
    },
    "sparse splines": SplineTransformer(sparse_output=True),
    "lines": SplineTransformer(degree=1, knots="quantile"),
}


SELDOM = {
    "of a forest",
    "in order",
    "independent, not whitened",
    "groups by their largest",
    "skewed",
    "sparse splines",
}
CASES = [
    pytest.param(step, id=name, marks=[pytest.mark.long] if name in SELDOM else [])
    for name, step in STEPS.items()
]


@pytest.mark.parametrize("step", CASES)
def test_a_transformer_is_proven(step):
    assert is_proven(make_pipeline(step, Ridge()).fit(ROWS, VALUES), ROWS)


def test_products_of_many_columns_are_few_nodes():
    rows = normal_rows(60, 10)
    model = make_pipeline(PolynomialFeatures(2), Ridge()).fit(rows, rows[:, 0])

    assert len(wrap(model, rows).converted.proto.graph.node) < 20


@pytest.mark.parametrize("knots", ["uniform", "quantile"])
@pytest.mark.parametrize("extrapolation", ["constant", "linear"])
def test_splines_of_few_distinct_numbers_are_proven(extrapolation, knots):
    codes = np.random.default_rng(2).integers(0, 2, len(ROWS)) / 10
    constant = np.full(len(ROWS), 3.0)
    rows = np.column_stack([ROWS[:, 0], codes, constant])
    step = SplineTransformer(knots=knots, extrapolation=extrapolation)

    assert is_proven(make_pipeline(step, Ridge()).fit(rows, 100 * VALUES), rows)


@pytest.mark.parametrize("extrapolation", ["constant", "linear", "continue", "periodic", "error"])
def test_splines_of_a_missing_value_are_zeros(extrapolation):
    rows = np.where(np.random.default_rng(1).random(ROWS.shape) < 0.1, np.nan, ROWS)
    step = SplineTransformer(handle_missing="zeros", extrapolation=extrapolation)

    assert is_proven(make_pipeline(step, Ridge()).fit(rows, VALUES), rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_embedding_has_the_leaves_of_trees(dtype):
    embedding = RandomTreesEmbedding(10, max_depth=4, sparse_output=False, random_state=0)
    model = make_pipeline(StandardScaler(), embedding, LogisticRegression())

    assert is_proven(model.fit(ROWS.astype(dtype), VALUES > 1), ROWS.astype(dtype))


def test_columns_made_by_a_step_can_be_selected_by_the_next_one():
    table = pd.DataFrame(ROWS, columns=list("abcd")).assign(
        city=np.where(ROWS[:, 0] > 0.5, "rome", "oslo")
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
def test_a_discriminant_before_a_classifier_makes_columns(solver):
    model = make_pipeline(
        LinearDiscriminantAnalysis(n_components=1, solver=solver), LogisticRegression()
    )

    assert is_proven(model.fit(ROWS, np.digitize(VALUES, [1.2, 2.0])), ROWS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_a_threshold_is_compared_in_the_precision_of_the_rows(dtype):
    rows = (
        (np.random.default_rng(0).integers(0, 10, size=(150, 4)) / 10)
        .astype(np.float32)
        .astype(dtype)
    )
    model = make_pipeline(Binarizer(threshold=0.3), RandomForestRegressor(5, random_state=0)).fit(
        rows, VALUES
    )

    assert is_proven(model, rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_equal_quantiles_missing_values_and_a_constant_column_have_their_shares(
    distribution, dtype
):
    rows = np.random.default_rng(0).integers(1000, 1006, size=(150, 4)).astype(dtype)
    rows[:, 3] = 7
    if dtype is not np.int64:
        rows[::9, 1] = np.nan
    model = make_pipeline(
        QuantileTransformer(n_quantiles=100, output_distribution=distribution),
        SimpleImputer(strategy="constant", fill_value=-9.0),
        RandomForestRegressor(5, random_state=0),
    )

    assert is_proven(model.fit(rows, VALUES), rows)


def test_an_elimination_predicts_by_its_own_estimator():
    assert is_proven(RFE(Ridge(), n_features_to_select=2).fit(ROWS, VALUES), ROWS)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            MissingIndicator(missing_values=0, features="all"),
            "MissingIndicator with missing_values other than NaN",
        ),
        (
            FeatureAgglomeration(2, pooling_func=np.median),
            "numpy.median, which is not supported in a graph",
        ),
    ],
)
def test_an_option_without_a_form_is_named(step, words):
    with pytest.raises(ConversionError, match=words):
        wrap(make_pipeline(step, Ridge()).fit(ROWS, VALUES), ROWS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaled_numbers_of_either_precision_are_proven_before_boosting(dtype, matrix):
    rows, target = matrix
    table = pd.DataFrame(rows[:300].astype(dtype), columns=list("abcde"))

    wrapped = wrap(
        make_pipeline(RobustScaler(), HistGradientBoostingRegressor(max_iter=5)).fit(
            table, target[:300]
        ),
        table,
    )

    assert wrapped.report.state == "proven"
    assert wrapped.report.outputs[0].ties == 0


@pytest.mark.parametrize("method", ["yeo-johnson", "box-cox"])
def test_powers_are_computed_in_64_bits_where_32_overflow(method, matrix):
    rows, target = matrix
    table = pd.DataFrame(np.abs(rows[:300, :2]) ** 0.2 + 0.1, columns=["a", "b"])

    assert is_proven(
        make_pipeline(PowerTransformer(method), Ridge()).fit(table, target[:300]), table
    )
