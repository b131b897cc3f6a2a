"""The OpenAPI document has all routes, is valid, and its examples are answered and fit
its schemas.
"""

import html
import json
import weakref
from dataclasses import replace
from itertools import chain

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
from tests.support.handling import handle
from tests.support.models import columns, mixed_model, write_model
from tests.support.schemas import bare_artifact
from tests.support.servers import one_endpoint, variant, want
from tests.support.waiting import EXPLAINER_SECONDS, wait_until


def ask(server, path, method="GET", body=b"", content_type=""):
    return handle(
        server,
        RawRequest(method, path, {"content-type": content_type} if content_type else {}, body),
    )


def fetched(server):
    response = ask(server, "/openapi.json")
    assert response.status == 200
    return dict(json.loads(response.body))


def body_schema(document, path, media_type="application/json"):
    """Return the schema of a request's body, with the components to which it refers."""
    schema = document["paths"][path]["post"]["requestBody"]["content"][media_type]["schema"]
    return {**resolved(document, schema), "components": document["components"]}


def resolved(document, schema):
    return dict(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])


@pytest.fixture
def server(serve_here, model_folders, tmp_path):
    flights = {
        "columns": ["carrier", "distance", "hour", "late"],
        "data": [["AA", None, 7, False], ["UA", 2.5, 8, True]],
    }
    folders = {
        "flights": page_models.with_example(
            mixed_model(tmp_path / "flights"), {"dataframe_split": flights}
        ),
        "digits": page_models.digits_model(tmp_path / "digits"),
        "hostile": page_models.hostile_model(tmp_path / "hostile"),
        "tensor": model_folders["tensor"],
        "single": model_folders["single"],
        "stock": model_folders["stock"],
        "texts": write_model(
            tmp_path / "texts",
            (
                "texts (float[N,1] votes, string[N,1] title) => (string[N,1] y) { y = "
                "Identity(title) }"
            ),
            columns(votes="float", title="string"),
        ),
        "masked": write_model(
            tmp_path / "masked",
            "masked (bool[N,2] mask, string[N] s) => (bool[N,2] y) { y = Not(mask) }",
        ),
    }
    endpoints = {name: {"v": variant(folder)} for name, folder in folders.items()}
    return serve_here(endpoints, server={"request_timeout_seconds": EXPLAINER_SECONDS})


def test_every_route_is_in_the_document(server):
    described = json.loads(ask(server, "/openapi.json").body)["paths"]
    methods = {(path, method) for path, operations in described.items() for method in operations}
    artifact = server.repository.select_variant("flights").loaded.predictor.artifact
    applicable = [route for route in list_routes() if route.operation.applies_to(artifact)]
    plain = {
        (route.path, route.method.lower()) for route in applicable if "{endpoint}" not in route.path
    }
    assert plain <= methods
    assert len({(route.path, route.method) for route in list_routes()}) == len(list_routes())


def test_where_everybody_may_ask_no_key_is_spoken_of(server):
    document = fetched(server)
    assert "securitySchemes" not in document["components"]
    assert not any(
        "security" in operation
        for path in document["paths"].values()
        for operation in path.values()
    )
    assert "Bearer KEY" not in ask(server, "/docs").body.decode()


@pytest.mark.parametrize(
    ("settings", "infer", "read"),
    [
        ({"api_keys": True}, {"key": ["infer"]}, {"key": ["read"]}),
        (
            {"ca_certs": "/c", "certfile": "/c", "keyfile": "/c"},
            {"certificate": []},
            {"certificate": []},
        ),
        (
            {
                "ca_certs": "/c",
                "certfile": "/c",
                "keyfile": "/c",
                "jwt_issuer": "https://i",
                "jwt_audience": "a",
            },
            {"key": ["infer"], "certificate": []},
            {"key": ["read"], "certificate": []},
        ),
    ],
)
def test_paths_list_the_credentials_that_they_require(server, settings, infer, read):
    keyed = replace(server, spec=ServerSpec.model_validate(settings))
    described = document(keyed)
    assert {*described["components"]["securitySchemes"]} == {*infer}
    paths = described["paths"]
    for path, method in (
        ("/invocations", "post"),
        ("/explain", "post"),
        ("/v1/models/flights:predict", "post"),
    ):
        assert paths[path][method]["security"] == [infer]
        assert {"401", "403"} <= {*paths[path][method]["responses"]}
    for path in ("/metrics", "/", "/v2/models/flights/stats"):
        assert paths[path]["get"]["security"] == [read]
    assert paths["/v2/models/flights"]["get"]["security"] == (
        [infer, read] if "key" in infer else [read]
    )
    for path in ("/ping", "/v2/health/ready", "/pages/page.css"):
        assert "security" not in paths[path]["get"]


def test_the_snippets_send_the_key_that_a_server_asks_for(server):
    keyed = replace(server, spec=ServerSpec(api_keys=True))
    shown = html.unescape(
        handle(keyed, RawRequest("GET", "/docs", {"host": "h"}, b"")).body.decode()
    )
    assert "'Authorization: Bearer KEY'" in shown
    assert shown.count("headers={'Authorization': 'Bearer KEY'}") == 2


def test_the_error_of_a_page_is_a_page(server):
    for path in ("/endpoints/flights", "/endpoints/flights/docs"):
        responses = fetched(server)["paths"][path]["get"]["responses"]
        assert [*responses["404"]["content"]] == [*responses["503"]["content"]] == ["text/html"]
    assert ask(server, "/endpoints/nobody").content_type.startswith("text/html")


def test_another_version_is_described_anew_and_the_old_one_let_go(serve_here, bias_folders):
    server = serve_here(one_endpoint(bias_folders["1"]))
    assert "m version 1" in fetched(server)["info"]["description"]
    old = weakref.ref(server.repository.table["e"].variants["v"].loaded)
    want(server.repository.state_dir, 2, one_endpoint(bias_folders["2"], "2"))
    wait_until(
        lambda: "m version 2" in fetched(server)["info"]["description"],
        what="the description of version 2",
    )
    wait_until(lambda: old() is None, what="version 1 to be freed")


def test_a_page_names_each_caller_its_own_address(server):
    for host in ("one.example:8080", "two.example", "[::1]:8123"):
        page = handle(server, RawRequest("GET", "/docs", {"host": host}, b"")).body.decode()
        assert f"http://{host}/endpoints/flights/invocations" in page
        assert ("one.example" in page) == (host.startswith("one"))


def test_it_is_valid(server):
    document = fetched(server)
    assert document["openapi"] == "3.1.0"
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
        )
    referred = {
        part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]
    }
    assert referred <= set(document["components"]["schemas"])


def test_a_part_with_a_title_stands_once(server):
    """openapi-python-client derives class names from titles, and omits an operation if
    a name would repeat.
    """
    components = fetched(server)["components"]["schemas"]
    written = json.dumps(components)
    assert '"title": "' not in written
    for name in ("flights.split", "flights.record", "flights.rows", "digits.the_tensor"):
        assert name in components
        assert written.count(f'"#/components/schemas/{name}"') > 1


def test_client_generators_get_a_name_for_every_method_and_every_class(server):
    """A generator names an operation without an id by its path and its verb, and an
    inline object by its position.
    """
    document = fetched(server)
    operations = list(chain.from_iterable(path.values() for path in document["paths"].values()))
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert {
        "invocations",
        "predict",
        "v2.models.flights.infer",
        "v2.models.flights.versions.version.infer",
    } < {*names}

    def inline_objects(part):
        for value in (
            part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        ):
            yield from inline_objects(value)
        if isinstance(part, dict) and part.get("type") == "object" and part.get("properties"):
            yield part

    schemas = document["components"]["schemas"]
    assert [*inline_objects(document["paths"])] == []
    nested = [
        (name, part)
        for name, schema in schemas.items()
        for part in inline_objects([*schema.values()])
    ]
    assert [name for name, _ in nested] == []


def test_an_endpoint_that_is_named_like_a_path_of_another_has_its_own_methods(
    serve_here, model_folders
):
    folder = model_folders["single"]
    paths = fetched(
        serve_here({name: {"v": variant(folder)} for name in ("flights", "flights.docs")})
    )["paths"]
    names = [
        paths[path]["get"]["operationId"]
        for path in ("/endpoints/flights/docs", "/endpoints/flights.docs")
    ]
    assert names == ["endpoints.flights.docs", "endpoints.flights..docs"]


def test_numbers_have_their_width(server):
    """Generated clients in Go and Java would otherwise read an int64 as int32, and a
    double as a float.
    """
    record = fetched(server)["components"]["schemas"]["flights.record"]["properties"]
    assert record["distance"]["format"] == "double"
    assert record["hour"]["format"] == "int64"


def test_every_array_defines_its_items(server):
    """Client generators omit an operation with an array without `items`, which OpenAPI
    3.0 required.
    """

    def arrays(part):
        for value in (
            part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        ):
            yield from arrays(value)
        if isinstance(part, dict) and "array" in (part.get("type"), *(part.get("type") or ())):
            yield part

    schemas = list(arrays(fetched(server)))
    assert len(schemas) > 100
    assert [schema for schema in schemas if "items" not in schema] == []


@pytest.mark.long
def test_every_example_fits_its_schema_and_is_answered_as_the_document_says(server):
    document = fetched(server)
    examples = 0
    for path, operations in document["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        for media_type, media in content.items():
            if "example" not in media:
                continue
            examples += 1
            example = media["example"]
            if not isinstance(example, str):
                jsonschema_rs.Draft202012Validator(
                    body_schema(document, path, media_type)
                ).validate(example)
            body = example.encode() if isinstance(example, str) else json.dumps(example).encode()
            response = ask(
                server,
                path.replace("{version}", "1").replace("{label}", "v"),
                "POST",
                body,
                media_type,
            )
            assert response.status == 200, (path, media_type, response.body)
            schema = operations["post"]["responses"]["200"]["content"]["application/json"]["schema"]
            answered = resolved(document, schema) if "$ref" in schema else schema
            validator = jsonschema_rs.Draft202012Validator(
                {**answered, "components": document["components"]}
            )
            validator.validate(json.loads(response.body))
    assert examples >= 30


def test_columns_have_their_types_and_only_optional_columns_are_nullable(server):
    document = fetched(server)
    forms = body_schema(document, "/endpoints/flights/invocations")["oneOf"]
    split, records, *_ = (resolved(document, form) for form in forms)
    assert split["required"] == ["dataframe_split"]
    row = resolved(document, records["properties"]["dataframe_records"]["items"])
    assert row["properties"]["distance"]["type"] == ["number", "null"]
    assert row["properties"]["hour"]["type"] == "integer"
    assert row["properties"]["carrier"]["type"] == "string"
    assert row["properties"]["late"]["type"] == "boolean"
    # Rows may omit distance, which is then null.
    assert row["required"] == ["carrier", "hour", "late"]


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["a"], "data": [[1]]}, "instances": [["AA", 1, 1, True]]},
        {"dataframe_records": [{"carrier": 1, "hour": 1, "late": True}]},
        {"dataframe_records": []},
        {"instances": [["AA", 1, 1]]},
        {"inputs": [["AA", 1, 1.5, True]]},
        {"predict": 1},
        {},
    ],
)
def test_bodies_that_the_server_refuses_do_not_match_the_schema(server, body):
    schema = body_schema(fetched(server), "/endpoints/flights/invocations")
    assert not jsonschema_rs.Draft202012Validator(schema).is_valid(body)
    refusal = ask(
        server,
        "/endpoints/flights/invocations",
        "POST",
        json.dumps(body).encode(),
        "application/json",
    )
    assert refusal.status == 400


@pytest.mark.parametrize(
    "inputs",
    [
        [{"carrier": "AA", "distance": 1, "hour": 1, "late": True}],
        {"carrier": ["AA"]},
        [["AA", 1, 1]],
    ],
)
def test_bodies_that_tensorflow_serving_refuses_do_not_match_its_schema(server, inputs):
    path = "/v1/models/flights:predict"
    body = {"inputs": inputs}
    assert not jsonschema_rs.Draft202012Validator(body_schema(fetched(server), path)).is_valid(body)
    assert ask(server, path, "POST", json.dumps(body).encode(), "application/json").status == 400


def test_labels_are_an_enumeration_of_the_classes(server):
    schemas = fetched(server)["components"]["schemas"]
    assert schemas["flights.invocations_answer"]["properties"]["predictions"]["items"] == {
        "type": "string",
        "enum": ["no", "yes"],
    }
    assert schemas["digits.invocations_answer"]["properties"]["predictions"]["items"] == {
        "type": "integer",
        "enum": [0, 1, 2],
    }


def test_labels_that_are_booleans_are_no_enumeration(server):
    """openapi-python-client would omit the response,
    and its client would return None.
    """
    artifact = server.repository.select_variant("digits").loaded.predictor.artifact
    label = Output("label", "bool", (-1,), "label")
    schema = invocations_answer(replace(artifact, classes=(False, True), outputs=(label,)))
    assert schema["properties"]["predictions"]["items"] == {"type": "boolean"}


def test_an_endpoint_without_an_example_shows_zeros(server):
    content = fetched(server)["paths"]["/endpoints/single/invocations"]["post"]["requestBody"][
        "content"
    ]
    assert content["text/csv"]["example"] == "a,b,c\n0,0,0\n"


def test_many_endpoints_are_described_one_by_one(serve_here, model_folders):
    count = MAX_ENDPOINTS + 1
    server = serve_here(
        {f"e{number}": {"v": variant(model_folders["single"])} for number in range(count)}
    )
    document = fetched(server)
    assert {path for path in document["paths"] if path.endswith("/invocations")} == {
        "/invocations",
        "/endpoints/e0/invocations",
    }
    assert f"{count} endpoints" in document["info"]["description"]
    endpoint_document = json.loads(ask(server, "/endpoints/e7/openapi.json").body)
    assert "/endpoints/e7/invocations" in endpoint_document["paths"]
    assert ask(server, "/endpoints/none/openapi.json").status == 404


def test_before_anything_is_loaded_the_pages_are_there_and_say_so(serve_here, tmp_path):
    server = serve_here({})
    for path in ("/", "/docs"):
        response = ask(server, path)
        assert response.status == 200
        assert b"no model is loaded yet" in response.body
    paths = fetched(server)["paths"]
    assert "/invocations" in paths
    assert not any(path.startswith("/endpoints/") for path in paths)


def test_an_endpoint_that_is_not_there_is_a_page_of_404(server):
    response = ask(server, "/endpoints/<b>nope")
    assert response.status == 404
    assert response.content_type.startswith("text/html")
    assert b"&lt;b&gt;nope" in response.body
    assert b"<b>nope" not in response.body


@pytest.mark.parametrize(
    "body", [{"inputs": ["a"]}, {"messages": [{"role": "user", "content": "a"}]}]
)
def test_a_pyfunc_without_named_inputs_may_be_asked_as_mlflow_reads_it(body):
    assert jsonschema_rs.is_valid(invocations_schema(UndescribedSchema((), (), ())), body)


@pytest.mark.parametrize(
    "answer", [{"predictions": [{"0": 1.5}]}, {"predictions": "a"}, {"choices": []}, ["a"]]
)
def test_a_pyfunc_may_answer_as_mlflow_writes_it(answer):
    outputs = (Output("prediction", "float64", (-1,)),)
    artifact = bare_artifact("python_function", outputs=outputs, prediction=("prediction",))
    assert jsonschema_rs.is_valid(invocations_answer(artifact), answer)
