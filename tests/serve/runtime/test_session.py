"""Tests that threads, providers and their options are as configured, and not the
defaults of ONNX Runtime.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from mlflow_deploy_plugin.core.errors import (
    DeviceUnavailable,
    InvalidArtifact,
    InvalidConfig,
    RuntimeMissing,
)
from mlflow_deploy_plugin.core.processes import memory
from mlflow_deploy_plugin.core.spec.parts import ProviderOptions
from mlflow_deploy_plugin.serve.runtime import session
from mlflow_deploy_plugin.serve.runtime.session import (
    OPENVINO,
    Placement,
    available_cores,
    open_session,
)
from tests.support.models import adder, parse_graph
from tests.support.refusals import refused

ALL = ProviderOptions(
    gpu_mem_limit=2**31,
    arena_extend_strategy="kSameAsRequested",
    cudnn_conv_algo_search="HEURISTIC",
    use_tf32=False,
    enable_cuda_graph=True,
)


def test_onnx_runtime_sends_no_telemetry(tmp_path):
    code = (
        "from mlflow_deploy_plugin.serve.runtime.session import import_onnxruntime; "
        "import_onnxruntime()"
    )
    # With the variable CI, ONNX Runtime would disable its telemetry without the setting
    # of onnxserve.
    environment = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("given", "calls"), [(None, 1), ("1", 1), ("0", 0)])
def test_telemetry_of_an_imported_runtime_is_disabled(given, calls, monkeypatch):
    called = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: called.append(True))
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", given or "")
    if given is None:
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    session.import_onnxruntime()
    assert len(called) == calls


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/system.slice/a.service", {"system.slice/a.service/cpu.max": "150000 100000"}, 1),
        ("0::/s/a", {"s/cpu.max": "300000 100000", "s/a/cpu.max": "max 100000"}, 3),
        (
            "4:cpu,cpuacct:/",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            8,
        ),
        (
            "4:cpu,cpuacct:/\n0::/",
            {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        (
            "4:cpu:/docker/1",
            {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"},
            3,
        ),
        (None, {}, 8),
    ],
)
def test_cores_are_limited_by_all_cgroups(tmp_path, monkeypatch, own, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_OWN_CGROUPS", tmp_path / "own")
    if own is not None:
        (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    assert available_cores() == expected


def write_graph(file, form, location):
    """Write a graph whose weight, as one of `FORMS`, is four bytes of another file."""
    weight = onnx.TensorProto(
        name="w", data_type=onnx.TensorProto.FLOAT, dims=[1], data_location="EXTERNAL"
    )
    for key, value in {"location": location, "offset": "0", "length": "4"}.items():
        weight.external_data.add(key=key, value=value)
    graph = parse_graph("g (float[N] x) => (float[N] y) { y = Add(x, w) }")
    if form == "initializer":
        graph.graph.initializer.append(weight)
    elif form == "constant":
        node = onnx.helper.make_node("Constant", [], ["w"], value=weight)
        graph.graph.node.insert(0, node)
    else:
        place = onnx.helper.make_tensor("place", onnx.TensorProto.INT64, [1], [0])
        sparse = onnx.helper.make_sparse_tensor(weight, place, [1])
        graph.graph.sparse_initializer.append(sparse)
    file.write_bytes(graph.SerializeToString())


FORMS = ("initializer", "constant", "sparse")


@pytest.fixture
def file(tmp_path):
    """Return the file of a model next to a secret and to its own weights."""
    (tmp_path / "secret").write_bytes(b"1234")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "model" / "weights").write_bytes(bytes(4))
    return tmp_path / "model" / "model.onnx"


@pytest.mark.parametrize("location", ["../secret", "{folder}/secret", "*/_ORT_MEM_ADDR_/*"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_outside_of_the_folder_are_refused(tmp_path, file, form, location):
    write_graph(file, form, location.format(folder=tmp_path))
    with pytest.raises(InvalidArtifact, match="cannot load"):
        open_session(file)


@pytest.mark.parametrize("location", ["../secret", "{folder}/secret", "link", "*/_ORT_MEM_ADDR_/*"])
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_checked_before_old_openvino(tmp_path, file, monkeypatch, form, location):
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.1")
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: [OPENVINO, "CPUExecutionProvider"]
    )
    write_graph(file, form, "weights")
    assert open_session(file).run(None, {"x": np.ones(1, np.float32)})[0] == 1.0
    write_graph(file, form, location.format(folder=tmp_path))
    with refused(InvalidArtifact, "model.onnx", "weights"):
        open_session(file)


@pytest.mark.parametrize(
    ("placement", "providers"),
    [
        (Placement(), [("CPUExecutionProvider", {})]),
        (Placement("cuda"), [("CUDAExecutionProvider", {"device_id": "0"})]),
        (
            Placement("cuda", 3, ALL),
            [
                (
                    "CUDAExecutionProvider",
                    {
                        "device_id": "3",
                        "gpu_mem_limit": "2147483648",
                        "arena_extend_strategy": "kSameAsRequested",
                        "cudnn_conv_algo_search": "HEURISTIC",
                        "use_tf32": "0",
                        "enable_cuda_graph": "1",
                    },
                )
            ],
        ),
        (
            Placement(
                listed=(
                    {"CUDAExecutionProvider": {"device_id": 1, "use_tf32": False}},
                    {"CPUExecutionProvider": {}},
                )
            ),
            [
                ("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "False"}),
                ("CPUExecutionProvider", {}),
            ],
        ),
    ],
    ids=["cpu", "cuda", "options", "listed"],
)
def test_providers_get_their_options_as_texts(placement, providers):
    assert placement.providers == providers


@pytest.mark.parametrize("device", ["openvino", "tpu"])
def test_unknown_device_is_refused(device):
    with refused(InvalidConfig, f"{device!r} is not one of cpu, cuda"):
        Placement(device)


@pytest.mark.parametrize(
    ("names", "mentioned"),
    [
        (["FooExecutionProvider"], ["FooExecutionProvider", "CPUExecutionProvider"]),
        ([OPENVINO, "CPUExecutionProvider"], ["OpenVINO build", "mlflow-onnxserve[openvino]"]),
        (
            ["AzureExecutionProvider", "CPUExecutionProvider"],
            ["AzureExecutionProvider", "CPUExecutionProvider"],
        ),
    ],
)
def test_unusable_provider_is_refused(tmp_path, names, mentioned):
    if {OPENVINO, *names} & {*onnxruntime.get_available_providers()} - {
        "AzureExecutionProvider",
        "CPUExecutionProvider",
    }:
        pytest.skip("this is not ONNX Runtime's CPU build")
    onnx.save(adder(1), tmp_path / "model.onnx")
    with refused(DeviceUnavailable, "server.providers", *mentioned):
        open_session(tmp_path / "model.onnx", Placement(listed=[{name: {}} for name in names]))


@pytest.mark.parametrize(
    ("listed", "must_equal_cpu"),
    [
        ([{OPENVINO: {}}], True),
        ([{OPENVINO: {"device_type": "CPU", "precision": "FP32", "num_of_threads": 2}}], True),
        ([{OPENVINO: {"precision": "FP16"}}], False),
        ([{OPENVINO: {"device_type": "GPU"}}], False),
        ([{OPENVINO: {}}, {"CPUExecutionProvider": {}}], False),
        ([], False),
    ],
)
def test_openvino_must_equal_the_cpu_in_float32(listed, must_equal_cpu):
    assert Placement(listed=listed).must_equal_cpu is must_equal_cpu


TENSORRT = "TensorrtExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"


def runtime_with(loaded, computing):
    """Return a GPU build of ONNX Runtime whose sessions load these providers, one of
    which computes the model.
    """
    node = SimpleNamespace(op_type="Add")
    part = SimpleNamespace(ep_name=computing, get_nodes=lambda: [node])
    opened = SimpleNamespace(
        get_providers=lambda: loaded, get_provider_graph_assignment_info=lambda: [part]
    )
    return SimpleNamespace(
        __version__="1.31.1",
        get_available_providers=lambda: [TENSORRT, CUDA_PROVIDER, "CPUExecutionProvider"],
        SessionOptions=onnxruntime.SessionOptions,
        InferenceSession=lambda *_, **__: opened,
    )


@pytest.mark.parametrize(
    ("listed", "loaded", "computing", "unused"),
    [
        ([TENSORRT, CUDA_PROVIDER], [TENSORRT, CUDA_PROVIDER], TENSORRT, ""),
        ([TENSORRT, CUDA_PROVIDER], [TENSORRT, CUDA_PROVIDER], CUDA_PROVIDER, TENSORRT),
        ([TENSORRT, CUDA_PROVIDER], [TENSORRT], TENSORRT, CUDA_PROVIDER),
        ([CUDA_PROVIDER, OPENVINO], [CUDA_PROVIDER, OPENVINO], OPENVINO, CUDA_PROVIDER),
    ],
)
def test_only_cuda_after_tensorrt_may_be_idle(listed, loaded, computing, unused, monkeypatch):
    runtime = runtime_with(loaded, computing)
    monkeypatch.setattr(session, "import_onnxruntime", lambda: runtime)
    monkeypatch.setattr(session, "check_device_libraries", lambda *_: None)
    placement = Placement(listed=[{name: {}} for name in listed])

    if unused:
        with refused(DeviceUnavailable, "server.providers", f"not {unused}"):
            open_session(Path("model.onnx"), placement)
    else:
        assert open_session(Path("model.onnx"), placement).get_providers() == loaded


def test_faulty_runtime_version_is_refused(tmp_path, monkeypatch):
    """An environment may have its own ONNX Runtime: the package does not require a
    version, but its extras do.
    """
    onnx.save(adder(1), tmp_path / "model.onnx")
    monkeypatch.setattr(onnxruntime, "__version__", "1.27.0")

    with pytest.raises(RuntimeMissing, match=r"1\.27\.0.*1\.29.*pip install"):
        open_session(tmp_path / "model.onnx")
