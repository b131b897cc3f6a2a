"""Creating, measuring and registering forms of a registered version."""

import json
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import xgboost

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig, ParityError
from mlflow_deploy_plugin.promote.gate.run import run_gate
from tests.support.classifiers import write_classifier
from tests.support.models import write_model
from tests.support.networks import network, network_rows, write_labelled, write_network
from tests.support.random_rows import normal_rows
from tests.support.refusals import mentions


@pytest.mark.long
def test_the_form_becomes_a_version_with_the_lineage_of_its_base(registry, tmp_path):
    done = onnxserve.optimize("models:/net/1", int8="static", max_loss=0.05)

    assert done.chosen == "int8 static"
    assert done.model == "net"
    assert done.version == "2"
    form = done.forms[1]
    assert form.cost.size < 0.4 * done.forms[0].cost.size
    assert form.agreement is not None
    assert form.agreement.equal is not None
    assert form.agreement.equal >= 0.95
    base, version = (registry.get_model_version("net", number) for number in ("1", "2"))
    assert version.run_id == base.run_id
    assert version.tags["onnxserve.optimized_from"] == "models:/net/1"
    assert version.tags["onnxserve.optimized_with"] == "int8 static"
    assert version.tags["onnxserve.parity"] == "warned"
    assert version.tags["onnxserve.training"] == "full: anew"
    assert (
        registry.get_run(version.run_id).data.metrics["onnxserve.optimize.loss"]
        == form.agreement.loss
    )

    folder = Path(mlflow.artifacts.download_artifacts("models:/net/2"))
    loaded = onnxserve.load_model("models:/net/2")
    assert loaded.artifact.optimization["base"] == "models:/net/1"
    assert loaded.artifact.tensors == onnxserve.load_model("models:/net/1").artifact.tensors
    reference = pq.read_table(folder / "reference.parquet")
    rows = np.array(reference["x"].to_pylist(), dtype=np.float32)
    assert reference["prediction"].to_pylist() == loaded.run({"x": rows})["label"].tolist()
    assert json.loads((folder / "parity.json").read_text())["parity_of_base"]["state"] == "proven"


def test_a_loss_beyond_the_limit_is_refused_and_registers_no_version(registry):
    with pytest.raises(ParityError, match=r"^int8 dynamic.*0\.\d+ \(labels\).*limit of 0: \d"):
        onnxserve.optimize("models:/net/1", int8="dynamic", max_loss=0)
    assert len(registry.search_model_versions("name='net'")) == 1


def test_labels_measure_the_loss_by_their_metric(registry, tmp_path):
    data = write_labelled(tmp_path / "test.parquet", share_wrong=0.1)
    done = onnxserve.optimize(
        "models:/net/1", fp16=True, data=str(data), target="label", register="half"
    )
    (form,) = done.forms[1:]
    assert form.agreement is not None
    assert form.agreement.metric == form.agreement.loss_of == "accuracy"
    assert form.agreement.base_metric == pytest.approx(0.9, abs=0.05)
    assert form.agreement.loss == pytest.approx(
        form.agreement.base_metric - form.agreement.form_metric
    )
    assert done.model == "half"
    assert done.version == "1"


@pytest.mark.long
def test_without_data_the_dataset_of_the_gate_policy_is_taken(registry, tmp_path):
    data = write_labelled(tmp_path / "test.parquet")
    policy = json.dumps({"evaluation": {"dataset": str(data), "target": "label"}})
    registry.set_registered_model_tag("net", "onnxserve.gate.policy", policy)
    done = onnxserve.optimize("models:/net/1", fp16=True)
    assert done.forms[1].agreement is not None
    assert done.forms[1].agreement.base_metric == 1.0
    gated = run_gate("net", done.version)
    parity = gated.verdict.checks[0]
    assert parity.state == "passed", parity.reason
    assert parity.reason.startswith(
        "made from models:/net/1, where the ONNX form is proven on 1,000 rows; 100.00% equal"
    )


@pytest.mark.long
def test_the_gate_fails_an_optimized_version_that_lost_too_much(registry):
    policy = json.dumps({"evaluation": {"margin": 0.001}})
    registry.set_registered_model_tag("net", "onnxserve.gate.policy", policy)
    onnxserve.optimize("models:/net/1", int8="dynamic", max_loss=1)
    gated = run_gate("net", "2")
    assert not gated.verdict.passed
    assert mentions(gated.verdict.checks[0].reason, "the margin 0.001", "models:/net/1")


def test_a_form_that_the_runtime_cannot_load_is_tried_in_another_process(registry, monkeypatch):
    def half_precision(graph, rows):
        broken = onnx.ModelProto()
        broken.CopyFrom(graph)
        broken.graph.node[0].op_type = "Gemmm"
        return broken

    monkeypatch.setattr(
        "mlflow_deploy_plugin.wrap.optimization.forms.half_precision", half_precision
    )
    with pytest.raises(ConversionError, match=r"form fp16 .*Gemmm.*other forms"):
        onnxserve.optimize("models:/net/1", fp16=True)


def test_a_form_that_runs_too_long_is_refused_for_its_time(registry, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.wrap.optimization.optimizer._TRIAL_SECONDS", 0)
    with pytest.raises(ConversionError, match=r"form fp16 .*0 s"):
        onnxserve.optimize("models:/net/1", fp16=True)


def test_boosted_trees_that_have_no_16_bit_form_are_refused_with_the_reason_and_the_way_round(
    registry, tmp_path
):
    rows = normal_rows(300, 3)
    booster = xgboost.XGBClassifier(n_estimators=40, n_jobs=1).fit(rows, rows[:, 0] > 0)
    onnxserve.save_model(booster, tmp_path / "trees", input_example=rows)

    with pytest.raises(ConversionError, match=r"form fp16 .*If.*other forms") as refused:
        onnxserve.optimize(str(tmp_path / "trees"), fp16=True, register="trees")

    assert "\n" not in refused.value.message
    assert "invalid model" not in refused.value.message


@pytest.mark.long
def test_a_bias_that_the_quantizer_cannot_scale_by_channel_is_scaled_by_tensor(registry, tmp_path):
    graph = network()
    for weight in graph.graph.initializer:  # skl2onnx writes biases with the shape [1, n].
        if weight.name.startswith("b"):
            weight.dims[:] = [1, *weight.dims]
    folder = write_network(tmp_path / "models" / "rows", graph=graph)
    done = onnxserve.optimize(str(folder), int8="static", max_loss=0.1, register="rows")
    assert mentions(done.forms[1].note, "scale")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set a form: int8 (dynamic or static) or fp16"),
        (
            {"int8": "static", "fp16": True},
            "int8 and fp16 cannot be combined: a weight has either 8 or 16 bits",
        ),
        ({"int8": "fast"}, "int8: 'fast' is neither dynamic nor static"),
        ({"fp16": True, "max_loss": -1}, "max_loss: -1 is below 0"),
        ({"fp16": True, "register": "a/b"}, "'a/b' is not a valid name for a registered model"),
        (
            {"fp16": True, "target": "label"},
            "target: set data that contains the label column; a model's reference has no",
        ),
        (
            {"fp16": True, "data": "few.parquet"},
            "few.parquet has 20 rows, which are too few to measure a loss; use data with",
        ),
        (
            {"fp16": True, "data": "few.parquet", "target": "y"},
            "the dataset few.parquet has no column 'y'",
        ),
    ],
)
def test_an_invalid_option_gets_a_one_line_error_with_the_correct_form(
    registry, tmp_path, options, message
):
    write_labelled(tmp_path / "few.parquet", rows=20)
    with pytest.raises(InvalidConfig) as refused:
        onnxserve.optimize("models:/net/1", **options)
    assert refused.value.message.startswith(message)


@pytest.mark.long
def test_a_form_of_a_form_a_folder_without_a_name_and_a_graph_without_rows_are_refused(
    registry, tmp_path
):
    onnxserve.optimize("models:/net/1", fp16=True)
    with pytest.raises(InvalidConfig, match=r"models:/net/2 .*models:/net/1"):
        onnxserve.optimize("models:/net/2", int8="dynamic")
    with pytest.raises(InvalidConfig, match=r"not a registered version: set the name .*register"):
        onnxserve.optimize(str(write_network(tmp_path / "folder")), fp16=True)
    graph = "one (float[1,2] x) => (float[1,2] y) { y = Identity(x) }"
    with pytest.raises(InvalidConfig, match="no rows"):
        onnxserve.optimize(str(write_model(tmp_path / "fixed", graph)), fp16=True, register="fixed")
    reference = {name: normal_rows(300) for name in ("a", "b")}
    folder = write_classifier(tmp_path / "linear", reference=reference)
    with pytest.raises(ConversionError, match=r"form int8 dynamic .*MatMul"):
        onnxserve.optimize(str(folder), int8="dynamic", register="linear")


@pytest.mark.long
def test_a_stock_model_with_external_weights_keeps_its_flavor(registry, tmp_path):
    folder = write_model(
        tmp_path / "stock", "two (float[N,16] x) => (float[N,16] y) { y = Identity(x) }"
    )
    onnx.save(
        network(),
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    assert (folder / "weights.bin").exists()
    data = write_labelled(tmp_path / "rows.parquet")
    table = pq.read_table(data).drop_columns(["label"])
    pq.write_table(table, data)
    done = onnxserve.optimize(
        str(folder), int8="dynamic", data=str(data), max_loss=0.05, register="stock"
    )
    loaded = onnxserve.load_model(f"models:/stock/{done.version}")
    assert loaded.artifact.flavor == "onnx"
    assert loaded.run({"x": network_rows(3)})["label"].shape == (3,)
    assert not (loaded.artifact.folder / "weights.bin").exists()
