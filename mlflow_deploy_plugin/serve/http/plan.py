"""Plans: the pipeline of a prediction, composed when a version is swapped in.

A plan decides once everything that is the same for all requests to a path (protocol,
rates, tracer, cache, shadows, sticky key, batcher, deadline). A request that its plan
does not cover, or that fails in the plan, is handled by the general path
(`routes.handle_route`), which creates all error responses. A plan intentionally
repeats the rules of `pipeline.infer`, because each saved call shortens every request.
Change a rule in both modules; `tests/serve/http/test_plan.py` compares them.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence

from mlflow_deploy_plugin.core.errors import pass_exit
from mlflow_deploy_plugin.core.statedir.models import KeyEntry
from mlflow_deploy_plugin.serve.http.encodings import COMPRESSED_FROM_BYTES, encode_body
from mlflow_deploy_plugin.serve.http.responses import RawResponse, header_fields
from mlflow_deploy_plugin.serve.http.routes import expand_path
from mlflow_deploy_plugin.serve.inference.applied_steps import add_steps
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.messages import RawRequest, new_id, request_id
from mlflow_deploy_plugin.serve.observability.metrics import CapturedRows
from mlflow_deploy_plugin.serve.protocols.content import JSON, dump_json, json_object
from mlflow_deploy_plugin.serve.protocols.invocations import INVOCATIONS
from mlflow_deploy_plugin.serve.protocols.large_json import LARGE_BYTES
from mlflow_deploy_plugin.serve.protocols.mlflow import decode_document
from mlflow_deploy_plugin.serve.protocols.protocol import EncodedResponse, InferResponse, Protocol
from mlflow_deploy_plugin.serve.protocols.table import PROTOCOLS
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds
from mlflow_deploy_plugin.serve.runtime.guard import Guard
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.spool.codec import RequestRecord
from mlflow_deploy_plugin.serve.variants import (
    ServedEndpoint,
    ServedTable,
    ServedVariant,
    weighted_variant,
)

Plan = Callable[[RawRequest], RawResponse | None]
"""A function that answers a POST. If it returns None, the general path answers with the
same draw.
"""

_Encode = Callable[[ServedVariant, InferResponse], EncodedResponse]
_Decoded = tuple[Feeds, _Encode | None, str]
"""The feeds (empty: the general path answers), the encoder (None: MLflow's JSON), and
the caller's id.
"""
_Encoded = tuple[bytes, str, Mapping[str, str] | None]
"""The body, its content type, and the headers of its format."""
_Respond = Callable[[RawRequest, _Encoded, str, str], RawResponse]
_Decode = Callable[[Mapping[str, str], bytes], _Decoded]

_MAX_BODY_BYTES = 64 * 1024
"""The largest body that a plan handles. A plan does not speed up larger bodies, and
decodes invalid bodies twice.
"""


_PATHS: dict[str, Protocol] = {}
"""The protocols by path; plans have paths without a version or a label."""
for _protocol in PROTOCOLS:
    _PATHS |= {expand_path(path)[0]: _protocol for path in _protocol.paths}


class PlanTable:
    """The plans of a worker, by path; empty if the server logs or traces all requests,
    or has a cache or a deadline.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._plans: dict[str, Plan] = {}
        self._of_endpoints: dict[str, tuple[ServedEndpoint, bool, dict[str, Plan]]] = {}
        """The plans of each endpoint, and the endpoint for which they were composed."""
        spec = server.spec
        observer = server.observer
        self._selects = observer.selects if observer.is_on else None
        has_deadline = spec.default_timeout_microseconds > 0
        if not (observer.selects_all or spec.response_cache_bytes or has_deadline):
            server.repository.add_listener(self._compose)

    def answer(self, request: RawRequest) -> RawResponse | None:
        """Answer a request with the plan of its path; None if the general path must
        answer.
        """
        plan = self._plans.get(request.path)
        if plan is None or request.method != "POST":
            return None
        if self._selects is not None and self._selects(request):
            return None
        limits = self._server.limits
        if not limits.has_places:
            return plan(request)
        if not limits.take_place():
            return None
        try:
            return plan(request)
        finally:
            limits.release()

    def covers(self, path: str) -> bool:
        """Return True if the path has a plan, so that an ONNX model in this worker
        answers.
        """
        return path in self._plans

    def _compose(self, table: ServedTable) -> None:
        """Replace the plans by those of the endpoints that are served now. Plans of
        unchanged endpoints are kept, because there may be thousands.
        """
        plans: dict[str, Plan] = {}
        of_endpoints = {}
        default = self._server.repository.default_endpoint
        for endpoint, served in table.items():
            is_default = endpoint == default
            composed = self._of_endpoints.get(endpoint)
            if composed is None or composed[0] is not served or composed[1] != is_default:
                composed = served, is_default, self._compose_endpoint(endpoint, served, is_default)
            of_endpoints[endpoint] = composed
            plans.update(composed[2])
        self._of_endpoints = of_endpoints
        self._plans = plans

    def _compose_endpoint(
        self, endpoint: str, served: ServedEndpoint, is_default: bool
    ) -> dict[str, Plan]:
        """Return the plans of an endpoint by path."""
        if served.sticky is not None or not served.answering:
            return {}  # The caller's key selects the variant, or no variant can answer.
        # A batch or a side process computes elsewhere, and a shadow needs a copy of the
        # request.
        are_computed_here = all(
            isinstance(variant.loaded.predictor, OnnxModel)
            and variant.loaded.batcher is None
            and not variant.shadows
            # The general path answers rows outside, and would repeat the steps.
            and (variant.steps is None or variant.guard is None)
            for variant in served.answering
        )
        if not are_computed_here:
            return {}
        plans = {}
        lazy = self._server.repository.lazy
        for path, protocol in _PATHS.items():
            if "{" not in path and not is_default:
                continue
            path = path.replace("{endpoint}", endpoint)
            if path not in self._server.cloud.paths:
                plan = self._compose_choice(served.answering, self._server.answering(protocol))
                plans[path] = plan if lazy is None else lazy.holding(endpoint, plan)
        return plans

    def _compose_choice(self, variants: Sequence[ServedVariant], protocol: Protocol) -> Plan:
        """Return the plan that selects a variant by weight for each request."""
        plans = {
            variant.name: compose_plan(self._server, variant, protocol) for variant in variants
        }
        if len(variants) == 1:
            return plans[variants[0].name]

        def answer(request: RawRequest) -> RawResponse | None:
            draw = random.random()
            request.draw = draw
            return plans[weighted_variant(variants, draw).name](request)

        return answer


def compose_plan(server: Server, variant: ServedVariant, protocol: Protocol) -> Plan:
    """Return the plan of a variant for a protocol, with the steps of `pipeline.infer`
    and `DataPlane.infer`.
    """
    require = server.auth.require if server.auth.is_required else None
    has_rate = server.limits.has_rate
    admits = require is not None or has_rate
    check_rates = server.limits.check_rates
    has_steps = variant.steps is not None
    decode = _compose_decoder(variant.sent, protocol, server.max_body_bytes)
    if variant.guard is not None:
        decode = _compose_guard(variant.guard, decode)
    run = variant.loaded.predictor.run
    predict = variant.loaded.predictor.prediction
    count_key = server.auth.count
    record = _compose_record(server, variant, protocol)
    respond = _compose_response(variant)

    def admit(request: RawRequest) -> KeyEntry | None:
        """Return the request's key; None if the server needs no keys. Raises the error
        of a request without access or above a rate.
        """
        key = None
        if require is not None:
            key = require(request.headers, "infer", variant.endpoint, request.caller)
        if has_rate or (key is not None and key.limits):
            check_rates(request, key)
        return key

    def answer(request: RawRequest) -> RawResponse | None:
        """Answer the request; None if the plan does not cover it, or if it fails."""
        headers = request.headers
        if (
            "content-encoding" in headers
            or "x-event-time" in headers
            or len(request.body) > _MAX_BODY_BYTES
        ):
            return None
        received = time.time_ns() // 1000
        try:
            key = admit(request) if admits else None
            feeds, encode, given_id = decode(headers, request.body)
            if not feeds:
                return None
            id_ = request_id({"x-request-id": given_id}) if given_id else new_id()
            if has_steps:
                request.headers = {**headers, "x-request-id": id_}  # The log has this id.
                feeds, encode = add_steps(server, variant, (feeds, encode), headers, id_, math.inf)
            began = time.perf_counter()
            outputs = run(feeds)
            ended = time.perf_counter()
            prediction_id = new_id()
            encoded: _Encoded
            if encode is None:
                encoded = dump_json({"predictions": predict(outputs)}), JSON, None
            else:
                encoded = encode(variant, InferResponse(id_, prediction_id, outputs))
        except BaseException as error:  # noqa: BLE001 - the general path repeats, reports and counts the error
            pass_exit(error)
            if has_steps:
                request.failure = error
            return None
        if key is not None:
            count_key(key)
        record(request, received, began, ended, id_, prediction_id, feeds, outputs)
        return respond(request, encoded, id_, prediction_id)

    return answer


def _compose_record(
    server: Server, variant: ServedVariant, protocol: Protocol
) -> Callable[..., None]:
    endpoint = variant.endpoint
    name = variant.name
    captured = variant.captured
    schema = variant.schema
    fraction = variant.capture.fraction
    max_rows = variant.capture.max_rows_per_request
    write = server.capture.write
    count = server.metrics.prediction_counter(variant, protocol.name)
    labels = variant.labels
    origin = 200, labels[0], labels[1], labels[3], protocol.name
    remember = server.recent.ring(origin).append

    def record(
        request: RawRequest,
        received: int,
        began: float,
        ended: float,
        id_: str,
        prediction_id: str,
        feeds: Feeds,
        outputs: dict[str, Array],
    ) -> None:
        """Capture and count a prediction.

        Args:
            received: the time of the request in microseconds since 1970 (UTC).
            began / ended: `time.perf_counter()` before and after the model's run.
            id_: the caller's id, or a new id.
        """
        captured_rows: CapturedRows
        if fraction == 1.0 or fraction > random.random():
            latency = int((ended - request.arrived) * 1e6)
            written = RequestRecord(endpoint, name, id_, prediction_id, received, received, latency)
            captured_rows = write(written, captured, feeds, outputs, max_rows)
        else:
            captured_rows = schema.count_rows(feeds), 0, None
        seconds = time.perf_counter() - request.arrived
        count(captured_rows, ended - began, seconds, outputs)
        remember((origin, received, seconds, captured_rows[0], prediction_id, "", ""))

    return record


def _compose_response(variant: ServedVariant) -> _Respond:
    """Return a function that creates the response, with the headers of the variant that
    are serialized here once.
    """
    version_headers = {
        "X-Model-Name": variant.loaded.model,
        "X-Model-Version": variant.loaded.version,
    }
    if variant.has_others:
        version_headers["X-Model-Variant"] = variant.name
    version_fields = header_fields(version_headers)

    def respond(
        request: RawRequest,
        encoded: _Encoded,
        id_: str,
        prediction_id: str,
    ) -> RawResponse:
        """Return the response with its headers; a small response has them as text."""
        content, content_type, format_headers = encoded
        headers = {"X-Request-Id": id_, **version_headers, "X-Prediction-Id": prediction_id}
        if not format_headers and len(content) < COMPRESSED_FROM_BYTES:
            fields = f"X-Request-Id: {id_}\r\n{version_fields}X-Prediction-Id: {prediction_id}\r\n"
            return RawResponse(200, content, content_type, headers, fields)
        if format_headers:
            headers.update(format_headers)
        return encode_body(request, RawResponse(200, content, content_type, headers))

    return respond


def _compose_decoder(variant: ServedVariant, protocol: Protocol, limit: int) -> _Decode:
    """Return the decoder of a plan. MLflow's JSON takes the shortest path; other bodies
    use the protocol's decoder.
    """
    schema = variant.schema
    takes_documents = protocol is INVOCATIONS and variant.loaded.predictor.artifact.has_signature

    def decode(headers: Mapping[str, str], body: bytes) -> _Decoded:
        """Decode a body. A request with its own timeout has no feeds, because the
        general path answers it.
        """
        content_type = headers.get("content-type")
        accept = headers.get("accept")
        if (
            takes_documents
            and content_type == JSON
            and accept in (None, "*/*")
            and len(body) < LARGE_BYTES
        ):
            feeds = decode_document(json_object(body), schema)
            return feeds, None, headers.get("x-request-id", "")
        feeds, encode, body_id, _, parameters = protocol.decode(headers, body, variant, limit)
        if "timeout" in parameters:
            feeds = {}
        return feeds, encode, headers.get("x-request-id", body_id)

    return decode


def _compose_guard(guard: Guard, decode: _Decode) -> _Decode:
    """Return the decoder of a plan with the guard of the variant."""
    check = guard.check

    def decode_inside(headers: Mapping[str, str], body: bytes) -> _Decoded:
        """Decode a body. The general path answers a request with a row that is outside
        of the training rows.
        """
        decoded = decode(headers, body)
        return decoded if check(decoded[0]) is None else ({}, None, "")

    return decode_inside
