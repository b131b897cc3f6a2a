"""SQL queries over the log. DuckDB streams the rows; each row appears exactly once,
with its label.

DuckDB can access only the table `log`: files, network and extensions are disabled. The
query is planned over an empty table first, to report mistakes and to find the columns
to read. A sort or a grouping larger than `MEMORY_MB` uses a temporary folder, limited
to half of the free space. A statement without progress for `TIMEOUT_SECONDS` is
interrupted.
"""

import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple, TypeVar

import duckdb
import pyarrow as pa

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.messages import did_you_mean
from mlflow_deploy_plugin.core.processes.memory import limit_growth
from mlflow_deploy_plugin.serve.inference_log.log_reader import (
    InferenceLog,
    View,
    view_schema,
    view_tables,
)
from mlflow_deploy_plugin.serve.inference_log.tables import conform
from mlflow_deploy_plugin.serve.runtime.session import available_cores

if sys.platform != "win32":
    import resource

_Result = TypeVar("_Result")
MEMORY_MB = 512
_THREAD_MB = 128
"""The memory per sorting thread. A sort of 8 million rows failed with 61 MB per thread
and succeeded with 122 MB.
"""
TIMEOUT_SECONDS = 300.0
_CHECKS_PER_TIMEOUT = 10
_BATCH_ROWS = 10_000
_NO_COLUMN = re.compile(
    r'(?:Referenced column|Column with name|Column|column) "?([^"]+?)"? '
    r"(?:not found|does not exist)",
)
_OTHER_TABLE = re.compile(r"Table with name (\S+) does not exist")
_NO_TABLE = re.compile(r'Referenced table "([^"]+)" not found')
_NO_MEMORY = re.compile(
    r"failed to allocate|Allocation failure|malloc of size|Out of Memory|max_temp_directory_size",
)
_TIMED_OUT = (
    "the SQL was ended: it has neither read nor returned a row for {:.0f} s; does it join the log "
    "with itself?"
)


@dataclass(frozen=True)
class Query:
    """A query over the rows of `view`: a complete `statement`, which is a SELECT over
    the table `log`, or the clauses `select`, `where` and `order_by` in DuckDB's SQL.
    """

    view: View
    select: str = "*"
    where: str = ""
    order_by: str = ""
    statement: str = ""
    limit: int | None = None

    def sql(self) -> str:
        """Return the statement. Clauses are on separate lines, so that a comment does
        not hide the next clause.
        """
        if self.statement:
            sql = self.statement.rstrip().rstrip(";")
            if self.limit is None:
                return sql
            return f"FROM (\n{sql}\n) LIMIT {self.limit}"
        sql = f"SELECT {self.select}\nFROM log"
        if self.where:
            sql += f"\nWHERE (\n{self.where}\n)"
        if self.order_by:
            sql += f"\nORDER BY {self.order_by}\n"
        if self.limit is None:
            return sql
        return f"{sql}\nLIMIT {self.limit}"


class QueryResult(NamedTuple):
    """The schema of a result, and its batches."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


@contextmanager
def run_query(log: InferenceLog, query: Query) -> Iterator[QueryResult]:
    """Run a query and yield its result, whose batches are streamed. Raises NotFound if
    the endpoint has no rows, InvalidConfig for invalid SQL (the message suggests a
    column), and OnnxserveError if the log is unreachable.
    """
    schema = view_schema(log, query.view)
    with (
        tempfile.TemporaryDirectory(prefix="onnxserve-query-") as folder,
        closing(
            duckdb.connect(
                ":memory:",
                config={
                    "enable_external_access": "false",
                    "autoinstall_known_extensions": "false",
                    "autoload_known_extensions": "false",
                    "memory_limit": f"{MEMORY_MB}MB",
                    "threads": str(max(min(available_cores(), MEMORY_MB // _THREAD_MB), 1)),
                    "temp_directory": folder,
                    "max_temp_directory_size": f"{shutil.disk_usage(folder).free // 2**21}MiB",
                    "preserve_insertion_order": "true",
                },
            )
        ) as connection,
        ThreadPoolExecutor(1) as thread,
    ):
        # Start the thread now, because Ctrl-C during a start loses the thread.
        thread.submit(bool).result()
        try:
            run = _Run(schema, connection.interrupt, thread)

            def start() -> pa.RecordBatchReader:
                """Register the rows as the table `log`, and start the statement."""
                connection.execute("SET TimeZone = 'UTC'")
                connection.execute("SET lock_configuration = true")
                columns, scans = _plan(connection, query, schema)
                tables = view_tables(log, query.view, columns)
                rows = run.read(
                    chain.from_iterable(conform(table, schema).to_batches() for table in tables),
                )
                stream = pa.RecordBatchReader.from_batches(schema, rows)
                # A stream can be read only once, so a statement with several scans
                # reads a copy.
                if scans > 1:
                    connection.register("_passing", stream)
                    connection.execute("CREATE TEMP TABLE log AS FROM _passing")
                else:
                    connection.register("log", stream)
                return connection.sql(query.sql()).to_arrow_reader(_BATCH_ROWS)

            reader = run.call(start)
            fields = []
            for field in reader.schema:
                kind = field.type
                # DuckDB's time zone is Etc/UTC, the log's is UTC.
                if pa.types.is_timestamp(kind) and kind.tz:
                    kind = pa.timestamp(kind.unit, "UTC")
                fields.append((field.name, kind))
            result_schema = pa.schema(fields)
            yield QueryResult(
                result_schema, (batch.cast(result_schema) for batch in run.results(reader))
            )
        finally:
            # Interrupt the thread's work until it is idle: DuckDB drops an interruption
            # between two statements and would complete the next statement.
            last = thread.submit(bool)
            while not wait([last], 0.05).done:
                connection.interrupt()


class _Run:
    """A run of a statement in a separate thread. The waiting thread receives Ctrl-C,
    because DuckDB may ignore Ctrl-C during a computation, or report Ctrl-C as an SQL
    error.
    """

    def __init__(
        self,
        schema: pa.Schema,
        interrupt: Callable[[], None],
        thread: Executor,
    ) -> None:
        self._schema = schema
        self._interrupt = interrupt
        self._thread = thread
        self._timeout = StatementTimeout(TIMEOUT_SECONDS)
        self._failures: list[OnnxserveError] = []

    def read(self, rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows. An OnnxserveError is stored in the run, because DuckDB would
        replace it by another error.
        """
        try:
            while True:
                with self._timeout.reading():
                    batch = next(rows, None)
                if batch is None:
                    return
                yield batch
        except OnnxserveError as error:
            self._failures.append(error)
            raise

    def results(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        while (batch := self.call(partial(next, reader, None))) is not None:
            yield batch

    def call(self, function: Callable[[], _Result]) -> _Result:
        """Call a DuckDB function and return its result. DuckDB errors become
        InvalidConfig with a one-line message.
        """
        self._timeout.restart()
        is_over = False
        future = self._thread.submit(function)
        try:
            while not wait([future], TIMEOUT_SECONDS / _CHECKS_PER_TIMEOUT).done:
                is_over |= self._timeout.is_over
                if is_over:
                    self._interrupt()
            return future.result()
        except (duckdb.Error, pa.ArrowException, OSError, MemoryError) as error:
            if self._failures:
                raise self._failures[0] from None
            if is_over:
                raise InvalidConfig(_TIMED_OUT.format(TIMEOUT_SECONDS)) from None
            text = str(error) or "Out of Memory"
            raise InvalidConfig(_explain_error(text, self._schema)) from None


def _plan(
    connection: duckdb.DuckDBPyConnection,
    query: Query,
    schema: pa.Schema,
) -> tuple[set[str], int]:
    """Return the columns of the log that the query needs, and the number of scans of
    the log. Raises InvalidConfig unless the query is a single SELECT in valid Unicode.
    """
    for sql in filter(None, (query.statement, query.sql())):
        try:
            sql.encode()
        except UnicodeEncodeError as error:  # DuckDB raises a TypeError.
            invalid = ascii(sql[error.start])
            raise InvalidConfig(
                f"the SQL has {invalid}, which is not valid Unicode: write it in UTF-8",
            ) from None
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise InvalidConfig("a single SELECT is expected, because the log is read-only")
    connection.register("log", schema.empty_table())
    ((_, plan),) = connection.execute("EXPLAIN (FORMAT json) " + query.sql()).fetchall()
    connection.unregister("log")
    columns: set[str] = set()
    scans = 0
    nodes = json.loads(plan)
    while nodes:
        node = nodes.pop()
        nodes += node.get("children", ())
        if "ARROW_SCAN" in node["name"]:
            scans += 1
            projected = node["extra_info"].get("Projections", schema.names)
            if isinstance(projected, str):
                projected = [projected]
            columns.update(projected)
    names = set(schema.names)
    # DuckDB renames columns that differ in case.
    if not columns <= names:
        columns = names
    return columns, scans


def _explain_error(text: str, schema: pa.Schema) -> str:
    """Return a one-line message for DuckDB's error: for a wrong column or table with
    the names that exist, for a limit with its name.
    """
    missing = _NO_COLUMN.search(text) or _NO_TABLE.search(text)
    if missing:
        name = missing[1]
        dotted = [column for column in schema.names if column.startswith(f"{name}.")]
        if dotted:
            return (
                f"the log has no table or column {name!r}; put a name with a dot in double "
                f'quotes: "{dotted[0]}"'
            )
        hint = f"put a text in single quotes; the columns are {', '.join(schema.names[:40])}"
        return f"the log has no column {name!r}{did_you_mean(name, schema.names, hint)}"
    if wrong := _OTHER_TABLE.search(text):
        hint = ""
        if wrong[1] == "failed":
            hint = "; use the option --failed to query requests without an answer"
        return f"there is no table {wrong[1]!r}; the SQL can query only the table log{hint}"
    first_line = text.split("\n", 1)[0]
    if _NO_MEMORY.search(first_line):
        return f"the SQL exceeds the limit of memory or of temporary disk space: {first_line}"
    kind, _, detail = first_line.partition(": ")
    reason = detail if kind.endswith("Error") else first_line
    return f"the SQL cannot be run: {reason}"


class StatementTimeout:
    """A timeout that stops a statement when it has neither read nor returned a row for
    `seconds`. The time for reading the log and the time in which the caller uses the
    result do not count.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._is_reading = False
        self.restart()

    def restart(self) -> None:
        """Restart the timeout, because the statement has made progress."""
        self._last = self._clock()

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._is_reading = True
        try:
            yield
        finally:
            self._last = self._clock()
            self._is_reading = False

    @property
    def is_over(self) -> bool:
        return not self._is_reading and self._clock() - self._last > self._seconds


@contextmanager
def limit_memory(size: int) -> Iterator[None]:
    """Limit this process to `size` bytes more memory than now (Linux only); larger
    allocations fail. DuckDB's `memory_limit` does not include the rows of a giant
    `repeat()`. The limit applies to all threads of the process.
    """
    if sys.platform != "linux":
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    limit_growth(size)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
