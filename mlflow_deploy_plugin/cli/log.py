"""`onnxserve log …`: query, count and keep what was captured of an endpoint."""

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import click

from mlflow_deploy_plugin.cli.options import output_option
from mlflow_deploy_plugin.cli.output.terminal import show_lines
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.tabular import FileFormat, format_of, open_output, table_writer

if TYPE_CHECKING:
    from mlflow_deploy_plugin.inference_log import InferenceLog, QueryResult

_TABLE_ROWS = 20
_MEMORY_BYTES = 2 * 2**30
"""The memory of a query, beyond that of the command itself."""
_HIDDEN_COLUMNS = "_model, _received_time, _shadow, _latency_us, _status, _request_id, _segment, _offset, _row"
"""The columns that a table for people leaves out by default."""
_since = click.option(
    "--since",
    "--window",
    "since",
    metavar="WHEN",
    show_default="everything",
    help="Begin: so long before now by the time of receipt (90s, 1h, 7d); or an event time in UTC (2013-07-01T12:00), "
    "or a whole window of it (2013-07-01/1d).",
)
_until = click.option(
    "--until", metavar="WHEN", show_default="no end", help="End, excluded: so long before now, or an event time in UTC."
)


@click.group()
def log() -> None:
    """Query, count and keep what was captured of an endpoint."""


@log.command()
@click.argument("name")
@click.argument("file", default="-")
@_since
@_until
@click.option("--where", metavar="SQL", default="", help="Condition on the columns.")
@click.option("--select", metavar="SQL", default="", show_default="every column", help="Columns and expressions.")
@click.option(
    "--order-by", metavar="SQL", default="", show_default="as the hours follow", help="Order, as _event_time DESC."
)
@click.option("--sql", metavar="SQL", default="", help="Whole SELECT over the table log, instead of those three.")
@click.option(
    "--labels/--no-labels", default=True, show_default=True, help="Columns _label and _label_number, or none of them."
)
@click.option("--shadows", is_flag=True, help="Show also what shadows answered.")
@click.option("--failed", is_flag=True, help="Show the requests that got no answer instead; _status says why not.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    metavar="ROWS",
    show_default=f"{_TABLE_ROWS} in a table",
    help="Number of rows at most.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "csv", "json", "jsonl", "parquet"]),
    show_default="by the name of FILE, else table",
    help="Format of the rows.",
)
def query(
    name: str,
    file: str,
    since: str | None,
    until: str | None,
    where: str,
    select: str,
    order_by: str,
    sql: str,
    labels: bool,
    shadows: bool,
    failed: bool,
    limit: int | None,
    output: str | None,
) -> None:
    """Query the captured rows of the endpoint NAME in SQL.

    Each row comes once, into FILE or onto standard output.

    \b
      onnxserve log query flights --since 1h
      onnxserve log query flights --since 2013-07-01/1d --where "carrier = 'UA'" -o csv
      onnxserve log query flights labelled.parquet --where "_label IS NOT NULL"
      onnxserve log query flights --sql "SELECT _version, count(*) FROM log GROUP BY ALL"

    The SQL is DuckDB's. It sees the rows as the table log, and nothing else. A row has the label of its prediction id
    or key, the last one if there are several. A name with a dot is quoted: "output.probabilities".
    """
    if sql and (where or select or order_by):
        raise InvalidConfig("--sql is the whole statement: leave --where, --select and --order-by out")
    output = output or format_of(file) or "table"
    is_table = output == "table"
    if is_table and file != "-":
        raise InvalidConfig(f"a table is for people: with a file, here {file}, say -o csv, json, jsonl or parquet")
    if output == "parquet" and file == "-" and sys.stdout.isatty():
        raise InvalidConfig("Parquet is nothing for a terminal: name a FILE")
    # here: DuckDB and pyarrow take a second that `--help` should not wait for
    from mlflow_deploy_plugin.inference_log import (
        Query,
        View,
        limit_memory,
        parse_time_range,
        require_endpoint,
        run_query,
    )

    labels = labels and not failed
    select = select or _default_columns(is_table, failed, labels)
    shown = _TABLE_ROWS if is_table and limit is None else limit
    bound = shown + 1 if is_table and shown is not None else shown  # one more tells whether there are more
    view = View(name, parse_time_range(since, until, datetime.now(UTC)), labels, shadows)
    opened = _open()
    if failed:
        rows, opened = opened, opened.failures
        if name not in opened.endpoints():
            require_endpoint(rows, name)
            click.echo(f"no request of {name} is known to have failed", err=True)
            return
    request = Query(view, select, where, order_by, sql, bound)
    with limit_memory(_MEMORY_BYTES), run_query(opened, request) as result:
        if is_table:
            from mlflow_deploy_plugin.cli.output.log import table_lines

            show_lines(table_lines(result, shown))
        else:
            _write(result, cast(FileFormat, output), file)
    _warn_of_unreadable(opened)


@log.command()
@click.argument("name")
@_since
@_until
@output_option
def stats(name: str, since: str | None, until: str | None, output: str) -> None:
    """Count what was captured of the endpoint NAME.

    The figures are rows by version, variant and time, labels, and missing rows. The agents count answered, captured,
    dropped and shipped rows since their servers were first started, which shows rows that were answered and are not in
    the log. If a deleted endpoint had the same name, only rows since the present one was created are counted; --since
    counts the older ones, too.
    """
    from mlflow_deploy_plugin.cli.output.log import stats_json, stats_lines
    from mlflow_deploy_plugin.inference_log import log_stats, parse_time_range

    span = parse_time_range(since, until, datetime.now(UTC)) if since or until else None
    opened = _open(None if span else _rows_since(name))
    if opened.since is not None:
        said = f"what was received before {opened.since:%Y-%m-%d %H:%M:%S}Z is of a deleted endpoint of this name"
        click.echo(f"{name}: {said}, and is not counted (--since counts it)", err=True)
    found = log_stats(opened, name, span)
    show_lines([stats_json(found)] if output == "json" else stats_lines(found, opened.shown))
    _warn_of_unreadable(opened)


@log.command()
@click.argument("name")
@click.option("--keep", required=True, metavar="DURATION", help="Age up to which rows and labels stay: 90d, 12h.")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
def expire(name: str, keep: str, dry_run: bool) -> None:
    """Delete what was captured of the endpoint NAME long ago.

    Rows go by their event time, labels by the day they came in, profiles of rows that monitors keep by their day.
    """
    from mlflow_deploy_plugin.cli.output.log import size_text
    from mlflow_deploy_plugin.inference_log import expire as delete
    from mlflow_deploy_plugin.inference_log import parse_duration

    length = parse_duration(keep, "--keep")
    opened = _open()
    _require_logged(opened, name)
    done = delete(opened, name, datetime.now(UTC), length, only_count=dry_run)
    said = "would be deleted" if dry_run else "deleted"
    click.echo(f"{name}: {done.expired_files:,} files older than {keep} {said}, {size_text(done.expired_bytes)}")


@log.command()
@click.argument("name")
def compact(name: str) -> None:
    """Compact the many small files of the endpoint NAME.

    The files of an hour that is over become one. Rows stay as they are, and readers and agents go on meanwhile.
    `onnxserve controller` does the same once an hour.
    """
    from mlflow_deploy_plugin.inference_log import compact as make_one

    opened = _open()
    _require_logged(opened, name)
    done = make_one(opened, name, datetime.now(UTC))
    click.echo(f"{name}: {done.compacted_files:,} files became {done.written_files:,}")
    _warn_of_unreadable(opened)


def _require_logged(opened: "InferenceLog", name: str) -> None:
    """Raise NotFound if the log has nothing of the endpoint: no rows, no labels (they outlive rows), no failures."""
    from mlflow_deploy_plugin.inference_log import LABELS, list_endpoints, require_endpoint

    if name not in list_endpoints(opened.location, LABELS) and name not in opened.failures.endpoints():
        require_endpoint(opened, name)


def _rows_since(name: str) -> datetime | None:
    """Return the time from which rows of this name are those of the present endpoint; None for all rows."""
    from mlflow_deploy_plugin.errors import OnnxserveError  # here: SQLAlchemy takes a second, as the others below
    from mlflow_deploy_plugin.settings import load_settings
    from mlflow_deploy_plugin.store import open_store

    try:
        store = open_store(load_settings().store_url)
    except OnnxserveError:  # the log is there without it
        return None
    try:
        endpoint = store.endpoint(name)
    except OnnxserveError:
        return None
    finally:
        store.close()
    return endpoint.rows_since if endpoint is not None else None


def _open(since: datetime | None = None) -> "InferenceLog":
    from mlflow_deploy_plugin.inference_log import open_log
    from mlflow_deploy_plugin.settings import load_settings

    return open_log(load_settings().inference_log, since)


def _write(result: "QueryResult", form: FileFormat, file: str) -> None:
    rows = 0
    with open_output(file, sys.stdout.buffer) as target, table_writer(form, result.schema, target) as write:
        for batch in result.batches:
            write(batch)
            rows += len(batch)
    if file != "-":
        click.echo(f"{rows:,} rows in {file}", err=True)


def _warn_of_unreadable(log: "InferenceLog") -> None:
    """Name the files that were left out."""
    for path, why in log.unreadable.items():
        click.echo(f"note: {path} makes no sense and is left out: {why}", err=True)


def _default_columns(is_table: bool, failed: bool, labels: bool) -> str:
    """Return the columns by default: a table leaves out those for programs."""
    if not is_table:
        return "*"
    if failed:
        return "* EXCLUDE (_received_time, _shadow, _segment, _offset, _row)"
    return f"* EXCLUDE ({_HIDDEN_COLUMNS}, _label_number)" if labels else f"* EXCLUDE ({_HIDDEN_COLUMNS})"
