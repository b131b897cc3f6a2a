"""A server on which each version has the libraries that it was logged with."""

import mlflow
import pytest
import requests
from mlflow import MlflowClient

from tests.support.models import write_pyfunc

TRAINED = """
import sklearn
from sklearn.linear_model import LogisticRegression

class Model:
    def __init__(self):
        self.model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])

    def predict(self, data, params=None):
        return [f"{sklearn.__version__} {label}" for label in self.model.predict(data.to_numpy())]

def _load_pyfunc(path):
    return Model()
"""
SPEC = """
name: old
variants: {main: {model: models:/old_sklearn/1}}
---
name: new
variants: {main: {model: models:/old_sklearn/2}}
"""
SIGNATURE = [{"name": "x", "type": "double"}]


@pytest.mark.long
def test_versions_with_two_sklearns_answer(serve, new_database, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    client = MlflowClient()
    client.create_registered_model("old_sklearn")
    for requirement in ("scikit-learn==1.5.2\nnumpy==1.26.4", "scikit-learn==1.8.0"):
        folder = write_pyfunc(tmp_path / requirement[-5:], "trained", TRAINED, SIGNATURE)
        (folder / "python_env.yaml").write_text("python: 3.11.0\n")
        (folder / "requirements.txt").write_text(f"mlflow=={mlflow.__version__}\n{requirement}\n")
        client.create_model_version("old_sklearn", str(folder))
    (tmp_path / "spec.yaml").write_text(SPEC)
    served = serve("--spec", "spec.yaml", "--env-manager", "uv").wait_ready(600)
    for endpoint, answers in (("old", ["1.5.2 1"]), ("new", ["1.8.0 1"])):
        address = f"{served.url}/endpoints/{endpoint}/invocations"
        response = requests.post(address, json={"inputs": {"x": [2.0]}}, timeout=30)
        assert response.json() == {"predictions": answers}
