"""The rows that the workers of one server have answered and captured; the agent reports them (`agent/progress.py`)."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from mlflow_deploy_plugin.server.observability.exposition import read_counter
from mlflow_deploy_plugin.statedir import METRICS, write_atomically

CAPTURE_ROWS = "onnxserve_capture_rows"
"""The counter among the metrics."""
COUNTED = "counted.json"
"""The file that keeps the counts of the last servers when their metrics are removed."""
_MAX_SAVED = 8

Rows = Mapping[str, Mapping[str, int]]
"""Outcome ("answered", "captured", "dropped") → endpoint → rows."""


@dataclass(frozen=True)
class CaptureCounters:
    """Rows since the start of the server that `run` names."""

    run: str
    rows: Rows


def read_capture_counters(state_dir: Path) -> CaptureCounters | None:
    """Return what all workers have counted, dead ones too; after the server's end, what it has saved."""
    link = state_dir / METRICS
    with contextlib.suppress(OSError):
        folder = link.readlink()
        if folder.is_dir():
            rows: dict[str, dict[str, int]] = {"answered": {}, "captured": {}, "dropped": {}}
            for labels, value in read_counter(folder, CAPTURE_ROWS):
                rows[labels["outcome"]][labels["endpoint"]] = int(value)
            return CaptureCounters(folder.name, rows)
    saved = saved_capture_counters(state_dir)
    return saved[-1] if saved else None


def saved_capture_counters(state_dir: Path) -> list[CaptureCounters]:
    """Return what the last servers have saved, oldest first: an agent may not have seen each of them."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        saved = orjson.loads((state_dir / COUNTED).read_bytes())
        return [CaptureCounters(entry["run"], entry["rows"]) for entry in saved]
    return []


def save_capture_counters(state_dir: Path) -> None:
    """Save the counts before the metrics of an ended server are removed."""
    if (counters := read_capture_counters(state_dir)) is not None:
        saved = [entry for entry in saved_capture_counters(state_dir) if entry.run != counters.run]
        with contextlib.suppress(OSError):  # a full disk
            write_atomically(state_dir / COUNTED, orjson.dumps([*saved, counters][-_MAX_SAVED:]))
