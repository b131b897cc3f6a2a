"""Measure verdicts on wide tables next to Evidently's preset: the cost of a window, and
the false alarms and found shifts of quiet streams.

    .venv/bin/python benchmarks/wide.py --columns 20 --rows 1000   # a minute

Each cost is that of a process, which reads a day of a log with a file per hour, and a
reference of 30 days of 1,000 rows.
"""

import argparse
import itertools
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.drifting import streams
from benchmarks.drifting.judging import Line, median_line, yearly_line
from benchmarks.machine import measured
from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.serve.inference_log.storage import endpoint_folder
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.monitors.evaluation import judge_window
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, JudgedWindow

_ENDPOINT = endpoint_folder("simulated")
_REFERENCE = 30
_JUDGED = 3
_DAILY_ROWS = 1_000
_MOST_SECONDS = 300
_MOST_VALUES = 10_000_000
_OWN = {"_model": "", "_version": "", "_segment": "observed", "_row": 0}
_BUDGETS = (1.0, 12.0)
_SIZES = {1.0: 35, 2.0: 10, 4.0: 6}
"""The shifts, in deviations of the days, and the most days until the alarm."""


def rows_of(columns: int, first: int, days: int, rows: int) -> pa.Table:
    """Return the `rows` of each day with their times."""
    rng = np.random.default_rng([columns, first])
    levels = streams.World(columns, 0.2, rows).levels(rng, days)
    times = first * streams.DAY_US + np.arange(days * rows) * (streams.DAY_US // rows)
    moments = pa.array(times, pa.timestamp("us", tz="UTC"))
    return pa.table({**streams.draw_rows(rng, levels, rows), EVENT_TIME: moments})


def write(folder: Path, columns: int, rows: int) -> None:
    """Write the reference, and a log with a file for each hour of the judged days."""
    pq.write_table(rows_of(columns, 0, _REFERENCE, _DAILY_ROWS), folder / "reference.parquet")
    for day in range(_REFERENCE, _REFERENCE + _JUDGED):
        table = rows_of(columns, day, 1, rows)
        times = table[EVENT_TIME]
        parts = {"date": pc.strftime(times, "%Y-%m-%d"), "hour": pc.strftime(times, "%H")}
        own = {name: pa.repeat(value, rows) for name, value in _OWN.items()}
        for name, values in {**parts, **own, "_offset": times.cast(pa.int64())}.items():
            table = table.append_column(name, values)
        pq.write_to_dataset(table, folder / "log" / _ENDPOINT, [*parts])


def ours(folder: Path, _: int) -> list[tuple[float, float]]:
    cost: list[tuple[float, float]] = []
    reference = f"dataset:{folder / 'reference.parquet'}"
    spec = MonitorSpec.model_validate({"every": "1d", "min_rows": 30, "reference": reference})
    settings = Settings(home=folder, log_uri=str(folder / "log"))
    past: list[JudgedWindow] = []
    for day in range(_REFERENCE, _REFERENCE + _JUDGED):
        start = EPOCH + timedelta(days=day)
        request = streams.request_of(Window(start, start + timedelta(days=1)), past, 1.0, spec)
        with measured(cost):
            result = judge_window(replace(request, settings=settings))
        stored = result.evidence.to_json()
        past.append(JudgedWindow(start, result.state, Evidence.from_json(stored)))
        del result  # The controller has it in another process.
    return cost


def evidently(folder: Path, rows: int) -> list[tuple[float, float]]:
    from evidently import Report
    from evidently.presets import DataDriftPreset

    cost: list[tuple[float, float]] = []
    resource.setrlimit(resource.RLIMIT_CPU, (_MOST_SECONDS, _MOST_SECONDS))
    with measured(cost):
        reference = pd.read_parquet(folder / "reference.parquet").drop(columns=EVENT_TIME)
        day = next((folder / "log" / _ENDPOINT).iterdir())
        window = pd.read_parquet(day, columns=[*reference]).head(rows)
        Report([DataDriftPreset()]).run(window, reference).dict()
    return cost


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def cost_lines(columns: int, rows: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as path:
        in_process(write, Path(path), columns, rows)
        # More values would take the memory of this machine.
        for tool, read in ((ours, rows), (evidently, min(rows, _MOST_VALUES // columns))):
            shown = f"– | stopped after {_MOST_SECONDS} s | –"
            with suppress(BrokenProcessPool):
                cost = in_process(tool, Path(path), read)
                peak = max(peak for _, peak in cost)
                shown = f"{cost[0][0]:.1f} s | {cost[-1][0]:.1f} s | {peak:,.0f} MB"
            yield f"| {tool.__name__} | {columns:,} × {read:,} | {shown} |"


def quiet_stream(columns: int, days: int, seed: int) -> tuple[list[int], list[float]]:
    """Return the false alarms with each budget, and the days to find each shift."""
    world = streams.World(columns, 0.2, _DAILY_ROWS)
    stream = streams.simulate(world, seed, days, streams.Change())
    alarms = [streams.count_alarms(streams.judge(stream, budget).alarms) for budget in _BUDGETS]
    shifted = [streams.with_shift(stream, size * world.deviation) for size in _SIZES]
    found = [streams.first_alarm(streams.judge(each, _BUDGETS[0])) for each in shifted]
    print(f"  {columns} columns, stream {seed}: {alarms}, {found}", file=sys.stderr)
    return alarms, found


def year_lines(columns: int, count: int) -> Iterator[Line]:
    days = min(365, 120_000 // columns)
    results = [in_process(quiet_stream, columns, days, seed) for seed in range(count)]
    alarms, found = (np.transpose(each).tolist() for each in zip(*results, strict=True))
    for budget, counts in zip(_BUDGETS, alarms, strict=True):
        what = f"{columns:,} columns: false alarms per year, budget {budget:g}"
        yield yearly_line(what, counts, days / 365.25, 1.5 * budget)
    for (size, most), times in zip(_SIZES.items(), found, strict=True):
        yield median_line(f"one of {columns:,}, + {size:g}: days until the alarm", times, most)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", nargs="+", type=int, default=[20, 100, 300, 1_000])
    parser.add_argument("--rows", nargs="*", type=int, default=[1_000, 100_000])
    parser.add_argument("--streams", type=int, default=2, help="quiet streams of each width")
    options = parser.parse_args()
    parts: list[Iterable[object]] = [
        ["| | columns × rows | first window | each further one | peak |\n|---|---|---|---|---|"],
        *itertools.starmap(cost_lines, itertools.product(options.columns, options.rows)),
        ["\n| | measured; 95 % interval | target | outcome |\n|---|---|---|---|"],
        *(year_lines(columns, options.streams) for columns in options.columns if options.streams),
    ]
    for line in itertools.chain.from_iterable(parts):
        print(line, flush=True)


if __name__ == "__main__":
    main()
