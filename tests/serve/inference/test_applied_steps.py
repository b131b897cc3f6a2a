"""Steps around a version: both functions for each protocol, with a plan and without,
their errors and captured rows, the swap, and calls between endpoints.
"""

import json
from typing import Any

import grpc
import jsonschema_rs
import pyarrow as pa
import pytest
from tritonclient.grpc import service_pb2

from mlflow_deploy_plugin.core.errors import InvalidArtifact
from mlflow_deploy_plugin.core.model_code import MODEL_CODE
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.spec.steps import steps_digest
from mlflow_deploy_plugin.core.statedir.files import SPOOL, WANTED, read_workers, write_state
from mlflow_deploy_plugin.core.statedir.models import Wanted, WantedEndpoint
from mlflow_deploy_plugin.serve.http.plan import PlanTable
from mlflow_deploy_plugin.serve.runtime.steps import load_steps
from tests.serve.grpc.conftest import listening, message
from tests.support.bodies import arrow_stream, v2_tensor
from tests.support.handling import ask, handle, post
from tests.support.refusals import mentions
from tests.support.servers import gunicorn, one_endpoint, opened, variant, want, write_spec
from tests.support.spool import read_spool
from tests.support.waiting import wait_until

STEPS = """
import numpy as np
import onnxserve

NUMBERS = {"8001": 1.0, "8002": 2.0}

def before(request: onnxserve.Request):
    a = [NUMBERS[name] for name in request.inputs["zip"]]
    return {"a": a, "b": request.inputs["b"], "c": np.zeros(len(a))}

def after(outputs, request):
    outputs["y"] *= 10
    return {"total": outputs["y"][:, 0], "zip": request.inputs["zip"]}
"""
RECORDS = [{"zip": "8001", "b": 5.0}, {"zip": "8002", "b": 7.0}]
COLUMNS = {"zip": ["8001", "8002"], "b": [5.0, 7.0]}
TOTALS = {"total": [60.0, 90.0], "zip": ["8001", "8002"]}
ROWS = [{"total": 60.0, "zip": "8001"}, {"total": 90.0, "zip": "8002"}]
TABLE = arrow_stream(pa.table(COLUMNS))
V2 = {"inputs": [v2_tensor("zip", "BYTES", ["8001", "8002"]), v2_tensor("b", "FP64", [5, 7])]}


@pytest.fixture
def stepped(serve_here, model_folders):
    """Return a function that serves the endpoint e with steps, by their source."""

    def serve(source, **more):
        return serve_here(one_endpoint(model_folders["single"]), steps={"e": source}, **more)

    return serve


def planned(server, request):
    answer = PlanTable(server).answer(request)
    assert answer is not None
    return answer


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (post("/invocations", {"dataframe_records": RECORDS}), {"predictions": TOTALS}),
        (post("/invocations", {"inputs": COLUMNS}), {"predictions": TOTALS}),
        (post(body=b"zip,b\n8001,5\n8002,7\n", content_type="text/csv"), {"predictions": TOTALS}),
        (post("/score", {"input_data": RECORDS}), TOTALS),
        (post("/predict/batch", RECORDS), {
            "predictions": TOTALS, "count": 2, "model": "m", "model_version": "1"}),
        (post("/v1/models/e:predict", {"instances": RECORDS}), {"predictions": ROWS}),
    ],
    ids=lambda value: getattr(value, "path", ""),
)  # fmt: skip
def test_steps_apply_to_each_protocol(stepped, request_, expected):
    server = stepped(STEPS)
    answers = [planned(server, request_), handle(server, request_)]
    assert [json.loads(answer.body) for answer in answers] == [expected, expected]


def test_steps_apply_to_tensors_and_tables(stepped):
    server = stepped(STEPS)
    for answer in (planned, handle):
        outputs = json.loads(answer(server, post("/v2/models/e/infer", V2)).body)["outputs"]
        assert {output["name"]: output["data"] for output in outputs} == TOTALS
        request = post(body=TABLE, content_type="application/vnd.apache.arrow.stream")
        table = answer(server, request)
        assert pa.ipc.open_stream(table.body).read_all().to_pydict() == TOTALS


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("outputs['y'][:, 0] > 13", {"predictions": [False, True]}),
        ("[{'y': y, 'id': request.id} for y in [1, 2]]", {
            "predictions": [{"y": 1, "id": "mine"}, {"y": 2, "id": "mine"}]}),
        ("['low', None]", {"predictions": ["low", None]}),
        ("[[1, 2], [3]]", {"predictions": [[1, 2], [3]]}),
        ("[float(x) for x in request.inputs['a']]", {"predictions": [1.0, 4.0]}),
    ],
)  # fmt: skip
def test_after_returns_arrays_lists_or_rows(stepped, after, expected):
    server = stepped(f"def after(outputs, request):\n    return {after}\n")
    answer = ask(server, body={"inputs": [[1, 2, 3], [4, 5, 6]]}, x_request_id="mine")
    assert json.loads(answer.body) == expected


def get(server, path):
    return json.loads(ask(server, path, "GET").body)


def test_caller_of_the_documents_is_answered(stepped):
    example = {"zip": "8001", "b": 5.0}
    server = stepped(f"{STEPS}\nINPUT_EXAMPLE = {example}\n")
    document = get(server, "/endpoints/e/openapi.json")
    for path in ("/invocations", "/v1/models/e:predict", "/predict", "/v2/models/e/infer"):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        schema = {**body["schema"], "components": document["components"]}
        assert jsonschema_rs.is_valid(schema, body["example"])
        assert not jsonschema_rs.is_valid(schema, {"inputs": [{"b": 5.0}]})
        assert handle(server, post(path, body["example"])).status == 200
    values = {"BYTES": ["8001"], "FP64": [5.0]}
    described = get(server, "/v2/models/e")
    tensors = [
        v2_tensor(entry["name"], entry["datatype"], values[entry["datatype"]])
        for entry in described["inputs"]
    ]
    assert handle(server, post("/v2/models/e/infer", {"inputs": tensors})).status == 200
    assert [entry["name"] for entry in get(server, "/v2/models/e/config")["input"]] == [*example]
    signature = get(server, "/v1/models/e/metadata")["metadata"]["signature_def"]
    assert [*signature["signature_def"]["serving_default"]["inputs"]] == [*example]
    assert b'value="8001"' in ask(server, "/", "GET").body
    assert described["outputs"] == []


def test_step_without_example_has_no_inputs(stepped):
    server = stepped(STEPS)
    described = get(server, "/v2/models/e")
    assert described["inputs"] == []
    assert "INPUT_EXAMPLE" in described["parameters"]["inputs"]
    document = get(server, "/openapi.json")
    assert "INPUT_EXAMPLE" in document["info"]["description"]
    body = document["paths"]["/invocations"]["post"]["requestBody"]["content"]["application/json"]
    assert "example" not in body
    schema = {**body["schema"], "components": document["components"]}
    assert jsonschema_rs.is_valid(schema, {"inputs": COLUMNS})


ROWS_OF_NO_USE = ["5", "[1]", "[0]", "'a'", "{1: 2}", "{'a': None}", "{'a': [1]}", "{'a': 2**64}"]


@pytest.mark.parametrize("example", [*ROWS_OF_NO_USE, "{'\\ud800': 1}", "{'a': 1j}"])
def test_unusable_input_example_is_refused(example):
    with pytest.raises(InvalidArtifact, match="INPUT_EXAMPLE"):
        load_steps(f"{STEPS}\nINPUT_EXAMPLE = {example}\n")


HEAD = """
import onnxserve
from mlflow_deploy_plugin.core.errors import InvalidRequest
calls = []
"""
BEFORE = HEAD + "def before(request):\n    calls.append(1)\n    "
AFTER = HEAD + "def after(outputs, request):\n    calls.append(1)\n    "


@pytest.mark.parametrize(
    ("step", "code", "status", "words"),
    [
        (BEFORE, "return {'a': {}['zip']}", 500,
            ["step before, steps.py line 7: KeyError; ", "X-Request-Id"]),
        (BEFORE, "return {'a': request.inputs['zip']}", 400,
            ["step before: column 'zip' is missing"]),
        (BEFORE, "return {**request.inputs, 'a': request.inputs.get('zip') or 1 / 0}", 500,
            ["line 7: ZeroDivisionError; "]),
        (BEFORE, "return ['hunter2']", 500, ["step before", "list;", "mapping"]),
        (BEFORE, "return {'a': [1, 2]}", 500, ["step before", "'b'"]),
        (BEFORE, "return dict.fromkeys('abc', [1.0])", 500, ["step before", "1 rows for 2 rows"]),
        (BEFORE, "return {**request.inputs, 'a': ['hunter2'] * 2}", 500,
            ["step before", "'a'", "X-Request-Id"]),
        (BEFORE, "raise SystemExit(3)", 500, ["line 7: SystemExit; "]),
        (BEFORE, "raise InvalidRequest('no such shop')", 400, ["step before: no such shop"]),
        (BEFORE, "return onnxserve.call('x', request.inputs)", 500,
            ["line 7: NotFound; "]),
        (BEFORE, "return onnxserve.call('e', request.inputs)", 500, ["line 7: InvalidConfig; "]),
        (AFTER, "return outputs['y'][:1]", 500, ["step after", "1 entries for 2 rows"]),
        (AFTER, "return 'hunter2'", 500, ["step after", "str for 2 rows"]),
        (AFTER, "return [1j, 2j]", 500, ["step after", "encoded", "TypeError"]),
    ],
)  # fmt: skip
def test_failed_step_fails_only_its_request(stepped, step, code, status, words):
    server = stepped(f"{step}{code}\n")
    request = post("/invocations", {"inputs": [[1, 2, 3], [4, 5, 6]]})
    assert PlanTable(server).answer(request) is None
    answer = handle(server, request)
    message = json.loads(answer.body)["message"]
    assert answer.status == status
    assert all(word in message for word in words), message
    assert "Traceback" not in message
    assert "hunter2" not in message
    (served,) = server.repository.table["e"].answering
    assert served.steps.module.calls == [1]  # The general path does not repeat the step.
    assert captured(server)[-1].record.status == status


SECRETS = """
def before(request):
    if "x-ask" not in request.headers:
        raise KeyError("postgres://:hunter2@store")
    return request.inputs

def after(outputs, request):
    return [{name: text for name, text in request.headers.items()}]
"""


@pytest.mark.parametrize("is_planned", [True, False])
def test_text_of_an_error_is_only_in_the_log(stepped, caplog, is_planned):
    server = stepped(SECRETS)
    request = post("/invocations", {"inputs": [[1, 2, 3]]})
    if is_planned:
        assert PlanTable(server).answer(request) is None
    answer = handle(server, request)
    id_ = f"X-Request-Id {answer.headers['X-Request-Id']}"
    assert id_ in json.loads(answer.body)["message"]
    assert mentions(caplog.text, id_, "hunter2")
    assert "hunter2" not in answer.body.decode()
    assert "hunter2" not in str(captured(server)[-1].outputs)


@pytest.mark.parametrize("is_planned", [True, False])
def test_steps_receive_no_credentials(stepped, is_planned):
    server = stepped(SECRETS)
    names = (
        "authorization proxy-authorization cookie x-api-key api-key x-auth-token x-amzn-oidc-data"
    )
    request = post("/invocations", {"inputs": [[1, 2, 3]]})
    plain = {**request.headers, "x-shop": "7"}
    key = "onnxserve_" + "a" * 43
    request.headers = {**plain, **dict.fromkeys(names.split(), "x"), "x-ask": f"as {key}"}
    answer = (planned if is_planned else handle)(server, request)
    (received,) = json.loads(answer.body)["predictions"]
    assert received == {**plain, "x-ask": "as onnxserve_…"}


def test_steps_are_checked_and_a_refusal_answers_503(stepped):
    server = stepped("def after(outputs, request):\n    return [1]\n")
    state_dir = server.repository.state_dir
    refused = WantedEndpoint(errors={"v": "not approved"})
    write_state(state_dir / WANTED, Wanted(generation=2, endpoints={"e": refused}))
    wait_until(lambda: read_workers(state_dir)[0].generation == 2)
    for path in ("/invocations", "/endpoints/e/invocations", "/v2/models/e/infer"):
        answer = ask(server, path)
        assert (answer.status, b"not approved" in answer.body) == (503, True)
    assert b"not approved" in ask(server, "/ping", "GET", b"").body


def captured(server):
    return read_spool(server.repository.state_dir / SPOOL)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"inputs": {"a": ["x"], "b": [1], "c": [2]}}, "'a'"),
        ({"inputs": {"a": 3, "b": [1], "c": [2]}}, "one entry per row"),
        ({"inputs": {"a": [1, 2], "b": [1], "c": [2]}}, "one entry per row"),
        ({"inputs": {"a": [], "b": [], "c": []}}, "one entry per row"),
        ({"dataframe_records": [{}]}, "one entry per row"),
        ({"dataframe_split": {"columns": [], "data": [[]]}}, "one entry per row"),
        ({"dataframe_split": {"columns": ["a", "b", "c"], "data": ["123"]}}, "'123'"),
    ],
)
def test_unusable_values_are_the_callers_fault(stepped, content, words):
    answer = ask(stepped("def before(request):\n    return request.inputs\n"), body=content)
    assert answer.status == 400
    assert words in json.loads(answer.body)["message"]


CONVERSIONS = [
    "{**request.inputs, 'a': [float(x) for x in request.inputs['a']]}",
    "{**request.inputs, 'a': np.array(request.inputs['a'])}",
    "{**request.inputs, 'a': [x + 1 for x in request.inputs['a']]}",
]


@pytest.mark.parametrize("code", CONVERSIONS)
def test_converted_value_is_the_callers_fault(stepped, code):
    server = stepped(f"import numpy as np\n\ndef before(request):\n    return {code}\n")
    statuses = []
    for value in ("x", 1, [1]):
        answer = ask(server, body={"inputs": {"a": [value], "b": [1], "c": [2]}})
        statuses.append(answer.status)
        assert answer.status == 200 or b"column 'a'" in answer.body
    assert statuses == [400, 200, 400]


@pytest.mark.parametrize("is_planned", [True, False])
def test_captured_row_has_both_sides(stepped, is_planned):
    server = stepped(STEPS, mask=["b"])
    request = post("/invocations", {"dataframe_records": RECORDS})
    answer = (planned if is_planned else handle)(server, request)
    assert answer.status == 200
    (row,) = captured(server)
    columns = row.model.schema.to_columns(row.feeds)
    assert columns["a"].tolist() == [1.0, 2.0]
    assert columns["_sent"].tolist() == ['{"zip":["8001","8002"]}', None]
    assert row.model.steps == steps_digest(STEPS)
    assert row.outputs["y"].tolist() == [[6.0], [9.0]]  # The step multiplies a copy.


def test_changed_steps_are_swapped_in(stepped, model_folders):
    server = stepped("def after(outputs, request):\n    return ['old']\n")
    repository = server.repository

    def reload(generation, source):
        want(repository.state_dir, generation, one_endpoint(model_folders["single"]), {"e": source})
        wait_until(lambda: read_workers(repository.state_dir)[0].generation == generation)
        loaded = read_workers(repository.state_dir)[0].loaded("e", "v")
        return json.loads(ask(server).body)["predictions"], loaded

    answer, loaded = reload(2, "import missing_package\ndef after(outputs, request):\n    ...\n")
    assert answer == ["old"]
    assert loaded.is_error_of_steps
    assert "steps.py line 1: ModuleNotFoundError" in loaded.error
    assert "missing_package" not in loaded.error
    answer, loaded = reload(3, "def after(outputs, request):\n    return ['new']\n")
    assert (answer, loaded.error) == (["new"], "")


def test_call_answers_in_the_same_worker(serve_here, bias_folders):
    folders = {"e": bias_folders["1"], "plain": bias_folders["2"], "other": bias_folders["3"]}
    endpoints = {name: {"v": variant(folder)} for name, folder in folders.items()}
    step = """
import onnxserve
def after(outputs, request):
    plain = onnxserve.call("plain", request.inputs)["y"][:, 0]
    return {"plain": plain, "other": [onnxserve.call("other", request.inputs)]}
"""
    other = "def after(outputs, request):\n    return [request.id, float(outputs['y'][0, 0])]\n"
    server = serve_here(endpoints, steps={"e": step, "other": other})
    body = {"dataframe_records": [{"a": 1, "b": 2, "c": 3}]}
    answer = ask(server, body=body, x_request_id="mine")
    assert json.loads(answer.body) == {
        "predictions": {"plain": [2006.0], "other": [["mine", 3006.0]]}
    }
    ids = {row.record.endpoint: row.record.request_id for row in captured(server)}
    assert ids == dict.fromkeys(folders, "mine")


@pytest.mark.parametrize("path", ["/explain", "/endpoints/e/explain"])
def test_explanation_with_steps_is_refused(stepped, path):
    answer = ask(stepped(STEPS), path)
    assert answer.status == 400
    assert "has steps" in json.loads(answer.body)["message"]


def test_refused_code_is_not_served(serve_here, model_folders, monkeypatch):
    monkeypatch.setenv(MODEL_CODE, "false")
    source = "def after(outputs, request):\n    return [1]\n"
    endpoints = {
        **one_endpoint(model_folders["single"]),
        "plain": {"v": variant(model_folders["single"])},
    }
    server = serve_here(endpoints, steps={"e": source})
    refused = ask(server)
    assert refused.status == 503
    assert MODEL_CODE in json.loads(refused.body)["message"]
    assert ask(server, "/endpoints/plain/invocations").status == 200


@pytest.mark.long
@pytest.mark.parametrize("code", ["while True: pass", "time.sleep(3600)"])
def test_step_without_end_fails_alone(tmp_path, model_folders, code):
    source = f"""
import time
def before(request):
    if request.headers.get("x-hang"):
        {code}
    return request.inputs
"""
    want(tmp_path, 1, one_endpoint(model_folders["single"]), {"e": source})
    spec = ServerSpec(request_timeout_seconds=1, threads=1)
    write_spec(tmp_path, "e", spec)
    with gunicorn(tmp_path, spec=spec) as server:
        row = {"inputs": [[1, 2, 3]]}
        for _ in range(3):
            late = server.post(json=row, headers={"X-Hang": "1"})
            assert late.status_code == 504
            assert "did not return" in late.json()["message"]
            assert server.post(json=row).json() == {"predictions": [[6.0]]}
        assert len(read_workers(tmp_path)) == 1


CONVERTING = """
INPUT_EXAMPLE = {"zip": "8001", "a": 1.0}
REGIONS = {"8001": 3.0}

def before(request):
    zips = request.inputs["zip"]
    a = [float(x) + 1 for x in request.inputs["a"]]
    return {"a": a, "b": [REGIONS.get(zip, 0.0) for zip in zips], "c": [len(zip) for zip in zips]}
"""
HOSTILE_COLUMNS = [
    {},
    {"zip": ["8001"]},
    {"a": [1.0]},
    {"ZIP": ["8001"], "a": [1.0]},
    {"zip": [], "a": []},
    {"zip": "8001", "a": None},
    {"zip": ["8001"], "a": [None]},
    {"zip": ["8001"], "a": ["x"]},
    {"zip": [1], "a": [1.0]},
    {"zip": [None], "a": [1.0]},
    {"zip": [["8001"]], "a": [1.0]},
    {"zip": [{"8001": 1}], "a": [1.0]},
    {"zip": ["8001"], "a": [[1.0]]},
    {"zip": ["8001"], "a": [1e999]},
    {"zip": ["8001", "8001"], "a": [1.0]},
    {"zip": ["8001"], "a": [2**70]},
    {"zip": ["8001" * 100_000], "a": [1.0]},
    {"zip": ["8001"], "a": [1.0], "extra": [[[]]]},
]


@pytest.fixture(scope="module")
def converting(tmp_path_factory, model_folders):
    endpoints = one_endpoint(model_folders["single"])
    with opened(tmp_path_factory.mktemp("e"), endpoints, steps={"e": CONVERTING}) as server:
        yield server


@pytest.mark.parametrize("columns", HOSTILE_COLUMNS, ids=lambda columns: str(columns)[:40])
def test_hostile_columns_are_the_callers_fault(converting, columns):
    lists = {
        name: values if isinstance(values, list) else [values] for name, values in columns.items()
    }
    row = {name: values[0] for name, values in lists.items() if values}
    requests = [
        ("/invocations", {"inputs": columns}),
        ("/invocations", {"dataframe_split": {"columns": [*row], "data": [[*row.values()]]}}),
        ("/v1/models/e:predict", {"inputs": columns}),
        ("/predict", row),
    ]
    for datatype in ("BYTES", "FP64"):
        tensors = [v2_tensor(name, datatype, values) for name, values in lists.items()]
        requests.append(("/v2/models/e/infer", {"inputs": tensors}))
    for path, body in requests:
        answer = handle(converting, post(path, body))
        assert answer.status == 400 or (answer.status == 200 and {"zip", "a"} <= {*row}), path


def test_hostile_tensors_over_grpc_are_refused(converting):
    numbers = [("zip", (1,), [1]), ("a", (0,), []), ("a", (), [1]), ("", (1, 1, 1), [1])]
    tensors: list[tuple[str, tuple[int, ...], str, dict[str, list[Any]]]] = [
        ("zip", (1,), "BYTES", {"bytes_contents": [b"8001"]})
    ]
    tensors += [(name, shape, "FP64", {"fp64_contents": held}) for name, shape, held in numbers]
    with listening(converting) as called, called.stub() as stub:
        for name, shape, datatype, contents in tensors:
            with pytest.raises(grpc.RpcError) as raised:
                stub.ModelInfer(
                    message("e", name=name, shape=shape, datatype=datatype, contents=contents)
                )
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        described = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="e"))
        assert [entry.name for entry in described.inputs] == ["zip", "a"]
