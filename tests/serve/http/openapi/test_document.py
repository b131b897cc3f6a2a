"""The OpenAPI document has all routes, is valid, and its examples are answered and fit
its schemas.
"""

import json
import weakref
from dataclasses import replace
from itertools import chain, product

import jsonschema_rs
import pytest

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.serve.http.openapi.document import MAX_ENDPOINTS, document
from mlflow_deploy_plugin.serve.http.routes import list_routes
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.protocols.invocations import invocations_answer
from mlflow_deploy_plugin.serve.protocols.schemas import invocations_schema
from mlflow_deploy_plugin.serve.runtime.artifact import Output
from mlflow_deploy_plugin.serve.runtime.schemas.pyfunc_schema import UndescribedSchema
from tests.support import page_models
from tests.support.handling import ask, handle
from tests.support.models import columns, mixed_model, write_model
from tests.support.schemas import bare_artifact
from tests.support.servers import one_endpoint, opened, variant, want
from tests.support.waiting import EXPLAINER_SECONDS, wait_until


def get(server, path, **headers):
    return handle(server, RawRequest("GET", path, headers, b""))


def fetched(server):
    response = get(server, "/openapi.json")
    assert response.status == 200
    return dict(json.loads(response.body))


def body_schema(document, path, media_type="application/json"):
    """Return the schema of a request's body, with the components to which it refers."""
    schema = document["paths"][path]["post"]["requestBody"]["content"][media_type]["schema"]
    return {**resolved(document, schema), "components": document["components"]}


def resolved(document, schema):
    if "$ref" not in schema:
        return schema
    return dict(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])


def find(part, condition):
    """Yield the objects below a part of the document that meet a condition."""
    if isinstance(part, dict):
        values = [*part.values()]
        if condition(part):
            yield part
    else:
        values = part if isinstance(part, list) else []
    for value in values:
        yield from find(value, condition)


@pytest.fixture(scope="module")
def server(tmp_path_factory, model_folders):
    folder = tmp_path_factory.mktemp("document")
    flights = {
        "columns": ["carrier", "distance", "hour", "late"],
        "data": [["AA", None, 7, False], ["UA", 2.5, 8, True]],
    }
    texts = "texts (float[N,1] votes, string[N,1] title) => (string[N,1] y) { y = Identity(title) }"
    masked = "masked (bool[N,2] mask, string[N] s) => (bool[N,2] y) { y = Not(mask) }"
    folders = {
        "flights": page_models.with_example(
            mixed_model(folder / "flights"), {"dataframe_split": flights}
        ),
        "digits": page_models.digits_model(folder / "digits"),
        "hostile": page_models.hostile_model(folder / "hostile"),
        "tensor": model_folders["tensor"],
        "single": model_folders["single"],
        "stock": model_folders["stock"],
        "texts": write_model(folder / "texts", texts, columns(votes="float", title="string")),
        "masked": write_model(folder / "masked", masked),
    }
    endpoints = {name: {"v": variant(folder)} for name, folder in folders.items()}
    spec = ServerSpec(request_timeout_seconds=EXPLAINER_SECONDS)
    with opened(folder / "state", endpoints, spec) as server:
        yield server


@pytest.fixture(scope="module")
def served(server):
    """Return the document of the server."""
    return fetched(server)


def test_document_has_all_routes(server, served):
    artifact = server.repository.select_variant("flights").loaded.predictor.artifact
    routes = list_routes()
    assert len({(route.path, route.method) for route in routes}) == len(routes)
    for route in routes:
        if route.applies_to(artifact) and "{endpoint}" not in route.path:
            assert route.method.lower() in served["paths"][route.path]


def test_open_server_mentions_no_keys(server, served):
    assert "securitySchemes" not in served["components"]
    assert list(find(served["paths"], lambda part: "security" in part)) == []
    assert "Bearer KEY" not in get(server, "/docs").body.decode()


ROW = ["AA", 1, 1, True]
TLS = {"ca_certs": "/c", "certfile": "/c", "keyfile": "/c"}


@pytest.mark.parametrize(
    ("settings", "infer", "read"),
    [
        ({"api_keys": True}, {"key": ["infer"]}, {"key": ["read"]}),
        (TLS, {"certificate": []}, {"certificate": []}),
        (
            {**TLS, "jwt_issuer": "https://i", "jwt_audience": "a"},
            {"key": ["infer"], "certificate": []},
            {"key": ["read"], "certificate": []},
        ),
    ],
)
def test_operations_list_required_credentials(server, settings, infer, read):
    keyed = replace(server, spec=ServerSpec.model_validate(settings))
    described = document(keyed)
    is_shown = b"Authorization: Bearer KEY" in get(keyed, "/docs").body
    assert is_shown == ("key" in infer)
    assert {*described["components"]["securitySchemes"]} == {*infer}
    paths = described["paths"]
    for path in ("/invocations", "/explain", "/v1/models/flights:predict"):
        assert paths[path]["post"]["security"] == [infer]
        assert {"401", "403"} <= {*paths[path]["post"]["responses"]}
    for path in ("/metrics", "/", "/v2/models/flights/stats"):
        assert paths[path]["get"]["security"] == [read]
    both = [infer, read] if "key" in infer else [read]
    assert paths["/v2/models/flights"]["get"]["security"] == both
    for path in ("/ping", "/v2/health/ready", "/pages/page.css"):
        assert "security" not in paths[path]["get"]


def test_errors_of_pages_are_pages(server, served):
    for path in ("/endpoints/flights", "/endpoints/flights/docs"):
        responses = served["paths"][path]["get"]["responses"]
        assert [*responses["404"]["content"]] == [*responses["503"]["content"]] == ["text/html"]
    response = get(server, "/endpoints/<b>nope")
    assert response.status == 404
    assert response.content_type.startswith("text/html")
    assert b"&lt;b&gt;nope" in response.body
    assert b"<b>nope" not in response.body


def test_new_version_is_described_and_old_one_freed(serve_here, bias_folders):
    server = serve_here(one_endpoint(bias_folders["1"]))
    assert "m version 1" in fetched(server)["info"]["description"]
    old = weakref.ref(server.repository.table["e"].variants["v"].loaded)
    want(server.repository.state_dir, 2, one_endpoint(bias_folders["2"], "2"))
    wait_until(lambda: "m version 2" in fetched(server)["info"]["description"])
    wait_until(lambda: old() is None, what="version 1 to be freed")


def test_document_is_valid(served):
    assert served["openapi"] == "3.1.0"
    schemas = served["components"]["schemas"]
    for schema in schemas.values():
        jsonschema_rs.meta.validate(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
        )
    referred = {
        part.split('"')[0] for part in json.dumps(served).split("#/components/schemas/")[1:]
    }
    assert referred <= set(schemas)


def test_titled_parts_are_components(served):
    """openapi-python-client derives class names from titles, and omits an operation if
    a name would repeat.
    """
    components = served["components"]["schemas"]
    written = json.dumps(components)
    assert '"title": "' not in written
    for name in ("flights.split", "flights.record", "flights.rows", "digits.the_tensor"):
        assert name in components
        assert written.count(f'"#/components/schemas/{name}"') > 1


def test_operations_and_objects_are_named(served):
    """A client generator names an operation without an id by its path and its verb, and
    an inline object by its position.
    """
    operations = chain.from_iterable(path.values() for path in served["paths"].values())
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert {"invocations", "predict", "v2.models.flights.versions.version.infer"} < {*names}
    schemas = served["components"]["schemas"].values()
    inner = [served["paths"], *([*schema.values()] for schema in schemas)]
    assert (
        list(find(inner, lambda part: part.get("type") == "object" and part.get("properties")))
        == []
    )


def test_similar_endpoint_names_have_own_operations(serve_here, model_folders):
    folder = model_folders["single"]
    names = ("flights", "flights.docs")
    paths = fetched(serve_here({name: {"v": variant(folder)} for name in names}))["paths"]
    for path, name in (("flights/docs", "flights.docs"), ("flights.docs", "flights..docs")):
        assert paths[f"/endpoints/{path}"]["get"]["operationId"] == f"endpoints.{name}"


def test_every_array_defines_its_items(served):
    """Client generators omit an operation with an array without `items`, which OpenAPI
    3.0 required.
    """
    arrays = list(find(served, lambda part: "array" in str(part.get("type"))))
    assert len(arrays) > 100
    assert [schema for schema in arrays if "items" not in schema] == []


@pytest.mark.parametrize(
    ("with_explanations", "least"), [(False, 30), pytest.param(True, 40, marks=pytest.mark.long)]
)
def test_examples_fit_their_schemas_and_are_answered(server, served, with_explanations, least):
    examples = 0
    for path, operations in served["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        for media_type, media in content.items():
            if "example" not in media or (path.endswith("explain") and not with_explanations):
                continue
            examples += 1
            example = media["example"]
            if not isinstance(example, str):
                schema = body_schema(served, path, media_type)
                jsonschema_rs.Draft202012Validator(schema).validate(example)
                example = json.dumps(example)
            address = path.replace("{version}", "1").replace("{label}", "v")
            response = ask(server, address, body=example.encode(), content_type=media_type)
            assert response.status == 200, (path, media_type, response.body)
            answer = operations["post"]["responses"]["200"]["content"]["application/json"]
            answered = {**resolved(served, answer["schema"]), "components": served["components"]}
            jsonschema_rs.Draft202012Validator(answered).validate(json.loads(response.body))
    assert examples >= least


def test_columns_are_typed_and_optional_ones_nullable(served):
    forms = body_schema(served, "/endpoints/flights/invocations")["oneOf"]
    split, records, *_ = (resolved(served, form) for form in forms)
    assert split["required"] == ["dataframe_split"]
    row = resolved(served, records["properties"]["dataframe_records"]["items"])
    types = {name: column["type"] for name, column in row["properties"].items()}
    assert types == {
        "carrier": "string",
        "distance": ["number", "null"],
        "hour": "integer",
        "late": "boolean",
    }
    # Rows may omit distance, which is then null.
    assert row["required"] == ["carrier", "hour", "late"]
    # Generated clients in Go and Java would otherwise read an int64 as int32.
    assert row["properties"]["distance"]["format"] == "double"
    assert row["properties"]["hour"]["format"] == "int64"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *product(
            ["/endpoints/flights/invocations"],
            [
                {"dataframe_split": {"columns": ["a"], "data": [[1]]}, "instances": [ROW]},
                {"dataframe_records": [{"carrier": 1, "hour": 1, "late": True}]},
                {"dataframe_records": []},
                {"instances": [["AA", 1, 1]]},
                {"inputs": [["AA", 1, 1.5, True]]},
                {},
            ],
        ),
        *product(
            ["/v1/models/flights:predict"],
            [
                {"inputs": [{"carrier": "AA", "distance": 1, "hour": 1, "late": True}]},
                {"inputs": {"carrier": ["AA"]}},
                {"inputs": [["AA", 1, 1]]},
            ],
        ),
    ],
)
def test_refused_bodies_do_not_match_schema(server, served, path, body):
    assert not jsonschema_rs.Draft202012Validator(body_schema(served, path)).is_valid(body)
    assert ask(server, path, body=body).status == 400


def test_labels_are_an_enumeration(served):
    for name, expected in (
        ("flights", {"type": "string", "enum": ["no", "yes"]}),
        ("digits", {"type": "integer", "enum": [0, 1, 2]}),
    ):
        schema = served["components"]["schemas"][f"{name}.invocations_answer"]
        assert schema["properties"]["predictions"]["items"] == expected


def test_boolean_labels_are_no_enumeration(server):
    """openapi-python-client would omit the response,
    and its client would return None.
    """
    artifact = server.repository.select_variant("digits").loaded.predictor.artifact
    label = Output("label", "bool", (-1,), "label")
    schema = invocations_answer(replace(artifact, classes=(False, True), outputs=(label,)))
    assert schema["properties"]["predictions"]["items"] == {"type": "boolean"}


def test_missing_example_is_zeros(served):
    request = served["paths"]["/endpoints/single/invocations"]["post"]["requestBody"]
    assert request["content"]["text/csv"]["example"] == "a,b,c\n0,0,0\n"


def test_many_endpoints_are_described_separately(serve_here, model_folders):
    count = MAX_ENDPOINTS + 1
    single = {"v": variant(model_folders["single"])}
    server = serve_here({f"e{number}": single for number in range(count)})
    document = fetched(server)
    assert {path for path in document["paths"] if path.endswith("/invocations")} == {
        "/invocations",
        "/endpoints/e0/invocations",
        "/models/e0/invocations",
    }
    assert f"{count} endpoints" in document["info"]["description"]
    own = json.loads(get(server, "/endpoints/e7/openapi.json").body)
    assert "/endpoints/e7/invocations" in own["paths"]
    assert get(server, "/endpoints/none/openapi.json").status == 404


def test_empty_server_has_pages(serve_here):
    server = serve_here({})
    for path in ("/", "/docs"):
        response = get(server, path)
        assert response.status == 200
        assert b"no model is loaded yet" in response.body
    paths = fetched(server)["paths"]
    assert "/invocations" in paths
    assert not any(path.startswith("/endpoints/") for path in paths)


@pytest.mark.parametrize(
    "body", [{"inputs": ["a"]}, {"messages": [{"role": "user", "content": "a"}]}]
)
def test_pyfunc_without_named_inputs_accepts_any_form(body):
    assert jsonschema_rs.is_valid(invocations_schema(UndescribedSchema((), (), ())), body)


@pytest.mark.parametrize(
    "answer", [{"predictions": [{"0": 1.5}]}, {"predictions": "a"}, {"choices": []}, ["a"]]
)
def test_pyfunc_may_answer_in_any_form(answer):
    outputs = (Output("prediction", "float64", (-1,)),)
    artifact = bare_artifact("python_function", outputs=outputs, prediction=("prediction",))
    assert jsonschema_rs.is_valid(invocations_answer(artifact), answer)
