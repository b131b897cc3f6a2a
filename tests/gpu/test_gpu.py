"""Tests that a graph computes the same on GPU and CPU through every API, and that the
provider gets its options.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import requests

from mlflow_deploy_plugin.core.errors import DeviceUnavailable
from mlflow_deploy_plugin.core.spec.parts import ProviderOptions, ServerSpec
from mlflow_deploy_plugin.serve.device import require_device
from mlflow_deploy_plugin.serve.runtime.binding import MAX_GRAPHS, GraphSession
from mlflow_deploy_plugin.serve.runtime.session import Placement, open_session, operators_of
from tests.support.models import dense_layer, save_graph, write_model
from tests.support.refusals import refused

SIDE = 64
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
TEXTS = "texts (string[N] text) => (string[N] y) { y = StringConcat(text, text) }"
HALF_TEXTS = """half (float[N] x, string[N] text) => (float[N] double, string[N] y) {
  double = Add(x, x)
  y = StringConcat(text, text)
}"""
WAYS = {
    "plain": Placement("cuda", options=ProviderOptions(use_tf32=False)),
    "graphs": Placement("cuda", options=ProviderOptions(use_tf32=False, enable_cuda_graph=True)),
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return save_graph(tmp_path_factory.mktemp("layer"), dense_layer(SIDE))


def runner(graph, placement):
    session = open_session(graph, placement)
    run = (
        GraphSession(session, placement).run if placement.options.enable_cuda_graph else session.run
    )
    return lambda x: run(["y"], {"x": x})[0]


@pytest.mark.parametrize("placement", WAYS.values(), ids=WAYS)
def test_answers_match_the_cpu(graph, placement):
    on_gpu = runner(graph, placement)
    on_cpu = runner(graph, Placement())
    random = np.random.default_rng(1)
    batches = [
        random.random((rows, SIDE), dtype=np.float32)
        for rows, _ in product((1, 8, 1, 32, 7, 8, 128), range(20))
    ]
    with ThreadPoolExecutor(8) as pool:
        computed = list(pool.map(on_gpu, batches))
    for x, y in zip(batches, computed, strict=True):
        np.testing.assert_allclose(y, on_cpu(x), rtol=1e-5, atol=1e-5)


def test_shapes_above_graph_limit_are_computed(graph):
    placement = WAYS["graphs"]
    on_cpu = runner(graph, Placement())
    session = GraphSession(open_session(graph, placement), placement)
    random = np.random.default_rng(3)
    batches = [
        random.random((rows, SIDE), dtype=np.float32)
        for _, rows in product(range(3), range(1, MAX_GRAPHS + 6))
    ]
    with ThreadPoolExecutor(8) as pool:
        computed = list(pool.map(lambda x: session.run(["y"], {"x": x})[0], batches))
    for x, y in zip(
        batches, computed, strict=True
    ):  # Later runs would overwrite an answer that is not a copy.
        np.testing.assert_allclose(y, on_cpu(x), rtol=1e-5, atol=1e-5)
    assert len(session._graphs) == MAX_GRAPHS


def test_ended_threads_free_gpu_memory(graph):
    pynvml = pytest.importorskip("pynvml")
    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    run = runner(graph, WAYS["graphs"])
    x = np.ones((8, SIDE), np.float32)
    run(x)
    before = pynvml.nvmlDeviceGetMemoryInfo(device).used
    for _ in range(20):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(run, x).result()
    # It was 73 MiB per thread.
    assert pynvml.nvmlDeviceGetMemoryInfo(device).used - before < 200 * 2**20


def test_provider_options_are_passed_on(graph):
    options = ProviderOptions(
        gpu_mem_limit=2**30,
        arena_extend_strategy="kSameAsRequested",
        cudnn_conv_algo_search="HEURISTIC",
        use_tf32=False,
    )
    placement = Placement("cuda", options=options)
    provider_options = dict(placement.providers)["CUDAExecutionProvider"]
    session_options = open_session(graph, placement).get_provider_options()["CUDAExecutionProvider"]
    assert {name: session_options[name] for name in provider_options} == provider_options


def test_memory_limit_is_enforced(graph):
    run = runner(graph, Placement("cuda", options=ProviderOptions(gpu_mem_limit=2**20)))
    with pytest.raises(Exception, match=r"(?i)memory|alloc"):
        run(np.ones((2**16, SIDE), np.float32))


def test_missing_gpu_is_refused():
    with pytest.raises(DeviceUnavailable, match=r"^--device cuda.*GPU 63"):
        require_device(ServerSpec(device="cuda", device_ids=(63,)))


def test_graph_with_cpu_node_is_refused(tmp_path):
    with refused(
        DeviceUnavailable, "--device cuda", "StringConcat", "--device cpu", f"{CUDA},{CPU}"
    ):
        open_session(save_graph(tmp_path, TEXTS), Placement("cuda"))


def test_remaining_nodes_run_on_listed_cpu(tmp_path):
    listed = (
        {CUDA: {"device_id": 0, "use_tf32": False}},
        {CPU: {}},
    )
    session = open_session(save_graph(tmp_path, HALF_TEXTS), Placement(listed=listed))
    assert "StringConcat" in operators_of(session, CPU)
    assert "Add" in operators_of(session, CUDA)
    assert session.get_provider_options()[CUDA]["use_tf32"] == "0"
    x = np.ones(1, np.float32)
    text = np.array(["a"])
    assert [array.tolist() for array in session.run(None, {"x": x, "text": text})] == [
        [2.0],
        ["aa"],
    ]
    with refused(DeviceUnavailable, "server.providers", "StringConcat"):
        open_session(save_graph(tmp_path, HALF_TEXTS), Placement(listed=listed[:1]))
    with refused(DeviceUnavailable, "server.providers", CUDA):
        open_session(save_graph(tmp_path, TEXTS), Placement(listed=listed))


def test_server_answers_and_reports_gpu_memory(tmp_path, serve):
    signature = [
        {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 1]}, "name": "x"}
    ]
    section = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 1]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [-1, 1], "role": "values"}],
        "prediction": ["y"],
    }
    graph = "one (float[N,1] x) => (float[N,1] y) { y = Add(x, x) }"
    model = write_model(tmp_path / "model", graph, signature, section)
    options = ("-C", "server.provider_options.enable_cuda_graph=true", "-C", "server.device_ids=0")
    served = serve(str(model), "--device", "cuda", *options).wait_ready()
    assert served.predict(21.0).json() == {"predictions": [[42.0]]}
    for rows in range(1, MAX_GRAPHS + 3):
        answer = requests.post(
            f"{served.url}/invocations", json={"inputs": [[21.0]] * rows}, timeout=30
        )
        assert answer.json() == {"predictions": [[42.0]] * rows}
    page = requests.get(f"{served.url}/metrics", timeout=30).text
    pytest.importorskip("pynvml")
    assert 'onnxserve_gpu_memory_used_bytes{gpu="0"' in page
