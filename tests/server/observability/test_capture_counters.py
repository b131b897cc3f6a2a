"""The counts of captured rows outlive the metrics of their server."""

import shutil
from pathlib import Path

import pytest

from mlflow_deploy_plugin.server.observability.capture_counters import (
    COUNTED,
    CaptureCounters,
    read_capture_counters,
    save_capture_counters,
    saved_capture_counters,
)
from mlflow_deploy_plugin.server.observability.metrics import MULTIPROC_DIR, Metrics
from mlflow_deploy_plugin.statedir import METRICS


def serve(state_dir: Path, run: str, patch: pytest.MonkeyPatch, responses: int) -> CaptureCounters:
    """Count as two workers of the server `run`, and end it."""
    folder = state_dir / run
    folder.mkdir()
    patch.setenv(MULTIPROC_DIR, str(folder))
    (state_dir / METRICS).unlink(missing_ok=True)
    (state_dir / METRICS).symlink_to(folder)
    for metrics in (Metrics(), Metrics()):
        for _ in range(responses):
            metrics.count_capture("e", 3, 2, True)
        metrics.count_capture("e", 3, 0, None)
        metrics.count_capture("other", 1, 1, False)
    counters = read_capture_counters(state_dir)
    assert counters is not None
    save_capture_counters(state_dir)
    shutil.rmtree(folder)
    return counters


def test_rows_of_all_workers_are_added_up_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counters = serve(tmp_path, "first", monkeypatch, 5)
    assert counters.rows == {
        "answered": {"e": 36, "other": 2},
        "captured": {"e": 20, "other": 0},
        "dropped": {"e": 0, "other": 2},
    }
    assert read_capture_counters(tmp_path) == counters
    later = serve(tmp_path, "second", monkeypatch, 1)
    assert saved_capture_counters(tmp_path) == [counters, later]


def test_a_damaged_file_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / COUNTED).write_text("[{}")
    assert saved_capture_counters(tmp_path) == []
    assert read_capture_counters(tmp_path) is None
