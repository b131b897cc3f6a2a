"""Measure verdicts on wide tables: the cost of a window next to Evidently's preset, and
false alarms and found shifts in simulated years.

    nice .venv/bin/python benchmarks/wide.py
    .venv/bin/python benchmarks/wide.py --columns 100 --rows 1000 --only cost
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# One thread, as in the judging processes of a busy machine.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.drifting.judging import Line, median_line, yearly_line
from benchmarks.drifting.streams import (
    CHANGED,
    DAY_US,
    Change,
    World,
    count_alarms,
    first_alarm,
    judge,
    request_of,
    simulate,
)
from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.serve.inference_log.storage import endpoint_folder
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.monitors.evaluation import judge_window
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, JudgedWindow, SeriesKey
from mlflow_deploy_plugin.watch.sequential.levels import LEVEL, MEAN

_REFERENCE = 30
_REFERENCE_ROWS = 1_000
_JUDGED = 3
_DAY = timedelta(days=1)
_CAP = 600
_STREAMS = 6
_SIZES = {1.0: 35, 2.0: 10, 4.0: 6}
"""The shifts, in deviations of the days, and the most days until the alarm."""
_OWN = {"_model": "", "_version": "", "_segment": "observed"}


@dataclass
class Cost:
    """The CPU seconds and the largest memory, in MB, of each step."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
        begun = time.process_time()
        yield
        seconds = time.process_time() - begun
        status = Path("/proc/self/status").read_text().split()
        peak = int(status[status.index("VmHWM:") + 1]) / 1_000
        print(f"  {step}: {seconds:.2f} s, {peak:,.0f} MB", file=sys.stderr)
        self.seconds.setdefault(step, []).append(seconds)
        self.peaks[step] = max(self.peaks.get(step, 0), peak)


def rows_of(columns: int, day: int, rows: int, days: int = 1) -> pa.Table:
    """Return the `rows` of each day; the level of each column varies between days."""
    rng = np.random.default_rng([columns, day])
    table = {}
    for number in range(columns):
        levels = np.repeat(rng.normal(0, 0.2, days), rows)
        table[f"x{number}"] = levels + rng.normal(size=days * rows)
    return pa.table(table)


def write(folder: Path, columns: int, rows: int) -> None:
    """Write the reference, and a log with a file for each hour of the judged days."""
    days = _REFERENCE
    table = rows_of(columns, 0, _REFERENCE_ROWS, days)
    times = np.arange(days * _REFERENCE_ROWS) * (DAY_US // _REFERENCE_ROWS)
    table = table.append_column(EVENT_TIME, pa.array(times, pa.timestamp("us", tz="UTC")))
    pq.write_table(table, folder / "reference.parquet")
    for day in range(days, days + _JUDGED):
        table = rows_of(columns, day, rows)
        times = day * DAY_US + np.arange(rows) * (DAY_US // rows)
        table = table.append_column(EVENT_TIME, pa.array(times, pa.timestamp("us", tz="UTC")))
        for name, value in _OWN.items():
            table = table.append_column(name, pa.repeat(value, rows))
        table = table.append_column("_offset", pa.array(times))
        table = table.append_column("_row", pa.repeat(pa.scalar(0, pa.int32()), rows))
        hours = np.searchsorted(times, day * DAY_US + np.arange(25) * (DAY_US // 24))
        for hour, begin, end in zip(range(24), hours, hours[1:], strict=False):
            start = EPOCH + timedelta(days=day, hours=hour)
            path = folder / "log" / endpoint_folder("simulated")
            path /= f"{start:date=%Y-%m-%d/hour=%H/rows.parquet}"
            path.parent.mkdir(parents=True)
            pq.write_table(table.slice(begin, end - begin), path)


def window_of(day: int) -> Window:
    start = EPOCH + day * _DAY
    return Window(start, start + _DAY)


def ours(folder: Path) -> Cost:
    """Judge the days of the log as the controller's child process does."""
    cost = Cost()
    spec = MonitorSpec.model_validate(
        {"every": "1d", "min_rows": 30, "reference": f"dataset:{folder / 'reference.parquet'}"}
    )
    settings = Settings(home=folder, log_uri=str(folder / "log"))
    past: list[JudgedWindow] = []
    for day in range(_REFERENCE, _REFERENCE + _JUDGED):
        request = replace(request_of(window_of(day), past, 1.0, spec), settings=settings)
        with cost.of("further" if past else "first"):
            result = judge_window(request)
        print(result.state, result.reason, file=sys.stderr)
        evidence = Evidence.from_json(result.evidence.to_json())
        past.append(JudgedWindow(request.window.start, result.state, evidence))
        del result
    return cost


def evidently(folder: Path, rows: int) -> Cost:
    """Run Evidently's preset on the first judged day, as a table of pandas."""
    from evidently import Report
    from evidently.presets import DataDriftPreset

    cost = Cost()
    signal.alarm(_CAP)  # Ends the process.
    with cost.of("further"):
        reference = pd.read_parquet(folder / "reference.parquet")
        day = folder / "log" / endpoint_folder("simulated") / f"{EPOCH + _REFERENCE * _DAY:date=%F}"
        window = pd.read_parquet(day)[reference.columns].head(rows)
        names = [name for name in reference if name != EVENT_TIME]
        Report([DataDriftPreset(columns=names)]).run(window, reference).dict()
    return cost


def cost_lines(columns: int, all_rows: Sequence[int]) -> Iterator[str]:
    for rows in all_rows:
        yield from cost_of(columns, rows)


def cost_of(columns: int, rows: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        in_process(write, folder, columns, rows)
        cost = in_process(ours, folder)
        seconds = f"{cost.seconds['first'][0]:.1f} s | {np.mean(cost.seconds['further']):.1f} s"
        peak = max(cost.peaks.values())
        yield f"| ours, {columns:,} × {rows:,} | {seconds} | {peak:,.0f} MB |"
        for fewer in dict.fromkeys((rows, rows // 10, rows // 100)):
            try:
                cost = in_process(evidently, folder, fewer)
            except BrokenProcessPool:
                yield f"| Evidently, {columns:,} × {fewer:,} | – | over {_CAP} s | – |"
                continue
            shown = f"{cost.seconds['further'][0]:.1f} s | {cost.peaks['further']:,.0f} MB"
            yield f"| Evidently, {columns:,} × {fewer:,} | – | {shown} |"
            return


def judged(columns: int, judged_days: int, seed: int) -> tuple[int, dict[float, float]]:
    """Return the false alarms of a stream, and by size the days until the alarm of a
    lasting shift of one column, in deviations of its days.
    """
    world = World(columns, 0.2, _REFERENCE_ROWS)
    stream = simulate(world, seed, judged_days, Change())
    quiet = judge(stream, 1.0)
    found = {}
    for size in _SIZES:
        shifted = replace(stream)
        past = []
        for window in stream.past:
            levels = dict(window.evidence.levels)
            for figure in (LEVEL, MEAN):
                levels[SeriesKey(f"x{CHANGED}", figure)] += size * world.deviation
            past.append(replace(window, evidence=replace(window.evidence, levels=levels)))
        vars(shifted)["past"] = past
        found[size] = first_alarm(judge(shifted, 1.0))
    print(f"  {columns} columns, stream {seed}: {quiet.alarms.sum()}, {found}", file=sys.stderr)
    return count_alarms(quiet.alarms), found


def year_lines(columns: int, _: Sequence[int]) -> Iterator[Line]:
    days = min(365, 120_000 // columns)
    streams = [in_process(judged, columns, days, seed) for seed in range(_STREAMS)]
    alarms, found = zip(*streams, strict=True)
    yield yearly_line(f"false alarms per year, {columns:,} columns", alarms, days / 365.25, 1.5)
    for size, most in _SIZES.items():
        times = [one[size] for one in found]
        yield median_line(f"+ {size:g} of one of {columns:,}: days until the alarm", times, most)


PARTS: Mapping[str, tuple[str, Callable[[int, Sequence[int]], Iterator[object]]]] = {
    "cost": (
        "| columns × rows | first window | each further one | peak |\n|---|---|---|---|",
        cost_lines,
    ),
    "years": ("| | measured; 95 % interval | target | outcome |\n|---|---|---|---|", year_lines),
}


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", nargs="+", type=int, default=[20, 100, 300, 1_000])
    parser.add_argument("--rows", nargs="+", type=int, default=[1_000, 100_000])
    parser.add_argument("--only", choices=PARTS)
    options = parser.parse_args()
    for part in [options.only] if options.only else PARTS:
        head, lines_of = PARTS[part]
        print(head)
        for columns in options.columns:
            for line in lines_of(columns, options.rows):
                print(line, flush=True)


if __name__ == "__main__":
    main()
