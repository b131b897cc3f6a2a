"""Models without an ONNX form answer at our routes, each in a real side process."""

import contextlib
import json
import os
import signal
import sys
import threading
from dataclasses import replace
from itertools import chain
from pathlib import Path

import psutil
import pytest
import requests
from markupsafe import escape
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import InvalidArtifact
from mlflow_deploy_plugin.serve.agent.ship import Shipper
from mlflow_deploy_plugin.serve.cloud import Cloud
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.models import side_process
from mlflow_deploy_plugin.serve.models.pyfunc_model import PyfuncPredictor
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.serve.spool.frames import segments
from mlflow_deploy_plugin.serve.spool.spool_reader import read_batches
from tests.support import handling, servers
from tests.support.bodies import v2_tensor
from tests.support.handling import handle
from tests.support.models import write_pyfunc
from tests.support.pyfuncs import save_pyfuncs
from tests.support.refusals import mentions
from tests.support.shipping import rows
from tests.support.waiting import answers, wait_until

ARROW = "application/vnd.apache.arrow.stream"
DAYS = {"when": "2013-07-01T12:00:00", "name": "ä"}
V2_DAYS = {"inputs": [v2_tensor(name, "BYTES", [value]) for name, value in DAYS.items()]}


TRACED = """
import mlflow

class Agent:
    @mlflow.trace
    def predict(self, data, params=None):
        return data

    @mlflow.trace
    def predict_stream(self, data, params=None):
        yield data

def _load_pyfunc(path):
    return Agent()
"""


def write_agent(folder):
    """Write an agent without a signature that returns its input and makes traces."""
    write_pyfunc(folder, "traced_agent", TRACED, streamable=True)
    (folder / "serving_input_example.json").write_text('{"messages": ["an example"]}')
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Serve the models `days` and `agent`, whose traces cannot be sent."""
    root = tmp_path_factory.mktemp("pyfunc")
    folders = {**save_pyfuncs(root, ["days"]), "agent": write_agent(root)}
    endpoints = {name: {"main": servers.variant(folder)} for name, folder in folders.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setattr(side_process, "_END_SECONDS", 0.1)
        with servers.opened(root / "state", endpoints, keys=["customer_id"]) as server:
            yield server


@pytest.fixture
def ask(server):
    def ask(path, document, content_type="application/json"):
        return handling.ask(server, path, body=document, content_type=content_type)

    return ask


def message(response):
    document = json.loads(response.body)
    return str(document.get("message") or document.get("error"))


def trouble(what):
    return {"dataframe_records": [{"do": what}]}


def test_invocations_take_dates_and_params(ask):
    response = ask(
        "/endpoints/days/invocations", {"dataframe_records": [DAYS], "params": {"plus": 1000}}
    )
    assert response.status == 200
    assert json.loads(response.body) == {"predictions": [{"day": 1182, "name": "Ä"}]}
    assert response.headers["X-Model-Version"] == "1"


@pytest.mark.parametrize("content_type", ["application/vnd.apache.parquet", ARROW, "text/plain"])
def test_unknown_content_type_is_refused(ask, content_type):
    response = ask("/endpoints/days/invocations", b"PAR1", content_type)
    assert response.status == 415
    assert "parquet" not in message(response).partition("takes ")[2]
    assert {"application/json", "text/csv", "application/jsonl"} <= set(message(response).split())


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/predict", DAYS),
        ("/endpoints/days/predict/batch", [DAYS]),
        ("/score", {"input_data": [DAYS]}),
        ("/vertex", {"instances": [DAYS]}),
        ("/v1/models/days:predict", {"instances": [DAYS]}),
    ],
)
def test_other_protocols_refuse_a_pyfunc(server, path, document):
    vertex = replace(server, cloud=Cloud(predict_route="/vertex"))
    refused = handling.ask(vertex, path, body=document)
    assert refused.status == 400
    assert mentions(message(refused), "pyfunc", "/invocations", "V2")


def test_v2_parameters_are_params(ask):
    document = {
        **V2_DAYS,
        "outputs": [{"name": "day"}],
        "parameters": {"content_type": "pd", "plus": 1000},
    }
    answer = ask("/v2/models/days/infer", document)
    assert json.loads(answer.body)["outputs"][0]["data"] == [1182]
    refused = ask("/v2/models/days/infer", document | {"parameters": {"plus": "many"}})
    assert refused.status == 400
    assert "plus" in message(refused)


def test_unsigned_model_answers_only_invocations(ask, server):
    answer = ask("/endpoints/agent/invocations", {"inputs": [1, "a", None]})
    assert json.loads(answer.body) == {"predictions": [1, "a", None]}
    refused = ask("/v2/models/agent/infer", {"inputs": [v2_tensor("a", "FP64", [1])]})
    assert refused.status == 400
    assert mentions(message(refused), "signature", "/invocations")
    docs = handle(server, RawRequest("GET", "/endpoints/agent/docs", {}, b"")).body
    assert f"The inputs cannot be listed: {escape(message(refused))}.".encode() in docs


@pytest.mark.parametrize(
    ("document", "cause"),
    [
        ({"when": "yesterday", "name": "a"}, "'when' (datetime), row 0: 'yesterday'"),
        ({"name": "a"}, "column 'when' is missing"),
    ],
)
def test_invalid_column_is_answered_and_logged(server, ask, document, cause):
    inputs = [v2_tensor(name, "BYTES", [value]) for name, value in document.items()]
    response = ask("/v2/models/days/infer", {"inputs": inputs})
    assert response.status == 400
    assert cause in message(response)
    batches = chain.from_iterable(
        read_batches(path).batches for path in segments(server.capture.spool)
    )
    latest = max(
        (batch for batch in batches if batch.is_failed), key=lambda batch: batch.offsets[-1]
    )
    assert latest.endpoint == "days"
    assert latest.outputs["_column"][-1] == "when"


def tensor(name, *texts):
    return v2_tensor(name, "BYTES", texts)


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/endpoints/days/invocations", {"dataframe_records": [DAYS] * 3}),
        (
            "/v2/models/days/infer",
            {"inputs": [tensor("when", *["2013-07-01"] * 3), tensor("name", *"abc")]},
        ),
    ],
)
def test_answer_above_the_limit_is_refused(server, ask, path, document):
    predictor = server.repository.select_variant("days").loaded.predictor
    most = predictor._most_values
    process = predictor.pid
    assert most == 16_777_216
    predictor.limit_values(4)  # the values of two rows
    try:
        refused = ask(path, document)
    finally:
        predictor.limit_values(most)
    assert refused.status == 413
    assert mentions(message(refused), "more than 4 values")
    assert ask(path, document).status == 200
    assert predictor.pid == process


@pytest.mark.long
def test_hanging_model_exceeds_the_deadline(serve_here, pyfunc_folders):
    endpoints = servers.one_endpoint(pyfunc_folders["troubled"])
    server = serve_here(endpoints, {"request_timeout_seconds": 2})

    def status(what):
        return handling.ask(server, body=trouble(what)).status

    wait_until(lambda: status("ok") == 200, 60, "the model answers")
    assert status("hang") == 504
    wait_until(lambda: status("ok") == 200, 60, "the model answers again")


@pytest.mark.parametrize("model", ["days", "agent"])
def test_keys_are_logged(ask, server, tmp_path, model):
    record = {"customer_id": 7, **DAYS}
    response = ask(f"/endpoints/{model}/invocations", {"dataframe_records": [record]})
    assert b"customer_id" not in response.body
    server.capture.close()
    Shipper(server.capture.spool, str(tmp_path / "log")).ship()
    logged = {row["_prediction_id"]: row for row in rows(tmp_path)}
    assert logged[response.headers["X-Prediction-Id"]]["customer_id"] == 7


@pytest.mark.long
def test_missing_mlflow_names_the_packages(pyfunc_folders, tmp_path, monkeypatch):
    (tmp_path / "pandas.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'pandas'\", name='pandas')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InvalidArtifact, match=r"mlflow and pandas.*'pandas'.*pip install"):
        PyfuncPredictor.load(read_served_artifact(pyfunc_folders["knn"]), 10.0)


@pytest.mark.long
def test_endpoint_changes_to_a_pyfunc_and_back(pyfunc_folders, model_folders, serve_here, tmp_path):
    server = serve_here(servers.one_endpoint(model_folders["single"]))
    rows = {"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1.0, 0.0, 0.0]]}}

    def version():
        return handling.ask(server, body=rows).headers["X-Model-Version"]

    def get(path):
        return handle(server, RawRequest("GET", path, {}, b""))

    def side_process():
        return psutil.Process(server.repository.select_variant("e").loaded.predictor.pid)

    assert version() == "1"
    servers.want(tmp_path / "state-0", 2, servers.one_endpoint(pyfunc_folders["knn"], "2"))
    wait_until(lambda: version() == "2", 60, "the pyfunc answers")
    side_process().kill()
    wait_until(lambda: get("/ping").status == 503, what="the end to be noticed")
    for path in ("/ping", "/v2/models/e/ready", "/v2/models/e/versions/2/ready"):
        response = get(path)
        assert (response.status, "killed by SIGKILL" in message(response)) == (503, True)
    wait_until(
        lambda: get("/ping").status == get("/v2/models/e/ready").status == 200, 60, "the process"
    )
    side = side_process()
    assert is_alive(side)
    assert server.repository.has_pyfuncs
    servers.want(tmp_path / "state-0", 3, servers.one_endpoint(model_folders["single"], "3"))
    wait_until(lambda: version() == "3", 60, "the ONNX model answers")
    wait_until(lambda: not is_alive(side), what="the end of the side process")
    assert not server.repository.has_pyfuncs


def is_alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def spin(running):
    with contextlib.suppress(requests.ConnectionError):
        running.post(json=trouble("spin"))


@pytest.mark.long
def test_killed_worker_ends_its_side_process(pyfunc_folders, tmp_path):
    with servers.gunicorn(tmp_path, servers.one_endpoint(pyfunc_folders["troubled"])) as running:
        response = running.post(json=trouble("pid"))
        assert response.status_code == 200
        side = psutil.Process(int(response.json()["predictions"][0]))
        worker = side.parent()
        assert worker is not None
        mapped = Path(f"/proc/{worker.pid}/maps").read_text()
        assert "/pandas/" not in mapped
        assert "/sklearn/" not in mapped
        spinning = threading.Thread(target=spin, args=(running,))
        spinning.start()
        started = side.cpu_times().user
        wait_until(lambda: side.cpu_times().user > started + 0.3, 60, "the model computes")
        os.kill(worker.pid, signal.SIGKILL)
        spinning.join()
        wait_until(lambda: not is_alive(side), 60, "the end of both")
        wait_until(lambda: answers(running.url + "/ping"), 60, "the next worker")
        assert running.post(json=trouble("ok")).json() == {"predictions": [{"do": "ok"}]}
        left = psutil.Process(running.process.pid).children(recursive=True)
    wait_until(lambda: not any(map(is_alive, left)), what="the end of all")


@pytest.mark.long
@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 2),
    reason=(
        "Python 3.12.1 starts no thread at its end, as MLflow does to send traces "
        "(python/cpython#113964)"
    ),
)
def test_traces_name_their_answers(tmp_path, new_database, monkeypatch):
    tracking_uri = new_database(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "agents")
    monkeypatch.setattr(side_process, "_END_SECONDS", 60)  # The traces are sent at the end.
    predictions = []
    endpoints = servers.one_endpoint(write_agent(tmp_path))
    with servers.opened(tmp_path / "state", endpoints) as server:
        for body in (b'{"messages": ["whole"]}', b'{"messages": ["in parts"], "stream": true}'):
            answer = handling.ask(server, body=body)
            list(answer.pieces or ())
            predictions.append(answer.headers["X-Prediction-Id"])
    mlflow = MlflowClient(tracking_uri)
    experiment = mlflow.get_experiment_by_name("agents")
    assert experiment is not None
    traces = mlflow.search_traces(locations=[experiment.experiment_id])
    assert {trace.info.tags["onnxserve.prediction_id"] for trace in traces} == set(predictions)


def test_mlflow_outage_delays_no_answer(ask):
    answer = ask("/endpoints/agent/invocations", {"messages": ["whole"]})
    assert answer.status == 200
    assert json.loads(answer.body) == {"messages": ["whole"]}
