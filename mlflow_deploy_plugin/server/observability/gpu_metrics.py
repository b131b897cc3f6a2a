"""The state of the machine's NVIDIA GPUs, as Prometheus' text: what NVML says at the moment of the scrape.

NVML counts the GPUs that the driver shows to this process, whatever CUDA_VISIBLE_DEVICES hides, so each series has the
GPU's uuid too. Without nvidia-ml-py (extra `gpu`) or without a driver there are no such metrics.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

from mlflow_deploy_plugin.server.observability.exposition import MetricFamily, MetricSeries, prometheus_text

logger = logging.getLogger(__name__)

_READERS: dict[tuple[str, str], Callable[[Any, Any], float]] = {
    ("onnxserve_gpu_memory_used_bytes", "Memory of the GPU in use, by all processes."): lambda nvml, gpu: (
        nvml.nvmlDeviceGetMemoryInfo(gpu).used
    ),
    ("onnxserve_gpu_memory_total_bytes", "Memory of the GPU."): lambda nvml, gpu: (
        nvml.nvmlDeviceGetMemoryInfo(gpu).total
    ),
    (
        "onnxserve_gpu_utilization_ratio",
        "Share of the last sample period in which some kernel ran.",
    ): lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ("onnxserve_gpu_temperature_celsius", "Temperature of the GPU."): lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(
        gpu, nvml.NVML_TEMPERATURE_GPU
    ),
    ("onnxserve_gpu_power_watts", "Power that the GPU draws."): lambda nvml, gpu: (
        nvml.nvmlDeviceGetPowerUsage(gpu) / 1000
    ),
}
"""(name, help) of a gauge → its value of a GPU."""


def gpu_metrics_page() -> bytes:
    """Return the gauges of every GPU; empty without NVML. A value that a GPU does not have is left out."""
    nvml = _nvml()
    if nvml is None:
        return b""
    families = [MetricFamily(name, "gauge", text) for name, text in _READERS]
    try:
        for number in range(nvml.nvmlDeviceGetCount()):
            gpu = nvml.nvmlDeviceGetHandleByIndex(number)
            uuid = nvml.nvmlDeviceGetUUID(gpu)  # bytes before nvidia-ml-py 12
            labels = {"gpu": str(number), "uuid": uuid.decode() if isinstance(uuid, bytes) else uuid}
            for family, read in zip(families, _READERS.values(), strict=True):
                try:
                    value = float(read(nvml, gpu))
                except nvml.NVMLError:  # not supported, as the power of some laptops
                    continue
                family.series[tuple(labels.values())] = MetricSeries(labels, value)
    except nvml.NVMLError as error:  # a GPU that has fallen off the bus
        logger.warning("NVML does not answer: %s", error)
    return prometheus_text([family for family in families if family.series])


@cache
def _nvml() -> Any:
    """Return the module, initialised once a process, or None."""
    try:
        import pynvml  # only a server with a GPU needs it
    except ImportError:
        logger.info("no metrics of GPUs: pip install 'mlflow-onnxserve[gpu]' brings nvidia-ml-py")
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.warning("no metrics of GPUs: %s", error)
        return None
    return pynvml
