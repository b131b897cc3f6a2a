"""Tests that runs with CUDA graphs answer as plain runs do. They use CPU memory;
tests/gpu tests a GPU.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import InferenceError
from mlflow_deploy_plugin.core.spec.parts import ProviderOptions
from mlflow_deploy_plugin.serve.runtime import binding
from mlflow_deploy_plugin.serve.runtime.binding import (
    MAX_GRAPHS,
    CudaGraph,
    GraphSession,
    can_bind,
    pinned_empty,
)
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import Placement, open_session
from tests.support.models import (
    graph_tensor,
    numbers_section,
    parse_graph,
    tensor_column,
    write_model,
)

GRAPH = """
two (float[N,4] x, int64[N] k) => (float[N,4] y, int64[N,1] best, float[N] total) {
  f = Cast<to=1>(k)
  axis = Constant<value_ints=[1]>()
  column = Unsqueeze(f, axis)
  y = Mul(x, column)
  best = ArgMax<axis=1>(y)
  total = ReduceSum<keepdims=0>(y, axis)
}"""
NAMES = ["y", "best", "total"]
# A CPU does not capture graphs, but the inputs and outputs are at fixed addresses.
PLACEMENT = Placement(options=ProviderOptions(enable_cuda_graph=True))
random = np.random.default_rng(0)


def feeds(rows):
    return {"x": random.random((rows, 4), dtype=np.float32), "k": random.integers(-9, 9, rows)}


@pytest.fixture
def session(tmp_path):
    (tmp_path / "two.onnx").write_bytes(parse_graph(GRAPH).SerializeToString())
    return open_session(tmp_path / "two.onnx")


def assert_equal(bound, session, inputs, *names):
    plain = session.run(names, inputs)
    for array, expected in zip(bound.run(names, inputs), plain, strict=True):
        np.testing.assert_array_equal(array, expected, strict=True)


def test_graph_runs_equal_plain_runs(session):
    bound = GraphSession(session, PLACEMENT)
    results = []
    for rows in (1, 8, 1, 3, 8, 0, 3):
        inputs = feeds(rows)
        for names in (NAMES, ["total"]):
            results += zip(bound.run(names, inputs), session.run(names, inputs), strict=True)
    # Compare at the end, to detect that a later run has overwritten an earlier answer.
    for array, expected in results:
        np.testing.assert_array_equal(array, expected, strict=True)


def test_threads_do_not_share_buffers(session):
    bound = GraphSession(session, PLACEMENT)

    def ask(number):
        inputs = feeds(1 + number % 3)
        return all(map(np.array_equal, bound.run(NAMES, inputs), session.run(NAMES, inputs)))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(400)))


def test_inputs_may_be_strided(session):
    x = np.asfortranarray(random.random((5, 4), dtype=np.float32))
    inputs = {"x": x, "k": np.arange(10)[::2]}
    assert_equal(GraphSession(session, PLACEMENT), session, inputs, "y")


def test_shapes_above_the_limit_have_no_graph(session):
    bound = GraphSession(session, PLACEMENT)
    for rows in range(1, MAX_GRAPHS + 3):
        assert_equal(bound, session, feeds(rows), "total")
    assert len(bound._graphs) == MAX_GRAPHS


def test_failed_capture_runs_without_a_graph(session, monkeypatch):
    def fail(self, feeds):
        raise RuntimeError("operation not permitted when stream is capturing")

    bound = GraphSession(session, PLACEMENT)
    with monkeypatch.context() as patch:
        patch.setattr(CudaGraph, "run", fail)
        assert_equal(bound, session, feeds(3), "y")
    monkeypatch.setattr(CudaGraph, "__init__", fail)  # A second attempt is an error.
    assert_equal(bound, session, feeds(3), "y")


def test_model_runs_through_graphs(tmp_path):
    signature = [tensor_column("float32", -1, 4, name="x")]
    graph = "one (float[N,4] x) => (float[N,4] y) { y = Add(x, x) }"
    section = numbers_section(graph_tensor("x", "float32", -1, 4), shape=(4,))
    model = OnnxModel.load(write_model(tmp_path / "model", graph, signature, section), PLACEMENT)
    x = random.random((2, 4), dtype=np.float32)
    np.testing.assert_array_equal(model.run({"x": x})["y"], x + x)
    model.try_out({"x": x}, 10)
    with pytest.raises(InferenceError, match="cannot compute"):
        model.run({"x": np.ones((2, 5), np.float32)})


@pytest.mark.parametrize(
    "graph",
    [
        "text (string[N] x) => (string[N] y) { y = Identity(x) }",
        "one (float[N] x) => (int64[1,M] y) { y = NonZero(x) }",
    ],
    ids=["texts", "shapes from data"],
)
def test_texts_and_data_dependent_shapes_are_not_bound(tmp_path, graph):
    (tmp_path / "model.onnx").write_bytes(parse_graph(graph).SerializeToString())
    assert not can_bind(open_session(tmp_path / "model.onnx"))


def test_memory_without_cuda_is_ordinary(monkeypatch):
    class Runtime:
        def cudaSetDevice(self, device_id):  # noqa: N802 - CUDA defines this name.
            return 100  # cudaErrorNoDevice

    for runtime in (None, Runtime()):
        monkeypatch.setattr(binding, "_cuda_runtime", lambda runtime=runtime: runtime)
        array = pinned_empty((3, 2), np.float16, 0)
        array[:] = 1
        assert array.shape == (3, 2)
        assert array.dtype == np.float16
