"""`onnxserve predict`, `batch` and `feedback`: predictions of files, and labels of earlier predictions from a file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
import orjson

from mlflow_deploy_plugin.cli.options import opened_deployments, option
from mlflow_deploy_plugin.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.registry import hidden_pandas
from mlflow_deploy_plugin.tabular import FileFormat, format_of, open_output
from mlflow_deploy_plugin.tabular.files import FILE_FORMATS, open_input, output_format, value_writer

if TYPE_CHECKING:
    from mlflow_deploy_plugin.batch.run import BatchProgress
    from mlflow_deploy_plugin.deployments.batch_prediction import RowBatch, RowFile
    from mlflow_deploy_plugin.inference_log import BadRow

_SHOWN_BAD = 20
_LINE_SECONDS = 10.0
_KINDS = click.Choice(FILE_FORMATS)
_STREAMED = click.Choice(["csv", "jsonl", "parquet"])


@click.command()
@click.argument("name")
@option("-f", "--file", required=True, metavar="FILE", help="Labels; - is standard input.")
@option("-t", "--content-type", type=_STREAMED, show_default="by FILE's name", help="Format of the file.")
@option(
    "--key",
    metavar="COLUMNS",
    show_default="the id column and the row column",
    help="Columns that name a row, as flight,day.",
)
@option("--label-column", default="label", metavar="COLUMN", help="Column of the labels.")
@option("--id-column", default="prediction_id", metavar="COLUMN", help="Column of the X-Prediction-Ids.")
@option(
    "--row-column",
    default="row",
    metavar="COLUMN",
    help="Column of the row's number in its request, from 0; it may be missing.",
)
@option(
    "--url",
    metavar="URL",
    show_default="that of NAME on this machine, else the log",
    help="Address of the server: http://host:8080.",
)
@option("--rejects", metavar="FILE", help="File that the bad rows are written to, as JSON Lines.")
@option("--match/--no-match", default=True, help="Look for the labels' rows in the log, or not.")
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
    from mlflow_deploy_plugin.deployments.feedback import check_key_columns, import_labels, label_sink
    from mlflow_deploy_plugin.inference_log import LabelColumns, open_log
    from mlflow_deploy_plugin.inference_log.label_files import read_label_file
    from mlflow_deploy_plugin.settings import load_settings
    from mlflow_deploy_plugin.store import unknown_endpoint

    kind = content_type or format_of(file)
    columns = LabelColumns(
        tuple(part.strip() for part in key.split(",")) if key else (), label_column, id_column, row_column
    )
    log = open_log(load_settings().inference_log)
    with opened_deployments() as deployments:
        sink = label_sink(deployments, log, name)
        if url is not None:
            sink.url, sink.only_server = url, True
        else:
            known = [*log.endpoints(), *(stored.name for stored in deployments.store.endpoints())]
            if name not in known:
                raise unknown_endpoint(name, known, "; or say --url")
    columns = replace(columns, numbers=check_key_columns(log, name, columns.key, sink.keys))
    with ExitStack() as held:
        labels = held.enter_context(open_input(file, sys.stdin.buffer))
        if kind not in _STREAMED.choices:
            raise InvalidConfig(f"{file}: say -t csv, jsonl or parquet")
        report = held.enter_context(_bad_row_report(rejects, file))
        rows = read_label_file(labels, file, cast(FileFormat, kind), columns)
        imported = import_labels(sink, rows, report, match)
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


@contextmanager
def _bad_row_report(rejects: str | None, labels: str) -> Iterator[Callable[["BadRow"], None]]:
    """Yield a function that takes each bad row: the first ones go to standard error, all of them into a file."""
    if rejects and Path(rejects).resolve() == Path(labels).resolve():
        raise InvalidConfig(f"--rejects {rejects} is the file of the labels: name another one")
    count = 0
    with open_output(rejects, sys.stdout.buffer) if rejects else nullcontext() as file:

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
        click.echo(f"… and {count - _SHOWN_BAD:,} more bad rows (--rejects FILE has all)", err=True)


@click.command()
@option("-m", "--model-uri", metavar="URI", help="Model to load in this process, e.g. models:/flight-delay/Production.")
@option("-n", "--name", metavar="NAME", help="Deployment or endpoint to ask instead; its server answers.")
@option("-i", "--input-path", default="-", metavar="FILE", help="Rows; - is standard input.")
@option("-o", "--output-path", default="-", metavar="FILE", help="Predictions; - is standard output.")
@option("-t", "--content-type", type=_KINDS, show_default="by the file's name, else json", help="Format of the input.")
@option(
    "-O",
    "--output-type",
    type=_KINDS,
    show_default="by the file's name; without an ending, the input's",
    help="Format of the output.",
)
@option("--batch-rows", type=click.IntRange(min=1), default=1000, metavar="ROWS", help="Number of rows in a request.")
def predict(
    model_uri: str | None,
    name: str | None,
    input_path: str,
    output_path: str,
    content_type: str | None,
    output_type: str | None,
    batch_rows: int,
) -> None:
    """Predict every row of a file, by a deployment or a model.

    The file is CSV, JSON, JSON Lines or Parquet, and is read batch by batch.

    \b
      onnxserve predict -n flights -i rows.csv -o predictions.csv
      onnxserve predict -m models:/flight-delay/3 -i rows.parquet -o predictions.parquet
      cat rows.jsonl | onnxserve predict -n flights -t jsonl

    The predictions are those of /invocations, one a row, in the order of the rows. If the endpoint has capture.keys,
    the output also has the keys, the prediction_id and the row, as `onnxserve feedback` takes them.

    A row that cannot be answered ends the command with its line and exit status 1; the output file is then as it was
    before, or not there.
    """
    if (model_uri is None) == (name is None):
        raise click.UsageError("say either -m MODEL_URI or -n DEPLOYMENT")
    from mlflow_deploy_plugin.deployments.batch_prediction import predict_batch, read_rows, server_predictor
    from mlflow_deploy_plugin.deployments.scoring import scoring_target

    given = cast(FileFormat, content_type or format_of(input_path) or "json")
    wanted = cast(FileFormat, output_type or output_format(output_path, given))
    input_name = "standard input" if input_path == "-" else input_path
    count = 0
    with ExitStack() as held:
        if name is not None:  # a version may be Python of its author, who counts on pandas, as MLflow does
            held.enter_context(hidden_pandas())
        file = held.enter_context(open_input(input_path, sys.stdin.buffer))
        rows = read_rows(file, input_name, given, batch_rows)
        batches = held.enter_context(_with_progress(rows))
        first = next(batches, None)
        if first is None:
            raise InvalidRequest(f"{input_name} has no rows")
        if model_uri is not None:
            from mlflow_deploy_plugin.batch.table_model import body_predictor  # here: a server is asked without pyarrow

            predictor = held.enter_context(body_predictor(model_uri))
        else:
            deployments = held.enter_context(opened_deployments())
            is_endpoint = deployments.store.endpoint(name or "") is not None
            found = scoring_target(deployments, *((None, name) if is_endpoint else (name, None)))
            asked = held.enter_context(found)
            predictor = held.enter_context(server_predictor(asked))
        target = held.enter_context(open_output(output_path, sys.stdout.buffer))
        write = held.enter_context(value_writer(wanted, target, "prediction"))
        batch: RowBatch | None = first
        while batch is not None:
            predictions = predict_batch(predictor, input_name, batch)
            write(predictions)
            count += len(predictions)
            batch = next(batches, None)
    if output_path != "-":
        click.echo(f"{count:,} predictions in {output_path}", err=True)


@contextmanager
def _with_progress(rows: "RowFile") -> Iterator[Iterator["RowBatch"]]:
    """Yield the batches; a terminal shows a bar on standard error if the length is known."""
    if rows.length is None or not sys.stderr.isatty():
        yield rows.batches
        return
    with click.progressbar(length=rows.length, label=rows.name, file=sys.stderr) as bar:

        def with_bar() -> Iterator["RowBatch"]:
            before = 0
            for batch in rows.batches:
                yield batch
                bar.update(batch.position - before)  # the caller asks for the next batch once this one is answered
                before = batch.position

        yield with_bar()


@click.command()
@option("-m", "--model-uri", required=True, metavar="URI", help="Model to load, e.g. models:/flight-delay/Production.")
@option("-i", "--input", required=True, metavar="FILES", help="File or folder of rows, also s3://….")
@option("-o", "--output", required=True, metavar="FOLDER", help="Folder of the predictions, also s3://….")
@option("--keep", metavar="COLUMNS", default="", help="Columns of the input to pass through, as id,ts.")
@option("--format", "output_format", type=_STREAMED, show_default="that of each part", help="Format of the output.")
@option("--input-format", type=_STREAMED, show_default="by the files' names", help="Format of the input.")
@option(
    "--on-error",
    type=click.Choice(["fail", "skip-row", "skip-part"]),
    default="fail",
    help="What a bad row does: end the batch, be left out (and kept in _rejected/), or leave out its file.",
)
@option("--workers", type=click.IntRange(min=1), metavar="CORES", show_default="all", help="Number of cores to use.")
@option("--device", type=click.Choice(["cpu", "cuda", "tensorrt"]), default="cpu", help="Device.")
@option(
    "--engine",
    type=click.Choice(["local", "spark"]),
    default="local",
    help="What predicts: this machine, or the cluster that Spark's own configuration names.",
)
@option("--restart", is_flag=True, help="Delete what another batch has left in the output, and begin anew.")
@option(
    "--run",
    "experiment",
    metavar="EXPERIMENT",
    default="",
    help="Record the batch as an MLflow run of this experiment.",
)
def batch(output: str, keep: str, **options: Any) -> None:
    """Predict files of any size by a model, without a server.

    Each file of the input, a part, becomes one file of the output, in the same folder below it, with its rows in their
    order. CSV, JSON Lines and Parquet are read, compressed or not.

    \b
      onnxserve batch -m models:/flight-delay/Production -i flights/ -o predictions/ --keep flight,day
      onnxserve batch -m models:/flight-delay/3 -i s3://lake/flights -o s3://lake/predictions --format parquet

    A batch that was killed goes on where it ended if the command is given again. _batch.json says what it predicts, and
    _SUCCESS that everything is there. The exit status is 1 if a part was left out.
    """
    from mlflow_deploy_plugin.batch import BatchPlan, run_batch

    kept = tuple(name.strip() for name in keep.split(",") if name.strip())
    if len(set(kept)) < len(kept):
        raise click.UsageError(f"--keep {keep}: a column stands twice")
    progress = _ProgressLines()
    result = run_batch(BatchPlan(output=output, keep=kept, **options), progress.show)
    progress.close()
    done = result.progress
    version = f"{result.model.name} {result.model.version}".strip()
    click.echo(
        f"{done.rows:,} predictions of {version} in {done.seconds:,.1f} s ({done.rows_per_second:,.0f} rows/s), "
        f"{done.parts - len(result.failed)} of {done.parts} parts"
        + (f", {done.finished_before} were there already" if done.finished_before else "")
    )
    if result.rejected:
        click.echo(f"  {result.rejected:,} bad rows were left out: {output.rstrip('/')}/_rejected has them", err=True)
    if result.run is not None:
        click.echo(f"  recorded as run {result.run.run_id} {result.run.url}".rstrip())
    for message in result.failed.values():
        click.echo(f"  left out: {message}", err=True)
    if result.failed:
        sys.exit(1)


class _ProgressLines:
    """Shows how far a batch is: on a terminal one line that changes, else a line every few seconds."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._shown_at = time.monotonic()

    def show(self, progress: "BatchProgress") -> None:
        if self._is_terminal:
            click.echo(f"\r\x1b[K{_progress_line(progress)}", nl=False, err=True)
        elif time.monotonic() - self._shown_at >= _LINE_SECONDS:
            self._shown_at = time.monotonic()
            click.echo(_progress_line(progress), err=True)

    def close(self) -> None:
        if self._is_terminal:
            click.echo("\r\x1b[K", nl=False, err=True)


def _progress_line(progress: "BatchProgress") -> str:
    left = progress.seconds_left
    return (
        f"{progress.rows:,} rows, {progress.rows_per_second:,.0f} rows/s, "
        f"{progress.parts_done + progress.finished_before} of {progress.parts + progress.finished_before} parts"
        + ("" if left is None else f", about {_duration(left)} left")
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
