"""Measure the memory and the time of verdicts on wide tables, by number of columns.

    nice .venv/bin/python benchmarks/columns.py --columns 100 300 1000

Each number of columns has a process of its own, which judges consecutive days of 1,000
rows with a reference of 30 days and a budget of one false alarm per year. The memory is
the peak above that of the reference's table.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

# One thread, as in the judging processes of a busy machine.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.drifting.streams import DAY_US
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.drift.references.load import freeze_table
from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference, cut_pieces
from mlflow_deploy_plugin.watch.drift.sketches.bins import bins_digest
from mlflow_deploy_plugin.watch.drift.sketches.sketch import sketch_batches
from mlflow_deploy_plugin.watch.kinds.drift import WindowComparison
from mlflow_deploy_plugin.watch.result import WindowRequest
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, JudgedWindow

_REFERENCE = 30
_ROWS = 1_000


@dataclass
class Cost:
    """The seconds of each step, and the largest memory, in MB."""

    first: float
    peak: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
        begun = time.process_time()
        yield
        self.seconds.setdefault(step, []).append(time.process_time() - begun)
        status = Path("/proc/self/status").read_text().split()
        peak = int(status[status.index("VmHWM:") + 1]) / 1_000 - self.first
        print(f"  {step}: {self.seconds[step][-1]:.2f} s, {peak:,.0f} MB", file=sys.stderr)
        self.peak = max(self.peak, peak)


def rows_of(columns: int, day: int, days: int = 1) -> pa.Table:
    """Return the rows of the days; the level of each column varies between days."""
    rng = np.random.default_rng([columns, day])
    table = {}
    for number in range(columns):
        levels = np.repeat(rng.normal(0, 0.2, days), _ROWS)
        table[f"x{number}"] = levels + rng.normal(size=days * _ROWS)
    return pa.table(table)


def measure(columns: int, judged: int) -> str:
    table = rows_of(columns, 0, _REFERENCE)
    cost = Cost(psutil.Process().memory_info().rss / 1e6)
    with cost.of("reference"):
        bins, _ = freeze_table(table, (), "the rows")
        times = np.repeat(np.arange(_REFERENCE), _ROWS) * DAY_US
        pieces = cut_pieces(bins, table, times, _REFERENCE * DAY_US, DAY_US)
        reference = DriftReference(bins, bins_digest(bins), pieces, table)
    spec = MonitorSpec.model_validate({"every": "1d", "min_rows": 30})
    past: list[JudgedWindow] = []
    alarms = 0
    for day in range(judged):
        start = EPOCH + timedelta(days=_REFERENCE + day)
        rows = rows_of(columns, _REFERENCE + day)
        with cost.of("sketch"):
            profile = sketch_batches(bins, [rows])
        with cost.of("further" if day else "first"):
            request = WindowRequest(
                endpoint="wide",
                monitor="daily",
                spec=spec,
                window=Window(start, start + timedelta(days=1)),
                revision=1,
                settings=Settings(home=Path("/nonexistent")),
                false_per_year=1.0,
                past=tuple(past),
            )
            compared = WindowComparison(
                request, ("m", "1"), reference, "", profile, {}, (), {}, {}, _ROWS
            )
            verdict = compared.verdict(())
            shifts = compared.shifts(verdict)
        alarms += bool(shifts.findings)
        # The windows before come from the store.
        evidence = Evidence.from_json(verdict.evidence.to_json())
        past.append(JudgedWindow(start, verdict.state, evidence))
    steps = [f"{np.median(cost.seconds[step]):.2f} s" for step in ("reference", "sketch", "first")]
    further = f"{np.median(cost.seconds['further'][-5:]):.2f} s"
    return f"| {columns:,} | {' | '.join(steps)} | {further} | {cost.peak:,.0f} MB | {alarms} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", nargs="+", type=int, default=[100, 300, 1_000])
    parser.add_argument("--judged", type=int, default=30, help="days to judge")
    options = parser.parse_args()
    print("| columns | reference | sketch | first verdict | further | peak | red days |")
    print("|---|---|---|---|---|---|---|")
    for columns in options.columns:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            print(process.submit(measure, columns, options.judged).result(), flush=True)


if __name__ == "__main__":
    main()
