"""Measure a back-test of 100,000 captured and labelled rows, next to ONNX Runtime
without the log.

    .venv/bin/python benchmarks/replay.py               # a minute on two cores
    .venv/bin/python benchmarks/replay.py --rows 1000000

The rows have the 19 columns of the demo's flights model: four texts, ten doubles, four
integers and a boolean. The candidate is a logistic regression with one-hot encoded
texts. The served version was trained on other rows, so some answers differ. Each row
has a label. The command runs in a separate process, as `onnxserve backtest flights
--window … --against FOLDER -o json` runs it; its time includes the start of Python and
its memory is the largest resident memory.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

_DAY = datetime(2026, 1, 1, tzinfo=UTC)
_HOURS = 24
_TRAINED = 2_000
_TEXTS = {"carrier": 16, "origin": 3, "dest": 105, "tail": 400}
_INTEGERS = ("month", "weekday", "hour", "distance")
_DOUBLES = (
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
    "schedule",
)


def flights(rows: int, seed: int) -> pd.DataFrame:
    """Return random flights with 19 columns, and the column `delayed`, which is the
    label.
    """
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            **{
                name: [f"{name}{code}" for code in rng.integers(0, count, rows)]
                for name, count in _TEXTS.items()
            },
            **{name: rng.integers(0, 30, rows) for name in _INTEGERS},
            **{name: rng.normal(10, 5, rows) for name in _DOUBLES},
            "holiday": rng.integers(0, 2, rows).astype(bool),
        },
    )
    score = (
        0.2 * (table["temp"] - table["wind_speed"])
        + 0.1 * (table["hour"] - 15)
        + rng.normal(0, 2, rows)
    )
    return table.assign(delayed=(score > 0).astype(np.int64))


def save_version(folder: Path, seed: int) -> Path:
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    import mlflow_deploy_plugin

    table = flights(_TRAINED, seed)
    inputs = table.drop(columns="delayed")
    label = table["delayed"]
    columns = make_column_transformer(
        (StandardScaler(), [*_INTEGERS, *_DOUBLES]),
        (OneHotEncoder(handle_unknown="ignore"), [*_TEXTS, "holiday"]),
    )
    model = make_pipeline(columns, LogisticRegression(max_iter=1000)).fit(inputs, label)
    mlflow_deploy_plugin.save_model(model, folder, input_example=inputs.head(5))
    return folder


def write_log(root: Path, table: pd.DataFrame, served: Path) -> None:
    """Write the rows with the answers of the version `served` in one file per hour, and
    all labels in one file.
    """
    from mlflow_deploy_plugin.serve.inference_log.labels import Label, labels_table
    from mlflow_deploy_plugin.serve.inference_log.storage import encode_parquet
    from mlflow_deploy_plugin.serve.runtime.log_columns import to_log_columns
    from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
    from mlflow_deploy_plugin.wrap.evaluation.model import LoadedOnnx

    model = OnnxModel.load(served)
    inputs = {name: table[name].to_numpy() for name in table.columns if name != "delayed"}
    outputs = LoadedOnnx(model).outputs(inputs)
    rows = len(table)
    columns = to_log_columns(
        model.schema,
        model.artifact.prediction,
        model.schema.from_columns(inputs),
        outputs,
    )
    times = pa.array(
        [_DAY + timedelta(hours=_HOURS) * (row / rows) for row in range(rows)],
        pa.timestamp("us", "UTC"),
    )
    ids = [f"{row:032x}" for row in range(rows)]
    captured = pa.table(
        {
            "_event_time": times,
            "_received_time": times,
            "_prediction_id": ids,
            "_model": ["flights"] * rows,
            "_version": ["1"] * rows,
            "_variant": ["main"] * rows,
            "_segment": ["s"] * rows,
            "_offset": np.arange(rows) * 128,
            "_row": np.zeros(rows, np.int32),
            "_latency_us": np.full(rows, 1_000),
            **{
                name: pa.array(list(array)) if array.ndim > 1 else array
                for name, array in columns.items()
            },
        },
    )
    bounds = np.arange(_HOURS + 1) * rows // _HOURS
    for hour, (start, stop) in enumerate(pairwise(bounds.tolist())):
        folder = root / f"endpoint=flights/date=2026-01-01/hour={hour:02d}"
        folder.mkdir(parents=True)
        (folder / "file.parquet").write_bytes(encode_parquet(captured.slice(start, stop - start)))
    received = int((_DAY + timedelta(days=1)).timestamp() * 1e6)
    labels = [
        Label(name, None, None, int(label), received)
        for name, label in zip(ids, table["delayed"], strict=True)
    ]
    folder = root / "_labels/endpoint=flights/date=2026-01-02"
    folder.mkdir(parents=True)
    (folder / "labels.parquet").write_bytes(encode_parquet(labels_table(labels)))


def only_onnxruntime(folder: Path, table: pd.DataFrame) -> float:
    """Return the seconds for all rows in chunks of 5,000 rows, without the log and the
    conversion of columns.
    """
    from mlflow_deploy_plugin.serve.runtime.model import OnnxModel

    model = OnnxModel.load(folder)
    inputs = {name: table[name].to_numpy() for name in table.columns if name != "delayed"}
    starts = range(0, len(table), 5_000)
    feeds = [
        model.schema.from_columns({name: v[at : at + 5_000] for name, v in inputs.items()})
        for at in starts
    ]
    model.run(feeds[0])
    start = time.perf_counter()
    for chunk in feeds:
        model.run(chunk)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        served = save_version(root / "served", 1)
        candidate = save_version(root / "candidate", 2)
        table = flights(rows, 0)
        write_log(root / "log", table, served)
        settings = {"ONNXSERVE_LOG_URI": str(root / "log"), "ONNXSERVE_HOME": str(root / "home")}
        settings["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_TRACKING_URI"] = (
            f"sqlite:///{root}/mlflow.db"
        )
        MlflowClient().create_registered_model("flights")
        MlflowClient().create_model_version("flights", served.as_uri())
        command = [
            sys.executable,
            "-m",
            "mlflow_deploy_plugin.cli",
            "backtest",
            "flights",
            "--window",
            "2026-01-01/1d",
        ]
        command += ["--against", str(candidate), "--max-rows", str(rows), "-o", "json"]
        start = time.perf_counter()
        done = subprocess.run(
            command,
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            check=True,
            cwd=root,
        )
        seconds = time.perf_counter() - start
        report = json.loads(done.stdout)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        bare = only_onnxruntime(candidate, table)
    print(f"{report['rows']:,} rows, {report['labelled_rows']:,} of them labelled, 19 columns")
    cpu = usage.ru_utime + usage.ru_stime
    memory = usage.ru_maxrss / 1024
    print(
        f"back-test: {seconds:.1f} s, {rows / seconds:,.0f} rows/s, {cpu:.1f} s of CPU, at most "
        f"{memory:,.0f} MiB",
    )
    print(f"  prediction in batches: {report['candidate_row_us'] * rows / 1e6:.2f} s")
    print(f"ONNX Runtime without the log and the conversion: {bare:.2f} s")
    print(f"disagreement {report['disagreement']:.2%}, {report['comparison']}")


if __name__ == "__main__":
    main()
