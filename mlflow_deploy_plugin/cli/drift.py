"""`onnxserve drift run NAME`: judges a window of what an endpoint has answered, now, with other bounds if need be."""

from dataclasses import replace

import click

from mlflow_deploy_plugin.cli.monitor import judge_window, monitor_option, show_result, window_option
from mlflow_deploy_plugin.cli.options import output_option
from mlflow_deploy_plugin.cli.promote import show_progress


@click.group()
def drift() -> None:
    """Judge captured traffic against the model's reference."""


@drift.command()
@click.argument("name")
@window_option
@monitor_option
@click.option(
    "--rows",
    metavar="FILE",
    help="Rows that are judged instead of captured ones, Parquet or CSV. NAME then says only where the report goes: "
    "to the experiment onnxserve/NAME.",
)
@click.option("--reference", metavar="FILE", help="Rows that --rows are compared with, as the training rows.")
@click.option(
    "--min-rows",
    type=click.IntRange(min=1),
    metavar="ROWS",
    show_default="the monitor's",
    help="Number of rows below which a window is not judged.",
)
@click.option(
    "--false-alarm-rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    show_default="the monitor's",
    help="Share of windows like the reference that may be called drifted.",
)
@output_option
def run(
    name: str,
    window: str | None,
    monitor_name: str | None,
    rows: str | None,
    reference: str | None,
    min_rows: int | None,
    false_alarm_rate: float | None,
    output: str,
) -> None:
    """Judge a window of the endpoint NAME now, with other bounds.

    It is `onnxserve monitor run`, for once: the window is logged to MLflow. With --min-rows or --false-alarm-rate it
    stands there alone: what is found is no verdict of the monitor's. So it does with a file instead of captured rows,
    for which no endpoint has to be there:

    \b
      onnxserve drift run cancer --rows recent.csv --reference training.csv
    """
    if rows is not None or reference is not None:
        if rows is None or reference is None or window is not None or monitor_name is not None:
            raise click.UsageError("--rows and --reference go together, without --window and --monitor")
        _judge_files(name, rows, reference, output, min_rows=min_rows, false_alarm_rate=false_alarm_rate)
        return
    judge_window(name, monitor_name, window, output, min_rows=min_rows, false_alarm_rate=false_alarm_rate)


def _judge_files(name: str, rows: str, reference: str, output: str, **bounds: float | None) -> None:
    from mlflow_deploy_plugin.controller.monitors.evaluation import judge_and_log
    from mlflow_deploy_plugin.controller.monitors.file_drift import run_files
    from mlflow_deploy_plugin.settings import load_settings

    show_progress(f"judging {rows} beside {reference}")  # before seconds of imports
    show_result(
        *run_files(
            name,
            rows,
            reference,
            load_settings(),
            lambda question: judge_and_log(replace(question, progress=show_progress)),
            **bounds,
        ),
        output,
    )
