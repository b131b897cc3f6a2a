"""One part of a batch: predict a file of rows block by block, and write the predictions
only if they are complete.
"""

import errno
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO, Literal
from urllib.parse import unquote

import numpy as np
import orjson
import pyarrow as pa
from pyarrow import fs

from mlflow_deploy_plugin.core.errors import InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.core.messages import join_names, one_line
from mlflow_deploy_plugin.core.spec.parts import Device
from mlflow_deploy_plugin.core.tabular.row_files import (
    FileFormat,
    atomic_file,
    compression_of,
    table_writer,
)
from mlflow_deploy_plugin.core.tabular.streams import RejectedRow, RowBlock, RowStream, group_tables
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log, upload_file
from mlflow_deploy_plugin.serve.protocols import arrow
from mlflow_deploy_plugin.ship.batch.table_model import (
    OnnxTable,
    TableModel,
    declared_outputs,
    input_types,
    load_table_model,
    predict_block,
    takes,
    typed,
    with_kept,
)

OnError = Literal["fail", "skip-row", "skip-part"]
REJECTED = "_rejected"
"""The output folder for the omitted rows, with one JSON Lines file per part."""
_WRITTEN_ROWS = 2**17
_WRITTEN_BYTES = 16 * 2**20
_NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
_ADVICE = "choose another --format, or leave the column out of --keep"


@dataclass(frozen=True)
class Part:
    """A file of the input.

    Attributes:
        output: the name of its file of predictions.
        size: the size in bytes.
        state: the size and time of the last change as a text; empty if the file may
            change.
    """

    name: str
    uri: str
    output: str
    input_format: FileFormat
    output_format: FileFormat
    size: int
    state: str

    @property
    def rejected(self) -> str:
        return f"{REJECTED}/{self.output}.jsonl"


@dataclass(frozen=True)
class BatchPlan:
    """The parameters of a batch.

    Attributes:
        model_uri: the model, such as models:/flight-delay@champion.
        input: a file or a folder of files; s3://… is also possible.
        output: the folder (or s3://…) for the predictions, with one file per input
            file.
        keep: the input columns that are written before the outputs.
        input_format: the format of files whose names do not specify a format.
        output_format: the format of the output; if it is None, each part keeps its
            format.
        on_error: for a bad row, `fail` ends the batch, `skip-row` omits the row, and
            `skip-part` omits its file.
        workers: the number of cores of this machine to use; None means all cores. Spark
            has a separate setting.
        device: the device of each process: `cpu` or `cuda`.
        engine: `local`, the processes of this machine, or an entry point, such as
            `spark`.
        restart: delete the files of another batch in the output.
        experiment: the MLflow experiment in which a run records the batch; empty if the
            batch is not recorded.
    """

    model_uri: str
    input: str
    output: str
    keep: tuple[str, ...] = ()
    input_format: FileFormat | None = None
    output_format: FileFormat | None = None
    on_error: OnError = "fail"
    workers: int | None = None
    device: Device = "cpu"
    engine: str = "local"
    restart: bool = False
    experiment: str = ""


@dataclass(frozen=True)
class PartJob:
    """The task to predict one part of a batch, in plain values that can be sent to
    another process.

    Attributes:
        progress: the file that shows the progress to other processes.
        number: the job's position in the file of the progress.
    """

    plan: BatchPlan
    part: Part
    model: Path
    threads: int = 1
    progress: str = ""
    number: int = 0


@dataclass(frozen=True)
class PartResult:
    rows: int
    rejected: int


Ended = Callable[[], list[tuple[int, PartResult | OnnxserveError]]]
"""Returns the numbers and the results of the jobs that have ended so far."""


def predict_part(job: PartJob) -> PartResult:
    """Predict one part. On failure, raise OnnxserveError with the file and the row, and
    leave no output.
    """
    try:
        model = load_table_model(job.model, job.plan.device)
        source = locate_log(job.part.uri, "input")
        with (
            source.filesystem.open_input_file(source.root) as packed,
            unpacked(packed, source.root) as file,
        ):
            stream = RowStream(
                file, job.part.input_format, input_types(model.schema), job.plan.keep
            )
            # The rejected rows must be complete before the output.
            with ExitStack() as output, ExitStack() as rejected_rows:
                rows = _PartRows(job, model, stream, rejected_rows)
                groups = group_tables(rows.predicted(), _WRITTEN_ROWS, _WRITTEN_BYTES)
                _write_tables(job, groups, output)
                (entry,) = source.filesystem.get_file_info([source.root])
                before = job.part.state
                now = state_of(entry)
                if not source.is_local:
                    # Compare only the size, because a bucket lists other modification
                    # times than it reports for an object.
                    before = before.partition(" ")[0]
                    now = str(entry.size)
                if before not in ("", now):
                    raise OnnxserveError(
                        "the file has changed since the batch began; repeat the command with "
                        "--restart"
                    )
            return PartResult(rows.count, rows.rejected)
    except OnnxserveError as error:
        raise type(error)(f"{job.part.name}: {error.message}") from None
    except (OSError, MemoryError, pa.ArrowException) as error:
        raise OnnxserveError(f"{job.part.name}: {_reason(error)}") from None


def state_of(entry: fs.FileInfo) -> str:
    return f"{entry.size} {entry.mtime_ns}"


def write_progress(path: str, number: int, rows: int, rejected: int, position: int) -> None:
    """Write the number of predicted rows, of rejected rows and of input bytes that the
    job `number` has read to the file `path`, an array of int64 [jobs, 3]. The path may
    be empty.
    """
    if path:
        np.memmap(path, np.int64, "r+").reshape(-1, 3)[number] = rows, rejected, position


@contextmanager
def unpacked(file: pa.NativeFile, name: str) -> Iterator[pa.NativeFile]:
    """Yield the file, decompressed on disk, because readers seek."""
    codec = compression_of(name)
    if codec is None:
        yield file
        return
    with tempfile.NamedTemporaryFile() as unpacked:
        try:
            with pa.CompressedInputStream(file, codec) as content:
                shutil.copyfileobj(content, unpacked, 2**20)
            unpacked.flush()
        except (OSError, pa.ArrowException) as error:
            raise InvalidRequest(f"it cannot be decompressed: {_reason(error)}") from None
        with pa.OSFile(unpacked.name) as plain:
            yield plain


@dataclass
class _PartRows:
    """The rows of a part while they are predicted.

    Attributes:
        rejected_rows: closes the file of the rejected rows.
        count: the number of predicted rows so far.
        rejected: the number of rejected rows so far.
    """

    job: PartJob
    model: TableModel
    stream: RowStream
    rejected_rows: ExitStack
    count: int = 0
    rejected: int = 0

    def predicted(self) -> Iterator[pa.Table]:
        """Yield tables of the columns to keep and the outputs: one empty table if there
        are no rows. Without `skip-row`, a rejected row raises InvalidRequest.
        """
        job = self.job
        folders = self._folder_columns()
        for pieces, position in self._predictions(folders):
            for piece in pieces:
                if isinstance(piece, pa.Table):
                    self.count += piece.num_rows
                    yield piece
                    continue
                if job.plan.on_error != "skip-row":
                    raise InvalidRequest(f"row {piece.number} (from 0): {piece.why}")
                if not self.rejected:
                    rejects = self.rejected_rows.enter_context(
                        open_new(job.plan.output, job.part.rejected)
                    )
                line = {"row": piece.number, "why": piece.why, "content": piece.content}
                rejects.write(orjson.dumps(line, default=str) + b"\n")
                self.rejected += 1
            read_bytes = position * job.part.size // self.stream.size
            write_progress(job.progress, job.number, self.count, self.rejected, read_bytes)
        if not self.count:
            schema = self.stream.schema
            empty = _with_folders(RowBlock(schema.empty_table(), ()), folders).table
            keep = job.plan.keep if schema.names else ()
            yield with_kept(empty, keep, declared_outputs(self.model.artifact))

    def _folder_columns(self) -> pa.Table:
        """Return a table of one row with the columns from folder names such as
        `date=2013-07-01/city=Wien`.

        A column of the file takes precedence. An input of the model has the signature's
        type; other columns are texts.
        """
        columns: dict[str, pa.ChunkedArray] = {}
        schema = self.model.schema
        for folder in self.job.part.output.split("/")[:-1]:
            quoted_name, equals, quoted_value = folder.partition("=")
            name = unquote(quoted_name)
            is_input = name in schema.names
            if (
                equals
                and name not in self.stream.schema.names
                and (is_input or name in self.job.plan.keep)
            ):
                text: str | None = unquote(quoted_value)
                if text == _NULL_FOLDER:
                    text = None
                table = pa.table({name: pa.array([text], pa.string())})
                if is_input:
                    table = typed(table, schema)
                columns[name] = table.column(0)
        return pa.table(columns)

    def _columns_to_read(self, folders: pa.Table) -> list[str]:
        """Return the columns of the file that are inputs of the model or kept; none if
        the file is empty.

        `folders` has the columns from folder names. Raises InvalidRequest if a kept
        column is missing or a column to read is duplicated, and the schema's error if
        an input is missing or has another type.
        """
        names = self.stream.schema.names
        keep = self.job.plan.keep
        schema = self.model.schema
        if not names:  # The CSV or JSON Lines file is empty.
            return []
        available = [*names, *folders.column_names]
        if missing := [name for name in keep if name not in available]:
            raise InvalidRequest(
                f"--keep {missing[0]}: no such column; the columns are "
                f"{join_names(available, missing[0])}"
            )
        if missing_columns := schema.missing_columns(available):
            raise missing_columns
        read = [name for name in names if name in keep or takes(schema, name, keep)]
        for name, occurrences in Counter(read).most_common(1):
            if occurrences > 1:
                raise InvalidRequest(f"column {name!r} is duplicated; rename one of the two")
        if self.job.part.input_format == "parquet" and isinstance(self.model, OnnxTable):
            columns = [*self.stream.schema, *folders.schema]
            fields = [field for field in columns if takes(schema, field.name, keep)]
            # Refuse a wrong type before the first row is predicted.
            arrow.select_columns(pa.schema(fields), schema)
        return read

    def _predictions(self, folders: pa.Table) -> Iterator[tuple[list[pa.Table | RejectedRow], int]]:
        """Yield the rejected rows and the tables of predictions of each block, with the
        number of bytes read so far. `folders` has the columns from folder names.
        """
        columns = self._columns_to_read(folders)
        threads = self.job.threads if isinstance(self.model, OnnxTable) else 1
        running: deque[tuple[Future[list[pa.Table | RejectedRow]], int]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for block in self.stream.blocks(columns):
                future = pool.submit(self._predict_rows, _with_folders(block, folders))
                running.append((future, block.position))
                if len(running) > threads:
                    future, position = running.popleft()
                    yield future.result(), position
            for future, position in running:
                yield future.result(), position

    def _predict_rows(self, block: RowBlock) -> list[pa.Table | RejectedRow]:
        """Return the rejected rows of a block in row order, and then its tables of
        predictions.

        Without `skip-row`, the first row that the model refuses ends the prediction.
        """
        job = self.job
        bad = list(block.bad)
        tables = []
        if block.numbers:
            is_csv = job.part.input_format == "csv"
            for piece in predict_block(self.model, block, job.plan.keep, is_csv):
                if isinstance(piece, pa.Table):
                    tables.append(piece)
                    continue
                bad.append(piece)
                if job.plan.on_error != "skip-row":
                    break
        return [*sorted(bad, key=lambda row: row.number), *tables]


def _write_tables(job: PartJob, groups: Iterator[list[pa.Table]], output: ExitStack) -> None:
    """Write groups of tables to the output file of a part, which is complete when
    `output` is closed. Raises OnnxserveError if the types of the outputs change.
    """
    first = next(groups)
    schema = first[0].schema  # Only the first table shows the types of the outputs.
    file = output.enter_context(open_new(job.plan.output, job.part.output))
    write = output.enter_context(table_writer(job.part.output_format, schema, file, _ADVICE))
    for tables in chain([first], groups):
        try:
            joined = pa.concat_tables([table.cast(schema) for table in tables])
        except (pa.ArrowException, ValueError) as error:
            raise OnnxserveError(
                f"the types of the outputs change: {one_line(error, 200)}"
            ) from None
        for batch in joined.combine_chunks().to_batches():
            write(batch)


def _with_folders(block: RowBlock, folders: pa.Table) -> RowBlock:
    table = block.table
    for name in folders.column_names:
        table = table.append_column(name, pa.repeat(folders.column(name)[0], len(block.numbers)))
    return replace(block, table=table)


@contextmanager
def open_new(output: str, name: str) -> Iterator[IO[bytes]]:
    """Open a file that becomes `name` in a folder or bucket when it is complete. Raises
    OnnxserveError on failure.
    """
    location = locate_log(output, "output")
    try:
        if location.is_local:
            path = Path(location.root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                yield file
        else:  # Write to disk first, because Arrow would complete a partial object.
            with tempfile.TemporaryFile() as file:
                yield file
                file.seek(0)
                upload_file(location, name, file)
    except OSError as error:
        raise OnnxserveError(f"{output}/{name} cannot be written: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if getattr(error, "errno", None) == errno.EFBIG:
        return "it is larger than server.jobs.max_file_bytes, or than its file system allows"
    if isinstance(error, MemoryError):
        return "memory ran out; server.jobs.max_memory limits the memory of a job"
    return one_line(error, 300)
