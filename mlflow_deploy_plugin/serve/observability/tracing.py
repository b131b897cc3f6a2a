"""The trace span and the access log line of a request, both optional and sampled.

Traces are sent with OTLP if the environment specifies a collector
(`OTEL_EXPORTER_OTLP_ENDPOINT`); otherwise OpenTelemetry is not imported. All variables
of the SDK apply:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/. A
thread sends the spans.
"""

import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeVar

from mlflow_deploy_plugin.core.errors import RuntimeMissing
from mlflow_deploy_plugin.core.version import __version__
from mlflow_deploy_plugin.serve.messages import RawRequest, new_id, without_keys
from mlflow_deploy_plugin.serve.spool.codec import FIRST_ERROR_STATUS

logger = logging.getLogger("mlflow_deploy_plugin.request")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_SECONDS = 1.0
_RATIOS = {"parentbased_always_on": 1.0, "parentbased_always_off": 0.0}
_FIELDS = {
    "X-Prediction-Id": "onnxserve.prediction_id",
    "X-Model-Name": "onnxserve.model",
    "X-Model-Version": "onnxserve.version",
    "X-Model-Variant": "onnxserve.variant",
    "X-Request-Id": "http.request.id",
}
"""The log field and span attribute for each response header (ECS's name if ECS has
one).
"""


def tracing_is_on(environment: Mapping[str, str] = os.environ) -> bool:
    """Return True if the environment specifies a collector (or the `otlp` exporter) and
    does not disable the SDK.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    return exporter == "otlp" or (
        not exporter and any(environment.get(name) for name in _ENDPOINTS)
    )


def open_tracer() -> "Tracer | None":
    """Return this process's tracer, or None. Raises RuntimeMissing if the OpenTelemetry
    SDK is missing.
    """
    if not tracing_is_on():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import DEFAULT_ON
    except ImportError:
        raise RuntimeMissing(
            "the environment enables OpenTelemetry traces, but the SDK is not installed: "
            "pip install 'mlflow-onnxserve[otel]'"
        ) from None
    attributes = {"service.version": __version__}
    if "OTEL_SERVICE_NAME" not in os.environ and "service.name=" not in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        # The SDK itself reads a name from the environment.
        attributes["service.name"] = "onnxserve"
    ratio = root_ratio()
    provider = TracerProvider(
        None if ratio is None else DEFAULT_ON,
        Resource.create(attributes),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracer(provider, exporter, ratio)


def root_ratio() -> float | None:
    """Return the ratio of the requests without `traceparent` that are traced; None if
    the sampler is not based on the parent, so that only the SDK can decide.
    """
    sampler = os.environ.get("OTEL_TRACES_SAMPLER", "").lower() or "parentbased_always_on"
    if sampler != "parentbased_traceidratio":
        return _RATIOS.get(sampler)
    argument = os.environ.get("OTEL_TRACES_SAMPLER_ARG", "1")
    try:
        ratio = float(argument)
    except ValueError:
        ratio = math.nan
    if 0 <= ratio <= 1:
        return ratio
    # OpenTelemetry requires that invalid values are ignored.
    logger.warning(
        "OTEL_TRACES_SAMPLER_ARG is %r; a number from 0 to 1 is expected, and until then all "
        "requests without a traceparent are traced",
        argument[:60],
    )
    return 1.0


class Tracer:
    """A tracer that creates one span per request, as a child of the client's span if
    `traceparent` is sent.

    Attributes:
        ratio: see `root_ratio`.
    """

    def __init__(self, provider: Any, exporter: Any, ratio: float | None) -> None:
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.ratio = ratio
        self._provider = provider
        self._exporter = exporter
        self._tracer = provider.get_tracer("mlflow_deploy_plugin", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER
        self.error = StatusCode.ERROR
        self._closing = threading.Event()
        # Start the thread now: workers close while the interpreter exits, and Python
        # 3.12 then cannot start a thread.
        self._closer = threading.Thread(
            target=self._shut_down, name="onnxserve-traces", daemon=True
        )
        self._closer.start()

    def selects(self, headers: Mapping[str, str], sample: float) -> bool:
        """Return False if the request has no span: its `traceparent` is not sampled, or
        is missing and `sample` is at least the ratio.
        """
        if self.ratio is None:
            return True
        # The last digit of the flags (W3C); a regular expression takes 0.4 µs more.
        digit = headers.get("traceparent", "")[54:55]
        return digit in "13579bdf" if digit else sample < self.ratio

    @contextmanager
    def request(
        self,
        name: str,
        headers: Mapping[str, str],
        attributes: Mapping[str, str],
        sample: float = 0.0,
    ) -> Iterator[tuple[Any, str]]:
        """Open the span of a request; yield it and the `traceparent` (W3C). Header
        names are in lower case. `sample` is as in `selects`.
        """
        parent = self._propagator.extract(headers)
        if not parent and self.ratio is not None and sample >= self.ratio:
            unsampled = {"traceparent": f"00-{new_id()}-{new_id()[:16]}-00"}
            parent = self._propagator.extract(unsampled)
        with self._tracer.start_as_current_span(
            name, parent, self._kind, attributes=attributes, record_exception=False
        ) as span:
            carrier: dict[str, str] = {}
            self._propagator.inject(carrier)
            yield span, carrier["traceparent"]

    def phases(self, marks: Sequence[tuple[str, float]]) -> None:
        """Add child spans to the current request after the fact, so that a request
        without a trace has no overhead.

        `marks` are (name, begin in `time.perf_counter()`) in order; the last mark only
        ends the previous span.
        """
        offset = time.time_ns() - int(time.perf_counter() * 1e9)
        for (name, begun), (_, ended) in pairwise(marks):
            span = self._tracer.start_span(name, start_time=offset + int(begun * 1e9))
            span.end(offset + int(ended * 1e9))

    def close(self) -> None:
        """Send the remaining spans, for at most a second.

        The SDK exceeds its time limit (opentelemetry-python #4568; 10 s measured), so
        the exporter is then shut down.
        """
        self._closing.set()
        self._closer.join(_FLUSH_SECONDS)
        if self._closer.is_alive():
            self._exporter.shutdown()

    def _shut_down(self) -> None:
        self._closing.wait()
        self._provider.shutdown()


class Response(Protocol):
    """The parts of a response, of any transport, that are used in its span and its log
    line.
    """

    headers: dict[str, str]
    body: bytes

    @property
    def status(self) -> int: ...


AnyResponse = TypeVar("AnyResponse", bound=Response)


@dataclass(frozen=True, slots=True)
class Observer:
    """The spans and the log lines of requests, of which one number per request selects
    some. Failed requests are always logged.

    Attributes:
        tracer: None without traces.
        log_fraction: the fraction of the successful requests that are logged; None
            without a request log.
        is_stranger: returns True for headers and a certificate's name without a valid
            key; such a request has no span.
    """

    tracer: Tracer | None = None
    log_fraction: float | None = None
    is_stranger: Callable[..., bool] = lambda headers, certificate: False

    @property
    def is_on(self) -> bool:
        return self.tracer is not None or self.log_fraction is not None

    @property
    def selects_all(self) -> bool:
        """True if no request can be left out."""
        return self.log_fraction == 1 or (self.tracer is not None and self.tracer.ratio is None)

    def selects(self, request: RawRequest) -> bool:
        """Return True if the request has a span, or a log line even if it succeeds."""
        sample = random.random()
        request.sample = sample
        if self.log_fraction is not None and sample < self.log_fraction:
            return True
        return self.tracer is not None and self.tracer.selects(request.headers, sample)

    def observe(self, request: RawRequest, handle: Callable[[], AnyResponse]) -> AnyResponse:
        """Handle the request. Trace it (header `traceparent`) if there is a tracer, and
        log it if it is selected or fails.
        """
        if not self.is_on:
            return handle()
        tracer = self.tracer
        if tracer and self.is_stranger(request.headers, request.caller):
            tracer = None
        sample = random.random() if request.sample is None else request.sample
        path = without_keys(request.path)[:500]
        fields = {
            "http.request.method": request.method[:20],
            "url.path": path,
            "client.address": request.client,
        }
        began = time.perf_counter()
        opened: AbstractContextManager[tuple[Any, str]] = nullcontext((None, ""))
        if tracer:
            # The route has placeholders for names (OpenTelemetry's HTTP conventions).
            parts = path.split("/")[:8]
            for position in range(2, len(parts)):
                if parts[position - 1] in ("models", "versions", "endpoints"):
                    parts[position] = "{" + parts[position - 1][:-1] + "}"
            opened = tracer.request(
                f"{request.method[:20]} {'/'.join(parts)[:100]}", request.headers, fields, sample
            )
        with opened as (span, traceparent):
            response = handle()
            headers = response.headers
            answer_fields = {
                field: headers[header] for header, field in _FIELDS.items() if header in headers
            }
            if request.caller:
                answer_fields["user.name"] = request.caller
            if tracer:
                response.headers["traceparent"] = traceparent
                span.set_attributes({"http.response.status_code": response.status, **answer_fields})
                # OpenTelemetry's HTTP conventions define only such statuses as errors.
                if response.status >= 500:
                    span.set_status(tracer.error)
        fraction = self.log_fraction
        is_failed = response.status >= FIRST_ERROR_STATUS
        if fraction is not None and (is_failed or sample < fraction):
            seconds = time.perf_counter() - began
            extra = {
                **fields,
                **answer_fields,
                "http.response.status_code": response.status,
                "http.request.body.bytes": len(request.body),
                "http.response.body.bytes": len(response.body),
                "event.duration": int(seconds * 1e9),
            }
            if traceparent:
                extra["trace.id"] = traceparent.split("-")[1]
            logger.info(
                "%s %s %d in %.2f ms, X-Request-Id %s%s",
                fields["http.request.method"],
                path,
                response.status,
                seconds * 1000,
                answer_fields.get("http.request.id", "-"),
                f", key {request.caller}" if request.caller else "",
                extra=extra,
            )
        return response
