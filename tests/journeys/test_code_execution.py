"""An ONNX version needs no model code: commands and servers work with
MLFLOW_ALLOW_MODEL_CODE_EXECUTION=false, and a version without an ONNX form is refused.

The ONNX versions name a loader of pyfuncs that does not exist, so each attempt to load
them as pyfunc fails, also with a version of MLflow that does not read the variable.
"""

import logging

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from mlflow import MlflowClient

import mlflow_deploy_plugin
from mlflow_deploy_plugin.core.errors import InvalidArtifact
from mlflow_deploy_plugin.core.model_code import MODEL_CODE
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.statedir.files import AGENT
from mlflow_deploy_plugin.serve.agent.resolver import PyfuncPolicy
from tests.support.cases import long_case
from tests.support.commands import onnxserve
from tests.support.pyfuncs import save_pyfuncs
from tests.support.refusals import refused
from tests.support.tracking import tracking_at
from tests.support.waiting import wait_until

LOADER = "loader_module: mlflow_deploy_plugin"
REFUSAL = f"a version without an ONNX form runs its own code, and {MODEL_CODE} does not allow this"
ROWS = "a,b,when,name\n0.5,1.0,2013-07-01,x\n-2.0,0.25,2013-07-02,y\n"


@pytest.fixture(scope="module")
def registry(tmp_path_factory, new_database):
    """A registered model `toy` with two ONNX versions, and a pyfunc as version 3. Model
    code is switched off.
    """
    import joblib
    from sklearn.linear_model import LogisticRegression

    folder = tmp_path_factory.mktemp("registry")
    (folder / "rows.csv").write_text(ROWS)
    (pyfunc,) = save_pyfuncs(folder, only=["days"]).values()
    joblib.dump(LogisticRegression(), folder / "model.joblib")
    mlflow.sklearn.save_model(
        LogisticRegression(),
        folder / "sklearn",
        serialization_format="cloudpickle",
        pip_requirements=[],
    )
    with pytest.MonkeyPatch.context() as patch, tracking_at(new_database(folder)):
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        patch.chdir(folder)  # MLflow writes artifacts here.
        patch.setenv(MODEL_CODE, "false")
        # In this process, MLflow finds no function that loads a pyfunc of onnxserve.
        patch.delitem(mlflow_deploy_plugin._HOMES, "_load_pyfunc")
        for seed in (0, 1):
            log_version(seed)
        for file in folder.glob("mlruns/**/MLmodel"):
            text = file.read_text()
            file.write_text(text.replace(LOADER, "loader_module: no_module"))
            assert file.read_text() != text
        client = MlflowClient()
        client.create_model_version("toy", pyfunc.as_uri())
        yield client


def log_version(seed):
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(seed)
    rows = pd.DataFrame(random.normal(size=(120, 2)), columns=["a", "b"])
    model = LogisticRegression().fit(rows, rows.a > rows.b)
    with mlflow.start_run(experiment_id="0"):
        mlflow_deploy_plugin.log_model(
            model, name="model", input_example=rows, registered_model_name="toy"
        )


def post(served, path, row):
    body = {"dataframe_records": [row]}
    answer = requests.post(f"{served.url}/{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def test_logging_needs_no_code_execution(registry, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mlflow"), "propagate", True)
    log_version(2)
    assert [record for record in caplog.records if record.name.startswith("mlflow.")] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("gate", "models:/toy/2"),
        ("promote", "models:/toy/2", "--to", "@champion"),
        ("diff", "models:/toy/1", "models:/toy/2"),
        ("audit", "card", "models:/toy/1", "--folder", "card.html"),
        long_case(
            ("batch", "models:/toy/1", "-i", "rows.csv", "--folder", "out", "--workers", "1")
        ),
        long_case(("explain", "models:/toy/1", "--data", "rows.csv")),
        ("export", "models:/toy/1", "-o", "exported"),
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_command_needs_no_code_execution(registry, arguments):
    result = onnxserve(*arguments)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("refusal", "arguments"),
    [
        (REFUSAL, ("gate", "models:/toy/3")),
        (REFUSAL, ("predict", "models:/toy/3", "-i", "rows.csv")),
        long_case(REFUSAL, ("batch", "models:/toy/3", "-i", "rows.csv", "--folder", "none")),
        ("model.joblib runs its own", ("wrap", "model.joblib", "--allow-pickle", "--dry-run")),
        ("sklearn", ("wrap", "sklearn", "--dry-run")),
    ],
)
def test_command_refuses_code_execution(registry, refusal, arguments):
    result = onnxserve(*arguments)
    assert result.exit_code == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("Error: ")
    assert refusal in error
    assert MODEL_CODE in error


def test_server_refuses_an_allowed_pyfunc(registry):
    spec = new_endpoint("toy", "models:/toy/3")
    with refused(InvalidArtifact, MODEL_CODE):
        PyfuncPolicy([spec]).check("models:/toy/3", is_followed=False)


@pytest.mark.long
def test_alias_move_to_pyfunc_is_refused(registry, serve):
    registry.set_registered_model_alias("toy", "live", "1")
    allowed = "variants.toy.allow_pyfunc=true"
    served = serve("models:/toy@live", "-C", allowed).wait_ready()
    row = {"a": 1.0, "b": 2.0}
    answer = post(served, "invocations", row)
    post(served, "explain", row)
    identity = answer.headers["X-Prediction-Id"]
    wait_until(lambda: onnxserve("replay", identity).exit_code == 0, 60, "the request is replayed")

    registry.set_registered_model_alias("toy", "live", "3")
    agent = served.state_dir / AGENT
    wait_until(lambda: REFUSAL in agent.read_text(), 60, "version 3 is refused")
    assert post(served, "invocations", row).headers["X-Model-Version"] == "1"


@pytest.mark.long
def test_only_pyfunc_process_executes_code(registry, serve, monkeypatch):
    monkeypatch.delenv(MODEL_CODE)
    served = serve("models:/toy/3").wait_ready()
    (inherited,) = {
        member.environ()[MODEL_CODE]
        for member in served.members()
        if "mlflow_deploy_plugin.serve.pyfunc" in member.cmdline()
    }
    assert inherited == "false"
    post(served, "invocations", {"when": "2013-07-01T12:00:00", "name": "x"})


@pytest.mark.long
def test_server_of_a_pyfunc_does_not_start(registry, serve):
    served = serve("models:/toy/3")
    assert served.process.wait(120) == 1
    assert REFUSAL in served.log.read_text()
