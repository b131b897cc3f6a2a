"""The steps of an endpoint around the pipeline and the plans, and calls of other
endpoints within steps.

The order is decode, `before`, run, `after`, encode. The usual columns capture the
inputs of the model, and the column `SENT` captures the columns of the request.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from mlflow_deploy_plugin.core.column_names import PREDICTION
from mlflow_deploy_plugin.core.errors import (
    InvalidConfig,
    InvalidRequest,
    SchemaMismatch,
    StepFailed,
)
from mlflow_deploy_plugin.serve.inference.auth import CREDENTIALS
from mlflow_deploy_plugin.serve.inference.dataplane import InferRequest
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.messages import without_keys
from mlflow_deploy_plugin.serve.protocols.content import dump_json
from mlflow_deploy_plugin.serve.protocols.protocol import EncodedResponse, InferResponse
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, object_array
from mlflow_deploy_plugin.serve.runtime.schemas.keyed_schema import add_keys
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema, columns_of
from mlflow_deploy_plugin.serve.runtime.schemas.sent_schema import SentColumns
from mlflow_deploy_plugin.serve.runtime.steps import (
    SENT,
    Request,
    RunningStep,
    running_step,
    step_failure,
)
from mlflow_deploy_plugin.serve.runtime.values import convert_column
from mlflow_deploy_plugin.serve.variants import ServedVariant

Encode = Callable[[ServedVariant, InferResponse], EncodedResponse]
_SENT_BYTES = 16 * 1024
"""The maximum size of a request whose columns are captured in `SENT`."""
_MOST_CALLS = 8
_LOOP_SHARE = 0.9
"""The share of `request_timeout_seconds` after which a step is interrupted. gunicorn
replaces a worker whose loop is blocked for the whole time.
"""


class _LazyColumns(Mapping[str, Any]):
    """The columns of feeds, which most steps `after` do not read."""

    def __init__(self, schema: Schema, feeds: Feeds) -> None:
        self._schema = schema
        self._feeds = feeds

    @cached_property
    def _columns(self) -> Mapping[str, Array]:
        return self._schema.to_columns(self._feeds)

    def __getitem__(self, name: str) -> Array:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def add_steps(
    server: Server,
    variant: ServedVariant,
    decoded: tuple[Any, Encode | None],
    headers: Mapping[str, str],
    request_id: str,
    deadline: float,
) -> tuple[Feeds, Encode | None]:
    """Return the feeds that `before` makes of the decoded columns, and an encoder of
    what `after` returns. Without a step, they are the decoded ones.

    Args:
        decoded: the decoded columns, or the feeds without a step `before`; and the
            encoder of the protocol (None: MLflow's JSON).
        deadline: in `time.perf_counter()`.

    Raises StepFailed, StepRefused or StepTimeout.
    """
    feeds, encode = decoded
    steps = variant.steps
    assert steps is not None
    seconds = _LOOP_SHARE * server.spec.request_timeout_seconds
    request = Request(
        SentColumns(feeds) if steps.before else _LazyColumns(variant.schema, feeds),
        MappingProxyType(
            {
                name: without_keys(value)
                for name, value in headers.items()
                if not CREDENTIALS.search(name)
            }
        ),
        request_id,
        variant.endpoint,
        min(deadline, time.perf_counter() + seconds),
    )
    running = RunningStep(request, server, (variant.endpoint,), headers)
    if steps.before:
        feeds = _run_before(variant, running)
    if steps.after is None:
        return feeds, encode

    def encode_after(_: ServedVariant, response: InferResponse) -> EncodedResponse:
        answer = steps.run("after", running, _copies(response.outputs), request)
        rows = len(next(iter(feeds.values()))) if variant.schema.has_rows else None
        answering, outputs = _named(variant, answer, rows)
        try:
            if encode is not None:
                return encode(answering, replace(response, outputs=outputs))
            prediction = answering.loaded.predictor.prediction(outputs)
            return EncodedResponse(dump_json({"predictions": prediction}))
        except (TypeError, ValueError) as error:
            reason = f"its answer cannot be encoded: {type(error).__name__}"
            raise step_failure("after", request, reason, error) from None

    return feeds, encode_after


def call(endpoint: str, inputs: Mapping[str, Any]) -> Any:
    """Return the answer of another endpoint of this server, in a step. The call is part
    of the request: it has the same id and the same deadline.

    Args:
        endpoint: the name of the endpoint.
        inputs: the columns or tensors by name; each is a list of N values or an array
            [N, …].

    Return the result of `after` of the endpoint. Without it, return the outputs of the
    model by name, each an array [N, …].

    Raises NotFound, NotReady, StepFailed if the inputs do not fit, InvalidConfig
    outside a step or for a cycle of endpoints, and the errors of the endpoint.
    """
    caller = running_step()
    if caller is None:
        raise InvalidConfig("onnxserve.call can be used only in the steps of an endpoint")
    chain = (*caller.chain, endpoint)
    if endpoint in caller.chain:
        raise InvalidConfig(f"the steps call each other in a cycle: {' → '.join(chain)}")
    if len(chain) > _MOST_CALLS:
        raise InvalidConfig(f"more than {_MOST_CALLS} steps call each other: {' → '.join(chain)}")
    request = caller.request._replace(inputs=dict(inputs), endpoint=endpoint)
    server: Server = caller.server
    variant = server.repository.select_variant(endpoint, headers=caller.headers)
    running = RunningStep(request, server, chain, caller.headers)
    steps = variant.steps
    left = {"timeout": max(int((request.deadline - time.perf_counter()) * 1e6), 1)}
    try:
        if steps is not None and steps.before:
            feeds = _run_before(variant, running)
        else:
            feeds = variant.schema.from_columns(request.inputs)
        outputs = server.dataplane.infer(variant, InferRequest(request.id, feeds, left)).outputs
    except InvalidRequest as error:  # The step is the caller.
        raise StepFailed(f"endpoint {endpoint!r} refuses the call: {error.message}") from None
    if steps is None or steps.after is None:
        return outputs
    return steps.run("after", running, _copies(outputs), request)


def _copies(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return copies, because the outputs of the model are captured after the step."""
    return {name: array.copy() for name, array in outputs.items()}


def _run_before(variant: ServedVariant, running: RunningStep) -> Feeds:
    """Return the feeds that `before` makes of the request, with the captured column."""
    columns = running.request.inputs
    schema = variant.schema
    assert variant.steps is not None
    sent = columns
    if left_out := (*variant.capture.drop, *variant.capture.mask):
        sent = {name: values for name, values in columns.items() if name not in left_out}
    # The step may change the columns.
    try:
        content = dump_json(sent)
        text = content.decode() if len(content) <= _SENT_BYTES else None
    except TypeError:  # Arrow has values without a JSON form.
        text = None
    sent_rows = len(next(iter(columns.values()))) if schema.has_rows else 1
    try:
        inputs = variant.steps.run("before", running, running.request)
    except StepFailed as failure:
        if type(failure) is StepFailed and (unfit := _unfit_column(variant, columns)):
            raise unfit from None
        raise
    if not isinstance(inputs, Mapping):
        raise StepFailed(
            f"step before: it returned {type(inputs).__name__}; a mapping from the model's inputs "
            "to lists or arrays is expected"
        )
    inputs = {name: columns[name] for name in variant.capture.keys if name in columns} | {**inputs}
    try:
        feeds = schema.from_columns(inputs)
    except SchemaMismatch as error:
        sent_values = {name: columns[name] for name in (error.column,) if name in columns}
        if sent_values and inputs.get(error.column) is columns[error.column]:
            raise  # The caller has sent these values, and the step has not changed them.
        if unfit := _unfit_column(variant, sent_values):
            raise unfit from None  # The step has only converted them, such as to an array.
        raise step_failure(
            "before",
            running.request,
            f"its inputs do not fit the model: {error.column!r}",
            error,
            error.column,
        ) from None
    if not schema.has_rows:
        return add_keys(feeds, {SENT: object_array([text]).reshape(())})
    for array in feeds.values():
        if len(array) != sent_rows:
            raise StepFailed(f"step before: it returned {len(array)} rows for {sent_rows} rows")
    return add_keys(feeds, {SENT: object_array([text] + [None] * (sent_rows - 1))})


def _unfit_column(variant: ServedVariant, sent: Mapping[str, Any]) -> SchemaMismatch | None:
    """Return the error about a sent column that does not fit the column of this name in
    the example of `before` or in the signature; None if all fit. Then a failure is the
    step's.
    """
    assert variant.steps is not None
    for column in variant.steps.columns or variant.schema.columns:
        if column.name in sent:
            try:
                values = convert_column(column, sent[column.name], None)
            except SchemaMismatch as error:
                return error
            if values.dtype.kind == "f" and np.isnan(values).any():
                return SchemaMismatch(f"column {column.name!r} has a null", column=column.name)
    return None


def _named(
    variant: ServedVariant, answer: Any, rows: int | None
) -> tuple[ServedVariant, dict[str, Array]]:
    """Return the variant that encodes what `after` returned, and the returned arrays by
    name. Raises StepFailed unless each array has one entry per row; without `rows`, the
    shape is free.
    """
    is_list = isinstance(answer, list)
    are_rows = is_list and bool(answer) and isinstance(answer[0], Mapping)
    columns = answer
    if are_rows:
        columns = columns_of(answer, answer[0])
    elif is_list or isinstance(answer, np.ndarray) or not isinstance(answer, Mapping):
        names = variant.loaded.predictor.artifact.prediction
        columns = {names[0] if len(names) == 1 else PREDICTION: answer}
    outputs = {}
    for name, values in columns.items():
        try:
            array = np.asarray(values)
        except ValueError:  # The lists have different lengths.
            array = object_array(values)
        if array.dtype.kind == "U":  # numpy turns the numbers next to texts into texts.
            array = np.array(values, dtype=object)
        if rows is not None and array.shape[:1] != (rows,):
            found = f"{len(array)} entries" if array.ndim else type(values).__name__
            raise StepFailed(
                f"step after: {str(name)[:60]!r} has {found} for {rows} rows; one entry per row is "
                "expected"
            )
        outputs[str(name)] = array
    return variant.answering(tuple(outputs), are_rows), outputs
