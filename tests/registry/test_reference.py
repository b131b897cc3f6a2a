import pytest

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.registry.reference import Reference, default_endpoint_name, parse_model_uri


@pytest.mark.parametrize(
    ("model_uri", "reference"),
    [
        ("models:/flight-delay/Production", Reference("stage", "flight-delay", "Production")),
        ("models:/flight-delay@challenger", Reference("alias", "flight-delay", "challenger")),
        ("models:/flight-delay/3", Reference("version", "flight-delay", "3")),
        ("models:/flight-delay/007", Reference("version", "flight-delay", "7")),
        ("models:/flight-delay/Latest", Reference("latest", "flight-delay")),
        ("models:/flight-delay/tag:team=blue", Reference("tag", "flight-delay", "team=blue")),
        ("models:/flight-delay/tag:a.b/c=x=y/z", Reference("tag", "flight-delay", "a.b/c=x=y/z")),
        ("models:/m-0123", Reference("logged_model", "m-0123")),
        ("models:/name with spaces@a", Reference("alias", "name with spaces", "a")),
        ("runs:/abc/some/model", Reference("run", "abc", "some/model")),
        ("s3://bucket/a/model", Reference("remote", "s3://bucket/a/model")),
        ("mlflow-artifacts:/1/models/m-1/artifacts", Reference("remote", "mlflow-artifacts:/1/models/m-1/artifacts")),
        ("file:///srv/a%20model", Reference("path", "/srv/a model")),
        ("/srv/model", Reference("path", "/srv/model")),
        ("models/flight-delay", Reference("path", "models/flight-delay")),
    ],
)
def test_a_model_uri_is_taken_apart(model_uri: str, reference: Reference) -> None:
    assert parse_model_uri(model_uri) == reference


def test_only_stages_aliases_and_tags_are_followed() -> None:
    followed = ["models:/x/Production", "models:/x@a", "models:/x/tag:a=b"]
    fixed = ["models:/x/3", "models:/x/latest", "models:/m-1", "runs:/r/m", "/p"]
    assert all(parse_model_uri(uri).followed for uri in followed)
    assert not any(parse_model_uri(uri).followed for uri in fixed)


def test_a_tag_has_a_key_and_a_value() -> None:
    assert parse_model_uri("models:/x/tag:a.b/c=x=y").tag == ("a.b/c", "x=y")


@pytest.mark.parametrize(
    "model_uri",
    [
        "models:/",
        "models:/x",
        "models:/x/",
        "models:/@a",
        "models:/x@",
        "models:/x/1/2",
        "models://host/x/1",
        "runs:/abc",
        "models:/x/tag:a",
        "models:/x/tag:=b",
        "models:/x/tag:a=",
        "models://host/x/tag:a=b",
    ],
)
def test_a_uri_without_a_version_is_refused_with_the_known_forms(model_uri: str) -> None:
    with pytest.raises(InvalidConfig, match=r"models:/NAME/Production|runs:/RUN_ID/PATH|models:/NAME/tag:KEY=VALUE"):
        parse_model_uri(model_uri)


@pytest.mark.parametrize(
    ("model_uri", "name"),
    [
        ("models:/flight-delay/Production", "flight-delay"),
        ("models:/flight delay@a", "flight-delay"),
        ("models:/flight-delay/tag:team=blue", "flight-delay"),
        ("models:/m-0123", "m-0123"),
        ("runs:/abc/some/model", "model"),
        ("s3://bucket/a/fraud/", "fraud"),
        ("/srv/_models/ärzte", "rzte"),
        ("/", "model"),
    ],
)
def test_the_endpoint_is_named_after_the_model(model_uri: str, name: str) -> None:
    assert default_endpoint_name(model_uri) == name
