"""`onnxserve robustness`: how the metric of a version falls with the strength of disturbances."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from mlflow_deploy_plugin.cli.options import align_columns, output_option, show_lines, show_progress
from mlflow_deploy_plugin.evaluation import DISTURBANCES, METRICS, parse_strengths

if TYPE_CHECKING:
    from mlflow_deploy_plugin.evaluation import MetricName


@click.command()
@click.argument("model_uri", metavar="MODEL")
@click.option("--data", required=True, metavar="FILE", help="Rows with labels: .csv, .parquet, or arrays in .npz.")
@click.option("--target", required=True, metavar="COLUMN", help="Column of the labels.")
@click.option(
    "--metric", type=click.Choice(METRICS), show_default="accuracy of labels, rmse of numbers", help="What may fall."
)
@click.option(
    "--strengths",
    multiple=True,
    metavar="NAME[=S,S,…]",
    show_default="what fits the model",
    help=f"A disturbance, and its strengths; may be repeated. There are {', '.join(DISTURBANCES)}.",
)
@click.option("--original", default="", metavar="URI", help="Torch model of which MODEL was made, for fgsm and pgd.")
@click.option(
    "--max-rows", type=click.IntRange(min=2), default=2000, show_default=True, metavar="ROWS", help="Rows, by the seed."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="NUMBER",
    help="Chooses rows and disturbances.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Folder for the pictures and the JSON.",
)
@click.option("--log", is_flag=True, help="Log pictures, JSON and metrics to MODEL's run, under robustness/.")
@output_option
def robustness(
    model_uri: str,
    data: str,
    target: str,
    metric: str | None,
    strengths: tuple[str, ...],
    original: str,
    max_rows: int,
    seed: int,
    folder: Path | None,
    log: bool,
    output: str,
) -> None:
    """Measure how the metric falls when rows are disturbed.

    MODEL is a model URI, such as models:/flight-delay/7 or a folder.

    \b
      onnxserve robustness models:/flight-delay/7 --data held_out.csv --target delayed
      onnxserve robustness models:/flight-delay/7 --data held_out.csv --target delayed \\
        --metric roc_auc --strengths noise=0.1,0.2 --strengths missing --log
    """
    # here: pyarrow and MLflow take a second that `--help` should not wait for
    from mlflow_deploy_plugin.evaluation import robustness as measure

    report = measure(
        model_uri,
        data,
        target,
        metric=cast("MetricName | None", metric),
        strengths=parse_strengths(strengths) if strengths else None,
        original=original,
        max_rows=max_rows,
        seed=seed,
        log=log,
        progress=show_progress,
    )
    files = report.save(folder) if folder else []
    if output == "json":
        click.echo(json.dumps(report.as_dict(), indent=2))
        return
    show_lines(align_columns(report.table()))
    show_lines({one.disturbance: f"{one.disturbance}: {one.refusal}" for one in report.points if one.refusal}.values())
    show_lines(report.notes)
    for reason in dict.fromkeys(report.cannot.values()):
        names = ", ".join(name for name, why in report.cannot.items() if why == reason)
        click.echo(f"{names} cannot be measured: {reason}")
    click.echo(f"{report.rows:,} rows, seed {report.seed}")
    if files:
        click.echo(f"{len(files)} files in {folder}")
    if report.run:
        click.echo(f"logged to run {report.run.run_id}, under robustness/ {report.run.url}".rstrip())
