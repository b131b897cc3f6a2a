"""The test of an image with a small program in place of Docker;
tests/docker/test_trial.py has the real engine.
"""

import json

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import BuildFailed, InvalidConfig, ParityError
from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE
from mlflow_deploy_plugin.serve.protocols.v2 import V2Answer, V2Output, encode
from mlflow_deploy_plugin.ship.images import trial as trials
from mlflow_deploy_plugin.ship.images.trial import try_image
from tests.support.models import tensor_model, write_model
from tests.support.refusals import refused

IMAGES = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
CONTAINER = (
    "--read-only",
    "--network",
    "none",
    "--cap-drop",
    "ALL",
    "--user",
    "10001",
    "no-new-privileges",
)


@pytest.fixture
def model(tmp_path):
    folder = tensor_model(tmp_path / "model")
    (folder / INPUT_EXAMPLE).write_text(json.dumps({"inputs": IMAGES.tolist()}))
    return folder


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Put a program `docker` on PATH, and return a function that sets its answer and
    returns the log of its calls.
    """

    def answer(doubled, *, exec_status=0, exit_status=""):
        arrays = {"doubled": doubled, "total": IMAGES.sum((1, 2))}
        outputs = [V2Output(name, array, is_binary=True) for name, array in arrays.items()]
        body, _, headers = encode("model", V2Answer("id", "3", outputs))
        (tmp_path / "answer").write_text(
            json.dumps([int(*headers.values()), body.decode("latin-1")])
        )
        (tmp_path / "docker").write_text(
            f"""#!/bin/sh
            echo "$@" >> {tmp_path}/calls
            case $1 in
              exec) cat > {tmp_path}/request; cat {tmp_path}/answer; exit {exec_status};;
              stats) echo "141.2MiB / 7.5GiB";;
              inspect) echo "{exit_status}";;
              logs) echo "Error: the disk is full";;
            esac
            """
        )
        (tmp_path / "docker").chmod(0o755)
        return tmp_path / "calls"

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return answer


def test_image_with_equal_answers_passes(model, engine, tmp_path):
    calls = engine(IMAGES * 2)
    trial = try_image("flights:3", model)
    assert trial.rows == "2 example rows"
    assert trial.max_difference == 0.0
    assert trial.memory == "141.2MiB"
    (run, *_, removal) = [line.split() for line in calls.read_text().splitlines()]
    assert set(CONTAINER) < set(run)
    assert removal == ["rm", "-f", "-v", run[run.index("--name") + 1]]
    _, length, body = json.loads((tmp_path / "request").read_text())
    (tensor,) = json.loads(body[:length])["inputs"]
    assert tensor["shape"] == [2, 2, 2]
    assert tensor["datatype"] == "FP32"
    assert body[length:].encode("latin-1") == IMAGES.tobytes()


def test_only_the_first_large_row_is_sent(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(trials, "_MANY_BYTES", 100)
    engine(IMAGES)
    graph = "large (float[N,16] x) => (float[N,16] y) { y = Add(x, x) }"
    with refused(ParityError, "'y'", "[1, 16]"):
        try_image("flights:3", write_model(tmp_path / "large", graph))
    _, length, body = json.loads((tmp_path / "request").read_text())
    assert json.loads(body[:length])["inputs"][0]["shape"] == [1, 16]


def test_rounding_is_within_the_tolerance(model, engine):
    engine(IMAGES * 2 + np.float32(5e-5))
    assert 0 < try_image("flights:3", model).max_difference <= 1e-4


def test_gpu_has_a_wider_tolerance(model, engine):
    calls = engine(IMAGES * np.float32(2 + 1e-2))
    assert try_image("flights:3", model, gpu=True).max_difference > 1e-4
    assert "--gpus all flights:3" in calls.read_text()


def test_other_answer_names_output_and_row(model, engine):
    other = IMAGES * 2
    other[1] += 0.01
    calls = engine(other)
    with refused(ParityError, "flights:3", "doubled", "row 1", "1 of 2 rows"):
        try_image("flights:3", model)
    assert "rm -f -v" in calls.read_text()


@pytest.mark.parametrize(("status", "names"), [("3", ["status 3"]), ("", ["docker ended"])])
def test_failed_server_is_reported_with_its_last_line(model, engine, status, names):
    calls = engine(IMAGES, exec_status=137, exit_status=status)
    with refused(BuildFailed, "flights:3", *names, "the disk is full"):
        try_image("flights:3", model)
    assert "rm -f -v" in calls.read_text()


def test_refused_rows_start_no_container(tmp_path, engine):
    calls = engine(IMAGES)
    graph = "squares (float[N] x, float[M] z) => (float[N] y) { y = Mul(x, z) }"
    folder = write_model(tmp_path / "squares", graph)
    (folder / INPUT_EXAMPLE).write_text('{"inputs": {"x": [1, 2, 3], "z": [1, 2]}}')
    with refused(InvalidConfig, "--test", "example rows", "input_example"):
        try_image("flights:3", folder)
    assert not calls.exists()
