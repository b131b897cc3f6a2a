"""CUDA graphs: a complete run of a session that the GPU replays with one call.

A CUDA graph needs its inputs and outputs at fixed addresses, which only one run at a
time can use. ONNX Runtime binds them with its IO binding. Each input shape has a CUDA
graph, identified by the run option `gpu_graph_id`; -1 runs without a CUDA graph. On the
host, an input is in page-locked ("pinned") memory, which a GPU reads without an
additional copy by the driver.
https://onnxruntime.ai/docs/performance/device-tensor.html
https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview
"""

import ctypes
import math
import weakref
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlflow_deploy_plugin.serve.runtime.feeds import Array, Dtype, Feeds
from mlflow_deploy_plugin.serve.runtime.session import Placement, import_onnxruntime, operators_of

if TYPE_CHECKING:
    import onnxruntime as ort

MAX_GRAPHS = 16
"""The maximum number of shapes with a CUDA graph. Each graph keeps its memory. The
warm-up creates the first graphs.
"""
_GRAPH_ID = "gpu_graph_id"
_NO_GRAPH = -1
_DATA_DEPENDENT = {"Compress", "NonMaxSuppression", "NonZero"}
"""Their outputs' shapes depend on the data. A capture does not compute, so it would
record shapes of garbage.
"""
_CUDA_RUNTIMES = ("libcudart.so.13", "libcudart.so.12")


class CudaGraph:
    """A CUDA graph for inputs of one shape, with its inputs and outputs at fixed
    addresses.
    """

    def __init__(
        self,
        session: "ort.InferenceSession",
        placement: Placement,
        feeds: Feeds,
        names: Sequence[str],
        number: int,
    ) -> None:
        """Run the session once without a CUDA graph, which finds the shapes of the
        outputs.
        """
        self._session = session
        self._memory = "cpu" if placement.device == "cpu" else "cuda"
        self._device_id = placement.device_id
        self._options = _run_options(number)
        self._binding = session.io_binding()
        self._inputs: dict[str, tuple[Array, ort.OrtValue]] = {}
        for name, array in feeds.items():
            shape = array.shape
            dtype = array.dtype
            value = self._allocate(shape, dtype)
            if self._memory == "cpu":
                host = np.empty(shape, dtype)
            else:
                host = pinned_empty(shape, dtype, self._device_id)
            self._inputs[name] = host, value
            self._binding.bind_ortvalue_input(name, value)
        for name in names:
            self._binding.bind_output(name)
        self._fill(feeds)
        session.run_with_iobinding(self._binding, _run_options(_NO_GRAPH))
        self._outputs: list[ort.OrtValue] = []
        for name, array in zip(names, self._binding.copy_outputs_to_cpu(), strict=True):
            value = self._allocate(array.shape, array.dtype)
            self._outputs.append(value)
            self._binding.bind_ortvalue_output(name, value)

    def run(self, feeds: Feeds) -> list[Array]:
        """Compute the outputs. The first call captures the CUDA graph, and later calls
        replay it.
        """
        self._fill(feeds)
        self._session.run_with_iobinding(self._binding, self._options)
        arrays = [value.numpy() for value in self._outputs]
        if self._memory == "cuda":
            return arrays
        return [array.copy() for array in arrays]  # On a CPU, these are views.

    def _fill(self, feeds: Feeds) -> None:
        """Copy the feeds to the fixed addresses of the inputs."""
        for name, array in feeds.items():
            host, value = self._inputs[name]
            np.copyto(host, array)
            value.update_inplace(host)

    def _allocate(self, shape: tuple[int, ...], dtype: Dtype) -> "ort.OrtValue":
        return import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(
            shape, dtype, self._memory, self._device_id
        )


class GraphSession:
    """A session that runs with CUDA graphs, for graphs that `can_bind`. All threads may
    call `run`.
    """

    def __init__(self, session: "ort.InferenceSession", placement: Placement) -> None:
        self._session = session
        self._placement = placement
        self._graphs: dict[Hashable, CudaGraph | None] = {}  # None: the capture failed.
        self._without_graph = _run_options(_NO_GRAPH)
        # With CUDA graphs, ONNX Runtime keeps a context (73 MB on an H200) and captures
        # for each thread that ran, even if the thread has ended. Also, a capture fails
        # if another thread allocates memory at the same time.
        self._thread = ThreadPoolExecutor(1, "onnxserve-graphs")

    def run(
        self, names: Sequence[str], feeds: Feeds, options: "ort.RunOptions | None" = None
    ) -> list[Array]:
        """Compute the named outputs. Raises the errors of `InferenceSession.run`.
        `options` are ignored.
        """
        return self._thread.submit(self._run, names, feeds).result()

    def _run(self, names: Sequence[str], feeds: Feeds) -> list[Array]:
        """Compute the outputs with the CUDA graph of this shape, which the first run
        captures; without a CUDA graph if there are too many or the capture fails.
        """
        key = tuple(names), tuple((name, array.shape, array.dtype) for name, array in feeds.items())
        graph = self._graphs.get(key)
        if graph is not None:
            return graph.run(feeds)
        if key not in self._graphs and len(self._graphs) < MAX_GRAPHS:
            graph = CudaGraph(self._session, self._placement, feeds, names, len(self._graphs) + 1)
            # After a failed capture, a second run would return the outputs of another
            # run.
            self._graphs[key] = None
            with suppress(Exception):
                computed = graph.run(feeds)
                self._graphs[key] = graph
                return computed
        return list(self._session.run(names, feeds, self._without_graph))


def _run_options(number: int) -> "ort.RunOptions":
    """Return the options of a run with the CUDA graph of this number."""
    options = import_onnxruntime().RunOptions()
    options.add_run_config_entry(_GRAPH_ID, str(number))
    return options


def can_bind(session: "ort.InferenceSession") -> bool:
    """Return True if a CUDA graph can compute the session. Texts and mappings cannot be
    on a device.
    """
    types = [node.type for node in (*session.get_inputs(), *session.get_outputs())]
    are_numbers = all(kind.startswith("tensor(") and kind != "tensor(string)" for kind in types)
    return are_numbers and not operators_of(session) & _DATA_DEPENDENT


def pinned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike, device_id: int) -> Array:
    """Return an uninitialised array in page-locked memory, or in ordinary memory if
    CUDA cannot allocate it.
    """
    runtime = _cuda_runtime()
    size = math.prod(shape) * np.dtype(dtype).itemsize
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
    # Views keep `memory` alive.
    weakref.finalize(memory, runtime.cudaFreeHost, pointer).atexit = False
    pinned: Array = memory.view(dtype).reshape(shape)
    return pinned


@cache
def _cuda_runtime() -> ctypes.CDLL | None:
    """Return the CUDA runtime that ONNX Runtime's GPU build has loaded, or None."""
    for name in _CUDA_RUNTIMES:
        with suppress(OSError):
            return ctypes.CDLL(name)
    return None
