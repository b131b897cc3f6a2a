"""MLmodel folders of the stock onnx flavor."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import yaml

GRAPH = '<ir_version: 10, opset_import: ["": 21]> same (float[N,1] x) => (float[N,1] y) { y = Identity(x) }'


def write_model(folder: Path, model_id: str = "m-1") -> Path:
    folder.mkdir(parents=True)
    onnx.save(onnx.parser.parse_model(GRAPH), folder / "model.onnx")
    document = {"flavors": {"onnx": {"data": "model.onnx"}}, "model_id": model_id, "run_id": "r-1"}
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    return folder


@pytest.fixture
def make_model() -> Callable[..., Path]:
    return write_model
