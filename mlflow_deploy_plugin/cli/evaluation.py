"""`onnxserve robustness`, `explain` and `optimize`: measurements of a version."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import (
    POSITIVE,
    NumberRange,
    align_columns,
    flag,
    folder_option,
    max_rows_option,
    model_argument,
    option,
    original_option,
    output_option,
    show_json,
    show_lines,
    show_progress,
    show_result,
    usage_errors,
)
from mlflow_deploy_plugin.core.spec.evaluation_names import (
    METRICS,
    disturbance_names,
    parse_strengths,
)

if TYPE_CHECKING:
    from mlflow_deploy_plugin.core.registry.runs import LoggedRun

_seed_option = option(
    "--seed NUMBER", "Seed of the random choices.", type=click.IntRange(min=0), default=0
)
_folder_option = folder_option("--folder", "Folder for the plots and the JSON file.")
_OPTIMIZATION_HEAD: tuple[str, ...] = (
    "form",
    "size",
    "packed",
    "load",
    "1 row",
    "8 rows",
    "1,000 rows",
    "agreement with the base",
)
metric_option = option(
    "--metric",
    "Metric of labelled rows.",
    type=click.Choice(METRICS),
    show_default="accuracy for classes, rmse for numbers",
)


def _show_places(
    files: list[Path], folder: Path | None, run: "LoggedRun | None", under: str
) -> None:
    """Print where the files are: their folder, and the folder `under` in the run's
    artifacts.
    """
    if files:
        click.echo(f"{len(files)} files in {folder}")
    if run:
        click.echo(f"logged to run {run.run_id}, under {under}/ {run.url}".rstrip())


@click.command()
@model_argument
@option("--data FILE", "Rows with labels: .csv, .parquet, or arrays in .npz.", required=True)
@option("--target COLUMN", "Column of the labels.", required=True)
@metric_option
@option(
    "--strengths NAME[=S,S,…]",
    "Disturbance and its strengths. May be repeated. The disturbances are "
    f"{', '.join(disturbance_names())}.",
    multiple=True,
    show_default="all that apply to the model",
)
@original_option("Torch model behind MODEL, for fgsm and pgd.")
@max_rows_option(type=click.IntRange(min=2), default=2000)
@_seed_option
@_folder_option
@flag("--log", "Log plots and JSON to the run of MODEL, under robustness/.")
@output_option
def robustness(
    model_uri: str,
    data: str,
    target: str,
    strengths: tuple[str, ...],
    folder: Path | None,
    output: str,
    **options: Any,
) -> None:
    """Measure how much the metric drops when rows are disturbed.

    MODEL is a version, such as models:/flight-delay/7, or a folder.

    \b
      onnxserve robustness models:/flight-delay/7 --data held_out.csv \\
          --target delayed
      onnxserve robustness models:/flight-delay/7 --data held_out.csv \\
          --target delayed --metric roc_auc \\
          --strengths noise=0.1,0.2 --strengths missing --log
    """
    from mlflow_deploy_plugin.wrap.evaluation.curves import robustness as measure

    with usage_errors():
        levels = parse_strengths(strengths) if strengths else None
    report = measure(model_uri, data, target, strengths=levels, progress=show_progress, **options)
    files = report.save(folder) if folder else []
    if output == "json":
        show_json(asdict(report))
        return
    show_lines(align_columns(report.table()))
    refusals = {point.disturbance: point.refusal for point in report.points if point.refusal}
    show_lines([*(f"{name}: {refusal}" for name, refusal in refusals.items()), *report.notes])
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in report.cannot.items():
        names_by_reason.setdefault(reason, []).append(name)
    for reason, names in names_by_reason.items():
        click.echo(f"{', '.join(names)} cannot be measured: {reason}")
    click.echo(f"{report.rows:,} rows, seed {report.seed}")
    _show_places(files, folder, report.run, "robustness")


@click.command()
@model_argument
@option(
    "--data FILE",
    "Rows: .csv, .parquet or .npz; `reference` is the sample stored with the version.",
    required=True,
)
@option("--target COLUMN", "Column of the labels, for permutation importance.", default="")
@metric_option
@max_rows_option(type=POSITIVE, default=100)
@option(
    "--max-evals NUMBER",
    "Model evaluations per row.",
    type=POSITIVE,
    show_default="ten pairs of permutations",
)
@option("--contributions FILE", "File for the contributions of each row: .csv, .jsonl or .parquet.")
@_seed_option
@_folder_option
@flag("--log", "Log plots and JSON to the run of MODEL, under explain/.")
@output_option
def explain(
    model_uri: str,
    data: str,
    target: str,
    contributions: str | None,
    folder: Path | None,
    output: str,
    **options: Any,
) -> None:
    """Measure how much each column contributes to predictions.

    MODEL is a version, such as models:/flight-delay/7, or a folder. With labels,
    the command also measures how much the metric drops when a column is permuted. To
    explain rows with a deployment, use `mlflow deployments explain -t onnxserve --name
    NAME`.

    \b
      onnxserve explain models:/flight-delay/7 --data held_out.csv --target delayed
      onnxserve explain models:/flight-delay/7 --data reference \\
          --contributions rows.csv --log
    """
    from mlflow_deploy_plugin.wrap.evaluation.explanation import contributions_format, require_plots
    from mlflow_deploy_plugin.wrap.evaluation.explanation import explain as explain_file

    # Refuse an unknown file format, and missing packages, before the long measurement.
    if contributions:
        contributions_format(contributions)
    if folder:
        require_plots()
    result = explain_file(model_uri, data, target, progress=show_progress, **options)
    if contributions:
        result.write_contributions(contributions)
    files = result.save(folder) if folder else []
    if output == "json":
        show_json(result.as_dict())
        return
    table = result.table()
    show_lines(align_columns(table))
    hidden_columns = len(result.columns) - len(table) + 1  # The table has a row of titles.
    if hidden_columns > 0:
        click.echo(f"and {hidden_columns} less important columns")
    left_out = ""
    if result.left_out:
        left_out = f", {result.left_out:,} rows without numeric predictions left out"
    method = "permutations" if result.method == "permutation" else "exact Shapley values"
    show_lines(
        [
            f"{len(result.values):,} rows explained by {method} against {result.background}, seed "
            f"{result.seed}{left_out}"
        ]
    )
    if contributions:
        click.echo(f"contributions in {contributions}")
    _show_places(files, folder, result.run, "explain")


@click.command()
@model_argument
@option(
    "--int8",
    "Use 8-bit weights; with `static` also activations.",
    type=click.Choice(["dynamic", "static"]),
)
@flag("--fp16", "Use 16-bit weights, but keep 32 bits where numbers overflow.")
@option(
    "--data FILE",
    "Rows (.csv, .parquet, runs:/RUN/PATH, dataset:/RUN): half for calibration, half to "
    "measure the loss.",
    default="",
    show_default="the dataset of the gate policy, otherwise the reference of the model",
)
@option("--target COLUMN", "Label column of --data.", default="")
@metric_option
@option(
    "--max-loss LOSS",
    "Largest loss of the metric. Without labels: largest share of changed classes, or mean "
    "difference of numbers as a share of their spread.",
    type=NumberRange(min=0),
    default=0.01,
)
@option("--register NAME", "Registered model of the new version.", show_default="same as MODEL")
@output_option
def optimize(model_uri: str, output: str, **options: Any) -> None:
    """Make a version smaller or faster, and measure the loss.

    The command compares size, load time, latency and agreement of the new form with the
    version MODEL. If the loss is within --max-loss, the form is registered as a new
    version. Exit status 1 if the loss is larger.

    \b
      onnxserve optimize models:/digits-cnn/1 --int8 static
    """
    if not (options["int8"] or options["fp16"]):
        raise click.UsageError("specify --int8 dynamic|static or --fp16")
    from mlflow_deploy_plugin.wrap.optimization.optimizer import optimize as optimize_version

    result = optimize_version(model_uri, **options, raises=False, progress=show_progress)
    table = [_OPTIMIZATION_HEAD]
    for form in result.forms:
        cost = form.cost
        latencies = (
            f"{cost.latency_us[count]:,.0f} µs ({ratio:.2f})" for count, ratio in cost.ratio.items()
        )
        sizes = (f"{size / 1e3:,.0f} kB" for size in (cost.size, cost.packed))
        agreement = str(form.agreement or "")
        table.append((form.name, *sizes, f"{cost.load_ms:.1f} ms", *latencies, agreement))
    lines = [*align_columns(table)]
    lines += [f"{form.name}: {form.note}" for form in result.forms if form.note]
    if result.chosen:
        lines.append(
            f"registered {result.model} version {result.version}: {result.chosen}, made from "
            f"{result.base}"
        )
    show_result(output, asdict(result), lines)
    result.raise_if_refused()
