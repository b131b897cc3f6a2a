"""`onnxserve replay`: captured requests, computed again."""

from collections.abc import Iterator
from contextlib import suppress
from math import inf
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
from mlflow_deploy_plugin.errors import OnnxserveError, Refused

if TYPE_CHECKING:
    from mlflow_deploy_plugin.replay.prediction import CapturedRequest, Replay
    from mlflow_deploy_plugin.runtime.feeds import Array

_PREDICTION_OPTIONS = {"endpoint", "row", "explain", "nodes", "pdb"}


@click.command()
@click.argument("subject", metavar="PREDICTION_ID|NAME")
@option("--against", metavar="URI", default="", help="Candidate that predicts the rows of the endpoint NAME.")
@option("--endpoint", metavar="NAME", default="", show_default="all", help="Endpoint of the prediction.")
@option("--row", type=click.IntRange(0), metavar="ROW", show_default="all, explain 0", help="Row of the request.")
@option("--explain/--no-explain", default=True, help="Compute the contribution of each column.")
@option("--nodes", type=click.IntRange(0), default=20, metavar="NUMBER", help="Maximum number of graph nodes.")
@option("--pdb", is_flag=True, help="Run the predict of a model without an ONNX form in pdb.")
@output_option
@click.pass_context
def replay(context: click.Context, /, subject: str, against: str, output: str, **options: Any) -> None:
    """Compute captured requests again.

    With PREDICTION_ID, the X-Prediction-Id of a response, compute the request again with the version that answered,
    compare the outputs bit by bit, explain the prediction, and print the intermediate values of the graph. The exit
    status is 0 if all outputs are equal, and 1 if they differ.

    \b
      onnxserve replay 5efaf1fa6c44faceda69fbe3e173c440
      onnxserve replay 5efaf1fa6c44faceda69fbe3e173c440 --endpoint flights --row 3 --nodes 100
      onnxserve replay 5efaf1fa6c44faceda69fbe3e173c440 --pdb
    """
    wrong = _PREDICTION_OPTIONS if against else options.keys() - _PREDICTION_OPTIONS
    for name in sorted(wrong):
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name} does not apply {'with' if against else 'without'} --against")
    options = {name: value for name, value in options.items() if name not in wrong}
    if against:
        _backtest(subject, against, output, **options)
    else:
        _replay_prediction(subject, output, **options)


def _replay_prediction(prediction_id: str, output: str, endpoint: str, pdb: bool, **options: Any) -> None:
    if pdb and output == "json":
        raise click.UsageError("--pdb writes to standard output: remove -o json")
    from mlflow_deploy_plugin.inference_log import open_log
    from mlflow_deploy_plugin.replay.prediction import find_request, replay_prediction
    from mlflow_deploy_plugin.settings import load_settings

    log, spec = open_log(load_settings().inference_log), None
    request = find_request(log, prediction_id, endpoint)
    warn_of_unreadable(log)
    with suppress(OnnxserveError), opened_store() as store:  # The command also works without a store.
        spec = stored.spec if (stored := store.endpoint(request.endpoint)) else None
    result = replay_prediction(request, spec, debug=pdb, progress=show_progress, **options)
    show_result(output, _document(request, result), _lines(request, result, options["row"] or 0))
    if not result.is_equal:
        raise click.exceptions.Exit(1)


def _document(request: "CapturedRequest", result: "Replay") -> dict[str, object]:
    logged = {name: request.value(f"_{name}") for name in ("prediction_id", "model", "version", "event_time")}
    document = {"endpoint": request.endpoint, **logged, **vars(result)}
    document["inputs"] = {name: values.tolist() for name, values in result.inputs.items()}
    if isinstance(result.nodes, list):
        document["nodes"] = list(map(_node, result.nodes))
    if not isinstance(explained := result.explanation, Refused | None):
        names = [feature.name for feature in explained.features]
        document["explanation"] = {**vars(explained), "features": names, "values": explained.values[0]}
    return document


def _node(node: "tuple[str, str, Array]") -> dict[str, Any]:
    """Describe an output of a node: the shape, the first five values, and the numbers of NaN and infinite values."""
    operator, name, array = node
    flat, kind = array.reshape(-1), f"{array.dtype} {list(array.shape)}"
    counts = {"nan": int((flat != flat).sum()), "infinite": int(((flat == inf) | (flat == -inf)).sum())}
    return {"operator": operator, "output": name, "type": kind, "values": list(flat[:5]), **counts}


def _lines(request: "CapturedRequest", result: "Replay", row: int) -> Iterator[str]:
    model, version = request.value("_model"), request.value("_version")
    yield f"{request.endpoint}, {model} {version}, {request.value('_event_time'):%Y-%m-%d %H:%M:%S}Z"
    for output in result.outputs:
        ulps = "" if output.ulps is None else f" ({output.ulps:.3g} units in the last place)"
        place = f" at {list(output.index)}" if output.index else ""
        different = f"DIFFERENT{place}: captured {output.captured}, now {output.computed}{ulps}"
        yield f"  {output.column}: {'equal to the bit' if output.is_equal else different}"
    if not result.outputs:
        yield "  no output is captured (capture.drop, capture.mask), so nothing can be compared"
    yield from (f"  possible cause: {cause}" for cause in result.possible_causes)
    if isinstance(explained := result.explanation, Refused):
        yield f"not explained: {explained.reason}"
    elif explained is not None:
        values, base = explained.values[0], explained.base_values
        # For two classes, the contributions to the first mirror the contributions to the second.
        shown = 1 if len(base) == 2 else int((base + values.sum(axis=0)).argmax())
        total, mean = base[shown] + values[:, shown].sum(), f"{base[shown]:.4g} over {explained.background_rows} rows"
        yield f"row {row}: the output {explained.outputs[shown]} is {total:.4g}, and its mean is {mean}"
        cells, table = {name: str(column[row])[:40] for name, column in result.inputs.items()}, []
        for index in (-abs(values[:, shown])).argsort()[:20]:
            name = explained.features[index].name
            table.append((name, cells.get(name, ""), f"{values[index, shown]:+.4g}"))
        yield from align_columns([("column", "value", "contribution"), *table])
    if isinstance(result.nodes, Refused):
        yield f"no intermediate values: {result.nodes.reason}"
    elif result.nodes:
        yield f"row {row}: outputs of the graph's nodes, computed without optimization"
        nodes = [{**node, "values": ", ".join(map(str, node["values"]))[:60]} for node in map(_node, result.nodes)]
        header = ("operator", "output", "type", "first values", "NaN", "infinite")
        yield from align_columns([header, *(tuple(map(str, node.values())) for node in nodes)])
        yield f"{result.left_out:,} nodes are left out (--nodes)"


def _backtest(endpoint: str, against: str, output: str) -> None:
    raise click.UsageError(f"--against {against} is not supported: {endpoint} {output}")
