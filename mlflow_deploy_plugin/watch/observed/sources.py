"""The sources of observed endpoints: files in a folder or a bucket, Delta tables,
databases, and pushed events. A source yields pieces of rows, each with the position
after it.

- **Files** are read once each, by their name, size and time of the last change. The
  position is the set of the files that have been read. If a file grows or is replaced,
  it is read again, and the rows that are in the log already are left out by their ids.
- **The inbox** of pushed events is emptied; an event without its other half is reported
  after a day, or after a minute if the inbox is half full.
- **A database** is read from the position of a growing column. Transactions may become
  visible in another order, so each reading begins `_READ_AGAIN` rows earlier.
"""

import hashlib
import io
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
import pyarrow as pa
from sqlalchemy import Engine, Select, column, create_engine, make_url, or_, select, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from mlflow_deploy_plugin.core.errors import (
    InvalidConfig,
    InvalidRequest,
    NotInstalled,
    OnnxserveError,
)
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.spec.parts import PUSH, ObserveSpec
from mlflow_deploy_plugin.core.store import inbox
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.tabular.row_files import json_lines
from mlflow_deploy_plugin.core.tabular.streams import RowStream, typed_tables
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log
from mlflow_deploy_plugin.serve.inference_log.tables import hash_texts
from mlflow_deploy_plugin.serve.inference_log.windows import CLOCK_SKEW
from mlflow_deploy_plugin.ship.batch.manifest import list_parts
from mlflow_deploy_plugin.ship.batch.part import Part, unpacked
from mlflow_deploy_plugin.watch.observed.exchange import Exchange, ReadExchange
from mlflow_deploy_plugin.watch.observed.source_rows import (
    ID,
    RowFault,
    exchange_rows,
    named_columns,
    row_fault,
    to_array,
)

_DELTA = "delta:"
_PIECE_ROWS = 50_000
_PIECE_CELLS = 100_000
"""The limit of rows × columns of exchanges. Callers of the model choose columns, which
are null in the rows of all others.
"""
_UNANSWERED_AFTER = timedelta(days=1)
_UNANSWERED_IN_HALF_FULL = timedelta(minutes=1)
_READ_AGAIN = 1_000
_MARK_DIGITS = 16
_TABLE_NAME = re.compile(r'[\w."]+')


@dataclass(frozen=True)
class Piece:
    """Rows of a source with the names of the log.

    Attributes:
        place: the file or the database, for messages.
        position: the position after these rows; None within a file.
        ends_group: True if the source continues only after these rows have been
            written.
    """

    table: pa.Table
    place: str
    position: str | None
    faults: Sequence[RowFault] = ()
    ends_group: bool = False


@dataclass(frozen=True)
class SourceReader:
    """Reads the source of an endpoint.

    Attributes:
        read_exchange: reads a record of another server's log; None if rows are rows.
        names: the names of the model's inputs, in order; empty if they are unknown.
        types: column → its type in the model's signature, for texts of CSV files.
    """

    store: Store
    endpoint: str
    spec: ObserveSpec
    read_exchange: ReadExchange | None
    names: Sequence[str]
    types: Mapping[str, pa.DataType]

    def pieces(self, position: str) -> Iterator[Piece]:
        """Yield the rows after the position.

        Raises:
            InvalidConfig: the source does not exist, or has no column with a role.
            OnnxserveError: the source cannot be reached or read.
        """
        if self.spec.source == PUSH:
            yield from self._pushed_pieces()
            return
        if self.spec.is_database:
            yield from self._database_pieces(position)
            return
        starts = range(0, len(position), _MARK_DIGITS)
        listed: dict[str, Part] = {}
        for part in self._list_files():
            state = f"{part.name}\n{part.state}"
            listed[hashlib.sha256(state.encode()).hexdigest()[:_MARK_DIGITS]] = part
        marks = {position[at : at + _MARK_DIGITS] for at in starts} & listed.keys()
        position = "".join(sorted(marks))
        for mark, part in listed.items():
            if mark in marks:
                continue
            try:
                yield from self._file_pieces(part)
            except (OSError, pa.ArrowException) as error:
                raise OnnxserveError(f"{part.uri} cannot be read: {one_line(error)}") from None
            except InvalidRequest as error:
                raise OnnxserveError(f"{part.uri}: {error.message}") from None
            position += mark
            yield Piece(pa.table({}), part.name, position)

    def _pushed_pieces(self) -> Iterator[Piece]:
        """Yield the rows of the inbox, and empty it after they have been written."""
        store = self.store
        name = self.endpoint
        place = "the pushed events"
        while pushed := inbox.exchanges(store, name):
            records = ((f"id {each.id}", asdict(each)) for each in pushed)
            faults = [row_fault("conflict", f"id {each.id}") for each in pushed if each.conflicts]
            yield from self._exchange_pieces(records, place)
            yield Piece(pa.table({}), place, None, faults, ends_group=True)
            inbox.remove(store, name, [each.id for each in pushed])
        # Requests that fail have no response, and would fill the inbox for a day.
        wait = _UNANSWERED_IN_HALF_FULL if inbox.is_half_full(store, name) else _UNANSWERED_AFTER
        if late := inbox.take_unanswered(store, name, store.now() - wait):
            marks = hash_texts(pa.chunked_array([late]))
            yield Piece(
                pa.table({}), place, None, [RowFault("unanswered", f"id {late[-1]}", marks)]
            )

    def _list_files(self) -> list[Part]:
        if not self.spec.source.startswith(_DELTA):
            return list_parts(self.spec.source, None, None)
        try:
            from deltalake import DeltaTable
            from deltalake.exceptions import DeltaError
        except ImportError:
            raise NotInstalled(
                "a Delta table needs deltalake: pip install 'mlflow-onnxserve[delta]'"
            ) from None
        uri = self.spec.source.removeprefix(_DELTA)
        try:
            files = DeltaTable(uri).file_uris()
        except (DeltaError, OSError) as error:
            raise OnnxserveError(
                f"the Delta table {uri} cannot be read: {one_line(error)}"
            ) from None
        # The files of a Delta table never change.
        return [Part(file, file, file, "parquet", "parquet", 0, "") for file in sorted(files)]

    def _file_pieces(self, part: Part) -> Iterator[Piece]:
        """Yield the rows of a file."""
        location = locate_log(part.uri, "observe.source")
        with (
            location.filesystem.open_input_file(location.root) as packed,
            unpacked(packed, location.root) as file,
        ):
            if part.input_format == "jsonl" and self.read_exchange is not None:
                numbered_lines = json_lines(io.BufferedReader(file))
                lines = ((f"line {number}", line) for number, line, _ in numbered_lines)
                yield from self._exchange_pieces(lines, part.name)
                return
            stream = RowStream(file, part.input_format, self.types)
            for block in stream.blocks(stream.schema.names):
                bad = [f"row {row.number} of {part.name}: {row.why}" for row in block.bad]
                faults = [row_fault("bad_row", *bad)] if bad else []
                if self.read_exchange is not None:
                    rows = block.table.to_pylist(maps_as_pydicts="lossy")
                    numbered = zip(block.numbers, rows, strict=True)
                    records = ((f"row {number}", record) for number, record in numbered)
                    yield from self._exchange_pieces(records, part.name)
                    yield Piece(pa.table({}), part.name, None, faults)
                    continue
                table = block.table
                if part.input_format == "csv":
                    types = {**self.types, self.spec.id or "": pa.string()}
                    (table,) = typed_tables([table], types)
                table = named_columns(table, self.spec, part.name)
                if ID not in table.column_names:
                    ids = pa.array([f"{part.name}#{number}" for number in block.numbers])
                    table = table.append_column(ID, ids)
                yield Piece(table, part.name, None, faults)

    def _exchange_pieces(self, records: Iterator[tuple[str, Any]], place: str) -> Iterator[Piece]:
        """Yield the rows of records, each with its place in the source: JSON lines, or
        mappings.
        """
        assert self.read_exchange is not None
        exchanges: list[Exchange] = []
        names: set[str] = set()
        row_count = 0
        faults = []
        for where, record in records:
            try:
                values = orjson.loads(record) if isinstance(record, bytes) else record
                if not isinstance(values, dict):
                    raise InvalidRequest("it is not a JSON object")
                exchange = self.read_exchange(values, self.names)
            except (InvalidRequest, orjson.JSONDecodeError) as error:
                faults.append(row_fault("bad_row", f"{where} of {place}: {one_line(error)}"))
                continue
            if exchange is None:
                continue
            columns = {**exchange.inputs, **exchange.predictions}
            rows = max(map(len, columns.values()), default=0)
            row_count += rows
            names.update(columns)
            if exchanges and row_count * len(names) > _PIECE_CELLS:
                yield Piece(exchange_rows(exchanges), place, None)
                exchanges = []
                names = set(columns)
                row_count = rows
            exchanges.append(exchange)
        table = exchange_rows(exchanges) if exchanges else pa.table({})
        yield Piece(table, place, None, faults)

    def _open_database(self) -> Engine:
        try:
            url = make_url(self.spec.source)
            if self.spec.password is not None:
                password = os.environ.get(self.spec.password)
                if password is None:
                    raise InvalidConfig(
                        f"the environment variable {self.spec.password}, which observe.password "
                        "names, is not set"
                    )
                url = url.set(password=password)
            return create_engine(url)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise InvalidConfig(f"observe.source: {one_line(error)}") from None

    def _select(self, growing: str, position: str) -> Select[Any]:
        """Return the statement for the rows from the position on, in the order of the
        growing column.
        """
        query = self.spec.query or ""
        if not _TABLE_NAME.fullmatch(query):
            query = f"({query}) AS observed_rows"
        statement = select(text("*")).select_from(text(query)).order_by(column(growing))
        if not position:
            return statement
        after = _from_json(orjson.loads(position))
        return statement.where(or_(column(growing) >= after, column(growing).is_(None)))

    def _database_pieces(self, position: str) -> Iterator[Piece]:
        """Yield the rows of the query."""
        engine = self._open_database()
        place = engine.url.render_as_string(hide_password=True)
        growing = self.spec.position or self.spec.time
        if growing is None:
            raise InvalidConfig("observe.position is missing: the name of a column that grows")
        last: deque[Any] = deque(maxlen=_READ_AGAIN)
        try:
            with closing(engine.connect()) as connection:
                streaming = connection.execution_options(yield_per=_PIECE_ROWS)
                result = streaming.execute(self._select(growing, position))
                names = list(result.keys())
                if growing not in names:
                    raise InvalidConfig(f"{place} has no column {growing!r}: see observe.position")
                at = names.index(growing)
                for rows in result.partitions():
                    last.extend(row[at] for row in rows if not _is_ahead(row[at]))
                    reached = orjson.dumps(_to_json(last[0])).decode() if last else None
                    if self.read_exchange is not None:
                        records = (
                            (f"row {row[at]}", dict(zip(names, row, strict=True))) for row in rows
                        )
                        yield from self._exchange_pieces(records, place)
                        yield Piece(pa.table({}), place, reached)
                        continue
                    columns = [to_array(values) for values in zip(*rows, strict=True)]
                    table = pa.table(columns, names=names)
                    yield Piece(named_columns(table, self.spec, place), place, reached)
        except SQLAlchemyError as error:
            reason = one_line(getattr(error, "orig", None) or error)
            raise OnnxserveError(f"{place} cannot be read: {reason}") from None
        finally:
            engine.dispose()


def _is_ahead(position: object) -> bool:
    """Return True for a time in the future, after which the rows of today would not be
    read, and for a missing position.
    """
    if isinstance(position, str):
        with suppress(ValueError):
            position = datetime.fromisoformat(position)
    if isinstance(position, datetime):
        return position.replace(tzinfo=position.tzinfo or UTC) > datetime.now(UTC) + CLOCK_SKEW
    return position is None


def _to_json(value: object) -> list[str | int | float]:
    """Return a position of a database as JSON, with its type."""
    if isinstance(value, datetime | date):
        return [type(value).__name__, value.isoformat()]
    if isinstance(value, int | float):
        return ["number", value]
    return [type(value).__name__, str(value)]


def _from_json(stored: Sequence[Any]) -> object:
    kind, value = stored
    match kind:
        case "datetime":
            return datetime.fromisoformat(value)
        case "date":
            return date.fromisoformat(value)
        case "Decimal":
            return Decimal(value)
        case "UUID":
            return UUID(value)
    return value
