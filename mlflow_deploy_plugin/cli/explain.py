"""`onnxserve explain`: the contributions of columns to the predictions for a file, and how important they are."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from mlflow_deploy_plugin.cli.options import align_columns, output_option, show_lines, show_progress
from mlflow_deploy_plugin.evaluation import METRICS

if TYPE_CHECKING:
    from mlflow_deploy_plugin.evaluation import MetricName


@click.command()
@click.argument("model_uri", metavar="MODEL")
@click.option(
    "--data", required=True, metavar="FILE", help="Rows: .csv, .parquet or .npz; `reference` is MODEL's own sample."
)
@click.option("--target", default="", metavar="COLUMN", help="Column of the labels, for permutation importance.")
@click.option(
    "--metric", type=click.Choice(METRICS), show_default="accuracy of labels, rmse of numbers", help="What may be lost."
)
@click.option(
    "--max-rows",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="ROWS",
    help="Rows that are explained, by the seed.",
)
@click.option(
    "--max-evals",
    type=click.IntRange(min=1),
    show_default="ten pairs of permutations",
    metavar="NUMBER",
    help="Evaluations of the model a row.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="NUMBER",
    help="Chooses rows and permutations.",
)
@click.option("--contributions", metavar="FILE", help="File for each row's contributions: .csv, .jsonl or .parquet.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Folder for SHAP's pictures, contributions and JSON.",
)
@click.option("--log", is_flag=True, help="Log pictures, contributions and JSON to MODEL's run, under explain/.")
@output_option
def explain(
    model_uri: str,
    data: str,
    target: str,
    metric: str | None,
    max_rows: int,
    max_evals: int | None,
    seed: int,
    contributions: str | None,
    folder: Path | None,
    log: bool,
    output: str,
) -> None:
    """Measure what each column contributes to predictions.

    MODEL is a model URI, such as models:/flight-delay/7, or a folder; FILE has the rows. With labels, the command also
    measures how much of a metric is lost if a column is permuted. A deployment explains rows by `mlflow deployments
    explain -t onnxserve --name NAME`.

    \b
      onnxserve explain models:/flight-delay/7 --data held_out.csv --target delayed
      onnxserve explain models:/flight-delay/7 --data reference --contributions rows.csv --log
    """
    # here: pyarrow, MLflow and shap take seconds that `--help` should not wait for
    from mlflow_deploy_plugin.evaluation import contributions_format
    from mlflow_deploy_plugin.evaluation import explain as explain_file

    if contributions:
        contributions_format(contributions)  # before the work
    found = explain_file(
        model_uri,
        data,
        target,
        metric=cast("MetricName | None", metric),
        max_rows=max_rows,
        max_evals=max_evals,
        seed=seed,
        log=log,
        progress=show_progress,
    )
    if contributions:
        found.write_contributions(contributions)
    files = found.save(folder) if folder else []
    if output == "json":
        click.echo(json.dumps(found.as_dict(), indent=2, default=str))
        return
    show_lines(align_columns(found.table()))
    if len(found.columns) >= len(found.table()):
        click.echo(f"and {len(found.columns) - len(found.table()) + 1} columns of less importance")
    left_out = f", {found.left_out:,} left out, which are answered by no numbers" if found.left_out else ""
    click.echo(f"{len(found.values):,} rows explained against {found.background}, seed {found.seed}{left_out}")
    if contributions:
        click.echo(f"contributions in {contributions}")
    if files:
        click.echo(f"{len(files)} files in {folder}")
    if found.run:
        click.echo(f"logged to run {found.run.run_id}, under explain/ {found.run.url}".rstrip())
