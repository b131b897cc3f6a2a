"""GPUs among the metrics, by an NVML that is not one: this machine has no GPU."""
# ruff: noqa: N802 - the names are NVML's

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlflow_deploy_plugin.server.observability import exposition
from mlflow_deploy_plugin.server.observability.exposition import gpu_metrics_page


class NVMLError(Exception):
    pass


class FakeNvml(ModuleType):
    """Two GPUs; the second has no power to report."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.driver = driver

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NVMLError("NVML Shared Library Not Found")

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetUUID(self, gpu: int) -> str:
        return f"GPU-{gpu}"

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> SimpleNamespace:
        return SimpleNamespace(used=2**30 * (gpu + 1), total=2**34)

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=75)

    def nvmlDeviceGetTemperature(self, gpu: int, sensor: int) -> int:
        return 61

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        if gpu:
            raise NVMLError("Not Supported")
        return 250_500


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    exposition._nvml.cache_clear()
    yield
    exposition._nvml.cache_clear()


def test_each_gpu_has_its_gauges_and_what_it_does_not_know_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    families = text_string_to_metric_families(gpu_metrics_page().decode())
    found = {(sample.name, sample.labels["gpu"]): sample.value for family in families for sample in family.samples}
    assert found == {
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


@pytest.mark.parametrize("module", [None, FakeNvml(driver=False)], ids=["not installed", "no driver"])
def test_without_nvml_there_is_nothing(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert gpu_metrics_page() == b""
