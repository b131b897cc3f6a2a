"""Tests of the guides: the blocks of a page are run in order."""

import json
import re

import pandas as pd
import pytest

from tests.support.deployments import empty_home
from tests.support.guides import page_reader, run_page
from tests.support.refusals import mentions


@pytest.fixture
def client(tmp_path):
    with empty_home(tmp_path) as opened:
        yield opened


def objects(text):
    """Return the lines of a page's output that are JSON objects."""
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"')]


@pytest.mark.long
def test_deployments_page_runs(client, tmp_path, new_database):
    trained, single, several, files, python = run_page(
        "deployments.md", tmp_path, new_database(tmp_path)
    )

    del trained
    assert {"predictions": [0, 0, 0]} in objects(single)
    assert "model_uri: models:/cancer/2" in single
    assert re.search(r"champion +95 +models:/cancer/1 +version 1 +running", several)
    assert json.loads(several[several.rindex("\n[\n") :])[0]["traffic"] == {"challenger": 100}
    assert (
        len(pd.read_csv(tmp_path / "predictions.csv"))
        == len(pd.read_parquet(tmp_path / "predictions.parquet"))
        == 569
    )
    assert files.splitlines()[:3] == ["0", "0", "0"]
    assert str({"champion": 95, "challenger": 5}) in python
    assert client.list_endpoints() == []


@pytest.mark.long
def test_registered_models_page_runs(client, tmp_path, new_database):
    _, _, as_it_is, converted, dry, compared, moved, back = run_page(
        "registered.md", tmp_path, new_database(tmp_path)
    )

    served = ("version: 1\n", "flavor: python_function\n", "alias: champion\n")
    assert {"predictions": [0, 0, 0]} in objects(as_it_is)
    assert all(line in as_it_is for line in served)
    assert converted.startswith(
        "cancer version 2: the ONNX form of models:/cancer/1 (Pipeline of sklearn"
    )
    assert re.fullmatch(r"proven on \d+ rows\n", dry)
    assert compared.startswith(
        "the same answers\n"
        "cancer version 2: passed without an evaluation, compared with models:/cancer/1\n"
    )
    assert mentions(moved, "cancer/cancer")
    onnx = ("version: 2\n", "flavor: onnxserve\n", "alias: champion\n", "parity: proven\n")
    assert all(line in moved for line in onnx)
    assert {"predictions": [0, 0, 0]} in objects(moved)
    assert mentions(back, "cancer", "1 instead of 2")
    assert all(line in back for line in served)
    assert client.list_endpoints() == []


@pytest.mark.long
def test_protocols_and_client_pages_run(client, tmp_path, new_database):
    reader = page_reader(tmp_path, new_database(tmp_path))
    _, _, mlflow, v2, triton, load, tensorflow, _, lines, guides = reader.run_page("protocols.md")
    output, together, refused = reader.run_page("client.md")
    client.delete_deployment("flights")

    label = json.loads(mlflow)["predictions"][0]
    assert json.loads(v2)["outputs"][0]["data"] == [label, False]
    assert re.fullmatch(rf"(\[ *{label} +False\]\n){{2}}", triton), triton
    assert load in ("", "{}"), load
    assert json.loads(tensorflow)["predictions"][0]["label"] is label
    assert lines.splitlines() == [json.dumps(label), "false"]
    assert json.loads(guides)["prediction"] is label
    assert output.split() == [f"[{label}", "False]", "three-columns", "1"]
    assert together == f"[array([{label}]), array([{label}, {label}])]\n"
    assert refused.startswith(
        "columns 'distance', 'hour' are missing; the model needs carrier, distance, hour 400 "
    )


@pytest.mark.long
def test_coming_from_page_runs(client, tmp_path, new_database):
    _, _, answers, clients, _ = run_page("coming-from.md", tmp_path, new_database(tmp_path))

    kserve, tensorflow, mlflow, azure = map(json.loads, answers.splitlines())
    assert [output["shape"] for output in kserve["outputs"]] == [[2], [2, 3]]
    assert tensorflow["predictions"][0]["label"] == 1
    assert mlflow == {"predictions": [1]}
    assert azure == [1]
    assert clients.splitlines() == ["[1]", '{"predictions":[1]}', "   0", "0  1"]
    assert client.list_endpoints() == []


@pytest.mark.long
def test_from_mlserver_page_runs(tmp_path, new_database, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    _, answered = run_page("from-mlserver.md", tmp_path, new_database(tmp_path))

    answer = json.loads(answered)
    names = {output["name"]: output["shape"] for output in answer["outputs"]}
    assert (answer["model_name"], answer["model_version"]) == ("iris", "v3")
    assert names == {"predict": [1, 1], "predict_proba": [1, 3]}
