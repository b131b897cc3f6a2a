"""Models of Unity Catalog, as MLflow's `databricks-uc` calls it."""

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, RegistryRefused
from mlflow_deploy_plugin.core.registry.connection import registry_client
from mlflow_deploy_plugin.core.registry.model_files import add_file, version_digest
from mlflow_deploy_plugin.core.registry.resolution import all_versions, check_new_name, resolve
from mlflow_deploy_plugin.core.registry.runs import experiment_name
from mlflow_deploy_plugin.core.registry.tags import tag_version
from mlflow_deploy_plugin.core.registry.transitions import parse_stage_or_alias
from tests.support.refusals import refused
from tests.support.services.s3 import s3_server
from tests.support.services.unity_catalog import unity_catalog
from tests.support.tracking import tracking_at

MODEL = "main.default.flights"


@pytest.fixture
def catalog(tmp_path, monkeypatch, new_database):
    with s3_server() as bucket, unity_catalog(bucket, monkeypatch) as catalog:
        versions = dict[str, dict[str, str]]({"1": {}, "2": {}, "3": {}})
        catalog.models[MODEL] = {"tags": {}, "aliases": {"champion": "2"}, "versions": versions}
        for number in versions:
            for name in ("MLmodel", "model.onnx"):
                bucket.objects[f"managed/{MODEL}/{number}/{name}"] = number.encode()
        with tracking_at(new_database(tmp_path)):
            yield catalog


@pytest.mark.parametrize(
    ("selector", "version"), [("@champion", "2"), ("/3", "3"), ("/latest", "3")]
)
def test_unity_catalog_version_is_resolved(catalog, selector, version):
    resolved = resolve(f"models:/{MODEL}{selector}")
    assert (resolved.name, resolved.version) == (MODEL, version)


def test_expired_unity_catalog_credentials_are_fetched_again(catalog):
    digest = version_digest(f"models:/{MODEL}/2")
    catalog.uses = 5  # Two files need eight requests.
    catalog.bucket.tokens.clear()
    assert version_digest(f"models:/{MODEL}/2") == digest
    assert len(catalog.bucket.tokens) > 1


def test_unity_catalog_tags_have_stored_keys(catalog):
    client = registry_client()
    model = catalog.models[MODEL]
    tag_version(MODEL, "2", "onnxserve.gate.policy_digest", "x" * 2000)
    client.set_registered_model_tag(MODEL, "onnxserve.gate.policy", "seed: 3")
    assert model["tags"] == {"onnxserve__gate__policy": "seed: 3"}
    assert client.get_registered_model(MODEL).tags == {"onnxserve.gate.policy": "seed: 3"}
    versions = all_versions(client, MODEL)
    assert [row.version for row in versions] == ["3", "2", "1"]
    assert versions[1].tags == {"onnxserve.gate.policy_digest": "x" * 1000}
    client.delete_model_version_tag(MODEL, "2", "onnxserve.gate.policy_digest")
    assert model["versions"]["2"] == {}


@pytest.mark.parametrize(
    ("uri", "error", "named"),
    [
        (f"models:/{MODEL}/Production", NotFound, "no stages"),
        (f"models:/{MODEL}/tag:team=blue", InvalidConfig, "alias"),
        (f"models:/{MODEL}@live", NotFound, "2 (@champion)"),
        ("models:/flights/1", InvalidConfig, "CATALOG.SCHEMA.MODEL"),
        ("models:/a..flights/1", InvalidConfig, "'a..flights'"),
        ("models:/a.b.c' or 'd@x", InvalidConfig, "CATALOG.SCHEMA.MODEL"),
        ("models:/a.b.%2f..%2fc@x", InvalidConfig, "CATALOG.SCHEMA.MODEL"),
        ("models:/a.b.c\nd@x", InvalidConfig, r"c\nd"),
        ("models:/a.b.secret@x", RegistryRefused, "EXECUTE"),
    ],
)
def test_unity_catalog_reference_is_refused(catalog, uri, error, named):
    catalog.denied = "a.b.secret"
    with refused(error, named) as caught:
        resolve(uri)
    assert "\n" not in str(caught.value)


def test_change_that_unity_catalog_lacks_is_refused(catalog, tmp_path):
    with refused(InvalidConfig, "Production", "alias"):
        parse_stage_or_alias("production")
    with refused(InvalidConfig, "CATALOG.SCHEMA.MODEL"):
        check_new_name("a.b.c d")
    with refused(InvalidConfig, "MLmodel", "logged model"):
        add_file(f"models:/{MODEL}/2", tmp_path / "MLmodel")


def test_experiment_next_to_unity_catalog_is_path():
    with tracking_at("databricks"):
        assert experiment_name("onnxserve/a.b.c") == "/Shared/onnxserve-a.b.c"
        assert experiment_name("/Users/me/flights") == "/Users/me/flights"


@pytest.mark.parametrize("token", ["dapi-expired", ""])
def test_unity_catalog_without_token_is_refused(catalog, tmp_path, monkeypatch, token):
    monkeypatch.setenv("HOME", str(tmp_path))  # It has no profile of Databricks.
    monkeypatch.setenv("DATABRICKS_TOKEN", token)
    with refused(RegistryRefused, "DATABRICKS_TOKEN") as caught:
        resolve(f"models:/{MODEL}@champion")
    assert "dapi" not in str(caught.value)
