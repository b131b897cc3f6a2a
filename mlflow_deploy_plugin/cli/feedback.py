"""`onnxserve feedback NAME --file labels.csv`: labels of earlier predictions from a file."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import click
import orjson

from mlflow_deploy_plugin.cli.options import opened_deployments, unknown_endpoint
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.tabular import FileFormat, format_of, open_input

if TYPE_CHECKING:
    from mlflow_deploy_plugin.inference_log import BadRow

_SHOWN_BAD = 20
_KINDS = ("csv", "jsonl", "parquet")


@click.command()
@click.argument("name")
@click.option("-f", "--file", required=True, metavar="FILE", help="Labels; - is standard input.")
@click.option(
    "-t",
    "--content-type",
    type=click.Choice(_KINDS),
    show_default="by FILE's name",
    help="Format of the file.",
)
@click.option(
    "--key",
    metavar="COLUMNS",
    show_default="the id column and the row column",
    help="Columns that name a row, as flight,day.",
)
@click.option("--label-column", default="label", show_default=True, metavar="COLUMN", help="Column of the labels.")
@click.option(
    "--id-column", default="prediction_id", show_default=True, metavar="COLUMN", help="Column of the X-Prediction-Ids."
)
@click.option(
    "--row-column",
    default="row",
    show_default=True,
    metavar="COLUMN",
    help="Column of the row's number in its request, from 0; it may be missing.",
)
@click.option(
    "--url",
    metavar="URL",
    show_default="that of NAME on this machine, else the log",
    help="Address of the server: http://host:8080.",
)
@click.option("--rejects", metavar="FILE", help="File that the bad rows are written to, as JSON Lines.")
@click.option(
    "--match/--no-match", default=True, show_default=True, help="Look for the labels' rows in the log, or not."
)
def feedback(
    name: str,
    file: str,
    content_type: str | None,
    key: str | None,
    label_column: str,
    id_column: str,
    row_column: str,
    url: str | None,
    rejects: str | None,
    match: bool,
) -> None:
    """Bring labels of earlier predictions from a file.

    The predictions are those of the endpoint NAME; the file is CSV, JSON Lines or Parquet.

    \b
      onnxserve feedback flights --file labels.csv
      onnxserve feedback flights --file delays.parquet --key flight,day --label-column delayed

    They go to the endpoint's server if it runs, else straight into the inference log. Of several labels of a row the
    last one counts. Labels without a row are kept: it may come later. A bad row is named, the others are taken; the
    exit status is then 1.
    """
    # here: pyarrow and SQLAlchemy take a second that `--help` should not wait for
    from mlflow_deploy_plugin.deployments import check_key_columns, import_labels, label_target
    from mlflow_deploy_plugin.inference_log import LabelColumns, open_log, read_label_file
    from mlflow_deploy_plugin.settings import load_settings

    kind = content_type or format_of(file)
    if kind not in _KINDS:
        raise InvalidConfig(f"{file}: say -t csv, jsonl or parquet")
    columns = LabelColumns(
        tuple(part.strip() for part in key.split(",")) if key else (), label_column, id_column, row_column
    )
    log = open_log(load_settings().inference_log)
    with opened_deployments() as deployments:
        target = label_target(deployments, log, name)
        if url is not None:
            target = replace(target, url=url)
        else:
            known = [*log.endpoints(), *(stored.name for stored in deployments.store.endpoints())]
            if name not in known:
                raise unknown_endpoint(name, known, "; or say --url")
    columns = replace(columns, numbers=check_key_columns(log, name, columns.key))
    with ExitStack() as held:
        labels = held.enter_context(open_input(file, sys.stdin.buffer))
        report = _BadRowReport(held.enter_context(_rejects(rejects, file)) if rejects else None)
        rows = read_label_file(labels, file, cast(FileFormat, kind), columns)
        imported = import_labels(log, name, target, rows, report.add, only_server=url is not None, match=match)
    report.close()
    where = f" by {' and '.join(imported.destinations)}" if imported.destinations else ""
    click.echo(f"{name}: {imported.accepted:,} labels accepted{where}")
    if imported.matches is not None and imported.accepted:
        found = imported.matches
        unmatched = found.count - found.matched
        rest = f"{unmatched:,} unmatched and kept for when they come" if unmatched else "none is unmatched"
        click.echo(f"  of {found.count:,} rows that they name, {found.matched:,} are in the log, {rest}")
    if imported.bad:
        click.echo(f"  {imported.bad:,} bad rows were left out", err=True)
        sys.exit(1)


class _BadRowReport:
    """A report of bad rows: the first ones on standard error, all of them in a file."""

    def __init__(self, rejects: IO[bytes] | None) -> None:
        self._rejects = rejects
        self._count = 0

    def add(self, bad: "BadRow") -> None:
        self._count += 1
        if self._count <= _SHOWN_BAD:
            click.echo(f"{bad.place}: {bad.why}", err=True)
        if self._rejects:
            row = {"place": bad.place, "why": bad.why, "row": bad.content}
            self._rejects.write(orjson.dumps(row, default=str) + b"\n")

    def close(self) -> None:
        if self._count > _SHOWN_BAD:
            click.echo(f"… and {self._count - _SHOWN_BAD:,} more bad rows (--rejects FILE has all)", err=True)


@contextmanager
def _rejects(path: str, labels: str) -> Iterator[IO[bytes]]:
    if Path(path).resolve() == Path(labels).resolve():
        raise InvalidConfig(f"--rejects {path} is the file of the labels: name another one")
    try:
        with Path(path).open("wb") as file:
            yield file
    except OSError as error:
        raise InvalidConfig(f"the file {path} cannot be written: {error.strerror}") from None
