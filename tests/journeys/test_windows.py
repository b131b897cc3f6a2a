"""Tests of the package on a Windows laptop, from which a person logs models. On Linux,
Windows is simulated (`tests/support/windows`).
"""

import os
import subprocess
import sys

import pytest

from tests.support.windows import WINDOWS

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

LOGS_AND_LOADS = """
import mlflow
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

import onnxserve

X, y = load_iris(return_X_y=True, as_frame=True)
X = X.rename(columns={"sepal length (cm)": "größe"})
model = LogisticRegression(max_iter=1000).fit(X, y)
onnxserve.log_model(model, name="model", input_example=X, registered_model_name="iris")
with mlflow.start_run():
    plain = {"registered_model_name": "plain", "pip_requirements": ["scikit-learn"]}
    mlflow.sklearn.log_model(model, name="plain", input_example=X, **plain)
assert onnxserve.load_model("models:/iris/1").artifact.parity_state == "proven"
predicted = mlflow.pyfunc.load_model("models:/iris/1").predict(X)
assert (predicted == model.predict(X)).all()
assert onnxserve.wrap_model("models:/plain/1").version
assert not onnxserve.Client("http://127.0.0.1:9").ready()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function that runs Python with these arguments on the laptop, and
    returns the output.
    """
    folder = tmp_path_factory.mktemp("laptop")
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{(folder / 'mlflow.db').as_posix()}",
        "ONNXSERVE_HOME": str(folder / "home"),
        # On Linux, files and the output are ASCII by default.
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
    }
    if sys.platform != "win32":
        environment["PYTHONPATH"] = f"{WINDOWS}:{os.getcwd()}"

    def run(arguments, status=0):
        done = subprocess.run(
            [sys.executable, *arguments.split()],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output = done.stdout.decode()
        assert done.returncode == status, output
        assert "Traceback" not in output
        return output

    (folder / "log.py").write_text(LOGS_AND_LOADS, encoding="utf-8")
    run("log.py")
    return run


def test_logged_model_is_promoted(run):
    assert "champion" in run("-m mlflow_deploy_plugin.cli promote models:/iris/1 --to @champion")


@pytest.mark.parametrize("command", ["serve", "size --rate 10 --p99 100ms"])
def test_serving_is_refused_in_one_line(run, command):
    error = run(f"-m mlflow_deploy_plugin.cli {command} models:/iris/1", status=1)
    assert error.count("\n") == 1
    assert error.startswith("Error: ")
