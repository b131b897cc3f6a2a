"""Gauges that no worker keeps: the state of the agent and of the GPUs, read for each page of metrics."""

import contextlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.statedir import AgentState
from mlflow_deploy_plugin.statedir.files import AGENT, is_alive, read_state
from mlflow_deploy_plugin.statedir.metric_files import MetricFamily, MetricSeries, prometheus_text

logger = logging.getLogger(__name__)


def agent_metrics_page(state_dir: Path) -> bytes:
    """Return the content of agent.json as Prometheus' text; empty if there is no agent. Every worker can read it."""
    state = read_state(state_dir / AGENT, AgentState)
    if state is None:
        return b""
    refused = MetricFamily(
        "onnxserve_wanted_version_refused",
        "gauge",
        "Versions that the registry names and that are not served: gate, fetch, artifact, consent or load.",
    )
    refused.series.extend(MetricSeries(one.model_dump(exclude={"reason"}), 1.0) for one in state.refused)

    def gauge(name: str, value: float, text: str) -> MetricFamily:
        return MetricFamily(name, "gauge", text, [MetricSeries({}, float(value))])

    checked = "Time of the last look at the registry, successful or not, since 1970."
    fetched = "Time when the keys of callers were last fetched, since 1970; 0 without keys."
    shipped = "Time until which every answered row is in the inference log or was dropped, since 1970, by tens."
    families = [
        gauge("onnxserve_agent_up", is_alive(state.pid), "1 while the agent lives."),
        gauge("onnxserve_agent_errors", state.errors, "Things that keep what the spec names from being served."),
        gauge("onnxserve_registry_checked_timestamp_seconds", state.checked_at, checked),
        gauge("onnxserve_keys_fetched_timestamp_seconds", state.keys_fetched_at, fetched),
        gauge("onnxserve_log_complete_until_timestamp_seconds", state.shipping.complete_until, shipped),
    ]
    return prometheus_text([*families, refused])


_GPU_GAUGES: dict[str, tuple[str, Callable[[Any, Any], float]]] = {
    "onnxserve_gpu_memory_used_bytes": (
        "Memory in use, by all processes.",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    "onnxserve_gpu_memory_total_bytes": (
        "Memory of the GPU.",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    ),
    "onnxserve_gpu_utilization_ratio": (
        "Share of the last sample period in which some kernel ran.",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    "onnxserve_gpu_temperature_celsius": (
        "Temperature of the GPU.",
        lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    ),
    "onnxserve_gpu_power_watts": (
        "Power that the GPU draws.",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    ),
}
"""The help text of each gauge, and the function that reads it by NVML."""


def gpu_metrics_page() -> bytes:
    """Return the gauges of every GPU by NVML; empty without NVML (extra `gpu`) or a driver.

    NVML ignores CUDA_VISIBLE_DEVICES, so each series has the GPU's uuid too.
    """
    nvml = _nvml()
    if nvml is None:
        return b""
    families: dict[str, MetricFamily] = {}
    try:
        for number in range(nvml.nvmlDeviceGetCount()):
            gpu = nvml.nvmlDeviceGetHandleByIndex(number)
            labels = {"gpu": str(number), "uuid": nvml.nvmlDeviceGetUUID(gpu)}
            for name, (text, read) in _GPU_GAUGES.items():
                with contextlib.suppress(nvml.NVMLError):  # not supported, as the power of some laptops
                    series = MetricSeries(labels, float(read(nvml, gpu)))
                    families.setdefault(name, MetricFamily(name, "gauge", text)).series.append(series)
    except nvml.NVMLError as error:  # a GPU that has fallen off the bus
        logger.warning("NVML does not answer: %s", error)
    return prometheus_text(list(families.values()))


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
