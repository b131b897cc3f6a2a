"""The folder of an optimized version."""

import json

import pyarrow.parquet as pq

from mlflow_deploy_plugin.serve.runtime.artifact import check_digests, read_artifact
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.optimization import forms
from mlflow_deploy_plugin.wrap.optimization.saved_form import save_model
from tests.support.networks import network, network_rows, write_network

PARITY = {"state": "warned", "rows": 400, "problem": "it is models:/net/1 as int8 dynamic"}


def test_folder_has_graph_digest_and_record(tmp_path):
    base = write_network(tmp_path / "base")
    graph = forms.int8_dynamic(network())
    save_model(
        tmp_path / "form",
        base=base,
        graph=graph,
        record={"base": "models:/net/1", "loss": 0.1},
        parity=PARITY,
    )

    artifact = read_artifact(tmp_path / "form")
    check_digests(artifact)
    assert artifact.onnx_file.read_bytes() == graph.SerializeToString()
    assert artifact.optimization == {"base": "models:/net/1", "loss": 0.1}
    assert artifact.parity == PARITY
    assert artifact.tensors == read_artifact(base).tensors
    assert artifact.outputs == read_artifact(base).outputs
    proof = json.loads((tmp_path / "form" / "parity.json").read_text())
    assert proof["parity_of_base"] == {"state": "proven", "rows": 1000}
    assert read_artifact(base).optimization == {}


def test_reference_has_the_predictions(tmp_path):
    base = write_network(tmp_path / "base", rows=300)
    graph = forms.int8_dynamic(network())
    save_model(tmp_path / "draft", base=base, graph=graph)
    save_model(tmp_path / "form", base=base, graph=graph, record={}, parity=PARITY)
    draft, form = (
        pq.read_table(tmp_path / name / "reference.parquet") for name in ("draft", "form")
    )
    assert draft.equals(pq.read_table(base / "reference.parquet"))
    label = OnnxModel.load(tmp_path / "form").run({"x": network_rows(300)})["label"]
    assert form["prediction"].to_pylist() == label.tolist()
    assert form["x"].equals(draft["x"])
    assert form.schema == draft.schema
