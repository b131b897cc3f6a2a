"""Tests that OpenVINO computes the outputs of the CPU provider, and refuses inputs that
it computes incorrectly.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import onnxruntime
import pytest

from mlflow_deploy_plugin.core.errors import (
    DeviceUnavailable,
    InferenceError,
    InvalidArtifact,
)
from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.serve.device import require_device
from mlflow_deploy_plugin.serve.models.loading import load_warm
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import (
    OPENVINO,
    Placement,
    open_session,
    operators_of,
)
from tests.support.models import dense_layer, save_graph, write_model
from tests.support.refusals import mentions, refused

if OPENVINO not in onnxruntime.get_available_providers():
    pytest.skip(
        "this is not ONNX Runtime's OpenVINO build, which test_build.py uses",
        allow_module_level=True,
    )

CPU = "CPUExecutionProvider"
ON_OPENVINO = Placement(listed=({OPENVINO: {}},))
MIXED = Placement(listed=({OPENVINO: {}}, {CPU: {}}))
SIDE = 64
DOUBLES = "doubles (double[N,1] x) => (double[N,1] y) { y = Add(x, x) }"
HALF_DOUBLES = (
    "half (float[N,1] x) => (double[N,1] y) { a = Add(x, x) r = Relu(a) d = Cast<to=11>(r) y = "
    "Mul(d, d) }"
)
FLOATS = "floats (float[N,1] x) => (float[N,1] y) { a = Add(x, x) y = Relu(a) }"
INTEGERS = "sums (int64[N,1] x) => (int64[N,1] y) { y = Add(x, x) }"


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
    return save_graph(tmp_path_factory.mktemp("layer"), dense_layer(SIDE))


def one_tensor(folder, graph, dtype, example=None):
    """Make a model of the tensors x and y, [N, 1]."""
    signature = [{"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1, 1]}, "name": "x"}]
    tensor = {"dtype": dtype, "shape": [-1, 1]}
    outputs = [{"name": "y", **tensor, "role": "values"}]
    model = write_model(
        folder,
        graph,
        signature,
        {"inputs": [{"name": "x", **tensor}], "outputs": outputs, "prediction": ["y"]},
    )
    if example is not None:
        (model / INPUT_EXAMPLE).write_text(json.dumps({"inputs": example}))
    return model


def test_answers_match_the_cpu(layer):
    on_openvino = open_session(layer, ON_OPENVINO)
    on_cpu = open_session(layer)
    random = np.random.default_rng(1)
    batches = [
        random.random((rows, SIDE), dtype=np.float32)
        for rows, _ in product((0, 1, 8, 1, 32, 7, 128), range(10))
    ]
    with ThreadPoolExecutor(4) as pool:
        computed = list(pool.map(lambda x: on_openvino.run(None, {"x": x})[0], batches))
    for x, y in zip(batches, computed, strict=True):
        np.testing.assert_allclose(y, on_cpu.run(None, {"x": x})[0], rtol=1e-5, atol=1e-5)


def test_unsupported_graph_error_names_operators(
    tmp_path,
):
    with refused(DeviceUnavailable, "server.providers", "Add", "--device cpu", f"{OPENVINO},{CPU}"):
        open_session(save_graph(tmp_path, DOUBLES), ON_OPENVINO)


def test_remaining_nodes_run_on_cpu(tmp_path):
    session = open_session(save_graph(tmp_path, HALF_DOUBLES), MIXED)
    assert "Mul" in operators_of(session, CPU)
    assert "Relu" in operators_of(session, OPENVINO)
    assert session.run(None, {"x": np.full((1, 1), 3, np.float32)})[0].tolist() == [[36.0]]


def test_idle_provider_is_refused(tmp_path):
    with refused(DeviceUnavailable, "server.providers", OPENVINO):
        open_session(save_graph(tmp_path, DOUBLES), MIXED)


def test_provider_options_are_passed_on(layer, tmp_path):
    cache = tmp_path / "cache"
    open_session(layer, Placement(listed=({OPENVINO: {"cache_dir": str(cache)}},)))
    assert list(cache.iterdir())
    with refused(DeviceUnavailable, "server.providers", "bogus"):
        open_session(layer, Placement(listed=({OPENVINO: {"bogus": 1}},)))


def test_missing_hardware_is_named():
    require_device(ServerSpec(providers=({OPENVINO: {}},)))
    require_device(ServerSpec(providers=({OPENVINO: {}}, {CPU: {}})))
    with refused(DeviceUnavailable, "server.providers", OPENVINO, "GPU.7"):
        require_device(ServerSpec(providers=({OPENVINO: {"device_type": "GPU.7"}}, {CPU: {}})))


@pytest.mark.parametrize(
    ("graph", "dtype", "value", "word"),
    [
        (INTEGERS, "int64", 2**31, "32 bits"),
        (INTEGERS, "int64", -(2**31) - 1, "32 bits"),
        (INTEGERS, "int64", 2**40, "32 bits"),
        (FLOATS, "float32", np.nan, "NaN"),
    ],
)
def test_unrepresentable_value_is_refused(tmp_path, graph, dtype, value, word):
    model = OnnxModel.load(one_tensor(tmp_path, graph, dtype), ON_OPENVINO)
    largest = 2**30 - 1 if dtype == "int64" else np.inf
    assert model.run({"x": np.array([[largest]], dtype)})["y"].item() == 2 * largest
    with refused(InferenceError, "x", word):
        model.run({"x": np.array([[1], [value]], dtype)})


def test_wrong_example_answer_prevents_loading(tmp_path):
    # OpenVINO limits the sum to 255.
    graph = "bytes (uint8[N,1] x) => (uint8[N,1] y) { y = Add(x, x) }"
    load_warm(one_tensor(tmp_path / "small", graph, "uint8", example=[[100]]), ON_OPENVINO, 1)
    with refused(InvalidArtifact, "OpenVINO", "y", "device cpu"):
        load_warm(one_tensor(tmp_path / "large", graph, "uint8", example=[[200]]), ON_OPENVINO, 1)


def test_zeros_are_not_compared(
    tmp_path,
):
    graph = "ratios (int64[N,1] x) => (int64[N,1] y) { y = Div(x, x) }"
    assert load_warm(one_tensor(tmp_path, graph, "int64"), ON_OPENVINO, 1).predictor.artifact


@pytest.mark.parametrize("value", [None, 2**31])
def test_unrepresentable_example_prevents_loading(tmp_path, value):
    graph, dtype = (FLOATS, "float32") if value is None else (INTEGERS, "int64")
    with refused(InvalidArtifact, INPUT_EXAMPLE, "'x'", "OpenVINO"):
        load_warm(one_tensor(tmp_path, graph, dtype, example=[[1], [value]]), ON_OPENVINO, 1)


def test_server_refuses_partial_graph(tmp_path, serve):
    served = serve(
        str(one_tensor(tmp_path / "model", FLOATS, "float32")), "-C", f"server.providers={OPENVINO}"
    ).wait_ready()
    assert served.predict(21.0).json() == {"predictions": [[42.0]]}
    model = str(one_tensor(tmp_path / "doubles", DOUBLES, "float64"))
    unserved = serve(model, "-C", f"server.providers={OPENVINO}", state="other")
    assert unserved.process.wait(60) == 1
    assert mentions(unserved.log.read_text().splitlines()[-1], "Error", "server.providers", "Add")
