"""`onnxserve drift run NAME`: judges a window of what an endpoint has answered, now."""

import json
from typing import TYPE_CHECKING

import click

from mlflow_deploy_plugin.cli.telemetry import without_telemetry

if TYPE_CHECKING:
    from mlflow_deploy_plugin.monitoring.run import MonitorResult

_SHOWN = 8


@click.group()
def drift() -> None:
    """Judge captured traffic against the model's reference."""


@drift.command("run")
@click.argument("name")
@click.option(
    "--window",
    metavar="START/END",
    help="Half-open interval of event time in UTC: 2013-07-01/2013-07-02 or 2013-07-01/1d. "
    "Default: the latest whole window of the monitor's length that has rows.",
)
@click.option(
    "--monitor", help="A monitor of the endpoint's spec. Default: its only one, else a daily one named drift."
)
@click.option("--min-rows", type=click.IntRange(min=1), help="Fewer rows are not judged. Default: the monitor's.")
@click.option(
    "--false-alarm-rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of windows like the reference that may be called drifted. Default: the monitor's.",
)
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How it is written."
)
def run(
    name: str,
    window: str | None,
    monitor: str | None,
    min_rows: int | None,
    false_alarm_rate: float | None,
    output: str,
) -> None:
    """Judges one window of the endpoint NAME and logs the report to MLflow. Exit status 0 whatever the verdict is."""
    without_telemetry()
    # here: Evidently and MLflow take seconds that no other command should wait for
    from mlflow_deploy_plugin.inference_log.windows import parse_window

    parsed = parse_window(window) if window is not None else None
    from mlflow_deploy_plugin.monitoring.drift import run_drift

    result = run_drift(name, parsed, monitor, min_rows, false_alarm_rate)
    if output == "json":
        from mlflow_deploy_plugin.cli.monitor_text import judgement_values

        click.echo(json.dumps(judgement_values(result.judgement, result.run)))
    else:
        _print(result)


def _print(result: "MonitorResult") -> None:
    judgement = result.judgement
    click.echo(f"{judgement.endpoint} {judgement.window}: {judgement.state}")
    click.echo(f"  model {judgement.model} version {judgement.version}, {judgement.rows:,} rows")
    click.echo(f"  {judgement.reason}")
    shown = [finding for finding in judgement.findings if finding.value is not None][:_SHOWN]
    width = max((len(finding.subject) for finding in shown), default=0)
    for finding in shown:
        score, threshold = f"score {finding.value:7.2f}", f"threshold {finding.threshold or 0:.2f}"
        line = f"  {finding.subject:{width}}  {score}  {threshold}  {finding.check if finding.is_alarm else ''}"
        click.echo(line.rstrip())
    for note in judgement.notes:
        click.echo(f"  note: {note}")
    click.echo(f"  report: {result.run.url or f'run {result.run.run_id} in experiment {result.run.experiment}'}")
