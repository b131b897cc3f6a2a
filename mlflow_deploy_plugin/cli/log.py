"""`onnxserve log …`: query, count, compact, expire and erase captured rows; failures by
cause.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, cast

import click

from mlflow_deploy_plugin.cli.options import (
    Commands,
    column_widths,
    combine_options,
    end_with_reader,
    flag,
    name_argument,
    opened_store,
    option,
    output_option,
    printable,
    shorten,
    show_lines,
    show_progress,
    show_result,
    since_option,
    until_option,
    usage_errors,
)
from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.spec.types import parse_duration
from mlflow_deploy_plugin.core.tabular.row_files import (
    FileFormat,
    format_of,
    open_output,
    table_writer,
    values_of,
)
from mlflow_deploy_plugin.serve.inference_log.windows import (
    TimeRange,
    parse_time_range,
    time_before,
)

if TYPE_CHECKING:
    from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog
    from mlflow_deploy_plugin.serve.inference_log.query import QueryResult
    from mlflow_deploy_plugin.serve.inference_log.stats import LogStats

_TABLE_ROWS = 20
_WIDEST_CELL = 40
_NUMBER_TYPES = ("int", "uint", "float", "double", "halffloat")
_WIDEST_REASON = 200
_MEASURED_ROWS = 1000
_SHOWN_TIMES = 24
_BAR = 30
_MEMORY_BYTES = 2 * 2**30
"""The memory that a query may use, in addition to the memory of the command itself."""
_HIDDEN_COLUMNS = (
    "_model, _received_time, _shadow, _tried, _latency_us, _status, _request_id, _segment, "
    "_offset, _row"
)
_HIDDEN_COLUMNS_OF_FAILED = "_received_time, _shadow, _tried, _segment, _offset, _row"
"""The columns that a table omits by default, because only programs need these columns.
"""
_REMEDIES = {
    "BAD_REQUEST": (
        "correct the callers' requests; if only a new version refuses them, run `onnxserve "
        "rollback {0}`"
    ),
    "TEMPORARILY_UNAVAILABLE": (
        "callers may retry; `onnxserve list` and `onnxserve logs {0}` show why no model answers"
    ),
    "REQUEST_LIMIT_EXCEEDED": (
        "add workers or pods (`onnxserve size`), or raise server.max_queue_size"
    ),
    "DEADLINE_EXCEEDED": (
        "add workers or pods (`onnxserve size`), or raise the timeout of the callers or the server"
    ),
}
"""The code of a failed request → a remedy for the operator of the endpoint `{0}`, in
addition to the message.
"""
_OTHER_REMEDY = (
    "search for the request id in `onnxserve logs {0}`, which has the traceback of an internal "
    "error"
)
_VARIABLE_PARTS = (
    (r"[;:] (?:did you mean|the allowed values are) .*", ""),  # This hint depends on the value.
    (
        # \B, because the apostrophe of "model's" is not a quote.
        r"""\B'(?:[^'\\]|\\.)*'|\B"(?:[^"\\]|\\.)*"|"""
        r"\b[0-9A-Fa-f]{8}[0-9A-Fa-f-]{4,}\b|"  # an id
        r"[-+]?\b\d+(?:\.\d+)?(?:[eE][-+]?\d+)?\b|\b(?:null|true|false|nan|inf)\b",
        "…",
    ),
    (r"[\[({]*…(?:[\[\](){}.,:… ]*[…\])}])?", "…"),  # a list, an object or a sequence of values
)
"""The regular expressions (RE2) of the parts that differ between messages of the same
cause, and their replacements.
"""


@click.group(cls=Commands, example="query")
def log() -> None:
    """Query, count, compact, expire and erase captured rows, and group failures."""


_row_options = combine_options(
    click.argument("file", default="-"),
    since_option,
    until_option,
    option("--labels/--no-labels", "Include the columns _label and _label_number.", default=True),
    flag("--shadows", "Include the answers of shadows and of the page Try."),
    flag("--failed", "Show only the requests that failed, with the reason."),
    option(
        "--limit ROWS",
        "Maximum number of rows.",
        type=click.IntRange(min=0),
        show_default=f"{_TABLE_ROWS} in a table",
    ),
    option(
        "-o --output",
        "Format of the rows.",
        type=click.Choice(["table", "csv", "json", "jsonl", "parquet"]),
        show_default="from the name of FILE, otherwise table",
    ),
)
"""The options that select the captured rows, and that write the result."""


@log.command()
@name_argument
@_row_options
@option("--where SQL", "WHERE condition.", default="")
@option("--select SQL", "Columns and expressions.", default="", show_default="all columns")
@option("--order-by SQL", "Order, e.g. _event_time DESC.", default="", show_default="by hour")
def query(
    name: str,
    where: str,
    select: str,
    order_by: str,
    **rows: Any,
) -> None:
    """Query the captured rows of the endpoint NAME.

    Write the rows to FILE or to standard output, each row once.

    \b
      onnxserve log query flights --since 1h
      onnxserve log query flights --since 2013-07-01/1d --where "carrier = 'UA'" -o csv
      onnxserve log query flights labelled.parquet --where "_label IS NOT NULL"

    The SQL dialect is DuckDB's. The label of a row is the latest label for its
    prediction id or key. A column name that contains a dot must be quoted:
    "output.probabilities".
    """
    _show_rows(name, **rows, where=where, columns=select, order_by=order_by)


@log.command()
@name_argument
@click.argument("statement")
@_row_options
def sql(name: str, statement: str, **rows: Any) -> None:
    """Run a SELECT over the captured rows of the endpoint NAME.

    The only table of STATEMENT is log. Its dialect and its columns are those of
    `onnxserve log query`. Write the rows of the result to FILE or to standard output.

    \b
      onnxserve log sql flights "SELECT _version, count(*) FROM log GROUP BY ALL"
      onnxserve log sql flights "SELECT _version, count(*) FROM log GROUP BY ALL" \\
          versions.csv --since 7d
    """
    _show_rows(name, **rows, statement=statement)


def _show_rows(
    name: str,
    file: str,
    since: str | None,
    until: str | None,
    labels: bool,
    shadows: bool,
    failed: bool,
    limit: int | None,
    output: str | None,
    columns: str = "",
    **clauses: str,
) -> None:
    """Write the captured rows that a query with these clauses selects to the file.

    Args:
        failed: query the requests without an answer instead.
        limit: the maximum number of rows; None for the default of the format.
        output: the format; None for the format that the file name shows.
        columns: the selected columns in SQL; empty for the default of the format.
    """
    output = output or format_of(file) or "table"
    if output == "table" and file != "-":
        raise click.UsageError(
            f"a file cannot contain a table: specify -o csv, json, jsonl or parquet for {file}",
        )
    if output == "parquet" and file == "-" and sys.stdout.isatty():
        raise click.UsageError("Parquet cannot be shown in a terminal: specify a FILE")
    end_with_reader()
    from mlflow_deploy_plugin.serve.inference_log.log_reader import View, require_endpoint
    from mlflow_deploy_plugin.serve.inference_log.query import Query, limit_memory, run_query

    labels = labels and not failed
    # Read one extra row, so that the table can report that more rows exist.
    most = limit
    if output == "table":
        hidden = _HIDDEN_COLUMNS_OF_FAILED if failed else _HIDDEN_COLUMNS
        if labels:
            hidden += ", _label_number"
        columns = columns or f"* EXCLUDE ({hidden})"
        limit = _TABLE_ROWS if limit is None else limit
        most = limit + 1
    with usage_errors():
        view = View(
            name,
            parse_time_range(since, until, datetime.now(UTC)),
            labels,
            shadows,
        )
    opened = open_user_log()
    if failed:
        if name not in opened.failures.endpoints():
            require_endpoint(opened, name)
            show_progress(f"no failed request of {name} is in the log")
            return
        opened = opened.failures
    request = Query(view, columns or "*", **clauses, limit=most)
    with limit_memory(_MEMORY_BYTES), run_query(opened, request) as result:
        if output == "table":
            widest = _WIDEST_REASON if failed else _WIDEST_CELL
            show_lines(table_lines(result, limit, widest))
        else:
            _write_rows(result, file, cast(FileFormat, output))
    warn_of_unreadable(opened)


def _write_rows(result: "QueryResult", file: str, kind: FileFormat) -> None:
    """Write the rows to the file (-: standard output), and print their number."""
    rows = 0
    advice = "CAST(… AS VARCHAR) converts it to text"
    with (
        open_output(file, sys.stdout.buffer) as target,
        table_writer(kind, result.schema, target, advice) as write,
    ):
        for batch in result.batches:
            write(batch)
            rows += len(batch)
    if file != "-":
        click.echo(f"{rows:,} rows in {file}", err=True)


@log.command()
@name_argument
@since_option
@until_option
@output_option
def stats(
    name: str,
    since: str | None,
    until: str | None,
    output: str,
) -> None:
    """Count the captured rows of the endpoint NAME.

    Count rows by version, variant and time, and count labels and missing rows. To find
    answered rows that are not in the log, the command uses the counters of the agents:
    answered, captured, dropped and shipped rows since the first start of each server.
    If a deleted endpoint had the same name, its rows are counted only with --since.
    """
    from mlflow_deploy_plugin.serve.inference_log.stats import log_stats

    with usage_errors():
        span = None
        if since or until:
            span = parse_time_range(since, until, datetime.now(UTC))
    since_deletion = None
    if span is None:
        # Rows received earlier belong to a deleted endpoint of the same name.
        with suppress(OnnxserveError), opened_store() as store:
            endpoint = store.endpoint(name)
            since_deletion = None if endpoint is None else endpoint.rows_since
    opened = open_user_log(since_deletion)
    if opened.since is not None:
        older = (
            f"rows received before {opened.since:%Y-%m-%d %H:%M:%S}Z belong to a deleted endpoint "
            "of this name"
        )
        show_progress(f"{name}: {older} and are not counted (--since counts them)")
    figures = log_stats(opened, name, span)
    show_result(output, asdict(figures), stats_lines(figures, opened.location.shown))
    warn_of_unreadable(opened)


@log.command()
@name_argument
@option("--keep DURATION", "Maximum age of rows and labels: 90d, 12h.", required=True)
@flag("--dry-run", "Show the number and size of files that would be deleted.")
def expire(name: str, keep: str, dry_run: bool) -> None:
    """Delete old rows and labels of the endpoint NAME.

    The age of a row depends on its event time, the age of a label on the day of its
    receipt. The row profiles that monitors store are deleted by day. Rows of an
    endpoint on hold, and rows below ONNXSERVE_RETENTION_FLOOR_DAYS, are not deleted.
    """
    from mlflow_deploy_plugin.core.store.holds import require_deletable
    from mlflow_deploy_plugin.serve.inference_log.maintenance import expire as delete

    with usage_errors():
        length = parse_duration(keep, "--keep")
    opened = open_user_log()
    _require_logged(opened, name)
    with opened_store() as store:
        require_deletable(store, name, length)
    done = delete(opened, name, datetime.now(UTC), length, only_count=dry_run)
    outcome = "would be deleted" if dry_run else "deleted"
    click.echo(
        f"{name}: {done.expired_files:,} files older than {keep} {outcome}, "
        f"{size_text(done.expired_bytes)}",
    )


@log.command()
@name_argument
def compact(name: str) -> None:
    """Compact the small files of the endpoint NAME.

    The files of each past hour are merged into one file. The rows do not change, and
    readers and agents may run at the same time. `onnxserve controller` does the same
    once per hour.
    """
    from mlflow_deploy_plugin.serve.inference_log.maintenance import compact as make_one

    opened = open_user_log()
    _require_logged(opened, name)
    done = make_one(opened, name, datetime.now(UTC))
    click.echo(f"{name}: {done.compacted_files:,} files became {done.written_files:,}")
    warn_of_unreadable(opened)


@log.command()
@name_argument
@option("--where COLUMN=VALUE", "Column of capture.keys, and its value.", required=True)
@flag("--dry-run", "Show the number of rows and labels that would be erased.")
def erase(name: str, where: str, dry_run: bool) -> None:
    """Erase the rows and labels of a person from the log of the endpoint NAME.

    \b
      onnxserve log erase flights --where customer=4711

    The column identifies persons, and may be masked. Each sink receives an event. The
    audit trail records the erasure, but not the value. References of versions, counts
    and runs in MLflow do not change. The command can be repeated; rows that the agent
    has not shipped yet are not erased.
    """
    from mlflow_deploy_plugin.core.settings import load_settings
    from mlflow_deploy_plugin.core.store.holds import require_deletable
    from mlflow_deploy_plugin.serve.agent.sinks import post_erased
    from mlflow_deploy_plugin.serve.inference_log.erasure import Erasure, forms_of
    from mlflow_deploy_plugin.serve.inference_log.stats import agent_counts
    from mlflow_deploy_plugin.serve.spool.captured_model import MASK_KEY
    from mlflow_deploy_plugin.watch.observed.reading import empty_inbox

    column, _, value = where.partition("=")
    opened = open_user_log()
    with opened_store() as store:
        endpoint = store.require_endpoint(name)
        capture = endpoint.spec.capture
        if column not in capture.keys or not value:
            keys = ", ".join(capture.keys) or "empty"
            raise InvalidConfig(
                f"--where must be COLUMN=VALUE with a column of capture.keys, which is {keys}"
            )
        require_deletable(store, name, timedelta())
        mask_key = load_settings().state_dir(name) / MASK_KEY
        values = forms_of(column, value, mask_key, column in capture.mask)
        account = agent_counts(opened, name)
        done = Erasure(opened, name, column, values)
        if dry_run:
            done.search()
            click.echo(f"{name}: {done.rows:,} rows and {done.labels:,} labels would be erased")
            warn_of_unreadable(opened)
            return
        try:
            unread = empty_inbox(load_settings(), store, endpoint)
            done.run()
        finally:
            detail = {"column": column, "rows": done.rows, "labels": done.labels}
            store.record("erase", endpoint=name, detail=detail)
    lines = [f"{name}: {done.rows:,} rows and {done.labels:,} labels erased"]
    # The value of a masked column must not leave the machine.
    told = values[-1:] if column in capture.mask else values
    refusals = [
        f"sink {sink}: {why}"
        for sink, spec in capture.sinks.items()
        if (why := post_erased(name, spec, column, told))
    ]
    if unread:
        refusals.append(f"the pushed events cannot be read: {unread}")
    if not opened.unreadable:
        lines.append(f"no row with {column}=… is left in {opened.location.shown}")
    if account is not None:
        until = _time(account.complete_until)
        lines.append(f"rows answered after {until} may not be in the log yet: repeat the command")
    show_lines([*lines, *refusals])
    warn_of_unreadable(opened)
    if opened.unreadable or refusals:
        raise OnnxserveError(
            "the erasure is not complete: correct the cause, and repeat the command"
        )


@log.command()
@name_argument
@option("--last DURATION", "Maximum age by the time of receipt: 90s, 1h, 7d.", default="24h")
@output_option
def errors(name: str, last: str, output: str) -> None:
    """Group the failed requests of the endpoint NAME by cause.

    A cause is a status, an error code, a column and a message without values. Only
    captured requests are counted.

    \b
      onnxserve log errors flights --last 24h
      onnxserve log errors flights --last 7d -o json
    """
    from mlflow_deploy_plugin.serve.inference_log.log_reader import View, require_endpoint
    from mlflow_deploy_plugin.serve.inference_log.query import Query, run_query

    with usage_errors():
        view = View(
            name,
            TimeRange(received_from=time_before(datetime.now(UTC), last, "--last")),
            labels=False,
        )
    opened = open_user_log()
    causes = list[dict[str, Any]]()
    if name in opened.failures.endpoints():
        with run_query(opened.failures, Query(view, statement=_causes_statement())) as result:
            for batch in result.batches:
                causes += batch.to_pylist()
    else:
        require_endpoint(opened, name)
    answered = 0
    if name in opened.endpoints():
        with run_query(opened, Query(view, "count(*) FILTER (_row = 0)")) as result:
            for batch in result.batches:
                answered += sum(batch.column(0).to_pylist())
    failed = sum(cause["count"] for cause in causes)
    lines = [f"{failed:,} of {answered + failed:,} requests failed in the last {last}"]
    for cause in causes:
        cause["share"] = cause["count"] / (answered + failed)
        cause["remedy"] = _REMEDIES.get(cause["error_code"], _OTHER_REMEDY).format(name)
        column = f" column {cause['column']!r}" if cause["column"] else ""
        newest = cause["newest"]
        message = newest["message"]
        if not message:
            message = "the message is not captured if capture drops or masks columns"
        lines += [
            f"{cause['count']:,} ({cause['share']:.2%})  {cause['status']} "
            f"{cause['error_code']}{column}",
            f"  time      {_time(cause['first'])} to {_time(cause['last'])}",
            f"  versions  {', '.join(cause['versions'])}",
            f"  example   {message}",
            f"            request {newest['request_id']}, prediction {newest['prediction_id']}",
            f"  remedy    {cause['remedy']}",
        ]
    show_result(output, {"answered": answered, "failed": failed, "causes": causes}, lines)
    warn_of_unreadable(opened)


def _causes_statement() -> str:
    """Return the SQL that groups failures. `newest` is the last request of a cause.
    Masked messages are NULL.
    """
    cause = "ifnull(_message, '')"
    for pattern, replacement in _VARIABLE_PARTS:
        quoted = pattern.replace("'", "''")
        cause = f"regexp_replace({cause}, '{quoted}', '{replacement}', 'g')"
    newest = "{request_id: _request_id, prediction_id: _prediction_id, message: _message}"
    return f"""
        SELECT _status AS status, _error_code AS error_code, _column AS "column", {cause} AS cause,
            count(*) AS "count", min(_received_time) AS "first", max(_received_time) AS "last",
            list_sort(list(DISTINCT _version)) AS versions, arg_max({newest}, _received_time) AS newest
        FROM log GROUP BY ALL ORDER BY "count" DESC, "first"
    """  # noqa: E501


def _require_logged(opened: "InferenceLog", name: str) -> None:
    """Raise NotFound if the log contains no rows, no labels (which outlive rows) and no
    failures of the endpoint.
    """
    from mlflow_deploy_plugin.serve.inference_log.labels import LABELS
    from mlflow_deploy_plugin.serve.inference_log.log_reader import require_endpoint
    from mlflow_deploy_plugin.serve.inference_log.storage import list_endpoints

    if (
        name not in list_endpoints(opened.location, LABELS)
        and name not in opened.failures.endpoints()
    ):
        require_endpoint(opened, name)


def open_user_log(since: datetime | None = None) -> "InferenceLog":
    """Open the inference log of the settings; skip rows received before `since`."""
    from mlflow_deploy_plugin.core.settings import load_settings
    from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log

    return open_log(load_settings().inference_log, since)


def warn_of_unreadable(log: "InferenceLog") -> None:
    for path, reason in log.unreadable.items():
        click.echo(f"note: {path} cannot be read and is ignored: {reason}", err=True)


def table_lines(
    result: "QueryResult",
    bound: int | None,
    widest: int = _WIDEST_CELL,
) -> Iterator[str]:
    """Yield at most `bound` rows as a table. The first rows set the column widths, at
    most `widest` characters.
    """
    rows = _text_rows(result, partial(_cell, widest))
    measured = _MEASURED_ROWS if bound is None else min(bound, _MEASURED_ROWS)
    first = list(islice(rows, measured))
    names = tuple(map(printable, result.schema.names))
    widths = column_widths([names, *first])
    # Numbers are aligned to the right.
    forms = [
        f">{width}" if str(field.type).startswith(_NUMBER_TYPES) else f"<{width}"
        for field, width in zip(result.schema, widths, strict=True)
    ]
    yield _line(map(shorten, names, widths), forms)
    count = 0
    for row in chain(first, rows):
        if count == bound:
            yield f"… and more rows: --limit is {bound:,}"
            return
        count += 1
        yield _line(map(shorten, row, widths), forms)
    plural = "" if count == 1 else "s"
    yield f"{count:,} row{plural}"


def _text_rows(
    result: "QueryResult",
    text_of: Callable[[object], str],
) -> Iterator[tuple[str, ...]]:
    for batch in result.batches:
        columns = [map(text_of, values_of(column)) for column in batch.columns]
        yield from zip(*columns, strict=True)


def stats_lines(stats: "LogStats", location: str) -> Iterator[str]:
    """Yield the figures of an endpoint's log at `location` as text."""
    yield f"{stats.endpoint} in {location}"
    span = ""
    if stats.first and stats.last:
        span = f", {_time(stats.first)} to {_time(stats.last)}"
    shadows = f" and {stats.shadow_rows:,} of shadows" if stats.shadow_rows else ""
    yield f"  rows      {stats.rows:,}{shadows}{span}"
    if stats.failed_rows:
        yield f"  failed    {stats.failed_rows:,} rows of requests that failed"
    yield f"  files     {stats.files:,}, {size_text(stats.size)}"
    yield from _count_lines("versions", stats.by_version)
    yield from _count_lines("variants", stats.by_variant)
    labels = stats.labels
    share = f" ({labels.rows / stats.rows:.1%})" if stats.rows else ""
    unmatched = ""
    if labels.unmatched is not None:
        unmatched = f"; {labels.names:,} labels, {labels.unmatched:,} unmatched"
    yield f"  labels    {labels.rows:,} rows have a label{share}{unmatched}"
    if stats.account is not None:
        account = stats.account
        unshipped = account.captured - account.shipped
        on_their_way = f", {unshipped:,} on their way" if unshipped > 0 else ""
        yield (
            f"  account   {account.answered:,} rows were answered, {account.captured:,} of them "
            f"captured, {account.dropped:,} dropped; {account.shipped:,} shipped{on_their_way}"
        )
        gone = account.gone(stats.rows)
        if stats.labels.unmatched is not None and gone:
            yield (
                f"            {gone:,} shipped rows are no longer in the log: they expired or were "
                "deleted"
            )
        yield f"            the log is complete until {_time(account.complete_until)}"
    yield from _histogram(stats.by_hour)


def size_text(size: float) -> str:
    """Return a number of bytes in B, kB, MB, GB or TB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            if unit == "B":
                return f"{size:.0f} B"
            return f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _count_lines(title: str, counts: Mapping[str, int]) -> Iterator[str]:
    for name, rows in counts.items():
        yield f"  {title:8}  {name}: {rows:,}"
        title = ""


def _histogram(by_hour: Mapping[datetime, int]) -> Iterator[str]:
    """Yield a bar for each hour, or for each day if there are too many hours."""
    form = "%Y-%m-%d %H:%M" if len(by_hour) <= _SHOWN_TIMES else "%Y-%m-%d"
    counts: dict[str, int] = {}
    for moment, rows in by_hour.items():
        label = moment.strftime(form)
        counts[label] = counts.get(label, 0) + rows
    if len(counts) > _SHOWN_TIMES:
        yield f"  … {len(counts) - _SHOWN_TIMES:,} earlier bars (-o json shows all)"
    last = list(counts.items())[-_SHOWN_TIMES:]
    most = max((rows for _, rows in last), default=1)
    width = len(f"{most:,}")
    for label, rows in last:
        yield f"  {label}  {rows:{width},}  {'█' * max(1, round(_BAR * rows / most))}"


def _cell(widest: int, value: object) -> str:
    """Return a value as the text of a cell, shortened to `widest` characters."""
    if value is None:
        return "NULL"
    if isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, datetime):
        text = _time(value)
    elif isinstance(value, date):
        text = value.isoformat()
    else:
        text = printable(str(value))
    return shorten(text, widest)


def _line(cells: Iterable[str], forms: Iterable[str]) -> str:
    return "  ".join(map(format, cells, forms)).rstrip()


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f").rstrip("0").rstrip(".")
