"""An ONNX Runtime session with everything said explicitly: providers, threads, and a device that is really used."""

import ctypes
import os
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.errors import DeviceUnavailable, InvalidArtifact, RuntimeMissing
from mlflow_deploy_plugin.runtime import graph_cache
from mlflow_deploy_plugin.spec import Device

_PROVIDERS: dict[Device, list[str]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
}
_DRIVER = "libcuda.so.1"
_CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1_CPU = (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))


def import_onnxruntime() -> Any:
    """The module, or the error that says how to get it.

    Raises:
        RuntimeMissing: it is not installed.
    """
    try:
        import onnxruntime as module  # heavy, and of one of two distributions
    except ImportError:
        raise RuntimeMissing(
            "ONNX Runtime is not installed: pip install 'mlflow-onnxserve[cpu]', or 'mlflow-onnxserve[gpu]' for CUDA"
        ) from None
    module.disable_telemetry_events()
    return module


def available_cores() -> int:
    """Cores this process may use: its affinity and the cgroup's quota, which ONNX Runtime itself ignores."""
    affinity = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def _cgroup_quota() -> float | None:
    """Cores that the cgroup (version 2, else version 1) allows, as a container sees it; None: no limit."""
    try:
        quota, period = _CGROUP_CPU_MAX.read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = (path.read_text().strip() for path in _CGROUP_V1_CPU)
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def open_session(
    onnx_file: Path, device: Device = "cpu", intra_op_num_threads: int = 1, kept_graphs: Path | None = None
) -> Any:
    """An `onnxruntime.InferenceSession` on `device`, and on nothing else.

    ONNX Runtime falls back to the CPU without a word where a GPU library is missing; here that is an error, and so is
    a node of the graph that the device cannot run (`session.disable_cpu_ep_fallback`).

    Args:
        kept_graphs: the folder in which optimised graphs are kept for the next time (`runtime/graph_cache.py`).

    Raises:
        RuntimeMissing: ONNX Runtime is not installed.
        DeviceUnavailable: `device` would not really be used.
        InvalidArtifact: the file is not a model that ONNX Runtime can load.
    """
    ort = import_onnxruntime()
    check_device_libraries(ort, device)
    options = _session_options(ort, device, intra_op_num_threads)
    place = (
        graph_cache.optimized_graph_path(onnx_file, kept_graphs, ort.__version__)
        if kept_graphs and device == "cpu"
        else None
    )
    try:
        if place is not None:
            return _open_kept(ort, onnx_file, place, intra_op_num_threads)
        session = ort.InferenceSession(str(onnx_file), options, providers=_PROVIDERS[device])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises a dozen unrelated classes here
        reason = describe_error(error)
        if device != "cpu":
            raise DeviceUnavailable(f"the model does not run on {device}: {reason}") from None
        raise InvalidArtifact(f"ONNX Runtime cannot load {onnx_file.name}: {reason}") from None
    if _PROVIDERS[device][0] not in session.get_providers():
        raise DeviceUnavailable(
            f"--device {device} was asked for, but ONNX Runtime uses {', '.join(session.get_providers())}: "
            "the GPU, its driver or the CUDA libraries are missing"
        )
    return session


def arena_shrinking_options() -> Any:
    """The options of a run after which the arena gives back what it does not need any more, on a CPU.

    Without, a worker keeps the memory of the largest batches that its threads ever computed at the same time: a small
    CNN, 1 to 512 rows in four threads, 189 MB resident; without any arena 132 MB; with this 64 MB. It costs 0.7 µs a
    run, so that small runs do without (`runtime/model.py`), and no time that could be measured from 32 rows on.
    """
    options = import_onnxruntime().RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _session_options(ort: Any, device: Device, intra_op_num_threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads take the core from the other workers: measured, it matters from two sessions on few cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if device != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _open_kept(ort: Any, onnx_file: Path, place: Path, intra_op_num_threads: int) -> Any:
    """A session of the optimised graph, or of the original, whose optimised form is then kept.

    Whatever is wrong with the kept one (half of it after a full disk), or with keeping it: the original counts.
    """
    if place.is_file():
        options = _session_options(ort, "cpu", intra_op_num_threads)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = ort.InferenceSession(str(place), options, providers=_PROVIDERS["cpu"])
        except Exception:  # noqa: BLE001 - ONNX Runtime raises a dozen unrelated classes here
            place.unlink(missing_ok=True)
        else:
            graph_cache.mark_used(place)
            return session
    options = _session_options(ort, "cpu", intra_op_num_threads)
    temporary = graph_cache.temporary_path(place)
    options.optimized_model_filepath = str(temporary)
    try:
        session = ort.InferenceSession(str(onnx_file), options, providers=_PROVIDERS["cpu"])
    except Exception:  # noqa: BLE001 - as above; the original alone says what is wrong with it
        temporary.unlink(missing_ok=True)
        options = _session_options(ort, "cpu", intra_op_num_threads)
        return ort.InferenceSession(str(onnx_file), options, providers=_PROVIDERS["cpu"])
    graph_cache.store_optimized_graph(temporary, place)
    return session


def describe_error(error: Exception) -> str:
    """ONNX Runtime's message in one line, without its prefix codes and the paths of its build."""
    text = " ".join(str(error).split())
    text = text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
    words = [word for word in text.split(" ") if not word.startswith("/")]
    return " ".join(words)[:500]


def check_device_libraries(ort: Any, device: Device) -> None:
    """Loads what `device` needs beside ONNX Runtime itself.

    Raises:
        DeviceUnavailable: this ONNX Runtime was built without the device, or NVIDIA's driver is not there.
    """
    if device == "cpu":
        return
    if _PROVIDERS[device][0] not in ort.get_available_providers():
        raise DeviceUnavailable(
            f"--device {device} needs ONNX Runtime's GPU build: pip uninstall onnxruntime, then "
            "pip install 'mlflow-onnxserve[gpu]'"
        )
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        raise DeviceUnavailable(
            f"--device {device} needs NVIDIA's driver, and {_DRIVER} cannot be loaded here; "
            "a container is given it by docker run --gpus all"
        ) from None
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds CUDA and cuDNN in the nvidia-* wheels
