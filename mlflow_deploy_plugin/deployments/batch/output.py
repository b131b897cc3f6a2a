"""Predictions into a file: the whole file, or nothing."""

import csv
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import orjson

from mlflow_deploy_plugin.deployments.batch.formats import FileFormat
from mlflow_deploy_plugin.errors import InvalidConfig, InvalidRequest

WritePredictions = Callable[[list[Any]], None]
"""A function that writes the next predictions."""

_PREDICTION = "prediction"


@contextmanager
def open_output(path: str, kind: FileFormat, stdout: IO[bytes]) -> Iterator[WritePredictions]:
    """Write predictions into a new file that replaces `path` at the end; `-` is standard output, written as it comes.

    Raises:
        InvalidConfig: the file cannot be written.
    """
    if path == "-":
        with _FORMS[kind](stdout) as write:
            yield write
        stdout.flush()
        return
    try:
        with atomic_file(Path(path)) as file, _FORMS[kind](file) as write:
            yield write
    except OSError as error:
        raise InvalidConfig(f"the file {path} cannot be written: {error.strerror or error}") from None


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` when all of it is written; after an error `path` is as it was."""
    if path.exists() and not path.is_file():  # a pipe or a device cannot be replaced
        with path.open("wb") as file:
            yield file
        return
    target = path.resolve()
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, target.stat().st_mode if target.exists() else 0o666 & ~_umask())
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _json(file: IO[bytes]) -> Iterator[WritePredictions]:
    """Write `{"predictions": […]}`, as /invocations answers."""
    file.write(b'{"predictions": [')
    is_first = True

    def write(rows: list[Any]) -> None:
        nonlocal is_first
        file.write(b"" if is_first else b", ")
        file.write(b", ".join(map(orjson.dumps, rows)))
        is_first = False

    yield write
    file.write(b"]}\n")


@contextmanager
def _jsonl(file: IO[bytes]) -> Iterator[WritePredictions]:
    """Write one prediction a line."""

    def write(rows: list[Any]) -> None:
        file.write(b"".join(orjson.dumps(row) + b"\n" for row in rows))

    yield write


@contextmanager
def _csv(file: IO[bytes]) -> Iterator[WritePredictions]:
    """Write a column for each output; a list has one for each of its values: prediction_0, prediction_1."""
    header: list[str] = []

    def write(rows: list[Any]) -> None:
        cells = [dict(_cells(row)) for row in rows]
        text = io.StringIO(newline="")
        lines = csv.writer(text, lineterminator="\n")
        if not header:
            header.extend(cells[0])
            lines.writerow(header)
        for row in cells:
            if list(row) != header:
                raise InvalidRequest(f"predictions have different columns: {', '.join(header)}, and {', '.join(row)}")
            lines.writerow(row.values())
        file.write(text.getvalue().encode())

    yield write


def _cells(row: Any) -> Iterator[tuple[str, Any]]:
    named = row if isinstance(row, Mapping) else {_PREDICTION: row}
    for name, value in named.items():
        if isinstance(value, list):
            for position, one in enumerate(value):
                yield f"{name}_{position}", _cell(one)
        else:
            yield name, _cell(value)


def _cell(value: Any) -> Any:
    """Return a cell for `csv`: booleans and nested values as JSON, an empty field for None."""
    return orjson.dumps(value).decode() if isinstance(value, bool | list | dict) else value


@contextmanager
def _parquet(file: IO[bytes]) -> Iterator[WritePredictions]:
    """Write a column for each output. Its type is known after the last row; until then rows lie in a temporary file."""
    import pyarrow as pa  # here: no other kind needs it
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as waiting:
        schemas: list[Any] = []

        def write(rows: list[Any]) -> None:
            table = pa.Table.from_pylist([row if isinstance(row, Mapping) else {_PREDICTION: row} for row in rows])
            schemas.append(table.schema)
            with pa.ipc.new_stream(waiting, table.schema) as stream:
                stream.write_table(table)

        yield write
        try:
            schema = pa.unify_schemas(schemas, promote_options="permissive")
            waiting.seek(0)
            with pq.ParquetWriter(file, schema) as parquet:
                for _ in schemas:
                    table = pa.ipc.open_stream(waiting).read_all()
                    parquet.write_table(_conform(table, schema))
        except pa.ArrowException as error:
            raise InvalidRequest(f"the predictions do not make a Parquet file: {str(error).splitlines()[0]}") from None


def _conform(table: Any, schema: Any) -> Any:
    import pyarrow as pa

    columns = [
        table.column(field.name) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, names=schema.names).cast(schema)


_FORMS: Mapping[FileFormat, Callable[[IO[bytes]], Any]] = {
    "csv": _csv,
    "json": _json,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
