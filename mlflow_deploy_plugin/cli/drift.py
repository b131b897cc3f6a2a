"""`onnxserve drift run NAME`: judges a window of what an endpoint has answered, now, with other bounds if need be."""

import click

from mlflow_deploy_plugin.cli.monitor import judge_window, monitor_option, window_option
from mlflow_deploy_plugin.cli.options import output_option


@click.group()
def drift() -> None:
    """Judge captured traffic against the model's reference."""


@drift.command()
@click.argument("name")
@window_option
@monitor_option
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
    min_rows: int | None,
    false_alarm_rate: float | None,
    output: str,
) -> None:
    """Judge a window of the endpoint NAME now, with other bounds.

    It is `onnxserve monitor run`, for once: the window is logged to MLflow. With --min-rows or --false-alarm-rate it
    stands there alone: what is found is no verdict of the monitor's.
    """
    judge_window(name, monitor_name, window, output, min_rows=min_rows, false_alarm_rate=false_alarm_rate)
