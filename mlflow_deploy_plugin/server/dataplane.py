"""The data plane: from named arrays to named arrays, free of any transport.

One request, whatever brings it: `lease` a served variant, decode with *that* variant's schema, `infer`, encode, let go
of the variant. HTTP (`http/routes.py`) does exactly this; other transports do the same.
"""

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow_deploy_plugin.runtime.predictor import Body, BodyAnswer, BodyReader
from mlflow_deploy_plugin.runtime.schema import Array, Feeds
from mlflow_deploy_plugin.server.capture import CaptureWriter, RequestRecord
from mlflow_deploy_plugin.server.repository import Repository, ServedVariant


@dataclass(frozen=True, slots=True)
class InferRequest:
    """Named arrays for one endpoint.

    Attributes:
        id: the caller's, or made by the transport; it may repeat.
        inputs: arrays by ONNX input name, the batch first.
        outputs: the ONNX outputs that are wanted; None: all.
        event_time: when what the rows describe happened, in microseconds since 1970 (UTC); None: now.
        body: what a version of the flavor python_function reads itself, in place of `inputs`.
    """

    id: str
    endpoint: str
    inputs: Feeds
    outputs: Sequence[str] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    event_time: int | None = None
    body: Body | None = None


@dataclass(frozen=True, slots=True)
class InferResponse:
    """The answer of exactly one version. `prediction_id` is made here and never repeats: feedback joins on it.

    Attributes:
        body: the answer to a `body`, ready to be sent; else empty.
    """

    id: str
    prediction_id: str
    model: str
    version: str
    variant: str
    outputs: dict[str, Array]
    body: bytes = b""


class DataPlane:
    """Answers requests from the versions of a repository and captures them.

    Args:
        draw: random numbers in [0, 1): one chooses the variant, one whether a request is captured.
        clock: the time in nanoseconds since 1970.
    """

    def __init__(
        self,
        repository: Repository,
        capture: CaptureWriter,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._repository = repository
        self._capture = capture
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
        """Computes the answer of this variant, and captures it before it is given back.

        Raises:
            InferenceError: the graph refuses the input.
        """
        arrived = self._clock() // 1000
        computed = _computed(variant, request)
        prediction_id = os.urandom(16).hex()
        if (computed.feeds or computed.outputs) and variant.capture.fraction > self._draw():
            self._capture.write(
                RequestRecord(
                    endpoint=variant.endpoint,
                    variant=variant.name,
                    request_id=request.id,
                    prediction_id=prediction_id,
                    event_time=arrived if request.event_time is None else request.event_time,
                    received_time=arrived,
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
        )


def _computed(variant: ServedVariant, request: InferRequest) -> BodyAnswer:
    """What the version computes, and what of the request is captured."""
    predictor = variant.loaded.predictor
    if request.body is None:
        return BodyAnswer(b"", request.inputs, predictor.run(request.inputs, request.outputs))
    if not isinstance(predictor, BodyReader):
        raise TypeError(f"version {variant.loaded.version} of {variant.loaded.model} reads no bodies itself")
    return predictor.answer(request.body)
