"""The metrics of the agent and of the GPUs; a fake NVML reports the GPUs."""
# ruff: noqa: N802 - NVML defines the names

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlflow_deploy_plugin.core.statedir.files import AGENT, write_state
from mlflow_deploy_plugin.core.statedir.models import (
    AgentState,
    RefusedVersion,
    ShippingState,
    SinkState,
)
from mlflow_deploy_plugin.serve.observability import gauges
from mlflow_deploy_plugin.serve.observability.gauges import agent_metrics_page, gpu_metrics_page


class NVMLError(Exception):
    pass


class FakeNvml(ModuleType):
    """Two GPUs; the second GPU does not report its power."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, driver=True):
        super().__init__("pynvml")
        self.driver = driver

    def nvmlInit(self):
        if not self.driver:
            raise NVMLError("NVML Shared Library Not Found")

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, number):
        return number

    def nvmlDeviceGetUUID(self, gpu):
        return f"GPU-{gpu}"

    def nvmlDeviceGetMemoryInfo(self, gpu):
        return SimpleNamespace(used=2**30 * (gpu + 1), total=2**34)

    def nvmlDeviceGetUtilizationRates(self, gpu):
        return SimpleNamespace(gpu=75)

    def nvmlDeviceGetTemperature(self, gpu, sensor):
        return 61

    def nvmlDeviceGetPowerUsage(self, gpu):
        if gpu:
            raise NVMLError("Not Supported")
        return 250_500


@pytest.fixture(autouse=True)
def asked_anew():
    gauges._nvml.cache_clear()
    yield
    gauges._nvml.cache_clear()


def test_known_gpu_values_are_gauges(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    families = text_string_to_metric_families(gpu_metrics_page().decode())
    values = {
        (sample.name, sample.labels["gpu"]): sample.value
        for family in families
        for sample in family.samples
    }
    assert values == {
        ("onnxserve_gpu_memory_used_bytes", "0"): 2**30,
        ("onnxserve_gpu_memory_used_bytes", "1"): 2**31,
        ("onnxserve_gpu_memory_total_bytes", "0"): 2**34,
        ("onnxserve_gpu_memory_total_bytes", "1"): 2**34,
        ("onnxserve_gpu_utilization_ratio", "0"): 0.75,
        ("onnxserve_gpu_utilization_ratio", "1"): 0.75,
        ("onnxserve_gpu_temperature_celsius", "0"): 61,
        ("onnxserve_gpu_temperature_celsius", "1"): 61,
        ("onnxserve_gpu_power_watts", "0"): 250.5,
    }


@pytest.mark.parametrize(
    "module", [None, FakeNvml(driver=False)], ids=["not installed", "no driver"]
)
def test_missing_nvml_has_no_gauges(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert gpu_metrics_page() == b""


REFUSED = RefusedVersion(
    endpoint="e", variant="v", model='x"\n', version="2", cause="gate", reason="not passed"
)


def samples(state_dir):
    families = text_string_to_metric_families(agent_metrics_page(state_dir).decode())
    return {
        family.name: [(sample.labels, sample.value) for sample in family.samples]
        for family in families
    }


def test_agent_state_is_metrics(tmp_path):
    sink = SinkState(events={"sent": 3}, waiting_bytes=7)
    shipping = ShippingState(complete_until=120.0, sinks={"audit": sink})
    state = AgentState(
        pid=os.getpid(),
        checked_at=12.5,
        error="a; b",
        errors=2,
        refused=(REFUSED,),
        shipping=shipping,
        keys_fetched_at=11.5,
    )
    write_state(tmp_path / AGENT, state)
    assert samples(tmp_path) == {
        "onnxserve_agent_up": [({}, 1.0)],
        "onnxserve_agent_errors": [({}, 2.0)],
        "onnxserve_registry_checked_timestamp_seconds": [({}, 12.5)],
        "onnxserve_keys_fetched_timestamp_seconds": [({}, 11.5)],
        "onnxserve_log_complete_until_timestamp_seconds": [({}, 120.0)],
        "onnxserve_sink_events": [({"sink": "audit", "outcome": "sent"}, 3.0)],
        "onnxserve_sink_waiting_bytes": [({"sink": "audit"}, 7.0)],
        "onnxserve_wanted_version_refused": [
            (
                {"endpoint": "e", "variant": "v", "model": 'x"\n', "version": "2", "cause": "gate"},
                1.0,
            )
        ],
    }


@pytest.mark.parametrize("is_there", [False, True])
def test_ended_agent_is_down(tmp_path, is_there):
    if is_there:
        dead = subprocess.Popen(["true"])
        dead.wait()
        write_state(tmp_path / AGENT, AgentState(pid=dead.pid))
        assert samples(tmp_path)["onnxserve_agent_up"] == [({}, 0.0)]
    else:
        assert agent_metrics_page(tmp_path) == b""
