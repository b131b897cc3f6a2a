"""`onnxserve replay`: captured requests, computed again."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import (
    opened_store,
    option,
    output_option,
    show_result,
    since_option,
    until_option,
    usage_errors,
)
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.evaluation.names import METRICS

if TYPE_CHECKING:
    from mlflow_deploy_plugin.replay.backtest import BacktestReport


@click.command()
@click.argument("subject", metavar="PREDICTION_ID|NAME")
@option("--against", metavar="URI", default="", help="Candidate that predicts the rows of the endpoint NAME.")
@since_option
@until_option
@option("--max-rows", type=click.IntRange(min=1), default=100_000, metavar="ROWS", help="Maximum number of rows.")
@option(
    "--metric",
    type=click.Choice(METRICS),
    show_default="accuracy for classes, rmse for numbers",
    help="Metric of labelled rows.",
)
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
    from mlflow_deploy_plugin.inference_log import open_log
    from mlflow_deploy_plugin.inference_log.windows import parse_time_range
    from mlflow_deploy_plugin.registry import resolve
    from mlflow_deploy_plugin.replay.backtest import Traffic, backtest
    from mlflow_deploy_plugin.settings import load_settings

    with usage_errors():
        times = parse_time_range(since, until, datetime.now(UTC))
    endpoint = None
    with suppress(OnnxserveError), opened_store() as store:  # The command also works without a store.
        endpoint = store.endpoint(name)
    traffic = Traffic.of(open_log(load_settings().inference_log), name, endpoint)
    with downloaded_version(resolve(against)) as folder:
        report = backtest(traffic, times, load_version(folder), against, **options)
    show_result(output, asdict(report), _backtest_lines(report))


def _backtest_lines(report: "BacktestReport") -> Iterator[str]:
    yield f"{report.candidate} on {report.rows:,} of {report.captured_rows:,} captured rows of {report.endpoint}"
    yield f"  answered   {', '.join(f'{name}: {rows:,}' for name, rows in report.versions.items())}"
    yield (
        f"  disagrees  {report.disagreement:.2%} of the rows (95% interval {report.disagreement_low:.2%} to "
        f"{report.disagreement_high:.2%})"
    )
    if report.max_difference == report.max_difference:
        yield f"  numbers    mean difference {report.mean_difference:.4g}, largest {report.max_difference:.4g}"
    yield f"  refuses    {report.refused_rows:,} rows"
    for noted in report.refused:
        yield f"             {noted.rows:,} rows: {noted.text} (onnxserve replay {noted.prediction_id})"
    if report.no_number:
        yield f"  no number  {report.no_number:.2%} of the predictions are NaN or infinite"
    us = report.latency_us
    yield (
        f"  latency    {us['candidate_batch_row']:,.1f} µs per row in batches; a single row takes "
        f"{us['candidate_p50']:,.0f} µs (p50), {us['candidate_p99']:,.0f} µs (p99)"
    )
    if "served_p50" in us:
        yield (
            f"             served requests, including queueing: {us['served_p50']:,.0f} µs (p50), "
            f"{us['served_p99']:,.0f} µs (p99)"
        )
    if compared := report.comparison:
        yield (
            f"  {report.metric:9}  {compared.candidate:.4f}, served answers {compared.current:.4f}: difference "
            f"{compared.difference:+.4f} (95% bounds {compared.low:+.4f} and {compared.high:+.4f})"
        )
    yield f"  labels     {report.labelled_rows:,} rows"
    for noted in report.disagreeing:
        yield f"  example    onnxserve replay {noted.prediction_id}: row {noted.row}, {noted.text}"
    yield from report.notes
