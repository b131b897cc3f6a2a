"""Models for export tests: columns with strings, a tensor, and a forest with an input
example.
"""

import numpy as np
import pandas as pd
import pytest

from mlflow_deploy_plugin.wrap.flavor.save import save_model
from tests.support.models import mixed_model, tensor_model
from tests.support.random_rows import normal_rows


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
    return mixed_model(tmp_path_factory.mktemp("mixed") / "flight-delay")


@pytest.fixture(scope="session")
def tensor(tmp_path_factory):
    return tensor_model(tmp_path_factory.mktemp("tensor") / "images")


@pytest.fixture(scope="session")
def forest_rows():
    random = np.random.default_rng(0)
    carriers = random.choice(["UA", "AA", "DL"], 200)
    return pd.DataFrame({"carrier": carriers, "distance": random.normal(1000, 300, 200)})


@pytest.fixture(scope="session")
def forest(tmp_path_factory, forest_rows):
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    encoder = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["carrier"]), remainder="passthrough"
    )
    model = make_pipeline(encoder, RandomForestClassifier(10, max_depth=4, random_state=0))
    late = np.where(forest_rows["distance"] > 1000, "late", "on time")
    folder = tmp_path_factory.mktemp("forest") / "forest"
    save_model(model.fit(forest_rows, late), folder, input_example=forest_rows.head())
    return folder


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    """Return a model of an unnamed array, with an input example."""
    from sklearn.neural_network import MLPClassifier

    rows = normal_rows(100, 6).astype(np.float32)
    model = MLPClassifier([8], max_iter=20, random_state=0).fit(rows, rows[:, 0] > 0)
    folder = tmp_path_factory.mktemp("network") / "network"
    save_model(model, folder, input_example=rows[:5])
    return folder
