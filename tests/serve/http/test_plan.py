"""A plan returns the same bytes as the general path for every request, and captures the
same record.
"""

from collections import Counter
from functools import partial
from itertools import chain
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.statedir.files import SPOOL, WANTED, write_state
from mlflow_deploy_plugin.core.statedir.models import Wanted
from mlflow_deploy_plugin.serve.http.openapi.document import describe_endpoint
from mlflow_deploy_plugin.serve.http.plan import PlanTable
from mlflow_deploy_plugin.serve.http.responses import header_fields, serialize_response
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.protocols.table import PROTOCOLS
from tests.support import servers
from tests.support.bodies import arrow_stream, v2_tensor
from tests.support.handling import handle
from tests.support.protocols import JSON_FORMS, protocol_paths
from tests.support.spool import read_segment
from tests.support.waiting import wait_until

JSON = {"content-type": "application/json"}
FLIGHT = {"carrier": "AA", "distance": 1400.5, "hour": 7, "late": False}
SPLIT = {"columns": list(FLIGHT), "data": [list(FLIGHT.values())]}
TENSOR = v2_tensor("distance", "FP64", [1.5], [1, 1])
BODIES: list[tuple[str, Any]] = [
    ("/invocations", {"dataframe_split": SPLIT}),
    ("/invocations", {"dataframe_records": [FLIGHT, FLIGHT]}),
    ("/endpoints/mixed/invocations", {"inputs": {name: [value] for name, value in FLIGHT.items()}}),
    ("/endpoints/single/invocations", {"instances": [[1, 2, 3], [4, 5, None]]}),
    ("/predict", FLIGHT),
    ("/predict/batch", [FLIGHT, FLIGHT, FLIGHT]),
    ("/score", {"input_data": SPLIT}),
    ("/score", {"input_data": [FLIGHT, FLIGHT], "params": {}}),
    ("/v1/models/mixed:predict", {"instances": [FLIGHT, FLIGHT],
                                  "signature_name": "serving_default"}),
    ("/v2/models/tensor/infer", {"id": "mine", "inputs": [
        v2_tensor("image", "FP32", [1, 2, 3, 4], [1, 2, 2])]}),
    ("/v2/models/single/infer", {"parameters": {"priority": 1}, "inputs": [
        v2_tensor("X", "FP32", [1, 2, 3], [1, 3])]}),
    # The response is large enough for compression.
    ("/endpoints/single/invocations", {"inputs": [[1, 2, 3]] * 4000}),
]  # fmt: skip


@pytest.fixture
def endpoints(model_folders):
    return {
        kind: {"v": servers.variant(model_folders[kind])}
        for kind in ("mixed", "single", "tensor", "stock")
    }


@pytest.fixture
def server(serve_here, endpoints):
    return serve_here(endpoints)


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


def post(path, document, **headers):
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return RawRequest("POST", path, {**JSON, **fields}, orjson.dumps(document))


@pytest.mark.parametrize(("path", "document"), BODIES)
def test_a_plan_gives_the_bytes_of_the_general_way(server, path, document):
    plans = PlanTable(server)
    for request in (
        post(path, document),
        post(path, document, x_request_id="my-own"),
        post(path, document, accept="*/*"),
        post(path, document, accept_encoding="gzip"),
    ):
        planned = plans.answer(request)
        assert planned is not None
        assert shown(planned, request) == shown(handle(server, request), request)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("endpoint", ["mixed", "single", "tensor", "stock"])
def test_each_protocol_has_plans(shared, protocol, endpoint):
    plans = PlanTable(shared)
    described = describe_endpoint(shared, endpoint)
    for path in protocol_paths(protocol, endpoint, "1", "v"):
        if "/versions/" in path or "/labels/" in path:
            assert not plans.covers(path)
            continue
        assert plans.covers(path)
        if endpoint in path and protocol in JSON_FORMS:
            request = post(path, JSON_FORMS[protocol].example(described.schema, described.example))
            planned = plans.answer(request)
            assert planned is not None
            assert shown(planned, request) == shown(handle(shared, request), request)


def table_of_flights():
    table = pa.table({name: pa.array([value, value]) for name, value in FLIGHT.items()})
    return arrow_stream(table)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "application/vnd.apache.arrow.stream"}, table_of_flights()),
        (
            {"content-type": "application/vnd.apache.arrow.stream", "accept": "application/json"},
            table_of_flights(),
        ),
        ({**JSON, "accept": "application/jsonl"}, orjson.dumps({"dataframe_split": SPLIT})),
        (
            {"content-type": "application/jsonl"},
            orjson.dumps(FLIGHT) + b"\n" + orjson.dumps(FLIGHT),
        ),
    ],
)
def test_a_plan_answers_tables_of_any_format(server, headers, body):
    request = RawRequest("POST", "/invocations", headers, body)
    planned = PlanTable(server).answer(request)
    assert planned is not None
    assert shown(planned, request) == shown(handle(server, request), request)


def test_the_name_of_a_model_stands_in_the_head_as_the_general_way_writes_it(
    serve_here, model_folders
):
    variant = {**servers.variant(model_folders["mixed"]), "model": "50 % Modèle\r\nX-Evil: yes"}
    server = serve_here({"mixed": {"v": variant}})
    for headers in ({"x_request_id": "100%"}, {}):
        request = post("/invocations", {"dataframe_split": SPLIT}, **headers)
        planned = PlanTable(server).answer(request)
        assert planned is not None
        assert shown(planned, request) == shown(handle(server, request), request)
        assert b"\r\nX-Model-Name: 50 %25 Mod%C3%A8le%0D%0AX-Evil: yes\r\n" in serialize_response(
            planned, True
        )


@pytest.fixture(scope="module")
def shared(tmp_path_factory, model_folders):
    state_dir = tmp_path_factory.mktemp("plans")
    kinds = ("mixed", "single", "tensor", "stock")
    with servers.opened(
        state_dir, {kind: {"v": servers.variant(model_folders[kind])} for kind in kinds}
    ) as server:
        yield server


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
    {
        "content-type": st.sampled_from(
            ["application/json", "application/json; charset=utf-8", "text/csv"]
        )
    },
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
def test_whatever_is_sent_a_plan_answers_and_counts_as_the_general_way_or_leaves_it(
    shared, request_, changes, headers
):
    path, document = request_
    body = orjson.dumps(document)
    for old, new in changes:
        body = body.replace(old, new, 1)
    request = RawRequest("POST", path, headers, body)
    before = counters(shared)
    planned = PlanTable(shared).answer(request)
    between = counters(shared)
    general = handle(shared, request)
    if planned is None:
        assert general.status >= 400, body
        assert between == before
    else:
        assert shown(planned, request) == shown(general, request)
        assert between - before == counters(shared) - between


def test_a_planned_answer_is_captured_and_counted_like_a_general_one(serve_here, endpoints):
    outcomes = []
    for is_planned in (True, False):
        server = serve_here(endpoints)
        plans = PlanTable(server)
        for path, document in BODIES:
            request = post(path, document, x_request_id="r")
            assert (plans.answer(request) if is_planned else handle(server, request)) is not None
        counted = [
            line
            for line in server.metrics.page().decode().splitlines()
            if not line.startswith("#") and "seconds" not in line
        ]
        server.capture.close()
        segments = (server.repository.state_dir / SPOOL).iterdir()
        rows = [
            (
                entry.record.endpoint,
                entry.record.variant,
                entry.record.request_id,
                entry.model.version,
                repr((entry.feeds, entry.outputs)),
            )
            for entry in chain.from_iterable(read_segment(segment)[0] for segment in segments)
        ]
        outcomes.append((counted, rows))
    (planned, planned_rows), (general, general_rows) = outcomes
    assert {*planned} ^ {*general} == set(), (
        "Metrics.prediction_counter and count_response count alike"
    )
    assert planned_rows == general_rows
    assert len(planned_rows) == len(BODIES)


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


def test_a_plan_selects_a_variant_by_weight_and_names_it(serve_here, model_folders):
    server = serve_here(canary(model_folders, "mixed"))
    plans = PlanTable(server)
    answered = []
    for _ in range(200):
        request = post("/invocations", {"dataframe_split": SPLIT})
        planned = plans.answer(request)
        assert planned is not None
        assert shown(planned, request) == shown(handle(server, request), request)
        answered.append((planned.headers["X-Model-Variant"], planned.headers["X-Model-Version"]))
    assert {*answered} == {("v", "1"), ("w", "2")}
    assert 60 < answered.count(("w", "2")) < 140


def test_a_request_that_the_selected_variant_refuses_is_not_given_to_another_one(
    serve_here, model_folders
):
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


def test_a_plan_captures_a_sample_and_counts_all_rows(serve_here, model_folders):
    server = serve_here({"mixed": {"v": servers.variant(model_folders["mixed"])}}, fraction=0.5)
    plans = PlanTable(server)
    assert all(plans.answer(post("/invocations", {"dataframe_split": SPLIT})) for _ in range(200))
    server.capture.close()
    captured = sum(
        len(read_segment(segment)[0]) for segment in (server.repository.state_dir / SPOOL).iterdir()
    )
    assert 60 < captured < 140
    counted = server.metrics.page().decode()
    assert 'onnxserve_capture_rows_total{endpoint="mixed",outcome="answered"} 200.0' in counted


@pytest.mark.parametrize(
    ("other", "sticky"), [({"shadow": True}, None), ({}, {"header": "x-user"}), ({}, {"key": "a"})]
)
def test_an_endpoint_with_a_shadow_or_with_sticky_callers_has_no_plan(
    serve_here, bias_folders, other, sticky
):
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
def test_a_request_outside_the_plan_leaves_no_trace(server, request_):
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
def test_a_server_that_decides_by_the_request_has_no_plans(serve_here, endpoints, spec):
    plans = PlanTable(serve_here(endpoints, server=spec))
    assert plans.answer(post("/invocations", {"dataframe_split": SPLIT})) is None


def test_a_plan_holds_the_limits_of_the_server_and_the_general_way_refuses(serve_here, endpoints):
    server = serve_here(endpoints, server={"max_concurrent_requests": 1, "rate_limit": "3/day"})
    plans = PlanTable(server)
    request = partial(post, "/invocations", {"dataframe_split": SPLIT})
    assert plans.answer(request()) is not None
    server.limits.acquire()
    full = request()
    assert plans.answer(full) is None
    refused = handle(server, full)
    assert (refused.status, b"the limit of 1 concurrent requests" in refused.body) == (429, True)
    server.limits.release()

    wrong = post("/invocations", {"dataframe_split": {"columns": [], "data": []}})
    assert plans.answer(wrong) is None
    assert handle(server, wrong).status == 400
    late = request()
    assert plans.answer(late) is None
    refused = handle(server, late)
    assert (refused.status, b"limited to 3/day" in refused.body) == (429, True)
    counted = [
        line
        for line in server.metrics.page().decode().splitlines()
        if line.startswith("onnxserve_refused")
    ]
    assert sorted(line.rpartition(" ")[2] for line in counted) == ["1.0", "1.0"]


def test_a_version_that_is_swapped_in_has_its_plan_at_once(serve_here, bias_folders):
    server = serve_here(servers.one_endpoint(bias_folders["1"]))
    plans = PlanTable(server)
    request = post("/invocations", {"inputs": [[0, 0, 0]]})

    def version():
        response = plans.answer(request)
        assert response is not None
        assert (
            response.body
            == b'{"predictions":[[%s000.0]]}' % response.headers["X-Model-Version"].encode()
        )
        return response.headers["X-Model-Version"]

    assert version() == "1"
    servers.want(server.repository.state_dir, 2, servers.one_endpoint(bias_folders["2"], "2"))
    wait_until(lambda: version() == "2", what="the plan of version 2")
