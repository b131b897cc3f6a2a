"""Batches by Spark: the parts of a batch on the machines of a cluster, and the rows of a DataFrame.

The model travels as an archive of the session (`SparkContext.addArchive`). Each Python worker, of which Spark has one
for each core, loads it once and answers Arrow batches (`mapInArrow`). The machines need this package and its extra
`cpu`.

https://spark.apache.org/docs/latest/api/python/reference/pyspark.sql/api/pyspark.sql.DataFrame.mapInArrow.html
"""

import atexit
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlflow_deploy_plugin.batch.part import PartJob, PartResult, predict_part
from mlflow_deploy_plugin.batch.table_model import load_table_model, takes, with_kept
from mlflow_deploy_plugin.errors import InferenceError, InvalidConfig, OnnxserveError, join_names, one_line
from mlflow_deploy_plugin.processes import spark_session
from mlflow_deploy_plugin.registry import download, resolve
from mlflow_deploy_plugin.statedir import temporary_folder

if TYPE_CHECKING:
    from mlflow_deploy_plugin.batch.run import Finished

_RESULT = "number long, rows long, rejected long, failure string"
_LOOK_SECONDS = 0.5


@contextmanager
def predict_parts(jobs: Sequence[PartJob], model: Path) -> Iterator["Finished"]:
    """Predict each part as one task of Spark. The machines read the input and write the output themselves.

    Raises:
        NotInstalled: pyspark is not installed.
        OnnxserveError: Spark does not start, or gives up.
    """
    session = spark_session()
    archive = _ship(session, model)
    tracker = session.sparkContext.statusTracker()
    jobs = [replace(job, progress="") for job in jobs]

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                figures, failure = {"number": number, "rows": 0, "rejected": 0}, None
                try:
                    figures |= asdict(predict_part(replace(jobs[number], model=_shipped(archive))))
                except OnnxserveError as error:
                    failure = error.message
                yield pa.RecordBatch.from_pydict(
                    {
                        **{name: pa.array([value], pa.int64()) for name, value in figures.items()},
                        "failure": pa.array([failure], pa.string()),
                    }
                )

    def collect() -> list[Any]:
        session.sparkContext.setJobGroup(archive, "onnxserve batch", interruptOnCancel=True)
        rows: list[Any] = session.range(0, len(jobs), 1, len(jobs)).mapInArrow(task, _RESULT).collect()
        return rows

    def finished(running: Future[list[Any]]) -> "Finished":
        while not running.done():
            jobs_seen = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(archive)]
            stages = [tracker.getStageInfo(stage) for job in jobs_seen if job is not None for stage in job.stageIds]
            yield {}, sum(stage.numCompletedTasks for stage in stages if stage is not None)
            time.sleep(_LOOK_SECONDS)
        try:
            rows = running.result()
        except Exception as error:  # noqa: BLE001 - of Java, of py4j and of Spark, which share no class
            raise OnnxserveError(f"Spark gave up: {one_line(error, 300)}") from None
        done = {row["number"]: PartResult(row["rows"], row["rejected"]) for row in rows if not row["failure"]}
        yield {**done, **{row["number"]: OnnxserveError(row["failure"]) for row in rows if row["failure"]}}, 0

    with ThreadPoolExecutor(1) as pool:
        try:
            yield finished(pool.submit(collect)) if jobs else iter(())
        finally:
            session.sparkContext.cancelJobGroup(archive)


def predict_frame(frame: Any, model_uri: str, keep: Sequence[str] | None = None) -> Any:
    """Return a Spark DataFrame with the predictions of a model for each row, after the kept columns.

    Args:
        frame: a `pyspark.sql.DataFrame` with the columns that the model takes.
        keep: columns that are passed through; None: all.

    Raises:
        InvalidConfig: a column is missing, or the model does not declare its outputs.
        NotFound, RegistryUnavailable, InvalidArtifact: the model cannot be had.
    """
    from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema  # an extra
    from pyspark.sql.types import StructType

    shipped = download(resolve(model_uri).source, _folder_until_exit())
    model = load_table_model(shipped)
    kept = tuple(frame.columns if keep is None else keep)
    if missing := [name for name in kept if name not in frame.columns]:
        raise InvalidConfig(
            f"keep: there is no column {missing[0]!r}; there are {join_names(frame.columns, missing[0])}"
        )
    if problem := model.schema.missing_columns(frame.columns):
        raise InvalidConfig(problem)
    outputs = from_arrow_schema(model.no_rows().schema)
    if not outputs.fields:
        raise InvalidConfig(f"{model_uri} does not declare its outputs: log it with a signature")
    if doubled := [name for name in outputs.names if name in kept]:
        raise InvalidConfig(f"keep: the model's output {doubled[0]!r} has this name, too; rename the column")
    schema = StructType([*(frame.schema[name] for name in kept), *outputs.fields])
    arrow_schema = to_arrow_schema(outputs)
    archive = _ship(frame.sparkSession, shipped)
    wanted = [name for name in frame.columns if name in kept or takes(model.schema, name, kept)]

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        loaded = load_table_model(_shipped(archive))
        for batch in batches:
            if not batch.num_rows:
                continue
            table = pa.Table.from_batches([batch])
            inputs = table.select([name for name in wanted if takes(loaded.schema, name, kept)])
            try:
                predicted = loaded.predict(inputs).cast(arrow_schema)
            except OnnxserveError as error:
                raise InferenceError(f"a batch of {len(batch)} rows: {error.message}") from None
            yield from with_kept(table, kept, predicted).combine_chunks().to_batches()

    return frame.select(*wanted).mapInArrow(task, schema)


def _ship(session: Any, model: Path) -> str:
    """Send a model to the machines of a session; return its name there. Raises InvalidConfig for Spark Connect."""
    if getattr(session, "sparkContext", None) is None:
        raise InvalidConfig("a batch needs Spark's own session, not Spark Connect: name a master, as spark://host:7077")
    folder = _folder_until_exit()
    archive = shutil.make_archive(str(folder / folder.name), "zip", model)
    session.sparkContext.addArchive(archive)
    return Path(archive).name


def _folder_until_exit() -> Path:
    """Return an empty folder for what Spark fetches: when rows are asked for, or a machine joins."""
    held = ExitStack()
    atexit.register(held.close)
    return held.enter_context(temporary_folder("onnxserve-batch-"))


def _shipped(archive: str) -> Path:
    """Return the folder of a model on the machine of a task."""
    from pyspark import SparkFiles

    return Path(SparkFiles.get(archive))
