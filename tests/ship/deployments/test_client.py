"""Tests of the plugin's calls that change no deployment."""

import json
from pathlib import Path

import mlflow.onnx
import numpy as np
import pandas as pd
import psutil
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from tests.support.deployments import SIGNATURE, weighted_sum
from tests.support.refusals import refused
from tests.support.stores import own_store
from tests.support.waiting import wait_until

SPLIT = {"dataframe_split": {"columns": ["b", "a"], "data": [[2, 1], [4.5, 3]]}}
ROWS = [[1, 2], [3, 4.5]]
RECORDS = [{"a": 1, "b": 2}, {"b": 4.5, "a": 3}]
FRAME = pd.DataFrame({"b": [2, 4.5], "a": [1, 3]})


def test_unknown_target_lists_the_targets():
    names = ("onnxserve", "onnxserve:/docker", "onnxserve:/kubernetes/NAMESPACE")
    with refused(MlflowException, *names, code="INVALID_PARAMETER_VALUE"):
        get_deploy_client("onnxserve://host")


@pytest.mark.parametrize(
    "inputs",
    [
        FRAME,
        FRAME[["a", "b"]].to_numpy(),
        {"a": [1, 3], "b": [2, 4.5]},
        {"a": pd.Series([1, 3], index=["x", "y"]), "b": pd.Series([2, 4.5])},
        [[1, 2], [3, 4.5]],
        RECORDS,
        SPLIT,
        {"inputs": {"a": [1, 3], "b": [2, 4.5]}},
    ],
    ids=lambda inputs: f"{type(inputs).__name__} {str(inputs)[:24]}",
)
def test_every_input_form_is_predicted(served, inputs):
    response = served.predict("sum", inputs)

    assert response["predictions"] == [{"y": 3.0}, {"y": 7.5}]
    assert json.loads(response.to_json()) == dict(response)
    assert response.get_predictions()["y"].tolist() == [3.0, 7.5]


def test_single_dict_is_one_prediction(served):
    assert served.predict("sum", {"a": 1, "b": 2})["predictions"] == [{"y": 3.0}]


@pytest.mark.parametrize(
    "document",
    [RECORDS, {"a": {"0": 1, "1": 3}, "b": {"0": 2, "1": 4.5}}],
    ids=lambda document: str(document)[:40],
)
def test_frame_read_by_pandas_is_predicted(served, tmp_path, document):
    (tmp_path / "rows.json").write_text(json.dumps(document))

    frame = pd.read_json(tmp_path / "rows.json")

    assert served.predict("sum", frame)["predictions"] == [{"y": 3.0}, {"y": 7.5}]


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (FRAME[["a"]], ["'b'", "a, b"]),
        ({"a": ["x"], "b": [1]}, ["'x'"]),
        (FRAME[:0], ["no rows"]),
        ("a,b\n1,2", ["str", "DataFrame"]),
        (None, ["NoneType"]),
        ({"a": [object()], "b": [1]}, ["JSON"]),
    ],
    ids=["missing", "mistyped", "empty", "text", "none", "object"],
)
def test_unsuitable_input_is_refused(served, inputs, names):
    with refused(MlflowException, *names, code="BAD_REQUEST"):
        served.predict("sum", inputs)


def test_get_and_list_describe_deployments(served, models):
    got = served.get_deployment("sum")

    assert json.loads(json.dumps(got))["state"] == "running"
    assert got["model_uri"] == models.once
    assert got["model"] == "once"
    assert got["flavor"] == "onnx"
    assert got["parity"] == "no-original"
    assert list(got["workers"].values()) == [f"once {got['version']}"]
    assert got["reason"] == got["error"] == ""
    assert Path(got["log"]).is_file()
    (listed,) = served.list_deployments()
    assert listed.items() <= got.items()
    assert {"name", "endpoint", "state", "url"} < listed.keys()


@pytest.mark.parametrize(
    ("call", "names", "code"),
    [
        (lambda c: c.get_deployment("no"), ["no deployment 'no'"], "RESOURCE_DOES_NOT_EXIST"),
        (
            lambda c: c.update_deployment("no", "m"),
            ["no deployment 'no'"],
            "RESOURCE_DOES_NOT_EXIST",
        ),
        (lambda c: c.predict("no", [[1]]), ["no deployment 'no'"], "RESOURCE_DOES_NOT_EXIST"),
        (lambda c: c.predict(None, [[1]], "no"), ["no endpoint 'no'"], "RESOURCE_DOES_NOT_EXIST"),
        (lambda c: c.predict(None, [[1]]), ["a deployment"], "INVALID_PARAMETER_VALUE"),
        (lambda c: c.create_deployment("sum", "m"), ["'sum'"], "RESOURCE_ALREADY_EXISTS"),
        (
            lambda c: c.create_deployment("../x", "m"),
            ["letters, digits"],
            "INVALID_PARAMETER_VALUE",
        ),
        (
            lambda c: c.create_deployment("x", "m", "keras"),
            ["flavor 'keras'"],
            "INVALID_PARAMETER_VALUE",
        ),
        (lambda c: c.explain("sum", ROWS), ["no sample rows"], "BAD_REQUEST"),
        (
            lambda c: c.delete_deployment("sum", {"x": "1"}),
            ["config", "'x'"],
            "INVALID_PARAMETER_VALUE",
        ),
        (lambda c: c.delete_deployment("smu"), ["'smu'", "'sum'"], "RESOURCE_DOES_NOT_EXIST"),
        (
            lambda c: c.delete_deployment("sum", endpoint="elsewhere"),
            ["'sum'", "no endpoint 'elsewhere'"],
            "RESOURCE_DOES_NOT_EXIST",
        ),
        (
            lambda c: c.delete_endpoint("nope"),
            ["no endpoint 'nope'", "sum"],
            "RESOURCE_DOES_NOT_EXIST",
        ),
        (
            lambda c: c.list_deployments("no"),
            ["no endpoint 'no'", "sum"],
            "RESOURCE_DOES_NOT_EXIST",
        ),
    ],
)
def test_failed_call_raises_mlflow_exception(served, call, names, code):
    with refused(MlflowException, *names, code=code):
        call(served)
    assert served.get_deployment("sum")["state"] == "running"


def test_missing_flavor_is_refused(served, models):
    with refused(MlflowException, "'onnx'", "python_function", code="INVALID_PARAMETER_VALUE"):
        served.create_deployment("x", models.pyfunc, "onnx")

    with refused(MlflowException, "folder /nowhere", code="RESOURCE_DOES_NOT_EXIST"):
        served.update_deployment("sum", "/nowhere", "onnxserve")
    assert served.get_deployment("sum")["model_uri"] == models.once


def test_unknown_masked_column_is_refused(served):
    with pytest.raises(MlflowException, match=r"capture\.mask"):
        served.update_deployment("sum", config={"capture.mask": "no_such_column"})

    assert served.predict("sum", ROWS)["predictions"] == [{"y": 3.0}, {"y": 7.5}]
    with own_store() as store:
        assert "no_such_column" not in store.require_endpoint("sum").spec.capture.mask


@pytest.mark.long
def test_killed_gunicorn_is_restarted_and_counted(served):
    before = served.get_deployment("sum")
    worker = next(iter(before["workers"]))
    psutil.Process(psutil.Process(worker).ppid()).kill()
    restarts = before["restarts"] + 1
    wait_until(lambda: served.get_deployment("sum")["restarts"] == restarts, what="the restart")
    assert served.predict("sum", ROWS)["predictions"] == [{"y": 3.0}, {"y": 7.5}]
    wait_until(lambda: served.get_deployment("sum")["state"] == "running", what="its state")
    deployment = served.get_deployment("sum")
    assert deployment["pid"] == before["pid"]
    assert deployment["restarts"] == restarts
    assert worker not in deployment["workers"]


@pytest.mark.long
def test_explain(client, tmp_path):
    mlflow.onnx.save_model(
        weighted_sum(2.0),
        tmp_path / "model",
        signature=SIGNATURE,
        input_example=pd.DataFrame({"a": [0.0, 2.0], "b": [1.0, 3.0]}),
        pip_requirements=[],
    )
    client.create_deployment("d", str(tmp_path / "model"), "onnx")
    explained = client.explain("d", pd.DataFrame({"b": [5.0, 1.0], "a": [3.0, 1.0]}))
    assert json.loads(json.dumps(explained)) == explained
    assert explained["columns"] == ["a", "b"]
    assert np.allclose(explained["values"], [[4.0, 6.0], [0.0, -2.0]])
