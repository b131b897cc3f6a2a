"""`onnxserve robustness`, `explain`, `optimize` and `profile`: measurements of a version."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import (
    NumberRange,
    align_columns,
    option,
    output_option,
    show_json,
    show_lines,
    show_progress,
    show_result,
    usage_errors,
)
from mlflow_deploy_plugin.evaluation.names import DISTURBANCES, METRICS, parse_strengths

if TYPE_CHECKING:
    from mlflow_deploy_plugin.optimization.optimizer import Optimization
    from mlflow_deploy_plugin.optimization.profiler import GraphProfile
    from mlflow_deploy_plugin.registry.runs import LoggedRun

_SHOWN_NODES = 10
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
    "--metric",
    type=click.Choice(METRICS),
    show_default="accuracy of labels, rmse of numbers",
    help="Metric of labelled rows.",
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
    from mlflow_deploy_plugin.evaluation import explain as explain_file
    from mlflow_deploy_plugin.evaluation.explanation import contributions_format

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


@click.command()
@click.argument("model_uri", metavar="MODEL_URI")
@option("--int8", type=click.Choice(["dynamic", "static"]), help="Weights of 8 bits; static: activations too.")
@option("--fp16", is_flag=True, help="Weights of 16 bits, with 32 where numbers overflow.")
@option(
    "--prune",
    type=NumberRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Share of the smallest weights of each layer to set to zero.",
)
@option("--auto", is_flag=True, help="Try all forms; register the fastest within the limit, or none.")
@option(
    "--rows",
    type=int,
    metavar="ROWS",
    show_default="all three",
    help="Rows of a request, 1, 8 or 1000, that --auto decides by.",
)
@option(
    "--data",
    default="",
    metavar="FILE",
    show_default="the dataset of the gate policy, else the reference beside the model",
    help="Rows (.csv, .parquet, runs:/RUN/PATH, dataset:/RUN): half calibrate, half measure the loss.",
)
@option("--target", default="", metavar="COLUMN", help="Column of --data that holds the labels.")
@_metric_option
@option(
    "--max-loss",
    type=NumberRange(min=0),
    metavar="LOSS",
    default=0.01,
    help="Largest loss: of the metric; without labels, of equal answers, or of values as a share of their spread.",
)
@option(
    "--original",
    default="",
    metavar="URI",
    show_default="the one that the version names",
    help="Torch model in MLflow that it was made from: --prune then trains on.",
)
@option("--epochs", type=click.IntRange(1), metavar="PASSES", default=10, help="Passes of that training.")
@option("--register", metavar="NAME", show_default="the model itself", help="Registered model of the new version.")
@output_option
def optimize(
    model_uri: str, int8: Any, fp16: bool, prune: float | None, auto: bool, output: str, **options: Any
) -> None:
    """Make a version smaller or faster, and measure what it loses.

    The form is measured beside the version MODEL_URI: size, load time, latency, agreement. Within --max-loss it is
    registered as a new version that is gated and served like any other. Exit status 1 if it loses more. With --auto
    the fastest form is taken; if none is faster, nothing is registered, and the exit status is 0.

    \b
      onnxserve optimize models:/digits-cnn/1 --int8 static
      onnxserve optimize models:/digits-cnn/1 --auto --data test.parquet --target digit --max-loss 0.005
    """
    from mlflow_deploy_plugin.optimization.optimizer import ALL_RECIPES, Recipe, try_forms

    if auto == bool(int8 or fp16 or prune is not None):
        raise click.UsageError(
            "say which form: --int8 dynamic|static, --fp16 or --prune SHARE; or --auto, which tries all"
        )
    done = try_forms(
        model_uri, ALL_RECIPES if auto else (Recipe(int8, fp16, prune),), progress=show_progress, **options
    )
    show_result(output, asdict(done), _optimization_lines(done))
    done.raise_if_refused()


def _optimization_lines(done: "Optimization") -> Iterator[str]:
    rows: list[tuple[str, ...]] = [
        ("form", "size", "packed", "load", "1 row", "8 rows", "1,000 rows", "agreement with the base")
    ]
    for form in done.forms:
        cost = form.cost
        latency = (f"{cost.latency_us[count]:,.0f} µs ({ratio:.2f})" for count, ratio in cost.ratio.items())
        sizes = (f"{size / 1e3:,.0f} kB" for size in (cost.size, cost.packed))
        rows.append((form.name, *sizes, f"{cost.load_ms:.1f} ms", *latency, str(form.agreement or "")))
    yield from align_columns(rows)
    for name, why in done.impossible.items():
        if not done.is_refused:
            yield f"cannot be {name}, because {why}"
    for form in done.forms:
        if form.note:
            yield f"{form.name}: {form.note}"
    if done.chosen:
        yield f"registered {done.model} version {done.version}: {done.chosen}, made from {done.base}"
    elif not done.is_refused:
        yield done.reason


@click.command()
@click.argument("model_uri", metavar="MODEL_URI")
@option("--rows", type=int, metavar="ROWS", default=1, help="Rows of a request.")
@option(
    "--data",
    default="",
    metavar="FILE",
    show_default="the reference beside the model, else zeros",
    help="Rows (.csv, .parquet, runs:/RUN/PATH, dataset:/RUN).",
)
@option("--log", is_flag=True, help="Keep the profile and a picture of it in the run of the version.")
@output_option
def profile(model_uri: str, output: str, **options: Any) -> None:
    """Show where the time of a version goes.

    Each operator and node is listed with its share, and then what could be changed. ONNX Runtime's profiler measures
    requests to the optimized graph of MODEL_URI, in one thread of the CPU.

    \b
      onnxserve profile models:/digits-cnn/1
      onnxserve profile models:/digits-cnn/1 --rows 1000 --log
    """
    from mlflow_deploy_plugin.optimization.profiler import profile as run

    done = run(model_uri, **options)
    show_result(output, asdict(done), _profile_lines(done))


def _profile_lines(done: "GraphProfile") -> Iterator[str]:
    yield f"{done.model}, {done.rows:,} rows: {done.run_us:,.0f} µs a run (nodes: with the profiler, which adds some)"
    yield f"outside of the nodes: {done.outside_us:,.0f} µs (memory and dispatch, less the time that the profiler adds)"
    for entries, head in ((done.operators, "operator"), (done.nodes[:_SHOWN_NODES], "node")):
        yield ""
        rows = [(head, "share", "µs", "calls", "provider", "input types")]
        for entry in entries:
            provider, types = entry.provider.removesuffix("ExecutionProvider"), ", ".join(entry.types)
            rows.append(
                (entry.name[:48], f"{entry.share:.1%}", f"{entry.us:,.1f}", f"{entry.calls:g}", provider, types)
            )
        yield from align_columns(rows)
    if len(done.nodes) > _SHOWN_NODES:
        yield f"and {len(done.nodes) - _SHOWN_NODES} more nodes"
    yield ""
    yield "what to change:" if done.advice else "what to change: nothing stands out"
    yield from (f"- {line}" for line in done.advice)
