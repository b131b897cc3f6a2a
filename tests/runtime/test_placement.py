"""The options of a spec reach ONNX Runtime's providers by names and values that they take."""

import re
from pathlib import Path

import onnxruntime
import pytest

from mlflow_deploy_plugin.runtime import Placement
from mlflow_deploy_plugin.spec import ProviderOptions

CUDA = {
    "arena_extend_strategy",
    "cudnn_conv1d_pad_to_nc1d",
    "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace",
    "device_id",
    "do_copy_in_default_stream",
    "enable_cuda_graph",
    "enable_cudnn",
    "fuse_conv_bias",
    "gpu_external_alloc",
    "gpu_external_empty_cache",
    "gpu_external_free",
    "gpu_mem_limit",
    "has_user_compute_stream",
    "prefer_nhwc",
    "sdpa_kernel",
    "tunable_op_enable",
    "tunable_op_tuning_enable",
    "use_ep_level_unified_stream",
    "use_tf32",
}
"""All that the CUDA provider of onnxruntime-gpu 1.31.1 does not answer by "Unknown provider option": every word of its
library was tried, behind an empty libcuda.so.1, since options are parsed before a GPU is looked for."""
TENSORRT = {"device_id", "trt_cuda_graph_enable", "trt_engine_cache_enable", "trt_engine_cache_path", "trt_fp16_enable"}
"""Of the words of its TensorRT provider's library, those that are used here."""
ALL = ProviderOptions(
    gpu_mem_limit=2**31,
    arena_extend_strategy="kSameAsRequested",
    cudnn_conv_algo_search="HEURISTIC",
    use_tf32=False,
    enable_cuda_graph=True,
    trt_fp16_enable=True,
)


def test_a_cpu_has_no_options_and_no_company() -> None:
    assert Placement().providers == [("CPUExecutionProvider", {})]


def test_what_is_not_said_is_left_to_onnx_runtime() -> None:
    assert Placement("cuda").providers == [("CUDAExecutionProvider", {"device_id": "0"})]


def test_cuda_gets_its_options_as_texts() -> None:
    options = ALL.model_copy(update={"trt_fp16_enable": None})
    ((name, given),) = Placement("cuda", 3, options, Path("/engines")).providers
    assert name == "CUDAExecutionProvider"
    assert given == {
        "device_id": "3",
        "gpu_mem_limit": "2147483648",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
        "enable_cuda_graph": "1",
    }
    assert set(given) <= CUDA


def test_tensorrt_stands_before_cuda_and_keeps_its_engines() -> None:
    tensorrt, cuda = Placement("tensorrt", 1, ALL, Path("/state/engines")).providers
    assert tensorrt == (
        "TensorrtExecutionProvider",
        {
            "device_id": "1",
            "trt_fp16_enable": "1",
            "trt_cuda_graph_enable": "1",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": "/state/engines",
        },
    )
    assert cuda[0] == "CUDAExecutionProvider"
    assert "enable_cuda_graph" not in cuda[1]
    assert set(tensorrt[1]) <= TENSORRT
    assert set(cuda[1]) <= CUDA
    own = ProviderOptions(trt_engine_cache_path="/fast/disk")
    assert Placement("tensorrt", 0, own, Path("/state")).providers[0][1]["trt_engine_cache_path"] == "/fast/disk"


@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="no GPU build")
@pytest.mark.parametrize(("library", "names"), [("cuda", CUDA), ("tensorrt", TENSORRT)])
def test_this_gpu_build_knows_every_name(library: str, names: set[str]) -> None:
    file = Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime_providers_{library}.so"
    words = set(re.findall(rb"[a-z][a-z0-9_]+(?=\0)", file.read_bytes()))
    assert {name for name in names if name.encode() not in words} == set()
