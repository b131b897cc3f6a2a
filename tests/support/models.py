"""Tiny ONNX graphs, and the MLmodel folders around them as MLflow writes them."""

import json
from pathlib import Path
from typing import Any

import onnx
import yaml

HEADER = '<ir_version: 10, opset_import: ["": 21, "ai.onnx.ml": 3]>\n'
IDENTITY = "same (float[N,1] x) => (float[N,1] y) { y = Identity(x) }"


def parse_graph(text: str) -> onnx.ModelProto:
    """Return the model of a graph in ONNX's text form, without its header."""
    return onnx.parser.parse_model(HEADER + text)


def adder(amount: float) -> onnx.ModelProto:
    """Return the model y = x + amount, whose answers tell which version gave them."""
    return parse_graph(
        f"adder (float[N,1] x) => (float[N,1] y) <float[1] amount = {{{amount}}}> {{ y = Add(x, amount) }}"
    )


def write_model(
    folder: Path,
    graph: str = IDENTITY,
    signature: list[dict[str, Any]] | None = None,
    section: dict[str, Any] | None = None,
    model_id: str = "m-1",
) -> Path:
    """Write an MLmodel folder; `section`: the rest of flavors.onnxserve, None for a model of the stock onnx flavor."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(parse_graph(graph), folder / "model.onnx")
    flavors: dict[str, Any] = {"onnx": {"data": "model.onnx", "onnx_version": "1.23.2"}}
    if section is not None:
        flavors["onnxserve"] = {"data": "model.onnx", "onnxserve_version": "0.1.0", **section}
    document: dict[str, Any] = {"flavors": flavors, "mlflow_version": "3.17.2", "model_id": model_id, "run_id": "r-1"}
    if signature is not None:
        document["signature"] = {"inputs": json.dumps(signature), "outputs": None, "params": None}
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    return folder
