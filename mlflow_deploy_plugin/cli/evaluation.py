"""`onnxserve robustness`: how the metric of a version falls with the strength of disturbances.

`onnxserve explain`: the contributions of columns to the predictions for a file, and how important they are.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import (
    align_columns,
    option,
    output_option,
    show_json,
    show_lines,
    show_progress,
    usage_errors,
)
from mlflow_deploy_plugin.evaluation import DISTURBANCES, METRICS, parse_strengths

if TYPE_CHECKING:
    from mlflow_deploy_plugin.registry import LoggedRun

_seed_option = option(
    "--seed", type=click.IntRange(min=0), default=0, metavar="NUMBER", help="Chooses the rows, and what is random."
)
_folder_option = option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Folder for the pictures and the JSON.",
)
_metric_option = option(
    "--metric", type=click.Choice(METRICS), show_default="accuracy of labels, rmse of numbers", help="What may be lost."
)


def _show_places(files: list[Path], folder: Path | None, run: "LoggedRun | None", under: str) -> None:
    if files:
        click.echo(f"{len(files)} files in {folder}")
    if run:
        click.echo(f"logged to run {run.run_id}, under {under}/ {run.url}".rstrip())


@click.command()
@click.argument("model_uri")
@option("--data", required=True, metavar="FILE", help="Rows with labels: .csv, .parquet, or arrays in .npz.")
@option("--target", required=True, metavar="COLUMN", help="Column of the labels.")
@_metric_option
@option(
    "--strengths",
    multiple=True,
    metavar="NAME[=S,S,…]",
    show_default="what fits the model",
    help=f"A disturbance, and its strengths; may be repeated. There are {', '.join(DISTURBANCES)}.",
)
@option("--original", default="", metavar="URI", help="Torch model of which MODEL_URI was made, for fgsm and pgd.")
@option(
    "--max-rows", type=click.IntRange(min=2), default=2000, metavar="ROWS", help="Rows that are disturbed, by the seed."
)
@_seed_option
@_folder_option
@option("--log", is_flag=True, help="Log pictures and JSON to MODEL_URI's run, under robustness/.")
@output_option
def robustness(
    model_uri: str, data: str, target: str, strengths: tuple[str, ...], folder: Path | None, output: str, **options: Any
) -> None:
    """Measure how the metric falls when rows are disturbed.

    MODEL_URI is a version, such as models:/flight-delay/7, or a folder.

    \b
      onnxserve robustness models:/flight-delay/7 --data held_out.csv --target delayed
      onnxserve robustness models:/flight-delay/7 --data held_out.csv --target delayed \\
        --metric roc_auc --strengths noise=0.1,0.2 --strengths missing --log
    """
    from mlflow_deploy_plugin.evaluation import robustness as measure

    with usage_errors():
        chosen = parse_strengths(strengths) if strengths else None
    report = measure(model_uri, data, target, strengths=chosen, progress=show_progress, **options)
    files = report.save(folder) if folder else []
    if output == "json":
        show_json(asdict(report))
        return
    show_lines(align_columns(report.table()))
    show_lines({one.disturbance: f"{one.disturbance}: {one.refusal}" for one in report.points if one.refusal}.values())
    show_lines(report.notes)
    for reason in dict.fromkeys(report.cannot.values()):
        names = ", ".join(name for name, why in report.cannot.items() if why == reason)
        click.echo(f"{names} cannot be measured: {reason}")
    click.echo(f"{report.rows:,} rows, seed {report.seed}")
    _show_places(files, folder, report.run, "robustness")


@click.command()
@click.argument("model_uri")
@option(
    "--data",
    required=True,
    metavar="FILE",
    help="Rows: .csv, .parquet or .npz; `reference` is the version's own sample.",
)
@option("--target", default="", metavar="COLUMN", help="Column of the labels, for permutation importance.")
@_metric_option
@option(
    "--max-rows", type=click.IntRange(min=1), default=100, metavar="ROWS", help="Rows that are explained, by the seed."
)
@option(
    "--max-evals",
    type=click.IntRange(min=1),
    show_default="ten pairs of permutations",
    metavar="NUMBER",
    help="Evaluations of the model a row.",
)
@option("--contributions", metavar="FILE", help="File for each row's contributions: .csv, .jsonl or .parquet.")
@_seed_option
@_folder_option
@option("--log", is_flag=True, help="Log pictures and JSON to MODEL_URI's run, under explain/.")
@output_option
def explain(
    model_uri: str, data: str, target: str, contributions: str | None, folder: Path | None, output: str, **options: Any
) -> None:
    """Measure what each column contributes to predictions.

    MODEL_URI is a version, such as models:/flight-delay/7, or a folder; FILE has the rows. With labels, the command
    also measures how much of a metric is lost if a column is permuted. A deployment explains rows by `mlflow
    deployments explain -t onnxserve --name NAME`.

    \b
      onnxserve explain models:/flight-delay/7 --data held_out.csv --target delayed
      onnxserve explain models:/flight-delay/7 --data reference --contributions rows.csv --log
    """
    from mlflow_deploy_plugin.evaluation import contributions_format
    from mlflow_deploy_plugin.evaluation import explain as explain_file

    if contributions:
        contributions_format(contributions)  # before the work
    found = explain_file(model_uri, data, target, progress=show_progress, **options)
    if contributions:
        found.write_contributions(contributions)
    files = found.save(folder) if folder else []
    if output == "json":
        show_json(found.as_dict())
        return
    table = found.table()
    show_lines(align_columns(table))
    if (more := len(found.columns) - len(table) + 1) > 0:
        click.echo(f"and {more} columns of less importance")
    left_out = f", {found.left_out:,} left out, which are answered by no numbers" if found.left_out else ""
    click.echo(f"{len(found.values):,} rows explained against {found.background}, seed {found.seed}{left_out}")
    if contributions:
        click.echo(f"contributions in {contributions}")
    _show_places(files, folder, found.run, "explain")
