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


def test_ready_model_is_saved_without_an_example_and_left_as_it_was(proto, tmp_path):
    before = proto.SerializeToString()

    save_model(proto, tmp_path / "model")

    model = load_model(str(tmp_path / "model"))
    answers = model.run(model.schema.from_array([[1, 2, 3]]))
    assert model.artifact.parity_state == "no-original"
    assert {name: array.tolist() for name, array in answers.items()} == {
        "total": [6],
        "double": [[2, 4, 6]],
    }
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
def test_an_empty_tensor_of_the_graph_s_own_is_refused_where_it_would_end_the_process(
    operator, tmp_path
):
    """A graph in which the rows [N, 2, 3] with a positive first number are the batch of
    a recurrent layer.
    """
    size = {"LSTM": 4, "GRU": 3}[operator]
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
    save_model(graph, tmp_path / "model")

    model = load_model(str(tmp_path / "model"))
    rows = np.ones((4, 2, 3), np.float32)
    assert model.run({"x": rows})["y"].shape == (2, 1, 4, 1)
    with pytest.raises(InferenceError, match=f"Reshape .*'not_empty_{operator}"):
        model.run({"x": -rows})


def test_a_recurrence_of_a_request_s_own_steps_stays_as_it_is(tmp_path):
    weights = ",".join(["1"] * 9)
    graph = parse_graph(
        f"""g (float[n,t,3] x) => (float[t,1,n,1] y)
        <float[1,3,3] w = {{{weights}}}, float[1,3,1] r = {{1, 1, 1}}>
        {{ steps = Transpose<perm = [1, 0, 2]>(x) y = GRU<hidden_size = 1>(steps, w, r) }}"""
    )
    assert [node.op_type for node in wrap(graph).converted.proto.graph.node] == ["Transpose", "GRU"]


def test_file_with_external_weights_is_saved_whole_and_twice(proto, tmp_path):
    file = tmp_path / "sums.onnx"
    onnx.save(proto, str(file), save_as_external_data=True, location="sums.data", size_threshold=0)

    for name in ("first", "second"):
        save_model(file, tmp_path / name)

    model = load_model(str(tmp_path / "second"))
    assert model.run(model.schema.from_array([[1, 2, 3]]))["total"].tolist() == [6]


@pytest.mark.parametrize("shape", [[], [1]])
def test_output_of_the_whole_batch_is_answered_and_left_out_of_the_reference(
    proto, tmp_path, shape
):
    proto.graph.node.append(
        helper.make_node("ReduceMean", ["total"], ["mean"], keepdims=len(shape))
    )
    proto.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, shape))

    save_model(proto, tmp_path / "model", input_example=np.ones((50, 3), np.float32))

    model = load_model(str(tmp_path / "model"))
    assert model.run(model.schema.from_array([[1, 2, 3]]))["mean"].shape == tuple(shape)
    assert model.artifact.reference is not None
    reference = pq.read_table(tmp_path / "model" / model.artifact.reference)
    assert reference.column_names == ["x", "output.total", "output.double"]


@pytest.mark.parametrize("labels", [["no", "yes"], [0, 1]])
def test_a_classifier_whose_probabilities_are_maps_is_served_with_their_matrix(labels, tmp_path):
    table = pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0], "b": [1.0, 0.0, 1.0, 0.0]})
    original = LogisticRegression().fit(table.to_numpy(), np.take(labels, [0, 0, 1, 1]))
    proto = to_onnx(original, table.to_numpy(np.float32)[:1])  # The default has a ZipMap.

    save_model(proto, tmp_path / "model", input_example=table)

    model = load_model(str(tmp_path / "model"))
    answers = model.run(model.schema.from_array(table.to_numpy()))
    assert model.artifact.classes == tuple(labels)
    np.testing.assert_array_equal(model.prediction(answers), original.predict(table.to_numpy()))
    np.testing.assert_allclose(
        answers["output_probability"], original.predict_proba(table.to_numpy()), atol=1e-6
    )


def test_a_classifier_of_several_targets_is_served_with_a_matrix_a_target(tmp_path):
    rows = normal_rows(90, 3).astype(np.float32)
    targets = np.stack([rows[:, 0] > 0, np.digitize(rows[:, 1], [-0.5, 0.5])], axis=1).astype(int)
    original = MultiOutputClassifier(LogisticRegression()).fit(rows, targets)
    proto = to_onnx(original, rows[:1])  # The output is a sequence.

    save_model(proto, tmp_path / "model", input_example=rows)

    model = load_model(str(tmp_path / "model"))
    answers = model.run(model.schema.from_array(rows))
    assert [(output.name, output.shape) for output in model.artifact.outputs] == [
        *[("label", (-1, 2)), ("probabilities_0", (-1, 2)), ("probabilities_1", (-1, 3))]
    ]
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


@pytest.mark.parametrize("graph", SEQUENCES.values(), ids=SEQUENCES)
def test_a_sequence_of_fixed_length_becomes_its_tensors(graph, tmp_path):
    proto = parse_graph(graph)
    rows = np.arange(
        proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value * 4, dtype=np.float32
    ).reshape(4, -1)
    name = proto.graph.input[0].name
    (expected,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {name: rows})

    save_model(proto, tmp_path / "model")

    model = load_model(str(tmp_path / "model"))
    answers = model.run({name: rows})
    assert len(answers) == len(expected) == 2
    assert [output.shape for output in model.artifact.outputs] == [
        (-1, *part.shape[1:]) for part in expected
    ]
    for answer, part in zip(answers.values(), expected, strict=True):
        np.testing.assert_array_equal(answer, part)


def test_a_sequence_whose_length_depends_on_the_input_is_refused():
    for length in (
        "s = SplitToSequence<axis = 0>(x)",
        "k = Shape(x) \n s = SplitToSequence<axis = 0>(x, k)",
    ):
        with pytest.raises(ConversionError, match=r"'s' .*ConcatFromSequence"):
            wrap(parse_graph(f"g (float[N] x) => (seq(float[M]) s) {{ {length} }}"))


@pytest.mark.parametrize("left_out", ["type", "shape"])
def test_an_output_is_declared_as_onnx_runtime_finds_it(left_out):
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


def test_an_unsupported_input_is_named_also_if_an_output_has_no_shape():
    proto = parse_graph(
        "g (bfloat16[N,2] x, int64[K] k) => (float[N,M] y) { z = Cast<to = 1>(x) \n"
        " y = Reshape(z, k) }"
    )
    proto.graph.output[0].ClearField("type")
    with pytest.raises(ConversionError, match=r"'x' .*BFLOAT16"):
        wrap(proto)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("input", "the graph has no inputs"),
        ("output", "the graph has no outputs"),
        ("shape", "does not declare the shape of its input 'x': add it"),
    ],
)
def test_a_graph_that_cannot_be_asked_is_refused(part, message, proto):
    if part == "input":
        proto = parse_graph("g () => (float[2] y) { y = Constant<value_floats = [1.0, 2.0]>() }")
    elif part == "output":
        proto.graph.ClearField("output")
    else:
        proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ConversionError, match=message):
        wrap(proto)


def test_a_graph_that_was_exported_in_training_mode_is_refused():
    graph = parse_graph(
        "g (float[N,2] x) => (float[N,2] y) <float[2] o = {1, 1}, float[2] z = {0, 0}> "
        "{ y, mean, variance = BatchNormalization<training_mode = 1>(x, o, z, z, o) }"
    )
    with pytest.raises(ConversionError, match=r"BatchNormalization 'y' .*training.*eval"):
        wrap(graph)


def test_the_columns_of_a_signature_feed_a_graph_without_an_example(proto, tmp_path):
    columns = ModelSignature(Schema([ColSpec("double", name) for name in "abc"]))

    save_model(proto, tmp_path / "model", signature=columns)

    model = load_model(str(tmp_path / "model"))
    assert model.run(model.schema.from_columns({"c": [3.0], "b": [2.0], "a": [1.0]}))[
        "total"
    ].tolist() == [6.0]
    with pytest.raises(InvalidConfig, match=r"signature: .*\['d'\] .*\['x'\]"):
        wrap(proto, None, WrapOptions(signature=ModelSignature(Schema([ColSpec("double", "d")]))))


def test_a_graph_of_trees_and_mappings_alone_needs_no_opset_of_its_own():
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


def test_table_is_bound_by_position_to_the_only_input(proto):
    wrapped = wrap(proto, pd.DataFrame({"a": [1.0], "b": [2.0], "c": [3.0]}))

    assert wrapped.converted.inputs[0].columns == ("a", "b", "c")
    assert wrapped.reference is not None
    assert wrapped.reference.column("output.total").to_pylist() == [6]


def test_table_of_another_width_is_refused(proto):
    with pytest.raises(InvalidConfig, match=r"\['a'\] .*\['x'\]"):
        wrap(proto, pd.DataFrame({"a": [1.0]}))


def test_an_invalid_model_file_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_text("not a model")

    with pytest.raises(ConversionError, match="valid ONNX model"):
        wrap(tmp_path / "model.onnx")


def test_mappings_without_classes_are_refused():
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml")
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 2])], []
    )

    with pytest.raises(ConversionError, match="has no classes"):
        wrap(helper.make_model(graph))


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


@pytest.mark.parametrize(("graph", "example", "answer"), WHOLE.values(), ids=WHOLE)
def test_a_graph_without_rows_keeps_its_whole_example_and_no_reference(
    graph, example, answer, tmp_path
):
    arrays = {name: np.array(values, np.float32) for name, values in example.items()}

    save_model(parse_graph(graph), tmp_path / "model", input_example=arrays)

    warm = load_warm(tmp_path / "model", Placement(), 1)
    assert warm.predictor.artifact.reference is None
    assert [tensor.shape for tensor in warm.predictor.schema.tensors] == [
        entry.shape for entry in warm.predictor.artifact.inputs
    ]
    predictions = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(arrays)
    np.testing.assert_array_equal(predictions, np.array(answer, np.float32))


def test_a_graph_without_rows_has_no_reference_data():
    with pytest.raises(InvalidConfig, match=r"reference_data:.*batch dimension.*7"):
        wrap(
            parse_graph(WHOLE["a fixed size"][0]),
            np.zeros(7, np.float32),
            WrapOptions(reference_data=np.zeros(7, np.float32)),
        )


def test_sizes_that_the_graph_leaves_free_stay_free_whatever_the_example_has(tmp_path):
    save_model(
        parse_graph("g (float[N,T] x) => (float[N,T] y) { y = Neg(x) }"),
        tmp_path / "model",
        input_example=np.ones((2, 5), np.float32),
    )

    model = load_model(str(tmp_path / "model"))
    assert model.run(model.schema.from_array([[1.0, 2.0, 3.0]]))["y"].tolist() == [
        [-1.0, -2.0, -3.0]
    ]


def test_texts_of_one_dimension_feed_a_graph_as_objects_and_as_numpys_own(tmp_path):
    texts = np.array(["a", "bc"])

    for number, example in enumerate((texts, texts.astype(object), None)):
        folder = tmp_path / str(number)
        save_model(
            parse_graph("g (string[N] s) => (string[N] t) { t = Identity(s) }"),
            folder,
            input_example=example,
        )
        for array in (texts, texts.astype(object)):
            inputs = array if example is not None else {"s": array}
            assert mlflow.pyfunc.load_model(str(folder)).predict(inputs).tolist() == ["a", "bc"]
