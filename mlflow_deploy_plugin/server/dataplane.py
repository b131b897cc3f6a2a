"""The data plane: from named arrays to named arrays, free of any transport.

One request, whatever brings it: `lease` a served variant, decode with *that* variant's schema, `infer`, encode, let go
of the variant. HTTP (`http/routes.py`) does exactly this; other transports do the same.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow_deploy_plugin.errors import DeadlineExceeded, InvalidRequest
from mlflow_deploy_plugin.runtime.batch_entry import Count
from mlflow_deploy_plugin.runtime.predictor import Body, BodyAnswer, BodyReader
from mlflow_deploy_plugin.runtime.schema import Array, Feeds
from mlflow_deploy_plugin.runtime.values import shown
from mlflow_deploy_plugin.server.cache import ResponseCache, question_key
from mlflow_deploy_plugin.server.capture import CaptureWriter, RequestRecord
from mlflow_deploy_plugin.server.ids import new_id
from mlflow_deploy_plugin.server.repository import Repository
from mlflow_deploy_plugin.server.served import LoadedVersion, ServedVariant


@dataclass(slots=True)
class InferRequest:
    """Named arrays for one endpoint. Nothing changes it, nor an answer: to be frozen would cost a microsecond each.

    Attributes:
        id: the caller's, or made by the transport; it may repeat.
        inputs: arrays by ONNX input name, the batch first.
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
    body: Body | None = None
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


CountBatch = Callable[[str, int, float, float, str, str], None]
"""Endpoint, rows, seconds in the queue, seconds of the run, model, version; `Metrics.count_batch`."""


class DataPlane:
    """Answers requests from the versions of a repository and captures them.

    Args:
        count_batch: is told of every run of a model.
        cache: answers that are given again; None: every one is computed.
        default_timeout_microseconds: a request that is not being computed after it is given up; 0: never.
        draw: random numbers in [0, 1): one chooses the variant, one whether a request is captured.
        clock: the time in nanoseconds since 1970.
    """

    def __init__(
        self,
        repository: Repository,
        capture: CaptureWriter,
        count_batch: CountBatch = lambda *batch: None,
        cache: ResponseCache | None = None,
        default_timeout_microseconds: int = 0,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._repository = repository
        self._capture = capture
        self._count_batch = count_batch
        self._cache = cache
        self._timeout = default_timeout_microseconds / 1e6 or math.inf
        self._draw = draw
        self._clock = clock

    def lease(self, endpoint: str | None, version: str | None = None) -> ServedVariant:
        """The variant that answers one request of `endpoint` (None: the default one), or that has `version` of it.

        Hold it until the answer is sent.

        Raises:
            NotFound, NotReady: see `Repository.lease`.
        """
        return self._repository.lease(endpoint, self._draw(), version)

    def infer(self, variant: ServedVariant, request: InferRequest) -> InferResponse:
        """The answer of this variant, captured before it is given back. Blocks the thread, in a batcher too.

        Raises:
            InferenceError: the model refuses the input.
            InvalidRequest: the parameter `timeout` is none.
            DeadlineExceeded, TooManyRequests: its time is up, or the batcher's queue is full; nothing was computed.
        """
        arrived = self._clock() // 1000
        computed, is_cached = self._answered(variant, request)
        return self._captured(variant, request, arrived, computed, is_cached)

    def answers_later(self, endpoint: str | None) -> bool:
        """Whether `infer_later` may be asked, whichever variant of the endpoint is leased.

        Not where there is a cache: it may have to wait for Redis.
        """
        table = self._repository.table
        served = next(iter(table.values()), None) if endpoint is None else table.get(endpoint)
        if served is None or self._cache is not None:
            return False
        return all(variant.loaded.batcher is not None for variant in served.variants.values())

    def infer_later(
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
                return
            done(self._captured(variant, request, arrived, BodyAnswer(b"", request.inputs, outputs), None))

        batcher.submit(request.inputs, request.outputs, self._deadline(request), self._count(variant), computed)

    def _captured(
        self, variant: ServedVariant, request: InferRequest, arrived: int, computed: BodyAnswer, is_cached: bool | None
    ) -> InferResponse:
        """The answer, once it is in the spool."""
        prediction_id = new_id()
        if computed.feeds and variant.capture.fraction > self._draw():
            self._capture.write(
                RequestRecord(
                    variant.endpoint,
                    variant.name,
                    request.id,
                    prediction_id,
                    arrived if request.event_time is None else request.event_time,
                    arrived,
                ),
                variant.loaded.captured,
                computed.feeds,
                computed.outputs,
                variant.capture.max_rows_per_request,
            )
        return InferResponse(
            request.id,
            prediction_id,
            variant.loaded.model,
            variant.loaded.version,
            variant.name,
            computed.outputs,
            computed.content,
            is_cached,
        )

    def _answered(self, variant: ServedVariant, request: InferRequest) -> tuple[BodyAnswer, bool | None]:
        """What the version answers, what of that is captured, and whether it was in the cache."""
        deadline = self._deadline(request)
        loaded = variant.loaded
        if request.body is not None:
            if not isinstance(loaded.predictor, BodyReader):
                raise TypeError(f"version {loaded.version} of {loaded.model} reads no bodies itself")
            _check_deadline(deadline)
            began = time.perf_counter()
            answered = loaded.predictor.answer(request.body, deadline)
            rows = max((len(array) for array in answered.feeds.values()), default=1)
            seconds = time.perf_counter() - began
            self._count_batch(variant.endpoint, rows, 0.0, seconds, loaded.model, loaded.version)
            return answered, None
        key = _cache_key(loaded, request) if self._cache is not None else None
        if self._cache is None or key is None:
            return BodyAnswer(b"", request.inputs, self._computed(variant, request, deadline)), None
        outputs = self._cache.get(key)
        is_cached = outputs is not None
        if outputs is None:
            outputs = self._computed(variant, request, deadline)
            self._cache.put(key, outputs)
        return BodyAnswer(b"", request.inputs, outputs), is_cached

    def _computed(self, variant: ServedVariant, request: InferRequest, deadline: float) -> dict[str, Array]:
        loaded, count = variant.loaded, self._count(variant)
        if loaded.batcher is not None:
            return loaded.batcher.run(request.inputs, request.outputs, deadline, count)
        _check_deadline(deadline)
        began = time.perf_counter()
        outputs = loaded.predictor.run(request.inputs, request.outputs, deadline)
        seconds = time.perf_counter() - began
        first = next(iter(request.inputs.values()), None)
        count(len(first) if first is not None and first.ndim else 1, 0.0, seconds)
        return outputs

    def _count(self, variant: ServedVariant) -> Count:
        """Tells the metrics of a run of this variant."""
        loaded = variant.loaded

        def count(rows: int, queue_seconds: float, compute_seconds: float) -> None:
            self._count_batch(variant.endpoint, rows, queue_seconds, compute_seconds, loaded.model, loaded.version)

        return count

    def _deadline(self, request: InferRequest) -> float:
        """When the request is to be given up, in `time.perf_counter()`: the sooner of the server's and the caller's."""
        timeout = self._timeout
        if (asked := request.parameters.get("timeout")) is not None:
            if type(asked) is not int or asked < 0:
                raise InvalidRequest(
                    f"the parameter timeout is {shown(asked)}; a whole number of microseconds is expected"
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
    return question_key(version, request.inputs, request.outputs)
