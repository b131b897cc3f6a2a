from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.registry.model_uri import (
    ModelURI,
    default_endpoint_name,
    missing_folder_message,
    parse_model_uri,
    registered_meta,
    served_version_uri,
)
from tests.support.refusals import refused


@pytest.mark.parametrize(
    ("model_uri", "reference"),
    [
        ("models:/flight-delay/Production", ModelURI("stage", "flight-delay", "Production")),
        ("models:/flight-delay@challenger", ModelURI("alias", "flight-delay", "challenger")),
        ("models:/flight-delay/3", ModelURI("version", "flight-delay", "3")),
        ("models:/flight-delay/007", ModelURI("version", "flight-delay", "7")),
        ("models:/flight-delay/" + "1" * 5000, ModelURI("version", "flight-delay", "1" * 5000)),
        ("models:/flight-delay/Latest", ModelURI("latest", "flight-delay")),
        ("models:/flight-delay/tag:team=blue", ModelURI("tag", "flight-delay", "team=blue")),
        ("models:/flight-delay/tag:a.b/c=x=y/z", ModelURI("tag", "flight-delay", "a.b/c=x=y/z")),
        ("models:/m-0123", ModelURI("logged_model", "m-0123")),
        ("models:/name with spaces@a", ModelURI("alias", "name with spaces", "a")),
        ("runs:/abc/some/model", ModelURI("run", "abc", "some/model")),
        ("s3://bucket/a/model", ModelURI("remote", "s3://bucket/a/model")),
        (
            "mlflow-artifacts:/1/models/m-1/artifacts",
            ModelURI("remote", "mlflow-artifacts:/1/models/m-1/artifacts"),
        ),
        (
            "https://host/api/2.0/mlflow-artifacts/artifacts/1/m",
            ModelURI("remote", "https://host/api/2.0/mlflow-artifacts/artifacts/1/m"),
        ),
        ("file:///srv/a%20model", ModelURI("path", "/srv/a model")),
        ("file:///C:/a%20model", ModelURI("path", "C:/a model")),
        ("/srv/model", ModelURI("path", "/srv/model")),
        ("models/flight-delay", ModelURI("path", "models/flight-delay")),
    ],
)
def test_model_uri_is_parsed(model_uri, reference):
    assert parse_model_uri(model_uri) == reference


def test_stages_aliases_and_tags_are_followed():
    followed = ["models:/x/Production", "models:/x@a", "models:/x/tag:a=b"]
    fixed = ["models:/x/3", "models:/x/latest", "models:/m-1", "runs:/r/m", "/p"]
    assert all(parse_model_uri(uri).followed for uri in followed)
    assert not any(parse_model_uri(uri).followed for uri in fixed)


def test_tag_has_key_and_value():
    assert parse_model_uri("models:/x/tag:a.b/c=x=y").tag == ("a.b/c", "x=y")


@pytest.mark.parametrize(
    ("uri", "place"), [("models:/x/Production", "Production"), ("models:/x@a", "@a")]
)
def test_place_distinguishes_alias_from_stage(uri, place):
    assert parse_model_uri(uri).place == place


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
        "models://[host/x/1",
        "s3://[bucket/a",
        "http://[host/a",
        "file://[host/a",
        "runs:/abc",
        "models:/x/tag:a",
        "models:/x/tag:=b",
        "models:/x/tag:a=",
        "models://host/x/tag:a=b",
        None,
        Path("model"),
    ],
)
def test_uri_without_version_is_refused(model_uri):
    with pytest.raises(
        InvalidConfig, match=r"models:/NAME/Production|runs:/RUN_ID/PATH|models:/NAME/tag:KEY=VALUE"
    ):
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
def test_endpoint_is_named_after_model(model_uri, name):
    assert default_endpoint_name(model_uri) == name


@pytest.mark.parametrize(
    ("address", "names"),
    [
        (
            "https://host/models/m.onnx",
            ["MLFLOW_TRACKING_URI=https://host", "models:/NAME/VERSION"],
        ),
        (
            "http://h:5000/#/models/flight%20delay/versions/3",
            ["MLFLOW_TRACKING_URI=http://h:5000", "models:/flight delay/3"],
        ),
        ("http://h:5000/#/models/flights", ["models:/flights/VERSION"]),
    ],
)
def test_web_address_error_suggests_uris(address, names):
    with refused(InvalidConfig, *names):
        parse_model_uri(address)


def test_web_address_error_hides_password():
    with pytest.raises(InvalidConfig) as raised:
        parse_model_uri("https://user:secret@host/m")
    assert "secret" not in raised.value.message


@pytest.mark.parametrize("uri", ["models:/./flights", "models:/../flights/1", "models:/~/flights"])
def test_folder_as_registered_model_is_refused(uri):
    with refused(InvalidConfig, "a folder", "a registered model"):
        parse_model_uri(uri)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "flight-delay",
            (
                "; a registered model is models:/flight-delay@ALIAS, "
                "models:/flight-delay/Production or"
            ),
        ),
        ("flight-delay/Production", "; a registered model is models:/flight-delay/Production"),
        ("flights@champion", "; a registered model is models:/flights@champion"),
        ("models/churn", "; a registered model is models:/churn@ALIAS"),
        ("models/churn/3", "; a registered model is models:/churn/3"),
        (r"C:\models\churn", r"C:\models\churn is a path of Windows"),
        ("model.onnx", "model.onnx is a file; a model is a folder with an MLmodel file"),
    ],
)
def test_missing_folder_error_suggests_uri(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").touch()
    assert words in missing_folder_message(text)
    # The folder of a deployment is already absolute here.
    assert words in missing_folder_message(str(tmp_path / text))


@pytest.mark.parametrize("text", ["/no/such/folder", "./nothing", "~/nothing", "a/b/c"])
def test_missing_path_gets_no_suggestion(text):
    assert missing_folder_message(text).endswith(" does not exist")


@pytest.mark.parametrize("text", ["[" * 10_000, f"model_name: 0x1{'0' * 10_000}"])
def test_yaml_bomb_in_registered_meta_is_ignored(tmp_path, text):
    (tmp_path / "registered_model_meta").write_text(text)
    assert registered_meta(tmp_path) == {}


def test_logged_version_has_uri():
    assert served_version_uri("flights", "7") == "models:/flights/7"
    assert served_version_uri("flights", "m-1") == "models:/m-1"
    with refused(NotFound, "flights", "folder"):
        served_version_uri("flights", "folder")
