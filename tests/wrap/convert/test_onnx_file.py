"""Models whose weights exceed one ONNX file are saved, verified after a download,
loaded and served.
"""

import mlflow
import numpy as np
import onnx
import pytest
import requests
from onnx import TensorProto, helper

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidArtifact
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from mlflow_deploy_plugin.wrap.convert import onnx_file
from mlflow_deploy_plugin.wrap.flavor.save import load_model, save_model
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused

ROWS = 300
WIDTH = 7


def lookup(tables, width):
    """Return a graph that sums row `id` of all tables."""
    names = [table.name for table in tables]
    nodes = [helper.make_node("Gather", [name, "id"], [f"row {name}"]) for name in names]
    nodes.append(helper.make_node("Sum", [f"row {name}" for name in names], ["rows"]))
    inputs = [helper.make_tensor_value_info("id", TensorProto.INT64, ["N"])]
    outputs = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["N", width])]
    graph = helper.make_graph(nodes, "lookup", inputs, outputs, tables)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture
def small(monkeypatch):
    """A model that is too large for one file, since the limit is set to one kilobyte
    here, and its table.
    """
    monkeypatch.setattr(onnx_file, "MAX_INLINE_BYTES", 1024)
    table = normal_rows(ROWS, WIDTH).astype(np.float32)
    offset = np.zeros((ROWS, WIDTH), np.float32)
    return lookup(
        [onnx.numpy_helper.from_array(table, "a"), onnx.numpy_helper.from_array(offset, "b")], WIDTH
    ), table


def test_large_weights_have_their_own_file(small, tmp_path):
    model, table = small
    for name in ("first", "again"):  # The original keeps its weights.
        save_model(model, tmp_path / name, input_example={"id": np.arange(5)})
    folder = tmp_path / "again"

    assert (folder / "model.onnx").stat().st_size < 1024
    # Each table begins at a page boundary.
    assert (folder / "model.onnx.data").stat().st_size == 2 * 3 * 4096
    assert sorted(read_artifact(folder).digests) == ["model.onnx", "model.onnx.data"]
    ids = np.array([0, 7, ROWS - 1])
    np.testing.assert_array_equal(load_model(str(folder)).run({"id": ids})["rows"], table[ids])
    onnx.checker.check_model(mlflow.onnx.load_model(str(folder)))


def test_altered_weights_are_refused(small, tmp_path):
    save_model(small[0], tmp_path / "model")
    data = tmp_path / "model" / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    with refused(InvalidArtifact, "model.onnx.data"):
        load_model(str(tmp_path / "model"))
    data.unlink()
    with refused(InvalidArtifact, "'model.onnx.data'"):
        load_model(str(tmp_path / "model"))


def test_large_graph_is_checked_without_weights(small, tmp_path):
    model, _ = small
    model.graph.node[0].op_type = "NoSuchOperator"
    with refused(ConversionError, "NoSuchOperator"):
        save_model(model, tmp_path / "model")


@pytest.mark.long
def test_model_of_two_gigabytes_is_served(tmp_path, serve):
    """Check a real model of 2.2 GB. Its file is sparse: the tables contain zeros except
    for one value each.
    """
    rows = 550_000
    width = 500
    values = np.memmap(tmp_path / "given.data", np.float32, "w+", shape=(2, rows, width))
    values[:, 3, 0] = [1, 2]
    values.flush()
    tables = []
    for number in range(2):
        table = TensorProto(name=f"table{number}", data_type=TensorProto.FLOAT, dims=[rows, width])
        table.data_location = TensorProto.EXTERNAL
        place = {"offset": number * values[0].nbytes, "length": values[0].nbytes}
        for key, value in {"location": "given.data", **place}.items():
            table.external_data.add(key=key, value=str(value))
        tables.append(table)
    (tmp_path / "given.onnx").write_bytes(lookup(tables, width).SerializeToString())

    save_model(tmp_path / "given.onnx", tmp_path / "model", input_example={"id": np.arange(5)})

    assert (tmp_path / "model" / "model.onnx.data").stat().st_size > 2**31
    served = serve(str(tmp_path / "model")).wait_ready()
    answer = requests.post(f"{served.url}/invocations", json={"inputs": {"id": [3, 4]}}, timeout=60)
    assert answer.json() == {"predictions": [[3.0, *[0.0] * (width - 1)], [0.0] * width]}
