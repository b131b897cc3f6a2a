"""A captured prediction, computed again by its version, with an explanation and the
graph's intermediate values.

The whole request is computed, because the sums of a row may depend on the other rows of
the batch.
"""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.column_names import SHADOW, is_prediction
from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, OnnxserveError, Refused
from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.core.registry.model_uri import served_version_uri
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.promote.replay.traffic import Traffic, arrays_of
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog
from mlflow_deploy_plugin.serve.inference_log.tables import concat_tables
from mlflow_deploy_plugin.serve.inference_log.windows import TimeRange
from mlflow_deploy_plugin.serve.models.explainer import RowContributions
from mlflow_deploy_plugin.serve.runtime.agreement import Tolerance, compare
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.explained import check_explainable
from mlflow_deploy_plugin.serve.runtime.feeds import (
    Array,
    Feeds,
    no_batch_dimension_reason,
    slice_feeds,
)
from mlflow_deploy_plugin.serve.runtime.log_columns import output_column
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.serve.runtime.schemas.pyfunc_schema import pyfunc_schema
from mlflow_deploy_plugin.serve.runtime.session import (
    describe_error,
    import_onnxruntime,
    session_options,
)
from mlflow_deploy_plugin.serve.spool.codec import as_one_row
from mlflow_deploy_plugin.wrap.evaluation.dataset import NamedArrays
from mlflow_deploy_plugin.wrap.evaluation.explanation import contributions
from mlflow_deploy_plugin.wrap.evaluation.model import downloaded_version

_NO_GRAPH = Refused("a pyfunc has no ONNX form")
_TO_THE_BIT = Tolerance(numbers="fiub", has_signed_zeros=True)


@dataclass(frozen=True)
class OutputComparison:
    """A captured and a recomputed output. `captured` and `computed` are the values at
    `index` (row, position, …), where the difference is largest, or the types and shapes
    if `index` is empty.
    """

    column: str
    is_equal: bool
    captured: object = None
    computed: object = None
    index: tuple[int, ...] = ()

    @staticmethod
    def of(column: str, captured: Array, computed: Array | None) -> "OutputComparison":
        """Compare an output to the bit. `computed` is None if the version has no such
        output.
        """
        different = OutputComparison(column, is_equal=False, captured=_type_of(captured))
        if computed is None:
            return replace(different, computed="not computed")
        if not captured.size and not computed.size:
            # The lists of the log do not show the other dimensions of no values.
            return OutputComparison(column, is_equal=True)
        if captured.shape != computed.shape or captured.dtype.kind != computed.dtype.kind:
            return replace(different, computed=_type_of(computed))
        agreement = compare(captured, computed, _TO_THE_BIT)
        if agreement.is_same:
            return OutputComparison(column, is_equal=True)
        index = agreement.worst
        return replace(different, captured=captured[index], computed=computed[index], index=index)


@dataclass(frozen=True)
class NodeOutput:
    """An output of a node of the graph: its type and shape, its first five values, and
    its numbers of NaN and infinite values.
    """

    operator: str
    output: str
    type: str
    values: list[Any]
    nan: int
    infinite: int

    @staticmethod
    def of(operator: str, name: str, value: object) -> "NodeOutput":
        """Return an output with its first values, and its numbers of NaN and infinite
        values.
        """
        # A sequence or a mapping is shown as a text.
        array = value if isinstance(value, np.ndarray) else np.array(str(value), object)
        flat = array.reshape(-1)
        # Comparisons also work for arrays of texts.
        is_nan = flat != flat
        is_infinite = (flat == np.inf) | (flat == -np.inf)
        return NodeOutput(
            operator,
            name,
            type=_type_of(array),
            values=flat[:5].tolist(),
            nan=int(is_nan.sum()),
            infinite=int(is_infinite.sum()),
        )


@dataclass(frozen=True)
class Replay:
    """A repeated prediction. `inputs` are the captured columns, [N, …]. `explanation`
    and `nodes` are of one row. `left_out` is the number of nodes that `nodes` lacks.
    """

    endpoint: str
    version: str
    is_equal: bool
    inputs: dict[str, list[Any]]
    outputs: list[OutputComparison]
    explanation: RowContributions | Refused
    nodes: list[NodeOutput] | Refused
    left_out: int


def find_request(
    log: InferenceLog,
    prediction_id: str,
    endpoint: str = "",
) -> tuple[str, pa.Table]:
    """Return the endpoint and the rows of a request, to any endpoint unless it is
    specified. The table has the columns of the log (docs/log.md) in the order of
    `_row`. Raises NotFound with possible reasons.

    The hours are read from the newest to the oldest, and only their ids.
    """
    is_request = pc.field("_prediction_id") == prediction_id
    names = [endpoint] if endpoint else log.endpoints()
    for name in names:
        for hour in log.walk_hours(name, newest_first=True):
            ids = log.scan(hour, TimeRange(), ["_prediction_id"], [SHADOW])
            if any(len(table.filter(is_request)) for table in ids):
                tables = log.scan(hour, TimeRange(), None, [SHADOW])
                rows = [table.filter(is_request) for table in tables]
                return name, concat_tables([table for table in rows if len(table)]).sort_by("_row")
    searched = endpoint or "any endpoint"
    raise NotFound(
        f"the inference log {log.location.shown} has no prediction {prediction_id!r} of "
        f"{searched}: it arrives some seconds after the response, expires after "
        "capture.retention, and is not captured if it is not sampled (capture.fraction) or failed "
        "(`onnxserve log query NAME --failed`)"
    )


def replay_prediction(
    traffic: Traffic,
    table: pa.Table,
    *,
    row: int = 0,
    nodes: int = 20,
    debug: bool = False,
) -> Replay:
    """Compute a request again with the version that answered it, and compare the
    captured outputs.

    Args:
        table: the rows of the request, by `find_request`.
        row: the row whose explanation and nodes are in the result. All rows are
            compared.
        nodes: the maximum number of the graph's nodes in the result.
        debug: True to run `predict` of a model without an ONNX form in pdb.

    Raises InvalidConfig if the row or a column is not in the log, or `debug` is not
    possible; NotFound if the version was deleted; InvalidArtifact or InferenceError if
    it cannot compute; and the errors of `resolve`.
    """
    if row >= len(table):
        raise InvalidConfig(f"--row {row}: the log has rows 0 to {len(table) - 1} of this request")
    first = table.select(["_model", "_version"]).to_pylist()[0]
    resolved = resolve(served_version_uri(first["_model"], first["_version"]))
    with downloaded_version(resolved) as folder:
        artifact = read_served_artifact(folder)
        if artifact.flavor == PYTHON_FUNCTION:
            computed = _compute_pyfunc(traffic, table, artifact, debug)
        elif debug:
            raise InvalidConfig(
                f"{resolved.source} has an ONNX form, which pdb cannot debug: use --nodes"
            )
        else:
            computed = _compute_onnx(traffic, table, folder, resolved.source, row, nodes)
        # The server of a pyfunc reads the names of the outputs from a response.
        names = computed.artifact.prediction or tuple(computed.outputs)
        by_column = {
            output_column(names, name, array): array for name, array in computed.outputs.items()
        }
        answers = traffic.without_masked(computed.artifact, table)
        outputs = [
            OutputComparison.of(name, array, by_column.get(name))
            for name, array in arrays_of(
                answers, filter(is_prediction, answers.column_names)
            ).items()
        ]
        return Replay(
            endpoint=traffic.endpoint,
            version=resolved.source,
            is_equal=bool(outputs) and all(output.is_equal for output in outputs),
            inputs={name: array.tolist() for name, array in computed.columns.items()},
            outputs=outputs,
            explanation=computed.explanation,
            nodes=computed.nodes,
            left_out=computed.left_out,
        )


@dataclass(frozen=True, eq=False)
class _Computed:
    """The outputs of a request that was computed again.

    Attributes:
        columns: the captured columns, [N, …] by name.
        outputs: the computed outputs, [N, …] by name.
        explanation: the contributions to the selected row, or why there are none.
        nodes: the outputs of the graph's nodes for the selected row, or why there are
            none.
        left_out: the number of nodes that `nodes` lacks.
    """

    artifact: Artifact
    columns: NamedArrays
    outputs: Mapping[str, Array]
    explanation: RowContributions | Refused = _NO_GRAPH
    nodes: list[NodeOutput] | Refused = _NO_GRAPH
    left_out: int = 0


def _compute_onnx(
    traffic: Traffic,
    table: pa.Table,
    folder: Path,
    source: str,
    row: int,
    most_nodes: int,
) -> _Computed:
    """Compute the captured request again with the ONNX version of a folder.

    Args:
        table: the captured rows of the request.
        source: the version, for messages.
        row: the row to explain.
        most_nodes: the most nodes of the graph whose outputs are listed.
    """
    model = OnnxModel.load(folder)
    artifact = model.artifact
    schema = model.schema if model.schema.columns else model.schema.tensor_schema
    traffic.require(source, artifact, schema.dtypes, table.column_names)
    columns = arrays_of(table, schema.dtypes)
    if schema.has_rows:
        feeds = schema.from_columns(columns)
        outputs = model.run(feeds)
    else:
        feeds = schema.from_columns({name: array[0] for name, array in columns.items()})
        outputs = as_one_row(model.run(feeds))
    explained_feeds = feeds
    if not no_batch_dimension_reason(artifact):
        explained_feeds = slice_feeds(feeds, slice(row, row + 1))
    try:
        check_explainable(artifact)
        explanation: RowContributions | Refused = contributions(
            model, explained_feeds, max_evals=None, seed=0, progress=lambda line: None
        ).rows
    except OnnxserveError as error:
        explanation = Refused(error.message)
    graph_feeds = model.graph_feeds(explained_feeds)
    shown = _node_outputs(artifact.onnx_file, graph_feeds, most_nodes)
    return _Computed(artifact, columns, outputs, explanation, *shown)


def _compute_pyfunc(
    traffic: Traffic,
    table: pa.Table,
    artifact: Artifact,
    debug: bool,
) -> _Computed:
    """Compute the outputs of a model without an ONNX form, in pdb with `debug`. Raises
    InvalidConfig if the log lacks its inputs.
    """
    # The import of mlflow.pyfunc takes a second.
    from mlflow_deploy_plugin.serve.pyfunc.scorer import load_scorer

    if artifact.undescribed:
        raise InvalidConfig(
            "the log lacks the inputs of a pyfunc whose signature has neither columns of numbers "
            "and texts nor named tensors: log the model with such a signature"
        )
    schema = pyfunc_schema(artifact)
    traffic.require("the version", artifact, schema.dtypes, table.column_names)
    columns = arrays_of(table, schema.dtypes)
    # The output of the model must not mix with the result.
    stream = sys.stdout if debug else sys.stderr
    with redirect_stdout(stream):
        scorer = load_scorer(artifact.folder)
        if debug:
            scorer.debug()
        outputs = dict(scorer.predict(schema.from_columns(columns)).arrays["outputs"])
    return _Computed(artifact, columns, outputs)


def _type_of(array: Array) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _node_outputs(
    onnx_file: Path,
    feeds: Feeds,
    most: int,
) -> tuple[list[NodeOutput] | Refused, int]:
    """Return the outputs of the first `most` nodes in the order of the graph, or why
    they cannot be computed; and the number of nodes that are left out. Constants are
    not counted, and a loop is a node.
    """
    import onnx  # The import takes 0.2 s, and a pyfunc does not need it.

    proto = onnx.load(onnx_file, load_external_data=False)
    nodes = [node for node in proto.graph.node if node.op_type != "Constant"]
    outputs: dict[str, str] = {}
    for node in nodes[:most]:
        outputs |= {name: node.op_type for name in node.output if name}
    # The graph with all outputs is written next to its external weights.
    extended_file = onnx_file.with_name("all-outputs.onnx")
    declared = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in outputs if name not in declared
    )
    onnx.save(proto, extended_file)
    try:
        module = import_onnxruntime()
        options = session_options(module, intra_op_num_threads=1)
        # The optimization would remove nodes.
        options.graph_optimization_level = module.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = module.InferenceSession(
            str(extended_file), options, providers=["CPUExecutionProvider"]
        )
        # ONNX Runtime reads [] as all outputs.
        values = list(session.run(list(outputs), feeds)) if outputs else []
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises a dozen unrelated classes here
        return Refused(describe_error(error)), 0
    described = [
        NodeOutput.of(operator, name, value)
        for (name, operator), value in zip(outputs.items(), values, strict=True)
    ]
    return described, max(0, len(nodes) - most)
