"""The steps of an endpoint around the pipeline and the plans, and calls of other
endpoints within steps.

The order is decode, `before`, run, `after`, encode. What the model sees is captured in
the usual columns. What came in is captured in the column `SENT`.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import orjson

from mlflow_deploy_plugin.core.errors import InvalidConfig, SchemaMismatch, StepFailed
from mlflow_deploy_plugin.serve.inference.dataplane import InferRequest
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.protocols.protocol import EncodedResponse, InferResponse
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, object_array
from mlflow_deploy_plugin.serve.runtime.schemas.keyed_schema import add_keys
from mlflow_deploy_plugin.serve.runtime.schemas.schema import columns_of
from mlflow_deploy_plugin.serve.runtime.steps import SENT, STEPS, Request, StepName
from mlflow_deploy_plugin.serve.runtime.values import short_repr
from mlflow_deploy_plugin.serve.variants import ServedVariant

Encode = Callable[[ServedVariant, InferResponse], EncodedResponse]
_SENT_CHARACTERS = 4096
"""The longest captured row of what came in. A longer row is captured as null."""
_MOST_CALLS = 8
_LOOP_SHARE = 0.9
"""The share of `request_timeout_seconds` after which a step is interrupted. gunicorn
replaces a worker whose loop is blocked for the whole time.
"""


class _Step(NamedTuple):
    """The step that runs in this context. `chain` has the endpoints that called each
    other.
    """

    server: Server
    request: Request
    chain: tuple[str, ...]


_running: ContextVar[_Step] = ContextVar("onnxserve_step")


def add_steps(
    server: Server,
    variant: ServedVariant,
    decoded: tuple[Any, Encode],
    headers: Mapping[str, str],
    request_id: str,
    deadline: float,
) -> tuple[Feeds, Encode]:
    """Return the feeds that `before` makes of the decoded columns, and an encoder of
    what `after` returns. Without a step, they are the decoded ones.

    Args:
        decoded: the decoded columns, or the feeds without a step `before`; and the
            encoder of the protocol.
        deadline: in `time.perf_counter()`.

    Raises StepFailed, StepRefused or StepTimeout.
    """
    columns, encode = decoded
    assert variant.steps is not None
    if variant.steps.before is None:
        inputs = variant.schema.to_columns(columns)
    else:
        inputs = columns
    last = time.perf_counter() + _LOOP_SHARE * server.spec.request_timeout_seconds
    request = Request(
        inputs, MappingProxyType(headers), request_id, variant.endpoint, min(deadline, last)
    )
    step = _Step(server, request, (variant.endpoint,))
    feeds = _feed(variant, step, columns)
    if variant.steps.after is None:
        return feeds, encode

    def encode_after(_: ServedVariant, response: InferResponse) -> EncodedResponse:
        answer = _run(variant, step, "after", _copies(response.outputs), request)
        answering, outputs = _named(variant, answer, variant.schema.count_rows(feeds))
        try:
            return encode(
                answering,
                InferResponse(
                    response.id, response.prediction_id, outputs, is_cached=response.is_cached
                ),
            )
        except (TypeError, ValueError) as error:
            raise StepFailed(f"step after: its answer cannot be encoded: {error}") from None

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

    Raises NotFound, NotReady, SchemaMismatch, InvalidConfig outside a step or for a
    cycle of endpoints, and the errors of the endpoint.
    """
    caller = _running.get(None)
    if caller is None:
        raise InvalidConfig("onnxserve.call can be used only in the steps of an endpoint")
    server, request, chain = caller
    chain = (*chain, endpoint)
    if endpoint in chain[:-1]:
        raise InvalidConfig(f"the steps call each other in a cycle: {' → '.join(chain)}")
    if len(chain) > _MOST_CALLS:
        raise InvalidConfig(
            f"the steps call more than {_MOST_CALLS} endpoints: {' → '.join(chain)}"
        )
    variant = server.repository.select_variant(endpoint, headers=request.headers)
    columns = dict(inputs)
    sent = Request(columns, request.headers, request.id, endpoint, request.deadline)
    step = _Step(server, sent, chain)
    if variant.steps is None or variant.steps.before is None:
        columns = variant.schema.from_columns(columns)
    feeds = columns if variant.steps is None else _feed(variant, step, columns)
    now = time.perf_counter()
    left = {"timeout": max(int((request.deadline - now) * 1e6), 1)}
    outputs = server.dataplane.infer(variant, InferRequest(request.id, feeds, left)).outputs
    if variant.steps is None or variant.steps.after is None:
        return outputs
    return _run(variant, step, "after", _copies(outputs), sent)


def _run(variant: ServedVariant, step: _Step, name: StepName, *arguments: Any) -> Any:
    assert variant.steps is not None
    token = _running.set(step)
    try:
        return variant.steps.run(name, *arguments)
    finally:
        _running.reset(token)


def _copies(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return copies, because the outputs of the model are captured after the step."""
    return {name: array.copy() for name, array in outputs.items()}


def _feed(variant: ServedVariant, step: _Step, columns: Any) -> Feeds:
    """Return the feeds with the captured columns of the steps. `columns` are feeds
    without a step `before`.
    """
    steps = variant.steps
    assert steps is not None
    schema = variant.schema
    if steps.before is None:
        digests = object_array([steps.digest] * schema.count_rows(columns))
        return _with_captured(variant, columns, {STEPS: digests})
    texts = _sent_texts(variant, columns)
    inputs = _run(variant, step, "before", step.request)
    if not isinstance(inputs, Mapping):
        raise StepFailed(
            f"step before: it returned {short_repr(inputs)}; a mapping from the model's inputs to "
            "lists or arrays is expected"
        )
    keys = {name: columns[name] for name in variant.capture.keys if name in columns}
    try:
        feeds = schema.from_columns({**keys, **inputs})
    except SchemaMismatch as error:
        if error.column in columns and inputs.get(error.column) is columns[error.column]:
            raise  # The caller has sent these values, and the step has not changed them.
        raise StepFailed(
            f"step before: its inputs do not fit the model: {error.message}", column=error.column
        ) from None
    rows = schema.count_rows(feeds)
    if rows != len(texts):
        raise StepFailed(f"step before: it returned {rows} rows for {len(texts)} rows")
    digests = object_array([steps.digest] * rows)
    return _with_captured(variant, feeds, {SENT: object_array(texts), STEPS: digests})


def _with_captured(variant: ServedVariant, feeds: Feeds, captured: Mapping[str, Array]) -> Feeds:
    if not variant.schema.has_rows:
        captured = {name: array.reshape(()) for name, array in captured.items()}
    return add_keys(feeds, captured)


def _sent_texts(variant: ServedVariant, columns: Mapping[str, Any]) -> list[str | None]:
    """Return each row of what came in as JSON, without columns that are not captured or
    masked. Raises StepFailed if the columns do not have the same number of rows.
    """
    capture = variant.capture
    left_out = {*capture.drop, *capture.mask}
    lists = {}
    for name, values in columns.items():
        lists[name] = values.tolist() if isinstance(values, np.ndarray) else values
    if not variant.schema.has_rows:
        rows = [lists]
    else:
        try:
            rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
        except (TypeError, ValueError):
            raise SchemaMismatch("the columns do not have the same number of values") from None
    texts: list[str | None] = []
    for row in rows:
        for name in left_out:
            row.pop(name, None)
        text = orjson.dumps(row, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        texts.append(text if len(text) <= _SENT_CHARACTERS else None)
    return texts


def _named(
    variant: ServedVariant, answer: Any, rows: int
) -> tuple[ServedVariant, dict[str, Array]]:
    """Return what `after` returned as arrays by name, and the variant that encodes
    them. Raises StepFailed unless each array has one entry per row.
    """
    are_rows = isinstance(answer, list) and bool(answer) and isinstance(answer[0], Mapping)
    columns = answer
    if are_rows:
        columns = columns_of(answer, answer[0])
    elif not isinstance(answer, Mapping):
        names = variant.loaded.predictor.artifact.prediction
        columns = {names[0] if len(names) == 1 else "prediction": answer}
    outputs = {}
    for name, values in columns.items():
        array = _as_array(values)
        shape = array.shape[:1]
        if variant.schema.has_rows and shape != (rows,):
            found = f"{shape[0]} entries" if shape else short_repr(values)
            raise StepFailed(
                f"step after: {str(name)[:60]!r} has {found} for {rows} rows; one entry per row is "
                "expected"
            )
        outputs[str(name)] = array
    return variant.answering(tuple(outputs), are_rows), outputs


def _as_array(values: Any) -> Array:
    """Return a column of an answer as an array of numbers, booleans or objects."""
    if isinstance(values, list | tuple):
        if not all(isinstance(value, int | float | np.generic | list) for value in values):
            return object_array(values)
        with suppress(ValueError):  # The lists have different lengths.
            array = np.asarray(values)
            if array.dtype.kind != "U":  # numpy turns the numbers next to texts into texts.
                return array
        return object_array(values)
    array = np.asarray(values)
    return array.astype(object) if array.dtype.kind == "U" else array
