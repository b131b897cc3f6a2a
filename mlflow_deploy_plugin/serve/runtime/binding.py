"""ONNX Runtime's IO binding: a session runs with its inputs in buffers at fixed addresses.

On the host, an input is in page-locked ("pinned") memory, which a GPU reads without an additional copy by the driver.
CUDA graphs need inputs and outputs at fixed addresses, which only one run at a time can use. Each input shape has a
CUDA graph, identified by the run option `gpu_graph_id`; -1 runs without a CUDA graph. See `benchmarks/gpu.py`.
https://onnxruntime.ai/docs/performance/device-tensor.html
https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview
"""

import ctypes
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlflow_deploy_plugin.serve.runtime.feeds import Array, Dtype, Feeds
from mlflow_deploy_plugin.serve.runtime.session import Placement, import_onnxruntime

if TYPE_CHECKING:
    import onnxruntime as ort

MAX_GRAPHS = 16
"""The maximum number of shapes with a CUDA graph. Each graph keeps its memory. The warm-up creates the first graphs."""
MAX_IDLE_BUFFERS = 32
_GRAPH_ID, _NO_GRAPH = "gpu_graph_id", "-1"
_CUDA_RUNTIMES = ("libcudart.so.13", "libcudart.so.12")


class Buffers:
    """Buffers for inputs of one shape, used by one run at a time. All inputs are bound in `binding`."""

    def __init__(
        self, session: "ort.InferenceSession", placement: Placement, feeds: Feeds, names: Sequence[str]
    ) -> None:
        self._memory = "cpu" if placement.device == "cpu" else "cuda"
        self._device_id = placement.device_id
        self.binding = session.io_binding()
        self._names = names
        self._outputs: list[ort.OrtValue] = []  # Outputs at fixed addresses; empty if each run allocates its outputs.
        self._inputs: dict[str, tuple[Array, ort.OrtValue]] = {}
        for name, array in feeds.items():
            shape, dtype = array.shape, array.dtype
            value = self._value(shape, dtype)
            host = np.empty(shape, dtype) if self._memory == "cpu" else pinned_empty(shape, dtype, self._device_id)
            self._inputs[name] = host, value
            self.binding.bind_ortvalue_input(name, value)
        for name in names:
            self.binding.bind_output(name)

    def fill(self, feeds: Feeds) -> None:
        for name, array in feeds.items():
            host, value = self._inputs[name]
            np.copyto(host, array)
            value.update_inplace(host)

    def fix_outputs(self, computed: Sequence[Array]) -> None:
        """Bind the outputs to fixed addresses, with the shapes and dtypes of the `computed` arrays."""
        self._outputs = [self._value(array.shape, array.dtype) for array in computed]
        for name, value in zip(self._names, self._outputs, strict=True):
            self.binding.bind_ortvalue_output(name, value)

    def read(self) -> list[Array]:
        if self._outputs:
            arrays = [value.numpy() for value in self._outputs]  # On a CPU, copy the arrays: they are views.
            return arrays if self._memory == "cuda" else [array.copy() for array in arrays]
        return list(self.binding.copy_outputs_to_cpu())

    def _value(self, shape: tuple[int, ...], dtype: Dtype) -> "ort.OrtValue":
        return import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(shape, dtype, self._memory, self._device_id)


class BoundSession:
    """A session that runs with IO binding, for tensors of numbers (`can_bind`). All threads may call `run`."""

    def __init__(self, session: "ort.InferenceSession", placement: Placement) -> None:
        self._session = session
        self._placement = placement
        self._lock = threading.Lock()
        self._graph_lock = threading.Lock()
        self._idle: OrderedDict[Hashable, list[Buffers]] = OrderedDict()
        self._graphs: dict[Hashable, tuple[Buffers, ort.RunOptions]] = {}
        self._without_graph = self._run_options(_NO_GRAPH)

    def run(self, names: Sequence[str], feeds: Feeds, options: "ort.RunOptions | None" = None) -> list[Array]:
        """Compute the named outputs. Raises the errors of `InferenceSession.run`. `options` are ignored."""
        key = tuple(names), tuple((name, array.shape, array.dtype) for name, array in feeds.items())
        if not self._placement.options.enable_cuda_graph:
            return self._run_buffers(key, names, feeds)
        with self._graph_lock:  # A capture fails if another thread allocates memory at the same time.
            may_have_graph = key in self._graphs or len(self._graphs) < MAX_GRAPHS
            return (self._run_graph if may_have_graph else self._run_buffers)(key, names, feeds)

    def _run_buffers(self, key: Hashable, names: Sequence[str], feeds: Feeds) -> list[Array]:
        """Run with buffers that no other thread uses."""
        with self._lock:
            idle = self._idle.pop(key, [])
            buffers = idle.pop() if idle else None
            if idle:
                self._idle[key] = idle
        if buffers is None:
            buffers = Buffers(self._session, self._placement, feeds, names)
        buffers.fill(feeds)
        self._session.run_with_iobinding(buffers.binding, self._without_graph)
        computed = buffers.read()
        with self._lock:
            self._idle.setdefault(key, []).append(buffers)
            self._idle.move_to_end(key)  # The shape that was least recently used is dropped first.
            if sum(map(len, self._idle.values())) > MAX_IDLE_BUFFERS:
                self._idle.popitem(last=False)
        return computed

    def _run_graph(self, key: Hashable, names: Sequence[str], feeds: Feeds) -> list[Array]:
        """Replay the CUDA graph of this input shape. The first run has no CUDA graph and finds the output shapes."""
        if key not in self._graphs:
            buffers = Buffers(self._session, self._placement, feeds, names)
            buffers.fill(feeds)
            self._session.run_with_iobinding(buffers.binding, self._without_graph)
            buffers.fix_outputs(buffers.read())
            self._graphs[key] = buffers, self._run_options(str(len(self._graphs) + 1))
        buffers, options = self._graphs[key]
        buffers.fill(feeds)
        self._session.run_with_iobinding(buffers.binding, options)
        return buffers.read()

    @staticmethod
    def _run_options(graph_id: str) -> "ort.RunOptions":
        options = import_onnxruntime().RunOptions()
        options.add_run_config_entry(_GRAPH_ID, graph_id)
        return options


def can_bind(session: "ort.InferenceSession") -> bool:
    """Return True if all inputs and outputs are tensors of numbers. Texts and mappings cannot be on a device."""
    types = [node.type for node in (*session.get_inputs(), *session.get_outputs())]
    return all(kind.startswith("tensor(") and kind != "tensor(string)" for kind in types)


def pinned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike, device_id: int) -> Array:
    """Return an uninitialised array in page-locked memory, or in ordinary memory if CUDA cannot allocate it."""
    runtime, size = _cuda_runtime(), math.prod(shape) * np.dtype(dtype).itemsize
    pointer = ctypes.c_void_p()
    if (
        runtime is None
        or size == 0
        or runtime.cudaSetDevice(device_id)
        or runtime.cudaHostAlloc(ctypes.byref(pointer), ctypes.c_size_t(size), 0)
    ):
        return np.empty(shape, dtype)
    assert pointer.value is not None
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer.value))
    weakref.finalize(memory, runtime.cudaFreeHost, pointer).atexit = False  # Views keep `memory` alive.
    pinned: Array = memory.view(dtype).reshape(shape)
    return pinned


@cache
def _cuda_runtime() -> ctypes.CDLL | None:
    """Return the CUDA runtime that ONNX Runtime's GPU build has loaded, or None."""
    for name in _CUDA_RUNTIMES:
        with suppress(OSError):
            return ctypes.CDLL(name)
    return None
