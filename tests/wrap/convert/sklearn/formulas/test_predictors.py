"""Each predictor with a few operations is proven, or its error names the unsupported
option.
"""

from typing import Any

import numpy as np
import pytest
from sklearn.covariance import EllipticEnvelope
from sklearn.cross_decomposition import PLSCanonical, PLSRegression
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.gaussian_process import GaussianProcessClassifier, kernels
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows
from tests.wrap.conftest import is_proven

ROWS = normal_rows(120, 2)
VALUES = 2 * ROWS[:, 0] + ROWS[:, 1]
TWO = np.where(VALUES > 0, "yes", "no")
THREE = np.digitize(VALUES, [-1, 1])
SUM = kernels.ConstantKernel(2.0) * kernels.RBF([1.0, 2.0]) + kernels.WhiteKernel(0.1)

MODELS: dict[str, tuple[Any, Any]] = {
    "most frequent": (DummyClassifier(strategy="most_frequent"), TWO),
    "prior": (DummyClassifier(), THREE),
    "constant": (DummyClassifier(strategy="constant", constant="no"), TWO),
    "mean": (DummyRegressor(), VALUES),
    "quantiles": (
        DummyRegressor(strategy="quantile", quantile=0.9),
        np.column_stack([VALUES, -VALUES]),
    ),
    "ellipse": (EllipticEnvelope(random_state=0), None),
    "least squares": (PLSRegression(n_components=1), np.column_stack([VALUES, ROWS[:, 0]])),
    "canonical": (PLSCanonical(n_components=1), np.column_stack([VALUES, ROWS[:, 0]])),
    "process of two": (GaussianProcessClassifier(optimizer=None), TWO),
    "process of three": (GaussianProcessClassifier(SUM, optimizer=None), THREE),
    "process of products": (
        GaussianProcessClassifier(kernels.DotProduct() ** 2, optimizer=None),
        TWO,
    ),
    "smooth process": (GaussianProcessClassifier(kernels.Matern(nu=2.5), optimizer=None), TWO),
    "by gradient": (
        make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0)),
        THREE,
    ),
    "by gradient, robust": (SGDClassifier(loss="modified_huber", random_state=0), THREE),
    "rational process": (
        GaussianProcessClassifier(kernels.RationalQuadratic(), optimizer=None),
        TWO,
    ),
}


SELDOM = {
    "quantiles",
    "constant",
    "canonical",
    "process of products",
    "smooth process",
    "rational process",
}
CASES = [
    pytest.param(*case, id=name, marks=[pytest.mark.long] if name in SELDOM else [])
    for name, case in MODELS.items()
]


@pytest.mark.parametrize(("model", "target"), CASES)
def test_a_predictor_is_proven(model, target):
    assert is_proven(model.fit(ROWS, target), ROWS)


@pytest.mark.parametrize("out_of_bounds", ["clip", "nan"])
def test_steps_are_proven_inside_and_outside(out_of_bounds):
    model = IsotonicRegression(out_of_bounds=out_of_bounds).fit(ROWS[:, :1], VALUES)

    assert is_proven(model, ROWS[:, :1])


def test_a_baseline_of_a_table_with_texts_is_proven(weather):
    table, labels = weather

    assert is_proven(DummyClassifier().fit(table, labels), table)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (DummyClassifier(strategy="uniform"), "strategy='uniform': its predictions are random"),
        (
            GaussianProcessClassifier(kernels.Matern(nu=1.2), optimizer=None),
            r"the kernel Matern.*nu=1\.2",
        ),
        (
            GaussianProcessClassifier(multi_class="one_vs_one", optimizer=None),
            "multi_class='one_vs_one'",
        ),
    ],
)
def test_an_option_without_a_form_is_named(model, words):
    with pytest.raises(ConversionError, match=words):
        wrap(model.fit(ROWS, THREE), ROWS)
