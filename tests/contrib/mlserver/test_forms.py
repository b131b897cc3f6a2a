import json

import mlflow
import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
import requests
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from mlflow_deploy_plugin.core.mlmodel import MLMODEL
from mlflow_deploy_plugin.core.statedir.files import SERVED, WANTED, read_state
from mlflow_deploy_plugin.core.statedir.models import ServedModel, Wanted
from tests.support import mlserver
from tests.support.commands import told
from tests.support.waiting import wait_until

TABLE = pd.DataFrame(mlserver.ROWS, columns=["a", "b", "c", "d"])
COLUMNS = {
    "inputs": [
        {"name": name, "shape": [5], "datatype": "FP64", "data": TABLE[name][:5].tolist()}
        for name in TABLE
    ]
}


def classifier():
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(TABLE, mlserver.LABELS)


def save(folder, model=None, **options):
    options = {"serialization_format": "cloudpickle", **options}
    mlflow.sklearn.save_model(model or classifier(), folder, **options)


def answers(url, name):
    """Return the answers of V2 and of MLflow; None while there is no version."""
    v2 = requests.post(f"{url}/v2/models/{name}/infer", json=COLUMNS, timeout=60)
    records = {"dataframe_records": TABLE[:5].to_dict("records")}
    invoked = requests.post(f"{url}/models/{name}/invocations", json=records, timeout=60)
    if v2.status_code != 200:
        return None
    return v2.json()["outputs"], invoked.status_code, invoked.json()


def aspects_of(served, name):
    wanted = read_state(served.state_dir / WANTED, Wanted) or Wanted()
    return wanted.endpoints[name].variants["only"].aspects


@pytest.fixture
def spec(tmp_path):
    """The spec of four MLflow folders, one for each way to be served."""
    signature = mlflow.models.infer_signature(TABLE, mlserver.LABELS)
    save(tmp_path / "example", input_example=TABLE[:20])
    save(tmp_path / "bare", signature=signature)
    save(tmp_path / "always", signature=signature)
    model = make_pipeline(FunctionTransformer(np.sort), LogisticRegression())
    save(tmp_path / "unproven", model.fit(TABLE, mlserver.LABELS), input_example=TABLE[:9])
    documents = []
    for name in ("example", "bare", "always", "unproven"):
        convert = "always" if name == "always" else "example"
        variant = {"model": str(tmp_path / name), "convert": convert}
        documents.append({"name": name, "variants": {"only": variant}})
    (tmp_path / "spec.yaml").write_text("\n---\n".join(map(json.dumps, documents)))
    return tmp_path / "spec.yaml"


@pytest.mark.long
def test_mlflow_folders_answer_alike_before_and_after(serve, spec):
    served = serve("--spec", str(spec)).wait_ready(180)
    before = {name: answers(served.url, name) for name in ("example", "bare", "always")}
    assert all(before.values())
    forms = {"bare": "original", "always": "converted", "unproven": "original"}
    forms["example"] = "converted"
    wait_until(lambda: {name: aspects_of(served, name)["form"] for name in forms} == forms, 400)
    reasons = {name: aspects_of(served, name)["form_reason"] for name in forms}
    assert reasons["example"] == "proven on 20 example rows"
    assert reasons["always"] == "proven on 500 made rows"
    assert "variants.NAME.convert=always" in reasons["bare"]
    assert "FunctionTransformer" in reasons["unproven"]
    metadata = f"{served.url}/v2/models/example"
    wait_until(lambda: requests.get(metadata).json()["platform"] == "onnxruntime_onnx")
    for name in before:
        assert answers(served.url, name) == before[name]
    (output,) = before["example"][0]
    assert (output["name"], output["datatype"]) == ("prediction", "INT64")
    asked = {**COLUMNS, "outputs": [{"name": "probabilities"}]}
    (probabilities,) = requests.post(f"{metadata}/infer", json=asked).json()["outputs"]
    assert probabilities["shape"] == [5, 2]


@pytest.mark.long
def test_result_is_kept_for_the_next_start(serve, tmp_path):
    save(tmp_path / "model", input_example=TABLE[:20])
    served = serve(str(tmp_path / "model")).wait_ready(120)

    def form():
        wanted = read_state(served.state_dir / WANTED, Wanted) or Wanted()
        (endpoint,) = wanted.endpoints.values()
        return [variant.aspects["form"] for variant in endpoint.variants.values()]

    wait_until(lambda: form() == ["converted"], 120, "converted")
    served.end()
    (served.state_dir / "followed.json").unlink()
    again = serve(str(tmp_path / "model")).wait_ready(120)
    assert form() == ["converted"]
    assert "is converted to ONNX" not in again.log.read_text()


@pytest.mark.long
def test_registry_of_plain_models_answers_and_is_converted(mlflow_server, serve, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    mlflow.set_tracking_uri(mlflow_server.url)
    client = mlflow.MlflowClient()
    for name, example in [("plain", TABLE[:20]), ("bare", None)]:
        with mlflow.start_run():
            mlflow.sklearn.log_model(
                classifier(),
                name="model",
                input_example=example,
                registered_model_name=name,
                serialization_format="cloudpickle",
            )
        client.set_registered_model_alias(name, "champion", "1")
    listed = told("wrap --registry @champion --dry-run")
    assert [(entry["name"], entry["form"], entry["consent"]) for entry in listed] == [
        ("bare", "original", "--allow-pickle"),
        ("plain", "converts", "--allow-pickle"),
    ]
    served = serve("--registry", "@champion").wait_ready(120)
    refusal = requests.post(f"{served.url}/v2/models/plain/infer", json=COLUMNS, timeout=90)
    assert refusal.status_code == 503
    assert "--allow-pickle" in refusal.text
    served.end()
    served = serve("--registry", "@champion", "--allow-pickle", state="other").wait_ready(120)
    url = f"{served.url}/v2/models/plain"
    wait_until(lambda: answers(served.url, "plain"), 120, "the original answers")
    before = answers(served.url, "plain")[0]
    wait_until(
        lambda: requests.get(url, timeout=30).json().get("platform") == "onnxruntime_onnx",
        180,
        "the worker serves the ONNX form",
    )
    assert answers(served.url, "plain")[0] == before
    (file,) = (served.state_dir / SERVED).glob("*.json")
    saved = read_state(file, ServedModel)
    assert saved is not None
    (variant,) = saved.endpoint.variants.values()
    assert variant.aspects["form"] == "converted"
    assert (variant.folder / MLMODEL).is_file()
