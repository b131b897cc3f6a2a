"""The cpu image: hardened, with requests, stopped, following a stage. The tests are
skipped without Docker.
"""

import json
import re
import time
from importlib.metadata import version
from pathlib import Path

import grpc
import mlflow
import numpy as np
import pyarrow as pa
import pytest
import requests
from mlflow.models import infer_signature

from tests.support.tracking import DEFAULT_EXPERIMENT
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.docker,
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:.*transition_model_version_stage.*:FutureWarning"),
]

ROOT = Path(__file__).parents[2]
CONSTRAINTS = re.findall(
    r"^([A-Za-z0-9._-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M
)
ROWS = [[1.0, 2.0], [3.0, 4.0]]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def log_version(times, factor):
    """Register a version of the model `times` that multiplies by `factor`."""
    example = np.ones((1, 2), np.float32)
    with mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
        info = mlflow.onnx.log_model(
            times(factor),
            name="model",
            signature=infer_signature(example, example),
            registered_model_name="times",
            pip_requirements=["onnxruntime"],
        )
    return str(info.registered_model_version)


def test_processes_have_no_root_and_no_write_access(hardened):
    assert hardened.run("id", "-u").strip() == "10001"
    assert (
        hardened.run("sh", "-c", "touch /opt/onnxserve/x 2>&1 || true")
        .strip()
        .endswith("Read-only file system")
    )
    assert hardened.run("sh", "-c", "grep CapEff /proc/1/status").split()[1].strip("0") == ""


def test_requests_are_answered_and_captured(hardened):
    answer = hardened.ask(ROWS)
    assert answer.body["predictions"]["y"] == [[2.0, 4.0], [6.0, 8.0]]
    find = ("find", "/var/lib/onnxserve/", "-name", "*.parquet")
    wait_until(lambda: hardened.run(*find), 30, "the rows are in the log")


@pytest.mark.release
def test_image_starts_and_answers_without_network(image, start, model_folder):
    request = (
        "import urllib.request as r; print(r.urlopen(r.Request('http://127.0.0.1:8080/invocations',"
        " b'{\"inputs\": [[1, 2]]}', {'Content-Type': 'application/json'})).read().decode())"
    )
    options = ["--network", "none", "-v", f"{model_folder}:/model:ro"]
    with start(image, *options, command=["serve", "/model", "--insecure"]) as container:
        container.wait_healthy()
        answer = json.loads(container.run("python", "-c", request))
    assert answer["predictions"]["y"] == [[2.0, 4.0]]


def test_installed_versions_are_the_tested_ones(hardened):
    listed = (
        "import importlib.metadata as m, json; print(json.dumps([[d.name, d.version] for d in "
        "m.distributions()]))"
    )
    installed = {
        canonical(name): number
        for name, number in json.loads(hardened.run("python", "-P", "-c", listed))
    }
    assert installed.pop("mlflow-onnxserve") == version("mlflow-onnxserve")
    tested = {canonical(name): number for name, number in CONSTRAINTS}
    assert {name: number for name, number in installed.items() if tested.get(name) != number} == {}
    left_out = {
        "pandas",
        "scikit-learn",
        "torch",
        "onnx",
        "evidently",
        "mlflow",
        "huggingface-hub",
        "pip",
        "setuptools",
    }
    assert not left_out & set(installed)


def test_sigterm_shuts_down_cleanly(image, start, docker, model_folder):
    with start(
        image, "-v", f"{model_folder}:/model:ro", command=["serve", "/model", "--insecure"]
    ) as container:
        container.wait_healthy()
        began = time.monotonic()
        docker("stop", "-t", "30", container.name)
        assert time.monotonic() - began < 10
        assert container.state["ExitCode"] == 0, container.logs


def test_image_is_small_without_installers_or_setuid(image, docker):
    assert int(docker("image", "inspect", "-f", "{{.Size}}", image).stdout) <= 310e6
    look = (
        "find / -xdev -perm /6000 -type f; command -v apt apt-get dpkg-deb perl pip su; dpkg "
        "--audit; true"
    )
    assert (
        docker("run", "--rm", "--user", "0", "--entrypoint", "sh", image, "-c", look).stdout == ""
    )


def test_every_protocol_works_without_removed_packages(image, start, docker, model_folder):
    """Check that Arrow and gRPC work, and that the modules for a token, a trace and a
    shared limit can be imported.
    """
    options = ["-v", f"{model_folder}:/model:ro", "-p", "127.0.0.1::8081"]
    with start(
        image, *options, command=["serve", "/model", "--insecure", "-C", "server.grpc_port=8081"]
    ) as run:
        run.wait_healthy()
        http, rpc = (
            docker("port", run.name, f"{port}/tcp").stdout.split()[0] for port in (8080, 8081)
        )
        table = pa.table(
            {"x": pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0], pa.float32()), 2)}
        )
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        headers = {"Content-Type": "application/vnd.apache.arrow.stream"}
        answer = requests.post(
            f"http://{http}/invocations",
            stream.getvalue().to_pybytes(),
            headers=headers,
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        with grpc.insecure_channel(rpc) as channel:
            ready = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
            assert ready(b"", timeout=30) == b"\x08\x01"
        modules = (
            "import numpy.fft, numpy.ma, numpy.polynomial, numpy.random, numpy.testing\n"
            "import sys, tokenizers\n"
            "assert 'huggingface_hub' not in sys.modules\n"
            "import jwt, cryptography.hazmat.primitives.asymmetric.rsa, redis, pyarrow.dataset\n"
            "import opentelemetry.exporter.otlp.proto.http.trace_exporter, boto3\n"
            "boto3.client('s3')"
        )
        run.run("python", "-c", modules)
