"""Forms of a graph have smaller numbers, the same inputs and outputs, and nearly equal
answers.
"""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.optimization import forms
from tests.support.models import parse_graph
from tests.support.networks import network, network_rows

Form = Callable[[onnx.ModelProto], onnx.ModelProto]

ROWS = network_rows(300)
FEEDS = [{"x": ROWS[:100]}]
TREE = parse_graph(
    """tree (float[N,2] x) => (float[N,1] y) {
      y = ai.onnx.ml.TreeEnsembleRegressor <n_targets = 1, nodes_featureids = [0, 0, 0], \
nodes_modes = ["BRANCH_LEQ",
        "LEAF", "LEAF"], nodes_nodeids = [0, 1, 2], nodes_treeids = [0, 0, 0], \
nodes_values = [0.5, 0.0, 0.0],
        nodes_truenodeids = [1, 0, 0], nodes_falsenodeids = [2, 0, 0], target_ids = [0, 0], \
target_nodeids = [1, 2],
        target_treeids = [0, 0], target_weights = [1.0, 2.0]> (x) }"""
)


def answers(graph, rows=ROWS):
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    label, probabilities = session.run(["label", "probabilities"], {"x": rows})
    return label, probabilities


@pytest.mark.parametrize(
    ("make", "most_bytes"),
    [
        (forms.int8_dynamic, 0.4),
        (lambda graph: forms.int8_static(graph, FEEDS), 0.4),
        (lambda graph: forms.int8_static(graph, FEEDS, per_channel=False), 0.4),
        (lambda graph: forms.half_precision(graph, FEEDS), 0.6),
    ],
    ids=["dynamic", "static", "a scale for each tensor", "fp16"],
)
def test_a_form_is_smaller_with_the_same_inputs_and_outputs_and_nearly_the_same_answers(
    make, most_bytes
):
    base = network()
    before = base.SerializeToString()
    form = make(base)
    assert form.ByteSize() < most_bytes * len(before)
    assert base.SerializeToString() == before
    for side in ("input", "output"):
        kinds = [
            [(value.name, value.type.tensor_type.elem_type) for value in getattr(m.graph, side)]
            for m in (base, form)
        ]
        assert kinds[0] == kinds[1]
    (label, probabilities), (expected, wanted) = answers(form), answers(base)
    assert (label == expected).mean() > 0.95
    assert np.abs(probabilities - wanted).max() < 0.1


@pytest.mark.parametrize("hidden", [(8, 8), (16, 8)], ids=["square", "two towers"])
def test_layers_that_share_their_weights_are_quantized_alike(hidden):
    random = np.random.default_rng(0)
    width, size = hidden
    graph = parse_graph(
        f"""shared (float[N,{size}] x) => (float[N,{width}] left, float[N,{width}] right) {{
          turned = Neg (x)
          left = Gemm <transB = 1> (x, weights)
          right = Gemm <transB = 1> (turned, weights)
        }}"""
    )
    graph.graph.initializer.append(
        numpy_helper.from_array(random.normal(size=hidden).astype(np.float32), "weights")
    )
    rows = {"x": random.normal(size=(50, size)).astype(np.float32)}

    form = forms.int8_dynamic(graph)

    wanted, quantized = (
        onnxruntime.InferenceSession(
            item.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run(None, rows)
        for item in (graph, form)
    )
    for item, other in zip(wanted, quantized, strict=True):
        np.testing.assert_allclose(other, item, atol=0.2)


@pytest.mark.parametrize("mask", ["-inf", "-3.4e38", "-1e9"])
def test_a_mask_of_attention_leaves_the_scale_of_the_scores(mask):
    random = np.random.default_rng(0)
    graph = parse_graph(
        f"""masked (float[N,4,8] x, bool[N,4,8] hidden) => (float[N,4,8] y)
          <float least = {{{mask}}}, float none = {{0.0}}> {{
          scores = MatMul (x, weights)
          mask = Where (hidden, least, none)
          seen = Add (scores, mask)
          y = Softmax (seen)
        }}"""
    )
    graph.graph.initializer.append(
        numpy_helper.from_array(random.normal(size=(8, 8)).astype(np.float32), "weights")
    )
    rows = {
        "x": random.normal(size=(100, 4, 8)).astype(np.float32),
        "hidden": random.random((100, 4, 8)) > 0.7,
    }

    form = forms.int8_static(graph, [rows])

    wanted, quantized = (
        onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run(None, rows)[0]
        for model in (graph, form)
    )
    np.testing.assert_allclose(quantized, wanted, atol=0.1)


def test_numbers_that_overflow_16_bits_stay_in_32():
    graph = network(gain=1e6)
    form = forms.half_precision(graph, FEEDS)
    onnx.checker.check_model(form)
    (expected, _), (label, probabilities) = answers(graph), answers(form)
    assert np.isfinite(probabilities).all()
    assert (label == expected).mean() > 0.98
    kinds = {tensor.name: tensor.data_type for tensor in form.graph.initializer}
    assert kinds["w0"] == TensorProto.FLOAT  # Its sums reach millions.
    assert TensorProto.FLOAT16 in kinds.values()


def test_a_graph_of_16_bits_has_nothing_to_halve():
    graph = parse_graph("half (float16[N,2] x) => (float16[N,2] y) { y = MatMul (x, weights) }")
    graph.graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float16), "weights"))

    with pytest.raises(ConversionError, match="no 32-bit weight"):
        forms.half_precision(graph, [{"x": np.ones((3, 2), np.float16)}])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            forms.int8_dynamic,
            "it has no MatMul, Gemm, LSTM (its operators are TreeEnsembleRegressor)",
        ),
        (
            lambda graph: forms.int8_static(graph, [{"x": ROWS[:, :2]}]),
            "it has no Conv, MatMul, Gemm (its operators are",
        ),
        (
            lambda graph: forms.half_precision(graph, [{"x": ROWS[:, :2]}]),
            "no 32-bit weight can be converted to 16",
        ),
    ],
)
def test_trees_have_no_such_form_and_the_reason_names_their_operator(make, reason):
    with pytest.raises(ConversionError) as refused:
        make(TREE)
    assert refused.value.message.startswith(reason)


def test_a_graph_that_cannot_be_loaded_is_refused_with_the_reason_of_the_runtime():
    graph = network()
    graph.graph.node[0].op_type = "Gemmm"
    with pytest.raises(ConversionError, match=r"cannot load.*Gemmm"):
        forms.int8_dynamic(graph)
