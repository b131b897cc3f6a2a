"""Tests that OpenVINO computes the outputs of the CPU provider, and refuses inputs that
it computes incorrectly.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from mlflow_deploy_plugin.core.errors import (
    DeviceUnavailable,
    InferenceError,
    InvalidArtifact,
    RuntimeMissing,
)
from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.serve.device import require_device
from mlflow_deploy_plugin.serve.models.loading import load_warm
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import (
    ON_CPU,
    OPENVINO,
    Placement,
    open_session,
    operators_of,
    session_options,
)
from tests.support.models import dense_layer, parse_graph, save_graph, write_model
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


def test_the_answers_are_those_of_the_cpu_for_every_batch_and_thread(layer):
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


def test_the_profiler_sees_only_openvino(layer, tmp_path):
    options = session_options(onnxruntime, 1)
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(str(layer), options, providers=ON_OPENVINO.providers)
    session.run(None, {"x": np.ones((2, SIDE), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    assert {
        event["args"]["provider"] for event in events if "provider" in event.get("args", {})
    } == {OPENVINO}


def test_a_run_uses_as_many_threads_as_it_is_given(layer):
    session = open_session(layer, ON_OPENVINO, intra_op_num_threads=1)
    x = np.ones((4096, SIDE), np.float32)
    session.run(None, {"x": x})
    wall = time.perf_counter()
    cpu = time.process_time()
    for _ in range(100):
        session.run(None, {"x": x})
    assert time.process_time() - cpu < 1.3 * (time.perf_counter() - wall)


def test_a_graph_that_openvino_cannot_compute_is_refused_with_its_operators_and_two_remedies(
    tmp_path,
):
    with refused(DeviceUnavailable, "server.providers", "Add", "--device cpu", f"{OPENVINO},{CPU}"):
        open_session(save_graph(tmp_path, DOUBLES), ON_OPENVINO)


def test_a_list_with_the_cpu_computes_the_rest_there(tmp_path):
    session = open_session(save_graph(tmp_path, HALF_DOUBLES), MIXED)
    assert "Mul" in operators_of(session, CPU)
    assert "Relu" in operators_of(session, OPENVINO)
    assert session.run(None, {"x": np.full((1, 1), 3, np.float32)})[0].tolist() == [[36.0]]


def test_provider_list_with_an_idle_provider_is_refused(tmp_path):
    with refused(DeviceUnavailable, "server.providers", OPENVINO):
        open_session(save_graph(tmp_path, DOUBLES), MIXED)


def test_the_options_of_a_listed_provider_are_passed_on(layer, tmp_path):
    cache = tmp_path / "cache"
    open_session(layer, Placement(listed=({OPENVINO: {"cache_dir": str(cache)}},)))
    assert list(cache.iterdir())
    with refused(DeviceUnavailable, "server.providers", "bogus"):
        open_session(layer, Placement(listed=({OPENVINO: {"bogus": 1}},)))


def test_hardware_that_is_missing_is_named_before_the_start():
    require_device(ServerSpec(providers=({OPENVINO: {}},)))
    require_device(ServerSpec(providers=({OPENVINO: {}}, {CPU: {}})))
    with refused(DeviceUnavailable, "server.providers", OPENVINO, "GPU.7"):
        require_device(ServerSpec(providers=({OPENVINO: {"device_type": "GPU.7"}}, {CPU: {}})))


def test_a_forest_is_not_computed_by_an_old_cpu_provider(tmp_path):
    tree = onnx.helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0],
        nodes_nodeids=[0],
        nodes_featureids=[0],
        nodes_modes=["LEAF"],
        nodes_values=[0.0],
        nodes_truenodeids=[0],
        nodes_falsenodeids=[0],
        target_treeids=[0],
        target_nodeids=[0],
        target_ids=[0],
        target_weights=[1.0],
    )
    model = parse_graph("forest (float[N,1] x) => (float[N,1] y) { y = Identity(x) }")
    model.graph.node[0].CopyFrom(tree)
    with refused(RuntimeMissing, onnxruntime.__version__, "forest", "pip install"):
        open_session(save_graph(tmp_path, model), ON_CPU)


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**40])
def test_an_integer_above_32_bits_is_refused_by_the_name_of_its_input(tmp_path, value):
    model = OnnxModel.load(one_tensor(tmp_path, INTEGERS, "int64"), ON_OPENVINO)
    assert model.run({"x": np.array([[2**30 - 1], [-(2**30)]])})["y"].tolist() == [
        [2**31 - 2],
        [-(2**31)],
    ]
    with refused(InferenceError, "x", "32 bits"):
        model.run({"x": np.array([[1], [value]])})


def test_a_missing_value_is_refused_because_openvino_makes_it_a_number(tmp_path):
    model = OnnxModel.load(one_tensor(tmp_path, FLOATS, "float32"), ON_OPENVINO)
    assert model.run({"x": np.array([[np.inf], [-1]], np.float32)})["y"].tolist() == [
        [np.inf],
        [0.0],
    ]
    with refused(InferenceError, "x", "NaN"):
        model.run({"x": np.array([[1.0], [np.nan]], np.float32)})


def test_a_version_whose_example_openvino_computes_incorrectly_is_not_loaded(tmp_path):
    # OpenVINO limits the sum to 255.
    graph = "bytes (uint8[N,1] x) => (uint8[N,1] y) { y = Add(x, x) }"
    load_warm(one_tensor(tmp_path / "small", graph, "uint8", example=[[100]]), ON_OPENVINO, 1)
    with refused(InvalidArtifact, "OpenVINO", "y", "device cpu"):
        load_warm(one_tensor(tmp_path / "large", graph, "uint8", example=[[200]]), ON_OPENVINO, 1)


def test_zeros_are_not_compared_because_the_old_cpu_provider_crashes_at_a_division_by_zero(
    tmp_path,
):
    graph = "ratios (int64[N,1] x) => (int64[N,1] y) { y = Div(x, x) }"
    assert load_warm(one_tensor(tmp_path, graph, "int64"), ON_OPENVINO, 1).predictor.artifact


@pytest.mark.parametrize("value", [None, 2**31])
def test_a_version_whose_example_openvino_cannot_represent_is_not_loaded(tmp_path, value):
    graph, dtype = (FLOATS, "float32") if value is None else (INTEGERS, "int64")
    with refused(InvalidArtifact, INPUT_EXAMPLE, "'x'", "OpenVINO"):
        load_warm(one_tensor(tmp_path, graph, dtype, example=[[1], [value]]), ON_OPENVINO, 1)


def test_a_server_answers_over_http_and_does_not_start_if_a_node_remains(tmp_path, serve):
    served = serve(
        str(one_tensor(tmp_path / "model", FLOATS, "float32")), "-C", f"server.providers={OPENVINO}"
    ).wait_ready()
    assert served.predict(21.0).json() == {"predictions": [[42.0]]}
    model = str(one_tensor(tmp_path / "doubles", DOUBLES, "float64"))
    unserved = serve(model, "-C", f"server.providers={OPENVINO}", state="other")
    assert unserved.process.wait(60) == 1
    assert mentions(unserved.log.read_text().splitlines()[-1], "Error", "server.providers", "Add")
