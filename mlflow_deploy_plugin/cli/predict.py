"""`onnxserve predict`, `batch` and `feedback`: predictions for files, and labels of
earlier predictions.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
import orjson

from mlflow_deploy_plugin.cli.log import open_user_log
from mlflow_deploy_plugin.cli.options import (
    POSITIVE,
    end_with_reader,
    engine_option,
    flag,
    model_argument,
    name_argument,
    opened_deployments,
    option,
    optional_model_argument,
    show_progress,
    to_names,
)
from mlflow_deploy_plugin.core.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.core.extensions import BATCH
from mlflow_deploy_plugin.core.registry.connection import hidden_pandas
from mlflow_deploy_plugin.core.tabular.row_files import (
    FILE_FORMATS,
    FileFormat,
    format_of,
    open_input,
    open_output,
    output_format,
    value_writer,
)

if TYPE_CHECKING:
    from mlflow_deploy_plugin.serve.inference_log.label_files import BadRow
    from mlflow_deploy_plugin.ship.batch.run import BatchProgress

_SHOWN_BAD = 20
_LINE_SECONDS = 10.0
_EMPTY_LINE = "\r\x1b[K"
_KINDS = click.Choice(FILE_FORMATS)
_STREAMED = click.Choice(["csv", "jsonl", "parquet"])


@click.command()
@name_argument
@option("-f --file FILE", "File of labels; - is standard input.", required=True)
@option(
    "-t --content-type", "Format of the file.", type=_STREAMED, show_default="from the name of FILE"
)
@option(
    "--key COLUMNS",
    "Columns that identify a row, e.g. flight,day.",
    callback=to_names,
    show_default="the id column and the row column",
)
@option("--label-column COLUMN", "label", "Label column.", default="label")
@option(
    "--id-column COLUMN", "prediction_id", "Column of X-Prediction-Id.", default="prediction_id"
)
@option(
    "--row-column COLUMN",
    "row",
    "Column of the index of the row in its request, from 0. The column may be missing.",
    default="row",
)
@option(
    "--url URL",
    "Address of the server: http://host:8080.",
    show_default="the server of NAME on this machine, otherwise the inference log",
)
@option("--rejects FILE", "File for bad rows, as JSON Lines.")
@option("--match/--no-match", "Count the labels whose rows are in the log.", default=True)
def feedback(
    name: str,
    file: str,
    content_type: str | None,
    url: str | None,
    rejects: str | None,
    match: bool,
    **columns: Any,
) -> None:
    """Import labels of earlier predictions from a file.

    The file is CSV, JSON Lines or Parquet. It contains labels for predictions of the
    endpoint NAME.

    \b
      onnxserve feedback flights --file labels.csv
      onnxserve feedback flights --file delays.parquet --key flight,day \\
          --label-column delayed

    If the server of the endpoint runs, it receives the labels. Otherwise, the command
    writes them to the inference log. If a row has several labels, the last label is
    used. A label without a row is kept, because its row may be logged later. Bad rows
    are reported and skipped; the exit status is then 1.
    """
    from mlflow_deploy_plugin.core.store.store import unknown_endpoint
    from mlflow_deploy_plugin.serve.inference_log.label_files import LabelColumns, read_label_file
    from mlflow_deploy_plugin.ship.deployments.feedback import (
        check_key_columns,
        import_labels,
        label_sink,
    )

    kind = content_type or format_of(file)
    label_columns = LabelColumns(**columns)
    log = open_user_log()
    with opened_deployments() as deployments:
        sink = label_sink(deployments, log, name)
        if url is not None:
            sink.url = url
            sink.only_server = True
        else:
            names = log.endpoints() + [entry.name for entry in deployments.store.endpoints()]
            if name not in names:
                raise unknown_endpoint(name, names, "; or specify --url")
    numbers = check_key_columns(log, name, label_columns.key, sink.keys)
    with open_input(file, sys.stdin.buffer) as labels:
        if kind not in _STREAMED.choices:
            raise InvalidConfig(f"{file}: specify -t csv, jsonl or parquet")
        label_columns = replace(label_columns, numbers=numbers)
        rows = read_label_file(labels, file, cast(FileFormat, kind), label_columns)
        with _bad_row_report(rejects, file) as report:
            imported = import_labels(sink, rows, report, match)
    where = f" by {' and '.join(imported.destinations)}" if imported.destinations else ""
    click.echo(f"{name}: {imported.accepted:,} labels accepted{where}")
    matches = imported.matches
    if matches is not None and imported.accepted:
        line = f"  {matches.matched:,} of {matches.count:,} labelled rows are in the log"
        unmatched = matches.count - matches.matched
        if unmatched:
            line += f"; {unmatched:,} unmatched labels are kept until their rows are logged"
        click.echo(line)
    if imported.bad:
        show_progress(f"  {imported.bad:,} bad rows were skipped")
        sys.exit(1)


@contextmanager
def _bad_row_report(rejects: str | None, labels: str) -> Iterator[Callable[["BadRow"], None]]:
    """Yield a function that reports a bad row: the first rows on standard error, and
    all rows in the file `rejects`.
    """
    if rejects and Path(rejects).resolve() == Path(labels).resolve():
        raise InvalidConfig(f"--rejects {rejects} is also the file of labels: specify another file")
    count = 0
    opened = open_output(rejects, sys.stdout.buffer) if rejects else nullcontext()
    with opened as file:

        def report(bad: "BadRow") -> None:
            nonlocal count
            count += 1
            if count <= _SHOWN_BAD:
                click.echo(f"{bad.place}: {bad.why}", err=True)
            if file is not None:
                row = {"place": bad.place, "why": bad.why, "row": bad.content}
                file.write(orjson.dumps(row, default=str) + b"\n")

        yield report
    if count > _SHOWN_BAD:
        show_progress(f"… and {count - _SHOWN_BAD:,} more bad rows (--rejects FILE writes all)")


@click.command()
@optional_model_argument
@option("-n --name NAME", "Deployment or endpoint whose server predicts instead.")
@option("-i --input-path FILE", "Input rows; - is standard input.", default="-")
@option("-o --output-path FILE", "Predictions; - is standard output.", default="-")
@option(
    "-t --content-type",
    "Format of the input.",
    type=_KINDS,
    show_default="from the name, otherwise json",
)
@option(
    "-O --output-type",
    "Format of the output.",
    type=_KINDS,
    show_default="from the file name, otherwise the input format",
)
@option("--batch-rows ROWS", "Number of rows per request.", type=POSITIVE, default=1000)
@option(
    "--event-time COLUMN",
    "Column with the time of each row's event, for the inference log and monitors. Times "
    "without an offset are in UTC. Rows with equal consecutive times share a request.",
    default="",
)
def predict(
    model_uri: str | None,
    name: str | None,
    input_path: str,
    output_path: str,
    content_type: str | None,
    output_type: str | None,
    batch_rows: int,
    event_time: str,
) -> None:
    """Predict every row of a file with a deployment or a model.

    MODEL is a URI or a folder, which is loaded in this process; without MODEL, the
    server of -n predicts. The file is CSV, JSON, JSON Lines or Parquet, and is read in
    batches.

    \b
      onnxserve predict -n flights -i rows.csv -o predictions.csv
      onnxserve predict models:/flight-delay/3 -i rows.parquet -o predictions.parquet
      cat rows.jsonl | onnxserve predict -n flights -t jsonl

    The predictions are equal to the predictions of /invocations, one per row, in the
    order of the rows. If the endpoint has capture.keys, the output also contains the
    keys, prediction_id and row, which `onnxserve feedback` reads.

    If a row cannot be predicted, the command reports its line and ends with exit status
    1. The output file is then not created or changed.
    """
    if (model_uri is None) == (name is None):
        raise click.UsageError("specify either MODEL or -n DEPLOYMENT")
    if event_time and name is None:
        raise click.UsageError("--event-time is for the log of a deployment: specify -n DEPLOYMENT")
    end_with_reader()
    from mlflow_deploy_plugin.ship.deployments.batch_prediction import (
        model_predictor,
        predict_batch,
        read_rows,
        server_predictor,
        split_by_event_time,
    )

    input_kind = cast(FileFormat, content_type or format_of(input_path) or "json")
    output_kind = cast(FileFormat, output_type or output_format(output_path, input_kind))
    input_name = "standard input" if input_path == "-" else input_path
    with ExitStack() as held:
        held.callback(_show_line, "")
        if name is None:
            predictor = held.enter_context(model_predictor(str(model_uri)))
        else:
            from mlflow_deploy_plugin.ship.deployments.scoring import scoring_target

            held.enter_context(hidden_pandas())
            deployments = held.enter_context(opened_deployments())
            if deployments.store.endpoint(name) is None:
                scoring = scoring_target(deployments, name, None)
            else:
                scoring = scoring_target(deployments, None, name)
            predictor = held.enter_context(server_predictor(held.enter_context(scoring)))
        file = held.enter_context(open_input(input_path, sys.stdin.buffer))
        target = held.enter_context(open_output(output_path, sys.stdout.buffer))
        write = held.enter_context(value_writer(output_kind, target, "prediction"))
        count = 0
        for batch in read_rows(file, input_name, input_kind, batch_rows):
            for part in split_by_event_time(batch, input_name, event_time):
                write(predict_batch(predictor, input_name, part))
                count += len(part)
            if output_path != "-":
                _show_line(f"{count:,} rows")
        if not count:
            raise InvalidRequest(f"{input_name} has no rows")
    if output_path != "-":
        click.echo(f"{count:,} predictions in {output_path}", err=True)


def _show_line(line: str) -> None:
    """Replace the last line of a terminal on standard error."""
    if sys.stderr.isatty():
        click.echo(f"{_EMPTY_LINE}{line}", nl=False, err=True)


@click.command()
@model_argument
@option("-i --input FILES", "File or folder of rows, also s3://….", required=True)
@option("--folder FOLDER", "output", "Folder of the predictions, also s3://….", required=True)
@option("--keep COLUMNS", "Input columns to copy to the output, e.g. id,ts.", callback=to_names)
@option(
    "--format",
    "output_format",
    "Format of the output.",
    type=_STREAMED,
    show_default="the part's format",
)
@option(
    "--input-format", "Format of the input.", type=_STREAMED, show_default="from the file names"
)
@option(
    "--on-error",
    "Action for a bad row: end the batch, skip the row and write it to _rejected/, or skip its "
    "file.",
    type=click.Choice(["fail", "skip-row", "skip-part"]),
    default="fail",
)
@option("--workers CORES", "Number of cores to use.", type=POSITIVE, show_default="all")
@option("--device", "Device.", type=click.Choice(["cpu", "cuda"]), default="cpu")
@engine_option(BATCH, "Engine: this machine, or the cluster from the Spark configuration.")
@flag("--restart", "Delete the output of an earlier batch, and start from the beginning.")
@option(
    "--run EXPERIMENT",
    "experiment",
    "Record the batch as an MLflow run in this experiment.",
    default="",
)
def batch(output: str, keep: tuple[str, ...], **options: Any) -> None:
    """Predict files of any size with a model, without a server.

    MODEL is a URI or a folder. Each input file is a part. The output contains a file
    for each part, at the same relative path and in the same row order. Input files are
    CSV, JSON Lines or Parquet, optionally compressed.

    \b
      onnxserve batch models:/flight-delay@champion -i flights/ \\
          --folder predictions/ --keep flight,day
      onnxserve batch models:/flight-delay/3 -i s3://lake/flights \\
          --folder s3://lake/predictions --format parquet

    If a batch is killed, repeat the command to continue. _batch.json describes the
    batch, and _SUCCESS is written when the output is complete. The exit status is 1 if
    a part was skipped.
    """
    from mlflow_deploy_plugin.ship.batch.part import BatchPlan
    from mlflow_deploy_plugin.ship.batch.run import run_batch

    if len(set(keep)) < len(keep):
        raise click.UsageError(f"--keep {', '.join(keep)}: a column is repeated")
    shown_at = time.monotonic()

    def show(progress: "BatchProgress") -> None:
        """Update the line of a terminal, otherwise print a line every ten seconds."""
        nonlocal shown_at
        time_left = ""
        if progress.seconds_left is not None:
            time_left = f", about {timedelta(seconds=round(progress.seconds_left))} left"
        line = (
            f"{progress.rows:,} rows, {progress.rows_per_second:,.0f} rows/s, "
            f"{progress.parts_done + progress.finished_before} of "
            f"{progress.parts + progress.finished_before} parts{time_left}"
        )
        _show_line(line)
        if not sys.stderr.isatty() and time.monotonic() - shown_at >= _LINE_SECONDS:
            shown_at = time.monotonic()
            show_progress(line)

    try:
        result = run_batch(BatchPlan(output=output, keep=keep, **options), show)
    finally:
        _show_line("")
    done = result.progress
    version = f"{result.model.name} {result.model.version}".strip()
    earlier = f", {done.finished_before} finished earlier" if done.finished_before else ""
    click.echo(
        f"{done.rows:,} predictions of {version} in {done.seconds:,.1f} s "
        f"({done.rows_per_second:,.0f} rows/s), {done.parts - len(result.failed)} of {done.parts} "
        f"parts{earlier}"
    )
    if done.rejected:
        click.echo(
            f"  {done.rejected:,} bad rows were skipped: see {output.rstrip('/')}/_rejected",
            err=True,
        )
    if result.run is not None:
        click.echo(f"  recorded as run {result.run.run_id} {result.run.url}".rstrip())
    for message in result.failed.values():
        click.echo(f"  skipped: {message}", err=True)
    if result.failed:
        sys.exit(1)
