"""Profiles of windows on Spark, for logs that are too large for one machine.

Each day is a task (pyspark's mapInArrow), which profiles it like a single machine. The
driver merges the profiles in order, so the numbers are bit-identical.
"""

from collections.abc import Iterator

import pyarrow as pa

from mlflow_deploy_plugin.contrib.spark.session import spark_session
from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.drift.sketches.hourly import (
    SketchStore,
    days_of,
    profile_from_parquet,
    profile_to_parquet,
    window_profile,
)
from mlflow_deploy_plugin.watch.drift.sketches.sketch import Profile, merge

_RESULT = "number long, profile binary, failure string"
_SCHEMA = pa.schema({"number": pa.int64(), "profile": pa.binary(), "failure": pa.string()})


def spark_window_profile(
    sketches: SketchStore, model: str, version: str, window: Window
) -> Profile:
    """Return the profile of all rows in the window that one version (empty: any
    version) answered. Raises OnnxserveError that names a failed day.
    """
    session = spark_session()
    # The log's file system cannot be serialised for Spark's workers.
    location = sketches.log.location.shown, sketches.log.since
    fields = sketches.endpoint, sketches.bins, sketches.bins_key
    days = days_of(sketches, window)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the profile of each numbered day, or the reason why its rows cannot be
        read. Spark calls this function on its workers.
        """
        for batch in batches:
            for number in batch.column(0).to_pylist():
                row = {"number": number, "profile": None, "failure": None}
                try:
                    store = SketchStore(open_log(*location), *fields)
                    profile = window_profile(store, model, version, days[number])
                    row["profile"] = profile_to_parquet(profile)
                except (OSError, pa.ArrowException, OnnxserveError) as error:
                    row["failure"] = one_line(error)
                yield pa.RecordBatch.from_pylist([row], _SCHEMA)

    if not days:
        return merge([])
    numbers = session.range(0, len(days), step=1, numPartitions=len(days))
    parts = numbers.mapInArrow(task, _RESULT).collect()
    for part in parts:
        if part["failure"]:
            raise OnnxserveError(f"{days[part['number']]}: {part['failure']}")
    ordered = sorted(parts, key=lambda part: int(part["number"]))
    return merge(profile_from_parquet(bytes(part["profile"])) for part in ordered)
