"""One part of a batch: predict a file of rows block by block, and write the predictions
only if they are complete.
"""

import shutil
import struct
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO, Literal
from urllib.parse import unquote

import orjson
import pyarrow as pa
from pyarrow import fs

from mlflow_deploy_plugin.core.errors import InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.core.messages import join_names, one_line
from mlflow_deploy_plugin.core.spec.parts import Device
from mlflow_deploy_plugin.core.tabular.files import (
    FileFormat,
    atomic_file,
    compression_of,
    table_writer,
)
from mlflow_deploy_plugin.core.tabular.streams import RejectedRow, RowBlock, RowStream, group_tables
from mlflow_deploy_plugin.serve.inference_log.storage import LogLocation, locate_log, upload_file
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
_SLOT = struct.Struct("<qq")


@dataclass(frozen=True)
class Part:
    """A file of the input. `output` is the name of its file of predictions.

    `size` is in bytes. `state` is the size and time of the last change as a text, or
    empty if the file may change.
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
class PartJob:
    """The task to predict one part, in plain values that can be sent to another
    process.

    Attributes:
        output: the URI of the folder of predictions.
        on_error: `fail` and `skip-part` end the part at a bad row; `skip-row` omits the
            row.
        progress / slot: the file that shows the progress to other processes, and the
            job's position in this file.
    """

    part: Part
    output: str
    model: Path
    keep: tuple[str, ...] = ()
    on_error: OnError = "fail"
    device: Device = "cpu"
    threads: int = 1
    progress: str = ""
    slot: int = 0


@dataclass(frozen=True)
class PartResult:
    rows: int
    rejected: int


def predict_part(job: PartJob) -> PartResult:
    """Predict one part. On failure, raise OnnxserveError with the file and the row, and
    leave no output.
    """
    try:
        model = load_table_model(job.model, job.device)
        source = locate_log(job.part.uri, "--input")
        with (
            source.filesystem.open_input_file(source.root) as packed,
            _unpacked(packed, source.root) as (file, share),
        ):
            stream = RowStream(file, job.part.input_format, input_types(model.schema), job.keep)
            return _write_part(job, model, stream, source, share)
    except OnnxserveError as error:
        raise type(error)(f"{job.part.name}: {error.message}") from None
    except (OSError, pa.ArrowException) as error:
        raise OnnxserveError(f"{job.part.name}: {one_line(error, 300)}") from None


def state_of(entry: fs.FileInfo) -> str:
    return f"{entry.size} {entry.mtime_ns}"


def read_progress(path: Path) -> tuple[int, int]:
    """Return the numbers of predicted rows and input bytes of all parts in progress."""
    content = path.read_bytes()
    read = list(_SLOT.iter_unpack(content[: len(content) // _SLOT.size * _SLOT.size]))
    return sum(rows for rows, _ in read), sum(position for _, position in read)


def write_progress(path: str, slot: int, rows: int, position: int) -> None:
    if path:
        with open(path, "r+b", buffering=0) as file:
            file.seek(slot * _SLOT.size)
            file.write(_SLOT.pack(rows, position))


@contextmanager
def _unpacked(file: pa.NativeFile, name: str) -> Iterator[tuple[pa.NativeFile, float]]:
    """Yield the file, decompressed on disk (readers seek), and its compression ratio
    (compressed size / full size).
    """
    if not (codec := compression_of(name)):
        yield file, 1.0
        return
    size = file.size()
    with tempfile.NamedTemporaryFile() as unpacked:
        try:
            with pa.CompressedInputStream(file, codec) as content:
                shutil.copyfileobj(content, unpacked, 2**20)
            unpacked.flush()
        except (OSError, pa.ArrowException) as error:
            raise InvalidRequest(f"it cannot be decompressed: {one_line(error, 200)}") from None
        with pa.OSFile(unpacked.name) as plain:
            yield plain, size / max(1, plain.size())


def _write_part(
    job: PartJob,
    model: TableModel,
    stream: RowStream,
    source: LogLocation,
    packed_share: float,
) -> PartResult:
    folders = _folder_columns(job, model, stream)
    columns = _columns(job, model, stream, folders)
    rows = rejected = 0
    with (
        ExitStack() as output,
        ExitStack() as rejected_rows,
    ):  # The rejected rows must be complete before the output.
        # pandas converts a dictionary into a categorical column.
        dictionaries = {*columns} - {*job.keep} if isinstance(model, OnnxTable) else ()
        blocks = (_with_folders(block, folders) for block in stream.blocks(columns, dictionaries))

        def predicted() -> Iterator[pa.Table]:
            nonlocal rows, rejected
            for piece, position in _predictions(job, model, blocks):
                if isinstance(piece, RejectedRow):
                    if job.on_error != "skip-row":
                        raise InvalidRequest(f"row {piece.number} (from 0): {piece.why}")
                    if not rejected:
                        rejects = rejected_rows.enter_context(
                            open_new(job.output, job.part.rejected),
                        )
                    row = {"row": piece.number, "why": piece.why, "content": piece.content}
                    rejects.write(orjson.dumps(row, default=str) + b"\n")
                    rejected += 1
                else:
                    rows += piece.num_rows
                    yield piece
                write_progress(job.progress, job.slot, rows, int(position * packed_share))
            if not rows:
                keep = job.keep if stream.schema.names else ()
                empty = _with_folders(RowBlock(stream.schema.empty_table(), ()), folders).table
                yield with_kept(empty, keep, declared_outputs(model.artifact))

        groups = group_tables(predicted(), _WRITTEN_ROWS, _WRITTEN_BYTES)
        first = next(groups)
        schema = first[0].schema  # Only the first table shows the types of the outputs.
        file = output.enter_context(open_new(job.output, job.part.output))
        write = output.enter_context(table_writer(job.part.output_format, schema, file, _ADVICE))
        for tables in chain([first], groups):
            try:
                joined = pa.concat_tables([table.cast(schema) for table in tables])
            except (pa.ArrowException, ValueError) as error:
                raise OnnxserveError(
                    f"the types of the outputs change: {one_line(error, 200)}",
                ) from None
            for batch in joined.combine_chunks().to_batches():
                write(batch)
        if job.part.state and _has_changed(job, source):
            raise OnnxserveError(
                "the file has changed since the batch began; repeat the command with --restart",
            )
    return PartResult(rows, rejected)


def _has_changed(job: PartJob, source: LogLocation) -> bool:
    (entry,) = source.filesystem.get_file_info([source.root])
    if source.is_local:
        return state_of(entry) != job.part.state
    # Compare only the size, because a bucket lists other modification times than it
    # reports for an object.
    return job.part.state.partition(" ")[0] != str(entry.size)


def _folder_columns(job: PartJob, model: TableModel, stream: RowStream) -> pa.Table:
    """Return a table of one row with the columns from folder names such as
    `date=2013-07-01/city=Wien`.

    A column of the file takes precedence. An input of the model has the signature's
    type; other columns are texts.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    for folder in job.part.output.split("/")[:-1]:
        name, equals, value = (unquote(piece) for piece in folder.partition("="))
        if (
            equals
            and name not in stream.schema.names
            and (name in job.keep or name in model.schema.names)
        ):
            text = pa.table(
                {name: pa.array([None if value == _NULL_FOLDER else value], pa.string())},
            )
            columns[name] = (
                typed(text, model.schema) if name in model.schema.names else text
            ).column(0)
    return pa.table(columns)


def _with_folders(block: RowBlock, folders: pa.Table) -> RowBlock:
    table = block.table
    for name in folders.column_names:
        table = table.append_column(name, pa.repeat(folders.column(name)[0], len(block.numbers)))
    return replace(block, table=table)


def _columns(job: PartJob, model: TableModel, stream: RowStream, folders: pa.Table) -> list[str]:
    names = stream.schema.names
    if not names:  # The CSV or JSON Lines file is empty.
        return []
    available = [*names, *folders.column_names]
    if missing := [name for name in job.keep if name not in available]:
        raise InvalidRequest(
            f"--keep {missing[0]}: no such column; the columns are "
            f"{join_names(available, missing[0])}",
        )
    if missing_columns := model.schema.missing_columns(available):
        raise missing_columns
    read = [name for name in names if name in job.keep or takes(model.schema, name, job.keep)]
    if len(set(read)) < len(read):
        raise InvalidRequest(
            f"column {Counter(read).most_common(1)[0][0]!r} is duplicated; rename one of the two",
        )
    if job.part.input_format == "parquet" and isinstance(model, OnnxTable):
        columns = [*stream.schema, *folders.schema]
        fields = [field for field in columns if takes(model.schema, field.name, job.keep)]
        arrow.select_columns(pa.schema(fields), model.schema)
    return read


def _predictions(
    job: PartJob,
    model: TableModel,
    blocks: Iterable[RowBlock],
) -> Iterator[tuple[pa.Table | RejectedRow, int]]:
    """Yield tables of predictions and rejected rows in input order, each with the
    number of input bytes read so far.
    """

    def predict(block: RowBlock) -> list[pa.Table | RejectedRow]:
        bad = list(block.bad)
        tables = []
        for piece in (
            predict_block(model, block, job.keep, job.part.input_format == "csv")
            if block.numbers
            else ()
        ):
            if isinstance(piece, RejectedRow):
                bad.append(piece)
                if job.on_error != "skip-row":
                    break
            else:
                tables.append(piece)
        return [*sorted(bad, key=lambda row: row.number), *tables]

    threads = job.threads if isinstance(model, OnnxTable) else 1
    with ThreadPoolExecutor(threads) as pool:
        running: deque[tuple[Future[list[pa.Table | RejectedRow]], int]] = deque()

        def finished(most: int) -> Iterator[tuple[pa.Table | RejectedRow, int]]:
            while len(running) > most:
                future, position = running.popleft()
                for piece in future.result():
                    yield piece, position

        for block in blocks:
            running.append((pool.submit(predict, block), block.position))
            yield from finished(threads)
        yield from finished(0)


@contextmanager
def open_new(output: str, name: str) -> Iterator[IO[bytes]]:
    """Open a file that becomes `name` in a folder or bucket when it is complete. Raises
    OnnxserveError on failure.
    """
    location = locate_log(output, "--output")
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
        raise OnnxserveError(
            f"{output}/{name} cannot be written: {error.strerror or error}",
        ) from None
