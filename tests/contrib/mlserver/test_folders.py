import json
import os
from functools import partial

import numpy as np
import onnx
import pytest
import requests

from mlflow_deploy_plugin.cli.serve import _endpoints_of
from mlflow_deploy_plugin.contrib.mlserver.folders import MLSERVER
from mlflow_deploy_plugin.core.errors import InvalidArtifact, InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.mlmodel import read_mlmodel
from mlflow_deploy_plugin.core.statedir.files import WANTED, read_state
from mlflow_deploy_plugin.core.statedir.models import Wanted
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from tests.support import mlserver
from tests.support.models import adder
from tests.support.refusals import refused
from tests.support.waiting import wait_until

SKLEARN = "mlserver_sklearn.SKLearnModel"
XGBOOST = "mlserver_xgboost.XGBoostModel"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in ("IMPLEMENTATION", "NAME"):
        monkeypatch.delenv(f"MLSERVER_MODEL_{name}", raising=False)


def found(path):
    models = MLSERVER.find_models(path)
    assert models is not None
    return models


def read(path):
    model = MLSERVER.read_model(path)
    assert model is not None
    return model


def adopted(path, target):
    read(path).adopt(target)
    return read_mlmodel(target)


@pytest.mark.parametrize(
    ("save", "name", "loader", "implementation"),
    [
        (mlserver.save_joblib, "model.joblib", "original", SKLEARN),
        (mlserver.save_joblib, "any.pkl", "original", SKLEARN),
        (mlserver.save_joblib, "model.pickle", "original", SKLEARN),
        (mlserver.save_xgboost, "model.json", "mlflow.xgboost", XGBOOST),
        (mlserver.save_xgboost, "model.bst", "mlflow.xgboost", XGBOOST),
        (mlserver.save_booster, "model.ubj", "mlflow.xgboost", XGBOOST),
        (mlserver.save_lightgbm, "a.txt", "mlflow.lightgbm", "mlserver_lightgbm.LightGBMModel"),
        (mlserver.save_lightgbm, "model.bst", "mlflow.lightgbm", "mlserver_lightgbm.LightGBMModel"),
        (mlserver.save_catboost, "model.cbm", "mlflow.catboost", "mlserver_catboost.CatboostModel"),
    ],
)
@pytest.mark.long
def test_file_of_each_ending_is_adopted(save, name, loader, implementation, tmp_path):
    predicted = save(tmp_path / "model", name)
    document = adopted(tmp_path / "model", tmp_path / "adopted")
    assert document["flavors"]["python_function"]["loader_module"].endswith(loader)
    assert document["metadata"]["mlserver"] == {"implementation": implementation}
    (tensor,) = json.loads(document["signature"]["inputs"])
    assert tensor["tensor-spec"]["shape"] == [-1, 4]
    import mlflow.pyfunc

    answer = mlflow.pyfunc.load_model(str(tmp_path / "adopted")).predict(mlserver.QUESTION)
    answer = answer["predict"] if isinstance(answer, dict) else answer
    np.testing.assert_allclose(answer, predicted)


def test_onnx_file_is_adopted_without_a_process(tmp_path):
    onnx.save(adder(1.0), tmp_path / "model.onnx")
    document = adopted(tmp_path / "model.onnx", tmp_path / "adopted")
    assert document["metadata"]["mlserver"] == {"implementation": "onnx"}
    assert read_artifact(tmp_path / "adopted").onnx_file.name == "model.onnx"


def test_settings_name_versions_and_server(tmp_path):
    for folder, version in [("a", "10"), ("b", "9")]:
        parameters = {"version": version, "uri": "./m.joblib", "content_type": "np"}
        folder = mlserver.settings(
            tmp_path / folder, name="churn", implementation=SKLEARN, parameters=parameters
        )
        (folder / "m.joblib").write_bytes(b"")
    mlserver.settings(tmp_path / "deep" / "unnamed", implementation=SKLEARN)
    (tmp_path / "settings.json").write_text('{"parallel_workers": 2, "http_port": 8085}')
    models = found(tmp_path)
    assert models.models == {
        "churn": {"9": tmp_path / "b", "10": tmp_path / "a"},
        "unnamed": {"": tmp_path / "deep" / "unnamed"},
    }
    assert [*models.models["churn"]] == ["9", "10"]
    assert models.server == {"workers": 2, "port": 8085}
    assert read(tmp_path / "a").version == "10"


def test_names_of_models_are_no_uris_or_paths(tmp_path, monkeypatch):
    names = {"models:/a/1": "models-a-1", "s3://b/c": "s3-b-c", "..": "model", "d\r\nE: 1": "d-E-1"}
    for number, name in enumerate([*names, "plain"]):
        mlserver.settings(tmp_path / "models" / str(number), name=name, implementation=XGBOOST)
    # A registered version in the working folder has no part in it.
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "registered_model_meta").write_text("model_name: other")
    monkeypatch.chdir(tmp_path)
    assert {*found(tmp_path / "models").models} == {*names.values(), "plain"}


def test_unreadable_settings_are_named_by_their_place(tmp_path, monkeypatch):
    monkeypatch.setenv("MLSERVER_MODEL_NAME", "iris")
    for place in ("a/m", "b/m"):
        (mlserver.settings(tmp_path / place) / "model-settings.json").write_text("{")
    mlserver.settings(tmp_path / "good", implementation=XGBOOST)
    assert {*found(tmp_path).models} == {"a-m", "b-m", "iris"}


def test_versions_become_variants_of_their_names(tmp_path):
    for folder, version in [("a", "1"), ("b", "9" * 62), ("c", "2")]:
        parameters = {"version": version}
        mlserver.settings(
            tmp_path / folder, name="v1", implementation=XGBOOST, parameters=parameters
        )
    (spec,), _ = _endpoints_of(str(tmp_path), None)
    variants = {name: (each.model, each.weight) for name, each in spec.variants.items()}
    folders = {"v1": ("a", 0), "v2": ("c", 0), "v" + "9" * 62: ("b", 100)}
    assert variants == {
        name: (str(tmp_path / at), weight) for name, (at, weight) in folders.items()
    }


def test_variables_name_the_model_and_its_runtime(tmp_path, monkeypatch):
    (tmp_path / "model.bst").write_bytes(b"tree\n")
    monkeypatch.setenv("MLSERVER_MODEL_NAME", "iris")
    monkeypatch.setenv("MLSERVER_MODEL_IMPLEMENTATION", XGBOOST)
    assert [*found(tmp_path).models] == ["iris"]
    with refused(InvalidArtifact, "model.bst"):
        read(tmp_path).adopt(tmp_path / "adopted")


def test_mlflow_folder_without_settings_is_left_alone(tmp_path):
    (tmp_path / "MLmodel").write_text("flavors: {}")
    assert MLSERVER.find_models(tmp_path) is None
    assert MLSERVER.read_model(tmp_path) is None


def test_mlflow_folder_with_settings_keeps_them(tmp_path):
    folder = mlserver.settings(
        tmp_path / "m",
        implementation="mlserver_mlflow.MLflowRuntime",
        parameters={"uri": ".", "content_type": "pd"},
    )
    (folder / "MLmodel").write_text("flavors: {}\nmetadata: {task: x}")
    document = adopted(folder, tmp_path / "adopted")
    assert document["metadata"] == {
        "task": "x",
        "mlserver": {
            "implementation": "mlserver_mlflow.MLflowRuntime",
            "parameters": {"content_type": "pd"},
        },
    }


def test_same_size_mlflow_folder_has_another_identity(tmp_path):
    folder = mlserver.settings(tmp_path / "m", implementation="mlserver_mlflow.MLflowRuntime")
    identities = set()
    for content in ("flavors: {a: {}}", "flavors: {b: {}}"):
        (folder / "MLmodel").write_text(content)
        os.utime(folder / "MLmodel", ns=(1, 1))
        identities.add(read(folder).identify())
    assert len(identities) == 2
    model = read(folder)
    model.identify()
    (folder / "MLmodel").write_text("flavors: {c: {}}")
    with refused(OnnxserveError, "changed"):
        model.adopt(tmp_path / "adopted")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ("[" * 200_000, "not JSON"),
        ('{"platform": "\\ud800"}', "not JSON"),
        ('{"a": "' + "x" * 2**20 + '"}', "1,048,576 bytes"),
        ('{"implementation": 3}', "implementation"),
        ('{"implementation": "mymodels.MyModel"}', "--steps"),
        ('{"implementation": "mymodels.MyModel"}', "pyfunc"),
        ('{"parameters": {"version": "../3"}}', "parameters.version"),
        ('{"parameters": {"version": "1+2"}}', "parameters.version"),
        ('{"parameters": {"uri": "../other/model.joblib"}}', "parameters.uri"),
        ('{"parameters": {"uri": "/etc/passwd"}}', "parameters.uri"),
        ('{"parameters": {"uri": "s3://bucket/model"}}', "parameters.uri"),
        ('{"parameters": {"uri": "link.joblib"}}', "parameters.uri"),
        ('{"parameters": {"uri": "a\\u0000b"}}', "parameters.uri"),
        ('{"parameters": {"uri": "missing.joblib"}}', "parameters.uri"),
        ('{"implementation": "mlserver_mlflow.MLflowRuntime"}', "MLmodel"),
    ],
)
def test_hostile_settings_are_refused_in_one_line(text, named, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.joblib").write_bytes(b"")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.joblib").symlink_to(tmp_path / "other" / "model.joblib")
    (folder / "model-settings.json").write_text(text)
    with refused(InvalidArtifact, named) as caught:
        MLSERVER.read_model(folder)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_folders_with_several_models_or_none_are_refused(tmp_path):
    with refused(InvalidConfig, ".joblib"):
        MLSERVER.find_models(tmp_path)
    for name in ("a.joblib", "b.cbm"):
        (tmp_path / name).write_bytes(b"")
    with refused(InvalidConfig, "a.joblib", "b.cbm", "model-settings.json"):
        MLSERVER.find_models(tmp_path)
    for name in ("first", "second"):
        mlserver.settings(tmp_path / name, name="same", implementation=SKLEARN)
    with refused(InvalidConfig, "first", "second", "parameters.version"):
        MLSERVER.find_models(tmp_path)


def test_settings_that_are_a_pipe_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "model-settings.json")
    with refused(InvalidArtifact, "model-settings.json"):
        MLSERVER.read_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("model.joblib", b"cos\nsystem\n(S'false'\ntR.", "joblib"),
        ("model.joblib", b"cno_such_module\nModel\n.", "no_such_module"),
        ("model.json", b'{"learner": {}, "version": [99, 1, 0]}', "99.1"),
        ("model.ubj", b"\xff" * 100, "xgboost"),
        ("model.txt", b"tree\n" * 9, "lightgbm"),
        ("model.cbm", b"CBM1" + b"\xff" * 100, "catboost"),
    ],
)
@pytest.mark.long
def test_damaged_files_are_refused_in_one_line(name, content, named, tmp_path):
    (tmp_path / name).write_bytes(content)
    with refused(InvalidArtifact, name, named) as caught:
        read(tmp_path).adopt(tmp_path / "adopted")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def forms_of(served):
    """Return the form of each model that a server has."""
    wanted = read_state(served.state_dir / WANTED, Wanted) or Wanted()
    variants = (
        each for endpoint in wanted.endpoints.values() for each in endpoint.variants.values()
    )
    return {variant.model: variant.aspects["form"] for variant in variants}


def outputs_of(served, name):
    """Return the arrays of a V2 answer by their names and datatypes; None while the
    model is being loaded.
    """
    url = f"{served.url}/v2/models/{name}/versions/v7/infer"
    answer = requests.post(url, json=mlserver.v2_request(), timeout=30).json()
    return {(each["name"], each["datatype"]): each["data"] for each in answer.get("outputs", ())}


@pytest.mark.long
def test_layout_of_mlserver_serves_all_but_broken_models(serve, tmp_path):
    root = tmp_path / "models"
    expected = {}
    for name, save, implementation in [
        ("churn", mlserver.save_joblib, SKLEARN),
        ("price", mlserver.save_xgboost, XGBOOST),
        ("demand", mlserver.save_lightgbm, "mlserver_lightgbm.LightGBMModel"),
    ]:
        expected[name] = save(root / name)
        version = {"version": "v7"}
        mlserver.settings(root / name, implementation=implementation, parameters=version)
    mlserver.settings(root / "own", name="own", implementation="mymodels.MyModel")
    served = serve(str(root), "--allow-pickle").wait_ready(180)
    refusal = requests.post(f"{served.url}/v2/models/own/infer", json=mlserver.v2_request())
    assert refusal.status_code == 503
    assert "mymodels.MyModel" in refusal.text
    assert str(tmp_path) not in refusal.text
    before = {name: wait_until(partial(outputs_of, served, name)) for name in expected}
    converted = {"churn": "original", "price": "converted", "demand": "converted"}
    wait_until(lambda: forms_of(served) == converted, 300, "the files of boosters are converted")
    for name, predicted in expected.items():
        after = wait_until(partial(outputs_of, served, name))
        assert [*after] == [*before[name]]
        np.testing.assert_allclose(next(iter(after.values())), predicted, rtol=1e-5)


@pytest.mark.long
def test_joblib_file_needs_consent_at_the_start(serve, tmp_path):
    mlserver.save_joblib(tmp_path / "model")
    served = serve(str(tmp_path / "model"))
    assert served.process.wait(60) == 1
    assert "--allow-pickle" in served.log.read_text()
