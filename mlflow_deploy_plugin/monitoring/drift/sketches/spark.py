"""Sketches on Spark, for logs beyond one machine: the same functions, one day of the log at a time.

Each task reads its part with the code that reads it on one machine, and sends back a profile (pyspark's mapInArrow);
the driver merges them in the order of the parts. So the numbers are those of one machine, to the last bit, and rows do
not move between machines. The workers need this package, and the log where all of them reach it (S3, a shared folder);
what they sketch is kept beside it (`hourly.py`) for the next time.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from mlflow_deploy_plugin.errors import NotInstalled, OnnxserveError
from mlflow_deploy_plugin.inference_log import Window, open_log
from mlflow_deploy_plugin.monitoring.drift.sketches.hourly import SketchStore, day_profile, day_windows
from mlflow_deploy_plugin.monitoring.drift.sketches.parquet import profile_from_parquet, profile_to_parquet
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile, merge

_CONFIGURED = ("SPARK_HOME", "SPARK_CONF_DIR", "PYSPARK_SUBMIT_ARGS", "SPARK_REMOTE", "MASTER")
_ALONE = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1", "spark.ui.enabled": "false"}
_RESULT = "number long, profile binary, failure string"


def spark_session(master: str | None = None) -> Any:
    """Return the session that there is, or a new one.

    Args:
        master: None: what `spark-submit`, spark-defaults.conf or the environment say (SPARK_HOME, SPARK_CONF_DIR,
            PYSPARK_SUBMIT_ARGS, SPARK_REMOTE, MASTER), else this machine, which then listens on no other address.

    Raises:
        NotInstalled: pyspark is not installed.
        OnnxserveError: Spark does not start: no Java, or no such master.
    """
    try:
        from pyspark.sql import SparkSession  # an extra, and a second to import
    except ImportError:
        raise NotInstalled("engine spark needs pyspark: pip install 'mlflow-onnxserve[spark]', and Java 17") from None
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("onnxserve")
    if master is None and not any(os.environ.get(name) for name in _CONFIGURED):
        master = "local[*]"
    if master:
        builder = builder.master(master)
        for name, value in _ALONE.items() if master.startswith("local") else ():
            builder = builder.config(name, value)
    try:
        return builder.getOrCreate()
    except Exception as error:  # noqa: BLE001 - of Java, of py4j and of Spark, which share no class
        raise OnnxserveError(f"Spark does not start: {' '.join(str(error).split())[:300]}") from None


def spark_window_profile(session: Any, sketches: SketchStore, model: str, version: str, window: Window) -> Profile:
    """Return `hourly.window_profile`, each day from some machine.

    Raises:
        OnnxserveError: a part failed; the message says which and why.
    """
    days, uri, since = day_windows(sketches.log, sketches.endpoint, window), sketches.log.shown, sketches.log.since
    endpoint, bins, bins_key = sketches.endpoint, sketches.bins, sketches.bins_key  # a log's file system stays here
    if not days:
        return merge([])

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                try:
                    store = SketchStore(open_log(uri, since), endpoint, bins, bins_key)
                    profile = day_profile(store, model, version, days[number])
                    content, failure = profile_to_parquet(profile), None
                except (OSError, pa.ArrowException, OnnxserveError) as error:
                    content, failure = None, " ".join(str(error).split())
                yield pa.RecordBatch.from_pydict(
                    {
                        "number": pa.array([number], pa.int64()),
                        "profile": pa.array([content], pa.binary()),
                        "failure": pa.array([failure], pa.string()),
                    }
                )

    parts = session.range(0, len(days), 1, len(days)).mapInArrow(task, _RESULT).collect()
    for part in parts:
        if part["failure"]:
            raise OnnxserveError(f"{days[part['number']]}: {part['failure']}")
    ordered = sorted(parts, key=lambda part: int(part["number"]))
    return merge(profile_from_parquet(bytes(part["profile"])) for part in ordered)
