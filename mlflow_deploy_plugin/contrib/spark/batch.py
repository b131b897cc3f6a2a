"""Batches on Spark: the parts of a batch on the machines of a cluster, and the rows of
a DataFrame.

The model is sent as an archive (`SparkContext.addArchive`), and each Python worker, one
per core, loads it once. Each part is a task that reads its file itself. The rows of a
DataFrame are Arrow batches (`pyspark.sql.DataFrame.mapInArrow`).
The machines need this package with its extra `cpu`.
"""

import atexit
import gc
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from mlflow_deploy_plugin.contrib.spark.session import NO_CONNECT, spark_context
from mlflow_deploy_plugin.core.errors import InferenceError, InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.messages import join_names, one_line
from mlflow_deploy_plugin.core.registry.model_files import download
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.statedir.files import temporary_folder
from mlflow_deploy_plugin.ship.batch.part import Ended, PartJob, predict_part
from mlflow_deploy_plugin.ship.batch.table_model import (
    declared_outputs,
    load_table_model,
    takes,
    with_kept,
)

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import DataFrame


@contextmanager
def predict_parts(
    jobs: Sequence[PartJob], workers: int | None
) -> Iterator[tuple[list[Future[None]], Ended]]:
    """Predict each part as a Spark task, which reads and writes the part's files. Spark
    sets the number of workers. Raises like `spark_context`.
    """
    if not jobs:
        yield [], list
        return
    context = spark_context()
    # `spark_context` has checked for pyspark.
    from pyspark.accumulators import AddingAccumulatorParam

    archive = _ship(context, jobs[0].model)
    results = context.accumulator([], AddingAccumulatorParam([]))

    def task(job: PartJob) -> None:
        try:
            result = predict_part(replace(job, model=_shipped(archive), progress=""))
            results.add([(job.number, result)])
        except OnnxserveError as error:
            results.add([(job.number, OnnxserveError(error.message))])

    def predict() -> None:
        context.setJobGroup(archive, "onnxserve batch", interruptOnCancel=True)
        try:
            # The tasks receive no rows, so an RDD suffices. Spark SQL would double the
            # start time.
            context.parallelize(jobs, len(jobs)).foreach(task)
        except Exception as error:  # noqa: BLE001 - Spark and Java raise errors of any class.
            raise OnnxserveError(f"the Spark job failed: {one_line(error, 300)}") from None

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(predict)
        try:
            yield [running], lambda: results.value
        finally:
            if not running.done():
                context.cancelJobGroup(archive)


def predict_frame(
    frame: "DataFrame", model_uri: str, keep: Sequence[str] | None = None
) -> "DataFrame":
    """Return a Spark DataFrame with the predictions for each row, after the columns
    that are kept.

    Args:
        frame: the rows, with the input columns of the model.
        model_uri: the model, such as models:/flight-delay@champion.
        keep: the columns of `frame` to keep; None keeps all columns.

    Raises the errors of `resolve` and `download`, and InvalidConfig for a missing
    column or undeclared outputs.
    """
    # pyspark is an extra.
    from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
    from pyspark.sql.types import StructType

    shipped = download(resolve(model_uri).source, _folder_until_exit())
    model = load_table_model(shipped)
    kept_columns = tuple(frame.columns if keep is None else keep)
    for name in kept_columns:
        if name not in frame.columns:
            raise InvalidConfig(
                f"keep: the column {name!r} does not exist; the columns are "
                f"{join_names(frame.columns, name)}"
            )
    if missing_columns := model.schema.missing_columns(frame.columns):
        raise InvalidConfig(missing_columns.message)
    outputs = from_arrow_schema(declared_outputs(model.artifact).schema)
    if not outputs.fields:
        raise InvalidConfig(f"{model_uri} does not declare its outputs: log it with a signature")
    for name in outputs.names:
        if name in kept_columns:
            raise InvalidConfig(f"keep: {name!r} is also an output of the model; rename the column")
    schema = StructType([*(frame.schema[name] for name in kept_columns), *outputs.fields])
    arrow_schema = to_arrow_schema(outputs)
    context = getattr(frame.sparkSession, "sparkContext", None)
    if context is None:
        raise InvalidConfig(NO_CONNECT)
    archive = _ship(context, shipped)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        loaded = load_table_model(_shipped(archive))
        for batch in batches:
            if not batch.num_rows:
                continue
            table = pa.Table.from_batches([batch])
            columns = [
                name for name in table.column_names if takes(loaded.schema, name, kept_columns)
            ]
            try:
                predicted = loaded.predict(table.select(columns)).cast(arrow_schema)
            except OnnxserveError as error:
                raise InferenceError(f"a batch of {len(batch)} rows: {error.message}") from None
            yield from with_kept(table, kept_columns, predicted).combine_chunks().to_batches()

    selected = [
        name
        for name in frame.columns
        if name in kept_columns or takes(model.schema, name, kept_columns)
    ]
    return frame.select(*selected).mapInArrow(task, schema)


def _ship(context: "SparkContext", model: Path) -> str:
    folder = _folder_until_exit()
    archive = shutil.make_archive(str(folder / folder.name), "zip", model)
    context.addArchive(archive)
    return Path(archive).name


def _folder_until_exit() -> Path:
    """Return an empty folder that exists until exit, because Spark fetches files later,
    e.g. when a machine joins.
    """
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(temporary_folder("onnxserve-batch-"))


def _shipped(archive: str) -> Path:
    from pyspark import SparkFiles

    # Spark collects garbage after each task, which takes 65 ms of CPU time for all
    # imported objects.
    gc.freeze()
    return Path(SparkFiles.get(archive))
