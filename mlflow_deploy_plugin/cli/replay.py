"""`onnxserve replay`: captured requests, computed again."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.log import warn_of_unreadable
from mlflow_deploy_plugin.cli.options import (
    align_columns,
    opened_store,
    option,
    output_option,
    show_progress,
    show_result,
)
from mlflow_deploy_plugin.errors import OnnxserveError

if TYPE_CHECKING:
    from mlflow_deploy_plugin.replay.prediction import Replay
    from mlflow_deploy_plugin.spec import EndpointSpec

_SHOWN_COLUMNS = 20


@click.command()
@click.argument("subject", metavar="PREDICTION_ID|NAME")
@option("--against", metavar="URI", default="", help="Candidate that predicts the rows of the endpoint NAME.")
@option("--endpoint", metavar="NAME", default="", show_default="all", help="Endpoint of the prediction.")
@option(
    "--row",
    type=click.IntRange(min=0),
    metavar="ROW",
    show_default="compare all rows, explain row 0",
    help="Row of the request, from 0.",
)
@option("--model", metavar="URI", show_default="from the log", help="Files of the version that answered.")
@option("--explain/--no-explain", default=True, help="Compute the contribution of each column.")
@option("--nodes", type=click.IntRange(min=0), default=20, metavar="NUMBER", help="Maximum number of nodes to print.")
@option("--pdb", is_flag=True, help="Debug the predict of a model without an ONNX form.")
@output_option
@click.pass_context
def replay(context: click.Context, subject: str, against: str, output: str, **options: Any) -> None:
    """Compute captured requests again.

    With PREDICTION_ID, the X-Prediction-Id of a response, compute the request again with the version that answered,
    compare the outputs bit by bit, explain the prediction, and print the intermediate values of the graph. The exit
    status is 0 if all outputs are equal, otherwise 1.

    \b
      onnxserve replay 0b5c8f6e2d
      onnxserve replay 0b5c8f6e2d --endpoint flights --row 3 --nodes 100
      onnxserve replay 0b5c8f6e2d --pdb
    """
    if not against:
        _replay_prediction(subject, output, **options)
        return
    for name in options:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name} is for a PREDICTION_ID: remove it, or remove --against {against}")
    _backtest(subject, against, output)


def _replay_prediction(
    prediction_id: str, output: str, endpoint: str, row: int | None, model: str | None, explain: bool, nodes: int, pdb: bool
) -> None:
    if pdb and output == "json":
        raise click.UsageError("--pdb writes to standard output: remove -o json")
    from mlflow_deploy_plugin.inference_log import open_log
    from mlflow_deploy_plugin.replay.prediction import find_request, replay_prediction
    from mlflow_deploy_plugin.settings import load_settings

    log = open_log(load_settings().inference_log)
    request = find_request(log, prediction_id, endpoint)
    warn_of_unreadable(log)
    replayed = replay_prediction(
        request,
        model_uri=model or "",
        spec=_spec_of(request.endpoint),
        row=row,
        nodes=nodes,
        explain=explain,
        debug=pdb,
        progress=show_progress,
    )
    show_result(output, asdict(replayed), _replay_lines(replayed))
    if not replayed.is_equal:
        raise click.exceptions.Exit(1)


def _spec_of(endpoint: str) -> "EndpointSpec | None":
    """Return the spec of an endpoint in the store or of a server on this machine; None if there is no spec."""
    from mlflow_deploy_plugin.deployments.endpoints import left_specs
    from mlflow_deploy_plugin.settings import load_settings

    with suppress(OnnxserveError), opened_store() as store:  # The command also works without a store.
        if stored := store.endpoint(endpoint):
            return stored.spec
    return next((spec for _, spec in left_specs(endpoint, load_settings())), None)


def _replay_lines(replayed: "Replay") -> Iterator[str]:
    yield f"{replayed.prediction_id} of {replayed.endpoint}, {replayed.event_time:%Y-%m-%d %H:%M:%S}Z, {replayed.model_uri}"
    for compared in replayed.outputs:
        if compared.is_equal:
            yield f"  {compared.column}: equal to the bit"
            continue
        ulps = f", {compared.ulps:,} units in the last place" if compared.ulps is not None else ""
        size = f", difference {compared.difference:.3g}{ulps}" if compared.difference is not None else ""
        place = f" in row {compared.index[0]}" if compared.index else ""
        place += f", position {list(compared.index[1:])}" if compared.index[1:] else ""
        yield f"  {compared.column}: DIFFERENT{place}: captured {compared.captured}, now {compared.computed}{size}"
    if not replayed.outputs:
        yield "  no output was captured (capture.drop, capture.mask), so nothing is compared"
    yield from (f"  possible cause: {cause}" for cause in replayed.possible_causes)
    if replayed.not_explained:
        yield f"not explained: {replayed.not_explained}"
    if (explanation := replayed.explanation) is not None:
        yield from _explanation_lines(replayed)
    if replayed.no_nodes:
        yield f"no intermediate values: {replayed.no_nodes}"
    if replayed.nodes:
        yield f"intermediate values of row {replayed.row}, without graph optimization"
        table = [("operator", "output", "type", "values")]
        for node in replayed.nodes:
            counts = "".join(f", {count} {name}" for name, count in (("NaN", node.nan), ("infinite", node.infinite)) if count)
            values = ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in node.values)
            table.append((node.operator, node.output, f"{node.dtype} {list(node.shape)}", values + counts))
        yield from align_columns(table)
        if replayed.left_out:
            yield f"and {replayed.left_out:,} more nodes (--nodes)"


def _explanation_lines(replayed):
    explanation = replayed.explanation
    totals = [base + sum(row[k] for row in explanation.contributions) for k, base in enumerate(explanation.base_values)]
    shown = 1 if len(totals) == 2 else totals.index(max(totals))  # For two classes, the first mirrors the second.
    yield (
        f"explanation of row {replayed.row}: {explanation.outputs[shown]} is {totals[shown]:.6g}, "
        f"the mean over {explanation.background} {explanation.base_values[shown]:.6g}"
    )
    ranked = sorted(zip(explanation.columns, explanation.contributions), key=lambda entry: -abs(entry[1][shown]))
    table = [("column", "value", "contribution")]
    for name, values in ranked[:_SHOWN_COLUMNS]:
        table.append((name, str(replayed.inputs.get(name, "")), f"{values[shown]:+.6g}"))
    yield from align_columns(table)


def _backtest(endpoint: str, against: str, output: str) -> None:
    raise click.UsageError(f"--against {against} is not supported: {endpoint} {output}")
