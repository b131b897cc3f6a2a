"""Measure rows per second of `onnxserve batch` and `mlflow.pyfunc.spark_udf`, by number
of cores.

    .venv/bin/python benchmarks/batch.py [--rows 4000000] [--rounds 3]

There are two models of 12 numbers and two texts: a logistic regression, where reading
and writing cost most, and 100 boosted trees with a quarter of the rows. Each is logged
by `log_model`. In a Spark session of 1, 2 or 4 cores, `spark_udf` (env_manager local)
of that version and of the scikit-learn original alternates with `onnxserve batch
--engine spark` and with `onnxserve batch` in as many processes without Spark. All read
and write the same Parquet files.

The script prints medians over rounds, after one warm-up round: rows per second, and
rows per second of CPU of all processes. Use the latter on a shared machine. It does not
include Java's CPU if Java ends with the command.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.update(PYSPARK_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)

import mlflow
import numpy as np
import pandas as pd
import psutil
from mlflow.models import infer_signature
from pyspark.sql import SparkSession
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.ship.batch.run import BatchPlan, Engine, run_batch

NUMBERS = [f"x{number}" for number in range(12)]
COLUMNS = [*NUMBERS, "carrier", "origin"]
MODELS = ("linear", "trees")
PARTS = 8


def table(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(rows, len(NUMBERS))), columns=NUMBERS)
    frame["carrier"] = rng.choice(["AA", "UA", "DL", "B6"], rows)
    frame["origin"] = rng.choice(["JFK", "EWR", "LGA"], rows)
    return frame


def log_models(names: list[str]) -> dict[str, tuple[str, str]]:
    """Return the URIs of each of these models
    as ONNX and as MLflow's sklearn flavor.
    """
    frame = table(20_000, 0)
    label = (frame["x0"] + (frame["carrier"] == "AA") + np.sin(frame["x1"] * 3) > 0.5).astype(int)
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["carrier", "origin"]),
        (StandardScaler(), NUMBERS),
    )
    uris = {}
    boosted = HistGradientBoostingClassifier(max_iter=100, early_stopping=False)
    rows = frame[COLUMNS]
    for name, last in (("linear", LogisticRegression(max_iter=300)), ("trees", boosted)):
        if name not in names:
            continue
        fitted = make_pipeline(columns, last).fit(rows, label)
        with mlflow.start_run():
            ours = onnxserve.log_model(
                fitted,
                "onnx",
                input_example=rows.head(500),
                fallback="error",
            )
            signature = infer_signature(rows, fitted.predict(rows.head()))
            theirs = mlflow.sklearn.log_model(
                fitted,
                name="sklearn",
                signature=signature,
                pip_requirements=[],
                serialization_format="cloudpickle",
            )
        uris[name] = (ours.model_uri, theirs.model_uri)
    return uris


def cpu_seconds() -> float:
    """Return the CPU time of this process and all its descendants, including Spark's
    Java and ended processes.
    """
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


def take_turns(
    ways: dict[str, Callable[[], Any]],
    rounds: int,
    rows: int,
) -> dict[str, tuple[float, float]]:
    """Return the median rows of each way, per second and per second of CPU."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for count in range(rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            cpu = cpu_seconds()
            way()
            if count:
                taken[name].append((time.perf_counter() - begun, cpu_seconds() - cpu))
    return {
        name: (rows / median(wall for wall, _ in times), rows / median(cpu for _, cpu in times))
        for name, times in taken.items()
    }


def show(rates: dict[str, tuple[float, float]], base: str) -> None:
    """Print a line for each way, with its ratio to the base."""
    for name, (wall, cpu) in rates.items():
        ratios = f"{wall / rates[base][0]:.1f} x, by CPU {cpu / rates[base][1]:.1f} x"
        print(
            f"    {name:32} {wall:>11,.0f} rows/s {cpu:>11,.0f} rows/CPU s   {ratios}",
            flush=True,
        )


def measure(uris: tuple[str, str], source: Path, rows: int, cores: int, rounds: int) -> None:
    """Print the rates of all ways on this number of cores."""
    ours, original = uris
    made = source.parent / "made"
    options = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1"}
    session = SparkSession.builder.master(f"local[{cores}]").config(map=options).getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    frame = session.read.parquet(str(source))

    def by_udf(uri: str) -> Callable[[], Any]:
        predict = mlflow.pyfunc.spark_udf(session, uri, result_type="double", env_manager="local")
        predicted = frame.select(predict(*frame.columns).alias("prediction"))
        return lambda: predicted.write.mode("overwrite").parquet(str(made / "udf"))

    def by_batch(engine: Engine, workers: int | None) -> Callable[[], Any]:
        folder = str(made / engine)
        plan = BatchPlan(ours, str(source), folder, engine=engine, workers=workers, restart=True)
        return lambda: run_batch(plan)

    print(f"  {cores} cores", flush=True)
    ways = {
        "spark_udf, the same version": by_udf(ours),
        "spark_udf, the original": by_udf(original),
        "onnxserve batch --engine spark": by_batch("spark", None),
        "onnxserve batch": by_batch("local", cores),
    }
    show(take_turns(ways, rounds, rows), "spark_udf, the same version")
    session.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="batch-") as temporary:
        folder = Path(temporary)
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        os.environ["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()
        mlflow.create_experiment("batch", artifact_location=str(folder / "artifacts"))
        mlflow.set_experiment("batch")
        uris = log_models(arguments.models)
        for name, both in uris.items():
            rows = arguments.rows // (4 if name == "trees" else 1)
            source = folder / name
            source.mkdir()
            for part in range(PARTS):
                table(rows // PARTS, part)[COLUMNS].to_parquet(source / f"{part}.parquet")
            print(f"{name}: {rows:,} rows of {len(COLUMNS)} columns, {PARTS} files", flush=True)
            for cores in arguments.cores:
                measure(both, source, rows, cores, arguments.rounds)


if __name__ == "__main__":
    main()
