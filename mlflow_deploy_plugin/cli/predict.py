"""`onnxserve predict`: batch prediction of a file of rows."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, cast

import click

from mlflow_deploy_plugin.cli.options import opened_deployments
from mlflow_deploy_plugin.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.tabular import (
    FILE_FORMATS,
    FileFormat,
    format_of,
    open_input,
    open_output,
    output_format,
    value_writer,
)

if TYPE_CHECKING:
    from mlflow_deploy_plugin.deployments import RowBatch, RowFile

_KINDS = click.Choice(FILE_FORMATS)


@click.command()
@click.option(
    "-m", "--model-uri", metavar="URI", help="Model to load in this process, e.g. models:/flight-delay/Production."
)
@click.option("-n", "--name", metavar="NAME", help="Deployment or endpoint to ask instead; its server answers.")
@click.option("-i", "--input-path", default="-", show_default=True, metavar="FILE", help="Rows; - is standard input.")
@click.option(
    "-o", "--output-path", default="-", show_default=True, metavar="FILE", help="Predictions; - is standard output."
)
@click.option(
    "-t", "--content-type", type=_KINDS, show_default="by the file's name, else json", help="Format of the input."
)
@click.option(
    "-O",
    "--output-type",
    type=_KINDS,
    show_default="by the file's name; without an ending, the input's",
    help="Format of the output.",
)
@click.option(
    "--batch-rows",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="ROWS",
    help="Number of rows in a request.",
)
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

    The predictions are those of /invocations, one a row, in the order of the rows. A row that cannot be answered ends
    the command with its line and exit status 1; the output file is then as it was before, or not there.
    """
    if (model_uri is None) == (name is None):
        raise InvalidConfig("say either -m MODEL_URI or -n DEPLOYMENT")
    # here: pandas and MLflow take a second that `--help` should not wait for
    from mlflow_deploy_plugin.deployments import (
        model_predictor,
        predict_batch,
        read_rows,
        scoring_target,
        server_predictor,
    )

    given = cast(FileFormat, content_type or format_of(input_path) or "json")
    wanted = cast(FileFormat, output_type or output_format(output_path, given))
    input_name = "standard input" if input_path == "-" else input_path
    count = 0
    with ExitStack() as held:
        file = held.enter_context(open_input(input_path, sys.stdin.buffer))
        rows = read_rows(file, input_name, given, batch_rows)
        batches = held.enter_context(_with_progress(rows))
        first = next(batches, None)
        if first is None:
            raise InvalidRequest(f"{input_name} has no rows")
        if model_uri is not None:
            predictor = held.enter_context(model_predictor(model_uri))
        else:
            with opened_deployments() as deployments:
                is_endpoint = deployments.store.endpoint(name or "") is not None
                asked = scoring_target(deployments, *((None, name) if is_endpoint else (name, None)))
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
