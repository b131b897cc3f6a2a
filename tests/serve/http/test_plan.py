"""A plan returns the same bytes as the general path for every request, and captures the
same record.
"""

from collections import Counter

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.statedir.files import SPOOL, WANTED, write_state
from mlflow_deploy_plugin.core.statedir.models import Wanted
from mlflow_deploy_plugin.serve.agent.ship import captured_tables
from mlflow_deploy_plugin.serve.http.openapi.document import describe_endpoint
from mlflow_deploy_plugin.serve.http.plan import PlanTable
from mlflow_deploy_plugin.serve.http.responses import header_fields, serialize_response
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.protocols.table import PROTOCOLS
from mlflow_deploy_plugin.serve.spool.frames import segments
from mlflow_deploy_plugin.serve.spool.spool_reader import read_batches
from tests.support import servers
from tests.support.bodies import arrow_stream, v2_tensor
from tests.support.handling import JSON, handle, post
from tests.support.protocols import JSON_FORMS, protocol_paths
from tests.support.spool import read_spool
from tests.support.waiting import wait_until

FLIGHT = {"carrier": "AA", "distance": 1400.5, "hour": 7, "late": False}
SPLIT = {"columns": list(FLIGHT), "data": [list(FLIGHT.values())]}
TENSOR = v2_tensor("distance", "FP64", [1.5], [1, 1])
BODIES = [
    ("/invocations", {"dataframe_split": SPLIT}),
    ("/endpoints/mixed/invocations", {"inputs": {name: [value] for name, value in FLIGHT.items()}}),
    ("/endpoints/single/invocations", {"instances": [[1, 2, 3], [4, 5, None]]}),
    ("/predict/batch", [FLIGHT, FLIGHT, FLIGHT]),
    ("/score", {"input_data": [FLIGHT, FLIGHT], "params": {}}),
    ("/v1/models/mixed:predict", {"instances": [FLIGHT], "signature_name": "serving_default"}),
    ("/v2/models/tensor/infer", {"id": "mine", "inputs": [
        v2_tensor("image", "FP32", [1, 2, 3, 4], [1, 2, 2])]}),
    ("/v2/models/single/infer", {"parameters": {"priority": 1}, "inputs": [
        v2_tensor("X", "FP32", [1, 2, 3], [1, 3])]}),
    # The response is large enough for compression.
    ("/endpoints/single/invocations", {"inputs": [[1, 2, 3]] * 4000}),
]  # fmt: skip
ARROW = {"content-type": "application/vnd.apache.arrow.stream"}
TABLE = arrow_stream(pa.table({name: [value, value] for name, value in FLIGHT.items()}))
KINDS = ("mixed", "single", "tensor", "stock")


@pytest.fixture(scope="session")
def endpoints(model_folders):
    return {kind: {"v": servers.variant(model_folders[kind])} for kind in KINDS}


@pytest.fixture(scope="module")
def server(tmp_path_factory, endpoints):
    with servers.opened(tmp_path_factory.mktemp("plans"), endpoints) as server:
        yield server


def shown(response, request):
    """Return a response without the ids that are unique to it."""
    assert response.fields in ("", header_fields(response.headers))
    headers = dict(response.headers)
    made = [headers.pop("X-Prediction-Id")]
    if "x-request-id" not in request.headers and headers["X-Request-Id"] != "mine":
        made.append(headers.pop("X-Request-Id"))
    assert {len(id_) for id_ in made} == {32}
    body = response.body.replace(made[-1].encode(), b"")  # V2 repeats the id.
    return response.status, body, response.content_type, headers


def check(server, request):
    """Check that the plan and the general path answer alike; return the answer."""
    planned = PlanTable(server).answer(request)
    assert planned is not None
    assert shown(planned, request) == shown(handle(server, request), request)
    return planned


@pytest.mark.parametrize(
    "headers", [{}, {"x_request_id": "my-own"}, {"accept": "*/*"}, {"accept_encoding": "gzip"}]
)
@pytest.mark.parametrize(("path", "document"), BODIES)
def test_plan_answers_like_general_path(server, path, document, headers):
    check(server, post(path, document, **headers))


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("endpoint", KINDS)
def test_every_protocol_has_plans(server, protocol, endpoint):
    described = describe_endpoint(server, endpoint)
    for path in protocol_paths(protocol, endpoint, "1", "v"):
        is_planned = "/versions/" not in path and "/labels/" not in path
        assert PlanTable(server).covers(path) == is_planned
        if is_planned and endpoint in path and protocol in JSON_FORMS:
            body = JSON_FORMS[protocol].example(described.schema, described.example)
            check(server, post(path, body))


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (ARROW, TABLE),
        ({**ARROW, "accept": "application/json"}, TABLE),
        ({**JSON, "accept": "application/jsonl"}, orjson.dumps({"dataframe_split": SPLIT})),
        ({"content-type": "application/jsonl"}, orjson.dumps(FLIGHT) + b"\n"),
    ],
)
def test_plan_answers_tables_of_any_format(server, headers, body):
    check(server, RawRequest("POST", "/invocations", headers, body))


def test_model_name_is_escaped_in_head(serve_here, model_folders):
    variant = {**servers.variant(model_folders["mixed"]), "model": "50 % Modèle\r\nX-Evil: yes"}
    server = serve_here({"mixed": {"v": variant}})
    for headers in ({"x_request_id": "100%"}, {}):
        planned = check(server, post("/invocations", {"dataframe_split": SPLIT}, **headers))
        head = serialize_response(planned, True)
        assert b"\r\nX-Model-Name: 50 %25 Mod%C3%A8le%0D%0AX-Evil: yes\r\n" in head


OLD = [b"1400.5", b"7", b'"AA"', b"false", b"[", b"1", b"3", b"FP32", b'"data"']
NEW = [
    b"",
    b"[]",
    b"{}",
    b"null",
    b"NaN",
    b"1e999",
    b"true",
    b"2.5",
    b'"x"',
    b"-1",
    b"123456789012345678901234567890",
]


HEADERS = st.fixed_dictionaries(
    {"content-type": st.sampled_from(["application/json; charset=utf-8", "text/csv"])},
    optional={
        "accept": st.sampled_from(["*/*", "application/json", "application/jsonl", "text/html"]),
        "accept-encoding": st.sampled_from(["gzip", "identity"]),
        "x-request-id": st.just("r"),
    },
)


def counters(server):
    """Return the value of each sample of the metrics except times."""
    lines = (
        line.rpartition(" ")
        for line in server.metrics.page().decode().splitlines()
        if not line.startswith("#")
    )
    return Counter({name: int(float(value)) for name, _, value in lines if "seconds" not in name})


@pytest.mark.long
@settings(max_examples=300)
@given(
    st.sampled_from(BODIES),
    st.lists(
        st.tuples(st.sampled_from(OLD), st.sampled_from(NEW) | st.binary(max_size=3)), max_size=2
    ),
    st.just(JSON) | HEADERS,
)
def test_plan_answers_and_counts_like_general_path(server, request_, changes, headers):
    path, document = request_
    body = orjson.dumps(document)
    for old, new in changes:
        body = body.replace(old, new, 1)
    request = RawRequest("POST", path, headers, body)
    before = counters(server)
    planned = PlanTable(server).answer(request)
    between = counters(server)
    general = handle(server, request)
    if planned is None:
        assert general.status >= 400, body
        assert between == before
    else:
        assert shown(planned, request) == shown(general, request)
        assert between - before == counters(server) - between


def test_planned_answer_is_captured_like_general_one(serve_here, endpoints):
    outcomes = []
    for is_planned in (True, False):
        server = serve_here(endpoints)
        plans = PlanTable(server)
        for path, document in BODIES:
            request = post(path, document, x_request_id="r")
            assert (plans.answer(request) if is_planned else handle(server, request)) is not None
        counted = counters(server)
        server.capture.close()
        rows = [
            (
                entry.record.endpoint,
                entry.record.variant,
                entry.record.request_id,
                entry.model.version,
                repr((entry.feeds, entry.outputs)),
            )
            for entry in read_spool(server.repository.state_dir / SPOOL)
        ]
        outcomes.append((counted, rows))
    assert outcomes[0] == outcomes[1]
    assert len(rows) == len(BODIES)


def test_plan_leaves_rows_outside_to_general_path(serve_here, model_folders):
    endpoints = {"e": {"v": servers.variant(model_folders["guarded"])}}
    server = serve_here(endpoints, guard={"then": "flag"})
    check(server, post("/invocations", {"dataframe_split": SPLIT}))
    request = post("/predict", {**FLIGHT, "carrier": "ZZ"})
    assert PlanTable(server).answer(request) is None
    assert handle(server, request).headers["X-Guard"] == "carrier; rows=1"
    server.capture.close()
    (segment,) = segments(server.repository.state_dir / SPOOL)
    tables = [captured_tables("s", [batch]) for batch in read_batches(segment).batches]
    assert [table["_guard"].to_pylist() for [(_, table)] in tables] == [["", ""], ["carrier"]]


def canary(model_folders, kind):
    """Two variants that answer equally often: the mixed model, and a model of this
    kind.
    """
    return {
        "canary": {
            "v": servers.variant(model_folders["mixed"], weight=50),
            "w": servers.variant(model_folders[kind], "2", weight=50),
        }
    }


def test_plan_selects_variant_by_weight(serve_here, model_folders):
    server = serve_here(canary(model_folders, "mixed"))
    answered = []
    for _ in range(200):
        headers = check(server, post("/invocations", {"dataframe_split": SPLIT})).headers
        answered.append((headers["X-Model-Variant"], headers["X-Model-Version"]))
    assert {*answered} == {("v", "1"), ("w", "2")}
    assert 60 < answered.count(("w", "2")) < 140


def test_refused_request_is_not_given_to_other_variant(serve_here, model_folders):
    server = serve_here(canary(model_folders, "single"))
    plans = PlanTable(server)
    refusing = []
    for _ in range(200):
        request = post("/invocations", {"dataframe_split": SPLIT})
        response = plans.answer(request) or handle(server, request)
        if response.status == 400:
            refusing.append(response.headers["X-Model-Variant"])
    assert {*refusing} == {"w"}
    assert 60 < len(refusing) < 140


def test_plan_captures_sample_and_counts_all(serve_here, model_folders):
    server = serve_here({"mixed": {"v": servers.variant(model_folders["mixed"])}}, fraction=0.5)
    plans = PlanTable(server)
    assert all(plans.answer(post("/invocations", {"dataframe_split": SPLIT})) for _ in range(200))
    server.capture.close()
    assert 60 < len(read_spool(server.repository.state_dir / SPOOL)) < 140
    counted = server.metrics.page().decode()
    assert 'onnxserve_capture_rows_total{endpoint="mixed",outcome="answered"} 200.0' in counted


@pytest.mark.parametrize(
    ("other", "sticky"), [({"shadow": True}, None), ({}, {"header": "x-user"}), ({}, {"key": "a"})]
)
def test_shadowed_or_sticky_endpoint_has_no_plan(serve_here, bias_folders, other, sticky):
    variants = {
        "v": servers.variant(bias_folders["1"]),
        "w": servers.variant(bias_folders["2"], "2", **other),
    }
    server = serve_here({"e": variants})
    wanted = {"generation": 2, "endpoints": {"e": {"variants": variants, "sticky": sticky}}}
    write_state(server.repository.state_dir / WANTED, Wanted.model_validate(wanted))
    wait_until(lambda: (server.repository.table["e"].sticky is None) == (sticky is None))
    assert PlanTable(server).answer(post("/invocations", {"inputs": [[0, 0, 0]]})) is None


@pytest.mark.parametrize(
    "request_",
    [
        post("/invocations", {"dataframe_split": SPLIT}, x_event_time="2013-07-01T12:00:00Z"),
        post("/invocations", {"dataframe_split": SPLIT}, content_encoding="gzip"),
        post("/invocations", {"dataframe_split": {"columns": ["carrier"], "data": [["AA"]]}}),
        post("/v2/models/single/infer", {"inputs": [], "parameters": {"timeout": 1}}),
        post("/explain", {"dataframe_split": SPLIT}),
        RawRequest("GET", "/invocations", {}, b""),
    ],
)
def test_request_outside_plan_leaves_no_trace(server, request_):
    before = server.metrics.page()
    assert PlanTable(server).answer(request_) is None
    assert server.metrics.page() == before


@pytest.mark.parametrize(
    "spec",
    [
        {"max_batch_size": 4},
        {"response_cache_bytes": 1000},
        {"default_timeout_microseconds": 10**6},
    ],
)
def test_server_with_per_request_decisions_has_no_plans(serve_here, endpoints, spec):
    plans = PlanTable(serve_here(endpoints, server=spec))
    assert plans.answer(post("/invocations", {"dataframe_split": SPLIT})) is None


def test_request_above_limit_is_left_to_general_path(serve_here, endpoints):
    server = serve_here(endpoints, server={"max_concurrent_requests": 1, "rate_limit": "3/day"})
    plans = PlanTable(server)

    def refusal(document):
        request = post("/invocations", document)
        assert plans.answer(request) is None
        response = handle(server, request)
        return response.status, orjson.loads(response.body)["message"]

    good = {"dataframe_split": SPLIT}
    assert plans.answer(post("/invocations", good)) is not None
    server.limits.acquire()
    status, message = refusal(good)
    assert (status, "1 concurrent requests" in message) == (429, True)
    server.limits.release()
    assert refusal({"dataframe_split": {"columns": [], "data": []}})[0] == 400
    status, message = refusal(good)
    assert (status, "3/day" in message) == (429, True)
    refused = [value for name, value in counters(server).items() if "onnxserve_refused" in name]
    assert refused == [1, 1]


def test_new_version_has_plan_at_once(serve_here, bias_folders):
    server = serve_here(servers.one_endpoint(bias_folders["1"]))
    plans = PlanTable(server)

    def version():
        response = plans.answer(post("/invocations", {"inputs": [[0, 0, 0]]}))
        assert response is not None
        served = response.headers["X-Model-Version"]
        assert response.body == b'{"predictions":[[%s000.0]]}' % served.encode()
        return served

    assert version() == "1"
    servers.want(server.repository.state_dir, 2, servers.one_endpoint(bias_folders["2"], "2"))
    wait_until(lambda: version() == "2", what="the plan of version 2")
