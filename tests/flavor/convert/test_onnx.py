import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlflow_deploy_plugin.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.flavor.save import load_model, save_model
from mlflow_deploy_plugin.flavor.wrap import wrap


@pytest.fixture
def proto() -> onnx.ModelProto:
    """[N, 3] → the sum [N] and the double [N, 3]."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=0),
            helper.make_node("Mul", ["x", "two"], ["double"]),
        ],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [
            helper.make_tensor_value_info("total", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("double", TensorProto.FLOAT, ["n", 3]),
        ],
        [
            numpy_helper.from_array(np.array([1], np.int64), "axes"),
            numpy_helper.from_array(np.full((1, 3), 2, np.float32), "two"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_ready_model_is_saved_without_an_example_and_left_as_it_was(proto, tmp_path):
    before = proto.SerializeToString()

    save_model(proto, tmp_path / "model")

    model = load_model(str(tmp_path / "model"))
    answers = model.run(model.schema.from_array([[1, 2, 3]]))
    assert model.artifact.parity_state == "no-original"
    assert {name: array.tolist() for name, array in answers.items()} == {"total": [6], "double": [[2, 4, 6]]}
    assert proto.SerializeToString() == before


def test_file_with_external_weights_is_saved_whole_and_twice(proto, tmp_path):
    file = tmp_path / "sums.onnx"
    onnx.save(proto, str(file), save_as_external_data=True, location="sums.data", size_threshold=0)

    for name in ("first", "second"):
        save_model(file, tmp_path / name)

    model = load_model(str(tmp_path / "second"))
    assert model.run(model.schema.from_array([[1, 2, 3]]))["total"].tolist() == [6]


def test_table_is_bound_by_position_to_the_only_input(proto):
    wrapped = wrap(proto, pd.DataFrame({"a": [1.0], "b": [2.0], "c": [3.0]}))

    assert wrapped.converted.inputs[0].columns == ("a", "b", "c")
    assert wrapped.reference.column("output.total").to_pylist() == [6]


def test_table_of_another_width_is_refused(proto):
    with pytest.raises(InvalidConfig, match=r"columns \['a'\] are not the graph's inputs \['x'\]"):
        wrap(proto, pd.DataFrame({"a": [1.0]}))


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_text("not a model")

    with pytest.raises(ConversionError, match="not a valid ONNX model"):
        wrap(tmp_path / "model.onnx")


def test_unknown_framework_is_named_with_the_known_ones():
    with pytest.raises(ConversionError, match=r"builtins\.dict is of no framework .* known are onnx, sklearn, torch"):
        wrap({})
