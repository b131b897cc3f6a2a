import lightgbm
import numpy as np
import pytest
import torch
import xgboost
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    VotingClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier

from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.random_rows import normal_rows
from tests.wrap.conftest import cases, operators_of

ROWS = normal_rows(300, 3)
IS_ABOVE = (ROWS[:, 0] > 0).astype(int)
GRADIENT = GradientBoostingClassifier(learning_rate=1.0)
LINEAR = LogisticRegression(C=1e4)
NET = MLPClassifier(4, activation="logistic", solver="lbfgs", alpha=0, random_state=0)
CERTAIN = {
    "linear": LINEAR,
    "lightgbm": lightgbm.LGBMClassifier(n_estimators=60, learning_rate=1.0, n_jobs=1, verbose=-1),
    "gradient boosting in a vote": VotingClassifier([("g", GRADIENT)], voting="soft"),
    "gradient boosting against the rest": OneVsRestClassifier(GRADIENT),
}
SELDOM = {
    "xgboost": xgboost.XGBClassifier(
        n_estimators=300, learning_rate=1.0, n_jobs=1, reg_lambda=0, min_child_weight=0
    ),
    "histograms": HistGradientBoostingClassifier(learning_rate=1.0),
    "network": NET,
}


@pytest.mark.parametrize("model", [*cases(CERTAIN), *cases(SELDOM, is_long=True)])
def test_small_probabilities_keep_their_digits(model, saved):
    original = model.fit(ROWS, IS_ABOVE)
    want = original.predict_proba(ROWS)

    model = saved(original, ROWS)
    got = model.run(model.schema.from_array(ROWS))["probabilities"]

    assert want[:, 1].min() < 1e-5
    np.testing.assert_allclose(got[:, 1], want[:, 1], rtol=1e-3, atol=1e-37)
    # The library subtracts the second probability from 1.
    np.testing.assert_allclose(got[:, 0], want[:, 0], rtol=1e-3, atol=4 * np.finfo(want.dtype).eps)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("has_product", [False, True])
def test_small_probabilities_of_networks_keep_their_digits(dtype, has_product, saved):
    scores = np.array([[-80.0], [-18.0], [2.0], [120.0]], dtype)
    product = torch.nn.Linear(1, 1).to(torch.from_numpy(scores).dtype)
    torch.nn.init.ones_(product.weight)
    torch.nn.init.zeros_(product.bias)
    layers = [product, torch.nn.Sigmoid()] if has_product else [torch.nn.Sigmoid()]

    model = saved(torch.nn.Sequential(*layers), scores)
    got = model.run(model.schema.from_array(scores))["output"]

    np.testing.assert_allclose(got, 1 / (1 + np.exp(-scores)), rtol=1e-5)


@pytest.mark.long
def test_logistic_between_layers_is_one_node():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Sigmoid(), torch.nn.Linear(2, 1))

    assert "Exp" not in operators_of(wrap(net, ROWS.astype(np.float32)))
