"""The place where a session computes: the device, which one of several, and the options of ONNX Runtime's providers."""

from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.spec import Device, ProviderOptions

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
_OF_TENSORRT = "trt_"
_DEFAULTS = ProviderOptions()


@dataclass(frozen=True)
class Placement:
    """The device of a session.

    Attributes:
        device_id: the GPU, as CUDA counts them.
        options: those of the providers; what is not said has ONNX Runtime's default.
        engine_cache: the folder that keeps TensorRT's engines, unless the options name one; None: none are kept.
        io_binding: inputs are copied into page-locked buffers first (`runtime/binding.py`); CUDA graphs need that.
    """

    device: Device = "cpu"
    device_id: int = 0
    options: ProviderOptions = _DEFAULTS
    engine_cache: Path | None = None
    io_binding: bool = False

    @property
    def is_bound(self) -> bool:
        return self.io_binding or self.options.enable_cuda_graph

    @property
    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """ONNX Runtime's providers in the order of preference, each with its options; never the CPU beside a GPU.

        https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html and TensorRT-ExecutionProvider.html
        have the names and values.
        """
        if self.device == "cpu":
            return [(CPU_PROVIDER, {})]
        said = self.options.model_dump(exclude_none=True, exclude={"enable_cuda_graph"})
        texts = {name: str(int(value)) if isinstance(value, bool) else str(value) for name, value in said.items()}
        cuda = {name: text for name, text in texts.items() if not name.startswith(_OF_TENSORRT)}
        cuda["device_id"] = str(self.device_id)
        if self.device == "cuda":
            return [(CUDA_PROVIDER, cuda | ({"enable_cuda_graph": "1"} if self.options.enable_cuda_graph else {}))]
        tensorrt = {name: text for name, text in texts.items() if name.startswith(_OF_TENSORRT)}
        tensorrt["device_id"] = str(self.device_id)
        folder = self.options.trt_engine_cache_path or self.engine_cache
        if folder is not None:
            tensorrt |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}
        if self.options.enable_cuda_graph:
            tensorrt["trt_cuda_graph_enable"] = "1"
        return [(TENSORRT_PROVIDER, tensorrt), (CUDA_PROVIDER, cuda)]
