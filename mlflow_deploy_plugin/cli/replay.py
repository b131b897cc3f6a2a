"""`onnxserve replay` and `backtest`: captured requests, computed again by their own
version or by a candidate.
"""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from math import isnan
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.evaluation import metric_option
from mlflow_deploy_plugin.cli.log import open_user_log, warn_of_unreadable
from mlflow_deploy_plugin.cli.options import (
    POSITIVE,
    align_columns,
    flag,
    max_rows_option,
    name_argument,
    opened_store,
    option,
    output_option,
    show_result,
    since_option,
    until_option,
    usage_errors,
)
from mlflow_deploy_plugin.core.errors import Refused

if TYPE_CHECKING:
    from mlflow_deploy_plugin.promote.replay.prediction import Replay

_MOST_COLUMNS = 20
_MOST_CHARACTERS = 40


@click.command()
@click.argument("prediction_id")
@option("--endpoint NAME", "Endpoint of the prediction.", default="", show_default="all")
@option("--row ROW", "Row of the request to explain.", type=click.IntRange(0), default=0)
@option("--nodes NUMBER", "Maximum number of graph nodes.", type=click.IntRange(0), default=20)
@flag("--pdb", "Run the predict of a model without an ONNX form in pdb.")
@output_option
def replay(prediction_id: str, endpoint: str, row: int, nodes: int, pdb: bool, output: str) -> None:
    """Compute a captured request again.

    Compute the request of PREDICTION_ID, the X-Prediction-Id of a response, again with
    the version that answered, compare the outputs bit by bit, explain the prediction,
    and print the intermediate values of the graph. The exit status is 0 if all outputs
    are equal, and 1 if they differ.

    \b
      onnxserve replay 5efaf1fa6c44faceda69fbe3e173c440
      onnxserve replay 5efaf1fa6c44faceda69fbe3e173c440 --endpoint flights --row 3 \\
          --nodes 100
      onnxserve replay 5efaf1fa6c44faceda69fbe3e173c440 --pdb
    """
    from mlflow_deploy_plugin.promote.replay.prediction import find_request, replay_prediction
    from mlflow_deploy_plugin.promote.replay.traffic import open_traffic

    log = open_user_log()
    endpoint, table = find_request(log, prediction_id, endpoint)
    warn_of_unreadable(log)
    # The endpoint names the masked columns, whose hashes are not values.
    with opened_store() as store:
        traffic = open_traffic(endpoint, store.endpoint(endpoint))
    result = replay_prediction(traffic, table, row=row, nodes=nodes, debug=pdb)
    lines = [f"{result.endpoint}, {result.version}"]
    for compared in result.outputs:
        place = f" at {list(compared.index)}" if compared.index else ""
        state = f"DIFFERENT{place}: captured {compared.captured}, now {compared.computed}"
        if compared.is_equal:
            state = "equal to the bit"
        lines.append(f"  {compared.column}: {state}")
    if not result.outputs:
        lines.append(
            "  no output is captured (capture.drop, capture.mask), so nothing can be compared"
        )
    lines += _explanation_lines(result, row)
    if isinstance(result.nodes, Refused):
        lines.append(f"no intermediate values: {result.nodes.reason}")
    else:
        lines.append(f"row {row}: outputs of the graph's nodes, computed without optimization")
        cells = [("operator", "output", "type", "first values", "NaN", "infinite")]
        for node in result.nodes:
            cells.append(
                (
                    node.operator,
                    node.output,
                    node.type,
                    ", ".join(map(str, node.values))[:60],
                    str(node.nan),
                    str(node.infinite),
                )
            )
        lines += align_columns(cells)
        lines.append(f"{result.left_out:,} nodes are left out (--nodes)")
    show_result(output, asdict(result), lines)
    if not result.is_equal:
        raise click.exceptions.Exit(1)


def _explanation_lines(result: "Replay", row: int) -> Iterator[str]:
    """Yield the largest contributions of columns to the output of a row, or the reason
    why the row is not explained.
    """
    # The import of numpy would slow down the help of the command.
    from mlflow_deploy_plugin.serve.runtime.additive import LINK_SCALES

    explained = result.explanation
    if isinstance(explained, Refused):
        yield f"not explained: {explained.reason}"
        return
    values = explained.values[0]
    base = explained.base_values
    # For two classes, the contributions to the first mirror the contributions to the
    # second.
    output = 1 if len(base) == 2 else int((base + values.sum(axis=0)).argmax())
    total = base[output] + values[:, output].sum()
    mean = f"{base[output]:.4g} over {explained.background_rows} rows"
    name = f"{explained.outputs[output]}{LINK_SCALES[explained.link]}"
    yield f"row {row}: the output {name} is {total:.4g}, and its mean is {mean}"
    table = [("column", "value", "contribution")]
    largest_first = (-abs(values[:, output])).argsort()
    for index in largest_first[:_MOST_COLUMNS]:
        name = explained.features[index].name
        value = ""
        if name in result.inputs:
            value = str(result.inputs[name][row])[:_MOST_CHARACTERS]
        table.append((name, value, f"{values[index, output]:+.4g}"))
    yield from align_columns(table)


@click.command()
@name_argument
@option("--against URI", "Candidate that predicts the rows of the endpoint NAME.", required=True)
@since_option
@until_option
@max_rows_option(type=POSITIVE, default=100_000)
@metric_option
@output_option
def backtest(
    name: str, against: str, output: str, since: str | None, until: str | None, **options: Any
) -> None:
    """Compare a candidate with the captured answers.

    Predict the captured rows of the endpoint NAME with the candidate, and compare its
    predictions with the captured answers and with the labels.

    \b
      onnxserve backtest flights --window 2013-07-01/7d --against models:/flight-delay/8
    """
    from mlflow_deploy_plugin.core.registry.resolution import resolve
    from mlflow_deploy_plugin.promote.replay.backtest import backtest as compare_answers
    from mlflow_deploy_plugin.promote.replay.traffic import open_traffic
    from mlflow_deploy_plugin.serve.inference_log.windows import parse_time_range
    from mlflow_deploy_plugin.wrap.evaluation.model import downloaded_version, load_version

    with usage_errors():
        times = parse_time_range(since, until, datetime.now(UTC))
    # The endpoint names the masked columns, whose hashes are not values.
    with opened_store() as store:
        traffic = open_traffic(name, store.endpoint(name))
    with downloaded_version(resolve(against)) as folder:
        report = compare_answers(traffic, times, load_version(folder), against, **options)
    lines = [f"{report.rows:,} of {report.captured_rows:,} captured rows"]
    for version, rows in report.versions.items():
        lines.append(f"  {rows:,} rows were answered by {version}")
    lines.append(f"  disagreement: {report.disagreement:.2%} of the answers")
    if not isnan(report.max_difference):
        lines.append(
            f"  differences: {report.mean_difference:.3g} on average, at most "
            f"{report.max_difference:.3g}"
        )
    lines += [
        f"  refusals: {report.refused_rows:,} rows",
        f"  latency: {report.candidate_row_us:,.1f} µs per row in batches without a server; "
        f"{report.served_request_us:,.0f} µs per served request with queues (median)",
    ]
    quality = report.comparison
    if isinstance(quality, Refused):
        lines.append(f"  quality: {quality.reason}")
    else:
        lines.append(
            f"  quality: {quality.describe('the captured answers', report.labelled_rows, 0.95)}"
        )
    for example in (*report.refused, *report.disagreeing):
        count = f"{example.rows:,} rows refused, e.g. " if example in report.refused else ""
        command = f"onnxserve replay {example.prediction_id} --row {example.row}"
        lines.append(f"{count}{command}: {example.text}")
    show_result(output, asdict(report), lines)
    warn_of_unreadable(traffic.log)
