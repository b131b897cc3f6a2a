"""The cost of a judgement of a million rows with thirty numeric columns: CPU, wall
time, and memory of all processes.

Each figure is measured in a fresh process. The memory is the largest sum of the
resident sizes of the process and its children. The rows have no drift. The script
prints the figures of only this part with a name of `RUNS`:

    .venv/bin/python -m benchmarks.over_time.cost captured
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.drifting.judging import Line, Outcome

ROWS = 1_000_000
REFERENCE_ROWS = 100_000
COLUMNS = 30
"""The rows of the window, and of a reference in a model folder
(`wrap.flavor.saved_model.MAX_REFERENCE_ROWS`).
"""
NAME = "numbers"
_DAY = datetime(2026, 4, 1, tzinfo=UTC)
_REFERENCE_DAYS = 90
_PAUSE = 0.01


class Cost(NamedTuple):
    cpu_seconds: float
    seconds: float
    megabytes: float


def table(rows: int, seed: int, days: int = 0) -> pa.Table:
    """Return random rows. With `days`, the rows have event times: in the last `days`
    before `_DAY` for a reference, and on `_DAY` if `days` is -1.
    """
    rng = np.random.default_rng(seed)
    columns = {f"x{number:02d}": rng.normal(size=rows) for number in range(COLUMNS)}
    if days:
        start = _DAY - timedelta(days=max(days, 0))
        microseconds = (
            np.sort(rng.integers(0, abs(days) * 86_400_000_000, rows))
            + int(start.timestamp()) * 1_000_000
        )
        columns["_event_time"] = pa.array(microseconds, pa.timestamp("us", tz="UTC"))
    return pa.table(columns)


def write_log(root: Path, rows: pa.Table) -> None:
    """Write the rows as the agent does, in a file per hour."""
    from mlflow_deploy_plugin.serve.inference_log.storage import encode_parquet

    count = len(rows)
    own = {
        name: pa.repeat(value, count)
        for name, value in (("_model", NAME), ("_version", "1"), ("_segment", "s"))
    }
    own |= {"_offset": pa.array(np.arange(count)), "_row": pa.array(np.zeros(count, np.int32))}
    for name, values in own.items():
        rows = rows.append_column(name, values)
    hours = rows.column("_event_time").cast(pa.int64()).to_numpy() // 3_600_000_000
    for hour in np.unique(hours).tolist():
        start, stop = np.searchsorted(hours, [hour, hour + 1]).tolist()
        moment = datetime.fromtimestamp(hour * 3600, UTC)
        folder = root / f"endpoint={NAME}" / moment.strftime("date=%Y-%m-%d/hour=%H")
        folder.mkdir(parents=True)
        (folder / "file.parquet").write_bytes(encode_parquet(rows.slice(start, stop - start)))


def serve(root: Path, reference: pa.Table) -> None:
    """Write the state folder of a server whose model has this reference."""
    from mlflow_deploy_plugin.core.statedir.files import WANTED, write_state
    from mlflow_deploy_plugin.core.statedir.models import Wanted, WantedEndpoint, WantedVariant

    model = root / "model"
    state = root / "home/deployments" / NAME
    model.mkdir()
    state.mkdir(parents=True)
    (model / "model.onnx").write_bytes(b"not opened here")
    pq.write_table(reference, model / "reference.parquet")
    logged = {"data": "reference.parquet", "rows": len(reference)}
    flavor = {"data": "model.onnx", "onnxserve_version": "0", "reference": logged}
    (model / "MLmodel").write_text(
        json.dumps({"mlflow_version": "3", "flavors": {"onnxserve": flavor}}),
    )
    uri = f"models:/{NAME}/1"
    (state / "spec.yaml").write_text(json.dumps({"name": NAME, "variants": {NAME: {"model": uri}}}))
    variant = WantedVariant(model_uri=uri, model=NAME, version="1", folder=model)
    write_state(
        state / WANTED,
        Wanted(generation=1, endpoints={NAME: WantedEndpoint(variants={NAME: variant})}),
    )


def prepare_library(root: Path, rows: int) -> list[str]:
    pq.write_table(table(rows, 1, -1), root / "recent.parquet")
    pq.write_table(table(REFERENCE_ROWS, 0, _REFERENCE_DAYS), root / "training.parquet")
    return [
        "-m",
        __spec__.name if __spec__ else "benchmarks.over_time.cost",
        "--library",
        str(root),
    ]


def prepare_files(root: Path, rows: int, is_timed: bool = False) -> list[str]:
    pq.write_table(table(rows, 1, -1 if is_timed else 0), root / "recent.parquet")
    pq.write_table(table(rows, 0, _REFERENCE_DAYS if is_timed else 0), root / "training.parquet")
    files = ["--rows", str(root / "recent.parquet"), "--reference", str(root / "training.parquet")]
    return ["-m", "mlflow_deploy_plugin.cli", "drift", "run", NAME, *files]


def prepare_captured(root: Path, rows: int) -> list[str]:
    write_log(root / "log", table(rows, 1, -1))
    serve(root, table(REFERENCE_ROWS, 0, _REFERENCE_DAYS))
    return [
        "-m",
        "mlflow_deploy_plugin.cli",
        "drift",
        "run",
        NAME,
        "--window",
        f"{_DAY:%Y-%m-%d}/1d",
    ]


RUNS: dict[str, tuple[str, Callable[[Path, int], list[str]], Cost]] = {
    "library": ("library", prepare_library, Cost(6, np.inf, 600)),
    "files": ("`drift run` of two files", prepare_files, Cost(np.inf, 25, 700)),
    "timed": (
        "`drift run` of two files with event times",
        lambda root, rows: prepare_files(root, rows, is_timed=True),
        Cost(np.inf, 25, 700),
    ),
    "captured": ("`drift run` of captured rows", prepare_captured, Cost(np.inf, 25, 700)),
}


def judge_in_library(root: Path) -> None:
    """Print the CPU seconds for sketching the window
    with frozen bins and judging it.
    """
    from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
    from mlflow_deploy_plugin.serve.inference_log.scan import microseconds_of
    from mlflow_deploy_plugin.watch.drift.references.load import freeze_table
    from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference, cut_pieces
    from mlflow_deploy_plugin.watch.drift.sketches.bins import bins_digest
    from mlflow_deploy_plugin.watch.drift.sketches.sketch import sketch_batches
    from mlflow_deploy_plugin.watch.drift.verdict import judge_profile

    rows = pq.read_table(root / "training.parquet")
    bins, _ = freeze_table(rows, (), "the reference")
    start = int(_DAY.timestamp()) * 1_000_000
    day = 86_400_000_000
    pieces = cut_pieces(bins, rows, microseconds_of(rows.column("_event_time")), start, day)
    reference = DriftReference(bins, bins_digest(bins), pieces, rows)
    begun = time.process_time()
    window = sketch_batches(
        bins,
        pq.ParquetFile(root / "recent.parquet", buffer_size=2**16, pre_buffer=False).iter_batches(),
    )
    judge_profile(reference, window, start, MonitorSpec())
    print(time.process_time() - begun)


def measure(name: str, rows: int) -> Cost:
    """Return the cost of a run in a fresh process, with the memory of its children."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        command = [sys.executable, *RUNS[name][1](root, rows)]
        own = {"ONNXSERVE_HOME": str(root / "home"), "ONNXSERVE_LOG_URI": str(root / "log")}
        own["MLFLOW_TRACKING_URI"] = f"sqlite:///{root}/mlflow.db"
        own["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        # A new database takes seconds.
        create = "import mlflow; mlflow.MlflowClient().create_experiment('other')"
        environment = {**os.environ, **own}
        subprocess.run(
            [sys.executable, "-c", create],
            env=environment,
            cwd=root,
            check=True,
            capture_output=True,
        )
        begun = time.perf_counter()
        peak = 0
        with (root / "output").open("w+") as output:
            child = subprocess.Popen(
                command,
                env=environment,
                cwd=root,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            tree = psutil.Process(child.pid)
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    break
                peak = max(peak, _resident(tree))
                time.sleep(_PAUSE)
            child.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - begun
            output.seek(0)
            text = output.read()
        if child.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{text}")
        cpu_seconds = (
            float(text.split()[-1]) if name == "library" else usage.ru_utime + usage.ru_stime
        )
        return Cost(cpu_seconds, seconds, max(peak, usage.ru_maxrss * 1024) / 1e6)


def _resident(process: psutil.Process) -> int:
    total = 0
    try:
        for member in (process, *process.children(recursive=True)):
            total += member.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # A process ended between the two calls.
    return total


def lines(share: float) -> Iterator[Line]:
    """Yield the costs with their targets. `share` is the share of the rows."""
    rows = max(int(ROWS * share), 10_000)
    for name, (what, _, target) in RUNS.items():
        cost = measure(name, rows)
        figure = f"{cost.cpu_seconds:.1f} s CPU, {cost.seconds:.1f} s, {cost.megabytes:.0f} MB"
        limits = zip(target, ("s CPU", "s", "MB"), strict=True)
        text = " and ".join(
            f"at most {limit:g} {unit}" for limit, unit in limits if np.isfinite(limit)
        )
        outcome: Outcome = (
            "met"
            if all(value <= limit for value, limit in zip(cost, target, strict=True))
            else "missed"
        )
        yield Line(f"{what}, {rows:,} rows, {COLUMNS} columns", figure, text, outcome)


if __name__ == "__main__":
    if sys.argv[1] == "--library":
        judge_in_library(Path(sys.argv[2]))
    else:
        print(*(f"{name}: {measure(name, ROWS)}" for name in sys.argv[1:]), sep="\n")
