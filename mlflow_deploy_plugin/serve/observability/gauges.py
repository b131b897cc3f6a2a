"""The page of metrics: the values of all workers, and gauges that workers do not
maintain, the state of the agent and of the GPUs, read on each request for metrics.
"""

import contextlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.core.extensions import METRICS_NAMES, find_entry
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.statedir.files import AGENT, is_alive, read_state
from mlflow_deploy_plugin.core.statedir.metric_files import (
    MetricFamily,
    MetricSeries,
    prometheus_text,
    read_families,
)
from mlflow_deploy_plugin.core.statedir.models import AgentState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
logger = logging.getLogger(__name__)
_find_once = cache(find_entry)


def workers_page(folder: Path) -> bytes:
    """Return the metrics of all workers in Prometheus' text format, also by the names
    of ONNXSERVE_METRICS_NAMES. Raises InvalidConfig if these names are unknown.
    """
    families = read_families(folder)
    if names := load_settings().metrics_names:
        families += _find_once(METRICS_NAMES, names, "metrics naming", ())(families)
    return prometheus_text(families)


def gauges_page(state_dir: Path, has_gpu: bool) -> bytes:
    """Return the gauges in Prometheus' text format."""
    page = agent_metrics_page(state_dir)
    if has_gpu:
        page += gpu_metrics_page()
    return page


def agent_metrics_page(state_dir: Path) -> bytes:
    """Return the metrics from agent.json; empty if there is no agent. Every worker can
    read the file.
    """
    state = read_state(state_dir / AGENT, AgentState)
    if state is None:
        return b""
    refused = MetricFamily(
        "onnxserve_wanted_version_refused",
        "gauge",
        (
            "Versions that the registry selects but that are not served: gate, signature, fetch, "
            "artifact, consent, load or steps."
        ),
    )
    refused.series.extend(
        MetricSeries(version.model_dump(exclude={"reason"}), 1.0) for version in state.refused
    )

    def gauge(name: str, value: float, text: str) -> MetricFamily:
        return MetricFamily(name, "gauge", text, [MetricSeries({}, float(value))])

    families = [
        gauge("onnxserve_agent_up", is_alive(state.pid), "1 while the agent runs."),
        gauge(
            "onnxserve_agent_errors",
            state.errors,
            "Errors that prevent the spec's references from being served.",
        ),
        gauge(
            "onnxserve_registry_checked_timestamp_seconds",
            state.checked_at,
            "Time of the last poll of the registry, successful or not, in seconds since 1970.",
        ),
        gauge(
            "onnxserve_keys_fetched_timestamp_seconds",
            state.keys_fetched_at,
            "Time of the last fetch of the API keys, in seconds since 1970; 0 without keys.",
        ),
        gauge(
            "onnxserve_log_complete_until_timestamp_seconds",
            state.shipping.complete_until,
            "Time until which every row was logged or dropped, in seconds since 1970; updated "
            "every 10 s.",
        ),
    ]
    events = MetricFamily(
        "onnxserve_sink_events",
        "counter",
        "Events by sink and outcome since the agent's start: sent, rejected or dropped.",
    )
    waiting = MetricFamily("onnxserve_sink_waiting_bytes", "gauge", "Size of a sink's queue.")
    for name, sink in state.shipping.sinks.items():
        waiting.series.append(MetricSeries({"sink": name}, float(sink.waiting_bytes)))
        events.series.extend(
            MetricSeries({"sink": name, "outcome": outcome}, float(number))
            for outcome, number in sink.events.items()
        )
    return prometheus_text([*families, refused, events, waiting])


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
        "Share of the last sample period in which a kernel ran.",
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
"""The help text of each gauge, and the function that reads its value with NVML."""


def gpu_metrics_page() -> bytes:
    """Return the gauges of every GPU; empty without NVML (extra `gpu`) or a driver.

    NVML ignores CUDA_VISIBLE_DEVICES, so each series also has the GPU's uuid.
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
                # Some laptops do not report their power, for example.
                with contextlib.suppress(nvml.NVMLError):
                    series = MetricSeries(labels, float(read(nvml, gpu)))
                    families.setdefault(name, MetricFamily(name, "gauge", text)).series.append(
                        series
                    )
    except nvml.NVMLError as error:  # for example, the driver has lost a GPU
        logger.warning("NVML does not respond: %s", error)
    return prometheus_text(list(families.values()))


@cache
def _nvml() -> Any:
    """Return the module pynvml, initialised once per process, or None if NVML cannot be
    used.
    """
    try:
        import pynvml  # Imported here, because only a server with a GPU needs it.
    except ImportError:
        logger.info(
            "no metrics of GPUs: nvidia-ml-py is not installed (pip install "
            "'mlflow-onnxserve[gpu]')"
        )
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.warning("no metrics of GPUs: %s", error)
        return None
    return pynvml
