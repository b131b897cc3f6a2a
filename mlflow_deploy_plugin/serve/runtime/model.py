"""Loaded versions as functions of named arrays: the protocol `Predictor` of the data
plane, and `OnnxModel`.
"""

import logging
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mlflow_deploy_plugin.core.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    DeviceMemoryFull,
    InferenceError,
    InvalidArtifact,
    NotReady,
    OnnxserveError,
    pass_exit,
)
from mlflow_deploy_plugin.core.processes.memory import bytes_left
from mlflow_deploy_plugin.serve.runtime import session as sessions
from mlflow_deploy_plugin.serve.runtime.artifact import (
    INTEGERS,
    Artifact,
    Input,
    Output,
    Tensor,
    check_digests,
    read_artifact,
)
from mlflow_deploy_plugin.serve.runtime.binding import GraphSession, can_bind
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, join_arrays, object_array
from mlflow_deploy_plugin.serve.runtime.refusals import REFUSED_ROWS, check_rows
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema, compile_schema
from mlflow_deploy_plugin.serve.runtime.session import (
    FORESTS,
    ON_CPU,
    Arena,
    Placement,
    describe_error,
    quiet_options,
)
from mlflow_deploy_plugin.serve.runtime.tokenizer import Run, TextBudget, TextTokenizer
from mlflow_deploy_plugin.serve.runtime.tree_operator import has_tree_operator
from mlflow_deploy_plugin.serve.runtime.values import numpy_dtype, too_many_values

if TYPE_CHECKING:
    import onnxruntime as ort

logger = logging.getLogger(__name__)

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    "tensor(string)": "str",
    **{f"tensor({dtype})": dtype for dtype in INTEGERS},
}
_UNKNOWN = re.compile(r"unk__\d+$")
"""The names that tf2onnx and shape inference generate for unknown sizes. Such names are
not dimension names.
"""
_FATAL_IF_EMPTY = {"ConvTranspose", "DynamicQuantizeLSTM", "GRU", "LSTM"}
"""The operators of ONNX Runtime 1.31 that crash the process if they receive no rows,
steps or pixels.
"""
_SMALL_RUN = (16,)
"""The maximum first dimension of a run that needs little memory (`Arena`). A scalar
always needs little memory.
"""
RUN_ROWS = 2**12
"""The maximum number of rows in one run. Larger runs take more memory and are not
faster per row.
"""
_LACKS_MEMORY = re.compile(
    r"Failed to allocate memory|Available memory of \d+ is smaller|out of memory|ALLOC_FAILED"
    r"|bad_alloc"
)
_LOST_DEVICE = re.compile(r"(?:CUDA|CUDNN|CUBLAS) failure \d+")
"""ONNX Runtime's messages of a run without memory (of its arena, CUDA, cuBLAS and
cuDNN), and of a GPU that failed. After such a failure, CUDA computes nothing in this
process.
"""
_MANY_VALUES = 10_000
_VALUE_BYTES = 64
"""The least number of values before whose encoding the memory is checked, and the bytes
for each.
"""
_VALUES_OF_ONE = {"str": 4, "map": 16}
"""The number of numeric values that take as much memory as one text, or as one mapping
of a ZipMap.
"""


class Predictor(Protocol):
    """One version as a function of named arrays; usually an `OnnxModel`.

    Attributes:
        queue_seconds: the seconds that the last `run` (or `answer`) of this thread
            waited in the queue.
        unavailable_reason: the reason why the version cannot compute now; empty if it
            can.
    """

    artifact: Artifact
    schema: Schema

    @property
    def queue_seconds(self) -> float: ...

    @property
    def unavailable_reason(self) -> str: ...

    def run(
        self, feeds: Feeds, outputs: Sequence[str] | None = None, deadline: float = math.inf
    ) -> dict[str, Array]:
        """Compute the named outputs (default: all outputs) for feeds that `schema` has
        made.

        Raises:
            InferenceError: the model refuses the input.
            DeviceMemoryFull: the device lacks memory for these rows.
            NotReady: the GPU failed.
            BodyTooLarge: the outputs have more values than `limit_values` allows.
            DeadlineExceeded: the computation did not start by `deadline`, in
                `time.perf_counter()`.
        """
        ...

    def prediction(
        self, outputs: Mapping[str, Array], of_table: bool = False
    ) -> Array | dict[str, Array]:
        """Return the result of `predict` for the outputs of `run`. `of_table` is True
        if the request was a table.
        """
        ...

    def limit_values(self, most: int, batch_rows: int = 1) -> None:
        """Refuse requests whose outputs have more than `most` values, multiplied by
        `batch_rows` for a batch.
        """
        ...


@dataclass(frozen=True, slots=True)
class OpaqueBody:
    """The body of a request that only the version can decode, because some inputs of
    the version are not arrays.

    If `is_streamed` is True, the answer is sent as events. `keys` are columns that are
    captured but not model inputs.
    """

    content_type: str
    content: bytes
    is_streamed: bool = False
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OpaqueResponse:
    """The JSON that answers an `OpaqueBody`.

    `feeds` and `outputs`, which may be empty, contain the inputs and outputs that are
    arrays, as in `Predictor.run`.
    """

    content: bytes
    feeds: Feeds
    outputs: dict[str, Array]


class OnnxModel:
    """A loaded graph, as a `Predictor`.

    `max_text_characters` is the maximum number of characters that are tokenized for a
    request to a text model. `has_faster_trees` is True if a graph with trees uses the
    library of onnxserve-trees.
    """

    queue_seconds = 0.0
    unavailable_reason = ""
    max_text_characters = sys.maxsize
    has_faster_trees = False

    def __init__(
        self, artifact: Artifact, session: "ort.InferenceSession", placement: Placement
    ) -> None:
        if not artifact.inputs:
            artifact = _bind_stock_model(artifact, session)
        nodes = (*session.get_inputs(), *session.get_outputs())
        dimensions = {}
        for node in nodes:
            dimensions[node.name] = tuple(  # A dimension may have no name.
                size if isinstance(size, str) and not _UNKNOWN.match(size) else ""
                for size in node.shape or ()
            )
        inputs = tuple(
            replace(entry, dimension_names=dimensions.get(entry.name, ()))
            for entry in artifact.inputs
        )
        self.artifact = replace(artifact, inputs=inputs)
        self.schema = compile_schema(
            artifact.columns,
            artifact.tensors,
            inputs,
            artifact.outputs,
            artifact.refusals,
            is_foreign=artifact.framework == "onnx",
            unread=artifact.unread,
        )
        self._output_names = [output.name for output in artifact.outputs]
        self._has_columns = bool(artifact.columns)
        # Only the parity check proves that rows are independent, because it computes
        # rows together with other rows.
        self._has_free_rows = self._has_columns and self.artifact.parity_state == "proven"
        self._marks = [node.name for node in session.get_outputs() if node.name == REFUSED_ROWS]
        if self._marks:
            self._reason = session.get_modelmeta().custom_metadata_map.get(
                REFUSED_ROWS, "the original refuses it"
            )
        row_outputs = self._row_outputs(dimensions)
        self._row_values = sum(  # A free size counts as 1 until a run shows the size.
            _VALUES_OF_ONE.get(output.dtype, 1) * abs(math.prod(output.shape[1:]))
            for output in row_outputs
        )
        self._has_free_sizes = False
        for output in artifact.outputs:
            sizes = output.shape[1:] if output in row_outputs else output.shape
            if not output.shape or -1 in sizes:
                self._has_free_sizes = True
        self._fatal_if_empty = min(_FATAL_IF_EMPTY & sessions.operators_of(session), default="")
        self.limit_values(sys.maxsize)
        self._tokenizer: TextTokenizer | None = None
        if artifact.tokenizer is not None:
            self._tokenizer = TextTokenizer(artifact.tokenizer)
        self._choose_runs(session, placement)

    def _row_outputs(self, dimensions: Mapping[str, tuple[str, ...]]) -> Sequence[Output]:
        """Return the outputs that have one entry per row. `dimensions` has the names of
        their dimensions.
        """
        outputs = self.artifact.outputs
        if self._has_columns:
            return outputs
        if not self.schema.has_rows:
            return ()
        # An output whose first dimension has another name does not have rows. An
        # example is the frames of a sound.
        of_rows = {("",), (), *(entry.dimension_names[:1] for entry in self.artifact.inputs)}
        if self.artifact.flavor != "onnx":
            of_rows.add(("batch",))  # The converters name the rows of every output `batch`.
        return [output for output in outputs if dimensions.get(output.name, ())[:1] in of_rows]

    def _choose_runs(self, session: "ort.InferenceSession", placement: Placement) -> None:
        """Set the functions that compute the first run, small runs and large runs."""
        self._is_on_nvidia = "CUDAExecutionProvider" in session.get_providers()
        self._run_once: Run = session.run
        if placement.is_on_openvino:
            self._run_once = partial(sessions.run_on_openvino, session)
        self._compute_large = self._run_once
        self._compute = self._compute_large
        self._small_run = None
        if placement.options.enable_cuda_graph and can_bind(session):
            self._compute_large = GraphSession(session, placement).run
            self._compute = self._compute_large
        elif session.get_providers() == ["CPUExecutionProvider"]:
            # Skip the Python wrapper, which repeats the schema's checks of the feeds
            # (1.1 of 4 µs per run).
            raw_session = getattr(session, "_sess", session)
            self._compute = raw_session.run
            self._compute_large = Arena(raw_session).run
            self._small_run = quiet_options()
        if self._tokenizer is not None:
            self._compute_large = self._tokenizer.feeding(self._compute_large)
            self._compute = self._compute_large
            self._run_once = self._tokenizer.feeding(self._run_once)

    @classmethod
    def load(
        cls,
        folder: Path,
        placement: Placement = ON_CPU,
        intra_op_num_threads: int = 1,
        faster_trees: bool = True,
    ) -> "OnnxModel":
        """Load an MLmodel folder. `faster_trees` is False for the sums of ONNX
        Runtime's own tree operator.

        Raises:
            InvalidArtifact: the folder or its graph cannot be used, or a file has
                changed since it was saved.
            DeviceUnavailable: the device would not be used.
            RuntimeMissing: ONNX Runtime is not installed, or is too old.
        """
        artifact = read_artifact(folder)
        check_digests(artifact)
        faster_trees = faster_trees and artifact.parity_state == "proven"
        session = sessions.open_session(
            artifact.onnx_file, placement, intra_op_num_threads, faster_trees
        )
        model = cls(artifact, session, placement)
        trees = FORESTS & sessions.operators_of(session)
        model.has_faster_trees = bool(trees) and has_tree_operator(session)
        return model

    def limit_values(self, most: int, batch_rows: int = 1) -> None:
        """Refuse requests whose outputs have more than `most` values, multiplied by
        `batch_rows`, and set the number of rows above which a run is large or divided.
        """
        self._most_values = most * batch_rows
        if self._row_values:
            self._answer_rows = max(batch_rows, most // self._row_values)
        else:
            self._answer_rows = sys.maxsize
        if self._has_free_rows:
            self._most_rows = min(RUN_ROWS, self._answer_rows)
        else:
            self._most_rows = self._answer_rows
        self._small_rows = min(_SMALL_RUN, (self._most_rows,))

    def _check_values(self, outputs: Iterable[Array], already: int = 0) -> int:
        """Return `already` plus the number of values of the outputs. Raises
        BodyTooLarge above the limit.
        """
        count = already + sum(output.size for output in outputs)
        if count > self._most_values:
            raise BodyTooLarge(too_many_values(self._most_values))
        if count > _MANY_VALUES and count * _VALUE_BYTES > bytes_left():
            raise MemoryError  # orjson would end the process.
        return count

    def run(
        self,
        feeds: Feeds,
        outputs: Sequence[str] | None = None,
        deadline: float = math.inf,
        first_row: int = 0,
        budget: TextBudget | None = None,
    ) -> dict[str, Array]:
        """Compute the named outputs, or all, in the calling thread. Raises the errors
        of `Predictor.run`.

        Args:
            deadline: used only by a text model, whose texts take several runs.
            first_row: the number of the first row in errors.
            budget: the rest of a text model's budget for the request, of which `feeds`
                are a piece; None for a complete request.
        """
        names = self._output_names if outputs is None else list(outputs)
        if self._fatal_if_empty:
            for name, array in feeds.items():
                if not array.size:  # The operator would crash the process.
                    operator = self._fatal_if_empty
                    reason = f"{name!r} is empty, which its operator {operator} does not support"
                    raise InferenceError(f"the model cannot compute this input: {reason}")
        compute = self._compute
        compute_large = self._compute_large
        if self._tokenizer is not None:
            budget = budget or TextBudget(self.max_text_characters, deadline)
            compute_large = partial(compute, budget=budget)
            compute = compute_large
        for array in feeds.values():
            if array.shape[:1] > self._small_rows:
                if len(array) > self._most_rows and (
                    joined := self._run_in_pieces(outputs, feeds, len(array), budget)
                ):
                    return joined
                compute = compute_large
                break
            if self._has_columns:  # All columns have the same length.
                break
        try:
            values = compute(names + self._marks, feeds, self._small_run)
        except BaseException as error:  # noqa: BLE001 - ONNX Runtime raises a dozen unrelated classes here
            raise self._to_our_error(error) from None
        if self._marks:
            check_rows(values.pop(), self._reason, first_row)
        for position, value in enumerate(values):
            if type(value) is list:
                values[position] = object_array(value)
        if self._has_free_sizes:
            self._check_values(values)
        return dict(zip(names, values, strict=True))

    def _to_our_error(self, error: BaseException) -> OnnxserveError:
        """Return our error for any error of a run. Raises the error if it ends the
        process (`pass_exit`).
        """
        pass_exit(error)
        # The budget of a text model is spent.
        if isinstance(error, BodyTooLarge | DeadlineExceeded):
            return error
        reason = describe_error(error)
        if isinstance(error, MemoryError) or _LACKS_MEMORY.search(reason):
            logger.warning("the device lacks memory for a run: %s", reason)
            return DeviceMemoryFull("the device lacks memory for these rows; send fewer rows", 1)
        if self._is_on_nvidia and _LOST_DEVICE.search(reason):
            logger.error("the GPU failed, and the worker starts again: %s", reason)
            sessions.must_end.set()
            return NotReady("the GPU failed, and the worker starts again; retry in a moment", 1)
        return InferenceError(f"the model cannot compute this input: {reason}")

    def _run_in_pieces(
        self, outputs: Sequence[str] | None, feeds: Feeds, rows: int, budget: TextBudget | None
    ) -> dict[str, Array]:
        """Compute a table in pieces. Return an empty mapping if an output does not have
        one entry per row. Raises BodyTooLarge for too many values.
        """
        if rows > self._answer_rows:
            raise BodyTooLarge(
                f"the answer to {rows} rows has {rows * self._row_values} values, which is too "
                f"many: send at most {self._answer_rows} rows (a larger server.max_body_bytes "
                "allows more)"
            )
        pieces = []
        count = 0
        for start in range(0, rows, RUN_ROWS):
            piece = {name: array[start : start + RUN_ROWS] for name, array in feeds.items()}
            pieces.append(self.run(piece, outputs, first_row=start, budget=budget))
            if any(
                array.shape[:1] != (min(RUN_ROWS, rows - start),) for array in pieces[-1].values()
            ):
                return {}
            count = self._check_values(pieces[-1].values(), count)
        return join_arrays(pieces)

    def try_out(self, feeds: Feeds, seconds: float) -> None:
        """Run a new graph for the first time. Raises the errors of `run`, and
        InvalidArtifact after a timeout.
        """
        options = quiet_options()
        options.add_run_config_entry("gpu_graph_id", "-1")  # CUDA graphs need fixed addresses.
        try:
            with sessions.time_limit(seconds, partial(setattr, options, "terminate", True)):
                values = self._run_once(self._output_names + self._marks, feeds, options)
        except BaseException as error:  # noqa: BLE001 - see run
            if options.terminate:
                raise InvalidArtifact(
                    f"the model did not compute its first answer within {seconds:g} s"
                ) from None
            raise self._to_our_error(error) from None
        if self._marks:
            check_rows(values.pop(), self._reason)

    def prediction(
        self, outputs: Mapping[str, Array], of_table: bool = False
    ) -> Array | dict[str, Array]:
        """Return the array of a single prediction output, or a mapping of several
        prediction outputs.

        A stock `onnx` model returns a mapping, like its pyfunc in MLflow. For columns,
        or a table without a signature, the result is an array with one record per row,
        unless an output has several values per row.
        """
        names = self.artifact.prediction
        if self.artifact.flavor != "onnx":
            if len(names) == 1:
                return outputs[names[0]]
            return {name: outputs[name] for name in names}
        arrays = {name: outputs[name] for name in names}
        is_table = self._has_columns or (of_table and not self.artifact.has_signature)
        rows = {array.shape[:1] for array in arrays.values()}
        is_single_value = len(rows) == 1 and all(
            array.size == len(array) for array in arrays.values() if array.ndim
        )
        if not is_table or not is_single_value:
            return arrays
        columns = [array.reshape(-1).tolist() for array in arrays.values()]
        return object_array(
            [dict(zip(arrays, row, strict=True)) for row in zip(*columns, strict=True)]
        )

    def graph_feeds(self, feeds: Feeds) -> Feeds:
        """Return the arrays that the graph takes: the feeds, or the tokens of a text
        model.
        """
        if self._tokenizer is None:
            return feeds
        return self._tokenizer.feeds(feeds[self.artifact.inputs[0].name].tolist())

    def example_feeds(self) -> Feeds:
        """Return a row (or a fixed batch) of zeros and empty strings to warm up a graph
        without an example.
        """
        feeds = {}
        # An empty text may have no tokens.
        text = "" if self._tokenizer is None else "a"
        for entry in self.artifact.inputs:
            shape = list(map(abs, entry.shape))  # A free size is -1.
            blank = text if entry.dtype == "str" else 0
            feeds[entry.name] = np.full(shape, blank, dtype=numpy_dtype(entry.dtype))
        return feeds


def _bind_stock_model(artifact: Artifact, session: "ort.InferenceSession") -> Artifact:
    """Bind graph inputs to the signature by name. If the names differ, bind the stacked
    columns to the only input.
    """
    inputs = [
        Input(node.name, _read_dtype(node), _read_shape(node)) for node in session.get_inputs()
    ]
    outputs = []
    for node in session.get_outputs():
        if node.name != REFUSED_ROWS:
            # By default, skl2onnx writes classifiers with a ZipMap: one mapping from
            # class to probability per row.
            dtype = "map" if node.type.startswith("seq(map(") else _read_dtype(node)
            outputs.append(Output(node.name, dtype, _read_shape(node)))
    tensors = artifact.tensors
    if artifact.columns:
        names = tuple(column.name for column in artifact.columns)
        if {entry.name for entry in inputs} <= set(names):
            inputs = [replace(entry, columns=(entry.name,)) for entry in inputs]
        elif len(inputs) == 1:
            inputs = [replace(inputs[0], columns=names)]
        else:
            raise InvalidArtifact(
                f"the graph's inputs {[entry.name for entry in inputs]} are not the signature's "
                f"columns {list(names)}"
            )
    elif not tensors:
        tensors = tuple(Tensor(entry.name, entry.dtype, entry.shape) for entry in inputs)
    prediction = tuple(output.name for output in outputs)
    return replace(
        artifact,
        tensors=tensors,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        prediction=prediction,
    )


def _read_dtype(node: "ort.NodeArg") -> str:
    """Return the dtype of a graph's tensor. Raises InvalidArtifact for any other
    value.
    """
    try:
        return _DTYPES[node.type]
    except KeyError:
        raise InvalidArtifact(
            f"the graph's {node.name!r} is a {node.type}, which cannot be served; only tensors of "
            "numbers, booleans and texts can: add a Cast or a ConcatFromSequence to the graph "
            "(onnxserve wrap converts a sequence of fixed length into tensors)"
        ) from None


def _read_shape(node: "ort.NodeArg") -> tuple[int, ...]:
    """Return the sizes of the dimensions; -1 for a free dimension."""
    return tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape or ())
