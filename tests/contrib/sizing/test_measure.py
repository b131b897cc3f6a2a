"""Tests of the search, of the requests, and of a real pod. See test_plan for the
figures made from a measurement.
"""

import json
import signal
import subprocess
import sys

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_deploy_plugin.contrib.sizing import measure
from mlflow_deploy_plugin.contrib.sizing.measure import highest_rate, measure_pod, request_bodies
from mlflow_deploy_plugin.core.errors import DeploymentFailed, InvalidConfig
from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.serve.runtime.session import available_cores
from tests.support.models import columns, write_model
from tests.support.pyfuncs import save_pyfuncs
from tests.support.refusals import mentions, refused
from tests.support.servers import single_model, stock_model
from tests.support.waiting import is_gone, wait_until

FAILS = "fails (float[N,1] x) => (float[N,1] y) <int64[1] far = {9}> { y = Gather(x, far) }"


def pod_of(folder, p99=0.2, say=print, workers=1):
    """Measure the pod for 10 requests/s."""
    spec = apply_config(new_endpoint("e", str(folder)), {"server.workers": workers})
    return measure_pod(spec, folder, request_bodies(folder, 1), 10.0, p99, say)


@given(st.floats(0.01, 1e6), st.floats(0.1, 100))
def test_highest_rate_is_found_within_five_percent(limit, first):
    rates = []

    def holds(rate):
        rates.append(rate)
        return rate <= limit

    highest = highest_rate(holds, first)
    assert highest == 0 if first > limit else highest <= limit < highest * 1.05
    assert len(rates) < 30


def test_example_rows_are_sent_in_turn(tmp_path):
    folder = single_model(tmp_path / "model")
    table = {"columns": ["a", "b", "c"], "data": [[1, 2, 3], [4, 5, 6]]}
    (folder / INPUT_EXAMPLE).write_text(json.dumps({"dataframe_split": table}))
    inputs = [json.loads(body)["inputs"] for body in request_bodies(folder, rows=1)]
    assert inputs == [{"a": [1], "b": [2], "c": [3]}, {"a": [4], "b": [5], "c": [6]}]
    first, second = (json.loads(body)["inputs"]["a"] for body in request_bodies(folder, rows=3))
    assert first == [1, 4, 1]
    assert second == [4, 1, 4]


def test_rows_are_random_without_example(tmp_path):
    bodies = request_bodies(single_model(tmp_path / "columns"), rows=5)
    assert len(set(bodies)) == 64
    assert {name: len(values) for name, values in json.loads(bodies[0])["inputs"].items()} == {
        "a": 5,
        "b": 5,
        "c": 5,
    }
    assert json.loads(request_bodies(stock_model(tmp_path / "stock"), rows=1)[0])[
        "inputs"
    ].keys() == {"X"}


@pytest.mark.long  # MLflow saves the models
def test_pyfunc_rows_follow_its_signature_or_example(tmp_path):
    folders = save_pyfuncs(tmp_path, only=["troubled", "anything"])
    (first, *_) = request_bodies(folders["troubled"], rows=2)
    assert json.loads(first) == {"inputs": {"do": ["a", "a"]}}
    with refused(InvalidConfig, "input_example"):
        request_bodies(folders["anything"], rows=1)
    (folders["anything"] / INPUT_EXAMPLE).write_text('{"instances": [1]}')
    assert request_bodies(folders["anything"], rows=1) == [b'{"instances": [1]}']


def test_unsuitable_example_is_refused(tmp_path):
    folder = single_model(tmp_path / "model")
    (folder / INPUT_EXAMPLE).write_text('{"inputs": {"a": [1]}}')
    with refused(InvalidConfig, "b", "c", "input_example"):
        request_bodies(folder, rows=1)


def test_pod_leaves_a_core_to_the_client(tmp_path):
    cores = available_cores()
    with refused(InvalidConfig, f"server.workers={cores}", str(cores + 1), str(cores)):
        pod_of(single_model(tmp_path / "model"), workers=cores)


@pytest.mark.long
def test_model_failing_on_its_example_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 0.5)
    with refused(InvalidConfig, "400", "input_example"):
        pod_of(write_model(tmp_path / "model", FAILS, columns(x="double")))


@pytest.mark.long
def test_failed_start_is_reported_with_its_reason(tmp_path):
    folder = single_model(tmp_path / "model")
    bodies = request_bodies(folder, 1)
    (folder / "model.onnx").write_bytes(b"damaged")
    with refused(DeploymentFailed, "model.onnx"):
        measure_pod(new_endpoint("e", str(folder)), folder, bodies, 10.0, 0.2, print)


@pytest.mark.long
def test_pod_is_measured(tmp_path, monkeypatch, new_home):
    monkeypatch.setattr(measure, "SECONDS", 1.0)
    monkeypatch.setattr(measure, "STEADY_SECONDS", 2.0)
    lines = []
    monkeypatch.setattr(measure, "_BATCH_SIZES", (1, 8))
    pod = pod_of(single_model(tmp_path / "model"), p99=0.05, say=lines.append)
    assert pod.workers == 1
    assert pod.threads == 1
    assert pod.max_batch_size in (1, 8)
    assert pod.highest.rate > 100
    assert pod.planned.rate == 10.0  # One pod suffices.
    assert 0 < pod.planned.p99 < 1
    assert 0 < pod.planned.cpus < pod.highest.cpus <= 1.1
    assert 100e6 < pod.memory_bytes < 1e9
    assert all(mentions(line, "p99") for line in lines)
    assert not (tmp_path / "home").exists()  # The captured rows are not in the user's log.


@pytest.mark.long
def test_unreachable_latency_is_refused(tmp_path):
    with refused(InvalidConfig, "--p99", "0.001ms", "onnxserve optimize"):
        pod_of(single_model(tmp_path / "model"), p99=1e-6)


@pytest.mark.long
def test_server_ends_with_a_killed_measurement(tmp_path):
    folder = single_model(tmp_path / "model")
    command = f"-m mlflow_deploy_plugin.cli size {folder} --rate 1 --p99 1s".split()
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    measured = psutil.Process(process.pid)
    wait_until(lambda: len(measured.children(recursive=True)) > 3, what="the server")
    children = measured.children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: all(is_gone(child.pid) for child in children), what="the end of the server")
