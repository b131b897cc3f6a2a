"""How many rows the workers of one server have answered and captured; the agent tells of it (`agent/progress.py`)."""

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
"""What the last workers have counted; it stays when their metrics go."""

_MOST_LEFT = 8

Rows = Mapping[str, Mapping[str, int]]
"""Outcome ("answered", "captured", "dropped") → endpoint → rows."""


@dataclass(frozen=True)
class CaptureCounters:
    """Rows since the start of the server that `run` names."""

    run: str
    rows: Rows


def read_capture_counters(state_dir: Path) -> CaptureCounters | None:
    """What the workers have counted, those that died too; of a server that has ended, what it has left."""
    link = state_dir / METRICS
    with contextlib.suppress(OSError):
        folder = link.readlink()
        if folder.is_dir():
            return CaptureCounters(folder.name, _rows(folder))
    left = saved_capture_counters(state_dir)
    return left[-1] if left else None


def saved_capture_counters(state_dir: Path) -> list[CaptureCounters]:
    """What the last servers that have ended have left, the oldest first: an agent may not have seen each of them."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        left = orjson.loads((state_dir / COUNTED).read_bytes())
        return [CaptureCounters(entry["run"], entry["rows"]) for entry in left]
    return []


def save_capture_counters(state_dir: Path) -> None:
    """Writes down what was counted, before the metrics of an ended server are removed."""
    if (counted := read_capture_counters(state_dir)) is not None:
        left = [entry for entry in saved_capture_counters(state_dir) if entry.run != counted.run]
        with contextlib.suppress(OSError):  # a full disk
            write_atomically(state_dir / COUNTED, orjson.dumps([*left, counted][-_MOST_LEFT:]))


def _rows(folder: Path) -> dict[str, dict[str, int]]:
    rows: dict[str, dict[str, int]] = {"answered": {}, "captured": {}, "dropped": {}}
    for labels, value in read_counter(folder, CAPTURE_ROWS):
        rows[labels["outcome"]][labels["endpoint"]] = int(value)
    return rows
