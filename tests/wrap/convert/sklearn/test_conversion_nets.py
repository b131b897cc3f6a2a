from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from tests.support.random_rows import normal_rows
from tests.wrap.conftest import is_proven, proven

pytestmark = pytest.mark.filterwarnings("ignore")  # The exporter warns about future changes.
ROWS = normal_rows(60, 4).astype(np.float32)


def classifier(skorch):
    net = torch.nn.Sequential(torch.nn.Linear(4, 3))
    model = skorch.NeuralNetClassifier(
        net, criterion=torch.nn.CrossEntropyLoss, verbose=0, max_epochs=2
    )
    return make_pipeline(StandardScaler(), model), np.digitize(ROWS[:, 0], [-0.5, 0.5])


def binary_classifier(skorch):
    net = torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Flatten(0))
    model = skorch.NeuralNetBinaryClassifier(net, verbose=0, max_epochs=2, threshold=0.4)
    return model, (ROWS[:, 0] > 0).astype(np.float32)


def regressor(skorch):
    return skorch.NeuralNetRegressor(torch.nn.Linear(4, 1), verbose=0, max_epochs=2), ROWS[:, :1]


@pytest.mark.parametrize("make", [classifier, binary_classifier, regressor])
def test_net_of_skorch_is_proven(make):
    torch.manual_seed(0)
    model, target = make(pytest.importorskip("skorch"))
    model.fit(ROWS, target)

    wrapped = proven(model, ROWS)

    answers = ["prediction"] if make is regressor else ["label", "probabilities"]
    assert [output.name for output in wrapped.converted.outputs] == answers


def test_tabnet_is_proven():
    tabnet = pytest.importorskip("pytorch_tabnet.tab_model")
    model = tabnet.TabNetRegressor(n_d=4, n_a=4, n_steps=1, verbose=0, device_name="cpu")
    model.fit(ROWS, ROWS[:, :1], max_epochs=1)

    assert is_proven(model, ROWS)
