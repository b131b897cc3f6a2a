"""Tests of the record of a version."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, RegistryUnavailable
from mlflow_deploy_plugin.core.registry.tags import GATE_REPORT_TAG
from mlflow_deploy_plugin.promote.evidence.record import read_record
from tests.support.models import parse_graph, write_model
from tests.support.refusals import mentions, refused
from tests.support.tracking import tracking_at
from tests.support.waiting import free_port

NESTED = """nested (bool c, float[N,1] x) => (float[N,1] y) {
  y = If(c) <
    then_branch = yes () => (float[N,1] a) <float[1] one = {1.0}> { a = Add(x, one) },
    else_branch = no () => (float[N,1] b) { b = Identity(x) }
  >
}"""


def test_record_of_a_complete_version(registry):
    record = read_record("models:/toy@champion")
    assert record.uri == "models:/toy/1"
    assert record.tags["team"] == "blue"
    assert record.original == ""
    assert record.run.params == {"C": "1"}
    assert record.run.metrics == {"accuracy": 0.91}
    assert record.datasets == {"flights": "digest1"}
    assert record.git_commit == "c0ffee1"
    assert record.section["parity"]["state"] == "proven"
    assert record.signature.keys() == {"inputs a", "inputs b"}
    assert record.requirements == {"mlflow-onnxserve[cpu]": "0.1.0", "onnxruntime": "1.31.1"}
    assert record.environment == {"scikit_learn": "1.1", "numpy": "2.0"}
    assert record.graph["bytes"] == Path("1/model.onnx").stat().st_size
    assert record.graph["operator MatMul"] == 1
    assert record.graph["opset ai.onnx"] == 21
    assert record.graph["opset ai.onnx.ml"] == 3
    assert record.gate.judged == "models:/toy/1"
    assert record.gate.status.state == "passed without an evaluation"
    assert record.gate.checks[0].name == "parity"
    assert record.gate.checks[0].state == "passed"
    assert record.gate.checks[0].figures == {"rows": 1000}
    assert record.missing == {}


def test_missing_parts_are_named(registry):
    shutil.rmtree("3")
    second = read_record("models:/toy/2")
    third = read_record("models:/toy/3")
    assert second.gate.judged == ""
    assert set(second.missing) == {"gate"}
    assert mentions(second.missing["gate"], "onnxserve gate models:/toy/2")
    assert third.mlmodel == {}
    assert third.graph == {}
    assert third.requirements == {}
    assert set(third.missing) == {"model", "requirements", "environment", "graph", "run", "gate"}


def test_copy_has_run_and_gate_of_its_original(registry):
    copied = registry.copy_model_version("models:/toy/1", "copies")
    again = registry.copy_model_version("models:/copies/1", "copies")
    # MLflow's server with the gate does so.
    for key in [key for key in again.tags if key.startswith("onnxserve.gate")]:
        registry.delete_model_version_tag("copies", again.version, key)
    original = read_record("models:/toy/1")
    for version in (copied, again):
        record = read_record(f"models:/copies/{version.version}")
        assert record.original == "models:/toy/1"
        assert record.run == original.run
        assert record.section == original.section
        assert record.gate.judged == "models:/toy/1"
        assert len(record.gate.checks) == 5


def test_copy_of_a_deleted_version_keeps_its_run(registry):
    registry.copy_model_version("models:/toy/2", "copies")
    registry.delete_model_version("toy", "2")
    record = read_record("models:/copies/1")
    assert record.original == ""
    assert record.run.params == {"C": "2"}
    assert set(record.missing) == {"original", "gate"}


def test_gate_report_names_its_version(registry):
    tags = registry.get_model_version("toy", "1").tags
    for key, value in tags.items():
        registry.set_model_version_tag("toy", "2", key, value)
    record = read_record("models:/toy/2")
    assert record.gate.judged == "models:/toy/1"
    registry.set_model_version_tag("toy", "2", GATE_REPORT_TAG, "by mail")
    assert set(read_record("models:/toy/2").missing) == {"gate report"}


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("MLmodel", "[onnx]", "model"),
        ("MLmodel", "flavors: {onnxserve: 5}", "model"),
        ("MLmodel", "flavors: {onnx: {data: ../1/MLmodel}}", "graph"),
        ("MLmodel", "signature: {inputs: '{'}", "signature"),
        ("model.onnx", "not a graph", "graph"),
        ("requirements.txt", "\udcff", "requirements"),
    ],
)
def test_damaged_file_is_a_missing_part(registry, file, content, part):
    Path("2", file).write_bytes(content.encode(errors="surrogateescape"))
    record = read_record("models:/toy/2")
    assert part in record.missing
    assert record.run.params == {"C": "2"}


def test_invalid_gate_report_is_a_missing_part(registry):
    gate = read_record("models:/toy/1").gate
    registry.log_text(
        gate.run_id, json.dumps({"model": "toy", "version": "1", "checks": 3}), "gate.json"
    )
    record = read_record("models:/toy/1")
    assert record.gate.checks == ()
    assert set(record.missing) == {"gate report"}


def test_graph_includes_subgraphs_and_external_weights(registry, tmp_path):
    folder = write_model(tmp_path / "nested", NESTED)
    graph = parse_graph(NESTED)
    graph.graph.initializer.append(
        numpy_helper.from_array(np.zeros((100, 10), np.float32), "weights")
    )
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save_model(graph, folder / "model.onnx", **options)
    registry.create_model_version("toy", folder.as_uri())
    facts = dict(read_record("models:/toy/4").graph)
    assert facts.pop("bytes") >= (folder / "model.onnx").stat().st_size + 4000
    assert facts == {
        "operator If": 1,
        "operator Add": 1,
        "operator Identity": 1,
        "opset ai.onnx": 21,
        "opset ai.onnx.ml": 3,
    }


def test_unregistered_version_is_refused(registry, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with refused(InvalidConfig, "1"):
        read_record("1")
    with refused(NotFound, "toy", "9"):
        read_record("models:/toy/9")
    with tracking_at(f"http://127.0.0.1:{free_port()}"), refused(RegistryUnavailable, "toy"):
        read_record("models:/toy/1")
