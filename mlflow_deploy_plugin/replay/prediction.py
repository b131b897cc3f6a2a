"""A captured prediction, computed again by the version that answered it.

The rows of the request are found in the inference log. The whole request is computed again, because the sums of a row
may depend on the other rows of its batch, and each captured output is compared bit by bit.
"""

import heapq
import pdb  # noqa: T100 - The option --pdb debugs a pyfunc.
import sys
from bdb import BdbQuit
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import repeat
from pathlib import Path
from traceback import walk_tb
from types import CodeType, FrameType
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, OnnxserveError
from mlflow_deploy_plugin.evaluation import downloaded_version
from mlflow_deploy_plugin.evaluation.explanation import contributions, require_shap
from mlflow_deploy_plugin.inference_log import InferenceLog, TimeRange, concat_tables
from mlflow_deploy_plugin.logs import ProgressCallback
from mlflow_deploy_plugin.messages import join_names
from mlflow_deploy_plugin.protocols import JSON, SideMessage
from mlflow_deploy_plugin.pyfunc.process import version_differences
from mlflow_deploy_plugin.registry import resolve
from mlflow_deploy_plugin.replay.intermediate import NodeValue, intermediate_values
from mlflow_deploy_plugin.runtime import (
    PYTHON_FUNCTION,
    Artifact,
    OnnxModel,
    Schema,
    pyfunc_schema,
    read_mlmodel,
    read_served_artifact,
)
from mlflow_deploy_plugin.runtime.explained import check_explainable
from mlflow_deploy_plugin.runtime.feeds import Array, Feeds, no_batch_dimension_reason, slice_feeds
from mlflow_deploy_plugin.runtime.log_columns import EVENT_TIME, OUTPUT_PREFIX, PREDICTION, cast_columns, output_column
from mlflow_deploy_plugin.runtime.session import available_cores
from mlflow_deploy_plugin.spec import EndpointSpec
from mlflow_deploy_plugin.spool import MASKED
from mlflow_deploy_plugin.spool.codec import as_one_row


@dataclass(frozen=True, eq=False)
class CapturedRequest:
    """The captured rows of a request, in order. `table` has the columns of the log (docs/log.md), one line per row."""

    endpoint: str
    table: pa.Table

    def value(self, column: str) -> Any:
        """Return the value of a column of the log in the first row, or None if the log does not have the column."""
        return self.table.column(column)[0].as_py() if column in self.table.column_names else None


@dataclass(frozen=True)
class OutputComparison:
    """The comparison of a captured output with the recomputed output, in the first row that differs most.

    Attributes:
        column: the column of the log: `prediction` or `output.NAME`.
        index: the row of the request, and the position in a row of several values; empty if the shapes differ.
        difference: the largest absolute difference of numbers; None for texts, and for NaN compared with a number.
        ulps: this difference in units in the last place; None unless both outputs have the same type of floats.
    """

    column: str
    is_equal: bool
    captured: object = None
    computed: object = None
    index: tuple[int, ...] = ()
    difference: float | None = None
    ulps: int | None = None


@dataclass(frozen=True)
class RowExplanation:
    """The contributions [C, K] of C columns to K outputs for a row, and the base values [K], as lists."""

    columns: list[str]
    outputs: list[str | int | float | bool]
    contributions: list[list[float]]
    base_values: list[float]
    background: str


@dataclass(frozen=True)
class Replay:
    """A repeated prediction. `row` is the row that is explained. `explanation` and `nodes` are empty if the reason in
    `not_explained` or `no_nodes` is set. `left_out` is the number of nodes that are not listed in `nodes`."""

    prediction_id: str
    endpoint: str
    model_uri: str
    event_time: datetime
    rows: int
    row: int
    inputs: dict[str, Any]
    is_equal: bool
    outputs: list[OutputComparison]
    possible_causes: list[str]
    explanation: RowExplanation | None = None
    not_explained: str = ""
    nodes: Sequence[NodeValue] = ()
    left_out: int = 0
    no_nodes: str = ""


def find_request(log: InferenceLog, prediction_id: str, endpoint: str = "") -> CapturedRequest:
    """Return the rows of a request, of any endpoint unless it is specified. Only ids are read until the id is found.

    Raises NotFound with the possible reasons, or with the error of a request that failed."""
    if request := _newest_request(log, prediction_id, [endpoint] if endpoint else log.endpoints()):
        return request
    failures = log.failures
    if failed := _newest_request(failures, prediction_id, [endpoint] if endpoint else failures.endpoints()):
        reason = f"{failed.value('_status')} {failed.value('_message') or failed.value('_error_code')}"
        raise NotFound(
            f"the request {prediction_id} to {failed.endpoint} was not answered ({reason}), and the log does not "
            "contain the columns of failed requests: send it again"
        )
    of = f" of {endpoint}" if endpoint else ""
    skipped = f"; {len(log.unreadable)} unreadable files are skipped" if log.unreadable else ""
    raise NotFound(
        f"the inference log {log.location.shown} has no prediction {prediction_id}{of}: retry some seconds after the "
        "response; older predictions may have expired (capture.retention), or were not sampled (capture.fraction); "
        f"`onnxserve log stats NAME` shows the rows of an endpoint{skipped}"
    )


def _newest_request(log: InferenceLog, prediction_id: str, endpoints: Iterable[str]) -> CapturedRequest | None:
    hours = (zip(repeat(name), log.walk_hours(name, newest_first=True)) for name in endpoints)  # noqa: B905 - endless
    for endpoint, hour in heapq.merge(*hours, key=lambda entry: entry[1].start, reverse=True):

        def rows_of_id(columns: list[str] | None) -> Iterator[pa.Table]:
            for table in log.scan(hour, TimeRange(), columns):  # noqa: B023 - consumed before the next hour
                if len(rows := table.filter(pc.equal(table.column("_prediction_id"), prediction_id))):
                    yield rows

        if next(rows_of_id(["_prediction_id"]), None) is not None and (tables := list(rows_of_id(None))):
            return CapturedRequest(endpoint, concat_tables(tables).sort_by("_row"))
    return None


def replay_prediction(
    request: CapturedRequest,
    *,
    model_uri: str = "",
    spec: EndpointSpec | None = None,
    row: int | None = None,
    nodes: int = 0,
    explain: bool = True,
    debug: bool = False,
    progress: ProgressCallback = lambda line: None,
) -> Replay:
    """Compute a request again, compare its captured outputs, and explain a row.

    Args:
        model_uri: the files of the version, if the log does not identify them (a server of a folder).
        spec: the current spec of the endpoint, which lists masked and dropped columns; None if it is unknown.
        row: the only row to compare, and the row to explain. By default all rows are compared, and row 0 is explained.
        nodes: the maximum number of nodes of the graph whose outputs are returned.
        debug: True to run the `predict` of a model without an ONNX form in pdb.
        progress: called with a line before a long step.

    Raises InvalidConfig if the row or a column was not captured, or the version cannot be identified; NotFound if the
    version was deleted; InvalidArtifact or InferenceError if it cannot be loaded or computed; and like `resolve`.
    """
    rows = len(request.table)
    if row is not None and row >= rows:
        raise InvalidConfig(f"--row {row}: the log has the rows 0 to {rows - 1} of {request.value('_prediction_id')}")
    uri = model_uri or _logged_uri(request)
    try:
        resolved = resolve(uri)
    except NotFound as error:
        raise NotFound(f"{error.message}; if the files of the version still exist, use --model URI") from None
    if resolved.registered_at / 1000 > request.value("_received_time").timestamp():
        raise InvalidConfig(
            f"{uri} was registered after this prediction, in place of a deleted version; if the files of the deleted "
            "version still exist, use --model URI"
        )
    progress(f"computing {rows:,} {'row' if rows == 1 else 'rows'} with {uri}")
    with downloaded_version(resolved) as folder:
        artifact = read_served_artifact(folder)
        answered = request.value("_version")
        if model_uri and answered.startswith("m-") and artifact.model_id != answered:
            raise InvalidConfig(f"--model {uri} is {artifact.model_id or 'another model'}, but {answered} answered")
        if debug and artifact.flavor != PYTHON_FUNCTION:
            raise InvalidConfig(f"{uri} has an ONNX form, which pdb cannot debug: use --nodes instead of --pdb")
        model, feeds, threads = None, {}, 1
        if artifact.flavor == PYTHON_FUNCTION:
            optional = {column.name for column in artifact.columns if not column.required}
            columns = _captured_columns(request, pyfunc_schema(artifact).capture_schema, spec, optional)
            computed = _pyfunc_outputs(artifact, columns, debug)
        else:
            if spec is not None:  # The server computes the number of threads in the same way (`server/assembly.py`).
                threads = spec.server.intra_op_num_threads or available_cores(spec.server.workers)
            model = OnnxModel.load(folder, intra_op_num_threads=threads)
            schema = model.schema if model.schema.columns else model.schema.tensor_schema
            columns = _captured_columns(request, schema, spec)
            feeds = schema.from_columns(columns if schema.has_rows else {k: v[0] for k, v in columns.items()})
            computed = model.run(feeds)
            computed = computed if schema.has_rows else as_one_row(computed)
            if rows > 1 and not no_batch_dimension_reason(model.artifact):
                feeds = slice_feeds(feeds, slice(row or 0, (row or 0) + 1))
        by_column = {output_column(artifact.prediction, name, array): array for name, array in computed.items()}
        outputs = [
            _compare(name, _array(request.table.column(name)), by_column.get(name), row)
            for name in request.table.column_names
            if name == PREDICTION or name.startswith(OUTPUT_PREFIX)
        ]
        is_equal = bool(outputs) and all(output.is_equal for output in outputs)
        replayed = Replay(
            prediction_id=request.value("_prediction_id"),
            endpoint=request.endpoint,
            model_uri=uri,
            event_time=request.value(EVENT_TIME),
            rows=rows,
            row=row or 0,
            inputs={name: values[row or 0] for name, values in columns.items()},
            is_equal=is_equal,
            outputs=outputs,
            possible_causes=[] if is_equal else _possible_causes(folder, model, request, spec, threads),
        )
        if model is None:
            reason = "the version has no ONNX form (it is a pyfunc)"
            return replace(replayed, not_explained=reason, no_nodes=reason)
        if explain:
            try:
                replayed = replace(replayed, explanation=_explain(model, feeds, progress))
            except OnnxserveError as error:
                replayed = replace(replayed, not_explained=error.message)
        if nodes:
            try:
                found, left_out = intermediate_values(artifact.onnx_file, model.graph_feeds(feeds), nodes)
                replayed = replace(replayed, nodes=found, left_out=left_out)
            except OnnxserveError as error:
                replayed = replace(replayed, no_nodes=error.message)
        return replayed


def _logged_uri(request: CapturedRequest) -> str:
    model, version = request.value("_model"), request.value("_version")
    if version.isdigit():
        return f"models:/{model}/{version}"
    if version.startswith("m-"):
        return f"models:/{version}"
    raise InvalidConfig(
        f"{request.value('_prediction_id')} was answered by {model} from a folder or a run, and the log does not "
        "identify its files: specify them with --model URI"
    )


def _array(column: pa.ChunkedArray) -> Array:
    """Return a column of the log as an array, [N] or [N, …], in the stored type. Texts are objects."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    while pa.types.is_list(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    return np.array(column.to_pylist(), object if is_text else kind.to_pandas_dtype())


def _captured_columns(
    request: CapturedRequest, schema: Schema, spec: EndpointSpec | None, optional: Collection[str] = ()
) -> dict[str, Array]:
    """Return the captured columns of the signature, [N, …] by name. Raises InvalidConfig if values were excluded."""
    columns, excluded = {}, []
    for name, dtype in schema.dtypes.items():
        if name not in request.table.column_names:
            if name not in optional or (spec is not None and name in spec.capture.drop):
                excluded.append(name)
            continue
        columns[name] = _array(request.table.column(name))
        known = [value for value in columns[name].flat if value is not None] if columns[name].dtype == object else []
        # A text may be a hash that was sent, so only the spec shows that a column of texts is masked.
        may_be_mask = dtype != "str" or spec is None or name in spec.capture.mask
        if known and may_be_mask and all(MASKED.fullmatch(value) for value in known):
            excluded.append(name)
    if excluded:
        raise InvalidConfig(
            f"the log lacks the values of {join_names(excluded)}, which are masked or dropped, so the prediction cannot "
            f"be computed again: `onnxserve endpoint update {request.endpoint} -C capture.mask= -C capture.drop=` "
            "captures all values of later predictions"
        )
    return cast_columns(schema.dtypes, columns)


def _pyfunc_outputs(artifact: Artifact, columns: Mapping[str, Array], debug: bool) -> Mapping[str, Array]:
    """Return the outputs of a model without an ONNX form, as its side process in a server would return them."""
    from mlflow_deploy_plugin.pyfunc.scorer import load_scorer  # The import of mlflow.pyfunc takes a second.

    # The output of the model must not mix with the result, but a debugger writes to the terminal.
    with nullcontext() if debug else redirect_stdout(sys.stderr):
        scorer = load_scorer(artifact.folder)
        if artifact.undescribed:  # The log contains objects, arrays and maps as JSON.
            signature = orjson.loads(read_mlmodel(artifact.folder)["signature"]["inputs"])
            nested = {entry["name"] for entry in signature if entry["type"] in ("object", "array", "map", "any")}
            values = [
                [orjson.loads(text) for text in array] if name in nested else array.tolist()
                for name, array in columns.items()
            ]
            records = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
            call = partial(scorer.invoke, JSON, orjson.dumps({"dataframe_records": records}))
        else:
            call = partial(scorer.predict, pyfunc_schema(artifact).from_columns(columns))
        answer = debug_call(call, scorer.predict_code) if debug else call()
    return answer.arrays.get("outputs") or answer.arrays.get("texts") or {}


def debug_call(call: Callable[[], SideMessage], code: CodeType) -> SideMessage:
    """Call a function, and start pdb at the first line of `code`, and again at an exception that the code raises."""
    debugger = pdb.Pdb()

    def stop(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is not code:
            return None
        debugger.set_trace(frame)
        return debugger.trace_dispatch

    sys.settrace(stop)
    try:
        return call()
    except OnnxserveError as refusal:
        sys.settrace(None)
        error: BaseException | None = refusal
        while error and not any(frame.f_code is code for frame, _ in walk_tb(error.__traceback__)):
            error = error.__cause__ or error.__context__
        if isinstance(error, BdbQuit):
            raise InvalidConfig("the debugger was ended before the model answered; `c` continues to the end") from None
        if error is not None:
            pdb.post_mortem(error.__traceback__)
        raise
    finally:
        sys.settrace(None)


def _compare(column: str, captured: Array, computed: Array | None, row: int | None) -> OutputComparison:
    if computed is None or computed.shape != captured.shape:
        shapes = ["not computed" if a is None else f"{a.dtype} {list(a.shape)}" for a in (captured, computed)]
        return OutputComparison(column, False, *shapes)
    first = row or 0
    if row is not None:
        captured, computed = captured[row : row + 1], computed[row : row + 1]
    is_float = captured.dtype == computed.dtype and captured.dtype.kind == "f"
    if is_float:
        bits = f"u{captured.itemsize}"
        differs = (np.ascontiguousarray(captured).view(bits) != np.ascontiguousarray(computed).view(bits)) & ~(
            np.isnan(captured) & np.isnan(computed)
        )
    else:
        differs = np.asarray(captured != computed)
    if not differs.any():
        return OutputComparison(column, True)
    gaps = differs.astype(np.float64)
    is_number = captured.dtype != object and computed.dtype != object
    if is_number:
        with np.errstate(invalid="ignore"):  # Do not warn about infinity minus infinity.
            gaps = np.abs(captured.astype(np.float64) - computed.astype(np.float64))
        gaps = np.where(differs, np.nan_to_num(gaps, nan=np.inf), -1.0)
    index = np.unravel_index(int(gaps.argmax()), gaps.shape)
    before, after = captured[index], computed[index]
    difference = float(gaps[index]) if is_number and np.isfinite(gaps[index]) else None
    return OutputComparison(
        column,
        False,
        before,
        after,
        (first + int(index[0]), *map(int, index[1:])),
        difference,
        abs(_ordinal(before) - _ordinal(after)) if is_float and difference is not None else None,
    )


def _ordinal(value: Any) -> int:
    """Return the position of a float among all floats of its type, from 0 for zero."""
    bits = int(value.view(f"i{value.itemsize}"))
    return bits if bits >= 0 else -(1 << 8 * value.itemsize - 1) - bits


def _possible_causes(
    folder: Path, model: OnnxModel | None, request: CapturedRequest, spec: EndpointSpec | None, threads: int
) -> list[str]:
    causes = []
    if differences := version_differences(folder):
        causes.append(f"this machine does not have the packages of the version: {', '.join(differences)}")
    if model is None:
        causes.append("the params of a request, and the state and randomness of a pyfunc, are not captured")
    else:
        causes.append(f"the order of sums depends on the CPU and the number of threads ({threads} here)")
    if spec is not None and model is not None:
        if spec.server.device != "cpu" or spec.server.providers:
            causes.append("the server does not compute on the CPU, but this command does")
        if spec.server.max_batch_size:
            causes.append("the server may have computed the rows together with other requests (server.max_batch_size)")
    if spec is not None and len(request.table) == spec.capture.max_rows_per_request:
        causes.append("the request may have had more rows than capture.max_rows_per_request")
    return causes


def _explain(model: OnnxModel, feeds: Feeds, progress: ProgressCallback) -> RowExplanation:
    check_explainable(model.artifact)
    require_shap()
    found, background, _ = contributions(model, feeds, None, 0, progress)
    return RowExplanation(
        columns=[feature.name for feature in found.features],
        outputs=found.outputs,
        contributions=found.values[0].tolist(),
        base_values=found.base_values.tolist(),
        background=background,
    )
