"""Each predictor with a few operations is proven, or its error names the unsupported
option.
"""

import numpy as np
import pytest
from sklearn.covariance import EllipticEnvelope
from sklearn.cross_decomposition import PLSRegression
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.gaussian_process import GaussianProcessClassifier, kernels
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused
from tests.wrap.conftest import cases, is_proven

ROWS = normal_rows(120, 2)
VALUES = 2 * ROWS[:, 0] + ROWS[:, 1]
TWO = np.where(VALUES > 0, "yes", "no")
THREE = np.digitize(VALUES, [-1, 1])
SUM = kernels.ConstantKernel(2.0) * kernels.RBF([1.0, 2.0]) + kernels.WhiteKernel(0.1)

MODELS = [
    (DummyClassifier(strategy="most_frequent"), TWO),
    (DummyClassifier(), THREE),
    (DummyRegressor(), VALUES),
    (EllipticEnvelope(random_state=0), None),
    (PLSRegression(n_components=1), np.column_stack([VALUES, ROWS[:, 0]])),
    (GaussianProcessClassifier(SUM, optimizer=None), THREE),
    (
        make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0)),
        THREE,
    ),
]
SELDOM = [
    (GaussianProcessClassifier(optimizer=None), TWO),
    (SGDClassifier(loss="modified_huber", random_state=0), THREE),
    (DummyClassifier(strategy="constant", constant="no"), TWO),
    (
        DummyRegressor(strategy="quantile", quantile=0.9),
        np.column_stack([VALUES, -VALUES]),
    ),
]


@pytest.mark.parametrize(("model", "target"), [*cases(MODELS), *cases(SELDOM, is_long=True)])
def test_predictor_is_proven(model, target):
    assert is_proven(model.fit(ROWS, target), ROWS)


@pytest.mark.parametrize("out_of_bounds", ["clip", "nan"])
def test_isotonic_steps_are_proven(out_of_bounds):
    model = IsotonicRegression(out_of_bounds=out_of_bounds).fit(ROWS[:, :1], VALUES)

    assert is_proven(model, ROWS[:, :1])


def test_baseline_of_texts_is_proven(weather):
    table, labels = weather

    assert is_proven(DummyClassifier().fit(table, labels), table)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (DummyClassifier(strategy="uniform"), ("strategy='uniform'", "random")),
        (
            GaussianProcessClassifier(kernels.Matern(), optimizer=None),
            ("Matern", "nu=1.5"),
        ),
        (
            GaussianProcessClassifier(multi_class="one_vs_one", optimizer=None),
            ("multi_class='one_vs_one'",),
        ),
    ],
)
def test_unsupported_option_is_named(model, words):
    with refused(ConversionError, *words):
        wrap(model.fit(ROWS, THREE), ROWS)
