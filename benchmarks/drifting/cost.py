"""Measure the cost of judging drift: sketches and Evidently's preset on a year of New
York's flights with weather.

    .venv/bin/python -m benchmarks.drifting.cost            # some minutes on two cores
    # also the year in an inference log, a file per hour
    .venv/bin/python -m benchmarks.drifting.cost --log

The script prints CPU seconds and peak memory. Each part runs in a separate process, and
imports are not measured:

- **sketches**: bins fixed on January to March; every hour of the year sketched with
  them, the hours merged into twelve months, and the distance and missing share of every
  column of each month compared with the reference.
- **Evidently**: `DataDriftPreset` of each of the twelve months against January to
  March, as a dictionary; no HTML.
- **days**: each of the 365 days judged.
- **rows**: a Parquet file of the year, once, four times and sixteen times, sketched
  batch by batch.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.drift.references.load import freeze_table
from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference, cut_pieces
from mlflow_deploy_plugin.watch.drift.sketches.bins import bins_digest
from mlflow_deploy_plugin.watch.drift.sketches.hourly import SketchStore, window_profile
from mlflow_deploy_plugin.watch.drift.sketches.sketch import merge, sketch_batches, sketch_groups
from mlflow_deploy_plugin.watch.drift.verdict import judge_profile
from projects.flight_delay.data import EVENT_TIME, FEATURES, TRAINING_MONTHS, load_flights, months

COLUMNS = [name for name in FEATURES if name != "weekend"]
"""15 columns, because Evidently ignores booleans."""
TARGET = 20.0
_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US
_YEAR_HOURS = 8760
_START = datetime(2013, 1, 1, tzinfo=UTC)
Figures = dict[str, float]


def load() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the flights of 2013 (UTC), and the flights of January to March."""
    flights = load_flights()
    return months(flights, 1, 12), months(flights, *TRAINING_MONTHS)


def table_of(flights: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(flights[COLUMNS], preserve_index=False)


def times_of(flights: pd.DataFrame) -> np.ndarray:
    """Return [N] int64 microseconds since 1970."""
    return flights[EVENT_TIME].astype("datetime64[us, UTC]").astype("int64").to_numpy()


def sketches() -> Figures:
    year, calm = load()
    table = table_of(year)
    times = times_of(year)
    reference = table_of(calm)
    month = year[EVENT_TIME].dt.month.to_numpy()
    begin = _Begin()
    bins, _ = freeze_table(reference, (), "January to March")
    total = sketch_batches(bins, [reference])
    hours = (times - int(_START.timestamp()) * 1_000_000) // _HOUR_US
    monthly = []
    count = 0
    for one in range(1, 13):
        first, last = np.searchsorted(month, [one, one + 1]).tolist()  # the rows are sorted by time
        present, groups = np.unique(hours[first:last], return_inverse=True)
        monthly.append(
            merge(sketch_groups(bins, table.slice(first, last - first), groups, len(present))),
        )
        count += len(present)
    inputs = [
        (
            float(bins[name].distance(column.counts[:-1], total.columns[name].counts[:-1])),
            column.missing / column.rows,
        )
        for profile in monthly
        for name, column in profile.columns.items()
    ]
    return begin.figures(
        rows=sum(profile.rows for profile in monthly),
        inputs=len(inputs),
        hours=count,
    )


def evidently() -> Figures:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    year, calm = load()
    month = year[EVENT_TIME].dt.month
    texts = ["carrier", "origin", "dest"]
    numbers = [name for name in COLUMNS if name not in texts]
    begin = _Begin()
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=texts)
    reference = Dataset.from_pandas(
        calm[COLUMNS].astype(dict.fromkeys(texts, object)),
        data_definition=definition,
    )
    inputs = 0
    for one in range(1, 13):
        current = year.loc[month == one, COLUMNS].astype(dict.fromkeys(texts, object))
        report = Report([DataDriftPreset()]).run(
            Dataset.from_pandas(current, data_definition=definition),
            reference,
        )
        inputs += len(report.dict()["metrics"])
    return begin.figures(rows=len(year), inputs=inputs)


def days() -> Figures:
    year, calm = load()
    table = table_of(year)
    times = times_of(year)
    reference = table_of(calm)
    calm_times = times_of(calm)
    spec = MonitorSpec()
    begin = _Begin()
    bins, _ = freeze_table(reference, (), "January to March")
    start = int(_START.timestamp()) * 1_000_000
    pieces = cut_pieces(bins, reference, calm_times, start, _DAY_US)
    whole = DriftReference(bins, bins_digest(bins), pieces, reference)
    states: dict[str, int] = {}
    numbers = (times - start) // _DAY_US
    present, groups = np.unique(numbers, return_inverse=True)
    for day, profile in zip(
        present.tolist(),
        sketch_groups(bins, table, groups, len(present)),
        strict=True,
    ):
        verdict = judge_profile(whole, profile, start + day * _DAY_US, spec)
        states[verdict.state] = states.get(verdict.state, 0) + 1
    return begin.figures(
        days=len(present),
        **{name.replace(" ", "_"): count for name, count in states.items()},
    )


def rows(path: str) -> Figures:
    _, calm = load()
    bins, _ = freeze_table(table_of(calm), (), "January to March")
    begin = _Begin()
    profile = sketch_batches(bins, pq.ParquetFile(path).iter_batches())
    return begin.figures(rows=profile.rows)


def log(folder: str) -> Figures:
    """Return the figures for the profile of the year in a log: first from its rows,
    then from the stored profiles.
    """
    _, calm = load()
    bins, _ = freeze_table(table_of(calm), (), "January to March")
    year = Window(_START, _START + timedelta(days=365))
    begin = _Begin()
    sketches = SketchStore(open_log(folder), "flights", bins, bins_digest(bins))
    profile = window_profile(sketches, "flight-delay", "1", year)
    return begin.figures(rows=profile.rows)


def write_log(folder: Path) -> None:
    """Write the year like the agent, a file per hour."""
    year, _ = load()
    table = table_of(year)
    times = times_of(year)
    own = {
        "_event_time": pa.array(times, pa.timestamp("us", tz="UTC")),
        "_model": pa.repeat("flight-delay", len(table)),
        "_version": pa.repeat("1", len(table)),
        "_segment": pa.repeat("s", len(table)),
        "_offset": pa.repeat(0, len(table)),
        "_row": pa.array(np.arange(len(table)), pa.int32()),
    }
    for name, values in own.items():
        table = table.append_column(name, values)
    cuts = np.flatnonzero(np.diff(times // _HOUR_US, prepend=-1, append=-1))
    for first, last in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        hour = datetime.fromtimestamp(int(times[first]) // 1_000_000, UTC)
        path = (
            folder
            / "endpoint=flights"
            / f"date={hour:%Y-%m-%d}"
            / f"hour={hour:%H}"
            / "rows.parquet"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(first, last - first), path, compression="zstd")


def write_rows(path: Path, times: int) -> None:
    year, _ = load()
    table = table_of(year)
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(times):
            writer.write_table(table)


class _Begin:
    """CPU seconds and memory since its creation."""

    def __init__(self) -> None:
        self._memory = _peak_mb()
        self._cpu = time.process_time()
        self._wall = time.perf_counter()

    def figures(self, **more: float) -> Figures:
        return {
            "cpu_seconds": time.process_time() - self._cpu,
            "wall_seconds": time.perf_counter() - self._wall,
            "more_mb": _peak_mb() - self._memory,
            "peak_mb": _peak_mb(),
            **more,
        }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


PARTS: dict[str, Callable[..., Figures]] = {
    "sketches": sketches,
    "evidently": evidently,
    "days": days,
    "rows": rows,
    "log": log,
}


def measure(part: str, *arguments: str) -> Figures:
    """Return the figures of one part, which runs in a separate process."""
    command = [sys.executable, "-m", "benchmarks.drifting.cost", "--part", part, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--log",
        action="store_true",
        help="also measure the year in an inference log",
    )
    parser.add_argument("--part", nargs="+", metavar="PART", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part[0]](*options.part[1:])))
        return
    show(options.log)


def show(with_log: bool = False) -> None:
    ours = measure("sketches")
    theirs = measure("evidently")
    ratio = theirs["cpu_seconds"] / ours["cpu_seconds"]
    print(f"12 months, {ours['rows']:,.0f} rows, {len(COLUMNS)} columns", flush=True)
    _show("sketches of every hour, months, distances", ours)
    _show("Evidently's DataDriftPreset of every month", theirs)
    print(f"Evidently / sketches: {ratio:.0f} × CPU (target: at least {TARGET:.0f})")
    _show("every day judged", measure("days"))
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, 4, 16):
            path = Path(folder, "rows.parquet")
            write_rows(path, times)
            figures = measure("rows", str(path))
            _show(f"{figures['rows']:,.0f} rows of a Parquet file", figures)
        if with_log:
            write_log(Path(folder, "log"))
            _show("the year in a log, from its rows", measure("log", str(Path(folder, "log"))))
            _show(
                "the year in a log, from the profiles of its hours",
                measure("log", str(Path(folder, "log"))),
            )


def _show(name: str, figures: Figures) -> None:
    known = ("cpu_seconds", "wall_seconds", "more_mb", "peak_mb")
    more = ", ".join(f"{key} {value:,.0f}" for key, value in figures.items() if key not in known)
    print(
        f"{name:52} {figures['cpu_seconds']:8.2f} s CPU {figures['wall_seconds']:8.2f} s "
        f"{figures['more_mb']:7.0f} MB growth, {figures['peak_mb']:6.0f} MB peak   {more}",
        flush=True,
    )


if __name__ == "__main__":
    main()
