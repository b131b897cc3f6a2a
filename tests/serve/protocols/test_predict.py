"""The short protocol of the guides, through `handle_request`."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from mlflow_deploy_plugin.serve import assembly
from mlflow_deploy_plugin.serve.protocols import predict
from mlflow_deploy_plugin.serve.protocols.predict import encode_record
from mlflow_deploy_plugin.serve.protocols.protocol import InferResponse
from tests.support import servers
from tests.support.handling import ask
from tests.support.refusals import mentions
from tests.support.schemas import bare_artifact

RECORD = {"carrier": "AA", "distance": 0.0, "hour": 0, "late": False}
SIGMOID_1 = pytest.approx(0.7310586, abs=1e-6)


def post(server, path, body):
    response = ask(server, path, body=body)
    return response.status, json.loads(response.body)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, model_folders):
    endpoint = servers.one_endpoint(model_folders["mixed"], "3")
    with servers.opened(tmp_path_factory.mktemp("mixed") / "state", endpoint) as server:
        yield server


@pytest.mark.parametrize("path", ["/predict", "/endpoints/e/predict"])
@pytest.mark.parametrize("body", [RECORD, {"features": ["AA", 0.0, 0, False]}])
def test_record_is_answered_with_probabilities(mixed, body, path):
    status, document = post(mixed, path, body)
    probabilities = document.pop("probabilities")
    assert status == 200
    assert document == {"prediction": "yes", "model": "m", "model_version": "3"}
    assert list(probabilities) == ["no", "yes"]
    assert probabilities["yes"] == SIGMOID_1


@pytest.mark.parametrize("form", ["instances", "inputs", "dataframe_records"])
def test_many_records_are_referred_to_the_batch(mixed, form):
    status, document = post(mixed, "/predict", {form: [RECORD]})
    assert status == 400
    assert mentions(document["message"], form, "/predict/batch")


def test_model_of_probabilities_also_answers_the_label(serve_here, model_folders, tmp_path):
    folder = Path(shutil.copytree(model_folders["mixed"], tmp_path / "probabilities"))
    document = yaml.safe_load((folder / "MLmodel").read_text())
    document["flavors"]["onnxserve"]["prediction"] = ["probabilities"]
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    server = serve_here(servers.one_endpoint(folder, "3"))

    _, answer = post(server, "/predict", RECORD)

    assert answer["prediction"] == "yes"
    assert answer["probabilities"]["yes"] == SIGMOID_1


@pytest.mark.parametrize(
    "body",
    [
        [RECORD, RECORD],
        {"instances": [RECORD, RECORD]},
        [["AA", 0, 0, False]] * 2,
        {"instances": [["AA", 0, 0, False]] * 2},
    ],
)
def test_batch_is_answered_row_by_row(mixed, body):
    status, document = post(mixed, "/predict/batch", body)
    probabilities = document.pop("probabilities")
    assert status == 200
    assert document == {"predictions": ["yes"] * 2, "count": 2, "model": "m", "model_version": "3"}
    assert [row["yes"] for row in probabilities] == [SIGMOID_1, SIGMOID_1]


def test_too_many_probabilities_are_refused(mixed, monkeypatch):
    monkeypatch.setattr(predict, "_MOST_PROBABILITIES", 7)

    assert post(mixed, "/predict/batch", [RECORD] * 3)[0] == 200
    status, document = post(mixed, "/predict/batch", [RECORD] * 4)
    assert (status, document["error_code"]) == (413, "BAD_REQUEST")
    assert mentions(document["message"], "4 rows", "2 classes", "at most 3 rows")
    assert post(mixed, "/invocations", {"dataframe_records": [RECORD] * 4})[0] == 200


@pytest.mark.parametrize("max_batch_size", [1, 8])
def test_too_many_outputs_are_refused(serve_here, model_folders, monkeypatch, max_batch_size):
    monkeypatch.setattr(assembly, "_LEAST_VALUES", 1024)
    limits = {"max_body_bytes": 1024, "max_batch_size": max_batch_size}
    server = serve_here(servers.one_endpoint(model_folders["single"], "3"), limits)

    for path in ("/invocations", "/predict/batch"):
        assert post(server, path, {"instances": [[0, 0, 0]] * 1024})[0] == 200
        status, document = post(server, path, {"instances": [[0, 0, 0]] * 1025})
        assert (status, document["error_code"]) == (413, "BAD_REQUEST")
        assert mentions(document["message"], "1025 rows", "1024", "server.max_body_bytes")


def test_small_body_limit_does_not_limit_answers(serve_here, model_folders):
    server = serve_here(
        servers.one_endpoint(model_folders["single"], "3"), {"max_body_bytes": 1024}
    )

    assert post(server, "/invocations", {"instances": [[0, 0, 0]] * 1025})[0] == 200


@pytest.mark.parametrize(
    ("kind", "body", "prediction"),
    [
        ("single", {"a": 1, "b": 2, "c": 3}, [6.0]),
        ("stock", {"features": [1, 2, 3]}, [6.5]),
        ("stock", {"X": [1, 2, 3]}, [6.5]),
        ("tensor", {"features": [[1, 2], [3, 4]]}, {"doubled": [[2, 4], [6, 8]], "total": 10}),
    ],
)
def test_model_without_classes_has_no_probabilities(
    serve_here, model_folders, kind, body, prediction
):
    server = serve_here(servers.one_endpoint(model_folders[kind]))
    assert post(server, "/predict", body) == (
        200,
        {"prediction": prediction, "model": "m", "model_version": "1"},
    )


@pytest.mark.parametrize("dtype", [np.longlong, np.uint64, np.int32, np.float16, np.bool_])
def test_prediction_may_have_any_number_type(dtype):
    """ONNX Runtime's int64 outputs are numpy.longlong on Linux, whose scalars orjson
    does not accept.
    """
    predictor = SimpleNamespace(
        artifact=bare_artifact(prediction=("label",)), schema=SimpleNamespace(has_rows=True)
    )
    loaded = SimpleNamespace(predictor=predictor, model="m", version="1")
    variant: Any = SimpleNamespace(loaded=loaded)
    response = InferResponse("", "", {"label": np.array([1], dtype)})
    assert json.loads(encode_record(variant, response).body)["prediction"] == 1
