"""The data plane: from named arrays to named arrays, free of any transport.

One request, whatever brings it: `lease` a served variant, decode with *that* variant's schema, `infer`, encode, let go
of the variant. HTTP (`http/routes.py`) does exactly this; other transports do the same.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mlflow_deploy_plugin.errors import DeadlineExceeded, InvalidRequest
from mlflow_deploy_plugin.runtime import (
    Array,
    BatchCallback,
    Feeds,
    OpaqueBody,
    OpaqueBodyPredictor,
    OpaqueResponse,
    short_repr,
)
from mlflow_deploy_plugin.server.capture.codec import RequestRecord
from mlflow_deploy_plugin.server.capture.writer import CaptureWriter
from mlflow_deploy_plugin.server.inference.ids import new_id
from mlflow_deploy_plugin.server.inference.response_cache import ResponseCache, request_digest
from mlflow_deploy_plugin.server.models.repository import Repository
from mlflow_deploy_plugin.server.models.variants import (
    LoadedVersion,
    ServedEndpoint,
    ServedVariant,
    sticky_key,
)

_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True)
class InferRequest:
    """Named arrays for one endpoint. Nothing changes it, nor an answer: to be frozen would cost a microsecond each.

    Attributes:
        id: the caller's, or made by the transport; it may repeat.
        inputs: arrays by ONNX input name.
        outputs: the ONNX outputs that are wanted; None: all.
        parameters: of the protocol; `timeout` in microseconds (Triton's) is the caller's deadline.
        event_time: when what the rows describe happened, in microseconds since 1970 (UTC); None: now.
        arrived: when the request was there, in `time.perf_counter()`: its deadline counts from then; None: now.
        body: what a version of the flavor python_function reads itself, in place of `inputs`.
    """

    id: str
    endpoint: str
    inputs: Feeds
    outputs: Sequence[str] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    event_time: int | None = None
    body: OpaqueBody | None = None
    arrived: float | None = None


@dataclass(slots=True)
class InferResponse:
    """The answer of exactly one version. `prediction_id` is made here and never repeats: feedback joins on it.

    Attributes:
        body: the answer to a `body`, ready to be sent; else empty.
        is_cached: whether it was computed before; None: there is no response cache for it.
    """

    id: str
    prediction_id: str
    model: str
    version: str
    variant: str
    outputs: dict[str, Array]
    body: bytes = b""
    is_cached: bool | None = None


CountBatchCallback = Callable[[str, int, float, float, str, str], None]
"""Endpoint, rows, seconds in the queue, seconds of the run, model, version; `Metrics.count_batch`."""

MirrorCallback = Callable[[ServedVariant, RequestRecord, bool, Feeds, Mapping[str, Array], OpaqueBody | None], None]
"""Variant, record, whether that is captured, what came in and went out, and what it read itself: `Shadows.mirror`."""


class DataPlane:
    """Answers requests from the versions of a repository and captures them.

    Args:
        count_batch: is told of every run of a model.
        cache: answers that are given again; None: every one is computed.
        default_timeout_microseconds: a request that is not being computed after it is given up; 0: never.
        mirror: is given what a variant with shadows has answered; `Shadows.mirror`.
        draw: random numbers in [0, 1): one chooses the variant, one whether a request is captured.
        clock: the time in nanoseconds since 1970.
    """

    def __init__(
        self,
        repository: Repository,
        capture: CaptureWriter,
        count_batch: CountBatchCallback = lambda *batch: None,
        cache: ResponseCache | None = None,
        default_timeout_microseconds: int = 0,
        draw: Callable[[], float] = random.random,
        mirror: MirrorCallback = lambda *answered: None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._repository = repository
        self._capture = capture
        self._count_batch = count_batch
        self._cache = cache
        self._timeout = default_timeout_microseconds / 1e6 or math.inf
        self._draw = draw
        self._mirror = mirror
        self._clock = clock

    def select_variant(
        self, endpoint: str | None, version: str | None = None, headers: Mapping[str, str] = _NONE
    ) -> ServedVariant:
        """The variant that answers one request of `endpoint` (None: the default one), or that has `version` of it.

        Hold it until the answer is sent. Where it has a `key` and no version was asked for, `keep` has the last word.

        Raises:
            NotFound, NotReady: see `Repository.lease`.
        """
        served = self._served(endpoint)
        if version is None and served is not None and len(served.answering) == 1:
            return served.answering[0]
        return self._repository.select_variant(endpoint, self._draw(), version, headers)

    def sticky_variant(self, variant: ServedVariant, feeds: Feeds) -> ServedVariant:
        """The variant of the caller whom the column `variant.key` of `feeds` names, which `variant` has decoded.

        Raises:
            NotFound, NotReady: see `Repository.lease`.
        """
        key = sticky_key(variant.loaded.predictor.schema, feeds, variant.key) if variant.key is not None else None
        return variant if key is None else self._repository.sticky_variant(variant, key)

    def infer(self, variant: ServedVariant, request: InferRequest) -> InferResponse:
        """The answer of this variant, captured before it is given back. Blocks the thread, in a batcher too.

        Raises:
            InferenceError: the model refuses the input.
            InvalidRequest: the parameter `timeout` is none.
            DeadlineExceeded, TooManyRequests: its time is up, or the batcher's queue is full; nothing was computed.
        """
        arrived = self._clock() // 1000
        deadline = self._deadline(request)
        if request.body is not None:
            read = self._read_by_model(variant, request.body, deadline)
            return self._captured(variant, request, arrived, read.feeds, read.outputs, read.content)
        if self._cache is not None and (key := _cache_key(variant.loaded, request)) is not None:
            outputs = self._cache.get(key)
            is_cached = outputs is not None
            if outputs is None:
                outputs = self._computed(variant, request, deadline)
                self._cache.put(key, outputs)
            return self._captured(variant, request, arrived, request.inputs, outputs, is_cached=is_cached)
        outputs = self._computed(variant, request, deadline)
        return self._captured(variant, request, arrived, request.inputs, outputs)

    def capture_failure(
        self, variant: ServedVariant, request_id: str, status: int, seconds: float, event_time: int | None = None
    ) -> None:
        """Captures that the variant did not answer, as often as an answer would be: what fails is a share of all."""
        capture = variant.capture
        if capture.fraction == 1.0 or capture.fraction > self._draw():
            now = self._clock() // 1000
            ids = request_id, new_id()
            moment = now if event_time is None else event_time
            record = RequestRecord(variant.endpoint, variant.name, *ids, moment, now, int(seconds * 1e6), status)
            self._capture.write_failure(record, variant.captured)

    def can_infer_async(self, endpoint: str | None) -> bool:
        """Whether `infer_async` may be asked, whichever variant of the endpoint is leased.

        Not where there is a cache: it may have to wait for Redis.
        """
        served = self._served(endpoint)
        if served is None or self._cache is not None:
            return False
        return all(variant.loaded.batcher is not None for variant in served.answering)

    def infer_async(
        self, variant: ServedVariant, request: InferRequest, done: Callable[[InferResponse | Exception], None]
    ) -> None:
        """As `infer`, for an event loop: `done` is given the answer, or what `infer` would raise, in another thread.

        Raises:
            InvalidRequest: the parameter `timeout` is none.
        """
        batcher = variant.loaded.batcher
        if batcher is None:
            raise TypeError("only a batched version answers later")
        arrived = self._clock() // 1000

        def computed(outputs: dict[str, Array] | Exception) -> None:
            if isinstance(outputs, Exception):
                done(outputs)
            else:
                done(self._captured(variant, request, arrived, request.inputs, outputs))

        batcher.submit(request.inputs, request.outputs, self._deadline(request), self._count(variant), computed)

    def _served(self, endpoint: str | None) -> ServedEndpoint | None:
        table = self._repository.table
        return next(iter(table.values()), None) if endpoint is None else table.get(endpoint)

    def _captured(
        self,
        variant: ServedVariant,
        request: InferRequest,
        arrived: int,
        feeds: Feeds,
        outputs: dict[str, Array],
        body: bytes = b"",
        is_cached: bool | None = None,
    ) -> InferResponse:
        """The answer, once it is in the spool."""
        loaded, capture = variant.loaded, variant.capture
        prediction_id = new_id()
        fraction = capture.fraction
        is_captured = bool(feeds) and (fraction == 1.0 or fraction > self._draw())
        if not is_captured:
            self._capture.count_excluded(variant.endpoint, loaded.predictor.schema.count_rows(feeds or outputs))
        if is_captured or variant.shadows:
            moment = arrived if request.event_time is None else request.event_time
            if request.arrived is None:
                latency = self._clock() // 1000 - arrived
            else:
                latency = int((time.perf_counter() - request.arrived) * 1e6)
            record = RequestRecord(variant.endpoint, variant.name, request.id, prediction_id, moment, arrived, latency)
            if is_captured:
                self._capture.write(record, variant.captured, feeds, outputs, capture.max_rows_per_request)
            if variant.shadows:
                self._mirror(variant, record, is_captured, feeds, outputs, request.body)
        return InferResponse(
            request.id, prediction_id, loaded.model, loaded.version, variant.name, outputs, body, is_cached
        )

    def _read_by_model(self, variant: ServedVariant, body: OpaqueBody, deadline: float) -> OpaqueResponse:
        loaded = variant.loaded
        if not isinstance(loaded.predictor, OpaqueBodyPredictor):
            raise TypeError(f"version {loaded.version} of {loaded.model} reads no bodies itself")
        _check_deadline(deadline)
        began = time.perf_counter()
        answered = loaded.predictor.answer(body, deadline)
        rows = loaded.predictor.schema.count_rows(answered.feeds) if answered.feeds else 1
        seconds, waited = time.perf_counter() - began, loaded.predictor.queue_seconds
        self._count(variant)(rows, waited, seconds - waited)
        return answered

    def _computed(self, variant: ServedVariant, request: InferRequest, deadline: float) -> dict[str, Array]:
        loaded, inputs = variant.loaded, request.inputs
        if loaded.batcher is not None:
            return loaded.batcher.run(inputs, request.outputs, deadline, self._count(variant))
        if deadline != math.inf:
            _check_deadline(deadline)
        began = time.perf_counter()
        outputs = loaded.predictor.run(inputs, request.outputs, deadline)
        seconds, waited = time.perf_counter() - began, loaded.predictor.queue_seconds
        shape = next(iter(inputs.values())).shape if inputs and loaded.predictor.schema.has_rows else ()
        rows = shape[0] if shape else 1
        self._count_batch(variant.endpoint, rows, waited, seconds - waited, loaded.model, loaded.version)
        return outputs

    def _count(self, variant: ServedVariant) -> BatchCallback:
        """Tells the metrics of a run of this variant."""
        loaded = variant.loaded

        def count(rows: int, queue_seconds: float, compute_seconds: float) -> None:
            self._count_batch(variant.endpoint, rows, queue_seconds, compute_seconds, loaded.model, loaded.version)

        return count

    def _deadline(self, request: InferRequest) -> float:
        """When the request is to be given up, in `time.perf_counter()`: the sooner of the server's and the caller's."""
        timeout = self._timeout
        if request.parameters and (asked := request.parameters.get("timeout")) is not None:
            if type(asked) is not int or asked < 0:
                raise InvalidRequest(
                    f"the parameter timeout is {short_repr(asked)}; a whole number of microseconds is expected"
                )
            timeout = min(timeout, asked / 1e6 or math.inf)
        if timeout == math.inf:
            return math.inf
        return (time.perf_counter() if request.arrived is None else request.arrived) + timeout


def _check_deadline(deadline: float) -> None:
    if deadline != math.inf and time.perf_counter() >= deadline:
        raise DeadlineExceeded("the request's time was up before the model began; nothing was computed")


def _cache_key(loaded: LoadedVersion, request: InferRequest) -> bytes | None:
    """None: this answer is not to be kept."""
    if not loaded.is_deterministic:
        return None
    artifact = loaded.predictor.artifact
    version = loaded.model, loaded.version, artifact.model_id, artifact.run_id
    return request_digest(version, request.inputs, request.outputs)
