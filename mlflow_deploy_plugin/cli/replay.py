"""`onnxserve replay`: captured requests, computed again."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.evaluation import metric_option
from mlflow_deploy_plugin.cli.options import (
    align_columns,
    opened_store,
    option,
    output_option,
    show_result,
    since_option,
    until_option,
    usage_errors,
)

if TYPE_CHECKING:
    from mlflow_deploy_plugin.replay.backtest import BacktestReport


@click.command()
@click.argument("subject", metavar="PREDICTION_ID|NAME")
@option("--against", metavar="URI", default="", help="Candidate that predicts the rows of the endpoint NAME.")
@since_option
@until_option
@option("--max-rows", type=click.IntRange(min=1), default=100_000, metavar="ROWS", help="Maximum number of rows.")
@metric_option
@output_option
def replay(subject: str, against: str, output: str, **options: Any) -> None:
    """Compute captured requests again.

    \b
      onnxserve replay flights --window 2013-07-01/7d --against models:/flight-delay/8
    """
    if against:
        _backtest(subject, against, output, **options)
    else:
        _replay_prediction(subject, output)


def _replay_prediction(prediction_id: str, output: str) -> None:
    raise click.UsageError(f"--against is missing: {prediction_id} {output}")


def _backtest(name: str, against: str, output: str, since: str | None, until: str | None, **options: Any) -> None:
    """Back-test a candidate on the captured rows of an endpoint."""
    from mlflow_deploy_plugin.evaluation import downloaded_version
    from mlflow_deploy_plugin.evaluation.model import load_version
    from mlflow_deploy_plugin.inference_log.windows import parse_time_range
    from mlflow_deploy_plugin.registry import resolve
    from mlflow_deploy_plugin.replay.backtest import backtest, open_traffic

    with usage_errors():
        times = parse_time_range(since, until, datetime.now(UTC))
    with opened_store() as store:  # The endpoint names the masked columns, whose hashes are not values.
        endpoint = store.endpoint(name)
    with downloaded_version(resolve(against)) as folder:
        report = backtest(open_traffic(name, endpoint), times, load_version(folder), against, **options)
    show_result(output, asdict(report), _backtest_lines(report))


def _backtest_lines(report: "BacktestReport") -> Iterator[str]:
    yield f"{report.candidate} on {report.rows:,} of {report.captured_rows:,} captured rows of {report.endpoint}"
    served = ", ".join(f"{version}: {rows:,} rows" for version, rows in report.versions.items())
    yield from align_columns([("served", served), *report.summary.items()])
    for row in (*report.refused, *report.disagreeing):
        count = f"{row.rows:,} rows refused, e.g. " if row in report.refused else ""
        yield f"{count}onnxserve replay {row.prediction_id} --row {row.row}: {row.text}"
    yield from report.notes
