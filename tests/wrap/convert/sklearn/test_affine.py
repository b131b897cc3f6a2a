"""Estimators without a converter are converted by the weights that their answers
reveal.
"""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeRegressor

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.convert.sklearn import affine
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused
from tests.wrap.conftest import is_proven

TABLE = pd.DataFrame(normal_rows(150, 4) * [1, 10, 1e4, 0.1], columns=list("abcd"))
TARGET = (TABLE.a * 3 + TABLE.b - TABLE.d * 20).to_numpy()
TREE = DecisionTreeRegressor(max_depth=3)


class Hazard(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A risk score as in survival libraries: weights minus the risk of the mean row."""

    def fit(self, rows, target):
        # One weight is 0 on every CPU.
        self.coef_ = np.linalg.lstsq(np.asarray(rows), target, rcond=None)[0].round(9)
        self.mean_ = np.asarray(rows).mean(axis=0)
        return self

    def predict(self, rows):
        return (np.asarray(rows) - self.mean_) @ self.coef_


class FirstColumn(Hazard):
    """A rule that reads one column, so missing values
    in other columns do not matter.
    """

    def predict(self, rows):
        return np.asarray(rows)[:, 0] * 2.5


class Centred(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    def fit(self, rows, target=None):
        self.mean_ = np.asarray(rows).mean(axis=0)
        return self

    def transform(self, rows):
        return np.asarray(rows) - self.mean_


class Chosen(Centred):
    """A step that returns two columns by name and a third column computed from two
    columns.
    """

    def transform(self, rows):
        return rows[["c", "a"]].assign(both=rows.b - rows.d)


class Known(Centred):
    """A step with `n_features_in_`, so that it can follow other steps."""

    def fit(self, rows, target=None):
        self.n_features_in_ = rows.shape[1]
        super().fit(rows)
        return self


class Turned(Centred):
    def transform(self, rows):
        return super().transform(rows) @ np.array([[1.0, 2, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]])


class CentredByRequest(Centred):
    """A step whose answer for a row depends on the other rows."""

    def transform(self, rows):
        return np.asarray(rows) - np.asarray(rows).mean(axis=0)


class Capped(Centred):
    def transform(self, rows):
        return np.clip(super().transform(rows), -0.5, 0.5)


class Marked(Centred):
    """A step that treats -999 as missing. The example does not contain -999."""

    def transform(self, rows):
        return np.where(np.asarray(rows) == -999, 0, rows)


class FilledIn(Centred):
    def transform(self, rows):
        return np.nan_to_num(np.asarray(rows))


class Surcharged(Hazard):
    """A regression with a surcharge for a pair of codes that the example does not
    contain.
    """

    def predict(self, rows):
        rows = np.asarray(rows)
        return super().predict(rows) + 50.0 * ((rows[:, 0] == 3) & (rows[:, 3] == 1))


class RuleOfThumb(FirstColumn):
    """A predictor without weights, whose answers
    for other numbers cannot be predicted.
    """

    def fit(self, rows, target):
        self.is_fitted_ = True
        return self


class Timed(Centred):
    """A scaler of times in seconds since 1970, whose weights are small compared with
    its intercept.
    """

    def transform(self, rows):
        return (np.asarray(rows) - 1.6e9) / 1e6


class Ridge2(Ridge):  # type: ignore[misc]
    """A user's subclass of a scikit-learn regression."""


@pytest.mark.parametrize(
    "model",
    [
        Hazard(),
        FirstColumn(),
        Ridge2(),
        make_pipeline(StandardScaler(), Hazard()),
        pytest.param(make_pipeline(StandardScaler(), Known(), Ridge()), marks=pytest.mark.long),
        make_pipeline(Chosen(), TREE),
        make_pipeline(FunctionTransformer(lambda table: table.drop(columns="b")), TREE),
    ],
)
def test_affine_estimator_is_proven(model):
    assert is_proven(model.fit(TABLE, TARGET), TABLE)


def test_affine_step_of_classes_is_proven():
    model = make_pipeline(Turned(), LogisticRegression(max_iter=1000))
    assert is_proven(model.fit(TABLE, TARGET > 0), TABLE)


def test_affine_step_of_a_matrix_is_proven():
    rows = TABLE.to_numpy()
    assert is_proven(make_pipeline(Centred(), Ridge()).fit(rows, TARGET), rows)


def test_small_weight_keeps_its_digits():
    step: Any = affine.stand_in(Timed().fit(TABLE), list("abcd"))
    times = np.full((1, 4), 1.6e9 + 1e5)
    np.testing.assert_allclose(step.transform(times), 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        *(
            make_pipeline(step, LinearRegression())
            for step in (CentredByRequest(), Capped(), Marked(), FilledIn())
        ),
        Surcharged(),
        RuleOfThumb(),
    ],
    ids=lambda model: type(getattr(model, "steps", [("", model)])[0][1]).__name__,
)
def test_other_estimator_has_no_converter(model):
    with refused(ConversionError, "no converter"):
        wrap(model.fit(TABLE, TARGET), TABLE)


def test_text_step_has_no_converter():
    texts = pd.DataFrame({"city": ["rome", "oslo", "lima"] * 50})
    rename = FunctionTransformer(lambda table: table.replace("Roma", "rome"))
    encoder = OneHotEncoder(handle_unknown="ignore")
    model = make_pipeline(rename, encoder, LinearRegression()).fit(texts, TARGET)
    with refused(ConversionError, "'functiontransformer'", "string columns"):
        wrap(model, texts)
