"""Creating, measuring and registering forms of a registered version."""

import json

import onnx
import pyarrow.parquet as pq
import pytest
import xgboost

import onnxserve
from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig, ParityError
from mlflow_deploy_plugin.promote.gate.run import run_gate
from tests.support.classifiers import write_classifier
from tests.support.models import write_model
from tests.support.networks import network, network_rows, write_labelled, write_network
from tests.support.random_rows import normal_rows
from tests.support.refusals import mentions, refused


@pytest.mark.long
def test_form_becomes_a_version_with_lineage(registry):
    done = onnxserve.optimize("models:/net/1", int8="static", max_loss=0.05)

    assert (done.chosen, done.model, done.version) == ("int8 static", "net", "2")
    form = done.forms[1]
    assert form.cost.size < 0.4 * done.forms[0].cost.size
    assert form.agreement is not None
    assert form.agreement.equal >= 0.95  # type: ignore[operator]
    base, version = (registry.get_model_version("net", number) for number in ("1", "2"))
    assert version.run_id == base.run_id
    assert version.tags.items() >= {
        ("onnxserve.optimized_from", "models:/net/1"),
        ("onnxserve.optimized_with", "int8 static"),
        ("onnxserve.parity", "warned"),
        ("onnxserve.training", "full: anew"),
    }
    metrics = registry.get_run(version.run_id).data.metrics
    assert metrics["onnxserve.optimize.loss"] == form.agreement.loss
    loaded = onnxserve.load_model("models:/net/2").artifact
    assert loaded.optimization["base"] == "models:/net/1"
    assert loaded.tensors == onnxserve.load_model("models:/net/1").artifact.tensors


def test_large_loss_registers_no_version(registry):
    with pytest.raises(ParityError, match=r"^int8 dynamic.*0\.\d+ \(labels\).*limit of 0: \d"):
        onnxserve.optimize("models:/net/1", int8="dynamic", max_loss=0)
    assert len(registry.search_model_versions("name='net'")) == 1


def test_labels_have_a_metric(registry, tmp_path):
    data = write_labelled(tmp_path / "test.parquet", share_wrong=0.1)
    done = onnxserve.optimize(
        "models:/net/1", fp16=True, data=str(data), target="label", register="half"
    )
    agreement = done.forms[1].agreement
    assert agreement is not None
    assert agreement.metric == agreement.loss_of == "accuracy"
    assert agreement.base_metric == pytest.approx(0.9, abs=0.05)
    assert agreement.loss == pytest.approx(agreement.base_metric - agreement.form_metric)
    assert (done.model, done.version) == ("half", "1")


@pytest.mark.long
def test_gate_dataset_is_the_default(registry, tmp_path):
    data = write_labelled(tmp_path / "test.parquet")
    policy = json.dumps({"evaluation": {"dataset": str(data), "target": "label"}})
    registry.set_registered_model_tag("net", "onnxserve.gate.policy", policy)
    done = onnxserve.optimize("models:/net/1", fp16=True)
    assert done.forms[1].agreement is not None
    assert done.forms[1].agreement.base_metric == 1.0
    parity = run_gate("net", done.version).verdict.checks[0]
    assert parity.state == "passed", parity.reason
    assert mentions(parity.reason, "models:/net/1", "1,000 rows", "100.00%")


@pytest.mark.long
def test_gate_fails_a_large_loss(registry):
    policy = json.dumps({"evaluation": {"margin": 0.001}})
    registry.set_registered_model_tag("net", "onnxserve.gate.policy", policy)
    onnxserve.optimize("models:/net/1", int8="dynamic", max_loss=1)
    gated = run_gate("net", "2")
    assert not gated.verdict.passed
    assert mentions(gated.verdict.checks[0].reason, "the margin 0.001", "models:/net/1")


def test_slow_form_is_refused(registry, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.wrap.optimization.optimizer._TRIAL_SECONDS", 0)
    with refused(ConversionError, "form fp16", "0 s"):
        onnxserve.optimize("models:/net/1", fp16=True)


@pytest.mark.long
def test_boosted_trees_have_no_fp16_form(registry, tmp_path):
    rows = normal_rows(100, 3)
    booster = xgboost.XGBClassifier(n_estimators=32, n_jobs=1).fit(rows, rows[:, 0] > 0)
    onnxserve.save_model(booster, tmp_path / "trees", input_example=rows)

    with refused(ConversionError, "form fp16", "If", "other forms") as failed:
        onnxserve.optimize(str(tmp_path / "trees"), fp16=True, register="trees")

    assert "\n" not in failed.value.message
    assert "invalid model" not in failed.value.message


@pytest.mark.long
def test_bias_is_scaled_by_tensor(registry, tmp_path):
    graph = network()
    for weight in graph.graph.initializer:  # skl2onnx writes biases with the shape [1, n].
        if weight.name.startswith("b"):
            weight.dims[:] = [1, *weight.dims]
    folder = write_network(tmp_path / "models" / "rows", graph=graph)
    done = onnxserve.optimize(str(folder), int8="static", max_loss=0.1, register="rows")
    assert mentions(done.forms[1].note, "scale")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ("int8", "fp16")),
        ({"int8": "static", "fp16": True}, ("int8", "fp16", "combined")),
        ({"int8": "fast"}, ("'fast'",)),
        ({"fp16": True, "max_loss": -1}, ("max_loss", "-1")),
        ({"fp16": True, "register": "a/b"}, ("'a/b'",)),
        ({"fp16": True, "target": "label"}, ("target", "data")),
        ({"fp16": True, "data": "few.parquet"}, ("few.parquet", "20 rows")),
        ({"fp16": True, "data": "few.parquet", "target": "y"}, ("few.parquet", "'y'")),
    ],
)
def test_invalid_option_is_refused(registry, tmp_path, options, words):
    write_labelled(tmp_path / "few.parquet", rows=20)
    with refused(InvalidConfig, *words):
        onnxserve.optimize("models:/net/1", **options)


@pytest.mark.long
def test_unsupported_base_is_refused(registry, tmp_path):
    onnxserve.optimize("models:/net/1", fp16=True)
    folder = str(write_network(tmp_path / "folder"))
    graph = "one (float[1,2] x) => (float[1,2] y) { y = Identity(x) }"
    fixed = str(write_model(tmp_path / "fixed", graph))
    reference = {name: normal_rows(300) for name in ("a", "b")}
    linear = str(write_classifier(tmp_path / "linear", reference=reference))
    for base, register, error, words in (
        ("models:/net/2", None, InvalidConfig, ("models:/net/2", "models:/net/1")),
        (folder, None, InvalidConfig, ("register",)),
        (fixed, "fixed", InvalidConfig, ("no rows",)),
        (linear, "linear", ConversionError, ("form int8 dynamic", "MatMul")),
    ):
        with refused(error, *words):
            onnxserve.optimize(base, int8="dynamic", register=register)


@pytest.mark.long
def test_stock_model_keeps_its_flavor(registry, tmp_path):
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
