"""The data plane, which computes named output arrays from named input arrays for every
transport.
"""

import math
import random
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mlflow_deploy_plugin.core.column_names import GUARD
from mlflow_deploy_plugin.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    OnnxserveError,
    pass_exit,
)
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.serve.inference.response_cache import ResponseCache, request_digest
from mlflow_deploy_plugin.serve.inference.shadow import Shadows
from mlflow_deploy_plugin.serve.messages import new_id, without_keys
from mlflow_deploy_plugin.serve.models.pyfunc_model import PyfuncPredictor
from mlflow_deploy_plugin.serve.models.repository import Repository
from mlflow_deploy_plugin.serve.observability.metrics import CapturedRows, Metrics
from mlflow_deploy_plugin.serve.protocols.protocol import InferResponse
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, object_array
from mlflow_deploy_plugin.serve.runtime.model import OpaqueBody
from mlflow_deploy_plugin.serve.runtime.values import short_repr
from mlflow_deploy_plugin.serve.spool.captured_model import STREAM_OUTPUT
from mlflow_deploy_plugin.serve.spool.codec import RequestRecord
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter
from mlflow_deploy_plugin.serve.variants import ServedVariant, sticky_key

_MOST_CAPTURED_BYTES = 1024 * 1024
"""The maximum number of captured bytes of a streamed response. Later parts of the
response are not captured.
"""
_MESSAGE_CHARACTERS = 500
_COLUMN_CHARACTERS = 100
"""The maximum captured lengths of an error's message and column name, which may quote
values of the caller.
"""
_REASON_COLUMNS = ("_error_code", "_message", "_column")


@dataclass(slots=True)
class InferRequest:
    """Named arrays for a variant. Treat requests and responses as immutable:
    `frozen=True` would cost 1 µs each.

    Attributes:
        id: the client's id, or an id that the transport created; not always unique.
        inputs: arrays by ONNX input name.
        parameters: the parameters of the protocol. `timeout` in microseconds (Triton's)
            is the client's deadline.
        event_time: the time of the event that the rows describe, in µs since 1970
            (UTC); None for the time of arrival.
        body: the body, instead of `inputs`, for a version of the flavor python_function
            that parses the body itself.
        arrived: the time of arrival in `time.perf_counter()`, from which the deadline
            counts.
    """

    id: str
    inputs: Feeds
    parameters: Mapping[str, object] = field(default_factory=dict)
    event_time: int | None = None
    body: OpaqueBody | None = None
    arrived: float = field(default_factory=time.perf_counter)


@dataclass(slots=True)
class _SentParts:
    """The parts of a streamed response that were sent.

    Attributes:
        waited: the seconds that the request waited for its turn.
        first_seconds: the seconds from the arrival to the first part.
        captured: the parts up to `_MOST_CAPTURED_BYTES`.
    """

    feeds: Feeds
    waited: float
    first_seconds: float
    count: int = 0
    size: int = 0
    captured: list[bytes] = field(default_factory=list)

    def add(self, content: bytes) -> None:
        self.count += 1
        self.size += len(content)
        if self.size <= _MOST_CAPTURED_BYTES:
            self.captured.append(content)

    def outputs(self) -> dict[str, Array]:
        """Return the output `STREAM_OUTPUT`: the captured parts as a JSON list."""
        parts = b",".join(self.captured).decode()
        return {STREAM_OUTPUT: object_array([f"[{parts}]"])}


@dataclass(eq=False)
class DataPlane:
    """The component that runs requests on the versions of a repository, and captures
    the requests.

    A request is rejected if it has not begun after `default_timeout_microseconds` (0:
    no limit). `cache` is optional.
    """

    repository: Repository
    capture: CaptureWriter
    metrics: Metrics
    shadows: Shadows
    cache: ResponseCache | None
    default_timeout_microseconds: int

    def __post_init__(self) -> None:
        self._timeout = self.default_timeout_microseconds / 1e6 or math.inf

    def sticky_variant(self, variant: ServedVariant, feeds: Feeds) -> ServedVariant:
        """Return the variant for the value of `variant.key` in `feeds`. Raises the
        errors of `select_variant`.
        """
        if variant.key is None:
            return variant
        key = sticky_key(variant.loaded.predictor.schema, feeds, variant.key)
        if key is None:
            return variant
        return self.repository.select_variant(variant.endpoint, key=key)

    def infer(self, variant: ServedVariant, request: InferRequest) -> InferResponse:
        """Run the request on this variant, and capture it before returning. The caller
        waits, even with a batcher.

        Raises:
            InferenceError: the model rejects the input.
            InvalidRequest: the parameter `timeout` is invalid.
            OutOfRange: the endpoint refuses a row that is outside of the training rows.
            DeadlineExceeded, TooManyRequests: the deadline has passed, or the batcher's
                queue is full, before the run.
        """
        arrived = time.time_ns() // 1000
        deadline = self.deadline(request)
        if request.body is not None:
            predictor = variant.loaded.predictor
            prediction_id = new_id()
            assert isinstance(predictor, PyfuncPredictor)  # Only a pyfunc receives bodies.
            _check_deadline(deadline)
            began = time.perf_counter()
            answer = predictor.answer(request.body, deadline, prediction_id)
            rows = predictor.schema.count_rows(answer.feeds) if answer.feeds else 1
            waited = predictor.queue_seconds
            self.metrics.count_batch(
                variant.labels, rows, waited, time.perf_counter() - began - waited
            )
            return self._capture_response(
                variant,
                request,
                arrived,
                answer.feeds,
                answer.outputs,
                answer.content,
                prediction_id=prediction_id,
            )
        outside = None if variant.guard is None else variant.guard.check(request.inputs)
        key = None
        if self.cache is not None and variant.loaded.is_deterministic:
            key = request_digest(variant.loaded.identity, request.inputs)
        outputs = None
        is_cached: bool | None = None
        if self.cache is not None and key is not None:
            outputs = self.cache.get(key)
            is_cached = outputs is not None
        if outputs is None:
            outputs = self._run(variant, request, deadline)
            if self.cache is not None and key is not None:
                self.cache.put(key, outputs)
        return self._capture_response(
            variant, request, arrived, request.inputs, outputs, is_cached=is_cached, outside=outside
        )

    def stream(
        self, variant: ServedVariant, request: InferRequest, prediction_id: str
    ) -> Generator[bytes, None, None]:
        """Yield the parts of the response, then count and capture them as a JSON list.
        Raises the errors of `infer`.
        """
        arrived = time.time_ns() // 1000
        predictor = variant.loaded.predictor
        deadline = self.deadline(request)
        assert isinstance(predictor, PyfuncPredictor)  # Only a pyfunc receives bodies.
        assert request.body is not None
        _check_deadline(deadline)
        began = time.perf_counter()
        outcome = "abandoned"
        sent: _SentParts | None = None
        with closing(predictor.stream(request.body, deadline, prediction_id)) as parts:
            try:
                for part in parts:
                    if sent is None:
                        first_seconds = time.perf_counter() - request.arrived
                        # The seconds in the queue are stored per thread.
                        sent = _SentParts(part.feeds, predictor.queue_seconds, first_seconds)
                    sent.add(part.content)
                    yield part.content
                outcome = "complete"
            except BaseException as error:
                pass_exit(error)
                outcome = "failed"
                raise
            finally:
                if sent is not None:
                    seconds = time.perf_counter() - began - sent.waited
                    labels = variant.labels
                    self.metrics.count_batch(labels, 1, sent.waited, seconds)
                    self.metrics.count_stream(labels, outcome, sent.count, sent.first_seconds)
                    if outcome != "failed":  # The pipeline captures failed streams.
                        outputs = sent.outputs() if variant.captured.has_all_outputs else {}
                        self._capture_response(
                            variant,
                            request,
                            arrived,
                            sent.feeds,
                            outputs,
                            prediction_id=prediction_id,
                        )

    def capture_failure(
        self,
        variant: ServedVariant,
        ids: tuple[str, str],
        error: OnnxserveError,
        seconds: float,
        event_time: int | None,
    ) -> None:
        """Capture a failed request. The sampling is the same as for all requests, so
        that error rates are correct.

        `ids` are the request id and the prediction id. If `capture` drops or masks
        columns, the message is not captured, because it may quote a value. Columns
        outside the signature are not captured either, because the header of a CSV body
        may be a row.
        """
        capture = variant.capture
        if capture.fraction == 1.0 or capture.fraction > random.random():
            now = time.time_ns() // 1000
            moment = now if event_time is None else event_time
            record = RequestRecord(
                variant.endpoint,
                variant.name,
                *ids,
                moment,
                now,
                int(seconds * 1e6),
                error.http_status,
            )
            column = without_keys(error.column)
            message: str | None = None
            if not (capture.drop or capture.mask):
                message = one_line(without_keys(error.message), _MESSAGE_CHARACTERS)
            elif column not in variant.loaded.predictor.schema.names:
                column = ""
            reason = (error.error_code, message, column[:_COLUMN_CHARACTERS] or None)
            row = {
                name: object_array([text])
                for name, text in zip(_REASON_COLUMNS, reason, strict=True)
            }
            self.capture.write(record, variant.captured, {}, row, max_rows=1)

    def can_infer_async(self, endpoint: str | None) -> bool:
        """Return True if `infer_async` can run all variants of the endpoint. With a
        cache or steps, no variant can.
        """
        endpoint_name = self.repository.default_endpoint if endpoint is None else endpoint
        served = self.repository.table.get(endpoint_name or "")
        if served is None or self.cache is not None:
            return False
        return all(
            variant.loaded.batcher is not None and variant.steps is None
            for variant in served.answering
        )

    def infer_async(
        self,
        variant: ServedVariant,
        request: InferRequest,
        done: Callable[[InferResponse | BaseException], None],
    ) -> None:
        """Run like `infer`, and call `done` with the response or the error in another
        thread.

        Raises InvalidRequest if the parameter `timeout` is invalid, and OutOfRange.
        """
        outside = None if variant.guard is None else variant.guard.check(request.inputs)
        batcher = variant.loaded.batcher
        arrived = time.time_ns() // 1000
        assert batcher is not None  # `can_infer_async` has checked this.

        def capture(outputs: dict[str, Array] | BaseException) -> None:
            if isinstance(outputs, BaseException):
                done(outputs)
            else:
                feeds = request.inputs
                done(
                    self._capture_response(
                        variant, request, arrived, feeds, outputs, outside=outside
                    )
                )

        count = partial(self.metrics.count_batch, variant.labels)
        batcher.submit(request.inputs, self.deadline(request), count, capture)

    def _capture_response(
        self,
        variant: ServedVariant,
        request: InferRequest,
        arrived: int,
        feeds: Feeds,
        outputs: dict[str, Array],
        body: bytes = b"",
        is_cached: bool | None = None,
        prediction_id: str = "",
        outside: Array | None = None,
    ) -> InferResponse:
        """Write the request to the spool, mirror it to the shadows, which do not
        receive streamed requests, and return the response.

        Args:
            arrived: the time of arrival in µs since 1970.
            body: the response of a pyfunc that encodes it itself.
            is_cached: True if the outputs were in the cache, None if they cannot be.
            prediction_id: empty to create a new id.
            outside: the column `GUARD`, [N]; None if all rows are inside.
        """
        loaded = variant.loaded
        capture = variant.capture
        prediction_id = prediction_id or new_id()
        shadows = () if request.body is not None and request.body.is_streamed else variant.shadows
        fraction = capture.fraction
        logged = outputs
        if outside is not None:
            logged = {**outputs, GUARD: outside}
            self.metrics.count_guard(variant.labels, int(np.count_nonzero(outside)))
        is_captured = bool(feeds) and (fraction == 1.0 or fraction > random.random())
        captured: CapturedRows
        if not is_captured:
            captured = loaded.predictor.schema.count_rows(feeds or outputs), 0, None
        if is_captured or shadows:
            moment = arrived if request.event_time is None else request.event_time
            latency = int((time.perf_counter() - request.arrived) * 1e6)
            record = RequestRecord(
                variant.endpoint, variant.name, request.id, prediction_id, moment, arrived, latency
            )
            if is_captured:
                captured = self.capture.write(
                    record, variant.captured, feeds, logged, capture.max_rows_per_request
                )
            if shadows:
                self.shadows.mirror(variant, record, is_captured, feeds, outputs, request.body)
        self.metrics.count_capture(variant.labels[0], captured)
        return InferResponse(request.id, prediction_id, outputs, body, is_cached, outside)

    def _run(
        self, variant: ServedVariant, request: InferRequest, deadline: float
    ) -> dict[str, Array]:
        """Return the outputs of the version, whose run is counted as a batch. Raises
        the errors of `infer`.
        """
        loaded = variant.loaded
        inputs = request.inputs
        if loaded.batcher is not None:
            return loaded.batcher.run(
                inputs, deadline, partial(self.metrics.count_batch, variant.labels)
            )
        if deadline != math.inf:
            _check_deadline(deadline)
        began = time.perf_counter()
        if isinstance(loaded.predictor, PyfuncPredictor):
            outputs = loaded.predictor.run(inputs, None, deadline, request.parameters)
        else:
            outputs = loaded.predictor.run(inputs, None, deadline)
        seconds = time.perf_counter() - began
        waited = loaded.predictor.queue_seconds
        rows = 1
        if inputs and loaded.predictor.schema.has_rows:
            first = next(iter(inputs.values()))
            rows = first.shape[0] if first.shape else 1
        self.metrics.count_batch(variant.labels, rows, waited, seconds - waited)
        return outputs

    def deadline(self, request: InferRequest) -> float:
        """Return the deadline in `time.perf_counter()`: the earlier of the server's and
        the client's deadlines.
        """
        timeout = self._timeout
        requested = request.parameters.get("timeout") if request.parameters else None
        if requested is not None:
            if type(requested) is not int or requested < 0:
                raise InvalidRequest(
                    f"the parameter timeout is {short_repr(requested)}; a whole number of "
                    "microseconds is expected"
                )
            timeout = min(timeout, requested / 1e6 or math.inf)
        return request.arrived + timeout


def _check_deadline(deadline: float) -> None:
    if time.perf_counter() >= deadline:
        raise DeadlineExceeded("the request's deadline passed before the model ran")
