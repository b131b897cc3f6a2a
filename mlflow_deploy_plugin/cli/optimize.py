"""`onnxserve optimize` and `onnxserve profile`: a version's smaller or faster forms, and where its time goes."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import (
    NumberRange,
    align_columns,
    option,
    output_option,
    show_progress,
    show_result,
)

if TYPE_CHECKING:
    from mlflow_deploy_plugin.optimization import GraphProfile, Optimization

_SHOWN_NODES = 10


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
@option(
    "--metric",
    type=click.Choice(["accuracy", "f1", "roc_auc", "log_loss", "rmse", "mae"]),
    show_default="accuracy, of numbers rmse",
    help="Metric of labelled rows.",
)
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
    from mlflow_deploy_plugin.optimization import ALL_RECIPES, Recipe, try_forms

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
    from mlflow_deploy_plugin.optimization import profile as run

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
