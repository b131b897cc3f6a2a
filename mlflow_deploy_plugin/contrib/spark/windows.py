"""Profiles of windows on Spark, for logs that are too large for one machine.

Each day is a task (pyspark's mapInArrow), which profiles and stores its hours like a
single machine. The driver merges the stored profiles, so the numbers are bit-identical.
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
    hour_profiles,
    window_profile,
)
from mlflow_deploy_plugin.watch.drift.sketches.sketch import Profile


def spark_window_profile(
    sketches: SketchStore, model: str, version: str, window: Window
) -> Profile:
    """Return the profile of all rows in the window that one version (empty: any
    version) answered. Raises OnnxserveError that names a failed day.
    """
    days = days_of(sketches, window)
    if not days:  # Do not start Spark.
        return window_profile(sketches, model, version, window)
    # The log's file system cannot be serialised for Spark's workers.
    location = sketches.log.location.shown, sketches.log.since
    fields = sketches.endpoint, sketches.bins, sketches.bins_key

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield each numbered day with the reason why its rows cannot be read; empty if
        its hours are stored. Spark calls this function on its workers.
        """
        for batch in batches:
            for number in batch.column(0).to_pylist():
                failure = ""
                try:
                    store = SketchStore(open_log(*location), *fields)
                    for _ in hour_profiles(store, "", "", days[number]):
                        pass  # The hour is stored.
                except (OSError, pa.ArrowException, OnnxserveError) as error:
                    failure = one_line(error)
                yield pa.RecordBatch.from_pydict({"number": [number], "failure": [failure]})

    numbers = spark_session().range(0, len(days), step=1, numPartitions=len(days))
    for day in numbers.mapInArrow(task, "number long, failure string").collect():
        if day["failure"]:
            raise OnnxserveError(f"{days[day['number']]}: {day['failure']}")
    return window_profile(sketches, model, version, window)
