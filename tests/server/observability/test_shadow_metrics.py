"""Shadows are counted in files of their worker, next to the requests."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mlflow_deploy_plugin.server.inference.shadow_compare import ShadowComparison
from mlflow_deploy_plugin.server.observability.exposition import prometheus_text, read_counter, read_families
from mlflow_deploy_plugin.server.observability.shadow_metrics import ShadowMetrics


def shadow() -> Any:
    return SimpleNamespace(endpoint="e", name="new", loaded=SimpleNamespace(model="m", version="2"))


def test_without_a_shadow_there_are_no_files(tmp_path: Path) -> None:
    ShadowMetrics(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_workers_are_added_up(tmp_path: Path) -> None:
    same, differences = np.array([True, False, True]), np.array([0.0, 0.02, np.nan])
    for metrics in (ShadowMetrics(tmp_path), ShadowMetrics(tmp_path)):
        metrics.observe(shadow(), ShadowComparison(same, differences), 2, 0.003)
        metrics.count(shadow(), "dropped", 4)
        metrics.count(shadow(), "failed")

    outcomes = {labels["outcome"]: value for labels, value in read_counter(tmp_path, "onnxserve_shadow_requests")}
    assert outcomes == {"compared": 4.0, "dropped": 8.0, "failed": 2.0}
    rows = {labels["agreement"]: value for labels, value in read_counter(tmp_path, "onnxserve_shadow_rows")}
    assert rows == {"same": 4.0, "different": 2.0}
    page = prometheus_text(read_families(tmp_path)).decode()
    labels = 'endpoint="e",{bound}model="m",variant="new",version="2"'
    assert f"onnxserve_shadow_difference_count{{{labels.format(bound='')}}} 4.0\n" in page  # NaN is no difference
    zero = labels.format(bound='le="0",')
    assert f"onnxserve_shadow_difference_bucket{{{zero}}} 2.0\n" in page
    assert f"onnxserve_shadow_duration_seconds_count{{{labels.format(bound='')}}} 2.0\n" in page
