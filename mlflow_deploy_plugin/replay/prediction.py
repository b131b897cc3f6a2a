"""A captured prediction, computed again by its version, with an explanation and the graph's intermediate values.

The whole request is computed, because the sums of a row may depend on the other rows of the batch.
"""

import heapq
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import datetime
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, OnnxserveError, Refused
from mlflow_deploy_plugin.evaluation import downloaded_version
from mlflow_deploy_plugin.evaluation.explanation import contributions, require_shap
from mlflow_deploy_plugin.inference_log import InferenceLog, TimeRange, concat_tables
from mlflow_deploy_plugin.inference_log.reader import require_endpoint
from mlflow_deploy_plugin.logs import ProgressCallback
from mlflow_deploy_plugin.messages import join_names, one_line
from mlflow_deploy_plugin.pyfunc.process import version_differences
from mlflow_deploy_plugin.registry import ResolvedModel, resolve
from mlflow_deploy_plugin.runtime import OnnxModel, Schema, pyfunc_schema, read_served_artifact
from mlflow_deploy_plugin.runtime.artifact import PYTHON_FUNCTION, Artifact
from mlflow_deploy_plugin.runtime.explained import check_explainable
from mlflow_deploy_plugin.runtime.feeds import Array, Feeds, no_batch_dimension_reason, slice_feeds
from mlflow_deploy_plugin.runtime.log_columns import OUTPUT_PREFIX, PREDICTION, output_column
from mlflow_deploy_plugin.runtime.session import available_cores, describe_error, import_onnxruntime, session_options
from mlflow_deploy_plugin.spec import EndpointSpec, ServerSpec
from mlflow_deploy_plugin.spool import MASKED
from mlflow_deploy_plugin.spool.codec import as_one_row

if TYPE_CHECKING:
    from mlflow_deploy_plugin.pyfunc.explainer import RowContributions


@dataclass(frozen=True, eq=False)
class CapturedRequest:
    """The rows of a request to `endpoint`. `table` has the columns of the log (docs/log.md), in the order of `_row`."""

    endpoint: str
    table: pa.Table

    def value(self, column: str) -> Any:
        """Return the value in the first row, or None if the log does not have the column."""
        return self.table.column(column)[0].as_py() if column in self.table.column_names else None


@dataclass(frozen=True)
class OutputComparison:
    """A captured and a recomputed output. `captured` and `computed` are the values at `index` (row, position, …), where
    the difference is largest, or the types and shapes if `index` is empty."""

    column: str
    is_equal: bool
    captured: object = None
    computed: object = None
    index: tuple[int, ...] = ()


@dataclass(frozen=True)
class NodeOutput:
    """An output of a node of the graph: its type and shape, its first five values, and its numbers of NaN and infinite
    values."""

    operator: str
    output: str
    type: str
    values: list[Any]
    nan: int
    infinite: int


@dataclass(frozen=True)
class Replay:
    """A repeated prediction. `inputs` are the captured columns, [N, …]. `package_changes` are the differences from the
    environment in which the version was logged. `explanation` and `nodes` are of one row. `left_out` is the number of
    nodes that `nodes` lacks."""

    endpoint: str
    version: str
    event_time: datetime
    is_equal: bool
    inputs: dict[str, list[Any]]
    outputs: list[OutputComparison]
    package_changes: list[str]
    explanation: "RowContributions | Refused"
    nodes: list[NodeOutput] | Refused
    left_out: int


def find_request(log: InferenceLog, prediction_id: str, endpoint: str = "") -> CapturedRequest:
    """Return the rows of a request, to any endpoint unless it is specified. Raises NotFound with possible reasons."""
    if request := _newest_request(log, prediction_id, [endpoint] if endpoint else log.endpoints()):
        return request
    failures = log.failures
    if failed := _newest_request(failures, prediction_id, [endpoint] if endpoint else failures.endpoints()):
        message = one_line(failed.value("_message") or "the message is not captured")
        raise NotFound(
            f"the request {prediction_id} to {failed.endpoint} was not answered ({failed.value('_error_code')}: "
            f"{message}), and columns of failed requests are not captured: send the request again"
        )
    if endpoint and endpoint not in failures.endpoints():
        require_endpoint(log, endpoint)
    raise NotFound(
        f"the inference log {log.location.shown} has no prediction {prediction_id!r} of {endpoint or 'any endpoint'}: "
        "it arrives some seconds after the response, expires after capture.retention, and may not be sampled "
        "(capture.fraction); `onnxserve log stats NAME` shows the time range of the log, and the errors of its files"
    )


def _newest_request(log: InferenceLog, prediction_id: str, endpoints: Iterable[str]) -> CapturedRequest | None:
    """Return the request, or None. The hours are read from the newest to the oldest, and only their ids."""
    hours = (zip(repeat(name), log.walk_hours(name, newest_first=True), strict=False) for name in endpoints)
    for endpoint, hour in heapq.merge(*hours, key=lambda entry: entry[1].start, reverse=True):
        is_request = pc.field("_prediction_id") == prediction_id
        if any(len(ids.filter(is_request)) for ids in log.scan(hour, TimeRange(), ["_prediction_id"])):
            rows = [table.filter(is_request) for table in log.scan(hour, TimeRange(), None)]
            return CapturedRequest(endpoint, concat_tables([table for table in rows if len(table)]).sort_by("_row"))
    return None


def replay_prediction(
    request: CapturedRequest,
    spec: EndpointSpec | None,
    *,
    row: int = 0,
    nodes: int = 20,
    debug: bool = False,
    progress: ProgressCallback = lambda line: None,
) -> Replay:
    """Compute a request again with the version that answered it, and compare the captured outputs.

    Args:
        spec: the present spec of the endpoint; None if it is unknown.
        row: the row whose explanation and nodes are in the result. All rows are compared.
        nodes: the maximum number of the graph's nodes in the result.
        debug: True to run `predict` of a model without an ONNX form in pdb.

    Raises InvalidConfig if the row, a column or the version is not in the log, or `debug` is not possible; NotFound if
    the version was deleted; InvalidArtifact or InferenceError if it cannot compute; and the errors of `resolve`.
    """
    rows = len(request.table)
    if row >= rows:
        raise InvalidConfig(f"--row {row}: the log has rows 0 to {rows - 1} of this request")
    resolved = _resolve_version(request)
    progress(f"computing the request with {resolved.source}")
    with downloaded_version(resolved) as folder:
        artifact, model = read_served_artifact(folder), None
        if artifact.flavor == PYTHON_FUNCTION:
            columns, computed = _pyfunc_outputs(request, artifact, spec, debug)
        elif debug:
            raise InvalidConfig(f"{resolved.source} has an ONNX form, which pdb cannot debug: use --nodes")
        else:
            server = spec.server if spec else ServerSpec()
            threads = server.intra_op_num_threads or available_cores(server.workers)  # The server uses this formula.
            model = OnnxModel.load(folder, intra_op_num_threads=threads)
            artifact, schema = model.artifact, model.schema if model.schema.columns else model.schema.tensor_schema
            columns = _captured_columns(request, artifact, schema, spec)
            feeds = schema.from_columns(columns if schema.has_rows else {name: a[0] for name, a in columns.items()})
            computed = model.run(feeds) if schema.has_rows else as_one_row(model.run(feeds))
        names = artifact.prediction or tuple(computed)  # The server of a pyfunc reads the names from a response.
        by_column = {output_column(names, name, array): array for name, array in computed.items()}
        outputs = []
        for name in request.table.column_names:
            if name == PREDICTION or name.startswith(OUTPUT_PREFIX):
                captured, now = _array(request.table[name]), by_column.get(name)
                if not _is_masked(captured, name, now is None or now.dtype == object, spec):
                    outputs.append(_compare(name, captured, now))
        explanation: RowContributions | Refused = Refused("a pyfunc has no ONNX form")
        graph: tuple[list[NodeOutput] | Refused, int] = Refused("a pyfunc has no ONNX form"), 0
        if model is not None:
            if not no_batch_dimension_reason(artifact):
                feeds = slice_feeds(feeds, slice(row, row + 1))
            explanation = _explain(model, feeds, progress)
            graph = _node_outputs(artifact.onnx_file, model.graph_feeds(feeds), nodes)
        return Replay(
            endpoint=request.endpoint,
            version=resolved.source,
            event_time=request.value("_event_time"),
            is_equal=bool(outputs) and all(output.is_equal for output in outputs),
            inputs={name: values.tolist() for name, values in columns.items()},
            outputs=outputs,
            package_changes=version_differences(folder),
            explanation=explanation,
            nodes=graph[0],
            left_out=graph[1],
        )


def _pyfunc_outputs(
    request: CapturedRequest, artifact: Artifact, spec: EndpointSpec | None, debug: bool
) -> tuple[Feeds, Feeds]:
    """Return the captured columns and the outputs of a model without an ONNX form."""
    from mlflow_deploy_plugin.pyfunc.scorer import load_scorer  # The import of mlflow.pyfunc takes a second.

    if artifact.undescribed:
        raise InvalidConfig(
            f"the log does not contain the inputs of {request.value('_model')} as numbers and texts: only a pyfunc "
            "whose signature has columns of numbers and texts, or named tensors, can be replayed"
        )
    columns = _captured_columns(request, artifact, schema := pyfunc_schema(artifact), spec)
    with redirect_stdout(sys.stdout if debug else sys.stderr):  # The output of the model must not mix with the result.
        scorer = load_scorer(artifact.folder)
        if debug:
            scorer.debug()
        return columns, dict(scorer.predict(schema.from_columns(columns)).arrays["outputs"])


def _resolve_version(request: CapturedRequest) -> ResolvedModel:
    model, version = request.value("_model"), request.value("_version")
    if not (version.isdigit() or version.startswith("m-")):
        raise InvalidConfig(
            f"{model} was served from a folder, of which the log has no address: register the model, and serve "
            "models:/NAME/VERSION to replay its predictions"
        )
    resolved = resolve(f"models:/{version}" if version.startswith("m-") else f"models:/{model}/{version}")
    if resolved.registered_at / 1000 > request.value("_received_time").timestamp():
        raise NotFound(f"the version that answered was deleted; the present {resolved.source} is newer than the answer")
    return resolved


def _array(column: pa.ChunkedArray) -> Array:
    """Return a column of the log in its stored type, [N] or [N, …]. Texts are objects."""
    flat, shape = column.combine_chunks(), [len(column)]
    while pa.types.is_list(flat.type):
        flat, rows = flat.flatten(), len(flat)
        shape.append(len(flat) // max(rows, 1))
    array: Array = flat.to_numpy(zero_copy_only=False).reshape(shape)
    return array


def _is_masked(values: Array, name: str, is_text: bool, spec: EndpointSpec | None) -> bool:
    """Return True if all texts of a column are hashes. Only the spec shows that texts are not hashes that were sent."""
    texts = [value for value in values.flat if isinstance(value, str)]
    may_be_masked = spec is None or name in spec.capture.mask or not is_text
    return may_be_masked and bool(texts) and all(map(MASKED.fullmatch, texts))


def _captured_columns(
    request: CapturedRequest, artifact: Artifact, schema: Schema, spec: EndpointSpec | None
) -> dict[str, Array]:
    """Return the columns of the signature, [N, …] by name. Raises InvalidConfig if values are masked or dropped."""
    dropped = spec.capture.drop if spec else ()
    optional = {column.name for column in artifact.columns if not column.required and column.name not in dropped}
    columns, excluded = {}, []
    for name, dtype in schema.dtypes.items():
        if name in request.table.column_names:
            columns[name] = _array(request.table[name])
            excluded += [name] if _is_masked(columns[name], name, dtype == "str", spec) else []
        elif name not in optional:
            excluded.append(name)
    if excluded:
        raise InvalidConfig(
            f"the log lacks the values of {join_names(excluded)}, which are masked or dropped; later predictions have "
            f"all values after `onnxserve endpoint update {request.endpoint} -C capture.mask= -C capture.drop=`"
        )
    return columns


def _compare(column: str, captured: Array, computed: Array | None) -> OutputComparison:
    if computed is not None and not captured.size and not computed.size:
        return OutputComparison(column, True)  # The lists of the log do not show the other dimensions of no values.
    if computed is None or (captured.shape, captured.dtype) != (computed.shape, computed.dtype):
        shape = "not computed" if computed is None else f"{computed.dtype} {list(computed.shape)}"
        return OutputComparison(column, False, f"{captured.dtype} {list(captured.shape)}", shape)
    differs = np.asarray(captured != computed)
    if captured.dtype.kind == "f":  # Zeros of different signs differ, and NaN equals NaN.
        differs |= np.signbit(captured) != np.signbit(computed)
        differs &= ~(np.isnan(captured) & np.isnan(computed))
    if not differs.any():
        return OutputComparison(column, True)
    sizes = differs.astype(np.float64)
    if captured.dtype != object:
        with np.errstate(invalid="ignore"):  # Do not warn about infinity minus infinity.
            gaps = np.abs(captured.astype(np.float64) - computed.astype(np.float64))
        sizes = np.where(differs, np.nan_to_num(gaps, nan=np.inf), -1.0)  # Zeros of different signs differ by 0.
    index = np.unravel_index(int(sizes.argmax()), sizes.shape)
    return OutputComparison(column, False, captured[index], computed[index], tuple(map(int, index)))


def _explain(model: OnnxModel, feeds: Feeds, progress: ProgressCallback) -> "RowContributions | Refused":
    try:
        check_explainable(model.artifact)
        require_shap()
        return contributions(model, feeds, None, 0, progress)[0]
    except OnnxserveError as error:
        return Refused(error.message)


def _node_outputs(onnx_file: Path, feeds: Feeds, most: int) -> tuple[list[NodeOutput] | Refused, int]:
    """Return `nodes` and `left_out` of `Replay`, in the order of the graph and without constants. A loop is a node.

    Optimization is off, because it removes nodes. The graph with all outputs is written next to its external weights.
    """
    import onnx  # The import takes 0.2 s, and a pyfunc does not need it.

    proto, changed = onnx.load(onnx_file, load_external_data=False), onnx_file.with_name("all-outputs.onnx")
    nodes = [node for node in proto.graph.node if node.op_type != "Constant"]
    outputs = [(node.op_type, name) for node in nodes[:most] for name in node.output if name]
    declared = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for _, name in outputs if name not in declared)
    onnx.save(proto, changed)
    module = import_onnxruntime()
    options = session_options(module, intra_op_num_threads=1)
    options.graph_optimization_level = module.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = module.InferenceSession(str(changed), options, providers=["CPUExecutionProvider"])
        values = session.run([name for _, name in outputs], feeds) if outputs else []  # ONNX Runtime reads [] as all.
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises a dozen unrelated classes here
        return Refused(describe_error(error)), 0
    # A sequence or a mapping is shown as a text.
    arrays = [value if isinstance(value, np.ndarray) else np.array(str(value), object) for value in values]
    described = [_describe(*output, array) for output, array in zip(outputs, arrays, strict=True)]
    return described, max(0, len(nodes) - most)


def _describe(operator: str, output: str, array: Array) -> NodeOutput:
    flat = array.reshape(-1)
    nan, infinite = int((flat != flat).sum()), int(((flat == np.inf) | (flat == -np.inf)).sum())
    return NodeOutput(operator, output, f"{array.dtype} {list(array.shape)}", flat[:5].tolist(), nan, infinite)
