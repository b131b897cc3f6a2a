"""Forms of a graph have smaller numbers, the same inputs and outputs, and nearly equal
answers.
"""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.optimization import forms
from tests.support.models import parse_graph
from tests.support.networks import network, network_rows
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused

ROWS = network_rows(300)
FEEDS = [{"x": ROWS[:100]}]
TREE_FEEDS = [{"x": ROWS[:, :2]}]
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


def run(graph, feeds):
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def answers(graph, rows=ROWS):
    label, probabilities = run(graph, {"x": rows})
    return label, probabilities


def weights(*shape):
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    return numpy_helper.from_array(values, "weights")


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
def test_form_is_smaller_and_close(make, most_bytes):
    base = network()
    before = base.SerializeToString()
    form = make(base)
    assert form.ByteSize() < most_bytes * len(before)
    assert base.SerializeToString() == before
    for side in ("input", "output"):
        kinds, same = (
            [(value.name, value.type.tensor_type.elem_type) for value in getattr(m.graph, side)]
            for m in (base, form)
        )
        assert kinds == same
    (label, probabilities), (expected, wanted) = answers(form), answers(base)
    assert (label == expected).mean() > 0.95
    assert np.abs(probabilities - wanted).max() < 0.1


@pytest.mark.parametrize("hidden", [(8, 8), (16, 8)], ids=["square", "two towers"])
def test_shared_weights_are_quantized(hidden):
    width, size = hidden
    graph = parse_graph(
        f"""shared (float[N,{size}] x) => (float[N,{width}] left, float[N,{width}] right) {{
          turned = Neg (x)
          left = Gemm <transB = 1> (x, weights)
          right = Gemm <transB = 1> (turned, weights)
        }}"""
    )
    graph.graph.initializer.append(weights(*hidden))
    rows = {"x": normal_rows(50, size).astype(np.float32)}

    for other, item in zip(run(forms.int8_dynamic(graph), rows), run(graph, rows), strict=True):
        np.testing.assert_allclose(other, item, atol=0.2)


@pytest.mark.parametrize("mask", ["-inf", "-3.4e38", "-1e9"])
def test_mask_of_attention_keeps_the_scale(mask):
    graph = parse_graph(
        f"""masked (float[N,4,8] x, bool[N,4,8] hidden) => (float[N,4,8] y)
          <float least = {{{mask}}}, float none = {{0.0}}> {{
          scores = MatMul (x, weights)
          mask = Where (hidden, least, none)
          seen = Add (scores, mask)
          y = Softmax (seen)
        }}"""
    )
    graph.graph.initializer.append(weights(8, 8))
    numbers = normal_rows(100, 4, 8)
    rows = {"x": numbers.astype(np.float32), "hidden": numbers > 0.5}

    [quantized] = run(forms.int8_static(graph, [rows]), rows)
    np.testing.assert_allclose(quantized, run(graph, rows)[0], atol=0.1)


def test_overflowing_numbers_stay_in_32_bits():
    graph = network(gain=1e6)
    form = forms.half_precision(graph, FEEDS)
    onnx.checker.check_model(form)
    (expected, _), (label, probabilities) = answers(graph), answers(form)
    assert np.isfinite(probabilities).all()
    assert (label == expected).mean() > 0.98
    kinds = {tensor.name: tensor.data_type for tensor in form.graph.initializer}
    assert kinds["w0"] == TensorProto.FLOAT  # Its sums reach millions.
    assert TensorProto.FLOAT16 in kinds.values()


def test_16_bit_graph_has_no_form():
    graph = parse_graph("half (float16[N,2] x) => (float16[N,2] y) { y = MatMul (x, weights) }")
    graph.graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float16), "weights"))

    with refused(ConversionError, "no 32-bit weight"):
        forms.half_precision(graph, [{"x": np.ones((3, 2), np.float16)}])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (forms.int8_dynamic, ("MatMul, Gemm, LSTM", "TreeEnsembleRegressor")),
        (lambda graph: forms.int8_static(graph, TREE_FEEDS), ("Conv, MatMul, Gemm",)),
        (lambda graph: forms.half_precision(graph, TREE_FEEDS), ("32-bit weight",)),
    ],
)
def test_trees_have_no_form(make, words):
    with refused(ConversionError, *words):
        make(TREE)


def test_invalid_graph_is_refused():
    graph = network()
    graph.graph.node[0].op_type = "Gemmm"
    with refused(ConversionError, "cannot load", "Gemmm"):
        forms.int8_dynamic(graph)
