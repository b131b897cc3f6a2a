"""Measure rows per second of `onnxserve batch`, `mlflow.pyfunc.spark_udf` and `mlflow
models predict`, by number of cores.

    .venv/bin/python benchmarks/batch.py [--rows 4000000] [--rounds 3]

There are three models: a logistic regression of 12 numbers, where reading and writing
cost most, a logistic regression of 12 numbers and two texts, and 100 boosted trees of
the same columns with a quarter of the rows. Each is logged once by `log_model`, and all
methods load that version. In a Spark session of 1, 2 or 4 cores, `spark_udf`
(env_manager local, also for the scikit-learn original), `predict_frame` and `onnxserve
batch --engine spark` alternate. All read and write the same Parquet files. Without
Spark, processes predict copies of the files. As commands, `mlflow models predict` and
`onnxserve batch` predict a CSV file with a quarter of the rows, and a script with
`spark_udf` and `--engine spark` predict the files.

The script prints medians over rounds, after one warm-up round: rows per second, and
rows per second of CPU of all processes. Use the latter on a shared machine. It does not
include Java's CPU if Java ends with the command.
"""

import argparse
import os
import shutil
import subprocess
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
from mlflow_deploy_plugin.ship.batch.run import BatchPlan, run_batch
from mlflow_deploy_plugin.ship.batch.spark import predict_frame

NUMBERS = [f"x{number}" for number in range(12)]
MODELS = {
    "numbers": NUMBERS,
    "texts": [*NUMBERS, "carrier", "origin"],
    "trees": [*NUMBERS, "carrier", "origin"],
}
UDF_SCRIPT = """
import sys, mlflow
from pyspark.sql import SparkSession
uri, source, made = sys.argv[1:]
session = SparkSession.builder.master("local[*]").config("spark.ui.enabled", "false").getOrCreate()
frame = session.read.parquet(source)
predict = mlflow.pyfunc.spark_udf(session, uri, result_type="double", env_manager="local")
frame.select(predict(*frame.columns).alias("prediction")).write.parquet(made)
"""
PARTS = 8
COPIES = 4


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
    for name, model, taken in (
        ("numbers", make_pipeline(StandardScaler(), LogisticRegression()), NUMBERS),
        ("texts", make_pipeline(columns, LogisticRegression(max_iter=300)), MODELS["texts"]),
        ("trees", make_pipeline(columns, boosted), MODELS["trees"]),
    ):
        if name not in names:
            continue
        rows = frame[taken]
        fitted = model.fit(rows, label)
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


def in_spark(
    uris: tuple[str, str],
    source: Path,
    rows: int,
    cores: list[int],
    rounds: int,
    folder: Path,
) -> None:
    ours, original = uris
    for count in cores:
        # Java: Spark's defaults
        alone = {
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
        }
        session = SparkSession.builder.master(f"local[{count}]").config(map=alone).getOrCreate()
        session.sparkContext.setLogLevel("OFF")
        frame = session.read.parquet(str(source))

        def written(made: Any) -> Callable[[], Any]:
            return lambda: (
                made.select("prediction").write.mode("overwrite").parquet(str(folder / "frame"))
            )

        def by_udf(uri: str, frame: Any = frame, session: Any = session) -> Any:
            predict = mlflow.pyfunc.spark_udf(
                session,
                uri,
                result_type="double",
                env_manager="local",
            )
            return frame.withColumn("prediction", predict(*frame.columns))

        ways = {
            "spark_udf, the original": written(by_udf(original)),
            "spark_udf, the same version": written(by_udf(ours)),
            "predict_frame": written(predict_frame(frame, ours)),
            "onnxserve batch --engine spark": lambda: run_batch(
                BatchPlan(ours, str(source), str(folder / "spark"), engine="spark", restart=True),
            ),
        }
        print(f"  Spark local[{count}]", flush=True)
        show(take_turns(ways, rounds, rows), "spark_udf, the same version")
        session.stop()


def on_this_machine(
    ours: str,
    source: Path,
    rows: int,
    cores: list[int],
    rounds: int,
    folder: Path,
) -> None:
    many = folder / "many"
    shutil.rmtree(many, ignore_errors=True)
    for copy in range(COPIES):
        (many / str(copy)).mkdir(parents=True)
        for file in source.iterdir():
            (many / str(copy) / file.name).hardlink_to(file)

    def batch(count: int) -> Callable[[], Any]:
        return lambda: run_batch(
            BatchPlan(ours, str(many), str(folder / "out"), workers=count, restart=True),
        )

    print(f"  onnxserve batch, the files {COPIES} times", flush=True)
    ways = {f"{count} cores": batch(count) for count in cores}
    show(take_turns(ways, rounds, rows * COPIES), next(iter(ways)))


def as_commands(
    ours: str,
    source: Path,
    rows: int,
    file: Path,
    csv_rows: int,
    rounds: int,
    folder: Path,
) -> None:
    made = folder / "command"

    def call(*command: str) -> Callable[[], Any]:
        def run() -> None:
            shutil.rmtree(made, ignore_errors=True)
            done = subprocess.run(
                [sys.executable, *command],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr

        return run

    theirs = [
        "models",
        "predict",
        "-m",
        ours,
        "-i",
        str(file),
        "-t",
        "csv",
        "-o",
        str(folder / "made.json"),
    ]
    mine = ["-m", "mlflow_deploy_plugin.cli", "batch", ours, "--folder", str(made)]
    ways = {
        "mlflow models predict": call("-m", "mlflow", *theirs, "--env-manager", "local"),
        "onnxserve batch": call(*mine, "-i", str(file), "--workers", "1"),
    }
    print(f"  commands, including the start, {csv_rows:,} rows of CSV", flush=True)
    show(take_turns(ways, rounds, csv_rows), "mlflow models predict")
    ways = {
        "a script with spark_udf": call("-c", UDF_SCRIPT, ours, str(source), str(made)),
        "onnxserve batch --engine spark": call(*mine, "-i", str(source), "--engine", "spark"),
    }
    print(f"  commands, including the start, {rows:,} rows of Parquet, local[*]", flush=True)
    show(take_turns(ways, rounds, rows), "a script with spark_udf")


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
                table(rows // PARTS, part)[MODELS[name]].to_parquet(source / f"{part}.parquet")
            table(rows // 4, 99)[MODELS[name]].to_csv(folder / "rows.csv", index=False)
            print(
                f"{name}: {rows:,} rows of {len(MODELS[name])} columns, {PARTS} Parquet files",
                flush=True,
            )
            in_spark(both, source, rows, arguments.cores, arguments.rounds, folder)
            on_this_machine(both[0], source, rows, arguments.cores, arguments.rounds, folder)
            as_commands(
                both[0],
                source,
                rows,
                folder / "rows.csv",
                rows // 4,
                arguments.rounds,
                folder,
            )


if __name__ == "__main__":
    main()
