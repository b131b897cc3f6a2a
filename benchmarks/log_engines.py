"""Compare the log's own scan, whose labels DuckDB joins, with other uses of DuckDB and
with pyarrow.dataset: time, memory, and the effect of a damaged file.

    # a minute or two on two cores
    .venv/bin/python benchmarks/log_engines.py
    .venv/bin/python benchmarks/log_engines.py --hours 6 24 --rows 100000

Each engine runs in a separate process, counts the distinct rows of a log and the rows
with a label, and sums a column whose type differs between files. A tenth of the rows is
in two files, as after a compaction that was killed. Half of the rows have a label, and
a tenth of the labels a correction.

- ours: `view_tables`, as used by `onnxserve log query` and the monitors.
- duckdb: one statement over `read_parquet` with union_by_name, 512 MB and a temporary
  folder.
- duckdb by file: one INSERT per file, so that a damaged file does not affect other
  files; duplicates are removed by hour.
- pyarrow: `pyarrow.dataset` with the unified schema, group_by and join in memory.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mlflow_deploy_plugin.serve.inference_log.labels import LABEL_NUMBER
from mlflow_deploy_plugin.serve.inference_log.log_reader import View, open_log, view_tables
from mlflow_deploy_plugin.serve.inference_log.storage import encode_parquet
from mlflow_deploy_plugin.serve.inference_log.tables import unify_schemas

_DAY = datetime(2026, 1, 1, tzinfo=UTC)
_TIME = pa.timestamp("us", tz="UTC")
_FILES_AN_HOUR = 4
_COLUMNS = 8
_MEMORY = "512MB"
_KEYS = "_segment, _offset, _row"
_LABELS = """
    SELECT _prediction_id, _row, max_by(_label_number, (_received_time, _segment, _offset)) AS label
    FROM read_parquet(?, union_by_name = true) GROUP BY ALL
"""
_TOTALS = """
    SELECT count(*), count(label), sum(x0) FROM ({rows})\
 LEFT JOIN ({labels}) USING (_prediction_id, _row)
"""


def write_log(root: Path, hours: int, rows: int) -> None:
    rng = np.random.default_rng(0)
    for hour in range(hours):
        folder = root / f"endpoint=e/date=2026-01-{1 + hour // 24:02d}/hour={hour % 24:02d}"
        folder.mkdir(parents=True)
        times = np.sort(rng.integers(0, 3_600_000_000, rows)) + int(
            (_DAY + timedelta(hours=hour)).timestamp() * 1e6,
        )
        ids = [f"{hour:08x}{number:08x}{'0' * 16}" for number in range(rows)]
        table = pa.table(
            {
                "_event_time": pa.array(times).view(_TIME),
                "_received_time": pa.array(times).view(_TIME),
                "_prediction_id": ids,
                "_model": ["m"] * rows,
                "_version": [str(1 + hour % 2)] * rows,
                "_segment": [f"s{hour}"] * rows,
                "_offset": np.arange(rows) * 128,
                "_row": np.zeros(rows, np.int32),
                "x0": rng.integers(0, 100, rows) if hour % 2 else rng.random(rows),
                **{f"x{column}": rng.random(rows) for column in range(1, _COLUMNS)},
            },
        )
        step = rows // _FILES_AN_HOUR
        # The last tenth of a file's rows is also in the next file.
        for number in range(_FILES_AN_HOUR):
            part = table.slice(
                max(0, number * step - step // 10),
                step + (step // 10 if number else 0),
            )
            (folder / f"f{number}.parquet").write_bytes(encode_parquet(part))
        labelled = np.concatenate([np.arange(0, rows, 2), np.arange(0, rows, 20)])
        first = int(times[0])
        labels = pa.table(
            {
                "_prediction_id": table.column("_prediction_id").take(pa.array(labelled)),
                "_row": pa.array(np.zeros(len(labelled), np.int32)),
                "_key": pa.nulls(len(labelled), pa.string()),
                "_label": pa.array(np.where(np.arange(len(labelled)) % 3, "1", "0")),
                "_label_number": pa.array(np.where(np.arange(len(labelled)) % 3, 1.0, 0.0)),
                "_received_time": pa.array(first + 3_600_000_000 + np.arange(len(labelled))).view(
                    _TIME,
                ),
                "_segment": [f"l{hour}"] * len(labelled),
                "_offset": np.arange(len(labelled)),
            },
        )
        place = root / f"_labels/endpoint=e/date=2026-01-{1 + hour // 24:02d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"l{hour}.parquet").write_bytes(encode_parquet(labels))


def ours(root: Path) -> tuple[int, int, float]:
    rows = labelled = 0
    total = 0.0
    for table in view_tables(open_log(str(root)), View("e"), ["x0", LABEL_NUMBER]):
        rows += len(table)
        labelled += len(table) - table.column(LABEL_NUMBER).null_count
        total += float(np.nansum(table.column("x0").to_numpy()))
    return rows, labelled, total


def _files(root: Path) -> tuple[list[str], list[str]]:
    rows = sorted(map(str, root.glob("endpoint=e/**/*.parquet")))
    return rows, sorted(map(str, root.glob("_labels/**/*.parquet")))


def _connect(folder: str) -> Any:
    import duckdb  # Imported here, because the other engines are measured without it.

    return duckdb.connect(
        f"{folder}/db",
        config={"memory_limit": _MEMORY, "temp_directory": folder, "threads": "2"},
    )


def duckdb_one(root: Path) -> tuple[int, int, float]:
    rows, labels = _files(root)
    distinct = (
        f"SELECT DISTINCT ON ({_KEYS}) _prediction_id, _row, x0, {_KEYS} FROM read_parquet(?, "
        "union_by_name = true)"
    )
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        connection = _connect(folder)
        return tuple(
            connection.execute(
                _TOTALS.format(rows=distinct, labels=_LABELS),
                [rows, labels],
            ).fetchone(),
        )


def duckdb_by_file(root: Path) -> tuple[int, int, float]:
    import duckdb

    rows, labels = _files(root)
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        connection = _connect(folder)
        connection.execute("CREATE TEMP TABLE labels AS " + _LABELS, [labels])
        totals = np.zeros(3)
        for hour in sorted({str(Path(file).parent) for file in rows}):
            connection.execute(
                "CREATE OR REPLACE TEMP TABLE hour (_prediction_id VARCHAR, _segment VARCHAR, "
                "_offset BIGINT, _row INTEGER, x0 DOUBLE)",
            )
            for file in (file for file in rows if str(Path(file).parent) == hour):
                try:
                    connection.execute(
                        f"INSERT INTO hour BY NAME SELECT _prediction_id, {_KEYS}, x0 FROM "
                        "read_parquet(?)",
                        [file],
                    )
                except duckdb.Error as error:
                    print(f"skipped {Path(file).name}: {str(error)[:60]}", file=sys.stderr)
            distinct = f"SELECT DISTINCT ON ({_KEYS}) * FROM hour"
            totals += connection.execute(
                _TOTALS.format(rows=distinct, labels="FROM labels"),
            ).fetchone()
        return int(totals[0]), int(totals[1]), float(totals[2])


def pyarrow_dataset(root: Path) -> tuple[int, int, float]:
    rows, labels = _files(root)
    keys = ["_segment", "_offset", "_row"]
    schema = unify_schemas(pa.parquet.read_schema(file) for file in rows)
    data = pyarrow.dataset.dataset(rows, schema=schema).to_table(
        columns=[*keys, "_prediction_id", "x0"],
    )
    distinct = data.group_by(keys).aggregate([("_prediction_id", "max"), ("x0", "max")])
    distinct = distinct.rename_columns([*keys, "_prediction_id", "x0"])
    told = (
        pyarrow.dataset.dataset(labels)
        .to_table()
        .sort_by([("_received_time", "ascending"), ("_offset", "ascending")])
    )
    last = told.group_by(["_prediction_id", "_row"], use_threads=False).aggregate(
        [("_label_number", "last")],
    )
    joined = distinct.join(last, ["_prediction_id", "_row"])
    label = joined.column("_label_number_last")
    return (
        len(joined),
        len(joined) - label.null_count,
        float(pa.compute.sum(joined.column("x0")).as_py()),
    )


ENGINES: dict[str, Callable[[Path], tuple[int, int, float]]] = {
    "ours": ours,
    "duckdb": duckdb_one,
    "duckdb by file": duckdb_by_file,
    "pyarrow": pyarrow_dataset,
}


def _measure(engine: str, root: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--engine", engine, "--root", str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0:
        return json.loads(lines[-1])
    return {"error": done.stderr.strip().splitlines()[-1][:110]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hours", type=int, nargs="+", default=[6, 24])
    parser.add_argument("--rows", type=int, default=200_000, help="an hour")
    parser.add_argument("--engine", choices=ENGINES)
    parser.add_argument("--root", type=Path)
    options = parser.parse_args()
    if options.engine:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        found = ENGINES[options.engine](options.root)
        seconds = time.perf_counter() - started
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps({"seconds": round(seconds, 1), "MB": round(memory), "found": found}))
        return
    for hours in options.hours:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, "log")
            write_log(root, hours, options.rows)
            for engine in ENGINES:
                print(
                    f"{hours} h of {options.rows:,} rows, {engine}: {_measure(engine, root)}",
                    flush=True,
                )
            damaged = root / "endpoint=e/date=2026-01-01/hour=01/f1.parquet"
            content = bytearray(damaged.read_bytes())
            content[len(content) // 20 : len(content) // 2] = bytes(
                len(content) // 2 - len(content) // 20,
            )
            damaged.write_bytes(content)
            for engine in ENGINES:
                print(
                    f"{hours} h, one file damaged, {engine}: {_measure(engine, root)}",
                    flush=True,
                )
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
