"""Plans: the pipeline of a prediction, composed when a version is swapped in.

A plan decides once everything that is the same for all requests to a path (protocol,
rates, tracer, cache, shadows, sticky key, batcher, deadline). A request that its plan
does not cover, or that fails in the plan, is handled by the general path
(`routes.handle_direct`), which creates all error responses. A plan intentionally
repeats the rules of `pipeline.infer`, because each saved call shortens every request.
Change a rule in both modules; `tests/serve/http/test_plan.py` compares them.
"""

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence

from mlflow_deploy_plugin.core.errors import pass_exit
from mlflow_deploy_plugin.serve.http.encodings import COMPRESSED_FROM_BYTES, encode_body
from mlflow_deploy_plugin.serve.http.responses import RawResponse, header_fields
from mlflow_deploy_plugin.serve.inference.limits import RequestLimits
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.messages import RawRequest, new_id, request_id
from mlflow_deploy_plugin.serve.observability.metrics import CapturedRows
from mlflow_deploy_plugin.serve.protocols.content import JSON, dump_json, json_object
from mlflow_deploy_plugin.serve.protocols.invocations import INVOCATIONS
from mlflow_deploy_plugin.serve.protocols.large_json import LARGE_BYTES
from mlflow_deploy_plugin.serve.protocols.mlflow import decode_document
from mlflow_deploy_plugin.serve.protocols.protocol import EncodedResponse, InferResponse, Protocol
from mlflow_deploy_plugin.serve.protocols.table import PROTOCOLS
from mlflow_deploy_plugin.serve.runtime.feeds import Feeds
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.spool.codec import RequestRecord
from mlflow_deploy_plugin.serve.variants import ServedTable, ServedVariant, weighted_variant

Plan = Callable[[RawRequest], RawResponse | None]
"""A function that answers a POST. If it returns None, the general path answers with the
same draw.
"""

_Encode = Callable[[ServedVariant, InferResponse], EncodedResponse]
_Decoded = tuple[Feeds, _Encode | None, str]
"""The feeds (empty: the general path answers), the encoder (None: MLflow's JSON), and
the id in the body.
"""
_Decode = Callable[[Mapping[str, str], bytes], _Decoded]

_MAX_BODY_BYTES = 64 * 1024
"""The largest body that a plan handles. A plan does not speed up larger bodies, and
decodes invalid bodies twice.
"""


_PATHS = {
    re.sub(r"\[.*\]", "", path): protocol
    for protocol in PROTOCOLS
    if not protocol.may_name_endpoint
    for path in protocol.paths
}
"""The paths of plans, which contain neither a version nor a label."""


class PlanTable:
    """The plans of a worker, by path; empty if the server has a tracer, a request log,
    a cache or a deadline.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._plans: dict[str, Plan] = {}
        spec = server.spec
        sees_requests = server.tracer or server.logs_requests or spec.response_cache_bytes
        if not (sees_requests or spec.default_timeout_microseconds):
            server.repository.add_listener(self._compose)

    def answer(self, request: RawRequest) -> RawResponse | None:
        plan = self._plans.get(request.path)
        if plan is not None and request.method == "POST":
            return plan(request)
        return None

    def covers(self, path: str) -> bool:
        """Return True if the path has a plan, so that an ONNX model in this worker
        answers.
        """
        return path in self._plans

    def _compose(self, table: ServedTable) -> None:
        plans: dict[str, Plan] = {}
        for endpoint, served in table.items():
            if served.sticky is not None or not served.answering:
                continue  # The caller's key selects the variant, or no variant can answer.
            if any(
                not isinstance(variant.loaded.predictor, OnnxModel)
                or variant.loaded.batcher is not None
                for variant in served.answering
            ):
                continue  # Another process or thread computes the predictions.
            if any(variant.shadows for variant in served.answering):
                continue  # Each shadow needs a copy of the request.
            is_default = endpoint == next(iter(table))
            for path, protocol in _PATHS.items():
                if "NAME" not in path and not is_default:
                    continue
                path = path.replace("NAME", endpoint)
                if path not in self._server.cloud.paths:
                    plan = self._compose_choice(served.answering, protocol)
                    plans[path] = (
                        _within_places(plan, self._server.limits)
                        if self._server.limits.has_places
                        else plan
                    )
        self._plans = plans

    def _compose_choice(self, variants: Sequence[ServedVariant], protocol: Protocol) -> Plan:
        """Return the plan that selects a variant by weight for each request."""
        plans = {
            variant.name: compose_plan(self._server, variant, protocol) for variant in variants
        }
        if len(variants) == 1:
            return plans[variants[0].name]

        def answer(request: RawRequest) -> RawResponse | None:
            request.draw = draw = random.random()
            return plans[weighted_variant(variants, draw).name](request)

        return answer


def compose_plan(server: Server, variant: ServedVariant, protocol: Protocol) -> Plan:
    """Return the plan of a variant for a protocol, with the steps of `pipeline.infer`
    and `DataPlane.infer`.
    """
    endpoint = variant.endpoint
    name = variant.name
    loaded = variant.loaded
    captured = variant.captured
    model = loaded.model
    version = loaded.version
    predictor = loaded.predictor
    schema = variant.schema
    run = predictor.run
    predict = predictor.prediction
    fraction = variant.capture.fraction
    max_rows = variant.capture.max_rows_per_request
    draw = random.random
    decode = _compose_decoder(variant, protocol, server.max_body_bytes)
    write = server.capture.write
    count = server.metrics.prediction_counter(variant, protocol.name)
    version_headers = {"X-Model-Name": model, "X-Model-Version": version}
    if variant.has_others:
        version_headers["X-Model-Variant"] = name
    version_fields = header_fields(version_headers)
    require = server.auth.require if server.auth.is_required else None
    count_key = server.auth.count
    has_rate = server.limits.has_rate
    check_rates = server.limits.check_rates
    perf_counter = time.perf_counter
    time_ns = time.time_ns
    origin = 200, endpoint, name, version, protocol.name
    remember = server.recent.ring(origin).append

    def answer(request: RawRequest) -> RawResponse | None:
        headers = request.headers
        body = request.body
        if (
            "content-encoding" in headers
            or "x-event-time" in headers
            or len(body) > _MAX_BODY_BYTES
        ):
            return None
        received = time_ns() // 1000
        try:
            key = (
                require(headers, "infer", endpoint, request.caller) if require is not None else None
            )
            if has_rate or (key is not None and key.limits):
                check_rates(request, key)
            feeds, encode, body_id = decode(headers, body)
            if not feeds:
                return None
            began = perf_counter()
            outputs = run(feeds)
            ended = perf_counter()
            given_id = headers.get("x-request-id", body_id)
            id_ = request_id({"x-request-id": given_id}) if given_id else new_id()
            prediction_id = new_id()
            if encode is None:
                content = dump_json({"predictions": predict(outputs)})
                content_type = JSON
                format_headers = None
            else:
                inferred = InferResponse(id_, prediction_id, outputs)
                content, content_type, format_headers = encode(variant, inferred)
        except BaseException as error:  # noqa: BLE001 - the general path repeats, reports and counts the error
            pass_exit(error)
            return None
        if key is not None:
            count_key(key)
        captured_rows: CapturedRows
        if fraction == 1.0 or fraction > draw():
            latency = int((ended - request.arrived) * 1e6)
            record = RequestRecord(endpoint, name, id_, prediction_id, received, received, latency)
            captured_rows = write(record, captured, feeds, outputs, max_rows)
        else:
            captured_rows = schema.count_rows(feeds), 0, None
        seconds = perf_counter() - request.arrived
        count(captured_rows, ended - began, seconds, outputs)
        remember((origin, received, seconds, captured_rows[0], prediction_id, "", ""))
        response_headers = {
            "X-Request-Id": id_,
            **version_headers,
            "X-Prediction-Id": prediction_id,
        }
        if not format_headers and len(content) < COMPRESSED_FROM_BYTES:
            fields = f"X-Request-Id: {id_}\r\n{version_fields}X-Prediction-Id: {prediction_id}\r\n"
            return RawResponse(200, content, content_type, response_headers, fields)
        if format_headers:
            response_headers.update(format_headers)
        return encode_body(request, RawResponse(200, content, content_type, response_headers))

    return answer


def _within_places(plan: Plan, limits: RequestLimits) -> Plan:
    """Return the plan for a server with a limit of concurrent requests; above this
    limit, the general path answers.
    """

    def answer(request: RawRequest) -> RawResponse | None:
        if not limits.take_place():
            return None
        try:
            return plan(request)
        finally:
            limits.release()

    return answer


def _compose_decoder(variant: ServedVariant, protocol: Protocol, limit: int) -> _Decode:
    """Return the decoder of a plan. MLflow's JSON takes the shortest path; other bodies
    use the protocol's decoder.
    """
    schema = variant.schema
    takes_documents = protocol is INVOCATIONS and variant.loaded.predictor.artifact.has_signature

    def decode(headers: Mapping[str, str], body: bytes) -> _Decoded:
        content_type = headers.get("content-type")
        accept = headers.get("accept")
        if (
            takes_documents
            and content_type == JSON
            and accept in (None, "*/*")
            and len(body) < LARGE_BYTES
        ):
            return decode_document(json_object(body), schema), None, ""
        feeds, encode, body_id, _, parameters = protocol.decode(headers, body, variant, limit)
        return {} if "timeout" in parameters else feeds, encode, body_id

    return decode
