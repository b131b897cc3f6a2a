import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mlflow_deploy_plugin.core.errors import InvalidArtifact, RegistryRefused, RegistryUnavailable
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel, resolve
from mlflow_deploy_plugin.serve.agent.fetch import MlflowRegistry, ModelCache

MakeModel = Callable[..., Path]


@pytest.fixture
def registry(tmp_path):
    return MlflowRegistry(ModelCache(tmp_path / "cache", tmp_path / "state"))


def test_a_folder_is_served_from_where_it_stands_under_its_model_id(registry, make_model, tmp_path):
    folder = make_model(tmp_path / "flights", "m-7")
    version = registry.fetch(resolve(str(folder)))
    assert version.model == "flights"
    assert version.version == "m-7"
    assert version.folder == folder
    assert version.aspects == {
        "flavor": "onnx",
        "model_id": "m-7",
        "run_id": "r-1",
        "parity": "no-original",
    }
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_registry_metadata_overrides_the_metadata_in_the_files(registry, make_model, tmp_path):
    folder = make_model(tmp_path / "model")
    resolved = ResolvedModel(
        "models:/x@a", "x", "4", str(folder), True, {"alias": "a", "parity": "proven"}
    )
    version = registry.fetch(resolved)
    assert version.model == "x"
    assert version.version == "4"
    aspects = {"alias": "a", "parity": "proven"}
    assert version.aspects == {"flavor": "onnx", "model_id": "m-1", "run_id": "r-1", **aspects}


def test_a_pyfunc_version_is_marked_as_running_code(registry, tmp_path):
    folder = tmp_path / "pyfunc"
    folder.mkdir()
    (folder / "MLmodel").write_text(
        "flavors: {python_function: {loader_module: x}}\nmodel_id: m-9\n"
    )
    version = registry.fetch(resolve(str(folder)))
    assert (version.version, version.runs_code) == ("m-9", True)


def test_a_folder_with_a_link_is_not_served(registry, make_model, tmp_path):
    folder = make_model(tmp_path / "model")
    (folder / "extra").symlink_to("/etc/hostname")
    with pytest.raises(InvalidArtifact, match=r"'extra'.*link"):
        registry.fetch(resolve(str(folder)))


def saved_digest(folder, name="model.onnx"):
    """Write the entries of the file into MLmodel, as the flavor does."""
    document = yaml.safe_load((folder / "MLmodel").read_text())
    section = document["flavors"].setdefault("onnxserve", {"data": "model.onnx"})
    section["digests"] = {
        name: f"sha256:{hashlib.sha256((folder / 'model.onnx').read_bytes()).hexdigest()}"
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(document))


@pytest.mark.parametrize("uri", ["{}", "file://{}"])
@pytest.mark.parametrize("altered", [b"", b"another model"])
def test_a_folder_whose_graph_is_not_the_one_that_was_saved_is_refused(
    registry, make_model, tmp_path, uri, altered
):
    folder = make_model(tmp_path / "model")
    saved_digest(folder)
    registry.fetch(resolve(uri.format(folder)))
    (folder / "model.onnx").write_bytes(altered)
    with pytest.raises(InvalidArtifact, match=r"'model\.onnx' was changed.*sha256:\w+, but"):
        registry.fetch(resolve(uri.format(folder)))


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret", "data/../../secret"])
def test_a_digest_of_a_file_outside_of_the_folder_is_not_looked_at(
    registry, make_model, tmp_path, name
):
    (tmp_path / "secret").write_bytes(b"")
    folder = make_model(tmp_path / "model")
    saved_digest(folder, name)
    with pytest.raises(InvalidArtifact, match="outside"):
        registry.fetch(resolve(str(folder)))


def test_reporting_a_failure_of_an_unregistered_model_succeeds(registry, tmp_path):
    assert registry.report_failure(str(tmp_path), "it does not load")


@pytest.mark.parametrize(
    ("error", "is_final"),
    [(RegistryRefused("no permission"), True), (RegistryUnavailable("down"), False)],
)
def test_an_account_that_may_not_tag_a_version_does_not_try_without_end(
    registry, monkeypatch, error, is_final
):
    def refuse(*_):
        raise error

    monkeypatch.setattr("mlflow_deploy_plugin.serve.agent.fetch.tag_version", refuse)
    assert registry.report_failure("models:/tiny/2", "it does not load") is is_final
