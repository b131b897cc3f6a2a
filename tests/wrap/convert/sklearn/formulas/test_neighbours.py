"""Each estimator that compares rows with training rows is proven, or its error names
the unsupported option.
"""

from itertools import product

import numpy as np
import pytest
from onnxruntime import InferenceSession
from scipy.sparse import csr_array
from sklearn.cluster import (
    AffinityPropagation,
    Birch,
    BisectingKMeans,
    KMeans,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import KNNImputer
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.manifold import Isomap, LocallyLinearEmbedding
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.neighbors import (
    KNeighborsClassifier,
    KNeighborsRegressor,
    NearestCentroid,
    RadiusNeighborsClassifier,
    RadiusNeighborsRegressor,
    RadiusNeighborsTransformer,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelPropagation, LabelSpreading
from sklearn.svm import SVC, SVR, NuSVC, NuSVR, OneClassSVM

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.convert.sklearn.conversion import forms
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas import neighbours
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows
from tests.support.refusals import mentions, refused
from tests.wrap.conftest import cases, is_proven, proven

ROWS = normal_rows(150, 3)
VALUES = 2 * ROWS[:, 0] + ROWS[:, 1]
THREE = np.digitize(VALUES, [-1, 1])
GAPS = np.where(np.random.default_rng(1).random(ROWS.shape) < 0.1, np.nan, ROWS)

MODELS = [
    (KNeighborsClassifier(4, weights="distance", metric="manhattan"), THREE),
    (RadiusNeighborsRegressor(1.5), VALUES),
    (RadiusNeighborsClassifier(9.0), THREE),
    (NearestCentroid(), THREE),
    (LabelPropagation(), np.where(np.arange(150) % 2, THREE, -1)),
    (KernelRidge(kernel="rbf"), VALUES),
    (
        make_pipeline(Nystroem(n_components=20, random_state=0), Ridge()),
        VALUES,
    ),
    (OneClassSVM(nu=0.9), None),
]
SELDOM = [
    (KNeighborsRegressor(4, weights="distance"), VALUES),
    (KNeighborsRegressor(p=3), np.column_stack([VALUES, -VALUES])),
    (make_pipeline(Isomap(n_components=2), Ridge()), VALUES),
    (
        make_pipeline(LocallyLinearEmbedding(n_components=2, random_state=0), Ridge()),
        VALUES,
    ),
    (KNeighborsClassifier(metric="chebyshev"), THREE),
    (KNeighborsRegressor(metric="cosine"), VALUES),
    (NuSVR(kernel="poly"), VALUES),
    (RadiusNeighborsRegressor(1.5, weights="distance"), VALUES),
    (NearestCentroid(metric="manhattan", priors="uniform"), THREE),
    (LabelSpreading(), np.where(np.arange(150) % 2, THREE, -1)),
    *((KernelRidge(kernel=kernel), VALUES) for kernel in ("poly", "sigmoid")),
    (OneClassSVM(kernel="linear", nu=0.3), None),
    (make_pipeline(RadiusNeighborsTransformer(radius=1.5), Ridge()), VALUES),
]


@pytest.mark.parametrize(("model", "target"), [*cases(MODELS), *cases(SELDOM, is_long=True)])
def test_model_of_learned_rows_is_proven(model, target):
    assert is_proven(model.fit(ROWS, target), ROWS)


def test_large_sums_need_64_bits():
    noise = normal_rows(len(VALUES), seed=2)
    model = SVR(kernel="linear", C=100).fit(ROWS, VALUES + noise)

    report = wrap(model, ROWS).report

    assert (report.state, "in 64 bits" in report.repair) == ("proven", True)


@pytest.mark.parametrize(
    "model",
    [
        SVC(kernel="linear"),
        NuSVC(nu=0.2, break_ties=True),
        SVC(kernel="poly", decision_function_shape="ovo"),
        pytest.param(SVC(kernel="sigmoid"), marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(
    "labels", [VALUES > 0, np.digitize(VALUES, [-2, -1, 0, 1]).astype(str)], ids=["two", "five"]
)
def test_machine_votes_in_64_bits(model, labels):
    in_64_bits = forms(model.fit(ROWS, labels), {"": ROWS}, "predict", {})[-1]().proto

    session = InferenceSession(in_64_bits.SerializeToString())

    assert (
        session.run(["label"], {session.get_inputs()[0].name: ROWS})[0].tolist()
        == model.predict(ROWS).tolist()
    )


def test_gaps_are_filled_from_near_rows():
    imputer = KNNImputer(n_neighbors=3, add_indicator=True)
    model = make_pipeline(imputer, Ridge()).fit(GAPS, VALUES)

    assert is_proven(model, GAPS)


def test_long_rows_are_compared_by_products(monkeypatch):
    monkeypatch.setattr(neighbours, "_MAX_DIFFERENCES", 100)

    assert is_proven(KNeighborsRegressor().fit(ROWS, VALUES), ROWS)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (KNeighborsClassifier(metric="canberra"), "metric='canberra'"),
        (
            KNeighborsRegressor(metric="seuclidean", metric_params={"V": np.ones(3)}),
            "metric_params",
        ),
        (RadiusNeighborsClassifier(9.0, outlier_label=7), "an outlier_label"),
        (LabelPropagation(kernel="knn"), "kernel='knn'"),
        (KernelRidge(kernel=lambda x, y: float(x @ y)), "kernel=<function"),
        (KernelRidge(kernel="rbf", kernel_params={"gamma": 2}), "kernel_params"),
        (make_pipeline(KNNImputer(missing_values=-1), Ridge()), "missing_values other than NaN"),
        (make_pipeline(Isomap(n_neighbors=None, radius=9.0), Ridge()), "Isomap with a radius"),
    ],
)
def test_unsupported_option_is_named(model, words):
    with refused(ConversionError, words):
        wrap(model.fit(ROWS, THREE), ROWS)


@pytest.mark.long
@pytest.mark.parametrize(
    "model", [OneClassSVM(nu=0.1), make_pipeline(Nystroem(n_components=20), LogisticRegression())]
)
def test_rows_of_texts_are_proven(model):
    texts = [
        f"{size} {animal}"
        for size, animal in product(("a red", "one blue", "two old"), ("fox", "hen", "dog"))
    ] * 5
    fitted = make_pipeline(TfidfVectorizer(), model).fit(texts, ["fox" in text for text in texts])

    assert is_proven(fitted, texts)


def test_too_many_texts_are_refused(monkeypatch):
    monkeypatch.setattr(neighbours, "_MAX_DENSE", 1)
    rows = csr_array(np.eye(4))

    with refused(ConversionError, "4", "4 sparse"):
        wrap(OneClassSVM().fit(rows), rows)


CENTRES = np.random.default_rng(0).normal(np.repeat([16.0, 20.0, 24.0], 50)[:, None], 1.0, (150, 3))
SENTINELS = (-999.0, 999_999_999.0, -1e9, 1e9, -1e12, 1e12, -1e15, 1e15)
CLUSTERS = [
    KMeans(3, n_init=1, random_state=0),
    GaussianMixture(3, random_state=0),
    BayesianGaussianMixture(n_components=3, covariance_type="diag", random_state=0),
]
SELDOM_CLUSTERS = [
    BisectingKMeans(3, random_state=0),
    Birch(n_clusters=3),
    AffinityPropagation(random_state=0),
    GaussianMixture(3, covariance_type="tied", random_state=0),
    GaussianMixture(3, covariance_type="spherical", random_state=0),
]


@pytest.mark.parametrize("model", [*cases(CLUSTERS), *cases(SELDOM_CLUSTERS, is_long=True)])
def test_far_row_has_its_cluster(model, saved):
    pipeline = make_pipeline(StandardScaler(), model).fit(CENTRES)
    rows = np.concatenate([CENTRES[:30]] * len(SENTINELS))
    rows[:, 0] = np.repeat(SENTINELS, 30)

    loaded = saved(pipeline, CENTRES)

    assert loaded.artifact.parity_state == "proven"
    predictions = loaded.prediction(loaded.run(loaded.schema.from_array(rows)))
    assert np.asarray(predictions).tolist() == pipeline.predict(rows).tolist()


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        (KNeighborsRegressor(), "10,000"),
        (KMeans(3, n_init=1, random_state=0), "1,000,000,000"),
        (SVR(), "None"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_limit_of_proven_distances_is_reported(model, limit):
    pipeline = make_pipeline(StandardScaler(), model).fit(CENTRES, CENTRES[:, 0])

    figures = proven(pipeline, CENTRES).report.figures()

    assert figures["state"] == "proven"
    assert mentions(str(figures.get("limit")), limit)


def test_squares_need_64_bits(monkeypatch):
    """Check the generated rows with the graph that skl2onnx makes of KMeans."""
    model = KMeans(3, n_init=1, random_state=0).fit(CENTRES)
    monkeypatch.delitem(neighbours.FORMULAS, KMeans)

    report = wrap(model, CENTRES).report

    assert "in 64 bits" in report.repair
