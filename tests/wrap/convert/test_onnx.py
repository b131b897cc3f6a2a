import mlflow
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pyarrow.parquet as pq
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression
from sklearn.multioutput import MultiOutputClassifier

from mlflow_deploy_plugin.core.errors import ConversionError, InferenceError, InvalidConfig
from mlflow_deploy_plugin.serve.models.loading import load_warm
from mlflow_deploy_plugin.serve.runtime.session import Placement
from mlflow_deploy_plugin.wrap.flavor.save import load_model, save_model
from mlflow_deploy_plugin.wrap.flavor.wrap import WrapOptions, wrap
from tests.support.models import parse_graph
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused
from tests.wrap.conftest import cases, operators_of


@pytest.fixture
def proto():
    """A graph that maps [N, 3] to the sum [N] and the double [N, 3]."""
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


def test_graph_needs_no_example(proto, saved):
    before = proto.SerializeToString()

    model = saved(proto)

    answers = model.run(model.schema.from_array([[1, 2, 3]]))
    assert model.artifact.parity_state == "no-original"
    assert answers["total"].tolist() == [6]
    assert answers["double"].tolist() == [[2, 4, 6]]
    assert proto.SerializeToString() == before


@pytest.mark.parametrize(("operator", "size"), [("LSTM", 4), ("GRU", 3)])
def test_empty_recurrence_is_refused(operator, size, saved):
    """Check a graph in which the rows [N, 2, 3] with a positive first number are the
    batch of a recurrent layer: without rows, the layer would end the process.
    """
    graph = parse_graph(
        f"""g (float[n,2,3] x) => (float[steps,1,m,1] y)
        <float[1,{size},3] w = {{{",".join(["1"] * size * 3)}}}, \
float[1,{size},1] r = {{{",".join(["1"] * size)}}},
        int64[1] row = {{0}}, float none = {{0}}>
        {{
          first = Gather<axis = 1>(x, row)
          number = Gather<axis = 2>(first, row)
          flat = Flatten<axis = 0>(number)
          vector = Squeeze(flat, row)
          is_positive = Greater(vector, none)
          chosen = Compress<axis = 0>(x, is_positive)
          steps = Transpose<perm = [1, 0, 2]>(chosen)
          y = {operator}<hidden_size = 1>(steps, w, r)
        }}"""
    )

    model = saved(graph)
    rows = np.ones((4, 2, 3), np.float32)
    assert model.run({"x": rows})["y"].shape == (2, 1, 4, 1)
    with pytest.raises(InferenceError, match=f"Reshape .*'not_empty_{operator}"):
        model.run({"x": -rows})


def test_recurrence_of_request_steps_is_unchanged():
    weights = ",".join(["1"] * 9)
    graph = parse_graph(
        f"""g (float[n,t,3] x) => (float[t,1,n,1] y)
        <float[1,3,3] w = {{{weights}}}, float[1,3,1] r = {{1, 1, 1}}>
        {{ steps = Transpose<perm = [1, 0, 2]>(x) y = GRU<hidden_size = 1>(steps, w, r) }}"""
    )
    assert operators_of(wrap(graph)) == ["Transpose", "GRU"]


def test_external_weights_are_saved_twice(proto, tmp_path):
    file = tmp_path / "sums.onnx"
    onnx.save(proto, str(file), save_as_external_data=True, location="sums.data", size_threshold=0)

    for name in ("first", "second"):
        save_model(file, tmp_path / name)

    model = load_model(str(tmp_path / "second"))
    assert model.run(model.schema.from_array([[1, 2, 3]]))["total"].tolist() == [6]


@pytest.mark.parametrize("shape", [[], [1]])
def test_batch_output_has_no_reference(proto, saved, shape):
    proto.graph.node.append(
        helper.make_node("ReduceMean", ["total"], ["mean"], keepdims=len(shape))
    )
    proto.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, shape))

    model = saved(proto, np.ones((50, 3), np.float32))

    assert model.run(model.schema.from_array([[1, 2, 3]]))["mean"].shape == tuple(shape)
    columns = pq.read_table(model.artifact.reference_file).column_names
    assert columns == ["x", "output.total", "output.double"]


@pytest.mark.parametrize("labels", [["no", "yes"], [0, 1]])
def test_maps_of_probabilities_become_a_matrix(labels, saved):
    rows = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 0.0]])
    original = LogisticRegression().fit(rows, np.take(labels, [0, 0, 1, 1]))
    proto = to_onnx(original, rows[:1].astype(np.float32))  # The default has a ZipMap.

    model = saved(proto, pd.DataFrame(rows, columns=["a", "b"]))

    answers = model.run(model.schema.from_array(rows))
    assert model.artifact.classes == tuple(labels)
    np.testing.assert_array_equal(model.prediction(answers), original.predict(rows))
    probabilities = answers["output_probability"]
    np.testing.assert_allclose(probabilities, original.predict_proba(rows), atol=1e-6)


def test_several_targets_have_a_matrix_each(saved):
    rows = normal_rows(90, 3).astype(np.float32)
    targets = np.stack([rows[:, 0] > 0, np.digitize(rows[:, 1], [-0.5, 0.5])], axis=1).astype(int)
    original = MultiOutputClassifier(LogisticRegression()).fit(rows, targets)

    model = saved(to_onnx(original, rows[:1]), rows)  # The output is a sequence.

    answers = model.run(model.schema.from_array(rows))
    assert {output.name: output.shape for output in model.artifact.outputs} == {
        "label": (-1, 2),
        "probabilities_0": (-1, 2),
        "probabilities_1": (-1, 3),
    }
    np.testing.assert_array_equal(answers["label"], original.predict(rows))
    for number, probabilities in enumerate(original.predict_proba(rows)):
        np.testing.assert_allclose(answers[f"probabilities_{number}"], probabilities, atol=1e-6)


SEQUENCES = {
    "construct": "g (float[N,2] x) => (seq(float[N,2]) s) { s = SequenceConstruct(x, x) }",
    "insert": (
        "g (float[N,2] x) => (seq(float[N,2]) s) { n = SequenceEmpty() \n"
        " o = SequenceInsert(n, x) \n"
        " t = SequenceInsert(o, x) \n"
        " s = Identity(t) }"
    ),
    "slices": (
        "g (float[N,2] x) => (seq(float[N]) s) { s = SplitToSequence<axis = 1, keepdims = 0>(x) }"
    ),
    "parts": (
        "g (float[N,3] x) => (seq(float[N,K]) s) <int64[2] p = {1, 2}> { s = SplitToSequence<axis "
        "= 1>(x, p) }"
    ),
    "a name that is taken": (
        "g (float[N,2] s_0) => (seq(float[N,2]) s) { s = SequenceConstruct(s_0, s_0) }"
    ),
    "a name that a weight has": (
        "g (float[N,2] x) => (seq(float[N,2]) s) <float s_0 = {1}> { y = Add(x, s_0) \n"
        " s = SequenceConstruct(x, y) }"
    ),
}


@pytest.mark.parametrize("graph", cases(SEQUENCES))
def test_sequence_of_fixed_length_becomes_tensors(graph, saved):
    proto = parse_graph(graph)
    [entry] = proto.graph.input
    width = entry.type.tensor_type.shape.dim[1].dim_value
    feeds = {entry.name: np.arange(width * 4, dtype=np.float32).reshape(4, -1)}
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)

    model = saved(proto)

    answers = model.run(feeds)
    shapes = [output.shape for output in model.artifact.outputs]
    assert shapes == [(-1, *part.shape[1:]) for part in expected]
    assert len(expected) == 2
    for answer, part in zip(answers.values(), expected, strict=True):
        np.testing.assert_array_equal(answer, part)


REFUSED = {
    "a split of rows": (
        "g (float[N] x) => (seq(float[M]) s) { s = SplitToSequence<axis = 0>(x) }",
        ("'s'", "ConcatFromSequence"),
    ),
    "a split by shape": (
        "g (float[N] x) => (seq(float[M]) s) { k = Shape(x) s = SplitToSequence<axis = 0>(x, k) }",
        ("'s'", "ConcatFromSequence"),
    ),
    "no inputs": (
        "g () => (float[2] y) { y = Constant<value_floats = [1.0, 2.0]>() }",
        ("no inputs",),
    ),
    "no outputs": ("g (float[N] x) => () { y = Neg(x) }", ("no outputs",)),
    "training": (
        "g (float[N,2] x) => (float[N,2] y) <float[2] o = {1, 1}, float[2] z = {0, 0}> "
        "{ y, mean, variance = BatchNormalization<training_mode = 1>(x, o, z, z, o) }",
        ("BatchNormalization 'y'",),
    ),
}


@pytest.mark.parametrize(("graph", "words"), cases(REFUSED))
def test_unsupported_graph_is_refused(graph, words):
    with refused(ConversionError, *words):
        wrap(parse_graph(graph))


def test_input_without_a_shape_is_refused(proto):
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with refused(ConversionError, "shape", "'x'"):
        wrap(proto)


@pytest.mark.parametrize("left_out", ["type", "shape"])
def test_undeclared_outputs_are_inferred(left_out):
    proto = parse_graph(
        "g (float[N,2] x) => (float[N,2] y, float[N,2] z) { y = Neg(x) \n"
        ' z = ai.onnx.ml.Normalizer<norm = "L1">(x) }'
    )
    for output in proto.graph.output:
        if left_out == "type":
            output.ClearField("type")
        else:
            output.type.tensor_type.ClearField("shape")

    converted = wrap(proto).converted

    assert [(output.dtype, output.shape) for output in converted.outputs] == [
        ("float32", (-1, 2))
    ] * 2


def test_unsupported_input_is_named():
    proto = parse_graph(
        "g (bfloat16[N,2] x, int64[K] k) => (float[N,M] y) { z = Cast<to = 1>(x) \n"
        " y = Reshape(z, k) }"
    )
    proto.graph.output[0].ClearField("type")
    with refused(ConversionError, "'x'", "BFLOAT16"):
        wrap(proto)


def test_signature_columns_feed_a_graph(proto, saved):
    columns = ModelSignature(Schema([ColSpec("double", name) for name in "abc"]))

    model = saved(proto, signature=columns)

    feeds = model.schema.from_columns({"c": [3.0], "b": [2.0], "a": [1.0]})
    assert model.run(feeds)["total"].tolist() == [6.0]
    with refused(InvalidConfig, "signature", "['d']", "['x']"):
        wrap(proto, None, WrapOptions(signature=ModelSignature(Schema([ColSpec("double", "d")]))))


def test_graph_without_an_opset_is_read():
    made = parse_graph("g (float[N,2] p) => (float[N,2] q) { q = Identity(p) }")
    made.graph.node[0].CopyFrom(
        helper.make_node(
            "ZipMap", ["p"], ["q"], domain="ai.onnx.ml", classlabels_strings=["no", "yes"]
        )
    )
    del made.opset_import[:]
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))

    converted = wrap(made).converted

    assert [output.shape for output in converted.outputs] == [(-1, 2)]


def test_table_feeds_the_only_input(proto):
    wrapped = wrap(proto, pd.DataFrame({"a": [1.0], "b": [2.0], "c": [3.0]}))

    assert wrapped.converted.inputs[0].columns == ("a", "b", "c")
    assert wrapped.reference is not None
    assert wrapped.reference.column("output.total").to_pylist() == [6]
    with refused(InvalidConfig, "['a']", "['x']"):
        wrap(proto, pd.DataFrame({"a": [1.0]}))


def test_mappings_without_classes_are_refused():
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml")
    rows = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 2])

    with refused(ConversionError, "no classes"):
        wrap(helper.make_model(helper.make_graph([node], "g", [rows], [])))


PAIR = (
    "g (float[N,2] a, float[M,2] b) => (float[N,M] y) { c = Transpose<perm = [1, 0]>(b) \n"
    " y = MatMul(a, c) }"
)
WHOLE = {
    "scalars": (
        "g (float s, float[2] t) => (float[2] y) { y = Mul(s, t) }",
        {"s": 2.0, "t": [1.0, 3.0]},
        [2.0, 6.0],
    ),
    "a fixed size": ("g (float[7] x) => (float[7] y) { y = Neg(x) }", {"x": [1.0] * 7}, [-1.0] * 7),
    "two sizes": (PAIR, {"a": [[1.0, 2.0]], "b": [[1.0, 1.0]] * 6}, [[3.0] * 6]),
}


@pytest.mark.parametrize(("graph", "example", "answer"), cases(WHOLE))
def test_graph_without_rows_has_no_reference(graph, example, answer, tmp_path):
    arrays = {name: np.array(values, np.float32) for name, values in example.items()}

    save_model(parse_graph(graph), tmp_path / "model", input_example=arrays)

    predictor = load_warm(tmp_path / "model", Placement(), 1).predictor
    assert predictor.artifact.reference is None
    shapes = [tensor.shape for tensor in predictor.schema.tensors]
    assert shapes == [entry.shape for entry in predictor.artifact.inputs]
    predictions = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(arrays)
    np.testing.assert_array_equal(predictions, np.array(answer, np.float32))


def test_reference_data_need_rows():
    rows = np.zeros(7, np.float32)
    with refused(InvalidConfig, "reference_data", "batch dimension", "7"):
        wrap(parse_graph(WHOLE["a fixed size"][0]), rows, WrapOptions(reference_data=rows))


@pytest.mark.parametrize("dtype", [None, object, str])
def test_texts_feed_a_graph(dtype, tmp_path):
    texts = np.array(["a", "bc"])
    graph = parse_graph("g (string[N] s) => (string[N] t) { t = Identity(s) }")
    example = None if dtype is None else texts.astype(dtype)
    save_model(graph, tmp_path / "model", input_example=example)
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))

    for array in (texts, texts.astype(object)):
        assert model.predict({"s": array} if dtype is None else array).tolist() == ["a", "bc"]
